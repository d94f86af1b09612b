"""Quantizing on a CPU: the bits of bitsandbytes' own kernel, whatever the tensor."""

import pytest
import torch
from bitsandbytes.functional import quantize_4bit as through_bitsandbytes
from hypothesis import given, settings, strategies as st

from qlora_lib import models
from qlora_lib.fast import quantize as module
from qlora_lib.fast.quantize import quantize

OPERATOR = torch.ops.bitsandbytes.quantize_4bit.default
UINT8 = torch.uint8


def theirs(*arguments):
    """bitsandbytes' kernel for every device, past any that is registered for this one."""
    return OPERATOR._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *arguments)


def same(a: torch.Tensor, *arguments) -> bool:
    pairs = zip(quantize(a, *arguments), theirs(a, *arguments))
    return all(m.dtype == t.dtype and m.shape == t.shape and torch.equal(m.view(UINT8), t.view(UINT8)) for m, t in pairs)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 70), columns=st.integers(1, 130), seed=st.integers(0, 2**31), block_size=st.sampled_from([32, 64, 4096]),
    quant_type=st.sampled_from(["nf4", "fp4"]), dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    scale=st.sampled_from([0.0, 1e-40, 1e-4, 1.0, 1e4]), transposed=st.booleans(),
)  # fmt: skip
def test_codes_and_scales_are_bitsandbytes_to_the_bit(rows, columns, seed, block_size, quant_type, dtype, scale, transposed):
    a = (torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale).to(dtype)
    a[:, ::7] = 0
    assert same(a.t() if transposed else a, block_size, quant_type, UINT8)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_borders_their_neighbours_and_what_is_no_number(quant_type):
    from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

    borders = _get_4bit_quantize_bounds(quant_type, torch.device("cpu"))[0]
    near = [borders, borders.nextafter(torch.tensor(2.0)), borders.nextafter(torch.tensor(-2.0)), torch.tensor([1.0, -1.0, 0.0])]
    a = torch.cat([*near, torch.zeros(128)])[:128]  # absmax is 1: the values are compared as they are
    assert same(a, 64, quant_type, UINT8)
    for value in (float("nan"), float("inf"), -float("inf")):
        b = a.clone()
        b[5] = value
        assert torch.equal(quantize(b, 64, quant_type, UINT8)[0], theirs(b, 64, quant_type, UINT8)[0]), value


def test_chunks_meet_without_a_seam(monkeypatch):
    a = torch.randn(37, 64, generator=torch.Generator().manual_seed(0))
    whole = quantize(a, 64, "nf4", UINT8)
    monkeypatch.setattr(module, "CHUNK", 5 * 64)
    assert all(torch.equal(*pair) for pair in zip(whole, quantize(a, 64, "nf4", UINT8)))


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32])
def test_codes_can_be_stored_as_another_type_of_number(storage):
    assert same(torch.randn(8, 64), 64, "nf4", storage)


def test_all_who_quantize_through_bitsandbytes_are_served(monkeypatch):
    models.import_bitsandbytes()
    models.import_bitsandbytes()  # a second time changes nothing
    asked = []
    monkeypatch.setattr(module, "_codes", lambda *a, codes=module._codes: asked.append(0) or codes(*a))
    torch.set_default_dtype(torch.bfloat16)  # as transformers does while it loads
    try:
        _, state = through_bitsandbytes(torch.randn(8, 64, dtype=torch.float32), quant_type="nf4")
    finally:
        torch.set_default_dtype(torch.float32)
    assert asked and state.absmax.dtype == torch.float32
