"""Exercises of notebook 01: absmax, levels from quantiles, codes, packing, what NF4 is, an outlier."""

from statistics import NormalDist

import numpy as np
import torch

from qlora_lib import style
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.quantization import codebook, dequantize_4bit, pack_4bit, quantize_4bit, unpack_4bit

BLOCK = 64
OUTLIER = 20.0


def _normal(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


# --- 01.1 ----------------------------------------------------------------------------------------


def _quantize_block(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    q = quantize_4bit(x, "int4", len(x), double_quant=False)
    return unpack_4bit(q.codes)[: len(x)].int() - 8, q.absmax[0]


def _blocks() -> list[Case]:
    negative = _normal(16, 1)
    negative[5] = -4.0  # the largest magnitude is negative
    return [
        Case("sixteen normal weights", (_normal(16, 0) * 0.05,)),
        Case("a block whose largest weight is negative", (negative,)),
        Case("a block with an outlier", (torch.cat([_normal(31, 2), torch.tensor([30.0])]),)),
    ]


QUANTIZE_BLOCK = Function(
    key="01.1",
    title="A block by absmax",
    expected=_quantize_block,
    cases=_blocks,
    axis="code, or absmax",
    mistakes=(
        Mistake(
            name="the sign of the largest weight was kept",
            why="Absmax is the largest magnitude: where the largest weight is negative, the maximum is not it.",
            answer=lambda x: (torch.round(7 * x / x.max()), x.max()),
        ),
        Mistake(
            name="the codes were cut off, not rounded",
            why="Cutting off moves every code towards zero; the nearest level is found by rounding.",
            answer=lambda x: (torch.trunc(7 * x / x.abs().max()), x.abs().max()),
        ),
        Mistake(
            name="the codes were rounded down",
            why="Rounding down shifts all weights to one side; the nearest level is found by rounding.",
            answer=lambda x: (torch.floor(7 * x / x.abs().max()), x.abs().max()),
        ),
        Mistake(
            name="the grid has eighths, not sevenths",
            why="With 8 the largest weight would need code 8, which four bits with a sign do not have.",
            answer=lambda x: (torch.round(8 * x / x.abs().max()), x.abs().max()),
        ),
        Mistake(
            name="the range was used instead of absmax",
            why="From the minimum to the maximum is the affine format; here zero stays zero, and only "
            "the magnitude counts.",
            answer=lambda x: (torch.round(7 * x / (x.max() - x.min())), x.max() - x.min()),
        ),
    ),
    explain="Zero stays exactly zero, the largest weight is kept up to one rounding, and its size is the "
    "step of all others.",
)

# --- 01.2 ----------------------------------------------------------------------------------------


def _quantiles(levels: int, last: float) -> torch.Tensor:
    """The given number of quantiles from the outermost inward, without the one of 1/2."""
    p = torch.linspace(last, 0.5, levels + 1, dtype=torch.float64)[:-1]
    return torch.tensor([NormalDist().inv_cdf(v) for v in p.tolist()], dtype=torch.float64)


def _last(bits: int) -> float:
    n = 2**bits
    return 1 - (1 / (2 * (n - 1)) + 1 / (2 * n)) / 2


def _normal_levels(bits: int) -> torch.Tensor:
    half, last = 2 ** (bits - 1), _last(bits)
    levels = torch.cat([-_quantiles(half - 1, last), torch.zeros(1), _quantiles(half, last).flip(0)])
    return levels / levels.max()


def _unscaled(bits: int) -> torch.Tensor:
    return _normal_levels(bits) * _quantiles(1, _last(bits))


def _without_zero(bits: int) -> torch.Tensor:
    last = _last(bits)
    p = torch.linspace(1 - last, last, 2**bits, dtype=torch.float64)
    levels = [NormalDist().inv_cdf(v) for v in p.tolist()]
    return torch.tensor(levels) / max(levels)


NORMAL_LEVELS = Function(
    key="01.2",
    title="The levels for any number of bits",
    expected=_normal_levels,
    cases=lambda: [Case(f"{bits} bits", (bits,)) for bits in (4, 3, 2, 5)],
    tolerance=1e-5,
    axis="level",
    mistakes=(
        Mistake(
            name="no level is zero",
            why="Evenly spaced probabilities from end to end skip 1/2; the two sides are made apart, "
            "with the zero between them.",
            answer=_without_zero,
        ),
        Mistake(
            name="the levels are evenly spaced",
            why="That is an integer grid; the probabilities are even, and the levels are their quantiles.",
            answer=lambda bits: torch.linspace(-1, 1, 2**bits),
        ),
        Mistake(
            name="the largest level is not 1",
            why="Absmax maps the largest weight of a block to 1, so the levels have to be divided by their largest.",
            answer=_unscaled,
        ),
        Mistake(
            name="the extra level is on the negative side",
            why="By convention the positive side has the level more.",
            answer=lambda bits: -_normal_levels(bits).flip(0),
        ),
    ),
    explain="With 4 bits these are NF4's levels; nothing in the derivation needs to know the weights.",
)

# --- 01.3 ----------------------------------------------------------------------------------------


def _nearest(scaled: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    return torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2)


def _scaled_cases() -> list[Case]:
    nf4, even = codebook("nf4"), torch.linspace(-0.97, 0.99, 60)
    mirrored = (_normal(80, 3).clamp(-1, 1), (-nf4).flip(0))
    return [Case("sixty numbers and NF4's levels", (even, nf4)), Case("other levels", mirrored)]


NEAREST_CODES = Function(
    key="01.3",
    title="The nearest level",
    expected=_nearest,
    cases=_scaled_cases,
    axis="code",
    mistakes=(
        Mistake(
            name="the search is among the levels themselves",
            why="That gives the first level that is not below the number, always rounding up; the border lies midway.",
            answer=lambda scaled, levels: torch.bucketize(scaled, levels),
        ),
        Mistake(
            name="the code is that of the level below",
            why="Always rounding down makes the error up to a whole gap; the border between two levels lies midway.",
            answer=lambda scaled, levels: torch.bucketize(scaled, levels, right=True) - 1,
        ),
        Mistake(
            name="the levels were taken for evenly spaced",
            why="Rounding finds the nearest of even levels only; these are closer together near zero.",
            answer=lambda scaled, levels: torch.round((scaled + 1) / 2 * (len(levels) - 1)),
        ),
        Mistake(
            name="the levels were returned, and not their numbers",
            why="A code is the place in the table: four bits instead of thirty-two.",
            answer=lambda scaled, levels: levels[_nearest(scaled, levels)],
        ),
    ),
    explain="Fifteen midpoints, a search of four comparisons for each number, and no table.",
)

# --- 01.4 ----------------------------------------------------------------------------------------


def _codes() -> list[Case]:
    some = torch.randint(16, (24,), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    return [Case("twenty-four codes", (some,)), Case("the codes 1 and 2", (torch.tensor([1, 2], dtype=torch.uint8),))]


PACK = Function(
    key="01.4",
    title="Two codes a byte",
    expected=pack_4bit,
    cases=_codes,
    axis="byte",
    mistakes=(
        Mistake(
            name="the halves are swapped",
            why="The earlier code of a pair belongs into the high half, so it is the one to be shifted.",
            answer=lambda codes: (codes[1::2] << 4) | codes[::2],
        ),
        Mistake(
            name="the first half of the codes was paired with the second",
            why="Neighbours share a byte: the codes at even places go with those at odd places.",
            answer=lambda codes: (codes[: len(codes) // 2] << 4) | codes[len(codes) // 2 :],
        ),
        Mistake(
            name="the codes were added without a shift",
            why="Both then lie in the low half on top of each other; the high half begins at 16.",
            answer=lambda codes: codes[::2] + codes[1::2],
        ),
        Mistake(
            name="the shift is by 8 bits",
            why="A byte has eight bits and its halves have four.",
            answer=lambda codes: (codes[::2].int() << 8) | codes[1::2],
        ),
    ),
    explain="The high half is worth 16: 1 and 2 make 18. bitsandbytes packs the same way.",
)

# --- 01.5 ----------------------------------------------------------------------------------------

FORMULAS = {
    "affine": "steps from the minimum up are even, so it is affine INT4, with two numbers stored for each block. "
    "No quantile occurs in it.",
    "integer": "sevenths of absmax are even steps: that is symmetric INT4.",
    "quantiles": "The block is scaled by its absmax, and the levels are quantiles of the normal distribution, "
    "fixed once for all weights: that is NF4.",
    "minifloat": "sign, exponent and mantissa make levels that double their distance with their size: that is FP4.",
    "ranks": "ranks use all codes equally, but their levels would be the block's own quantiles, sixteen numbers "
    "to be stored for 64 weights. NF4's levels are those of a fixed distribution.",
}


def _levels_of(formula: str, block: torch.Tensor) -> np.ndarray:
    """The sixteen values that a formula can give back for this block, each over the block's absmax."""
    unit = block / block.abs().max()
    if formula == "affine":
        return np.linspace(unit.min().item(), unit.max().item(), 16)
    if formula == "ranks":
        return unit.sort().values.view(16, -1).mean(1).numpy()
    return codebook({"integer": "int4", "minifloat": "fp4"}[formula]).clamp(-1, 1).unique().numpy()


def _draw_formula(answer: str) -> tuple[style.Figure, str]:
    block, nf4 = _normal(BLOCK, 5), codebook("nf4").numpy()
    rows = {"NF4": nf4} if answer == "quantiles" else {"NF4": nf4, answer: _levels_of(answer, block)}
    with style.page_style():
        figure = style.new_figure(4.2)
        axes = figure.subplots()
        axes.plot(block / block.abs().max(), np.full(BLOCK, len(rows)), ".", color=style.SOFT, markersize=4)
        for y, levels, color in zip((len(rows) - 1, 0), rows.values(), (style.GREEN, style.VERMILLION)):
            axes.vlines(levels, y - 0.3, y + 0.3, color=color, linewidth=2)
        axes.set_yticks(range(len(rows) + 1), [*reversed(rows), "64 weights"])
        axes.set_ylim(-0.6, len(rows) + 0.5)
        axes.set_xlabel("weight / absmax of its block")
    return figure, f"64 weights, and the levels of {' and of '.join(rows)} below them."


WHICH_IS_NF4 = Choice(
    key="01.5",
    title="Which formula is NF4?",
    options=FORMULAS,
    right="quantiles",
    draw=_draw_formula,
)

# --- 01.6 ----------------------------------------------------------------------------------------


def normal_block() -> torch.Tensor:
    """64 evenly taken quantiles of a normal distribution, fp32 [64], ascending."""
    return torch.tensor([NormalDist().inv_cdf((i + 0.5) / BLOCK) for i in range(BLOCK)])


def _spoiled() -> torch.Tensor:
    block = normal_block()
    block[-1] = OUTLIER
    return block


def _rms_of_others(block: torch.Tensor, quant_type: str = "nf4", relative: bool = False) -> float:
    e = dequantize_4bit(quantize_4bit(block, quant_type, BLOCK, double_quant=False)) - block
    e = (e / block.square().mean().sqrt()) if relative else e[:-1]
    return e.square().mean().sqrt().item()


def _grown(**how) -> float:
    return _rms_of_others(_spoiled(), **how) / _rms_of_others(normal_block(), **how)


ONE_OUTLIER = Number(
    key="01.6",
    title="One outlier",
    unit="times",
    expected=_grown,
    tolerance=5e-3,
    mistakes=(
        Mistake(
            name="that is how the step grows, not the error",
            why="The step grows with absmax; but most of these weights fall to zero, and their error "
            "ends at their own size.",
            answer=lambda: (_spoiled().max() / normal_block().max()).item(),
        ),
        Mistake(
            name="the root is missing",
            why="These are mean squares; the error is their root.",
            answer=lambda: _grown() ** 2,
        ),
        Mistake(
            name="the ratio is upside down",
            why="The error with the outlier stands above, the one without it below.",
            answer=lambda: 1 / _grown(),
        ),
        Mistake(
            name="that is INT4",
            why='The levels have another place: say quant_type="nf4".',
            answer=lambda: _grown(quant_type="int4"),
        ),
        Mistake(
            name="the errors were divided by each block's own size, outlier included",
            why="The outlier makes its block large, which hides what happened to the others; compare "
            "their errors themselves.",
            answer=lambda: _grown(relative=True),
        ),
    ),
    explain="Less than the step grew: most of the others became zero, and an error cannot be larger than the "
    "weight itself.",
)

EXERCISES = [QUANTIZE_BLOCK, NORMAL_LEVELS, NEAREST_CODES, PACK, WHICH_IS_NF4, ONE_OUTLIER]
