"""What one setting is worth: arms that differ in it alone, their spread over seeds, and each method at its best.

How it works: a record's settings are laid out by dotted key, with the tokens of a step as one more. `one_axis` takes a
method's arms that agree with a reference in every setting but one, whichever sweep made them, so that the arm that
several sweeps share is found in each. Arms with equal settings and other seeds are one `Point`. A point is chosen by its
validation loss and reported by its perplexity on the test split, which chose nothing.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from qlora_lib.records import RunRecord

RATE, RANK, OPTIMIZER = "train.learning_rate", "lora.rank", "train.optimizer"
ALPHA, DROPOUT, WARMUP = "lora.alpha", "lora.dropout", "train.warmup_steps"
MODULES = "lora.target_modules"
TOKENS = "tokens_per_step"  # windows of a batch x batches accumulated x tokens of a window
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
ALL_LINEAR = "all-linear"

# What follows when an axis changes, at equal tokens in all.
COUPLED = {TOKENS: ("train.batch_size", "train.gradient_accumulation_steps", "train.max_steps", "train.warmup_steps")}
# What changes no loss: how a run is timed, watched and kept.
WITHOUT_EFFECT = (
    "runtime.", "train.eval_every", "train.eval_batch_size", "train.save_every", "train.keep_model", "evaluation.batch_size",
    "evaluation.new_tokens", "evaluation.repeats", "evaluation.prompt", "evaluation.samples",
)  # fmt: skip

Records = Mapping[str, RunRecord]
Score = Callable[[RunRecord], float | None]


def validation_loss(record: RunRecord) -> float | None:
    """Nats a token after the last step; None of an arm that stopped before it."""
    train = record.train
    if record.status != "complete" or train is None or not train.eval_loss or train.eval_steps[-1] != train.steps:
        return None
    return train.eval_loss[-1]


def test_perplexity(record: RunRecord) -> float | None:
    return record.perplexity and record.perplexity.after


test_perplexity.__test__ = False  # for pytest


def metric_after(name: str) -> Score:
    """A metric of a task after training, e.g. accuracy in %."""

    def score(record: RunRecord) -> float | None:
        metric = record.task and record.task.metrics.get(name)
        return metric.after if metric and record.status == "complete" else None

    return score


def failure(record: RunRecord) -> str | None:
    """Why an arm counts as failed: it stopped, or ended above the loss that it began with."""
    if record.status != "complete":
        return record.status_reason or "stopped early"
    losses = record.train.eval_loss if record.train else []
    return "the loss ended above where it began" if len(losses) > 1 and losses[-1] > losses[0] else None


@dataclass(frozen=True)
class Point:
    """Arms of equal settings, one a seed."""

    value: Any  # of the axis
    records: tuple[RunRecord, ...]
    scores: tuple[float | None, ...]  # of each; None where it stopped

    @property
    def name(self) -> str:
        """Of the first arm, by which pages name the point."""
        return self.records[0].arm

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(r.seed for r in self.records)

    @property
    def mean(self) -> float | None:
        """None where a seed has no score: the others alone would flatter the point."""
        return None if None in self.scores else fmean(self.scores)

    @property
    def failures(self) -> dict[int, str]:
        """Seed -> why it failed."""
        return {r.seed: reason for r in self.records if (reason := failure(r))}

    @property
    def perplexities(self) -> tuple[float | None, ...]:
        return tuple(test_perplexity(r) for r in self.records)

    def of_seed(self, seed: int) -> float | None:
        return dict(zip(self.seeds, self.scores, strict=True)).get(seed)


@dataclass(frozen=True)
class Axis:
    """One method along one setting, in increasing order; what the others are stands in `settings`."""

    key: str
    method: str
    points: tuple[Point, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    lower_is_better: bool = True

    def __bool__(self) -> bool:
        return bool(self.points)

    @property
    def best(self) -> Point | None:
        """The point with the best mean among those in which no seed failed."""
        fit = [p for p in self.points if p.mean is not None and not p.failures]
        return min(fit, key=lambda p: p.mean if self.lower_is_better else -p.mean, default=None)

    @property
    def open(self) -> Literal["below", "above", "alone"] | None:
        """Where the best may lie beyond what was tried; `alone`: nothing else was."""
        if self.best is None or len(self.points) < 2:
            return "alone" if self.best else None
        if self.best is self.points[0]:
            return "below"
        return "above" if self.best is self.points[-1] else None

    @property
    def seeds(self) -> tuple[int, ...]:
        """Those with which every point was run."""
        shared = set.intersection(*(set(p.seeds) for p in self.points)) if self.points else set()
        return tuple(sorted(shared))

    def at(self, value: Any) -> Point | None:
        return next((p for p in self.points if p.value == value), None)


# --- selection -------------------------------------------------------------------------------------


def flat_settings(record: RunRecord) -> dict[str, Any]:
    """The settings that bear on the loss, by dotted key; lists as tuples."""
    found: dict[str, Any] = {}

    def walk(value: Any, path: str) -> None:
        if isinstance(value, dict):
            for key, below in value.items():
                walk(below, f"{path}.{key}" if path else key)
        elif not path.startswith(WITHOUT_EFFECT):
            found[path] = tuple(value) if isinstance(value, list) else value

    walk(record.settings, "")
    if record.method not in ("lora", "qlora"):
        found = {key: value for key, value in found.items() if not key.startswith("lora.")}
    if found.get("quantization.format") == "none":
        found.pop("quantization.double_quant", None)
    if record.train and record.data.task is None:  # a task's examples differ in length, and so from seed to seed
        found[TOKENS] = record.train.tokens_per_step
    return found


def reference_settings(records: Records, method: str) -> dict[str, Any]:
    """What most arms of a method have in common: each setting's most frequent value, the first at a tie."""
    counts: dict[str, Counter] = {}
    for record in trained(records, method):
        for key, value in flat_settings(record).items():
            counts.setdefault(key, Counter())[value] += 1
    return {key: count.most_common(1)[0][0] for key, count in counts.items()}


def trained(records: Records, method: str) -> list[RunRecord]:
    return [r for r in records.values() if r.method == method and r.train is not None]


def one_axis(
    records: Records,
    method: str,
    key: str,
    where: Mapping[str, Any] | None = None,
    tuned: str | None = None,
    score: Score = validation_loss,
    lower_is_better: bool = True,
) -> Axis:
    """The arms of `method` that differ from the reference in `key` alone, as points in increasing order.

    Args:
        key: a dotted setting, or TOKENS; what is COUPLED to it may differ too, at equal tokens in all.
        where: settings in which the reference is another, e.g. `{OPTIMIZER: "adamw_8bit"}`.
        tuned: a setting that may differ too; of its values each point has the one with the best score.
    """
    reference = reference_settings(records, method) | dict(where or {})
    free = {key, *COUPLED.get(key, ()), *([tuned] if tuned else [])}
    groups: dict[tuple, list[RunRecord]] = {}
    budget = _tokens(trained(records, method), reference)
    for record in trained(records, method):
        settings = flat_settings(record)
        same = all(settings[k] == v for k, v in reference.items() if k in settings and k not in free)
        if not same or key not in settings:
            continue
        if key == TOKENS and record.status == "complete" and record.train.tokens != budget:
            continue
        groups.setdefault((settings[key], settings.get(tuned)), []).append(record)
    found: dict[Any, Point] = {}
    sign = 1 if lower_is_better else -1
    for (value, _), members in groups.items():
        by_seed: dict[int, RunRecord] = {}
        for r in sorted(members, key=lambda r: (r.seed, r.arm)):
            by_seed.setdefault(r.seed, r)
        arms = tuple(by_seed.values())
        point = Point(value, arms, tuple(score(r) for r in arms))
        known = found.get(value)
        if known is None or _rank(point, sign) < _rank(known, sign):
            found[value] = point
    points = sorted(found.values(), key=lambda p: p.value)
    return Axis(key, method, tuple(points), {k: v for k, v in reference.items() if k not in free}, lower_is_better)


def _rank(point: Point, sign: int) -> tuple[bool, float]:
    failed = point.mean is None or bool(point.failures)
    return failed, math.inf if point.mean is None else sign * point.mean


def _tokens(records: Iterable[RunRecord], reference: Mapping[str, Any]) -> int | None:
    """Trained on in all by the arms at the reference's tokens of a step."""
    counted = Counter(r.train.tokens for r in records if r.train.tokens_per_step == reference.get(TOKENS))
    return counted.most_common(1)[0][0] if counted else None


SERIES = {  # name -> method, and what sets it apart
    "full": ("full", {}),
    "lora": ("lora", {}),
    "qlora": ("qlora", {}),
    "qlora-8bit": ("qlora", {OPTIMIZER: "adamw_8bit"}),
}


def rate_axes(records: Records) -> dict[str, Axis]:
    """Each of SERIES along the learning rate; those that were not run are left out."""
    axes = {name: one_axis(records, method, RATE, where) for name, (method, where) in SERIES.items()}
    return {name: axis for name, axis in axes.items() if axis}


def at_best(records: Records) -> dict[str, Point]:
    """Each of SERIES at the learning rate with the lowest validation loss, where more than one was run."""
    return {name: axis.best for name, axis in rate_axes(records).items() if axis.best and axis.open != "alone"}


def setting_axes(records: Records, method: str = "qlora") -> dict[str, Axis]:
    """The other settings, at the reference's learning rate; the tokens of a step also each at its best rate."""
    axes = {
        "rank": one_axis(records, method, RANK, {MODULES: ALL_LINEAR}),
        "rank-attention": one_axis(records, method, RANK, {MODULES: ATTENTION}),
        "alpha": one_axis(records, method, ALPHA),
        "dropout": one_axis(records, method, DROPOUT),
        "warmup": one_axis(records, method, WARMUP),
        "tokens": one_axis(records, method, TOKENS),
        "tokens-tuned": one_axis(records, method, TOKENS, tuned=RATE),
    }
    return {name: axis for name, axis in axes.items() if len(axis.points) > 1}
