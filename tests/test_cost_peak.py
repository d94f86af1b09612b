"""What a step holds at its highest moment, by arithmetic, against the allocator's events."""

import subprocess
import sys
from dataclasses import replace

import cost_models as c
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tiny import one_thread  # noqa: F401

from qlora_lib.cost import activations as a
from qlora_lib.cost.moments import gradient_bytes, moments
from qlora_lib.cost.peak import CONTEXT, PARTS, overhead, step_memory
from qlora_lib.cost.shapes import LLAMA_8B, SMOLLM2, TINYLLAMA, ModelShape
from qlora_lib.cost.workload import Workload

# --- the peak of a step ----------------------------------------------------------------------------

DEEP = {"hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4}  # the blocks decide
WIDE = {"vocab_size": 2000, "num_hidden_layers": 3}  # the logits decide


def check_peak(path, work: Workload, within: float) -> str:
    found, before = c.measured_peak(path, work)
    computed = step_memory(work)
    assert sum(list(computed.parts.values())[:4]) == before
    assert computed.peak_bytes - before == pytest.approx(found - before, rel=within)  # of what comes and goes alone
    return computed.moment


SHORT = {"length": 12, "dropout": 0.0, "optimizer": "adamw_8bit"}
LONG = {"length": 90, "attention": "eager", "checkpointing": True}


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
@pytest.mark.parametrize("widths, settings", [
    (DEEP, {"length": 100}),
    (DEEP, {"checkpointing": True}),
    (DEEP, {"accumulation": 2, "checkpointing": True}),
    (DEEP, LONG),
    (DEEP, SHORT),
    (WIDE, {}),
    (WIDE, SHORT),
], ids=str)  # fmt: skip
def test_the_peak_in_fp32_is_the_allocators_within_a_hundredth(method, widths, settings):
    path = c.folder("llama", settings != SHORT, **widths)
    check_peak(path, c.work_of(path, method, fused_optimizer=False, trainer=False, **settings), within=0.01)


@pytest.mark.parametrize("method, settings, within", [
    ("full", {}, 0.02),
    ("lora", {}, 0.04),
    ("qlora", {}, 0.03),
    ("qlora", {"checkpointing": True}, 0.03),
], ids=str)  # fmt: skip
def test_the_peak_in_mixed_precision(method, settings, within):
    path = c.folder("llama", True, **DEEP)
    work = c.work_of(path, method, dtype="bf16", length=64, **settings)
    check_peak(path, work, within)
    assert step_memory(work).estimated


@pytest.mark.parametrize("method, settings", [
    ("full", {"fast": True}), ("qlora", {"fast": True}), ("qlora", {"fast": True, "checkpointing": True}),
    ("qlora", {"quantization": "int8"}), ("qlora", {"quantization": "int8", "checkpointing": True}),
    ("qlora", {"quantization": "fp4", "double_quant": False}),
], ids=str)  # fmt: skip
def test_the_peak_of_other_paths(method, settings):
    path = c.folder("qwen3", False, **DEEP)
    check_peak(path, c.work_of(path, method, length=64, fused_optimizer=False, trainer=False, **settings), within=0.05)


def test_every_moment_is_some_workloads_highest():
    """No moment is listed in vain, and none is missing where the others say little."""
    small = ModelShape(128, 4, 4, 2, 32, 352, 131, tied_embeddings=True)
    cases = {
        "start of backward": Workload(SMOLLM2, "qlora", 4, 128),
        "gradient of the head": Workload(SMOLLM2, "full", 4, 128, dtype="bf16", fast=True),
        "loss, in pieces": Workload(SMOLLM2, "qlora", 4, 128, fast=True),
        "backward of a block": Workload(TINYLLAMA, "qlora", 2, 2048, fast=True),
        "forward of the last block": Workload(small, "lora", 2, 64),
        "recomputed block": Workload(TINYLLAMA, "qlora", 2, 2048, checkpointing=True, loss="chunked"),
        "end of backward": Workload(SMOLLM2, "full", 4, 64, optimizer="adamw_8bit", fused_optimizer=True),
        "optimizer": Workload(TINYLLAMA, "full", 1, 64),
    }
    assert {name: step_memory(work).moment for name, work in cases.items()} == {name: name for name in cases}


# --- what must hold whatever the numbers ------------------------------------------------------------

WORKLOADS = st.builds(
    lambda quantized, dtype, **rest: Workload(
        quantization=quantized if rest["method"] == "qlora" else "none", dtype=dtype, **rest
    ),
    quantized=st.sampled_from(["nf4", "int8"]),
    shape=st.sampled_from([SMOLLM2, TINYLLAMA, LLAMA_8B]),
    method=st.sampled_from(["full", "lora", "qlora"]),
    batch=st.integers(1, 8),
    length=st.integers(1, 1024),
    accumulation=st.sampled_from([1, 4]),
    rank=st.integers(1, 64),
    dropout=st.sampled_from([0.0, 0.1]),
    dtype=st.sampled_from(["fp32", "fp16", "bf16"]),
    optimizer=st.sampled_from(["adamw", "adamw_8bit", "paged_adamw_8bit"]),
    checkpointing=st.booleans(),
    attention=st.sampled_from(["sdpa", "eager"]),
    device=st.sampled_from(["cpu", "cuda"]),
    fast=st.booleans(),
    loss=st.sampled_from(["whole", "chunked"]),
)  # fmt: skip


@given(WORKLOADS)
def test_parts_add_up_and_none_is_negative(work):
    found = step_memory(work)
    assert tuple(found.parts) == PARTS == tuple(found.sizes)
    assert min(found.parts.values()) >= 0 and found.peak_bytes == found.moments[found.moment] == max(found.moments.values())
    assert all(isinstance(n, int) for n in (*found.parts.values(), *found.moments.values(), *found.sizes.values()))
    assert found.sizes["gradients"] == gradient_bytes(work)
    assert (found.host_bytes > 0) <= work.pages
    low, high = overhead(work)
    assert 0 < low < high if work.device == "cuda" else (low, high) == (0, 0)


@examples(max_examples=25)
@given(WORKLOADS)
def test_more_of_anything_holds_no_less(work):
    peak = step_memory(work).peak_bytes
    for more in (
        {"batch": work.batch + 1},
        {"length": work.length + 1},
        {"accumulation": work.accumulation + 1},
        {"rank": work.rank + 1},
    ):
        assert step_memory(replace(work, **more)).peak_bytes >= peak, more


@given(WORKLOADS)
def test_checkpointing_keeps_a_blocks_input_alone(work):
    on, off = (a.saved_bytes(replace(work, checkpointing=flag)) for flag in (True, False))
    assert on["adapters"] == on["attention"] == 0 and sum(on.values()) <= sum(off.values())


def test_earlier_micro_batches_gradients_are_held_throughout():
    once, thrice = (moments(Workload(SMOLLM2, "full", 4, 128, accumulation=n)) for n in (1, 3))
    gradients = 4 * SMOLLM2.parameters.total
    assert thrice["start of backward"].total - once["start of backward"].total == gradients
    assert step_memory(Workload(SMOLLM2, "full", 4, 128, accumulation=3)).parts["gradients"] >= gradients


def test_the_overhead_of_a_gpu_is_a_range_and_no_part_of_the_peak():
    small, large = (Workload(TINYLLAMA, "qlora", batch, 512, device="cuda", dtype="bf16") for batch in (1, 8))
    assert overhead(small)[0] == overhead(large)[0] > CONTEXT[0]  # nothing is lost to slack at best
    assert overhead(large)[1] > overhead(small)[1] > CONTEXT[1]
    same = replace(small, device="cpu")
    assert overhead(same) == (0, 0) and "CUDA" not in " ".join(step_memory(same).parts)


def test_the_arithmetic_imports_nothing_heavy():
    code = (
        "import sys, qlora_lib.cost, qlora_lib.cost.peak; "
        "sys.exit(bool({'torch', 'numpy', 'transformers', 'pydantic'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_meter_and_the_formula_see_the_same_step():
    """The gradients of a step, counted on the parameters themselves."""
    path = c.folder("qwen2", True)
    work = c.work_of(path, "full")
    model = c.training_model(path, work)
    ids = torch.randint(131, (2, 40))
    model(input_ids=ids, labels=ids).loss.backward()
    assert gradient_bytes(work) == sum(p.grad.nbytes for p in model.parameters())
