"""The arithmetic behind derived values: small functions of numbers, found by name.

How it works: a derived value records the name of a function here and the keys of its inputs, so that
anyone can compute it again. Statistics on windows come from `qlora_lib.analysis`. Formulas for a
LLaMA of given widths serve the published run, of which only the widths are known.
"""

import math
from collections.abc import Callable
from typing import Any

from qlora_lib import analysis
from qlora_lib.cost import ModelShape, step_flops

MIB = 2**20
FUNCTIONS: dict[str, Callable[..., Any]] = {}


def named(function):
    FUNCTIONS[function.__name__] = function
    return function


@named
def ratio(a: float, b: float) -> float | None:
    return a / b if b else None


@named
def change(a: float, b: float) -> float | None:
    """How far `a` lies from `b`, as a share of `b`; +0.25 is a quarter more."""
    return a / b - 1 if b else None


@named
def reduction(a: float, b: float) -> float | None:
    return 1 - a / b if b else None


@named
def product(*factors: float) -> float:
    result = 1.0
    for factor in factors:
        result *= factor
    return result


@named
def total(*parts: float) -> float:
    return sum(parts)


@named
def first(values: list[float]) -> float:
    return values[0]


@named
def largest(values: list[float]) -> float:
    return max(values)


@named
def last(values: list[float]) -> float:
    return values[-1]


@named
def count(values: list) -> int:
    return len(values)


@named
def hardware(device: str, cpu: str, threads: int, dtype: str) -> str:
    """What a caption says of the machine: the GPU where there is one, else the CPU and its threads."""
    if device not in ("cpu", cpu):
        return f"{device}, {dtype}"
    named_so = any(word in cpu.lower() for word in ("cpu", "processor"))
    return f"{cpu if named_so else f'CPU {cpu}'}, {threads} threads, {dtype}"


@named
def confidence() -> float:
    """Of every interval."""
    return analysis.CONFIDENCE


@named
def paired_change_interval(one: list[float], other: list[float]) -> tuple[float, float]:
    """95 % interval of the change of perplexity, from mean nats a token by window of two arms."""
    nats = analysis.paired_interval(one, other)
    return math.expm1(nats.low), math.expm1(nats.high)


@named
def recovered(start: list[float], end: list[float], base: list[float]) -> float | None:
    """Share of what quantization cost in log-perplexity that training won back: 1 is all of it."""
    share = _share(start, end, base)
    return share.value if share else None


@named
def recovered_interval(start, end, base) -> tuple[float, float] | None:
    share = _share(start, end, base)
    return (share.low, share.high) if share else None


def _share(start, end, base) -> analysis.Interval | None:
    if analysis.paired_interval(start, base).low <= 0:
        return None  # quantization cost nothing measurable: there is nothing to win back
    gains = [s - e for s, e in zip(start, end, strict=True)]
    return analysis.share_interval(gains, [s - b for s, b in zip(start, base, strict=True)])


# --- the published run: what its widths imply ---------------------------------------------------


def _llama(hidden, layers, heads, kv_heads, intermediate, vocabulary) -> ModelShape:
    hidden, heads = int(hidden), int(heads)
    return ModelShape(
        hidden_size=hidden, num_layers=int(layers), num_heads=heads, num_kv_heads=int(kv_heads),
        head_dim=hidden // heads, intermediate_size=int(intermediate), vocab_size=int(vocabulary),
    )  # fmt: skip


@named
def linear_parameters(*widths) -> int:
    """Weights of the seven projections of every layer: what 4-bit loading quantizes."""
    return _llama(*widths).linear_weights


@named
def lora_parameters(rank, *widths) -> int:
    return _llama(*widths).lora_parameters(int(rank))


@named
def total_parameters_plain(hidden, layers, heads, intermediate, vocabulary) -> int:
    """As many key and value heads as heads: a LLaMA without grouped queries."""
    return _llama(hidden, layers, heads, heads, intermediate, vocabulary).parameters.total


@named
def codes_mib(parameters) -> float:
    """Four bits for each parameter, embeddings and norms included, and nothing else."""
    return parameters / 2 / MIB


@named
def half_mib(parameters) -> float:
    """Two bytes for each parameter."""
    return 2 * parameters / MIB


@named
def nf4_bits(block) -> float:
    """Bits a weight with one fp32 absmax a block (QLoRA, section 3)."""
    return 4 + 32 / block


@named
def nf4_double_bits(block, second_block) -> float:
    """Bits a weight once the absmax are 8-bit codes with a fp32 absmax of their own."""
    return 4 + 8 / block + 32 / (block * second_block)


@named
def scale_bits(bits) -> float:
    """What is stored beside the four bits of a code."""
    return bits - 4


@named
def qlora_mib(total, linear, adapter, bits) -> float:
    """Linear weights at `bits`, everything else and the adapter at 16."""
    return (linear * bits / 8 + 2 * (total - linear) + 2 * adapter) / MIB


@named
def tokens_behind(tflop, parameters) -> float:
    """Tokens that make `tflop` at six FLOPs a parameter and token."""
    return tflop * 1e12 / (6 * parameters)


@named
def full_flops(batch, accumulation, length, *widths) -> int:
    shape = _llama(*widths)
    return step_flops(
        shape, "full", int(batch), int(length), accumulation=int(accumulation)
    ).model_flops


@named
def qlora_flops(batch, accumulation, length, rank, *widths) -> int:
    shape = _llama(*widths)
    return step_flops(
        shape, "qlora", int(batch), int(length), int(rank), accumulation=int(accumulation)
    ).model_flops


@named
def adamw_bytes(parameters) -> float:
    """fp32 weights, gradients and the two moments of AdamW: 16 bytes a parameter."""
    return 16 * parameters


@named
def implied_peak(achieved, percent) -> float:
    """The peak that an achieved rate is `percent` of."""
    return achieved / (percent / 100)
