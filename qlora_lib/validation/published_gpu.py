"""Memory and speed on GPUs as others have published them, beside what the memory model predicts for their settings.

How it works: `published_figures.FIGURES` types each figure with its source, its unit, what it is of, the settings that
the source (its text, or the configuration and code that it names) states, and those that it leaves open and we assume.
From the settings, and never from the figure, follow the prediction (`cost.peak`, the same that `qlora plan` prints), the
differences between that program and the stock stack that can be counted in bytes, and in words those that cannot.
Figures that say "more than" or "less than" are held to that. Published speeds (`cost.speeds`) are held against the
roofline's limit only: no step is faster than its products at the card's peak, no token than its weights can be read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.memory import optimizer_bytes, resident, state_bytes, trained_tensors, trained_width
from qlora_lib.cost.models import MODELS
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.roofline import decode_time, share_reached
from qlora_lib.cost.speeds import DECODE_SPEEDS, training_speeds
from qlora_lib.cost.workload import Workload
from qlora_lib.validation.errors import LIMIT, Errors

UNITS = {"GB": 10**9, "GiB": 2**30, "MB": 10**6, "MiB": 2**20}
# Moments of `cost.peak` at which the loss is there, and those at which nothing waits any more that the forward pass has saved.
AT_THE_LOSS = ("start of backward", "gradient of the head", "loss, in pieces")
NOTHING_WAITS = ("recomputed block", "end of backward", "optimizer")
GOAL = 0.15  # for figures whose source states its settings
OTHERWISE = "otherwise"  # of counts by moment: at all that are not named
ELSEWHERE = "at another moment: what the stock stack holds there, less its own peak"

# Weights and all else in bf16, no autocast; a loop of the program's own.
BF16 = dict(dtype="bf16", weight_dtype="bf16", adapter_dtype="bf16", device="cuda", trainer=False)
QV = ("q_proj", "v_proj")

Count = Callable[[Workload], int]
Counts = Mapping[str, Count]  # by moment


@dataclass(frozen=True)
class Source:
    short: str  # for a label
    authors: str
    title: str
    where: str  # section, table or file
    date: str  # of the version that was read


@dataclass(frozen=True)
class Difference:
    """Something that the program holds and the stock stack does not, or the other way round."""

    words: str
    count: Count | Counts  # bytes to add, from the settings: the same whenever it is held, or by moment
    when: Literal["always", "the loss", "blocks wait", "the update"] = "always"

    def bytes(self, work: Workload, moment: str | None) -> int:
        """Bytes that it adds then; nothing where it is not held."""
        if not callable(self.count):
            count = self.count.get(moment, self.count.get(OTHERWISE))
            return count(work) if count else 0
        return self.count(work) if self._held(moment) else 0

    def _held(self, moment: str | None) -> bool:
        if self.when == "the loss":
            return moment in AT_THE_LOSS
        if self.when == "the update":
            return moment == "optimizer"
        return self.when == "always" or moment not in NOTHING_WAITS


@dataclass(frozen=True)
class Figure:
    """One published amount of memory."""

    key: str
    source: Source
    what: str  # method and model, in words
    value: float
    unit: Literal["GB", "GiB", "MB", "MiB"]  # that is meant
    work: Workload
    stated: tuple[str, ...]  # settings that the source states
    assumed: tuple[str, ...] = ()  # settings that it leaves open, and what we take
    printed: str = ""  # the unit that is printed, where it is another
    unit_because: str = ""  # how one knows which is meant
    quantity: Literal["peak", "resident", "weights, gradients, states"] = "peak"
    bound: Literal["equals", "more than", "less than"] = "equals"
    because: tuple[str, ...] = ()  # what the model leaves out of that program, in words
    differs: tuple[Difference, ...] = ()  # what of it can be counted
    # Of that program, where its step has others than the stock stack has.
    moments: Callable[[Workload], Mapping[str, int]] | None = None

    @property
    def bytes(self) -> int:
        return round(self.value * UNITS[self.unit])


@dataclass(frozen=True)
class Compared:
    """A figure and what is predicted for it. Bytes."""

    figure: Figure
    published_bytes: int
    predicted_bytes: int
    moment: str | None  # of a step, at which it is highest
    holds: bool | None  # of a figure that is a bound
    error: float | None  # predicted over published, less one; None of a bound
    differences: tuple[tuple[str, int], ...]  # counted ones, from the settings: those held when that program holds the most
    with_differences: float | None  # the error with these
    impossible: str | None  # the settings as stated need more than the figure, whatever a step adds
    explanation: str | None  # of an error above LIMIT: from the settings

    @property
    def settings_stated(self) -> bool:
        return not self.figure.assumed

    @property
    def within(self) -> bool | None:
        """Whether the error is within GOAL; None of a bound."""
        return None if self.error is None else abs(self.error) <= GOAL

    @property
    def counted(self) -> float | None:
        """The error with what can be counted of the program's differences; None of a bound."""
        return self.error if self.with_differences is None else self.with_differences


@dataclass(frozen=True)
class PublishedErrors:
    """Of the figures that are no bounds, in groups that have at least one."""

    groups: dict[str, Errors]  # by GROUPS
    with_differences: dict[str, Errors]  # the same, with what can be counted of each program's differences
    within_goal: tuple[str, ...]  # keys of figures whose settings are stated: as predicted, of the stock stack
    beyond_goal: tuple[str, ...]
    counted_within_goal: tuple[str, ...]  # the same keys, with what can be counted of each program's differences
    counted_beyond_goal: tuple[str, ...]
    impossible: tuple[str, ...]  # among those beyond: the stated settings need more than the figure; in no group
    bounds_hold: int
    bounds: int


@dataclass(frozen=True)
class SpeedShare:
    """A published speed over what the card's data sheet allows at most."""

    what: str
    source: str
    tokens_per_second: float  # published
    limit_tokens_per_second: float  # predicted

    @property
    def share(self) -> float:
        """Above one, one of the two would be wrong."""
        return self.tokens_per_second / self.limit_tokens_per_second


GROUPS: dict[str, Callable[[Compared], bool]] = {
    "settings stated, 16-bit base": lambda c: c.settings_stated and c.figure.work.quantization == "none",
    "settings stated, 4-bit base": lambda c: c.settings_stated and c.figure.work.quantization != "none",
    "settings assumed": lambda c: not c.settings_stated,
}


def predicted(figure: Figure) -> tuple[int, str | None]:
    """(bytes, the moment of a step at which they are held)."""
    work = figure.work
    if figure.quantity == "resident":
        return resident(work).total, None
    if figure.quantity == "weights, gradients, states":
        tensors = trained_tensors(work)
        return resident(work).total + sum(tensors) * trained_width(work) + state_bytes(tensors), None
    memory = step_memory(work)
    return memory.peak_bytes, memory.moment


def least(work: Workload) -> int:
    """Bytes that a step of these settings holds in any case: the model, the states, and where all is trained all gradients."""
    trained = sum(trained_tensors(work)) * trained_width(work)
    return resident(work).total + optimizer_bytes(work)[0] + trained


def compare(figure: Figure) -> Compared:
    bytes_, moment = predicted(figure)
    with_all, differences = with_differences(figure)
    if figure.bound != "equals":
        holds = bytes_ > figure.bytes if figure.bound == "more than" else bytes_ < figure.bytes
        return Compared(figure, figure.bytes, bytes_, moment, holds, None, differences, None, None, None)
    error = bytes_ / figure.bytes - 1
    impossible = None
    if figure.quantity == "peak" and (needed := least(figure.work)) > figure.bytes:
        impossible = (
            f"weights, gradients and optimizer states of the stated settings are {needed / UNITS[figure.unit]:.2f} "
            f"{figure.unit} already, more than the figure; the run must have differed from them"
        )
    return Compared(
        figure, figure.bytes, bytes_, moment, None, error, differences,
        with_all / figure.bytes - 1 if figure.differs else None,
        impossible,
        _explanation(figure, differences, impossible) if abs(error) > LIMIT else None,
    )  # fmt: skip


def with_differences(figure: Figure) -> tuple[int, tuple[tuple[str, int], ...]]:
    """(bytes, and what they consist of beside the prediction) at the highest of all moments, each with what is held then."""
    work, (plain, moment) = figure.work, predicted(figure)
    held = {moment: plain}
    if figure.quantity == "peak":
        held = figure.moments(work) if figure.moments else step_memory(work).moments
    added = {name: tuple((d.words, d.bytes(work, name)) for d in figure.differs) for name in held}
    highest = max(held, key=lambda name: held[name] + sum(n for _, n in added[name]))
    parts = ((ELSEWHERE, held[highest] - plain), *added[highest]) if figure.differs else ()
    return held[highest] + sum(n for _, n in added[highest]), tuple((words, n) for words, n in parts if n)


def _explanation(figure: Figure, differences, impossible: str | None) -> str:
    unit = figure.unit
    parts = [impossible] if impossible else []
    parts += [f"{words}: {n / UNITS[unit]:+.2f} {unit}" for words, n in differences if n]
    parts += [*figure.because]
    parts += [f"left open by the source: {'; '.join(figure.assumed)}"] if figure.assumed else []
    return "; ".join(parts) or "not explained by the settings"


def to_text(compared: list[Compared]) -> str:
    """A table for a terminal."""
    lines = [f"{'':54} {'published':>12} {'predicted':>10} {'error':>7}"]
    for c in compared:
        f, unit = c.figure, UNITS[c.figure.unit]
        sign = {"equals": "", "more than": "> ", "less than": "< "}[f.bound]
        verdict = f"{c.error:+7.1%}" if c.error is not None else "  holds" if c.holds else "  fails"
        mark = "" if c.settings_stated else "  (settings assumed)"
        mark += f"  (printed as {f.printed})" if f.printed else ""
        label = f"{f.source.short}: {f.what}"
        lines.append(f"{label:54} {f'{sign}{f.value:g} {f.unit}':>12} {c.predicted_bytes / unit:10.2f} {verdict}{mark}")
        if c.explanation:
            lines.append(f"    {c.explanation}")
    errors = errors_of_published(compared)
    for name, e in errors.groups.items():
        more = errors.with_differences[name]
        lines.append(
            f"{name}: {e.cases} figures, mean {e.mean_absolute:.1%}, worst {e.worst:+.1%}; with counted differences mean "
            f"{more.mean_absolute:.1%}, worst {more.worst:+.1%}"
        )
    within, of, counted = errors.within_goal, (*errors.within_goal, *errors.beyond_goal), errors.counted_within_goal
    lines.append(
        f"settings stated, within {GOAL:.0%}: {len(within)} of {len(of)}, with counted differences {len(counted)}; impossible as "
        f"stated: {', '.join(errors.impossible) or 'none'}"
    )
    return "\n".join(lines)


def compare_all() -> list[Compared]:
    from qlora_lib.validation.published_figures import FIGURES

    return [compare(figure) for figure in FIGURES]


def errors_of_published(compared: list[Compared]) -> PublishedErrors:
    """How large the errors are, apart for figures whose settings are stated and those where we assume some."""
    known = [c for c in compared if c.error is not None]
    groups = {name: [c for c in known if belongs(c) and not c.impossible] for name, belongs in GROUPS.items()}
    stated = [c for c in known if c.settings_stated]
    bounds = [c.holds for c in compared if c.holds is not None]
    return PublishedErrors(
        groups={name: Errors.of({c.figure.key: c.error for c in some}) for name, some in groups.items() if some},
        with_differences={name: Errors.of({c.figure.key: c.counted for c in some}) for name, some in groups.items() if some},
        within_goal=tuple(c.figure.key for c in stated if c.within),
        beyond_goal=tuple(c.figure.key for c in stated if not c.within),
        counted_within_goal=tuple(c.figure.key for c in stated if abs(c.counted) <= GOAL),
        counted_beyond_goal=tuple(c.figure.key for c in stated if abs(c.counted) > GOAL),
        impossible=tuple(c.figure.key for c in stated if c.impossible),
        bounds_hold=sum(bounds),
        bounds=len(bounds),
    )


def compare_speeds() -> list[SpeedShare]:
    """Each published speed that `cost.speeds` knows."""
    shares = []
    for p in training_speeds():
        rate = p.batch * p.length * p.accumulation / p.seconds
        what = f"training, {p.model} with {p.method} on {p.card}"
        shares.append(SpeedShare(what, p.source, rate, rate / share_reached(p)))
    for p in DECODE_SPEEDS:
        card = gpu_card(p.card)
        work = Workload(
            MODELS[p.model].shape, "lora" if p.quantization == "none" else "qlora", 1, 1, quantization=p.quantization,
            double_quant=p.double_quant, dtype=card.dtype, device="cuda",
        )  # fmt: skip
        name = p.quantization + "+dq" * p.double_quant if p.quantization != "none" else card.dtype
        what = f"decoding at batch 1, {p.model} in {name} on {p.card}"
        shares.append(SpeedShare(what, p.source, p.tokens_per_second, decode_time(work, card).limit))
    return shares
