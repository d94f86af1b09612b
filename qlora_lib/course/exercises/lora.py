"""Exercises of 03_lora: rank, the layer, its parameters, its start, its scaling, and merging.

How it works: small seeded matrices in fp64 and the shapes of TinyLlama stand for models, so that an
answer is checked at once and alike under every profile.
"""

import math
from dataclasses import replace

import numpy as np
import torch

from qlora_lib import style
from qlora_lib.cost.shapes import ALL_LINEAR, TINYLLAMA, ModelShape
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.quantization import dequantize_4bit, quantize_4bit

RANK, ALPHA = 16, 32
SIGMAS = 576  # of 03.1
NARROW = replace(TINYLLAMA, hidden_size=768)  # the width that the study prints


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# --- 03.1 ----------------------------------------------------------------------------------------


def _harmonic(n: int, power: int) -> float:
    return sum(i**-power for i in range(1, n + 1))


SHARE = Number(
    key="03.1",
    title="How low is low?",
    unit="of the squared norm (1 is all)",
    expected=lambda: _harmonic(RANK, 2) / _harmonic(SIGMAS, 2),
    parts=lambda: {
        "the first": 1 / _harmonic(SIGMAS, 2),
        "2 to 16": (_harmonic(RANK, 2) - 1) / _harmonic(SIGMAS, 2),
    },
    mistakes=(
        Mistake(
            name="the singular values were added, not their squares",
            why="The squared norm of a matrix is the sum of the squared singular values, as that of a vector is of its elements.",
            answer=lambda: _harmonic(RANK, 1) / _harmonic(SIGMAS, 1),
        ),
        Mistake(
            name="ranks were counted, not what they carry",
            why="The first singular values are the largest; weigh each with its square.",
            answer=lambda: RANK / SIGMAS,
        ),
        Mistake(
            name="this is what is dropped",
            why="The question is what the 16 largest hold, not what the others do.",
            answer=lambda: 1 - _harmonic(RANK, 2) / _harmonic(SIGMAS, 2),
        ),
        Mistake(
            name="only the sixteenth singular value was taken",
            why="Rank 16 keeps all of the first sixteen; add them up.",
            answer=lambda: RANK**-2 / _harmonic(SIGMAS, 2),
        ),
    ),
    explain=(
        "Squares of 1/i fall fast: the first alone carries more than half. A spectrum that falls like this is what "
        "“low rank” hopes for; compare it with the real update above."
    ),
)


# --- 03.2 ----------------------------------------------------------------------------------------


def lora_forward(x: torch.Tensor, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float) -> torch.Tensor:
    """x [T, in] -> [T, out]"""
    return x @ weight.T + alpha / a.shape[0] * (x @ a.T) @ b.T


def _forward_cases() -> list[Case]:
    def case(tokens, width, rank, alpha):
        shapes = ((tokens, width), (width, width), (rank, width), (width, rank))
        label = f"{tokens} tokens, a layer {width} x {width}, rank {rank}, alpha {alpha:g}"
        return Case(label, (*(_random(*shape, seed=i) for i, shape in enumerate(shapes)), alpha))

    # square, so that a forgotten transpose gives numbers, which can be told from others, and no exception
    return [case(4, 6, 2, 8.0), case(3, 5, 3, 2.0), case(2, 3, 4, 16.0)]


FORWARD = Function(
    key="03.2",
    title="LoRA's forward pass",
    expected=lora_forward,
    cases=_forward_cases,
    tolerance=1e-9,
    axis="output",
    mistakes=(
        Mistake(
            name="the scaling was forgotten",
            why="The product is multiplied by alpha over the rank before it is added.",
            answer=lambda x, w, a, b, alpha: x @ w.T + x @ a.T @ b.T,
        ),
        Mistake(
            name="alpha was used as it is, without the rank",
            why="Divide it by the rank, which is the first size of `a`.",
            answer=lambda x, w, a, b, alpha: x @ w.T + alpha * (x @ a.T) @ b.T,
        ),
        Mistake(
            name="the scaling is upside down",
            why="A larger alpha makes a larger update.",
            answer=lambda x, w, a, b, alpha: x @ w.T + a.shape[0] / alpha * (x @ a.T) @ b.T,
        ),
        Mistake(
            name="the base's output was scaled as well",
            why="Only the product is multiplied by alpha over the rank; with B = 0 the output must be the base's own.",
            answer=lambda x, w, a, b, alpha: alpha / a.shape[0] * (x @ w.T + (x @ a.T) @ b.T),
        ),
        Mistake(
            name="the weight was not transposed",
            why="It is stored as [out, in]; x, of width in, must meet its second size. In a layer that is not square this stops.",
            answer=lambda x, w, a, b, alpha: x @ w + alpha / a.shape[0] * (x @ a.T) @ b.T,
        ),
        Mistake(
            name="the base's output is missing",
            why="LoRA adds to what the frozen layer says; it does not replace it.",
            answer=lambda x, w, a, b, alpha: alpha / a.shape[0] * (x @ a.T) @ b.T,
        ),
    ),
    explain="Two thin products beside one wide one. The product of A and B, as large as the weight, was never formed.",
)


# --- 03.3 ----------------------------------------------------------------------------------------


def _per_module(count, shape: ModelShape = TINYLLAMA) -> dict[str, float]:
    """{module: count(in, out), in all layers}"""
    h, q, kv, m = shape.hidden_size, shape.query_width, shape.kv_width, shape.intermediate_size
    widths = dict(zip(ALL_LINEAR, ((h, q), (h, kv), (h, kv), (q, h), (h, m), (h, m), (m, h))))
    return {module: shape.num_layers * count(*pair) for module, pair in widths.items()}


PARAMETERS = Number(
    key="03.3",
    title="Count them",
    unit="parameters",
    expected=lambda: sum(_per_module(lambda i, o: RANK * (i + o)).values()),
    parts=lambda: _per_module(lambda i, o: RANK * (i + o)),
    tolerance=1e-9,
    mistakes=(
        Mistake(
            name="this is one layer",
            why="Every one of the 22 layers has its own adapters.",
            answer=lambda: sum(_per_module(lambda i, o: RANK * (i + o)).values()) / TINYLLAMA.num_layers,
        ),
        Mistake(
            name="only one of the two matrices was counted, A",
            why="B, from the rank to the output width, is trained as well.",
            answer=lambda: sum(_per_module(lambda i, o: RANK * i).values()),
        ),
        Mistake(
            name="the hidden width of the study's table was taken",
            why="The table says 768; the model's own file says 2048.",
            answer=lambda: sum(_per_module(lambda i, o: RANK * (i + o), NARROW).values()),
        ),
        Mistake(
            name="keys and values were taken as wide as the queries",
            why="There are 4 key/value heads for 32 query heads: count heads times their width.",
            answer=lambda: (
                sum(_per_module(lambda i, o: RANK * (i + o)).values())
                + TINYLLAMA.num_layers * 2 * RANK * (TINYLLAMA.query_width - TINYLLAMA.kv_width)
            ),
        ),
        Mistake(
            name="the full update was counted, in x out",
            why="The rank replaces one of the two widths in each matrix.",
            answer=lambda: sum(_per_module(lambda i, o: i * o).values()),
        ),
    ),
    explain=(
        "The study prints the same count, and so shows that the hidden width of its own table, 768, is wrong: no model "
        "of that width trains so many."
    ),
)


# --- 03.4 ----------------------------------------------------------------------------------------

STARTS = {"A random, B zero": (1, 0), "A zero, B random": (0, 1), "both zero": (0, 0), "both random": (1, 1)}


def _gradients(a_size: float, b_size: float) -> tuple[float, float, float]:
    """Norms of dL/dA, dL/dB and of the change of the output, for random x and upstream gradient."""
    x, g = _random(8, 12), _random(8, 10, seed=1)
    a, b = a_size * _random(4, 12, seed=2), b_size * _random(10, 4, seed=3)
    return ((g @ b).T @ x).norm().item(), (g.T @ (x @ a.T)).norm().item(), (x @ a.T @ b.T).norm().item()


def _draw_starts(answer: str) -> tuple[style.Figure, str]:
    norms = {start: _gradients(*sizes) for start, sizes in STARTS.items()}
    labels = ("gradient of A", "gradient of B", "change of the output")
    looks = ((style.BLUE, ""), (style.ORANGE, "////"), (style.GREY, "...."))
    with style.page_style():
        figure = style.new_figure(4.5)
        axes = figure.subplots()
        at = np.arange(len(norms))
        for i, (label, (color, hatch)) in enumerate(zip(labels, looks)):
            heights = [norm[i] for norm in norms.values()]
            axes.bar(at + 0.26 * (i - 1), heights, 0.24, color=color, hatch=hatch, edgecolor="white", linewidth=0, label=label)
            for x, height in zip(at, heights):
                if height == 0:
                    axes.text(x + 0.26 * (i - 1), 0, "0", ha="center", va="bottom")
        axes.set_xticks(at, [f"{start}\n(your answer)" if start == answer else start for start in norms])
        axes.set_ylabel("norm at the first step")
        figure.legend(loc="outside upper right", ncols=3)
    zero = {start: [label for label, n in zip(labels, norm) if n == 0] for start, norm in norms.items()}
    alt = "; ".join(f"{start}: {', '.join(z) or 'nothing'} zero" for start, z in zero.items())
    return figure, f"Gradients and change of the output at the first step. {alt}."


START = Choice(
    key="03.4",
    title="Which start never moves?",
    options={
        "A random, B zero": "A has no gradient at the first step, but B has one; after that step both move. LoRA's start.",
        "A zero, B random": "B has no gradient at the first step, but A has one; after that step both move.",
        "both zero": "Each gradient carries the other matrix as a factor, so both vanish, at every step.",
        "both random": "Both gradients are there at once. What is wrong with it is the output, which is no longer the base's.",
    },
    right="both zero",
    draw=_draw_starts,
)


# --- 03.5 ----------------------------------------------------------------------------------------

DOUBLED = Number(
    key="03.5",
    title="Twice the rank",
    unit="times B A",
    expected=lambda: ALPHA / math.sqrt(2 * RANK),
    mistakes=(
        Mistake(
            name="this is alpha / r",
            why="Rank-stabilized LoRA divides alpha by the square root of the rank.",
            answer=lambda: ALPHA / (2 * RANK),
        ),
        Mistake(
            name="this is the scaling at the old rank",
            why="The scaling falls with the rank, although slower than 1/r.",
            answer=lambda: ALPHA / math.sqrt(RANK),
        ),
        Mistake(
            name="the old scaling was halved",
            why="The rank stands under a square root: twice the rank divides the scaling by less than two.",
            answer=lambda: ALPHA / math.sqrt(RANK) / 2,
        ),
        Mistake(
            name="the scaling was made larger",
            why="The rank stands below the fraction bar.",
            answer=lambda: ALPHA / math.sqrt(RANK) * math.sqrt(2),
        ),
    ),
    explain=(
        "The scaling falls by the square root of two, and the product of twice as many terms is larger by as much: the "
        "first update keeps its size."
    ),
)


# --- 03.6 ----------------------------------------------------------------------------------------


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, alpha: float, rank_stabilized: bool) -> torch.Tensor:
    """[out, in]"""
    rank = a.shape[0]
    return weight + alpha / (math.sqrt(rank) if rank_stabilized else rank) * b @ a


def _merge_cases() -> list[Case]:
    def case(width, rank, alpha, stabilized):
        shapes = ((width, width), (rank, width), (width, rank))
        label = f"a layer {width} x {width}, rank {rank}, alpha {alpha:g}{', rank-stabilized' * stabilized}"
        return Case(label, (*(_random(*shape, seed=i) for i, shape in enumerate(shapes)), alpha, stabilized))

    return [case(6, 4, 8.0, False), case(6, 4, 8.0, True), case(5, 3, 2.0, False)]


MERGE = Function(
    key="03.6",
    title="Merge by hand",
    expected=merge,
    cases=_merge_cases,
    tolerance=1e-9,
    axis="weight",
    mistakes=(
        Mistake(
            name="the scaling was forgotten",
            why="The forward pass multiplies the product by it, so the merged weight has to.",
            answer=lambda w, a, b, alpha, stabilized: w + b @ a,
        ),
        Mistake(
            name="the product is transposed",
            why="A weight is [out, in]: the rows of the product have to be B's rows.",
            answer=lambda w, a, b, alpha, stabilized: merge(w.T, a, b, alpha, stabilized).T,
        ),
        Mistake(
            name="the square root was left out where the adapter is rank-stabilized",
            why="Look at the last argument: it decides between alpha / r and alpha / sqrt(r).",
            answer=lambda w, a, b, alpha, stabilized: merge(w, a, b, alpha, False),
        ),
        Mistake(
            name="alpha / sqrt(r) was used for every adapter",
            why="Look at the last argument: only a rank-stabilized adapter has the square root.",
            answer=lambda w, a, b, alpha, stabilized: merge(w, a, b, alpha, True),
        ),
        Mistake(
            name="only the product was returned",
            why="The merged layer stands alone: it needs the base's weight too.",
            answer=lambda w, a, b, alpha, stabilized: merge(torch.zeros_like(w), a, b, alpha, stabilized),
        ),
    ),
    explain="One weight, no slower than the base's own. This is the moment at which the product is formed, once.",
)


# --- 03.7 ----------------------------------------------------------------------------------------


def _base_errors() -> dict[str, float]:
    """Relative error of the merged layer's outputs against those of base + adapter, as it was trained."""
    weight = _random(96, 128).float() * 0.02
    product = (_random(96, 4, seed=1) @ _random(4, 128, seed=2)).float() * 0.001
    base = dequantize_4bit(quantize_4bit(weight))
    x = _random(64, 128, seed=3).float()
    wanted = x @ (base + product).T
    merged = {
        "original": weight + product,
        "dequantized": base + product,
        "quantized again": dequantize_4bit(quantize_4bit(base + product)),
    }
    return {name: ((x @ m.T - wanted).norm() / wanted.norm()).item() for name, m in merged.items()}


def _draw_bases(answer: str) -> tuple[style.Figure, str]:
    errors = _base_errors()
    colors = {"original": (style.ORANGE, "////"), "dequantized": (style.GREEN, ""), "quantized again": (style.BLUE, "....")}
    with style.page_style():
        figure = style.new_figure(3.4)
        axes = figure.subplots()
        for at, (name, error) in enumerate(errors.items()):
            color, hatch = colors[name]
            axes.barh(at, 100 * error, color=color, hatch=hatch, edgecolor="white", linewidth=0, height=0.6)
            axes.text(100 * error, at, f" {100 * error:.2g} %", va="center")
        axes.set_yticks(range(len(errors)), [f"{n} (your answer)" if n == answer else n for n in errors])
        axes.invert_yaxis()
        axes.set_xlabel("outputs of the merged layer, RMS difference to what was trained, %")
        axes.set_xlim(0, 118 * max(errors.values()))
    made = ", ".join(f"{name} {100 * error:.2g} %" for name, error in errors.items())
    return figure, f"Difference of a merged layer's outputs to those that were trained: {made}."


BASE = Choice(
    key="03.7",
    title="The right base",
    options={
        "original": "It is the better base, but the adapter was trained beside the dequantized one: the sum is a model that "
        "nobody has evaluated.",
        "dequantized": "W hat + s B A is the very sum whose loss was evaluated; only the last bits may differ.",
        "quantized again": "It would be four bits, not 16; and rounding to sixteen levels once more undoes most of a small "
        "product.",
        "any": "The three differ in their outputs, as the picture shows; only one of them is what was evaluated.",
    },
    right="dequantized",
    draw=_draw_bases,
)

EXERCISES = [SHARE, FORWARD, PARAMETERS, START, DOUBLED, MERGE, BASE]
