"""How the records read: which way a comparison goes, and which arm does best in a field.

How it works: the sentences of the report are chosen by these answers, never by a figure that someone
remembers. A difference counts only where the measurements do not overlap: the interval of paired
windows for perplexity, the quartiles of step times, the spread of repeated generations.
"""

from typing import Literal

from qlora_lib.bench.record import quartiles
from qlora_lib.report.benches import pairs, spread
from qlora_lib.report.values import Store

Direction = Literal["higher", "lower", "same"] | None  # None: not measured, or not comparable


def perplexity(store: Store, one: str, other: str) -> Direction:
    """Of `one` against `other`; "same" where the paired interval includes no change."""
    interval = store.number(f"perplexity-interval.{one}.{other}")
    return _against_zero(interval)


def gained(store: Store, arm: str) -> Direction:
    """Perplexity after training against before, on the arm's own windows."""
    return _against_zero(store.number(f"gained-interval.{arm}"))


def step_time(store: Store, one: str, other: str) -> Direction:
    """Seconds of a training step; "same" where the quartiles overlap."""
    spreads = [store.number(f"{arm}.train.seconds_per_step_quartiles") for arm in (one, other)]
    return _compared(store, f"step-time-ratio.{one}.{other}", spreads)


def latency(store: Store, one: str, other: str) -> Direction:
    """Seconds of a timed generation; "same" where the repeats overlap."""
    repeats = [store.number(f"{arm}.generation.repeats") for arm in (one, other)]
    spreads = [(min(r), max(r)) if r else None for r in repeats]
    return _compared(store, f"latency-ratio.{one}.{other}", spreads)


def bench(store: Store, allocator: str, ratio: str) -> Direction:
    """A ratio of `qlora bench` against one; "same" where what it lies between includes one."""
    value = store.number(f"bench.{allocator}.ratio_details.{ratio}.value")
    if value is None:
        return None
    low, high = spread(store.benches[allocator], ratio) or (value, value)
    return "higher" if low > 1 else "lower" if high < 1 else "same"


def bench_decode(store: Store, allocator: str) -> Direction:
    """Decoding from 4-bit weights with an adapter against unquantized ones, both with this library."""
    each = pairs(store.benches[allocator], "decode.nf4dq_adapter.fast", "decode.fp32.fast")
    if not each:
        return None
    low, high = quartiles(each) or (min(each), max(each))
    return "higher" if low > 1 else "lower" if high < 1 else "same"


def amount(store: Store, ratio_key: str) -> Direction:
    """Of a counted quantity, which has no spread."""
    return _compared(store, ratio_key, (None, None))


def best(store: Store, arms, field: str, least: bool = True) -> str | None:
    """The arm with the least (or the most) of a field; None unless two were measured."""
    known = {arm: store.number(f"{arm}.{field}") for arm in arms if store.has(f"{arm}.{field}")}
    if len(known) < 2:
        return None
    return min(known, key=known.get) if least else max(known, key=known.get)


def best_perplexity(store: Store, arms) -> tuple[str, list[str]] | None:
    """(the arm with the lowest deployed perplexity, those not shown to differ from it)."""
    known = {arm: store.number(store.deployed(arm)) for arm in arms}
    known = {arm: value for arm, value in known.items() if value is not None}
    if len(known) < 2:
        return None
    first = min(known, key=known.get)
    tied = [arm for arm in known if arm != first and _tied(store, arm, first)]
    return first, tied


def _tied(store: Store, one: str, other: str) -> bool:
    if store.why_not(one, other, "perplexity"):
        return False
    key = f"perplexity-interval.{one}.{other}"
    windows = [store.windows(one), store.windows(other)]
    interval = store.derive(key, "paired_change_interval", windows, "percent_interval").number
    return _against_zero(interval) == "same"


def _against_zero(interval) -> Direction:
    if interval is None:
        return None
    low, high = interval
    return "lower" if high < 0 else "higher" if low > 0 else "same"


def _compared(store: Store, ratio_key: str, spreads) -> Direction:
    ratio = store.number(ratio_key)
    if ratio is None:
        return None
    if all(spreads):
        (low, high), (other_low, other_high) = spreads
        if low <= other_high and other_low <= high:
            return "same"
    return "higher" if ratio > 1 else "lower" if ratio < 1 else "same"
