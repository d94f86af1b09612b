"""How far predictions are from what was measured: mean absolute error, the worst case, and what large errors have in common.

How it works: an error is predicted over measured, less one. Errors are grouped by one setting at a time. A miss of more
than `LIMIT` is listed with where its bytes are missing: what was predicted wrong is one of three things, the model and
the optimizer's states, which are counted, or what rises and falls above them.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from qlora_lib.validation.errors import LIMIT, Errors
from qlora_lib.validation.grid import REAL
from qlora_lib.validation.record import Step, ValidationRecord

GROUPS: dict[str, Callable[[Step], str]] = {
    "kind": lambda s: "real" if s.model == REAL else "tiny",
    "method": lambda s: s.method,
    "checkpointing": lambda s: "with checkpointing" if s.checkpointing else "without checkpointing",
    "optimizer": lambda s: {"adamw": "AdamW, 32-bit", "adamw_8bit": "AdamW, 8-bit"}[s.optimizer],
    "model": lambda s: s.model,
}


@dataclass(frozen=True)
class Miss:
    name: str
    error: float
    explanation: str  # from the counted parts


@dataclass(frozen=True)
class Summary:
    all: Errors | None  # None: nothing was measured
    groups: dict[str, dict[str, Errors]]  # setting -> value -> errors
    misses: list[Miss]  # of more than LIMIT
    not_measured: dict[str, str]  # name -> why
    at_rest: int  # models at rest that were counted
    exact_at_rest: int  # of these, predicted to the byte
    exact_models: int  # steps whose weights, constants, adapters and buffers were predicted to the byte
    exact_optimizers: int  # steps whose optimizer states were


def summarize(record: ValidationRecord, steps: Iterable[Step] | None = None) -> Summary:
    """Of all measured steps of a record, or of some of them."""
    steps = [s for s in (record.steps if steps is None else steps) if s.measured]
    groups = {
        group: {v: errors_of(s for s in steps if value(s) == v) for v in dict.fromkeys(map(value, steps))}
        for group, value in GROUPS.items()
    }
    counted = [r for r in record.at_rest if r.measured]
    return Summary(
        all=errors_of(steps) if steps else None,
        groups=groups,
        misses=[Miss(s.name, s.error, explain(s)) for s in steps if abs(s.error) > LIMIT],
        not_measured={e.name: e.reason for e in (*record.steps, *record.at_rest) if not e.measured},
        at_rest=len(counted),
        exact_at_rest=sum(r.measured == r.predicted for r in counted),
        exact_models=sum(s.measured.model_bytes == s.predicted.model_bytes for s in steps),
        exact_optimizers=sum(s.measured.optimizer_bytes == s.predicted.optimizer_bytes for s in steps),
    )


def errors_of(steps: Iterable[Step]) -> Errors:
    return Errors.of({s.name: s.error for s in steps})


def explain(step: Step) -> str:
    """Where the bytes are missing or too many, largest first."""
    measured, predicted = step.measured, step.predicted
    above = predicted.peak_bytes - predicted.model_bytes - predicted.optimizer_bytes
    parts = {
        "the model": predicted.model_bytes - measured.model_bytes,
        "the optimizer's states": predicted.optimizer_bytes - measured.optimizer_bytes,
        f"what rises above them (predicted highest: {predicted.moment})": above - measured.above_bytes,
    }
    told = sorted(((n, d) for n, d in parts.items() if d), key=lambda x: -abs(x[1]))
    return "; ".join(f"{name}: {difference / measured.peak_bytes:+.1%} of the measured peak" for name, difference in told)


def to_text(summary: Summary) -> str:
    """A table for a terminal."""
    if summary.all is None:
        return "nothing was measured"
    lines = [f"{'predicted / measured - 1':34} {'cases':>5} {'mean':>7} {'worst':>7}"]

    def row(label: str, e: Errors) -> None:
        lines.append(f"{label:34} {e.cases:5} {e.mean_absolute:7.2%} {e.worst:+7.2%}  {e.worst_case}")

    row("peak of a step, all", summary.all)
    for group, values in summary.groups.items():
        for value, errors in values.items():
            row(f"  {group}: {value}" if group != value else f"  {value}", errors)
    lines.append(f"models at rest, predicted to the byte: {summary.exact_at_rest} of {summary.at_rest}")
    lines.append(f"models in a step: {summary.exact_models} of {summary.all.cases}, optimizer states: {summary.exact_optimizers}")
    lines += [f"miss: {m.name} {m.error:+.1%}: {m.explanation}" for m in summary.misses]
    lines += [f"not measured: {name}: {why}" for name, why in summary.not_measured.items()]
    return "\n".join(lines)
