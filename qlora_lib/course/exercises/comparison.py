"""Lesson 5: full fine-tuning, LoRA and QLoRA compared."""

import torch

from qlora_lib import style
from qlora_lib.cost.devices import GPUS, TERA
from qlora_lib.cost.flops import step_flops
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.exercises.memory import SMOLLM2, TINYLLAMA
from qlora_lib.published import published

TOTAL = TINYLLAMA.parameters.total
LINEAR = TINYLLAMA.linear_weights
REST = TOTAL - LINEAR  # embedding, head, norms
HEAD = TINYLLAMA.parameters.head
ADAPTER = TINYLLAMA.lora_parameters(16)
BITS = 4 + 8 / 64 + 32 / (64 * 256)  # NF4 with double quantization


def _smaller(linear_bits: float = BITS, rest: float = 2 * REST, adapter: float = 2 * ADAPTER) -> float:
    """How many times smaller TinyLlama is than in 16 bits."""
    return 2 * TOTAL / (LINEAR * linear_bits / 8 + rest + adapter)


# --- 05.1 size -------------------------------------------------------------------------------------

size = Number(
    key="05.1",
    title="What 3.82 times should have been",
    unit="times",
    expected=_smaller,
    explain="An eighth of this model stays in 16 bits; in a model with fewer "
    "weights the share is larger and the factor smaller.",
    mistakes=(
        Mistake(
            name="every weight was taken as quantized and scales as free",
            why="So the study reckoned. Embedding, head and norms stay in 16 "
            "bits, and 4-bit weights bring scales along.",
            answer=lambda: _smaller(4, REST / 2),
        ),
        Mistake(
            name="every weight was taken as quantized",
            why="Embedding, head and norms stay in 16 bits.",
            answer=lambda: _smaller(BITS, REST * BITS / 8),
        ),
        Mistake(
            name="the scales were forgotten",
            why="Each block of 64 weights has one; double quantization makes them 0.127 bits a weight, not none.",
            answer=lambda: _smaller(4),
        ),
        Mistake(
            name="the scales were counted in 32 bits",
            why="Double quantization stores them in 8 bits: 4.127 bits a weight in all, and not 4.5.",
            answer=lambda: _smaller(4.5),
        ),
        Mistake(
            name="the adapter was forgotten",
            why="Without it the 4-bit base is not the model that was trained.",
            answer=lambda: _smaller(adapter=0),
        ),
        Mistake(
            name="the embedding and the head were counted once",
            why="TinyLlama's head is a matrix of its own.",
            answer=lambda: 2 * (TOTAL - HEAD) / (LINEAR * BITS / 8 + 2 * (REST - HEAD) + 2 * ADAPTER),
        ),
    ),
    tolerance=2e-3,
)


# --- 05.2 operations -------------------------------------------------------------------------------

PRODUCTS = LINEAR + HEAD  # an embedding is a look-up

operations = Number(
    key="05.2",
    title="Operations of a step",
    unit="of a full step",
    expected=lambda: (4 * PRODUCTS + 6 * ADAPTER) / (6 * PRODUCTS),
    parts=lambda: {
        "base, forward": 2 / 6,
        "base, gradient of the input": 2 / 6,
        "adapter": ADAPTER / PRODUCTS,
    },
    explain="A third is spared, that of the frozen weights' gradients, and the adapter takes some of it back.",
    mistakes=(
        Mistake(
            name="the bits of the weights were taken for operations",
            why="A weight of 4 bits takes part in as many products as one of 16: it is turned back first.",
            answer=lambda: (
                published(7, "flops per step", "qlora").number / published(7, "flops per step", "standard").number
            ),
        ),
        Mistake(
            name="the adapter's products were forgotten",
            why="A and B are matrices like others, and they are trained: 6 operations for each weight.",
            answer=lambda: 4 / 6,
        ),
        Mistake(
            name="the frozen base was spared the backward pass",
            why="The gradient of its inputs must still be computed, or none would reach the adapters below.",
            answer=lambda: (2 * PRODUCTS + 6 * ADAPTER) / (6 * PRODUCTS),
        ),
        Mistake(
            name="only the trained weights were counted",
            why="Every token goes through the whole base, forward and back.",
            answer=lambda: ADAPTER / PRODUCTS,
        ),
        Mistake(
            name="the embedding was counted as a product",
            why="It is a look-up: a row is taken out, and nothing is multiplied.",
            answer=lambda: (4 * TOTAL + 6 * ADAPTER) / (6 * TOTAL),
        ),
    ),
    tolerance=3e-4,
)


# --- 05.3 which peak -------------------------------------------------------------------------------

PRINTED = published(8, "achieved flops", "standard").number / 0.1318  # TFLOP/s


def draw_peaks(answer: str):
    names = ["T4", "RTX 3070", "RTX 3090", "A100 40GB"]
    with style.page_style():
        figure = style.new_figure(4.4)
        axes = figure.subplots()
        for kind, color, marker in (("fp32", style.BLUE, "o"), ("fp16", style.ORANGE, "s")):
            rates = [getattr(GPUS[name], kind) / TERA for name in names]
            axes.plot(rates, range(len(names)), marker, color=color, markersize=7, label=kind)
        axes.axvline(PRINTED, color=style.VERMILLION, linestyle="--", label="4.69 / 13.18 %")
        axes.set_yticks(range(len(names)), [f"> {n}" if n == answer else n for n in names])
        axes.set_ylim(-0.5, len(names) - 0.5)
        axes.set_xscale("log")
        axes.set_xlim(6, 400)
        axes.set_xticks([10, 20, 50, 100, 200], ["10", "20", "50", "100", "200"])
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_xlabel("dense peak by the data sheet, TFLOP/s")
        figure.legend(loc="outside upper right", ncols=3)
    peaks = ", ".join(f"{n} {GPUS[n].fp32 / TERA:g} in fp32 and {GPUS[n].fp16 / TERA:g} in fp16" for n in names)
    return figure, f"Peaks in TFLOP/s: {peaks}; the study divided by {PRINTED:.1f}."


peak = Choice(
    key="05.3",
    title="Whose peak?",
    right="RTX 3090",
    options={
        "T4": "4.69 TFLOP/s are 7.2 % of a T4's 65 TFLOP/s in fp16, and 58 % of its 8.1 in fp32; 13.18 % of neither.",
        "RTX 3070": "its 40.6 TFLOP/s in fp16 would make 11.6 %, its 20.3 in fp32 23 %.",
        "RTX 3090": (
            "4.69 / 0.1318 is 35.6 TFLOP/s, an RTX 3090's fp32 peak, while "
            "the study names a T4: another card and another type."
        ),
        "A100 40GB": "its 312 TFLOP/s in fp16 would make 1.5 %, its 19.5 in fp32 24 %.",
    },
    draw=draw_peaks,
)


# --- 05.4 pairs ------------------------------------------------------------------------------------


def paired(a: torch.Tensor, b: torch.Tensor) -> tuple:
    d = a - b
    return d.mean(), d.std() / len(d) ** 0.5


def _windows(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean nats a token of two arms in n windows: hard windows are hard for both."""
    g = torch.Generator().manual_seed(seed)
    hard = 3 + 0.4 * torch.randn(n, generator=g, dtype=torch.float64)
    return tuple(hard + shift + 0.03 * torch.randn(n, generator=g, dtype=torch.float64) for shift in (0.05, 0.0))


pairs = Function(
    key="05.4",
    title="A difference and how sure it is",
    axis="nats a token",
    expected=paired,
    cases=lambda: [
        Case("20 windows", _windows(20, 0)),
        Case("5 windows", _windows(5, 1)),
        Case("2 windows", _windows(2, 2)),
    ],
    explain="What makes a window hard is in both arms, and leaves with the subtraction.",
    tolerance=1e-9,
    mistakes=(
        Mistake(
            name="the pairs were torn apart",
            why="Adding the variances of the two arms counts the windows' "
            "difficulty twice, which the difference does not hold at all.",
            answer=lambda a, b: (a.mean() - b.mean(), ((a.var() + b.var()) / len(a)) ** 0.5),
        ),
        Mistake(
            name="the spread of single windows was given",
            why="The error of a mean falls with the square root of how many it is of.",
            answer=lambda a, b: ((a - b).mean(), (a - b).std()),
        ),
        Mistake(
            name="it was divided by n, and not by its square root",
            why="Variances add up, so the standard error of a mean is s / √n.",
            answer=lambda a, b: ((a - b).mean(), (a - b).std() / len(a)),
        ),
        Mistake(
            name="n stands where n − 1 belongs",
            why="The mean was estimated from the same windows, which costs one of them.",
            answer=lambda a, b: ((a - b).mean(), (a - b).std(correction=0) / len(a) ** 0.5),
        ),
        Mistake(
            name="the difference has the other sign",
            why="The task asks for the first arm less the second.",
            answer=lambda a, b: ((b - a).mean(), (a - b).std() / len(a) ** 0.5),
        ),
    ),
)


# --- 05.5 the slow recipe --------------------------------------------------------------------------


def draw_recipe(answer: str):
    methods = {
        "LoRA": ("lora", False),
        "QLoRA": ("qlora", False),
        "QLoRA, checkpointing": ("qlora", True),
    }
    found = {
        name: step_flops(
            SMOLLM2, method=method, batch=4, length=128, rank=16, target_modules="all-linear",
            gradient_checkpointing=on, accumulation=1,
        )
        for name, (method, on) in methods.items()
    }  # fmt: skip
    with style.page_style():
        figure = style.new_figure(4.2)
        axes = figure.subplots()
        left = [0.0] * len(found)
        looks = (
            ("forward", style.BLUE, ""),
            ("backward", style.ORANGE, "////"),
            ("recompute", style.VERMILLION, "xxxx"),
        )
        for part, color, hatch in looks:
            sizes = [getattr(f, part) / 1e9 for f in found.values()]
            axes.barh(
                list(found), sizes, left=left, height=0.55, color=color, hatch=hatch, edgecolor="white", label=part
            )
            left = [x + s for x, s in zip(left, sizes)]
        axes.invert_yaxis()
        axes.set_xlabel("operations of a step in matrix products, GFLOP")
        figure.legend(loc="outside upper right", ncols=3)
    more = found["QLoRA, checkpointing"].hardware_flops / found["QLoRA"].hardware_flops - 1
    return figure, f"Operations of a step: LoRA and QLoRA alike, with checkpointing {more:.0%} more."


recipe = Choice(
    key="05.5",
    title="The slow recipe",
    right="gradient checkpointing",
    options={
        "NF4 weights": (
            "turning them back is real work, but it grows with the weights "
            "and not with the tokens: a few percent of a step."
        ),
        "double quantization": "it adds one multiplication for each block of 64 weights.",
        "the 8-bit optimizer": (
            "it updates 1 weight in 28 here, and has nothing to do with the length of the two passes."
        ),
        "gradient checkpointing": (
            "`prepare_model_for_kbit_training` switches it on unasked, and every step runs the blocks forward twice."
        ),
    },
    draw=draw_recipe,
)

EXERCISES = [size, operations, peak, pairs, recipe]
