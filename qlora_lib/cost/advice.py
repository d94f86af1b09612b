"""What to change when a step does not fit a card: the cheapest changes that make it fit, best first.

How it works: a small search over all combinations of changes, in tiers by what they do to the result. A tier is searched
only where the one before it has nothing; another method is named besides, since it is often what one wants. Each
combination is taken with the largest micro-batch that fits, and of two the one with fewer changes is kept unless the
other costs less. None of a way's changes can be left out. Every way was computed to fit, by the plan's own arithmetic.

    same result    qlora_lib.fast (loss in pieces, but not in fp16, and fewer kept tensors), checkpointing, smaller
                   micro-batches with accumulation, paged optimizer
    nearly same    8-bit optimizer states (Dettmers et al. 2022)
    other result   shorter sequences, lower rank
    other method   LoRA in place of full, QLoRA in place of either
    last resort    of QLoRA: embedding, head and norms left in 16 bits, which PEFT's preparation makes fp32

Costs in time are ratios for the same tokens on that card: of the roofline's products, its memory traffic and what a paged
optimizer moves over the link to the host, added up. Not in it: that small products reach less of the peak.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import product
from math import ceil, isqrt

from qlora_lib.cost.cards import Card
from qlora_lib.cost.fitting import fit
from qlora_lib.cost.roofline import HOST_LINK, bytes_moved, flops_of
from qlora_lib.cost.workload import Workload

SAME, NEARLY, OTHER, METHOD = range(4)
RESULT = ("the same result, but for rounding", "nearly the same result", "another result", "another method")
SHORTEST, LOWEST_RANK = 128, 4  # below these, advice would be no help
SHOWN = 3  # ways of a tier
WORTHWHILE = 0.03  # of the time: for less no further change is worth naming
THRIFTIEST = 8  # candidates that are asked first: where none of them fits, none of all does
PENALTY = {SAME: 1.0, NEARLY: 1.1}  # a result that is nearly the same weighs as so much more time, in the order of ways
EIGHT_BIT = {"adamw": "adamw_8bit", "paged_adamw": "paged_adamw_8bit"}
PAGED = {"adamw": "paged_adamw", "adamw_8bit": "paged_adamw_8bit"}
OPTIMIZER_WORDS = {"adamw_8bit": "8-bit AdamW", "paged_adamw": "paged AdamW", "paged_adamw_8bit": "paged 8-bit AdamW"}


@dataclass(frozen=True)
class Way:
    """Changes that make a step fit, together."""

    work: Workload  # after them
    changes: tuple[str, ...]  # in words
    settings: dict[str, object]  # the changed fields of the workload
    cost: int  # SAME, NEARLY, OTHER or METHOD
    time_ratio: float  # of the time for the same tokens
    needs: tuple[int, int]  # bytes: low, high

    @property
    def weight(self) -> float:
        """What it costs, for the order of ways."""
        return self.time_ratio * PENALTY.get(self.cost, 1.0)

    @property
    def result(self) -> str:
        return RESULT[self.cost]


def advise(work: Workload, card: Card) -> list[Way]:
    """Ways to make `work` fit `card`, best first; none where it fits already, and where nothing here helps."""
    if fit(work, card).fits:
        return []
    ways = _ways(work, card, _same_method(work))
    if not ways:
        ways = _ways(work, card, _smaller(work))
    if not ways and work.quantization != "none" and work.weight_dtype != work.dtype:
        narrow = replace(work, weight_dtype=work.dtype)
        ways = _ways(work, card, _same_method(narrow)) or _ways(work, card, _smaller(narrow))
    for other in _other_methods(work):  # the nearest method that fits, as little changed as may be
        if found := _ways(work, card, _with_less(other, card)):
            return ways + found[:1]
    return ways


@lru_cache(maxsize=512)  # every card that nothing fits is asked the same
def _same_method(work: Workload) -> tuple[Workload, ...]:
    """Combinations that leave the result alone, or nearly."""
    forwards = [True] if work.fast else [False, True]
    optimizers = [work.optimizer]
    if work.optimizer in EIGHT_BIT:
        optimizers.append(EIGHT_BIT[work.optimizer])
    if work.device == "cuda":
        optimizers += [PAGED[o] for o in list(optimizers) if o in PAGED]
    checkpointing = [work.checkpointing] if work.checkpointing else [False, True]
    return tuple(
        replace(
            work, fast=fast, optimizer=optimizer, checkpointing=again, batch=batch,
            accumulation=work.accumulation * (work.batch // batch),
        )
        for fast, optimizer, again, batch in product(forwards, optimizers, checkpointing, _divisors(work.batch))
    )  # fmt: skip


def _smaller(work: Workload) -> Iterator[Workload]:
    ranks = [work.rank] if work.trains_all else _halvings(work.rank, LOWEST_RANK)
    for length, rank in product(_halvings(work.length, SHORTEST), ranks):
        yield from _same_method(replace(work, length=length, rank=rank))


def _other_methods(work: Workload) -> Iterator[Workload]:
    # The weights' dtype is each method's own, unless it was given.
    own = None if work.weight_dtype == replace(work, weight_dtype=None).weight_dtype else work.weight_dtype
    if work.method == "full":
        yield replace(work, method="lora", weight_dtype=own, targets="all-linear")
    if work.method != "qlora" and work.quantization == "none":
        yield replace(work, method="qlora", quantization="nf4", weight_dtype=own, targets=work.targets or "all-linear")


def _with_less(work: Workload, card: Card) -> Iterator[Workload]:
    yield from _same_method(work)
    if not any(fit(w, card).fits for w in _same_method(work)):
        yield from _smaller(work)


def _ways(work: Workload, card: Card, candidates: Iterable[Workload]) -> list[Way]:
    """The candidates that fit, cheapest first; one with more changes than another only where it costs less than that."""
    candidates = list(candidates)
    if not any(fit(w, card).fits for w in sorted(candidates, key=_thrift)[:THRIFTIEST]):
        return []
    found: dict[frozenset[str], Workload] = {}
    for candidate in candidates:
        changed = frozenset(changed_fields(work, candidate))
        known = found.get(changed)
        # of the same changes, the mildest: the largest batch, then the longest sequences, then the highest rank
        if (known is None or _mildness(candidate) > _mildness(known)) and fit(candidate, card).fits:
            found[changed] = candidate
    ways = {changed: _way(work, candidate, card) for changed, candidate in found.items()}
    worth = [
        way for changed, way in ways.items()
        if not any(fewer < changed and other.weight <= way.weight + WORTHWHILE for fewer, other in ways.items())
    ]  # fmt: skip
    return sorted(worth, key=lambda way: (round(way.weight, 2), len(way.changes), -way.work.batch))[:SHOWN]


def _thrift(work: Workload) -> tuple:
    """Least memory first, as far as that can be told without counting."""
    kind = ("paged" in work.optimizer) + 2 * ("8bit" in work.optimizer)
    return work.length, work.rank, work.batch, not work.checkpointing, not work.fast, -kind


def _mildness(work: Workload) -> tuple:
    kind = ("paged" in work.optimizer) + 2 * ("8bit" in work.optimizer)
    return work.length, work.rank, work.batch, -kind


def changed_fields(before: Workload, after: Workload) -> dict[str, object]:
    """Fields of the workload that a user would set, with their new values."""
    names = ["method", "fast", "batch", "length", "checkpointing", "optimizer"]
    names += ["weight_dtype"] if after.method == before.method else []
    names += [] if before.trains_all else ["rank"]
    changed = {name: getattr(after, name) for name in names if getattr(after, name) != getattr(before, name)}
    if "batch" in changed:
        changed["accumulation"] = after.accumulation
    if "optimizer" in changed:  # two changes in one word
        if ("8bit" in before.optimizer) != ("8bit" in after.optimizer):
            changed["8-bit states"] = True
        if ("paged" in before.optimizer) != ("paged" in after.optimizer):
            changed["paged states"] = True
    return changed


def _way(before: Workload, after: Workload, card: Card) -> Way:
    changed = changed_fields(before, after)
    words, cost = [], SAME
    if "method" in changed:
        words.append({"lora": "LoRA", "qlora": "QLoRA (NF4, double quantization)"}[after.method])
        cost = METHOD
    if "optimizer" in changed:
        words.append(OPTIMIZER_WORDS[after.optimizer])
        cost = max(cost, NEARLY if "8-bit states" in changed else SAME)
    if "fast" in changed:
        words.append("qlora_lib.fast" + (", whose loss is in pieces" if after.loss == "chunked" != before.loss else ""))
    if "checkpointing" in changed:
        words.append("checkpointing")
    if "batch" in changed:
        words.append(f"micro-batches of {after.batch}, accumulated {after.accumulation} times")
    if "weight_dtype" in changed:
        words.append(f"embedding, head and norms left in {after.weight_dtype} (not with PEFT's preparation)")
        cost = max(cost, NEARLY)
    if "length" in changed:
        words.append(f"{after.length} tokens a sequence")
        cost = max(cost, OTHER)
    if "rank" in changed:
        words.append(f"rank {after.rank}")
        cost = max(cost, OTHER)
    settings = {name: value for name, value in changed.items() if " " not in name}
    return Way(after, tuple(words), settings, cost, seconds_per_token(after, card) / seconds_per_token(before, card), fit(after, card).needs)


def seconds_per_token(work: Workload, card: Card) -> float:
    """Products and traffic, one after the other; relative where the card's figures are not known."""
    peak = card.peaks.get(work.dtype, (1.0, ""))[0]
    traffic = bytes_moved(work) / card.bandwidth if card.bandwidth else 0.0
    paging = fit(work, card).paging_bytes / HOST_LINK
    return (flops_of(work).hardware_flops / peak + traffic + paging) / (work.tokens * work.accumulation)


def _divisors(batch: int) -> list[int]:
    """Micro-batches that add up to the same batch, largest first; of many, some, and 1."""
    small = [n for n in range(1, isqrt(batch) + 1) if batch % n == 0]
    found = sorted({*small, *(batch // n for n in small)}, reverse=True)
    step = ceil(len(found) / 12)
    return list(dict.fromkeys([*found[::step], 1]))


def _halvings(number: int, least: int) -> list[int]:
    values = [number]
    while values[-1] // 2 >= least:
        values.append(values[-1] // 2)
    return values
