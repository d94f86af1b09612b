"""Exercises of notebook 02: bits of the scales, double quantization, bytes of a matrix and of a model."""

import torch

from qlora_lib import style
from qlora_lib.cost.shapes import TINYLLAMA
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.quantization import bits_per_parameter, dynamic_map, exact_bits_per_parameter, quantize_4bit

# --- 02.1 ----------------------------------------------------------------------------------------

BLOCK, SECOND = 32, 128

OTHER_BLOCKS = Number(
    key="02.1",
    title="Other block sizes",
    unit="bits a weight",
    expected=lambda: exact_bits_per_parameter("nf4", BLOCK, True, SECOND) - 4,
    parts=lambda: {"8-bit absmax": 8 / BLOCK, "second absmax": 32 / (BLOCK * SECOND)},
    tolerance=1e-5,
    mistakes=(
        Mistake(
            name="the second absmax is missing",
            why="The 8-bit codes cannot be read without their own 32-bit scale, one for each second block.",
            answer=lambda: 8 / BLOCK,
        ),
        Mistake(
            name="that is without double quantization",
            why="A 32-bit absmax for each block: here it is stored in 8 bits.",
            answer=lambda: 32 / BLOCK,
        ),
        Mistake(
            name="the second absmax was shared among too few weights",
            why="A second block holds 128 absmax, and each of these stands for a whole block of weights.",
            answer=lambda: 8 / BLOCK + 32 / SECOND,
        ),
        Mistake(
            name="these are bytes",
            why="Bits were asked for.",
            answer=lambda: (8 / BLOCK + 32 / (BLOCK * SECOND)) / 8,
        ),
        Mistake(
            name="the four bits of the code are included",
            why="Only what comes beyond them was asked for.",
            answer=lambda: bits_per_parameter("nf4", BLOCK, True, SECOND),
        ),
    ),
    explain="Halving the block nearly doubles what the scales take; the second level is a trifle at any size.",
)

# --- 02.2 ----------------------------------------------------------------------------------------


def _restore(absmax: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    mean = absmax.mean()
    return _nearest(absmax - mean, levels, (absmax - mean).abs().max()) + mean


def _nearest(values: torch.Tensor, levels: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return levels[torch.bucketize(values / scale, (levels[:-1] + levels[1:]) / 2)] * scale


def _by_the_maximum(absmax: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    shifted = absmax - absmax.mean()
    return _nearest(shifted, levels, shifted.max()) + absmax.mean()


def _rounded_up(absmax: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    shifted = absmax - absmax.mean()
    scale = shifted.abs().max()
    return levels[torch.bucketize(shifted / scale, levels).clamp(max=255)] * scale + absmax.mean()


def _scales() -> list[Case]:
    noise = torch.randn(256, generator=torch.Generator().manual_seed(0))
    # Their smallest is the farthest from the mean.
    mostly_large = 1 - 0.9 * torch.rand(100, generator=torch.Generator().manual_seed(1)) ** 4
    return [
        Case("256 scales around 0.5", (0.5 + 0.1 * noise.abs(), dynamic_map())),
        Case("100 scales with a long tail below", (mostly_large, dynamic_map())),
    ]


RESTORED_ABSMAX = Function(
    key="02.2",
    title="Double quantization, written",
    expected=_restore,
    cases=_scales,
    tolerance=1e-6,
    axis="absmax",
    mistakes=(
        Mistake(
            name="the mean was not taken off",
            why="All scales then lie on the positive side, far from zero, where the levels are few.",
            answer=lambda absmax, levels: _nearest(absmax, levels, absmax.max()),
        ),
        Mistake(
            name="the mean was not put back",
            why="What is restored are the shifted scales; the offset is stored to be added again.",
            answer=lambda absmax, levels: _restore(absmax, levels) - absmax.mean(),
        ),
        Mistake(
            name="the largest value was taken, not the largest magnitude",
            why="Shifted scales have a sign: the farthest from the mean may lie below it.",
            answer=_by_the_maximum,
        ),
        Mistake(
            name="every scale was rounded up",
            why="A search among the levels themselves gives the next one above; the border lies midway.",
            answer=_rounded_up,
        ),
    ),
    explain="One offset for the whole tensor, one 32-bit scale for 256 blocks, one byte a block.",
)

# --- 02.3 ----------------------------------------------------------------------------------------

ROWS, COLUMNS = 1000, 300
WEIGHTS = ROWS * COLUMNS
BLOCKS = -(-WEIGHTS // 64)


def _bytes_of(blocks: int, second: int, offset: int = 4) -> int:
    return WEIGHTS // 2 + blocks + 4 * second + offset


ONE_MATRIX = Number(
    key="02.3",
    title="A matrix that does not fit its blocks",
    unit="bytes",
    expected=lambda: quantize_4bit(torch.ones(ROWS, COLUMNS)).nbytes,
    parts=lambda: {
        "codes": WEIGHTS // 2,
        "8-bit absmax": BLOCKS,
        "second absmax": 4 * -(-BLOCKS // 256),
        "offset": 4,
    },
    tolerance=1e-9,
    mistakes=(
        Mistake(
            name="the last, partial blocks were dropped",
            why="What is left over at the end needs a scale too: the numbers of blocks are rounded up.",
            answer=lambda: _bytes_of(WEIGHTS // 64, WEIGHTS // 64 // 256),
        ),
        Mistake(
            name="four bytes are missing: the offset, or the last second absmax",
            why="The mean of absmax is stored once for each matrix, in 32 bits; and the number of second "
            "blocks is rounded up too.",
            answer=lambda: _bytes_of(BLOCKS, -(-BLOCKS // 256), offset=0),
        ),
        Mistake(
            name="the blocks were begun anew in each row",
            why="The matrix is flattened first: a block runs on into the next row.",
            answer=lambda: _bytes_of(ROWS * -(-COLUMNS // 64), -(-ROWS * -(-COLUMNS // 64) // 256)),
        ),
        Mistake(
            name="absmax was counted in 32 bits",
            why="That is single quantization; here an absmax is one byte.",
            answer=lambda: WEIGHTS // 2 + 4 * BLOCKS,
        ),
        Mistake(
            name="that is bits a parameter times parameters",
            why="It is right for whole blocks only; round the numbers of blocks up, and add the offset.",
            answer=lambda: WEIGHTS * bits_per_parameter() / 8,
        ),
    ),
    explain="Nearly all of it is codes; what the partial blocks add is a few bytes, and a count to the byte "
    "must have them.",
)

# --- 02.4 ----------------------------------------------------------------------------------------

SHARE = 0.25  # of the parameters stays in 16 bits


def _mean_bits(quantized: float = bits_per_parameter()) -> float:
    return SHARE * 16 + (1 - SHARE) * quantized


WHOLE_MODEL = Number(
    key="02.4",
    title="From a share to a factor",
    unit="times smaller",
    expected=lambda: 16 / _mean_bits(),
    tolerance=5e-3,
    mistakes=(
        Mistake(
            name="all parameters were quantized",
            why="A quarter of them stays in 16 bits, and weighs more than all the others together.",
            answer=lambda: 16 / bits_per_parameter(),
        ),
        Mistake(
            name="the factors were averaged",
            why="Bytes add up, factors do not: find the mean bits of a parameter first.",
            answer=lambda: SHARE + (1 - SHARE) * 16 / bits_per_parameter(),
        ),
        Mistake(
            name="the scales were left out",
            why="A quantized weight takes 4.127 bits, not 4.",
            answer=lambda: 16 / _mean_bits(4.0),
        ),
        Mistake(
            name="the base was taken in 32 bits",
            why="From 16 bits was asked; a factor needs a named start.",
            answer=lambda: 32 / _mean_bits(),
        ),
        Mistake(
            name="the ratio is upside down",
            why="How many times smaller: the 16 bits stand above.",
            answer=lambda: _mean_bits() / 16,
        ),
    ),
    explain="The quarter that stays takes more than half of the bytes that are left, and no finer "
    "quantization changes that.",
)

# --- 02.5 ----------------------------------------------------------------------------------------

STAYS = {
    "nothing": "load_in_4bit replaces linear layers only, and not all of them.",
    "norms": "the norms stay, but they are not alone: an embedding is no linear layer either, and one linear layer is "
    "left out on purpose.",
    "embedding": "with untied weights the output head is a linear layer of its own, and transformers leaves it out on "
    "purpose: its errors would go straight into the probabilities.",
    "head": "Linear layers are quantized, but for the head; the embedding is a table and the norms are vectors, so all "
    "three stay.",
    "attention": "the attention's projections are linear layers like the others, and are quantized.",
}
LEFT_ALONE = {
    "nothing": (),
    "norms": ("norms",),
    "embedding": ("norms", "embedding"),
    "head": ("norms", "embedding", "head"),
    "attention": ("norms", "embedding", "head", "attention"),
}


def _gib(left_alone: tuple[str, ...]) -> dict[str, float]:
    p, four_bit = TINYLLAMA.parameters, bits_per_parameter() / 8
    sizes = {"mlp": p.mlp, "attention": p.attention, "embedding": p.embedding, "head": p.head, "norms": p.norms}
    return {part: n * (2 if part in left_alone else four_bit) / 2**30 for part, n in sizes.items()}


def _draw_stays(answer: str) -> tuple[style.Figure, str]:
    bars = {"loaded": LEFT_ALONE["head"], f"as in “{answer}”": LEFT_ALONE[answer]}
    colors = (style.GREEN, style.SKY, style.ORANGE, style.PURPLE, style.GREY)
    with style.page_style():
        figure = style.new_figure(4)
        axes = figure.subplots()
        for y, left_alone in enumerate(bars.values()):
            left = 0.0
            for (part, size), color in zip(_gib(left_alone).items(), colors):
                axes.barh(y, size, left=left, height=0.6, color=color, hatch="////" if part in left_alone else None,
                          edgecolor="white", linewidth=0, label=part if y == 0 else None)  # fmt: skip
                left += size
        axes.set_yticks(range(len(bars)), list(bars))
        axes.set_ylim(1.6, -0.6)
        axes.set_xlabel("TinyLlama-1.1B, GiB; hatched: in 16 bits")
        figure.legend(loc="outside upper center", ncols=len(colors))
    totals = {label: sum(_gib(left_alone).values()) for label, left_alone in bars.items()}
    return figure, "GiB of TinyLlama-1.1B: " + ", ".join(f"{label} {size:.2f}" for label, size in totals.items()) + "."


WHAT_STAYS = Choice(key="02.5", title="What stays", options=STAYS, right="head", draw=_draw_stays)

EXERCISES = [OTHER_BLOCKS, RESTORED_ABSMAX, ONE_MATRIX, WHOLE_MODEL, WHAT_STAYS]
