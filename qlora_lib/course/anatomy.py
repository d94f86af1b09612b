"""What a training step holds, in the terms of lesson 4: a thin layer over qlora_lib.cost.

How it works: a `Method` is one of the lesson's three ways to train, in 32 bits on a CPU, with torch's fused attention and
the stock stack's loss or the functions of qlora_lib.fast. It becomes a `Workload`, and qlora_lib.cost does the arithmetic;
what it tells apart and the lesson does not is added up here. Of the moments at which memory can be highest the lesson
shows those that decide at its sizes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from qlora_lib.cost import activations, memory
from qlora_lib.cost.activations import Kept
from qlora_lib.cost.memory import FLOAT, SMALLEST_PAGED, adapter_tensors, paged, state_bytes, weight_tensors
from qlora_lib.cost.moments import Held
from qlora_lib.cost.moments import moments as all_moments
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload

__all__ = [
    "GROUPS", "PARTS", "SMALLEST_PAGED", "Anatomy", "Kept", "Method", "adapter_tensors", "anatomy", "layer_tensors", "paged",
    "places_spread", "saved_bytes", "state_bytes", "trained_tensors", "weight_bytes", "weight_tensors",
]  # fmt: skip

GROUPS = activations.GROUPS[:5]  # nothing is cast in 32 bits
PARTS = ("weights", "optimizer states", "gradients", "activations", "logits")
MOMENTS = ("start of backward", "end of backward", "optimizer", "recomputed block", "loss, in pieces")


@dataclass(frozen=True)
class Method:
    """How a model is trained. `rank` 0: every weight is trained."""

    name: str
    rank: int = 0
    dropout: float = 0.0  # in front of every adapter
    four_bit: bool = False  # the linear layers in NF4 with double quantization
    optimizer_bits: int = 32
    checkpointing: bool = False
    targets: str | tuple[str, ...] = "all-linear"
    fast: bool = False  # forwards and loss of qlora_lib.fast; where not, those of the stock stack

    @property
    def trains_all(self) -> bool:
        return self.rank == 0

    def workload(self, shape: ModelShape, batch: int = 1, length: int = 1) -> Workload:
        """The same for qlora_lib.cost; the optimizer is bitsandbytes' or torch's own."""
        lora = {} if self.trains_all else {"rank": self.rank, "dropout": self.dropout, "targets": self.targets}
        return Workload(
            shape, "full" if self.trains_all else "qlora" if self.four_bit else "lora", batch, length,
            optimizer="adamw_8bit" if self.optimizer_bits == 8 else "adamw", checkpointing=self.checkpointing,
            fast=self.fast, fused_optimizer=False, trainer=False, **lora,
        )  # fmt: skip


def layer_tensors(shape: ModelShape, method: Method, first: bool = False) -> list[Kept]:
    """The tensors that one block keeps, in the order in which they are made; in numbers of 32 bits a token.

    first: the block behind a frozen embedding, whose input wants no gradient.
    """
    kept = activations.layer_tensors(method.workload(shape), first)
    return [t if t.width == FLOAT else replace(t, numbers=t.numbers * t.width / FLOAT, width=FLOAT) for t in kept]


def saved_bytes(shape: ModelShape, method: Method, batch: int, length: int) -> dict[str, int]:
    """Bytes by `GROUPS` that the forward pass leaves for the backward pass; parameters are not counted."""
    saved = activations.saved_bytes(method.workload(shape, batch, length))
    return {group: saved[group] for group in GROUPS}


def trained_tensors(shape: ModelShape, method: Method) -> list[int]:
    return memory.trained_tensors(method.workload(shape))


def weight_bytes(shape: ModelShape, method: Method) -> int:
    """Resident weights, with adapters and quantization state; the rotary buffers are two short rows."""
    return memory.resident(method.workload(shape)).total


@dataclass(frozen=True)
class Anatomy:
    """A step's memory at its highest moment, by `PARTS`, and every moment's total."""

    parts: Mapping[str, int]
    moment: str
    moments: Mapping[str, int]  # bytes in all, weights and states included

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def anatomy(shape: ModelShape, method: Method, batch: int, length: int) -> Anatomy:
    """What a step holds when it holds the most; the moments are those of qlora_lib.cost.moments.

    With `fast` no moment holds all logits; a block's backward stands among the moments there.
    """
    work = method.workload(shape, batch, length)
    fixed = (memory.resident(work).total, memory.optimizer_bytes(work)[0])
    found = all_moments(work)
    names = [*MOMENTS, "backward of a block"] if method.fast else MOMENTS
    held = {name: _parts(name, found[name]) for name in names if name in found}
    moments = {name: sum(fixed) + sum(parts) for name, parts in held.items()}
    highest = max(moments, key=moments.get)
    return Anatomy(dict(zip(PARTS, (*fixed, *held[highest]))), highest, moments)


def _parts(moment: str, held: Held) -> tuple[int, int, int]:
    """(gradients, activations, logits): working copies go to what they are made from."""
    if moment == "optimizer":
        return held.gradients + held.temporary, held.activations, held.loss
    return held.gradients, held.activations + held.temporary, held.loss


def places_spread(shape: ModelShape, method: Method, batch: int, length: int) -> float:
    """Standard deviation, in bytes, of what the fast path saves: how many places are dropped is drawn."""
    return activations.places_spread(method.workload(shape, batch, length))
