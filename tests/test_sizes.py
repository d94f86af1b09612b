"""Bytes and parameters against every tensor that a model holds, and against closed forms."""

import pytest
import tiny
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from qlora_lib import models
from qlora_lib.config import Lora
from qlora_lib.metrics.sizes import count_parameters, folder_bytes, logical_numel, model_bytes

one_thread = tiny.one_thread
LAYER = 64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128  # q, k and v, o, three of the MLP
LINEAR = 2 * LAYER
EMBEDDING, NORMS = 259 * 64, 5 * 64
ROTARY = 2 * 8 * 4  # inv_freq and its original, 16 / 2 fp32 each


def reachable(thing, seen=None):
    """Every tensor that a model holds, however deep: attributes, containers, bitsandbytes' states."""
    seen = {} if seen is None else seen
    if id(thing) in seen:
        return seen
    if isinstance(thing, torch.Tensor | torch.nn.Module) or hasattr(thing, "__dict__") or isinstance(thing, dict | list | tuple):
        seen[id(thing)] = thing
    inner = []
    if isinstance(thing, torch.nn.Module) or type(thing).__name__ in ("QuantState", "MatmulLtState", "Params4bit", "Int8Params"):
        inner += list(vars(thing).values())
    if isinstance(thing, dict):
        inner += list(thing.values())
    if isinstance(thing, list | tuple):
        inner += list(thing)
    for part in inner:
        reachable(part, seen)
    return seen


def bytes_reachable(model) -> int:
    tensors = [t for t in reachable(model).values() if isinstance(t, torch.Tensor) and t.numel()]
    return sum({t.data_ptr(): t.numel() * t.element_size() for t in tensors}.values())


@pytest.mark.parametrize("form", tiny.FORMATS)
def test_it_is_the_sum_of_all_tensors(form):
    model = tiny.base(tiny.FORMATS[form])
    fresh = model_bytes(model)
    assert fresh.total == bytes_reachable(model)
    with torch.no_grad():
        model(input_ids=tiny.ids(1, 8))
    assert model_bytes(model) == fresh  # 8-bit scales move elsewhere at the first forward
    assert fresh.total == bytes_reachable(model)
    counts = count_parameters(model)
    assert counts["total"] == counts["base"] == LINEAR + EMBEDDING + NORMS


def test_each_format_against_its_closed_form():
    blocks = LINEAR // 64
    rows = 2 * (64 + 32 + 32 + 64 + 128 + 128 + 64)
    unquantized = 4 * (EMBEDDING + NORMS) + ROTARY
    tables = 14 * 16 * 4  # one of 16 codes for each of the fourteen weights
    per_weight = [64 * 64, 64 * 32, 64 * 32, 64 * 64, 64 * 128, 64 * 128, 64 * 128]
    nested = sum(-(-(n // 64) // 256) for n in per_weight) * 2
    expected = {
        "fp32": (0, 0, 4 * LINEAR + unquantized),
        "int8": (LINEAR, 4 * rows, unquantized),
        "nf4": (LINEAR // 2, 4 * blocks + tables, unquantized),
        "fp4": (LINEAR // 2, 4 * blocks + tables, unquantized),
        # one byte a block, an fp32 scale for 256 of them, a table of 256 codes and an offset a weight
        "nf4dq": (LINEAR // 2, blocks + 4 * nested + 14 * (256 * 4 + 4) + tables, unquantized),
    }
    for form, (quantized, state, rest) in expected.items():
        b = model_bytes(tiny.base(tiny.FORMATS[form]))
        assert (b.quantized_weights, b.quantization_state, b.unquantized, b.adapter) == (quantized, state, rest, 0), form
        assert b.base == b.total == quantized + state + rest


def test_a_tied_head_counts_once_and_an_untied_one_twice():
    def sizes(tied):
        config = LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                             num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=tied)  # fmt: skip
        model = LlamaForCausalLM(config)
        return model_bytes(model).total, count_parameters(model)["total"]

    (tied, tied_n), (untied, untied_n) = sizes(True), sizes(False)
    assert untied - tied == 50 * 16 * 4 and untied_n - tied_n == 50 * 16


def test_two_views_of_one_storage_are_two_weights():
    class Fused(torch.nn.Module):
        def __init__(self):
            super().__init__()
            whole = torch.zeros(6, 4)
            self.a, self.b = torch.nn.Parameter(whole[:2]), torch.nn.Parameter(whole[2:])

    assert model_bytes(Fused()).total == 6 * 4 * 4


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
def test_adapters_are_counted_apart(form):
    base = tiny.base(tiny.FORMATS[form])
    before, parameters = model_bytes(base), count_parameters(base)
    model = models.attach_lora(base, Lora(rank=4, target_modules=["q_proj", "down_proj"]), 0)
    adapter = 2 * 4 * ((64 + 64) + (128 + 64))
    after = model_bytes(model)
    assert after.adapter == 4 * adapter and after.base == before.base and after.total == before.total + 4 * adapter
    assert after.quantization_state == before.quantization_state
    counts = count_parameters(model)
    assert counts == {"total": parameters["total"] + adapter, "base": parameters["base"], "trainable": adapter}
    assert after.total == bytes_reachable(model)


def test_a_packed_weight_stands_for_all_its_values():
    for form in ("nf4", "nf4dq", "fp4"):
        weight = tiny.base(tiny.FORMATS[form]).model.layers[0].mlp.up_proj.weight
        assert weight.numel() == 64 * 128 // 2 and logical_numel(weight) == 64 * 128


def test_folder_bytes_counts_safetensors_alone(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.safetensors").write_bytes(b"x" * 5)
    (tmp_path / "config.json").write_text("{}")
    assert folder_bytes(tmp_path) == 15
