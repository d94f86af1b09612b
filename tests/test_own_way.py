"""A user's own chats, the whole way on the tiny model: check, train, merge, GGUF, Modelfile; and what was predicted."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import gguf
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from qlora_lib.cli import cli
from qlora_lib.config import ArmEntry, load_profile
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.course import own_way
from qlora_lib.errors import UsageError
from qlora_lib.models import load_tokenizer
from qlora_lib.paths import course_dir, project_root
from qlora_lib.study import run_arm
from qlora_lib.tasks.own_report import check

one_thread = tiny.one_thread
EXAMPLES = project_root() / "notebooks" / "data"
CHATS = EXAMPLES / "example_messages.jsonl"


def settings_of(max_steps: int = 6, **more):
    profile = load_profile("smoke")
    set_to = profile.arm_of_method("qlora").set | {
        "data.name": str(CHATS), "data.window_length": 400, "train.max_steps": max_steps, "train.save_every": 2, "evaluation.windows": 4,
        "evaluation.context": 400, "evaluation.stride": 400, "evaluation.samples": 2, "evaluation.answer_tokens": 4, "evaluation.new_tokens": 0,
        "runtime.threads": 1,
    }  # fmt: skip
    arm = ArmEntry(name="own-data", label="own", method="qlora", set=set_to | more)
    return profile, arm, profile.settings(arm)


@pytest.fixture(scope="module")
def way(tmp_path_factory):
    """The example's chats trained on, merged and exported, with the commands of a user."""
    folder = tmp_path_factory.mktemp("own")
    profile, arm, settings = settings_of()
    result = run_arm(profile, arm, folder / "run")

    def call(*words: str) -> dict:
        done = CliRunner().invoke(cli, [*map(str, words), "--json"], catch_exceptions=False)
        return json.loads(done.stdout)

    checked = call("check", CHATS, "--model", "tiny-random", "--max-length", 400, "--batch-size", 4)
    merged = call("merge", "--adapter", folder / "run" / "adapter", "--out", folder / "merged", "--check", CHATS, "--windows", 3)
    exported = {
        kind: call("export", "--model", folder / "merged", "--out", folder / kind / "mine.gguf", "--type", kind, "--system", "Be brief.")
        for kind in ("f32", "q8_0")
    }
    return SimpleNamespace(folder=folder, profile=profile, arm=arm, settings=settings, result=result, checked=checked, merged=merged, exported=exported)


def test_training_is_what_the_check_said(way):
    record, said = way.result.record, way.checked
    assert {split: s.documents - record.data.left_out.get(f"{split}: longer than 400 tokens", 0) for split, s in record.data.splits.items()
            if split != "test"} == {split: said["splits"][split] for split in ("train", "validation")}  # fmt: skip
    assert said["longer_than_max"] > 0 and said["usable"]
    from qlora_lib.training import planned_steps

    whole = way.profile.settings(way.arm, {"train.epochs": 1.0, "train.max_steps": 10_000})
    assert planned_steps(whole, record.data.splits["train"].windows) == said["steps_per_epoch"]
    assert record.train.eval_loss[-1] < record.train.eval_loss[0] and record.task.metrics["response_perplexity"].n is None
    assert run_arm(way.profile, way.arm, way.folder / "run").cached


def test_memory_is_predicted(way):
    shape = ModelShape.read(tiny.folder())
    predicted = own_way.predicted_peak(way.settings, shape, way.checked["max_length"])
    assert predicted == pytest.approx(way.result.record.train.peak_tensor_bytes, rel=0.1)
    assert own_way.predicted_peak(way.settings, shape, 400, "cuda", "bf16") > 0


def test_disk_is_predicted(way):
    disk = own_way.disk_bytes(ModelShape.read(tiny.folder()), way.settings)
    size = lambda *parts: way.folder.joinpath(*parts).stat().st_size
    for what, got in {
        "adapter": size("run", "adapter", "adapter_model.safetensors"), "merged checkpoint": way.merged["bytes"], "GGUF, q8_0": way.exported["q8_0"]["bytes"],
    }.items():  # fmt: skip
        assert 0 <= got - disk[what] < 12_000, what  # names and, in a GGUF, the vocabulary
    assert disk["checkpoints, while training"] > 2 * disk["adapter"]
    assert own_way.stored_width(way.folder / "merged") == 4


def test_memory_of_merging_is_predicted():
    """The tensors of both models that merging holds."""
    count = lambda model: sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    states = lambda model: sum(
        t.numel() * t.element_size()
        for p in model.parameters() if (s := getattr(p, "quant_state", None))
        for t in (s.absmax, s.code, s.offset, s.state2.absmax, s.state2.code)
    )  # fmt: skip
    quantized = tiny.base(tiny.FORMATS["nf4dq"])
    held = count(tiny.base()) + count(quantized) + states(quantized)
    assert own_way.merging_bytes(ModelShape.read(tiny.folder())) == pytest.approx(held, rel=0.01)


def test_a_check_on_chats_is_the_loss_of_their_responses(way):
    from transformers import AutoModelForCausalLM

    from qlora_lib.tasks.chat import encode
    from qlora_lib.tasks.load import load_task

    tokenizer, total, count = load_tokenizer(tiny.folder()), 0.0, 0
    model = AutoModelForCausalLM.from_pretrained(way.folder / "merged")
    for example in load_task(str(CHATS)).splits["validation"][:3]:
        e = encode(example, tokenizer)
        ids, labels = torch.tensor([e.ids[-256:]]), torch.tensor([e.labels[-256:]])
        learned = int((labels[0, 1:] != -100).sum())
        with torch.no_grad():
            total += float(model(ids, labels=labels).loss) * learned
        count += learned
    loss = {row["what"]: row["loss"] for row in way.merged["check"]}
    assert loss["merged onto dequantized, as written (fp32)"] == pytest.approx(total / count, abs=1e-5)
    assert loss["base (nf4+dq) + adapter, as trained"] == pytest.approx(total / count, abs=1e-5)
    assert loss["base (nf4+dq), no adapter"] > total / count + 1e-3
    assert way.merged["check_data"] == "example_messages.jsonl, validation split" and "3 examples" in way.merged["check_protocol"]


def rotated_back(rows: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp's neighbouring pairs to transformers' halves, written out."""
    width = rows.shape[0] // heads
    order = [h * width + i for h in range(heads) for part in (0, 1) for i in range(part, width, 2)]
    return rows[order]


def test_the_gguf_is_the_merged_model(way):
    merged = load_file(way.folder / "merged" / "model.safetensors")
    config = json.loads((way.folder / "merged" / "config.json").read_text())
    names = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
             "ffn_norm": "post_attention_layernorm"}  # fmt: skip
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for kind in way.exported:
        found = {}
        for tensor in gguf.GGUFReader(way.folder / kind / "mine.gguf").tensors:
            values = gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(reversed(tensor.shape.tolist())))
            parts = tensor.name.split(".")
            if parts[0] == "blk":
                values = rotated_back(values, heads[parts[2]]) if parts[2] in heads else values
                found[f"model.layers.{parts[1]}.{names[parts[2]]}.weight"] = values
            else:
                found[{"token_embd": "model.embed_tokens", "output_norm": "model.norm"}[parts[0]] + ".weight"] = values
        assert found.keys() == merged.keys()
        for name, values in found.items():
            wanted = merged[name].numpy()
            if kind == "f32" or wanted.ndim == 1:
                assert np.array_equal(values, wanted), name
            else:  # half a step of each block, and the rounding of its scale to fp16
                blocks = wanted.reshape(-1, 32)
                step = np.abs(blocks).max(1, keepdims=True) / 127
                assert (np.abs(values.reshape(-1, 32) - blocks) <= step * (0.5 + 127 / 2048) + 1e-7).all(), name


def test_the_modelfile_speaks_the_models_template(way):
    text = (way.folder / "q8_0" / "Modelfile").read_text()
    assert "FROM ./mine.gguf\n" in text and 'SYSTEM """Be brief."""' in text and 'PARAMETER stop "<|eos|>"' in text
    tokenizer = load_tokenizer(tiny.folder())
    from qlora_lib.tasks.modelfile import chat_parts

    asked = tokenizer.apply_chat_template(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert chat_parts(tokenizer).render("Be brief.", ["Hi"]) == asked
    assert way.exported["q8_0"]["modelfile"].endswith("Modelfile")
    again = CliRunner().invoke(cli, ["export", "--model", "tiny-random", "--out", str(way.folder / "q8_0" / "other.gguf"), "--modelfile"])
    assert isinstance(again.exception, UsageError) and "Modelfile exists" in str(again.exception)
    assert not (way.folder / "q8_0" / "other.gguf").exists()


# --- the data of the lesson ------------------------------------------------------------------------


def test_the_examples_are_what_they_are_for():
    good, bad = check(CHATS), check(EXAMPLES / "malformed_messages.jsonl")
    assert good.kinds == [] and good.unusable is None and good.conversations >= 150
    left_out, kept = ([k for k in bad.kinds if k.left_out is is_left] for is_left in (True, False))
    assert len(left_out) == 10 and {k.count for k in left_out} == {1} and bad.conversations == 5
    said = " ".join(k.what for k in kept)
    assert all(what in said for what in ("byte order mark", "Windows", "blank", "ShareGPT", "prompt and completion", "instruction", "same as an earlier"))
    assert "10 of 15 rows" in bad.unusable


def test_pictures_say_what_they_show(way):
    record = way.result.record
    for figure, alt in (
        own_way.draw_lengths([20, 40, 30], [10, 10, 15], 35),
        own_way.draw_outcome(record.train, record.task.metrics["response_perplexity"]),
        own_way.draw_ways({"one": 0.0, "other": 0.1}, "loss"),
    ):
        assert len(figure.axes) in (1, 2) and len(alt) > 20
    assert "1 are longer than the limit of 35" in own_way.draw_lengths([20, 40, 30], [10, 10, 15], 35)[1]


# --- in Colab --------------------------------------------------------------------------------------


@pytest.mark.parametrize("colab, out", [(True, None), (True, "mine"), (False, None)])
def test_results_go_to_the_drive_in_colab_alone(monkeypatch, tmp_path, colab, out):
    cells = json.loads((project_root() / "notebooks" / "13_your_own_data.ipynb").read_text())["cells"]
    (source,) = ["".join(c["source"]) for c in cells if c["cell_type"] == "code" and "google.colab.drive" in "".join(c["source"])]
    mounted = []
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        monkeypatch.setitem(sys.modules, "google.colab.drive", SimpleNamespace(mount=mounted.append))
    (tmp_path / "qlora_lib").mkdir()
    monkeypatch.chdir(tmp_path / "qlora_lib")
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "results"))
    names = {"sys": sys, "Path": Path, "lesson": SimpleNamespace(profile=load_profile("smoke")), "data_file": None, "recipe": None, "out": out}
    exec(source, names)  # noqa: S102
    assert names["data"] == CHATS and names["recipe"].name == "smoke"
    if colab and out is None:
        assert mounted == [str(tmp_path / "drive")] and names["folder"] == tmp_path / "drive" / "MyDrive" / "qlora_lib" / "own-data"
    else:
        assert mounted == [] and names["folder"] == (Path("mine") if out else course_dir("smoke") / "own-data")
    assert [p.name for p in tmp_path.iterdir()] == ["qlora_lib"]
