"""Four-bit quantization written out: what bitsandbytes does to a weight, to the last bit.

How it works: the flattened tensor is cut into blocks of `block_size`. Each block is divided by its
largest magnitude (`absmax`), so that its values lie in [-1, 1], and each value is replaced by the number
(0..15, the *code*) of the nearest of 16 levels, the *codebook*. Two codes share a byte, the earlier in the
high half. To dequantize is to look up the level and multiply by absmax. A data type is thus nothing but
its 16 levels:

    nf4          quantiles of a normal distribution: each level is used about equally often (QLoRA, section 3)
    fp4          a sign, two exponent bits, one mantissa bit
    int4         fifteen even levels, -7/7 to 7/7, symmetric about zero (one code stays unused)
    int4-affine  sixteen even levels between a block's own minimum and maximum: no codebook, two scales

Double quantization (QLoRA, section 3) then stores absmax itself in 8 bits: its mean is taken off, and
blocks of 256 are quantized to 256 levels, by the same idea.

Source: Dettmers et al., "QLoRA", 2023, section 3; for NF4 and FP4 the arithmetic is that of bitsandbytes
0.50.2's CPU back end (`functional.quantize_4bit`, `dequantize_4bit`, `create_normal_map`,
`create_dynamic_map`). tests/test_quantization.py compares them for equality. Where that back end
departs from the definition above, so does this module:
  * an exact tie goes to the lower level, not to the even one;
  * FP4 has two zeros: values just above zero get code 8 ("minus zero"), zero and just below code 0;
  * a block is never divided by less than 1e-38, so one of only denormals shrinks; a last, partial block
    also stores that floor as its absmax, and divides where full blocks multiply by the reciprocal;
  * the 8-bit codes of absmax come from a table of 65,536 bins, so they are not always the nearest;
  * absmax's mean is torch's fp32 one, whose last bit may change with the number of threads.
Where the back end disagrees with itself, this module keeps to the definition:
  * on AVX512 a matrix whose rows are a multiple of 16 long but not of the block size is dequantized with
    other blocks' absmax (flattened it is right), unless the block size is 2048 or more;
  * on AVX512-BF16 bf16 results below 2^-126 become zero; elsewhere they are kept;
  * FP4's code 8 becomes -0.0 or +0.0 by the kernel chosen: here +0.0.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from statistics import NormalDist

import torch

from qlora_lib.errors import QloraError, UsageError, nearest

QUANT_TYPES = ("nf4", "fp4", "int4", "int4-affine")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SECOND_BLOCK_SIZE = 256  # absmax values that share one second-level absmax
ABSMAX_FLOOR = 1e-38  # nothing is divided by less
ABSMAX_BINS = 65536  # bins of the table that gives absmax its 8-bit code
ELEMENTS_AT_ONCE = 2**20  # so that working memory does not grow with the tensor


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor in four bits. n = elements, blocks = ceil(n / block_size).

    codes: uint8 [ceil(n / 2)], two codes a byte; an odd n is filled up with the code of 0.
    absmax: fp32 [blocks], a block's largest magnitude (int4-affine: its step);
        with double quantization its 8-bit codes, uint8 [blocks].
    minimum: fp32 [blocks], only for int4-affine.
    offset: fp32 [], the mean of absmax; only with double quantization, as is
    second_absmax: fp32 [ceil(blocks / second_block_size)].
    """

    codes: torch.Tensor
    absmax: torch.Tensor
    quant_type: str
    block_size: int
    shape: torch.Size
    dtype: torch.dtype
    minimum: torch.Tensor | None = None
    offset: torch.Tensor | None = None
    second_absmax: torch.Tensor | None = None
    second_block_size: int = SECOND_BLOCK_SIZE

    @property
    def nbytes(self) -> int:
        """Bytes stored: codes and everything needed to undo them, without the codebooks."""
        parts = (self.codes, self.absmax, self.minimum, self.offset, self.second_absmax)
        return sum(part.numel() * part.element_size() for part in parts if part is not None)


@cache
def codebook(quant_type: str) -> torch.Tensor:
    """The levels of a data type, fp32 [16], in order of their codes (for fp4 that is not by size)."""
    if quant_type == "nf4":
        return _normal_float()
    if quant_type == "fp4":
        return _float_e2m1()
    if quant_type == "int4":  # two's complement shifted by 8; -8/7 is never nearest in [-1, 1]
        return torch.arange(-8, 8, dtype=torch.float32) / 7
    raise UsageError(f"'{quant_type}' has no codebook", nearest(quant_type, QUANT_TYPES[:3]))


def _normal_float(offset: float = 0.9677083) -> torch.Tensor:
    """NF4: 8 positive and 7 negative quantiles of N(0, 1), and an exact 0; the largest is scaled to 1.

    Zero must be a level (padding and pruned weights stay zero), and 16 is even, so one side has a level
    more. The quantile of 1 is infinite: `offset`, the last probability, is the mean of 1 - 1/(2 * 15) and
    1 - 1/(2 * 16), half a step short of 1. The published levels come from these seven digits of it.
    """

    def quantiles(levels):  # from the outermost inward; the last, at probability 1/2, is the zero
        return [NormalDist().inv_cdf(p) for p in torch.linspace(offset, 0.5, levels + 1)[:-1].tolist()]

    positive, negative = quantiles(8), quantiles(7)
    levels = torch.tensor([-z for z in negative] + [0.0] + positive[::-1])
    return levels / levels.max()


def _float_e2m1() -> torch.Tensor:
    """FP4: code = sign, two exponent bits e, one mantissa bit m; the largest of 12 is scaled to 1.

    bitsandbytes counts exponents downward, 2^(4 - e) * (1 + m/2), and its subnormal step is 2^-4. Times 6
    the magnitudes are 0, 1/32, 1, 1.5, 2, 3, 4, 6: the usual E2M1, whose subnormal would be 1/2.
    """
    magnitudes = [m / 16 if e == 0 else 2 ** (4 - e) * (1 + m / 2) for e in range(4) for m in range(2)]
    levels = torch.tensor(magnitudes)
    return torch.cat([levels, 0.0 - levels]) / 12


@cache
def dynamic_map() -> torch.Tensor:
    """The 256 levels that absmax is stored in: fp32 [256], ascending, in [-0.993, 1].

    A sign, then as many zero bits as decades below 1, a one, and the bits that are left as a linear
    fraction of [0.1, 1]: 1 fraction at 1e-6, 64 at 1. Small values keep their size, large ones their
    precision. 2 * (1 + 2 + ... + 64) = 254 levels; 0 and 1 complete them.
    """
    levels = [torch.tensor([0.0, 1.0])]
    for decade in range(7):
        borders = torch.linspace(0.1, 1, 2**decade + 1, dtype=torch.float32)
        fractions = 10 ** (decade - 6) * ((borders[:-1] + borders[1:]) / 2.0)
        levels += [fractions, -fractions]
    return torch.cat(levels).sort().values


def _midpoints(levels: torch.Tensor) -> torch.Tensor:
    return (levels[:-1] + levels[1:]) / 2


@torch.no_grad()
def quantize_4bit(
    x: torch.Tensor,
    quant_type: str = "nf4",
    block_size: int = 64,
    double_quant: bool = True,
    second_block_size: int = SECOND_BLOCK_SIZE,
) -> QuantizedTensor:
    """Quantize `x` (fp32, fp16 or bf16, any shape) in blocks of `block_size` consecutive elements.

    Raises:
        UsageError: for an unknown data type, block size or dtype, an empty tensor, or double
            quantization of int4-affine.
        QloraError: when `x` holds an infinity or a NaN, or when the mean of its absmax overflows.
    """
    _check(quant_type, block_size, double_quant, second_block_size)
    if x.dtype not in DTYPES or x.numel() == 0:
        raise UsageError(f"cannot quantize {x.numel()} elements of {x.dtype}; fp32, fp16 or bf16, not empty, was expected")
    flat = x.reshape(-1)
    n, blocks = flat.numel(), -(-flat.numel() // block_size)
    affine = quant_type == "int4-affine"
    absmax = torch.empty(blocks, dtype=torch.float32, device=x.device)
    minimum = torch.empty_like(absmax) if affine else None
    codes = torch.empty(n + n % 2, dtype=torch.uint8, device=x.device)
    codes[n:] = 0 if affine else int(_nearest_codes(torch.zeros(1), quant_type))
    for begin, end, partial in _spans(n, block_size):
        block = flat[begin:end].float().view(-1, end - begin if partial else block_size)  # [B, block_size]
        at = slice(begin // block_size, -(-end // block_size))  # the B blocks
        if affine:
            found, absmax[at], minimum[at] = _affine(block)
        else:
            found, absmax[at] = _by_absmax(block, quant_type, partial)
        codes[begin:end] = found.view(-1)
    # A maximum keeps infinities and NaN, so the blocks' own tell of every element.
    if not torch.isfinite(absmax if minimum is None else absmax + minimum).all():
        raise QloraError("the tensor holds an infinity or a NaN; finite values were expected", "Find where it overflowed")
    offset = second_absmax = None
    if double_quant:
        absmax, offset, second_absmax = _quantize_absmax(absmax, second_block_size)
    packed = pack_4bit(codes)
    scales = (minimum, offset, second_absmax, second_block_size)
    return QuantizedTensor(packed, absmax, quant_type, block_size, x.shape, x.dtype, *scales)


def _by_absmax(block: torch.Tensor, quant_type: str, partial: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """[B, block_size] fp32 -> codes, uint8 [B, block_size], and absmax, fp32 [B]."""
    absmax = block.abs().amax(dim=1)
    floored = absmax.clamp(min=ABSMAX_FLOOR).unsqueeze(1)
    if partial:
        return _nearest_codes((block / floored).clamp_(-1, 1), quant_type), floored.squeeze(1)
    return _nearest_codes((block * (1.0 / floored)).clamp_(-1, 1), quant_type), absmax


def _nearest_codes(scaled: torch.Tensor, quant_type: str) -> torch.Tensor:
    """The code of the level nearest to each value in [-1, 1]: a search among 15 midpoints."""
    levels, by_size = codebook(quant_type).sort(stable=True)  # stable: FP4's 0 stays below its 8
    place = torch.bucketize(scaled, _midpoints(levels).to(scaled.device), out_int32=True)
    return by_size.to(torch.uint8).to(scaled.device)[place]


def _affine(block: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, block_size] fp32 -> codes, uint8 [B, block_size]; step and minimum, fp32 [B].

    In fp64, where the range of two fp32 numbers cannot overflow. A constant block has step 0.
    """
    low, high = block.double().aminmax(dim=1)
    step = ((high - low) / 15).float()
    divisor = step.double().masked_fill(step == 0, 1).unsqueeze(1)
    return ((block - low.unsqueeze(1)) / divisor).round_().clamp_(0, 15).to(torch.uint8), step, low.float()


def _quantize_absmax(absmax: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """fp32 [blocks] -> 8-bit codes, uint8 [blocks]; their mean, fp32 []; second absmax, fp32 [second blocks]."""
    offset = absmax.mean()
    if not torch.isfinite(offset):
        raise QloraError("the mean of absmax overflows 32 bits", "Scale the tensor down, or use double_quant=False")
    n = absmax.numel()
    rows = _rows(absmax - offset, block_size)
    second = rows.abs().amax(dim=1)
    scaled = (rows * (1.0 / second).unsqueeze(1)).clamp(-1, 1)
    scaled = scaled.nan_to_num(nan=-1.0)  # 0 times 1/0, where all absmax are alike: as there, bin 0
    bins = ((scaled + 1.0) * 0.5 * (ABSMAX_BINS - 1) + 0.5).int()
    return _absmax_table().to(absmax.device)[bins].view(-1)[:n], offset, second


@cache
def _absmax_table() -> torch.Tensor:
    """uint8 [65536]: the nearest level of the dynamic map for each of as many even steps over [-1, 1]."""
    steps = -1.0 + (2.0 * torch.arange(ABSMAX_BINS, dtype=torch.float32)) / (ABSMAX_BINS - 1)
    return torch.bucketize(steps, _midpoints(dynamic_map())).to(torch.uint8)


@torch.no_grad()
def dequantize_4bit(q: QuantizedTensor) -> torch.Tensor:
    """The tensor that `q` stands for, in its shape and dtype; products are fp32, rounded once to the dtype."""
    n, scale = q.shape.numel(), dequantize_absmax(q)
    codes = unpack_4bit(q.codes)[:n]
    out = torch.empty(n, dtype=q.dtype, device=codes.device)
    levels = None if q.minimum is not None else codebook(q.quant_type).to(codes.device)
    for begin, end, partial in _spans(n, q.block_size):
        block = codes[begin:end].view(-1, end - begin if partial else q.block_size)  # [B, block_size]
        at = slice(begin // q.block_size, -(-end // q.block_size))
        factor = scale[at].unsqueeze(1)
        if levels is None:
            values = block.double() * factor + q.minimum[at].unsqueeze(1)
        else:
            values = levels[block.int()] * factor
        out[begin:end] = values.view(-1)
    return out.view(q.shape)


def dequantize_absmax(q: QuantizedTensor) -> torch.Tensor:
    """fp32 [blocks]: the factor of each block. Double quantization may turn a tiny one negative."""
    if q.second_absmax is None:
        return q.absmax
    levels = dynamic_map().to(q.absmax.device)[q.absmax.int()]
    restored = _rows(levels, q.second_block_size) * q.second_absmax.unsqueeze(1)
    return restored.view(-1)[: q.absmax.numel()] + q.offset


def pack_4bit(codes: torch.Tensor) -> torch.Tensor:
    """uint8 [2k], each below 16 -> uint8 [k]: the earlier code in the high half."""
    return (codes[::2] << 4) | codes[1::2]


def unpack_4bit(packed: torch.Tensor) -> torch.Tensor:
    """uint8 [k] -> uint8 [2k]."""
    return torch.stack((packed >> 4, packed & 15), dim=1).view(-1)


def _rows(values: torch.Tensor, size: int) -> torch.Tensor:
    """[n] -> [ceil(n / size), size], filled up with zeros."""
    return torch.nn.functional.pad(values, (0, -values.numel() % size)).view(-1, size)


def _spans(n: int, block_size: int):
    """(begin, end, partial): runs of whole blocks, about a million elements each, then what is left over."""
    whole = n - n % block_size
    step = max(ELEMENTS_AT_ONCE // block_size, 1) * block_size
    for begin in range(0, whole, step):
        yield begin, min(begin + step, whole), False
    if whole < n:
        yield whole, n, True


def bits_per_parameter(
    quant_type: str = "nf4", block_size: int = 64, double_quant: bool = True, second_block_size: int = SECOND_BLOCK_SIZE
) -> float:
    """Bits that a parameter takes with its share of the scales: `exact_bits_per_parameter` as a float."""
    return float(exact_bits_per_parameter(quant_type, block_size, double_quant, second_block_size))


def exact_bits_per_parameter(
    quant_type: str = "nf4", block_size: int = 64, double_quant: bool = True, second_block_size: int = SECOND_BLOCK_SIZE
) -> Fraction:
    """4 bits and the scales' share, as a fraction; whole blocks, and without the one `offset` a tensor.

    QLoRA, section 3, for blocks of 64: 32/64 = 0.5 bit of absmax, or 8/64 + 32/(64 * 256) = 0.127 doubly quantized.
    """
    _check(quant_type, block_size, double_quant, second_block_size)
    if double_quant:
        return 4 + Fraction(8, block_size) + Fraction(32, block_size * second_block_size)
    return 4 + Fraction(64 if quant_type == "int4-affine" else 32, block_size)


def _check(quant_type: str, block_size: int, double_quant: bool, second_block_size: int) -> None:
    if quant_type not in QUANT_TYPES:
        raise UsageError(f"no quantization is called '{quant_type}'", nearest(quant_type, QUANT_TYPES))
    if not all(isinstance(size, int) and size >= 1 for size in (block_size, second_block_size)):
        raise UsageError(f"block sizes are {block_size} and {second_block_size}; whole numbers of at least 1 were expected")
    if double_quant and quant_type == "int4-affine":
        raise UsageError("double quantization does not cover int4-affine's minimum and step", "Use double_quant=False")
