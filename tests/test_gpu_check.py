"""`qlora bench --gpu-check`: what is built, what is predicted, what happens to a case that cannot run, and the record.

No GPU is needed: sizes are counted on the meta device, and the tiny size runs on the CPU, in fp32 and in bf16.
"""

import gc
import json
import re
import socket
import sys
import weakref
from dataclasses import replace
from getpass import getuser
from pathlib import Path

import pytest
import torch
from tiny import one_thread  # noqa: F401

from qlora_lib import hardware, models
from qlora_lib.bench import gpu_check, gpu_record
from qlora_lib.bench.gpu_check import CASES, OUT_OF_TIME, TINY, Device, run_case, run_gpu_check, work_of
from qlora_lib.bench.gpu_models import SHAPES, blank_model, llama_config, random_model
from qlora_lib.bench.gpu_record import GpuCheckRecord, contributed_sentence, read_contributed, read_gpu_check
from qlora_lib.bench.gpu_table import to_text
from qlora_lib.bench.predict import bandwidth_of, predict, trained_tensors, weight_bytes
from qlora_lib.bench.settings import NF4_DQ
from qlora_lib.bench.threads import use_threads
from qlora_lib.cli import main
from qlora_lib.config import Lora, Quantization
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.memory import nf4_bytes, state_bytes
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.hardware import DType
from qlora_lib.metrics.sizes import count_parameters, is_adapter, tensor_bytes
from qlora_lib.models import attach_lora, prepare_for_training
from qlora_lib.paths import project_root

FP32, BF16 = DType("fp32", "test"), DType("bf16", "test")
CPU = Device("cpu", FP32, peak=1e11, peak_words="test", bandwidth=1e10)
T4 = replace(CPU, on="cuda", dtype=DType("fp16", "test"), peak=GPUS["T4"].fp16, bandwidth=GPUS["T4"].bandwidth)
NEVER, AT_ONCE = (lambda: False), (lambda: True)


@pytest.fixture(scope="module", autouse=True)
def threads():
    use_threads()


@pytest.fixture(scope="module")
def record() -> GpuCheckRecord:
    """One run at the tiny size, through JSON and back."""
    made = run_gpu_check(tiny=True)
    return GpuCheckRecord.model_validate_json(json.dumps(made.to_dict()))


@pytest.fixture
def bench(capfd, monkeypatch):
    """Run `qlora bench ...` in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # set back after the test
        monkeypatch.setattr(sys, "argv", ["qlora", "bench", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        return e.value.code, *capfd.readouterr()

    return call


# --- sizes, without a byte allocated ---------------------------------------------------------------


def prepared_on_meta(case, dtype: str):
    """The model of a case as it is trained, on the meta device."""
    weights = models.weight_dtype(case.method, DType(dtype, "test"))
    model = blank_model(SHAPES[case.model], NF4_DQ if case.method == "qlora" else Quantization(), weights)
    model = prepare_for_training(model, case.method, case.checkpointing)
    with torch.device("meta"):
        return model if case.method == "full" else attach_lora(model, Lora(), 0)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("case", CASES, ids=[c.name for c in CASES])
def test_predicted_bytes_are_those_of_the_modules_that_transformers_and_peft_make(case, dtype):
    """The closed form from widths, against every tensor of the real modules; a 4-bit weight by its format."""
    work = work_of(case, dtype)
    weights = trained = tensors = 0
    for name, p in prepared_on_meta(case, dtype).named_parameters():
        assert p.is_meta
        weights += nf4_bytes(p.numel()) if type(p).__name__ == "Params4bit" else tensor_bytes(p)
        trained += tensor_bytes(p) if p.requires_grad else 0
        tensors += p.requires_grad
        assert p.requires_grad == (case.method == "full" or is_adapter(name))
    frequencies = 2 * 4 * SHAPES[case.model].head_dim // 2
    found = predict(work, None, None)
    assert (found.weight_bytes, found.trainable_bytes) == (weights + frequencies, trained)
    assert len(trained_tensors(work)) == tensors
    tensors = trained_tensors(work)
    wide = tensors[:1] if case.method == "full" else []  # Trainer leaves the embedding's states in 32 bits
    assert found.optimizer_bytes == state_bytes(tensors[len(wide) :], bits=8) + sum(8 * n for n in wide)


def test_the_shapes_are_those_of_the_published_models():
    assert SHAPES["tinyllama-1.1b"].parameters.total == 1_100_048_384
    assert SHAPES["llama-3.1-8b"].parameters.total == 8_030_261_248
    assert SHAPES["llama-3.1-8b"].lora_parameters(16) == 41_943_040
    for shape in SHAPES.values():
        assert ModelShape.read(llama_config(shape)) == shape


def test_every_linear_layer_but_the_head_is_four_bit_with_double_quantization():
    import bitsandbytes as bnb

    model = blank_model(SHAPES["llama-3.1-8b"], NF4_DQ, torch.bfloat16)
    four_bit = [m for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)]
    assert sum(m.in_features * m.out_features for m in four_bit) == SHAPES["llama-3.1-8b"].linear_weights
    kinds = {(m.weight.quant_type, m.weight.compress_statistics, m.compute_dtype) for m in four_bit}
    assert kinds == {("nf4", True, torch.bfloat16)}
    head = model.get_output_embeddings()
    assert type(head) is torch.nn.Linear and head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("elements", [64, 4096, 1000, 64 * 257, 1_000_000])
def test_a_matrix_takes_the_bytes_that_bitsandbytes_gives_it(elements):
    import bitsandbytes as bnb

    codes, state = bnb.functional.quantize_4bit(torch.randn(1, elements), quant_type="nf4", blocksize=64, compress_statistics=True)
    inner = state.state2
    held = (codes, state.absmax, state.code, state.offset, inner.absmax, inner.code)
    assert nf4_bytes(elements) == sum(tensor_bytes(t) for t in held)


@pytest.mark.parametrize("tensors", [[4095], [4096, 100], [5000, 70_000, 12]])
def test_8_bit_states_take_the_bytes_that_bitsandbytes_gives_them(tensors):
    import bitsandbytes as bnb

    parameters = [torch.nn.Parameter(torch.zeros(n)) for n in tensors]
    for p in parameters:
        p.grad = torch.ones_like(p)
    optimizer = bnb.optim.AdamW(parameters, optim_bits=8)
    optimizer.step()
    held = {t.data_ptr(): t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t)}  # tables once
    assert state_bytes(tensors, bits=8) == sum(tensor_bytes(t) for t in held.values())


# --- predictions ------------------------------------------------------------------------------------


def test_times_are_those_of_the_data_sheet():
    work = work_of(CASES[0], "fp16")
    found = predict(work, GPUS["T4"].fp16, GPUS["T4"].bandwidth)
    flops = step_flops(work.shape, "qlora", work.batch, work.length, 16).hardware_flops
    assert found.step_seconds == flops / 65e12
    embedding = 32_000 * 2048 * 4  # one row of it is read, not all
    assert found.decode_tokens_per_second == 320e9 / (weight_bytes(work) - embedding)
    checkpointing = predict(replace(work, checkpointing=True), GPUS["T4"].fp16, None)
    assert checkpointing.step_seconds > found.step_seconds and checkpointing.peak_bytes < found.peak_bytes
    assert checkpointing.decode_tokens_per_second is None


def test_a_device_without_a_data_sheet_gets_no_times():
    assert bandwidth_of("NVIDIA GeForce RTX 9999") is None
    found = predict(work_of(CASES[0], "bf16"), None, bandwidth_of("NVIDIA GeForce RTX 9999"))
    assert found.step_seconds is None and found.decode_tokens_per_second is None and found.peak_bytes > 0


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_the_estimated_peaks_are_in_the_order_of_published_ones(dtype):
    """8B with LoRA 16.2 GiB and with QLoRA 7.4 GiB (torchtune, whose QLoRA keeps embedding and head in 16 bits)."""
    gib = {c.name: predict(work_of(c, dtype), None, None).peak_bytes / 2**30 for c in CASES}
    assert 15 < gib["llama-3.1-8b.lora"] < 20
    assert 7.4 < gib["llama-3.1-8b.qlora"] < 7.4 + 2 + 3  # two GiB for those in 32 bits, their casts
    assert gib["tinyllama-1.1b.qlora"] < gib["tinyllama-1.1b.lora"] < gib["tinyllama-1.1b.full"] < 15  # of a T4


# --- the tiny size, on the CPU ----------------------------------------------------------------------


def check_measured(case):
    assert (case.status, case.reason) == ("measured", None)
    for quantity in ("weight_bytes", "trainable_bytes", "optimizer_bytes"):  # counted from tensors, not computed
        assert getattr(case, f"measured_{quantity}") == getattr(case, f"predicted_{quantity}")
    assert 0.5 < case.measured_peak_bytes / case.predicted_peak_bytes < 1.25  # it is an estimate of the stock forwards
    assert case.measured_decode_tokens_per_second > 0 and case.decode_engine
    assert case.measured_tokens_per_second == pytest.approx(case.batch * case.length / case.measured_step_seconds)
    assert len(case.losses) == case.steps == 20 and case.loss_first == case.losses[0] and case.loss_last == case.losses[-1]
    assert case.falls and case.loss_last < case.loss_first - 0.2
    assert {"loss", "norms"} <= set(case.fast_path)


def test_the_tiny_size_is_measured_end_to_end(record):
    assert record.tiny and [c.name for c in record.cases] == [c.name for c in TINY]
    for case in record.cases:
        check_measured(case)
        assert case.predicted_step_seconds is not None and case.measured_step_seconds > case.predicted_step_seconds
        assert case.predicted_decode_tokens_per_second is None  # a CPU has no data sheet here
        assert case.measured_allocated_bytes is None  # there is no such meter on a CPU
    ways = {(c.method, c.gradient_checkpointing) for c in record.cases}
    assert ways >= {("qlora", True), ("qlora", False), ("lora", False), ("full", False)}
    assert gpu_check.failed(record) is None


@pytest.mark.parametrize("case", [TINY[0], TINY[1]], ids=["qlora", "lora"])
def test_sixteen_bits_run_as_on_a_gpu(case):
    """The dtypes of a GPU: a 16-bit base, fp32 adapters, products in autocast."""
    check_measured(run_case(case, replace(CPU, dtype=BF16), True, NEVER))


def test_random_weights_come_from_the_seed_and_have_the_width_of_a_fresh_model():
    one, same, other = (random_model(SHAPES["tiny-3-layers"], "lora", torch.float32, "cpu", seed) for seed in (1, 1, 2))
    assert count_parameters(one)["base"] == SHAPES["tiny-3-layers"].parameters.total
    for (name, a), b, c in zip(one.named_parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b) and not a.is_meta
        if a.ndim == 2:
            assert not torch.equal(a, c) and a.std().item() == pytest.approx(0.02, rel=0.05), name
        else:
            assert (a == 1).all()
    theta = one.config.rope_parameters["rope_theta"]
    assert torch.allclose(one.model.rotary_emb.inv_freq, theta ** -(torch.arange(0, 32, 2) / 32))


# --- what cannot be measured ------------------------------------------------------------------------


def test_what_does_not_fit_is_skipped_with_the_numbers_that_say_so(monkeypatch):
    monkeypatch.setattr(gpu_check, "free_memory", lambda on: 8 * 2**30)
    monkeypatch.setattr(gpu_check, "random_model", lambda *_: pytest.fail("built all the same"))
    case = next(c for c in CASES if c.name == "llama-3.1-8b.lora")
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    found = run_case(case, T4, False, NEVER)
    assert found.status == "skipped"
    assert re.fullmatch(r"does not fit: predicted peak 1\d\.\d GiB, free 8\.0 GiB", found.reason)
    assert found.predicted_step_seconds > 0 and found.measured_weight_bytes is None and found.falls is None


@pytest.mark.parametrize("where", ["random_model", "train", "decode_speed"])
def test_running_out_of_memory_is_a_finding_and_gives_the_memory_back(monkeypatch, where):
    built = []
    real = random_model

    def build(*given):
        built.append(weakref.ref(model := real(*given)))
        return model

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(gpu_check, "random_model", build)
    monkeypatch.setattr(gpu_check, where, full)
    monkeypatch.setattr(gpu_check, "STEPS", 2)
    found = run_case(TINY[1], CPU, True, NEVER)
    assert found.status == "out of memory" and "ran out of memory" in found.reason
    assert (found.measured_weight_bytes is None) == (where == "random_model")
    assert (found.measured_step_seconds is not None) == (where == "decode_speed")  # what was measured before is kept
    gc.collect()
    assert [ref() for ref in built] == [None] * len(built)


def test_an_error_that_was_not_foreseen_is_recorded_by_its_kind_alone(monkeypatch, capsys, record):
    def broken(*_):
        raise RuntimeError("no kernel image in /home/someone/lib.so")

    monkeypatch.setattr(gpu_check, "random_model", broken)
    found = run_case(TINY[0], CPU, True, NEVER)
    assert (found.status, found.reason) == ("failed", "RuntimeError, which was not foreseen")
    assert "no kernel image" in capsys.readouterr().err
    assert "tiny-2-layers.qlora" in str(gpu_check.failed(record.model_copy(update={"cases": [found]})))
    monkeypatch.setenv("QLORA_DEBUG", "1")
    with pytest.raises(RuntimeError):
        run_case(TINY[0], CPU, True, NEVER)


def test_a_loss_that_is_not_finite_stops_the_case(monkeypatch):
    monkeypatch.setitem(gpu_check.LEARNING_RATE, "lora", 1.0)
    real = random_model

    def broken(*given):
        model = real(*given)
        model.model.norm.weight.data.fill_(float("inf"))
        return model

    monkeypatch.setattr(gpu_check, "random_model", broken)
    found = run_case(TINY[1], CPU, True, NEVER)
    assert found.status == "failed" and "not a finite number" in found.reason
    assert found.falls is None and found.measured_decode_tokens_per_second is None


def test_a_loss_that_does_not_fall_is_told(record):
    stays = record.cases[0].model_copy(update={"falls": False})
    assert "did not fall: tiny-2-layers.qlora" in str(gpu_check.failed(record.model_copy(update={"cases": [stays]})))


def test_after_the_budget_nothing_more_is_run(monkeypatch):
    monkeypatch.setattr(gpu_check, "random_model", lambda *_: pytest.fail("ran all the same"))
    ticks = iter(range(0, 10_000, 1000))
    made = run_gpu_check(tiny=True, budget=1, clock=lambda: next(ticks))
    assert {(c.status, c.reason) for c in made.cases} == {("skipped", OUT_OF_TIME)} and len(made.cases) == len(TINY)
    assert OUT_OF_TIME in to_text(made) and gpu_check.failed(made) is None


def test_decoding_is_left_out_when_training_took_all_the_time(monkeypatch):
    monkeypatch.setattr(gpu_check, "STEPS", 2)
    answers = iter([False, True])
    found = run_case(TINY[1], CPU, True, lambda: next(answers))
    assert found.status == "measured" and found.reason == f"decoding {OUT_OF_TIME}"
    assert found.measured_step_seconds > 0 and found.measured_decode_tokens_per_second is None


# --- the record -------------------------------------------------------------------------------------


def test_a_record_is_read_back_and_tells_nothing_of_whose_it_is(record, tmp_path):
    path = tmp_path / "gpu-check.json"
    record.write(path)
    assert read_gpu_check(path) == record
    text = path.read_text()
    strings = re.findall(r'"((?:[^"\\]|\\.)*)"', text)
    for private in (str(Path.home()), str(project_root()), str(tmp_path), socket.gethostname()):
        assert private not in text
    assert getuser() not in re.findall(r"[\w.-]+", text)
    assert not [s for s in strings if re.match(r"(/|~|[A-Z]:\\)", s)]


def test_predictions_and_measurements_never_share_a_field(record):
    fields = set(type(record.cases[0]).model_fields)
    for quantity in gpu_record.QUANTITIES:
        assert {f"predicted_{quantity}", f"measured_{quantity}"} <= fields
        assert quantity not in fields


def test_the_table_has_both_beside_each_other(record):
    text = to_text(record)
    assert "numbers mean nothing" in text
    for case in record.cases:
        assert case.name in text
    row = next(line for line in text.splitlines() if "peak of a step" in line)
    assert re.search(r"[\d.]+ +about [\d.]+$", row)
    assert text.count("falls") == len(record.cases) and "not known" in text


@pytest.mark.parametrize("content", ["{}", "no JSON", '{"schema": 1, "kind": "bench"}'])
def test_a_foreign_file_is_one_line(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(QloraError, match="no record of qlora bench --gpu-check") as e:
        read_gpu_check(path)
    assert "\n" not in str(e.value)


def of_gpu(record: GpuCheckRecord, device: str) -> GpuCheckRecord:
    provenance = record.provenance.model_copy(update={"device": device, "finished": "2030-01-02T03:04:05+00:00"})
    return record.model_copy(update={"tiny": False, "provenance": provenance})


def test_contributed_records_are_found_and_named(record, tmp_path):
    assert contributed_sentence([]) == "No GPU record has been contributed yet."
    for device in ("Tesla T4", "NVIDIA A100-SXM4-40GB"):
        made = of_gpu(record, device)
        made.write(tmp_path / made.file_name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nvidia-a100-sxm4-40gb-2030-01-02.json", "tesla-t4-2030-01-02.json"]
    sentence = contributed_sentence(read_contributed(tmp_path))
    assert sentence == "GPU records have been contributed for: NVIDIA A100-SXM4-40GB, Tesla T4."
    record.write(tmp_path / "tiny.json")
    with pytest.raises(QloraError, match="tiny.json is not a measurement of a GPU"):
        read_contributed(tmp_path)


def test_the_readme_says_which_gpu_records_there_are():
    readme = " ".join((project_root() / "README.md").read_text(encoding="utf-8").replace("**", "").split())
    assert contributed_sentence(read_contributed()) in readme


# --- the command ------------------------------------------------------------------------------------


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(hardware, "device", lambda: "cpu")


def test_without_a_gpu_the_command_says_so_and_what_shows_that_it_runs(bench, no_gpu):
    code, out, err = bench("--gpu-check")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "no CUDA GPU" in err and "qlora doctor" in err and "--tiny" in err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tiny"], "Add it: qlora bench --gpu-check --tiny"),
        (["--budget", "10"], "belong to --gpu-check"),
        (["--gpu-check", "--new-tokens", "4", "--quick"], "does not take --quick, --new-tokens"),
        (["--gpu-check", "--budget", "0"], "--budget"),
    ],
)
def test_options_that_do_not_go_together(bench, words, said):
    code, out, err = bench(*words)
    assert code == 2 and out == "" and said in err


def test_the_command_writes_the_record_and_shows_it(bench, monkeypatch, record, tmp_path):
    asked = []
    monkeypatch.setattr(gpu_check, "run_gpu_check", lambda *given: asked.append(given) or of_gpu(record, "Tesla T4"))
    out = tmp_path / "new" / "check.json"
    code, shown, _ = bench("--gpu-check", "--budget", "20", "--out", out)
    assert code == 0 and asked == [(False, 20.0)]
    assert "report/records/gpu/tesla-t4-2030-01-02.json" in shown and str(out) in shown
    assert read_gpu_check(out).provenance.device == "Tesla T4"
    code, shown, _ = bench("--gpu-check", "--tiny", "--json", "--out", out)
    assert code == 0 and json.loads(shown) == json.loads(out.read_text())


def test_a_case_that_fails_is_kept_and_told(bench, monkeypatch, record, tmp_path):
    broken = record.cases[0].model_copy(update={"status": "failed", "reason": "RuntimeError, which was not foreseen"})
    monkeypatch.setattr(gpu_check, "run_gpu_check", lambda *_: record.model_copy(update={"cases": [broken]}))
    out = tmp_path / "check.json"
    code, _, err = bench("--gpu-check", "--tiny", "--out", out)
    assert code == 1 and "failed: tiny-2-layers.qlora" in err and out.is_file()


def test_the_tiny_size_does_not_overwrite_a_measurement():
    assert gpu_check.default_out(True) != gpu_check.default_out(False)
    assert gpu_check.default_out(False).name == "gpu-check.json"


def test_the_command_refuses_what_it_cannot_measure():
    if hardware.device() == "cuda":
        pytest.skip("there is a GPU")
    with pytest.raises(UsageError):
        run_gpu_check()
