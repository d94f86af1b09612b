"""Our quantization against bitsandbytes' CPU back end: equality of every bit, not closeness.

Where the back end departs from its own definition, a test of its own says so.
"""

import functools
import math
from fractions import Fraction

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from qlora_lib import quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.quantization import (
    bits_per_parameter,
    codebook,
    dequantize_4bit,
    dequantize_absmax,
    dynamic_map,
    exact_bits_per_parameter,
    pack_4bit,
    quantize_4bit,
    unpack_4bit,
)

BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)  # those that bitsandbytes supports
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MANY = 600  # blocks: enough for a second-level block of 256 and a partial one
INTS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def reference(x, quant_type, block_size, double_quant):
    """bitsandbytes' packed codes, state and values."""
    packed, state = bnb.quantize_4bit(x, blocksize=block_size, quant_type=quant_type, compress_statistics=double_quant)
    return packed.reshape(-1), state, bnb.dequantize_4bit(packed, state).reshape(-1)


def bits(values, quant_type):
    """The values' bits, less the two that the back end's own kernels disagree about (see the last tests)."""
    if values.dtype == torch.bfloat16 and bnb.has_avx512bf16():
        tiny = values.float().abs() <= 2.0**-126  # what is just below rounds up to it, or is zero there
        values = torch.where(tiny, torch.zeros_like(values).copysign(values), values)
    if quant_type == "fp4":
        values = values + 0.0  # -0.0 becomes +0.0
    return values.contiguous().view(INTS[values.dtype])


def assert_equal_to_bitsandbytes(x, quant_type, block_size, double_quant):
    ours = quantize_4bit(x, quant_type, block_size, double_quant)
    packed, state, values = reference(x.reshape(-1), quant_type, block_size, double_quant)
    assert torch.equal(ours.codes, packed)
    assert ours.absmax.dtype == state.absmax.dtype and torch.equal(ours.absmax, state.absmax)
    if double_quant:
        assert torch.equal(ours.second_absmax.view(torch.int32), state.state2.absmax.view(torch.int32))
        assert ours.offset.view(torch.int32) == state.offset.view(torch.int32)
    restored = dequantize_4bit(ours)
    assert restored.shape == x.shape and restored.dtype == x.dtype
    assert torch.equal(bits(restored.reshape(-1), quant_type), bits(values, quant_type))


# ---------------------------------------------------------------- adversarial tensors


def normal(n, random):
    return torch.randn(n, generator=random) * 0.02


def zeros(n, random):
    return torch.zeros(n) * torch.randn(n, generator=random).sign()  # of both signs


def zero_blocks(n, random):
    """Whole stretches of 64 zeros, the rest normal."""
    keep = torch.rand(n // 64 + 1, generator=random).round().repeat_interleave(64)[:n]
    return torch.randn(n, generator=random) * keep


def ties(n, random):
    """The midpoints of both codebooks and their neighbours, times a scale; a largest value in front."""
    levels = torch.cat([codebook("nf4"), codebook("fp4")]).sort().values
    middles = (levels[:-1] + levels[1:]) / 2
    above, below = (torch.nextafter(middles, torch.tensor(end)) for end in (2.0, -2.0))
    pool = torch.cat([middles, above, below, levels])
    values = pool[torch.randint(len(pool), (n,), generator=random)]
    values[::32] = 1.0
    scales = torch.tensor([1.0, 0.25, 12.0, 0.1, 3.0])
    return values * scales[torch.randint(5, (1,), generator=random)]


def denormals(n, random):
    return torch.randn(n, generator=random) * 2.0**-130


def half_denormals(n, random):
    return torch.randn(n, generator=random) * 2.0**-20  # denormal in fp16


def around_the_floor(n, random):
    return torch.randn(n, generator=random) * 1e-38


def huge_range(n, random):
    """Thirty decades either way (fewer in fp16), yet a mean of absmax that fits fp32."""
    return torch.randn(n, generator=random).sign() * 10.0 ** (torch.rand(n, generator=random) * 60 - 30)


def largest(n, random):
    """Near the largest of each dtype: 6e4 for fp16."""
    return (torch.rand(n, generator=random) - 0.5) * 2 * 6e4


def outlier(n, random):
    values = torch.randn(n, generator=random)
    values[torch.randint(n, (1,), generator=random)] = 3e4
    return values


def one_value(n, random):
    return torch.full((n,), torch.randn(1, generator=random).item())


KINDS = (normal, zeros, zero_blocks, ties, denormals, half_denormals, around_the_floor)
KINDS += (huge_range, largest, outlier, one_value)


def tensor(kind, shape, dtype, seed=0):
    values = kind(math.prod(shape), torch.Generator().manual_seed(seed))
    return values.clamp(-6e4, 6e4).to(dtype).view(shape) if dtype == torch.float16 else values.to(dtype).view(shape)


@st.composite
def shapes(draw, block_size):
    """One to three dimensions, 3 elements or more: below a block, a few blocks, or hundreds of small ones."""
    most = draw(st.sampled_from((block_size, 5 * block_size, MANY * 32)))
    n = draw(st.integers(3, max(most, 3)))
    columns = draw(st.integers(1, n))
    rows = n // columns
    return draw(st.sampled_from(((n,), (rows, columns), (rows, 1, columns), (1, n)))) if rows * columns >= 3 else (n,)


# ---------------------------------------------------------------- equality


@settings(max_examples=400)
@given(st.data())
def test_equals_bitsandbytes(data):
    block_size = data.draw(st.sampled_from(BLOCK_SIZES))
    shape = data.draw(shapes(block_size))
    kind, dtype = data.draw(st.sampled_from(KINDS)), data.draw(st.sampled_from(DTYPES))
    x = tensor(kind, shape, dtype, data.draw(st.integers(0, 2**31)))
    quant_type, double_quant = data.draw(st.sampled_from(("nf4", "fp4"))), data.draw(st.booleans())
    assert_equal_to_bitsandbytes(x, quant_type, block_size, double_quant)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_tensor_in_whole_and_partial_blocks(kind, dtype):
    for elements in (3, 64, 640, 641, 32 * 300 + 7):
        x = tensor(kind, (elements,), dtype)
        for quant_type in ("nf4", "fp4"):
            for double_quant in (False, True):
                assert_equal_to_bitsandbytes(x, quant_type, 32, double_quant)


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_every_block_size_with_a_partial_block(block_size):
    for elements in (2 * block_size, 2 * block_size + 1, 3 * block_size - 16):
        for dtype in DTYPES:
            assert_equal_to_bitsandbytes(tensor(normal, (elements,), dtype), "nf4", block_size, True)
            assert_equal_to_bitsandbytes(tensor(ties, (elements,), dtype), "fp4", block_size, False)


def test_a_large_tensor_is_worked_in_pieces(monkeypatch):
    x = tensor(normal, (3, 1001), torch.float32)
    whole = quantize_4bit(x)
    monkeypatch.setattr(quantization, "ELEMENTS_AT_ONCE", 130)  # two blocks of 64 at a time
    assert torch.equal(quantize_4bit(x).codes, whole.codes)
    assert torch.equal(dequantize_4bit(quantize_4bit(x)), dequantize_4bit(whole))
    assert_equal_to_bitsandbytes(x, "nf4", 64, True)


def test_a_tensor_that_is_not_contiguous_and_one_that_needs_gradients():
    x = torch.nn.Parameter(torch.randn(96, 64)).t()
    assert_equal_to_bitsandbytes(x.detach(), "nf4", 64, True)
    assert not dequantize_4bit(quantize_4bit(x)).requires_grad


# ---------------------------------------------------------------- codebooks


def test_nf4_is_bitsandbytes_constants_and_scipys_quantiles():
    levels = codebook("nf4")
    assert torch.equal(levels, bnb.get_4bit_type("nf4", device="cpu"))
    from_scipy = bnb.create_normal_map()
    assert torch.equal(levels, from_scipy.unique())  # 241 of its 256 are zero
    edge = norm.ppf(0.9677083)
    assert levels[14].item() == pytest.approx(norm.ppf(0.9677083 - (0.9677083 - 0.5) / 8) / edge, rel=1e-6)


def test_fp4_is_bitsandbytes_constants_and_e2m1_but_for_the_subnormal():
    levels = codebook("fp4")
    assert torch.equal(levels, bnb.get_4bit_type("fp4", device="cpu"))
    assert torch.allclose(levels[:8].sort().values * 6, torch.tensor([0, 1 / 32, 1, 1.5, 2, 3, 4, 6]))


def test_the_dynamic_map_is_bitsandbytes():
    assert torch.equal(dynamic_map(), bnb.create_dynamic_map())


def test_an_unknown_codebook_names_the_known_ones():
    with pytest.raises(UsageError, match="nf4"):
        quantize_4bit(torch.ones(4), "nf5")
    with pytest.raises(UsageError, match="codebook"):
        codebook("int4-affine")


# ---------------------------------------------------------------- integers


def test_int4_rounds_to_sevenths_of_absmax():
    x = torch.tensor([7.0, -7.0, 3.4, -3.4, 0.0, 0.6])
    q = quantize_4bit(x, "int4", double_quant=False)
    assert (unpack_4bit(q.codes).int() - 8).tolist() == [7, -7, 3, -3, 0, 1]
    assert torch.allclose(dequantize_4bit(q), torch.tensor([7.0, -7.0, 3.0, -3.0, 0.0, 1.0]))


def test_affine_int4_spends_all_its_codes_on_a_one_sided_block():
    x = torch.linspace(100.0, 115.0, 16)
    q = quantize_4bit(x, "int4-affine", double_quant=False)
    assert unpack_4bit(q.codes).tolist() == list(range(16))
    assert torch.equal(dequantize_4bit(q), x)
    symmetric = quantize_4bit(x, "int4", double_quant=False)
    assert len(unpack_4bit(symmetric.codes).unique()) <= 3


@pytest.mark.parametrize("value", [0.0, 1e-45, -3e38, 5.0])
def test_affine_int4_keeps_a_constant_block(value):
    x = torch.full((70,), value)
    assert torch.equal(dequantize_4bit(quantize_4bit(x, "int4-affine", double_quant=False)), x)


@given(st.sampled_from(KINDS), st.integers(1, 300), st.integers(0, 2**31), st.integers(1, 100))
def test_affine_int4_is_within_half_a_step(kind, n, seed, block_size):
    x = tensor(kind, (n,), torch.float32, seed)
    q = quantize_4bit(x, "int4-affine", block_size, double_quant=False)
    step = q.absmax.repeat_interleave(block_size)[:n].double()
    slack = x.abs().max().double() * 1e-6 + 1e-44  # the step and the result are fp32
    assert bool(((dequantize_4bit(q).double() - x.double()).abs() <= step / 2 + slack).all())


def test_affine_int4_spans_the_whole_fp32_range():
    x = torch.tensor([-3.4e38, 0.0, 3.4e38])
    assert torch.isfinite(dequantize_4bit(quantize_4bit(x, "int4-affine", double_quant=False))).all()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4", "int4", "int4-affine"])
@pytest.mark.parametrize("place", [0, 63, 64, 99])  # in a whole and in the partial block
def test_infinities_and_nan_are_refused(bad, quant_type, place):
    x = torch.ones(100)
    x[place] = bad
    with pytest.raises(QloraError, match="infinity or a NaN"):
        quantize_4bit(x, quant_type, double_quant=False)


def test_a_mean_of_absmax_beyond_fp32_is_refused_and_single_quantization_is_not():
    x = torch.full((512,), 3e38)
    with pytest.raises(QloraError, match="double_quant=False"):
        quantize_4bit(x)
    assert not torch.isfinite(reference(x, "nf4", 64, True)[2]).any()  # bitsandbytes gives NaN
    assert_equal_to_bitsandbytes(x, "nf4", 64, False)


@pytest.mark.parametrize(
    "call",
    [
        lambda: quantize_4bit(torch.ones(4, dtype=torch.float64)),
        lambda: quantize_4bit(torch.ones(4, dtype=torch.int32)),
        lambda: quantize_4bit(torch.ones(0)),
        lambda: quantize_4bit(torch.ones(4), block_size=0),
        lambda: quantize_4bit(torch.ones(4), block_size=64.0),
        lambda: quantize_4bit(torch.ones(4), "int4-affine"),
        lambda: bits_per_parameter("int8"),
        lambda: bits_per_parameter(block_size=-1),
        lambda: bits_per_parameter(second_block_size=0),
    ],
)
def test_bad_settings_are_usage_errors(call):
    with pytest.raises(UsageError):
        call()


# ---------------------------------------------------------------- sizes and packing


def test_bits_per_parameter():
    assert bits_per_parameter("nf4", block_size=64, double_quant=True) == 4.126953125
    assert round(bits_per_parameter(), 3) == 4.127
    assert bits_per_parameter("fp4", 64, double_quant=False) == 4.5
    assert exact_bits_per_parameter("nf4", 48, True, 100) == 4 + Fraction(8, 48) + Fraction(32, 4800)
    assert bits_per_parameter("int4-affine", 64, double_quant=False) == 5.0


@pytest.mark.parametrize("double_quant", [False, True])
def test_bits_per_parameter_is_what_whole_blocks_take(double_quant):
    n = 64 * 256 * 3
    q = quantize_4bit(torch.randn(n), double_quant=double_quant)
    offset = 4 if double_quant else 0
    assert Fraction(8 * (q.nbytes - offset), n) == exact_bits_per_parameter("nf4", 64, double_quant)


def test_a_second_block_size_of_ones_own():
    x = torch.randn(64 * 40)
    q = quantize_4bit(x, second_block_size=16)
    assert q.second_absmax.numel() == 3
    single = quantize_4bit(x, double_quant=False)
    assert torch.allclose(dequantize_absmax(q), single.absmax, rtol=0.02)


@given(st.lists(st.integers(0, 15), min_size=2, max_size=40).filter(lambda codes: len(codes) % 2 == 0))
def test_packing_puts_the_earlier_code_in_the_high_half(codes):
    packed = pack_4bit(torch.tensor(codes, dtype=torch.uint8))
    assert packed[0] == codes[0] * 16 + codes[1]
    assert unpack_4bit(packed).tolist() == codes


# ---------------------------------------------------------------- departures of the back end


def test_fp4_codes_just_above_and_below_zero_are_those_of_minus_and_plus_zero():
    q = quantize_4bit(torch.tensor([1.0, 1e-6, -1e-6, 0.0, -0.0, 1.0]), "fp4", double_quant=False)
    assert unpack_4bit(q.codes).tolist() == [3, 8, 0, 0, 0, 3]
    values = dequantize_4bit(q)
    assert not torch.signbit(values).any()


def test_exact_ties_go_to_the_lower_level():
    levels = codebook("nf4")
    middle = (levels[9] + levels[10]) / 2
    assert unpack_4bit(quantize_4bit(torch.tensor([1.0, middle])).codes).tolist() == [15, 9]


def test_absmax_of_zeros_is_zero_in_a_whole_block_and_the_floor_in_a_partial_one():
    q = quantize_4bit(torch.zeros(100), double_quant=False)
    assert q.absmax.tolist() == [0.0, torch.tensor(1e-38).item()]
    assert not dequantize_4bit(q).any()


def test_a_whole_block_of_denormals_shrinks():
    x = torch.full((64,), 1e-40)
    assert dequantize_4bit(quantize_4bit(x, double_quant=False)).abs().max() < 1e-42


def test_the_eight_bit_code_of_absmax_is_not_always_the_nearest():
    absmax = torch.rand(256 * 20, generator=torch.Generator().manual_seed(0))
    x = absmax.repeat_interleave(32)
    q = quantize_4bit(x, block_size=32)
    scaled = (absmax - q.offset).view(-1, 256) / q.second_absmax.unsqueeze(1)
    best = torch.bucketize(scaled, (dynamic_map()[:-1] + dynamic_map()[1:]) / 2)
    wrong = (best.view(-1) != q.absmax.int()).float().mean()
    assert 0 < wrong < 0.01
    assert_equal_to_bitsandbytes(x, "nf4", 32, True)


@functools.cache
def the_kernel_goes_by_rows():
    """Whether this machine's kernel (AVX512) takes absmax by rows, for rows that are not whole blocks."""
    x = torch.arange(1, 97.0).view(2, 48)
    return not torch.equal(reference(x, "nf4", 32, False)[2], reference(x.view(-1), "nf4", 32, False)[2])


@given(st.integers(1, 12), st.integers(3, 200), st.sampled_from((32, 64, 2048)), st.sampled_from(DTYPES))
def test_rows_equal_bitsandbytes_unless_its_kernel_takes_the_wrong_absmax(rows, width, block_size, dtype):
    x = tensor(normal, (rows, width), dtype)
    values = reference(x, "nf4", block_size, True)[2]
    departs = the_kernel_goes_by_rows() and rows > 1 and width % 16 == 0 and width % block_size != 0
    python_kernel = block_size >= 2048 and torch.backends.cpu.get_cpu_capability() == "AVX512"
    if not departs or python_kernel:
        assert torch.equal(dequantize_4bit(quantize_4bit(x, "nf4", block_size)).reshape(-1), values)


def test_where_the_kernel_goes_by_rows_it_is_the_one_that_is_wrong():
    if not the_kernel_goes_by_rows():
        pytest.skip("only the AVX512 kernel takes absmax by rows")
    x = torch.randn(6, 48, generator=torch.Generator().manual_seed(0)) * torch.arange(1, 7.0).view(6, 1)
    ours = (dequantize_4bit(quantize_4bit(x, "nf4", 32, False)) - x).abs().mean()
    theirs = (reference(x, "nf4", 32, False)[2].view(6, 48) - x).abs().mean()
    assert theirs > 2 * ours


def test_bf16_denormals_are_kept_even_where_the_back_end_makes_them_zero():
    x = torch.full((64,), 2e-38, dtype=torch.bfloat16)
    x[1:] *= 0.1  # its level times absmax is below 2^-126
    restored = dequantize_4bit(quantize_4bit(x, double_quant=False))
    assert 0 < restored[1].item() < torch.finfo(torch.bfloat16).tiny
    theirs = reference(x, "nf4", 64, False)[2]
    assert theirs[1] == (0.0 if bnb.has_avx512bf16() else restored[1])
