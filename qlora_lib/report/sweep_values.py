"""The values of the sweeps: each point's loss, seeds and perplexity, their tolerance, good ranges and differences, by key.

How it works: sweeps.py (of the library) selects the points, once a report; here each gets keys, `point.<first arm>.loss` and
the like, derived from the records of its arms by named functions, so that every printed figure can be computed again.
"""

from statistics import fmean
from typing import Any
from weakref import WeakKeyDictionary

from qlora_lib import sensitivity, sweeps
from qlora_lib.report.derive import named, paired_change_interval
from qlora_lib.report.values import Store
from qlora_lib.sweeps import Axis, Point

NAMES = {"full": "Full fine-tuning", "lora": "LoRA", "qlora": "QLoRA", "qlora-8bit": "QLoRA with 8-bit AdamW"}
AXES = {  # name -> words, path of its value in a record, format
    "rank": ("Rank, all linear layers", "settings.lora.rank", "plain"),
    "rank-attention": ("Rank, attention only", "settings.lora.rank", "plain"),
    "alpha": ("Alpha", "settings.lora.alpha", "plain"),
    "dropout": ("Dropout", "settings.lora.dropout", "plain"),
    "warmup": ("Warm-up steps", "settings.train.warmup_steps", "plain"),
    "tokens": ("Tokens a step, at one learning rate", "train.tokens_per_step", "plain"),
    "tokens-tuned": ("Tokens a step, each at its best learning rate", "train.tokens_per_step", "plain"),
}


@named
def final_losses(*fields: Any) -> list[float]:
    """Last validation losses of arms given as (status, losses); none where an arm failed."""
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    good = [losses[-1] for status, losses in pairs if status == "complete" and losses and losses[-1] <= losses[0]]
    return good if len(good) == len(pairs) else []


@named
def mean_of(values: list[float]) -> float | None:
    return fmean(values) if values else None


@named
def mean(*values: float) -> float:
    return fmean(values)


@named
def extent_of(values: list[float]) -> tuple[float, float] | None:
    return (min(values), max(values)) if values else None


@named
def extent(*values: float) -> tuple[float, float]:
    return min(values), max(values)


@named
def difference(a: float, b: float) -> float:
    return a - b


@named
def seed_deviation(*points: list[float]) -> float | None:
    return sensitivity.seed_deviation(points)


@named
def sweep_tolerance(*points: list[float]) -> float:
    return sensitivity.tolerance_of(points)


@named
def floor() -> float:
    return sensitivity.FLOOR


@named
def good_rates(within: float, *fields: Any) -> tuple[float, float] | None:
    span = _span(within, fields)
    return (span.low, span.high) if span else None


@named
def good_factor(within: float, *fields: Any) -> float | None:
    span = _span(within, fields)
    return span.factor if span else None


def _span(within: float, fields) -> sensitivity.GoodRange | None:
    """Of (rate, losses of its seeds) pairs, in increasing order."""
    return sensitivity.good_span(fields[::2], [fmean(losses) if losses else None for losses in fields[1::2]], within)


@named
def mean_change_interval(*windows: list[float]) -> tuple[float, float]:
    """95 % interval of the change of perplexity, from windows of as many seeds of one arm and then of another."""
    half = len(windows) // 2
    one, other = ([fmean(column) for column in zip(*some, strict=True)] for some in (windows[:half], windows[half:]))
    return paired_change_interval(one, other)


_AXES: WeakKeyDictionary[Store, tuple[dict[str, Axis], dict[str, Axis]]] = WeakKeyDictionary()  # selected once a report


def _axes(s: Store) -> tuple[dict[str, Axis], dict[str, Axis]]:
    if s not in _AXES:
        _AXES[s] = sweeps.rate_axes(s.studies.sweeps), sweeps.setting_axes(s.studies.sweeps)
    return _AXES[s]


def rates_of(s: Store) -> dict[str, Axis]:
    return _axes(s)[0]


def settings_of(s: Store) -> dict[str, Axis]:
    return _axes(s)[1]


def key(point: Point, what: str) -> str:
    return f"point.{point.name}.{what}"


def define(s: Store) -> None:
    rates, axes = rates_of(s), settings_of(s)
    points = {p.name: p for axis in (*rates.values(), *axes.values()) for p in axis.points}
    for point in points.values():
        _define_point(s, point)
    s.derive("sweep-floor", "floor", [], "decimal2")
    if not points:
        return
    losses = [key(p, "losses") for p in points.values()]
    s.derive("sweep-deviation", "seed_deviation", losses, "decimal3")
    s.derive("sweep-tolerance", "sweep_tolerance", losses, "decimal3")
    for name, axis in rates.items():
        fields = [k for p in axis.points for k in (f"sweep.{p.name}.settings.train.learning_rate@scientific", key(p, "losses"))]
        s.derive(f"good-rates.{name}", "good_rates", ["sweep-tolerance", *fields], "rates")
        s.derive(f"good-factor.{name}", "good_factor", ["sweep-tolerance", *fields], "factor")
    best = {name: axis.best for name, axis in rates.items() if axis.best and axis.open != "alone"}
    for one, other in (("qlora", "lora"), ("qlora", "full"), ("lora", "full"), ("qlora-8bit", "qlora")):
        if one in best and other in best:
            define_pair(s, best[one], best[other])
            rate = "sweep.{}.settings.train.learning_rate@scientific"
            s.derive(f"rate-ratio.{one}.{other}", "ratio", [rate.format(best[one].name), rate.format(best[other].name)], "factor")
    for axis in axes.values():
        for p in axis.points:
            if axis.best and p is not axis.best:
                define_pair(s, p, axis.best)
            if (reference := reference_point(s, axis)) and p is not reference:
                define_pair(s, p, reference)
    for one, other in attention_pairs(axes):
        define_pair(s, one, other)


def _define_point(s: Store, p: Point) -> None:
    fields = [f"sweep.{r.arm}.{x}" for r in p.records for x in ("status", "train.eval_loss")]
    s.derive(key(p, "losses"), "final_losses", fields, "numbers")
    s.derive(key(p, "loss"), "mean_of", [key(p, "losses")], "decimal3")
    s.derive(key(p, "loss-seeds"), "extent_of", [key(p, "losses")], "decimal3_interval")
    after = [f"sweep.{r.arm}.perplexity.after" for r in p.records]
    s.derive(key(p, "perplexity"), "mean", after, "decimal2")
    s.derive(key(p, "perplexity-seeds"), "extent", after, "decimal2_interval")
    s.derive(key(p, "share"), "ratio", [f"sweep.{p.name}.parameters.{x}" for x in ("trainable", "base")], "percent2")


def define_pair(s: Store, one: Point, other: Point) -> None:
    """How `one` differs from `other` in loss and, by windows of the seeds both have, in perplexity on the test split."""
    pair = f"{one.name}.{other.name}"
    s.derive(f"loss-difference.{pair}", "difference", [key(one, "loss"), key(other, "loss")], "signed3")
    s.derive(f"point-change.{pair}", "change", [key(p, "perplexity") for p in (one, other)], "percent_signed")
    if sensitivity.perplexity_difference(one, other) is not None:
        seeds = sorted(set(one.seeds) & set(other.seeds))
        arms = [r.arm for p in (one, other) for r in p.records if r.seed in seeds]
        s.derive(f"point-interval.{pair}", "mean_change_interval",
                 [f"sweep.{arm}.perplexity.window_nll_after" for arm in arms], "percent_interval")  # fmt: skip


def reference_point(s: Store, axis: Axis) -> Point | None:
    """The point of an axis that all sweeps share."""
    return axis.at(sweeps.reference_settings(s.studies.sweeps, axis.method).get(axis.key))


def attention_pairs(axes: dict[str, Axis]) -> list[tuple[Point, Point]]:
    """Attention only against all linear layers, at each rank that both have."""
    if not {"rank", "rank-attention"} <= set(axes):
        return []
    return [(p, q) for p in axes["rank-attention"].points if (q := axes["rank"].at(p.value)) is not None]
