"""Published speeds, and the share of a card's limit that each of them reached: where this library's estimates come from.

How it works: a limit says what cannot be passed, not what is reached. What is reached depends on kernels, on how large
the products are, and on the host that launches them, and nothing of that is in a data sheet. So an estimate takes the
shares that others reached: each point here is one figure as its source prints it, with the settings of its step, and its
share is computed by this library's own limit. Of the card itself where there is such a point, else from the lowest to
the highest of all cards. Nothing here was measured by this project.

The torchtune figures are for compiled models and packed batches of 2 x 2048 tokens; its configurations for one device
give rank 8 and checkpointing; QLoRA adapts all linear layers there, LoRA queries and values. The study's are for the stock stack in Colab; it states a T4 for its
FLOPs and no other card, and whether it used checkpointing is not stated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from qlora_lib.cost.models import MODELS
from qlora_lib.published import TITLE, published

TORCHTUNE = "torchtune, README of September 2024"
STUDY = TITLE
BITSANDBYTES = "bitsandbytes 0.45, benchmarking/README"
LITGPT = "litgpt, tutorials/resource-tables"


@dataclass(frozen=True)
class TrainingSpeed:
    """Of one training step as its source prints it."""

    card: str
    model: str
    method: str
    batch: int
    length: int
    accumulation: int
    rank: int
    checkpointing: bool
    dtype: str
    seconds: float  # of an optimizer step
    source: str
    targets: str | tuple[str, ...] = "all-linear"

    @property
    def quantized(self) -> bool:
        return self.method == "qlora"


@dataclass(frozen=True)
class DecodeSpeed:
    """Of decoding at batch 1."""

    card: str
    model: str
    quantization: str  # none, int8 or nf4
    double_quant: bool
    tokens_per_second: float
    source: str

    @property
    def seconds_per_layer(self) -> float:
        """Of a token: what it takes to launch a layer's kernels, or more where memory is the limit."""
        return 1 / self.tokens_per_second / MODELS[self.model].shape.num_layers


def _torchtune(method: str, tokens_per_second: float) -> TrainingSpeed:
    return TrainingSpeed(
        "RTX 4090", "llama3.1-8b", method, 2, 2048, 1, 8, True, "bf16", 2 * 2048 / tokens_per_second, TORCHTUNE,
        ("q_proj", "v_proj") if method == "lora" else "all-linear",
    )  # fmt: skip


@cache
def training_speeds() -> tuple[TrainingSpeed, ...]:
    def study(method: str, column: str) -> TrainingSpeed:
        cell = lambda row: int(published(3, row, column).number)  # noqa: E731
        return TrainingSpeed(
            "T4", "tinyllama-1.1b", method, cell("training batch size"), int(published(1, "max sequence length").number),
            cell("gradient accumulation steps"), int(published(4, "lora rank").number), False, "fp16",
            published(9, "time per step", column).number, STUDY,
        )  # fmt: skip

    return (
        _torchtune("full", 1650),
        _torchtune("lora", 3083),
        _torchtune("qlora", 2413),
        study("full", "standard"),
        study("qlora", "qlora"),
    )


DECODE_SPEEDS = (
    DecodeSpeed("T4", "qwen2.5-3b", "none", False, 25.66, BITSANDBYTES),
    DecodeSpeed("T4", "qwen2.5-3b", "nf4", False, 16.45, BITSANDBYTES),
    DecodeSpeed("T4", "qwen2.5-3b", "nf4", True, 13.58, BITSANDBYTES),
    DecodeSpeed("T4", "qwen2.5-3b", "int8", False, 5.98, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "llama3.1-8b", "none", False, 47.46, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "llama3.1-8b", "nf4", False, 67.71, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "llama3.1-8b", "nf4", True, 57.08, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "llama3.1-8b", "int8", False, 22.26, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "qwen2.5-14b", "nf4", False, 46.74, BITSANDBYTES),
    DecodeSpeed("RTX 4090", "qwen2.5-14b", "nf4", True, 39.03, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "llama3.1-8b", "none", False, 40.99, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "llama3.1-8b", "nf4", False, 30.14, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "llama3.1-8b", "nf4", True, 24.34, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "llama3.1-8b", "int8", False, 12.24, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "qwen2.5-32b", "none", False, 19.67, BITSANDBYTES),
    DecodeSpeed("H100 SXM", "qwen2.5-32b", "nf4", True, 11.63, BITSANDBYTES),
    DecodeSpeed("A100 40GB", "llama2-7b", "none", False, 30.97, LITGPT),
    DecodeSpeed("A100 40GB", "llama2-7b", "nf4", False, 19.98, LITGPT),
    DecodeSpeed("A100 40GB", "llama2-7b", "nf4", True, 17.3, LITGPT),
    DecodeSpeed("A100 40GB", "llama2-13b", "none", False, 24.82, LITGPT),
    DecodeSpeed("A100 40GB", "llama2-13b", "nf4", True, 14.43, LITGPT),
)


@dataclass(frozen=True)
class Range:
    """Lowest and highest of some published points, and which they are."""

    low: float
    high: float
    words: str


def range_of(points, card: str, value: Callable[[object], float]) -> Range | None:
    """Of this card's points where it has any, else of all; None of none."""
    own = [p for p in points if p.card == card]
    used = own or list(points)
    if not used:
        return None
    values = [value(p) for p in used]
    sources = "; ".join(dict.fromkeys(p.source for p in used))
    where = f"published for this card: {sources}" if own else f"published for other cards ({', '.join(dict.fromkeys(p.card for p in used))}): {sources}"
    return Range(min(values), max(values), where)
