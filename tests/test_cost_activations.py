"""What autograd keeps for the backward pass, by arithmetic, against what its hooks see."""

import cost_models as c
import pytest
from tiny import one_thread  # noqa: F401

from qlora_lib.cost import activations as a
from qlora_lib.cost.shapes import TINYLLAMA
from qlora_lib.cost.workload import Workload

BIASED = {"attention_bias": True, "mlp_bias": True}
HEADS = {"num_key_value_heads": 4}  # as many as queries have: nothing is repeated


def check_saved(path, work: Workload) -> None:
    found, computed = c.saved(c.training_model(path, work), work), a.saved_bytes(work)
    assert set(computed) == set(a.GROUPS)
    layers = range(work.shape.num_layers)
    if work.checkpointing:  # bitsandbytes keeps the inputs of 8-bit products where no hook sees them
        unseen = sum(a.held_by_int8(work, first=i == 0) for i in layers)
    else:
        unseen = sum(t.bytes(work.tokens) for i in layers for t in a.layer_tensors(work, first=i == 0) if not t.hooked)
    drawn = work.fast and work.dropout and not work.trains_all and not work.checkpointing
    assert abs(found - sum(computed.values()) + unseen) <= (5 * a.places_spread(work) if drawn else 0)
    assert (unseen > 0) == (work.quantization == "int8")


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method, settings", [
    ("full", {}),
    ("full", {"checkpointing": True}),
    ("lora", {}),
    ("lora", {"dropout": 0.0}),
    ("qlora", {}),
    ("qlora", {"checkpointing": True}),
], ids=str)  # fmt: skip
def test_saved_bytes_are_those_that_autograd_saves(method, settings, dtype, attention):
    path = c.folder("llama", True)
    check_saved(path, c.work_of(path, method, dtype=dtype, attention=attention, **settings))


@pytest.mark.parametrize("family, tied, widths", [
    ("qwen3", False, {}), ("qwen2", True, {}), ("mistral", False, {}), ("llama", True, BIASED), ("llama", True, HEADS),
], ids=str)  # fmt: skip
@pytest.mark.parametrize("method, settings", [
    ("full", {"dtype": "bf16"}),
    ("full", {"dtype": "bf16", "weight_dtype": "bf16"}),
    ("qlora", {"attention": "eager"}),
    ("qlora", {"dtype": "bf16", "quantization": "fp4", "double_quant": False}),
    ("lora", {"dtype": "bf16", "fast": True}),
], ids=str)  # fmt: skip
def test_other_families(family, tied, widths, method, settings):
    path = c.folder(family, tied, **widths)
    check_saved(path, c.work_of(path, method, **settings))


@pytest.mark.parametrize(
    "targets", [("q_proj", "v_proj"), ("o_proj",), ("v_proj",), ("gate_proj", "down_proj"), ("down_proj",)]
)
@pytest.mark.parametrize("settings", [{"attention": "eager"}, {"dtype": "bf16", "dropout": 0.0, "fast": True}], ids=str)
def test_adapters_on_some_layers(targets, settings):
    """Before the first adapter nothing is saved: not even attention, where it comes later."""
    path = c.folder("qwen3", True)
    check_saved(path, c.work_of(path, "lora", targets=targets, **settings))


@pytest.mark.parametrize("settings", [
    {}, {"dropout": 0.0, "dtype": "bf16"}, {"checkpointing": True}, {"fast": True}, {"attention": "eager"},
], ids=str)  # fmt: skip
def test_8_bit_products_hold_their_inputs(settings):
    path = c.folder("llama", True)
    check_saved(path, c.work_of(path, "qlora", quantization="int8", **settings))


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("method, settings", [
    ("full", {}), ("qlora", {}), ("qlora", {"dropout": 0.0}), ("qlora", {"checkpointing": True}), ("qlora", {"attention": "eager"}),
], ids=str)  # fmt: skip
def test_the_fast_path(method, settings, dtype):
    path = c.folder("qwen3", False)
    check_saved(path, c.work_of(path, method, fast=True, dtype=dtype, **settings))


def test_rows_of_logits_at_once_are_those_of_the_chunked_loss():
    from qlora_lib.fast import loss

    assert a.ROWS_AT_ONCE == loss.ROWS_AT_ONCE


def test_a_gpu_keeps_a_byte_of_a_mask_and_a_cpu_a_number():
    masks = {
        device: [t for t in a.layer_tensors(Workload(TINYLLAMA, "lora", 1, 8, device=device)) if "mask" in t.name]
        for device in ("cpu", "cuda")
    }
    assert [t.width for t in masks["cpu"]] == [4] * 7 and [t.width for t in masks["cuda"]] == [1] * 7
