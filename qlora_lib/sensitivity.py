"""When two points of a sweep differ, and how wide the range of good learning rates is.

How it works: seeds differ by a standard deviation s, estimated from all points at once (1.4826 times the median distance of a
seed from its point's mean, which a diverged arm does not spoil). Two means of two seeds differ by chance with a standard
error of s, so less than 2 s is no difference; and less than 0.02 nats, two in a hundred of perplexity, is none that matters.
The larger of the two is the tolerance, one for all methods. A learning rate is good where the loss lies within the tolerance of
the method's best; between neighbouring rates the loss is taken as linear in the logarithm of the rate, which on a convex
curve is never too low, so that the range is not flattered.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from qlora_lib.analysis import Interval, paired_interval
from qlora_lib.sweeps import Axis, Point, Records, rate_axes, setting_axes

FLOOR = 0.02  # nats a token
RESOLUTION = 2**0.5  # of the width of a range: half a step of a grid in factors of two, since its ends are interpolated


def seed_deviation(scores: Iterable[Sequence[float | None]]) -> float | None:
    """Standard deviation of a seed, from the scores of many points; None where no point has two seeds."""
    distances = []
    for found in scores:
        known = [x for x in found if x is not None]
        if len(known) > 1:
            mean, n = fmean(known), len(known)
            distances += [abs(x - mean) * math.sqrt(n / (n - 1)) for x in known]
    return 1.4826 * median(distances) if distances else None


def tolerance_of(scores: Iterable[Sequence[float | None]], floor: float = FLOOR) -> float:
    """How far two points may lie apart without a difference: see the module's head. Nats a token."""
    return max(floor, 2 * (seed_deviation(scores) or 0.0))


def tolerance(axes: Iterable[Axis]) -> float:
    points = {p.name: p.scores for axis in axes for p in axis.points}
    return tolerance_of(points.values())


def shared_tolerance(records: Records) -> float:
    """The one that pages use: from every point of every axis."""
    return tolerance([*rate_axes(records).values(), *setting_axes(records).values()])


@dataclass(frozen=True)
class GoodRange:
    """Rates whose loss lies within the tolerance of the best; open where the grid ends first."""

    low: float
    high: float
    open_below: bool
    open_above: bool

    @property
    def factor(self) -> float:
        """`high` over `low`: at least this where the range is open."""
        return self.high / self.low

    @property
    def is_open(self) -> bool:
        return self.open_below or self.open_above


def good_span(rates: Sequence[float], losses: Sequence[float | None], within: float) -> GoodRange | None:
    """The good range around the best of `rates` (increasing); a rate with no loss is never good.

    Towards a neighbour that failed nothing is interpolated: the range ends at the last good rate.
    """
    known = [i for i, x in enumerate(losses) if x is not None]
    if not known:
        return None
    best = min(known, key=lambda i: losses[i])
    limit = losses[best] + within

    def walk(step: int) -> tuple[float, bool]:
        i = best
        while 0 <= i + step < len(rates):
            j = i + step
            if losses[j] is None:
                return rates[i], False
            if losses[j] > limit:
                share = (limit - losses[i]) / (losses[j] - losses[i])
                return math.exp(math.log(rates[i]) + share * math.log(rates[j] / rates[i])), False
            i = j
        return rates[i], True

    (low, below), (high, above) = walk(-1), walk(1)
    return GoodRange(low, high, below, above)


def good_range(axis: Axis, within: float, seed: int | None = None) -> GoodRange | None:
    """Of the means, or of one seed alone. A point in which a seed failed is not good."""
    losses = [
        None if p.failures else p.mean if seed is None else p.of_seed(seed) for p in axis.points
    ]  # fmt: skip
    return good_span([p.value for p in axis.points], losses, within)


Width = Literal["narrower", "wider", "no difference shown"]


def compare_widths(one: Sequence[GoodRange], other: Sequence[GoodRange]) -> Width | None:
    """Whether the good range of one is narrower in every seed than that of the other in any, by more than the RESOLUTION.

    An open range may be of any width above what was seen, so it is shown wider than a closed one at most.
    """
    if not one or not other:
        return None

    def bounds(ranges: Sequence[GoodRange]) -> tuple[float, float]:
        return min(r.factor for r in ranges), max(math.inf if r.is_open else r.factor for r in ranges)

    (low, high), (other_low, other_high) = bounds(one), bounds(other)
    if high * RESOLUTION < other_low:
        return "narrower"
    return "wider" if low > other_high * RESOLUTION else "no difference shown"


def sensitivity(one: Axis, other: Axis, within: float) -> Width | None:
    """The widths of two methods' good ranges, seed by seed; None where either has none."""
    ranges = [[good_range(axis, within, seed) for seed in axis.seeds] for axis in (one, other)]
    return compare_widths(*([r for r in found if r] for found in ranges))


def cost_of_missing(axis: Axis, factor: float) -> float | None:
    """What a rate of `factor` times the best costs, in nats; None where it was not run or failed."""
    point = next((p for p in axis.points if axis.best and math.isclose(p.value, factor * axis.best.value, rel_tol=1e-6)), None)
    return None if point is None or point.mean is None else point.mean - axis.best.mean


def perplexity_difference(one: Point, other: Point) -> Interval | None:
    """Log-perplexity of `one` less that of `other` on the test split: windows paired, averaged over the seeds both have."""
    a, b = ({r.seed: r.perplexity.window_nll_after for r in p.records if r.perplexity} for p in (one, other))
    seeds = sorted(set(a) & set(b))
    lengths = {len(windows[s]) for windows in (a, b) for s in seeds}
    if not seeds or len(lengths) != 1 or min(lengths) < 2:
        return None
    mean_a, mean_b = ([fmean(column) for column in zip(*(w[s] for s in seeds), strict=True)] for w in (a, b))
    return paired_interval(mean_a, mean_b)


def verdict(one: Point, other: Point, within: float) -> Literal["better", "worse", "no difference shown"] | None:
    """By validation loss and the tolerance."""
    if one.mean is None or other.mean is None:
        return None
    if abs(one.mean - other.mean) <= within:
        return "no difference shown"
    return "better" if one.mean < other.mean else "worse"


def optimum(axis: Axis, within: float) -> tuple[Point, ...]:
    """The points that are not shown to be worse than the best."""
    if axis.best is None:
        return ()
    return tuple(p for p in axis.points if not p.failures and p.mean is not None and abs(p.mean - axis.best.mean) <= within)
