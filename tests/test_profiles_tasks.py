"""The three profiles of tasks: settings as their sources state them, sizes that fit their cards, models that exist."""

import json
import re
import sys

import pytest

from qlora_lib.assets.registry import MODELS, HubRepo
from qlora_lib.cli import main
from qlora_lib.config import PROFILES_DIR, Settings, load_profile
from qlora_lib.cost.memory import adapter_tensors, nf4_bytes, state_bytes
from qlora_lib.cost.shapes import ALL_LINEAR, ModelShape
from qlora_lib.tasks.load import task_names

GIB = 2**30
CARDS = {"rtx3070-tinyllama-dolly": 8, "llama3.1-8b": 24, "rtx3090-qwen2.5-tasks": 24}
SHAPES = {  # widths of each model's published config.json
    "tinyllama-1.1b": ModelShape(2048, 22, 32, 4, 64, 5632, 32_000),
    "llama3.1-8b": ModelShape(4096, 32, 32, 8, 128, 14_336, 128_256),
    "qwen2.5-3b": ModelShape(2048, 36, 16, 2, 128, 11_008, 151_936, tied_embeddings=True, attention_bias=True),
    "qwen2.5-7b": ModelShape(3584, 28, 28, 4, 128, 18_944, 152_064, attention_bias=True),
    "qwen3-4b": ModelShape(2560, 36, 32, 8, 128, 9728, 151_936, tied_embeddings=True, qk_norm=True),
    "qwen3-8b": ModelShape(4096, 36, 32, 8, 128, 12_288, 151_936, qk_norm=True),
}


def arms(name: str) -> dict[str, tuple[str, Settings]]:
    profile = load_profile(name)
    return {arm.name: (arm.method, profile.settings(arm)) for arm in profile.arms}


def static_bytes(method: str, s: Settings) -> int:
    """Weights, adapters, their gradients and states; embeddings, head and norms in fp32 under QLoRA, as PEFT prepares it."""
    shape = SHAPES[s.model.name]
    targets = tuple(ALL_LINEAR) if s.lora.target_modules == "all-linear" else tuple(s.lora.target_modules)
    adapter = [] if method == "base" else adapter_tensors(shape, s.lora.rank, targets)
    trained = 8 * sum(adapter) + (state_bytes(adapter, 32) if adapter else 0)
    if s.quantization.format == "none":
        return 2 * shape.parameters.total + trained
    four_bit = shape.num_layers * sum(nf4_bytes(i * o) for i, o in shape.linear_modules.values())
    rest = shape.parameters.total - shape.linear_weights
    return four_bit + (2 if method == "base" else 4) * rest + trained


@pytest.mark.parametrize("name", CARDS)
def test_every_arm_is_of_a_known_model_and_task(name):
    for _, s in arms(name).values():
        assert s.model.name in MODELS and s.data.name in task_names()
        assert s.train.precision in ("bf16", "auto") and s.train.gradient_checkpointing


@pytest.mark.parametrize("name", CARDS)
def test_every_arm_fits_what_the_profile_says_it_needs(name):
    profile = load_profile(name)
    needs = profile.needs.gpu_memory_gib
    assert needs < CARDS[name] * 0.95  # a desktop and the driver take some
    heaviest = 0
    for arm in profile.arms:
        s = profile.settings(arm)
        if not arm.runs:
            assert arm.why
            continue
        shape, t = SHAPES[s.model.name], s.train
        logits = 4 * t.batch_size * s.data.window_length * shape.vocab_size  # fp32, of which the loss holds up to three
        kept = 2 * t.batch_size * s.data.window_length * shape.hidden_size * (shape.num_layers + 1)  # layers' inputs, checkpointed
        total = static_bytes(arm.method, s) + (0 if arm.method == "base" else 3 * logits + kept)
        heaviest = max(heaviest, total)
        assert total / GIB < needs, (arm.name, total / GIB)
    assert heaviest / GIB > needs / 2  # nor is far more asked for than the arithmetic gives


def test_the_reasons_of_what_does_not_run_hold():
    for name, card in CARDS.items():
        profile = load_profile(name)
        (arm,) = [a for a in profile.arms if not a.runs]
        parameters = SHAPES[profile.settings(arm).model.name].parameters.total
        assert arm.method == "full" and f"{parameters:,}" in arm.why
        each = [(int(n), float(gib)) for n, gib in re.findall(r"(\d+) bytes(?: each)?, *\n? *([\d.]+) GiB", arm.why)]
        assert each and all(f"{parameters * n / GIB:.1f}" == f"{gib}" for n, gib in each)
        assert all(gib > card for _, gib in each)


def test_the_guide_s_settings_for_llama():
    found = arms("llama3.1-8b")
    peft, unsloth = found["qlora-peft"][1], found["qlora-unsloth"][1]
    for s in (peft, unsloth):
        assert (s.lora.rank, s.lora.alpha, s.lora.dropout) == (16, 16, 0.05)
        assert s.lora.target_modules == ["q_proj", "k_proj", "v_proj", "o_proj"]
        assert (s.quantization.format, s.quantization.double_quant, s.train.precision) == ("nf4", True, "bf16")
        assert (s.data.window_length, s.model.name, s.data.name) == (2048, "llama3.1-8b", "dolly-15k")
    assert (peft.runtime.backend, unsloth.runtime.backend) == ("peft", "unsloth")
    same = lambda s: s.model_dump(exclude={"runtime"})
    assert same(peft) == same(unsloth)  # they differ in the back end alone
    text = (PROFILES_DIR / "llama3.1-8b.yaml").read_text()
    adapted = SHAPES["llama3.1-8b"].lora_parameters(16, peft.lora.target_modules)
    assert f"{adapted / 1e6:.1f} M parameters" in text
    assert round(SHAPES["llama3.1-8b"].lora_parameters(16) / adapted) == 3
    assert f"{2 * SHAPES['llama3.1-8b'].parameters.total / GIB:.1f} GiB of weights" in text
    assert f"{4 * 2048 * 128_256 / GIB:.1f} GiB" in text
    four_bit = static_bytes("qlora", peft) / GIB
    assert four_bit + 3 * 4 * 2048 * 128_256 / GIB < 14  # 16 GB for the 4-bit arms


def test_the_demo_s_settings_for_tinyllama():
    found = arms("rtx3070-tinyllama-dolly")
    method, s = found["qlora"]
    assert (method, s.quantization.format, s.quantization.double_quant) == ("qlora", "nf4", True)
    assert (s.model.name, s.data.name) == ("tinyllama-1.1b", "dolly-15k")
    text = (PROFILES_DIR / "rtx3070-tinyllama-dolly.yaml").read_text()
    shape = SHAPES["tinyllama-1.1b"]
    assert f"{shape.lora_parameters(16) / 1e6:.1f} M parameters" in text
    assert f"{shape.lora_parameters(16) / shape.parameters.total:.1%}".replace("%", " %") in text
    assert f"{2 * shape.parameters.total / GIB:.1f} GiB of weights: fits" in text
    frozen = static_bytes("qlora", s) - 16 * shape.lora_parameters(16)
    assert f"{frozen / GIB:.1f} GiB of weights, half" in text
    assert {"base", "base-nf4dq", "lora", "qlora"} <= set(found)


def test_ranks_tasks_and_models_of_the_rank_study():
    profile = load_profile("rtx3090-qwen2.5-tasks")
    seen = {}
    for arm in profile.arms:
        s = profile.settings(arm)
        if arm.method == "qlora":
            seen.setdefault((s.model.name, s.data.name), []).append(s.lora.rank)
            assert (s.quantization.format, s.train.optimizer, s.train.precision) == ("nf4", "paged_adamw_32bit", "bf16")
            assert s.train.batch_size * s.train.gradient_accumulation_steps == 16
    models = {"qwen2.5-3b", "qwen2.5-7b", "qwen3-4b", "qwen3-8b"}
    assert set(seen) == {(m, d) for m in models for d in ("sst2", "squad", "dolly-15k")}
    assert all(ranks == [4, 8, 16] for ranks in seen.values())


def test_models_are_pinned_licensed_and_named_as_they_are_published():
    expected = {
        "llama3.1-8b": ("meta-llama/Llama-3.1-8B", "Llama 3.1 Community License"),
        "qwen2.5-3b": ("Qwen/Qwen2.5-3B-Instruct", "Qwen Research License"),
        "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", "Apache-2.0"),
        "qwen3-4b": ("Qwen/Qwen3-4B", "Apache-2.0"),
        "qwen3-8b": ("Qwen/Qwen3-8B", "Apache-2.0"),
    }
    for name, (repo, license) in expected.items():
        spec = MODELS[name]
        assert isinstance(spec.source, HubRepo) and (spec.source.repo_id, spec.license) == (repo, license)
        assert re.fullmatch("[0-9a-f]{40}", spec.source.revision)
    assert "Gated" in MODELS["llama3.1-8b"].note and "research" in MODELS["qwen2.5-3b"].note


def test_each_says_what_its_source_leaves_open_and_begins_with_its_command():
    for name in CARDS:
        text = (PROFILES_DIR / f"{name}.yaml").read_text()
        header = text.split("\ntitle:")[0]
        assert text.startswith(f"# qlora report --profile {name}\n")
        assert "It has not been run on a GPU by this project" in " ".join(header.replace("#", "").split()) and "choice" in header
    text = (PROFILES_DIR / "rtx3090-qwen2.5-tasks.yaml").read_text()
    assert "Qwen2.5-4B-Instruct and Qwen2.5-8B-Instruct, which do not exist" in text


def test_qlora_profiles_lists_them(capfd, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["qlora", "profiles", "--json"])
    capfd.readouterr()
    with pytest.raises(SystemExit) as e:
        main()
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)["profiles"]}
    assert e.value.code == 0 and set(CARDS) <= set(rows)
    for name in CARDS:
        assert rows[name]["needs"]["gpu_memory_gib"] and rows[name]["arms"]
        assert list(rows[name]["declared_only"]) == ["full"]
