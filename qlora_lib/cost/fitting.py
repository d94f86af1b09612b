"""Whether a training step fits a card, and the largest batch and length that do.

How it works: what a step needs is its peak of tensor bytes and, on a GPU, CUDA's context and the allocator's slack, which
are known as a range. It `fits` where even the high end is within the memory that can be used, is `tight` where only the
low end is, and else does not fit. Needs never fall as batch or length rise, so the largest that fits is found by doubling
and then halving the gap.
"""

from dataclasses import dataclass, replace

from qlora_lib.cost.cards import Card
from qlora_lib.cost.peak import StepMemory, overhead, step_memory
from qlora_lib.cost.workload import Workload

FITS, TIGHT, TOO_LARGE = "fits", "tight", "does not fit"
LARGEST = {"batch": 4096, "length": 131_072}  # where the search ends

@dataclass(frozen=True)
class Fit:
    """A step on a card, in bytes."""

    card: Card
    work: Workload
    memory: StepMemory
    overhead: tuple[int, int]  # low, high

    @property
    def needs(self) -> tuple[int, int]:
        """Low, high."""
        return self.memory.peak_bytes + self.overhead[0], self.memory.peak_bytes + self.overhead[1]

    @property
    def verdict(self) -> str:
        low, high = self.needs
        usable = self.card.usable_bytes
        return FITS if high <= usable else TIGHT if low <= usable else TOO_LARGE

    @property
    def fits(self) -> bool:
        return self.verdict == FITS

    @property
    def paging_bytes(self) -> int:
        """What a paged optimizer moves over the link to the host in a step: the states that find no place, out and in.

        Reckoned with the high end of what stands beside the tensors.
        """
        spilled = self.needs[1] + self.memory.host_bytes - self.card.usable_bytes
        return 2 * max(0, min(spilled, self.memory.host_bytes))

    @property
    def fixed_bytes(self) -> int:
        """Weights, optimizer states and gradients: what no smaller batch or shorter length makes less."""
        names = ("weights", "quantization constants", "adapters", "optimizer states", "gradients")
        return sum(self.memory.sizes[name] for name in names)


def fit(work: Workload, card: Card) -> Fit:
    """`work` on `card`; its device is to be the card's."""
    return Fit(card, work, step_memory(work), overhead(work))


def largest(work: Workload, card: Card, what: str) -> int | None:
    """The largest `batch` or `length` with which the step still fits, all else as it is; None where 1 does not.

    The search ends at `LARGEST`.
    """

    def holds(value: int) -> bool:
        return fit(replace(work, **{what: value}), card).fits

    if not holds(1):
        return None
    low, high = 1, 2
    while high <= LARGEST[what] and holds(high):
        low, high = high, 2 * high
    if high > LARGEST[what]:
        return LARGEST[what] if holds(LARGEST[what]) else _between(low, LARGEST[what], holds)
    return _between(low, high, holds)


def _between(low: int, high: int, holds) -> int:
    """The largest value that holds, where `low` does and `high` does not."""
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
