"""What the records say about each other: differences with intervals, ratios, and why some cannot be had.

How it works: every arm is scored on the same windows, so two arms are compared window by window.
The difference of their mean nats a token is a difference of log-perplexities; its exponential is
the ratio of their perplexities. The interval is Student's t over the windows' differences (paired
t, 95 %): most of what makes one window harder than another cancels in the pair. It treats windows
as independent, and it says nothing about another seed or another text. Two records are first
checked to be comparable; what cannot be computed is None, and `Comparison.reasons` says why.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from qlora_lib.records import RunRecord

CONFIDENCE = 0.95
METHOD = "paired t over evaluation windows"
Aspect = Literal["perplexity", "size", "training", "decoding"]


@dataclass(frozen=True)
class Interval:
    value: float
    low: float
    high: float
    windows: int
    confidence: float = CONFIDENCE
    method: str = METHOD

    def excludes(self, x: float) -> bool:
        return not self.low <= x <= self.high


@dataclass(frozen=True)
class Difference:
    """Log-perplexity of `arm` minus that of `reference`, in nats a token."""

    arm: str
    reference: str
    nats: Interval

    @property
    def ratio(self) -> Interval:
        """Perplexity of `arm` / perplexity of `reference`."""
        n = self.nats
        return Interval(math.exp(n.value), math.exp(n.low), math.exp(n.high), n.windows)

    @property
    def verdict(self) -> Literal["better", "worse", "no difference shown"]:
        if not self.nats.excludes(0.0):
            return "no difference shown"
        return "better" if self.nats.value < 0 else "worse"


@dataclass(frozen=True)
class Comparison:
    """Everything the pages derive from a set of records. Ratios are dimensionless.

    Where a value cannot be computed it is None, and `reasons` holds a sentence under "<field>" or
    "<field>.<arm>".
    """

    reference: str | None  # the arm that others are held against: full fine-tuning, else the base
    against_reference: dict[str, Difference | None]  # each trained or derived arm
    gained: dict[str, Difference | None]  # each trained arm, after against before its training
    quantization: dict[str, Difference | None]  # each quantized base against the unquantized one
    train_then_quantize: Difference | None  # QLoRA against the reference quantized after training
    qlora_against_lora: Difference | None
    recovered: Interval | None  # share of the quantization loss: 0 none, 1 all of it
    compression: dict[str, float | None]  # bytes of the reference / bytes of the arm, adapter in
    train_speed: dict[str, float | None]  # tokens per second of the arm / of the reference
    decode_speed: dict[str, float | None]
    peak_memory: dict[str, float | None]  # peak bytes of the arm / of the reference
    reasons: dict[str, str] = field(default_factory=dict)


def deployed(record: RunRecord) -> tuple[float | None, list[float]]:
    """(perplexity, mean nats a token by window) of what the arm would be deployed as."""
    p = record.perplexity
    if p is None:
        return None, []
    if p.after is not None:
        return p.after, p.window_nll_after
    # A trained arm that was not scored after training has no deployed perplexity.
    return (None, []) if record.train is not None else (p.before, p.window_nll_before)


def training_path(record: RunRecord) -> Literal["the fast path", "the stock stack"] | None:
    """Whether qlora_lib.fast replaced anything while the arm was trained; None of an arm that was not."""
    if record.train is None:
        return None
    return "the fast path" if record.train.fast_path else "the stock stack"


def student_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t for whole degrees of freedom, by bisection.

    The distribution is the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    if not 0.5 < probability < 1 or degrees < 1:
        raise ValueError("need 0.5 < probability < 1 and at least one degree of freedom")

    def inside(t: float) -> float:  # P(|T| < t)
        angle = math.atan2(t, math.sqrt(degrees))
        cos2, term, total = math.cos(angle) ** 2, 1.0, 0.0
        odd = degrees % 2
        for k in range(1 + odd, degrees, 2):  # terms: products of (k - 1)/k cos^2
            total += term
            term *= k / (k + 1) * cos2
        if odd:
            return 2 / math.pi * (angle + math.sin(angle) * math.cos(angle) * total)
        return math.sin(angle) * total

    goal, low, high = 2 * probability - 1, 0.0, 1.0
    while inside(high) < goal:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if inside(middle) < goal else (low, middle)
    return (low + high) / 2


def paired_interval(arm: Sequence[float], reference: Sequence[float]) -> Interval:
    """Mean of `arm - reference` with its paired t interval; at least two windows."""
    d = np.asarray(arm, float) - np.asarray(reference, float)
    if d.ndim != 1 or d.size < 2:
        raise ValueError("a paired interval needs at least two windows, the same in both arms")
    half = student_quantile((1 + CONFIDENCE) / 2, d.size - 1) * d.std(ddof=1) / math.sqrt(d.size)
    return Interval(float(d.mean()), float(d.mean() - half), float(d.mean() + half), d.size)


def share_interval(part: Sequence[float], whole: Sequence[float]) -> Interval:
    """mean(part) / mean(whole) over paired windows; the error of the ratio is linearized.

    With R the ratio, the residuals part - R·whole have mean 0, and the standard error of R is
    theirs divided by mean(whole) (Cochran, Sampling Techniques, section 6.3).
    """
    part, whole = np.asarray(part, float), np.asarray(whole, float)
    ratio = part.mean() / whole.mean()
    rest = paired_interval(part, ratio * whole)
    half = (rest.high - rest.low) / 2 / abs(whole.mean())
    return Interval(float(ratio), float(ratio - half), float(ratio + half), rest.windows)


def why_not(a: RunRecord, b: RunRecord, aspect: Aspect) -> str | None:
    """Why two records cannot be compared in one aspect, or None when they can."""

    def first_differing(pairs):
        for what, x, y in pairs:
            if x != y and x is not None and y is not None:
                return f"{a.arm} and {b.arm} differ in {what}: {x} and {y}"
        return None

    for r in (a, b):
        if r.status != "complete" and aspect != "size":
            return f"{r.arm} stopped early: {r.status_reason or 'no reason recorded'}"
    common = [
        ("profile", a.profile, b.profile),
        ("model", a.model.name, b.model.name),
        ("model parameters", a.parameters.base, b.parameters.base),
    ]
    text = [
        ("seed", a.seed, b.seed),
        ("data", a.data.name, b.data.name),
        ("data revision", a.data.revision, b.data.revision),
    ]
    machine = [
        (f"the machine's {key}", getattr(a.provenance, key), getattr(b.provenance, key))
        for key in ("device", "cpu", "threads")
    ]
    if aspect == "size":
        return first_differing(common)
    if aspect == "training":
        if a.train is None or b.train is None:
            return f"{(a if a.train is None else b).arm} was not trained"
        step = ("tokens per step", a.train.tokens_per_step, b.train.tokens_per_step)
        path = ("what trained them", training_path(a), training_path(b))
        return first_differing([*common, *text, *machine, step, path])
    if aspect == "decoding":
        if a.generation is None or b.generation is None:
            return f"decoding was not measured for {(a if a.generation is None else b).arm}"
        g, h = a.generation, b.generation
        return first_differing([
            *common, *machine,
            ("new tokens", g.new_tokens, h.new_tokens),
            ("prompt tokens", g.prompt_tokens, h.prompt_tokens),
            ("decoding protocol", g.protocol, h.protocol),
            ("what made the tokens", g.engine, h.engine),
        ])
    for r in (a, b):
        if deployed(r)[0] is None:
            return f"the perplexity of {r.arm} was not measured"
    p, q = a.perplexity, b.perplexity
    pairs = [
        *common, *text,
        ("protocol", p.protocol, q.protocol),
        ("context", p.context, q.context),
        ("stride", p.stride, q.stride),
        ("tokens scored", p.tokens_scored, q.tokens_scored),
        ("number of windows", len(deployed(a)[1]), len(deployed(b)[1])),
    ]
    if a.train and b.train:
        pairs += [
            ("tokens per step", a.train.tokens_per_step, b.train.tokens_per_step),
            ("training steps", a.train.steps, b.train.steps),
        ]
    if reason := first_differing(pairs):
        return reason
    return None if len(deployed(a)[1]) > 1 else "fewer than two evaluation windows were recorded"


def difference(
    records: dict[str, RunRecord], arm: str | None, reference: str | None
) -> tuple[Difference | None, str | None]:
    """(paired difference of deployed log-perplexity, None) or (None, why not)."""
    for name in (arm, reference):
        if name not in records:
            return None, f"there is no record of {name or 'one of the two arms'}"
    a, b = records[arm], records[reference]
    if reason := why_not(a, b, "perplexity"):
        return None, reason
    return Difference(arm, reference, paired_interval(deployed(a)[1], deployed(b)[1])), None


def arm_of(records: dict[str, RunRecord], method: str) -> str | None:
    """The arm named after its method, else the first of that method that was scored."""
    if method in records:
        return method
    arms = (arm for arm, r in records.items() if r.method == method and deployed(r)[0] is not None)
    return next(arms, None)


def compare(records: dict[str, RunRecord], reference: str = "full") -> Comparison:
    """All that the pages derive from the records of one profile; `reference` is its reference arm."""
    reasons: dict[str, str] = {}
    trained = [arm for arm, r in records.items() if r.train is not None]
    derived = [arm for arm, r in records.items() if r.derived_from and arm not in trained]
    quantized_bases = [
        arm for arm, r in records.items()
        if r.method == "base" and not r.derived_from and r.size_bytes.quantized_weights
    ]
    reference = next((arm for arm in (reference, "full", "base") if arm in records), None)
    qlora, lora = arm_of(records, "qlora"), arm_of(records, "lora")
    quantized_after = next((arm for arm in derived if records[arm].derived_from == reference), None)

    def note(name, answer):
        value, reason = answer
        if reason:
            reasons[name] = reason
        return value

    def table(name, arms, against):
        arms = [arm for arm in arms if arm != against]
        return {arm: note(f"{name}.{arm}", difference(records, arm, against)) for arm in arms}

    def ratios(name, aspect, of, inverse=False):
        """{arm: of(arm) / of(reference)}, or its inverse."""
        out = {}
        for arm, record in records.items():
            if reference:
                reason = why_not(record, records[reference], aspect)
            else:
                reason = "neither full fine-tuning nor the base was run"
            out[arm] = None
            if reason:
                reasons[f"{name}.{arm}"] = reason
                continue
            x, y = of(record), of(records[reference])
            if inverse:
                x, y = y, x
            out[arm] = x / y if y else None
        return out

    return Comparison(
        reference=reference,
        against_reference=table("against_reference", [*trained, *derived], reference or "full"),
        gained={arm: note(f"gained.{arm}", _gained(records[arm])) for arm in trained},
        quantization=table("quantization", quantized_bases, "base"),
        train_then_quantize=note("train_then_quantize", difference(records, qlora, quantized_after)),
        qlora_against_lora=note("qlora_against_lora", difference(records, qlora, lora)),
        recovered=note("recovered", _recovered(records, qlora)),
        compression=ratios("compression", "size", lambda r: r.size_bytes.total, inverse=True),
        train_speed=ratios("train_speed", "training", lambda r: r.train.tokens_per_second),
        decode_speed=ratios("decode_speed", "decoding", lambda r: r.generation.tokens_per_second),
        peak_memory=ratios("peak_memory", "training", lambda r: r.train.peak_memory_bytes),
        reasons=reasons,
    )


def _gained(record: RunRecord) -> tuple[Difference | None, str | None]:
    """What training changed: after against before, on the windows of one record."""
    p = record.perplexity
    if p is None or p.before is None or p.after is None:
        return None, f"the perplexity of {record.arm} was not measured before and after"
    before, after = p.window_nll_before, p.window_nll_after
    if len(before) != len(after) or len(after) < 2:
        return None, f"{record.arm} recorded no pairs of evaluation windows"
    return Difference(record.arm, f"{record.arm} untrained", paired_interval(after, before)), None


def _recovered(records, arm: str | None) -> tuple[Interval | None, str | None]:
    """Share of what quantization cost that QLoRA won back, in log-perplexity."""
    if "base" not in records or arm is None:
        return None, f"there is no record of {'base' if arm else 'a QLoRA arm'}"
    base, qlora = records["base"], records[arm]
    if reason := why_not(qlora, base, "perplexity"):
        return None, reason
    # QLoRA's own `before` is the quantized base, on the same windows.
    start, end = qlora.perplexity.window_nll_before, deployed(qlora)[1]
    if len(start) != len(end):
        return None, "qlora was not scored before its training"
    loss = paired_interval(start, deployed(base)[1])
    if loss.low <= 0:
        return None, "quantization cost nothing measurable here, so there is nothing to recover"
    return share_interval(np.subtract(start, end), np.subtract(start, deployed(base)[1])), None
