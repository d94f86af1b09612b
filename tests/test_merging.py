"""Merged checkpoints against PEFT's own merging and against the formula with our own quantization."""

import json
import math
import shutil

import pytest
import tiny
import torch
from click.testing import CliRunner
from example_records import example_records
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from qlora_lib import merging, models
from qlora_lib.cli import cli
from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.metrics.perplexity import perplexity
from qlora_lib.quantization import dequantize_4bit, quantize_4bit

one_thread = tiny.one_thread
SOME = {
    "all": Lora(rank=4, alpha=8),
    "rslora": Lora(rank=9, alpha=6, use_rslora=True),
    "subset": Lora(rank=2, alpha=16, target_modules=["k_proj", "down_proj"]),
}


def trained(folder, lora=SOME["all"], quantization=Quantization(format="nf4"), note=True, **recorded):
    """A run's folder with an adapter that changes something, and the record that names its base; the adapter's."""
    model = models.attach_lora(tiny.base(quantization), lora, seed=1)
    torch.manual_seed(2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1)
    models.save_adapter(model, folder / "adapter")
    if note:
        write_record(folder, quantization, **recorded)
    return folder / "adapter"


def write_record(folder, quantization, **changes):
    from qlora_lib.assets import resolve_model

    made = example_records()["qlora"]
    model = made.model.model_copy(update={"name": "tiny-random", "revision": changes.pop("revision", resolve_model("tiny-random").revision)})
    settings = made.settings | {"quantization": quantization.model_dump(), "model": {"name": "tiny-random"}}
    provenance = made.provenance.model_copy(update={"dtype": changes.pop("dtype", "fp32")})
    made.model_copy(update={"model": model, "settings": settings, "provenance": provenance, **changes}).write(folder)


def nll(model, ids=None) -> float:
    ids = tiny.ids(600, seed=5) if ids is None else ids
    return math.log(perplexity(model, ids, 64, 64)["perplexity"])


def product(adapter, name) -> torch.Tensor | None:
    """s B A [out, in] of a layer, read from the files."""
    config, tensors = json.loads((adapter / "adapter_config.json").read_text()), load_file(adapter / "adapter_model.safetensors")
    at = f"base_model.model.{name}"
    if f"{at}.lora_A.weight" not in tensors:
        return None
    scaling = config["lora_alpha"] / (math.sqrt(config["r"]) if config["use_rslora"] else config["r"])
    return scaling * tensors[f"{at}.lora_B.weight"] @ tensors[f"{at}.lora_A.weight"]


@pytest.mark.parametrize("lora, form, double", [
    ("all", "nf4", True), ("rslora", "nf4", True), ("subset", "nf4", True), ("all", "nf4", False), ("subset", "fp4", True),
])  # fmt: skip
def test_onto_dequantized_is_the_formula_and_keeps_the_loss(tmp_path, lora, form, double):
    quantization = Quantization(format=form, double_quant=double)
    adapter = trained(tmp_path, SOME[lora], quantization)
    result = merging.merge(adapter, tmp_path / "merged")
    assert (result.onto, result.dtype, result.trained_on) == ("dequantized", "fp32", f"{form}{'+dq' * double}")
    got, stored = load_file(tmp_path / "merged" / "model.safetensors"), load_file(tiny.folder() / "model.safetensors")
    assert got.keys() == stored.keys()
    for key, weight in stored.items():
        name = key.removesuffix(".weight")
        if "proj" not in name:
            assert torch.equal(got[key], weight), key
            continue
        plain = dequantize_4bit(quantize_4bit(weight, form, 64, double))
        delta = product(adapter, name)
        expected = plain if delta is None else plain + delta
        torch.testing.assert_close(got[key], expected, rtol=1e-6, atol=1e-7)
        assert (got[key] - weight).abs().max() > 1e-3
    as_trained = models.load_adapter(tiny.base(quantization), adapter).eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert nll(merged) == pytest.approx(nll(as_trained), abs=1e-5)
    assert abs(nll(merged) - nll(tiny.base(quantization))) > 1e-3  # the adapter matters


@pytest.mark.parametrize("lora", SOME)
def test_onto_original_is_pefts_own_merging(tmp_path, lora):
    adapter = trained(tmp_path, SOME[lora])
    merging.merge(adapter, tmp_path / "merged", onto="original")
    theirs = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny.folder()), adapter).merge_and_unload()
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    for (name, a), (_, b) in zip(got.state_dict().items(), theirs.state_dict().items(), strict=True):
        assert torch.equal(a, b), name
    assert got.lm_head.weight is got.model.embed_tokens.weight  # tied, as the base


def test_an_adapter_of_an_unquantized_base(tmp_path):
    adapter = trained(tmp_path, quantization=Quantization())
    result = merging.merge(adapter, tmp_path / "merged")
    assert result.onto == "original"
    as_trained = models.load_adapter(tiny.base(), adapter).eval()
    assert nll(AutoModelForCausalLM.from_pretrained(tmp_path / "merged")) == pytest.approx(nll(as_trained), abs=1e-5)
    with pytest.raises(UsageError, match="nothing to dequantize. Give --onto original"):
        merging.merge(adapter, tmp_path / "other", onto="dequantized")


def test_trained_in_16_bits(tmp_path):
    """The base of training had 16-bit weights before they were quantized, and 16-bit embeddings."""
    quantization = Quantization(format="nf4")
    adapter = trained(tmp_path, quantization=quantization, dtype="bf16")
    merging.merge(adapter, tmp_path / "merged")
    got, stored = load_file(tmp_path / "merged" / "model.safetensors"), load_file(tiny.folder() / "model.safetensors")
    key = "model.layers.0.mlp.up_proj.weight"
    plain = dequantize_4bit(quantize_4bit(stored[key].bfloat16(), "nf4", 64, True)).float()
    torch.testing.assert_close(got[key], plain + product(adapter, key.removesuffix(".weight")), rtol=1e-6, atol=1e-7)
    assert torch.equal(got["model.embed_tokens.weight"], stored["model.embed_tokens.weight"].bfloat16().float())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_dtype_is_of_what_is_written(tmp_path, dtype):
    adapter = trained(tmp_path)
    merging.merge(adapter, tmp_path / "wide")
    result = merging.merge(adapter, tmp_path / "narrow", dtype=dtype)
    wide, narrow = (load_file(tmp_path / n / "model.safetensors") for n in ("wide", "narrow"))
    assert all(torch.equal(narrow[n], wide[n].to(merging.DTYPES[dtype])) for n in wide)  # rounded once, at the end
    assert result.bytes < 0.6 * (tmp_path / "wide" / "model.safetensors").stat().st_size
    assert json.loads((tmp_path / "narrow" / "config.json").read_text())["dtype"] == str(merging.DTYPES[dtype]).removeprefix("torch.")


def test_the_folder_is_a_plain_checkpoint_that_names_no_place(tmp_path):
    adapter = trained(tmp_path)
    merging.merge(adapter, tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert "quantization_config" not in config and config["architectures"] == ["LlamaForCausalLM"]
    tokenizers = [AutoTokenizer.from_pretrained(f) for f in (tiny.folder(), tmp_path / "merged")]
    chat = [{"role": "user", "content": "Hello"}]
    assert len({t.apply_chat_template(chat, tokenize=False) for t in tokenizers}) == 1
    texts = {f.name: f.read_text() for f in (tmp_path / "merged").iterdir() if f.suffix != ".safetensors"}
    assert {"README.md", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"} <= texts.keys()
    for name, text in texts.items():
        assert str(tiny.folder().parent) not in text and str(tmp_path) not in text, name
    card = texts["README.md"]
    assert "tiny-random" in card and "`nf4+dq` codes" not in card and "nf4+dq codes" in card and "Apache-2.0" in card
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]  # no scratch


def test_a_check_measures_what_it_names(tmp_path):
    quantization = Quantization(format="nf4")
    adapter, text = trained(tmp_path), tmp_path / "text.txt"
    text.write_text("The small cat sat on the mat, and the dog did not. " * 60)
    result = merging.merge(adapter, tmp_path / "merged", check=str(text), windows=3, context=64)
    from qlora_lib.data import file_tokens

    ids = file_tokens(text, "text", models.load_tokenizer(tiny.folder()))[: 3 * 64]
    loss = {w.what: w.loss for w in result.check}
    merged, original = tmp_path / "merged", merging.merged_model(merging.base_of(adapter), adapter, "original")
    expected = {
        "base (nf4+dq), no adapter": tiny.base(quantization),
        "base (nf4+dq) + adapter, as trained": models.load_adapter(tiny.base(quantization), adapter).eval(),
        "merged onto dequantized, as written (fp32)": AutoModelForCausalLM.from_pretrained(merged),
        "merged onto original (fp32)": original,
        "merged onto dequantized, quantized again (nf4+dq)": models.load_base(merged, quantization, torch.float32, "cpu"),
    }
    assert loss.keys() == expected.keys()
    for what, model in expected.items():
        assert loss[what] == pytest.approx(nll(model, ids), abs=1e-6), what
    assert len({round(x, 4) for x in loss.values()}) == 4  # as trained and merged onto dequantized are one
    assert "| merged onto original (fp32) |" in (merged / "README.md").read_text()


# --- which base


@pytest.mark.parametrize("changes, call, said", [
    ({"revision": "0" * 64}, {}, "another base: tiny-random 000000000000"),
    ({"revision": "0" * 64}, {"model": "tiny-random"}, "another base"),
    ({}, {"quantization": Quantization(format="fp4")}, "trained on a base in nf4, not fp4"),
    ({"derived_from": "full"}, {}, "what arm 'full' had trained. Give that model: --model"),
])  # fmt: skip
def test_another_base_is_refused(tmp_path, changes, call, said):
    adapter = trained(tmp_path, **changes)
    with pytest.raises(UsageError, match=said) as e:
        merging.merge(adapter, tmp_path / "merged", **call)
    assert "\n" not in str(e.value) and not (tmp_path / "merged").exists()


def test_a_hubs_commit_and_a_digest_of_files_are_not_compared(tmp_path):
    adapter = trained(tmp_path, revision="0" * 40)
    assert merging.base_of(adapter, model="tiny-random").asset.name == "tiny-random"


def test_without_a_record_the_base_is_given(tmp_path):
    adapter = trained(tmp_path, note=False)
    with pytest.raises(UsageError, match="no record.json beside .* --model NAME --quantization FORMAT"):
        merging.merge(adapter, tmp_path / "merged")
    result = merging.merge(adapter, tmp_path / "merged", model="tiny-random", quantization=Quantization(format="nf4"))
    assert (result.onto, result.trained_on) == ("dequantized", "nf4+dq")
    with pytest.raises(QloraError, match="does not load on this base|does not fit"):
        config = json.loads((adapter / "adapter_config.json").read_text())
        (adapter / "adapter_config.json").write_text(json.dumps(config | {"r": 5}))
        merging.merge(adapter, tmp_path / "bad", model="tiny-random")
    assert not (tmp_path / "bad").exists()


def test_what_cannot_be_merged_is_refused(tmp_path):
    prompt = tmp_path / "prompt"
    get_peft_model(tiny.base(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)).save_pretrained(prompt)
    with pytest.raises(UsageError, match="virtual tokens, which are no weights to merge"):
        merging.merge(prompt, tmp_path / "merged", model="tiny-random")
    head = tmp_path / "head"
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "lm_head"])
    get_peft_model(tiny.base(), config).save_pretrained(head, save_embedding_layers=False)
    with pytest.raises(UsageError, match="share one weight"):
        merging.merge(head, tmp_path / "merged", model="tiny-random")
    broken = trained(tmp_path / "run")
    tensors = load_file(broken / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = math.inf
    save_file(tensors, broken / "adapter_model.safetensors")
    with pytest.raises(QloraError, match="cannot be merged.*NaN"):
        merging.merge(broken, tmp_path / "merged")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["head", "prompt", "run"]


# --- the folder


def test_nothing_is_overwritten_unasked(tmp_path):
    adapter, out = trained(tmp_path / "run"), tmp_path / "out"
    out.mkdir()
    merging.merge(adapter, out)  # an empty one is taken
    (out / "mine.txt").write_text("x")
    with pytest.raises(UsageError, match="not empty. Give another --out, or --force"):
        merging.merge(adapter, out)
    merging.merge(adapter, out, onto="original", force=True)
    assert not (out / "mine.txt").exists() and (out / "model.safetensors").exists()
    for precious in (tmp_path / "run", tmp_path / "run" / "adapter", tmp_path):
        before = sorted(p.name for p in precious.rglob("*"))
        with pytest.raises(UsageError, match="something else than a checkpoint"):
            merging.merge(adapter, precious, force=True)
        assert sorted(p.name for p in precious.rglob("*")) == before


def test_a_failure_leaves_nothing_and_keeps_what_was(tmp_path, monkeypatch):
    adapter, out = trained(tmp_path / "run"), tmp_path / "out"
    merging.merge(adapter, out)
    before = {p.name: p.read_bytes() for p in out.iterdir()}

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("transformers.PreTrainedModel.save_pretrained", full)
    with pytest.raises(QloraError, match="cannot be written.*No space left"):
        merging.merge(adapter, out, force=True)
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "run"]
    shutil.rmtree(out)
    with pytest.raises(QloraError):
        merging.merge(adapter, out)
    assert not out.exists()


def test_the_command(tmp_path):
    adapter, text = trained(tmp_path / "run"), tmp_path / "text.txt"
    text.write_text("The small cat sat on the mat, and the dog did not. " * 60)
    args = ["merge", "--adapter", str(adapter), "--out", str(tmp_path / "out"), "--check", str(text), "--windows", "2"]
    shown = json.loads(CliRunner().invoke(cli, [*args, "--json"]).stdout)
    assert (shown["onto"], shown["model"], len(shown["check"]), shown["check_data"]) == ("dequantized", "tiny-random", 5, "text.txt")
    again = CliRunner().invoke(cli, [*args, "--force", "--onto", "original"])
    assert "onto original weights" in again.stdout and "merged onto original, as written (fp32)" in again.stdout
    result = CliRunner().invoke(cli, args)
    assert isinstance(result.exception, UsageError) and "not empty" in str(result.exception)
