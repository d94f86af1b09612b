"""Lesson 8's pictures of a plan: what is held at which moment, what fits a card, and where a step stands under its roof.

How it works: a plan's bytes come from `cost.peak` and are drawn as one stacked bar a row, with cards as lines across them.
A roofline has the operations for each byte moved on one axis and operations a second on the other; a `Point` is a
step or a token under the limit of its card, with what is estimated to be reached beside it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qlora_lib import style
from qlora_lib.cost.cards import Card
from qlora_lib.cost.devices import TERA
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.moments import moments
from qlora_lib.cost.peak import PARTS, step_memory
from qlora_lib.cost.roofline import bytes_moved, decode_time, flops_of, step_time
from qlora_lib.cost.workload import Workload
from qlora_lib.paths import results_dir
from qlora_lib.validation.published_gpu import Compared
from qlora_lib.validation.record import COMMAND, ValidationRecord, committed_validation, read_validation

LOOKS = dict(zip(PARTS, (  # part -> colour, hatch
    (style.BLUE, ""), (style.VERMILLION, "...."), (style.GREEN, "////"), (style.PURPLE, "xxxx"), (style.SKY, "////"),
    (style.ORANGE, ""), (style.YELLOW, "...."), (style.GREY, "----"),
)))  # fmt: skip
IMPOSSIBLE = "the stated settings need more than the figure before any activation: the run must have differed from them"
BESIDE = "beside the tensors: from, to"
POINT_LOOKS = (
    (style.BLUE, "s"), (style.GREEN, "D"), (style.ORANGE, "^"), (style.PURPLE, "o"), (style.VERMILLION, "v"), (style.SKY, "P"),
)  # fmt: skip


# --- what was measured -------------------------------------------------------------------------------


def validation_record() -> tuple[ValidationRecord | None, str]:
    """The grid as this machine measured it, else the repository's record, else None; and which of them, in words."""
    for path, whose in ((results_dir("validation.json"), "this machine's"), (committed_validation(), "the repository's")):
        if path.is_file():
            record = read_validation(path)
            p = record.provenance
            return record, f"{whose} record: {len(record.of())} training steps measured, {p.cpu}, finished {p.finished[:10]}"
    return None, f"there is no record of the grid here: not measured. To measure it: {COMMAND}"


def reasons(compared: Iterable[Compared]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows for two tables: each missed figure with its errors and the numbers of its reasons, and each reason once, with
    what it amounts to in per cent of the published figures where it can be counted."""
    missed = [c for c in compared if c.explanation]
    found: dict[str, list[float | None]] = {}  # words -> effects
    of_each = []
    for c in missed:
        given = {IMPOSSIBLE: None} if c.impossible else {}
        given |= {words: n / c.published_bytes for words, n in c.differences if n}
        given |= dict.fromkeys((*c.figure.because, *(f"left open by the source: {words}" for words in c.figure.assumed)))
        given = given or {"not explained by the settings": None}
        for words, effect in given.items():
            found.setdefault(words, []).append(effect)
        of_each.append(list(given))
    numbers = {words: str(i) for i, words in enumerate(found, 1)}
    rows = [
        [c.figure.key, f"{c.error:+.1%}", "—" if c.with_differences is None else f"{c.with_differences:+.1%}",
         ", ".join(numbers[words] for words in own)]
        for c, own in zip(missed, of_each)
    ]  # fmt: skip
    return rows, [[numbers[words], words, _amounts(effects)] for words, effects in found.items()]


def _amounts(effects: list[float | None]) -> str:
    known = sorted(e for e in effects if e is not None)
    if not known:
        return "—"
    low, high = f"{known[0]:+.1%}", f"{known[-1]:+.1%}"
    return low if low == high else f"{low} to {high}"


# --- what is held ------------------------------------------------------------------------------------


def held_at(work: Workload) -> dict[str, dict[str, int]]:
    """Moment of a step -> part -> bytes held then."""
    fixed = step_memory(work).parts
    rows = {}
    for name, held in moments(work).items():
        above = (held.gradients, held.activations, held.loss, held.temporary)
        rows[name] = {part: fixed[part] for part in PARTS[:4]} | dict(zip(PARTS[4:], above))
    return rows


def draw_moments(works: Mapping[str, Workload], limits: Mapping[str, int] | None = None) -> tuple[style.Figure, str]:
    """(figure, the same in words): all moments of some steps; a step's highest is marked."""
    rows, notes = {}, {}
    for name, work in works.items():
        found = held_at(work)
        highest = max(found, key=lambda moment: sum(found[moment].values()))
        for moment, parts in found.items():
            label = f"{name}: {moment}" if len(works) > 1 else moment
            rows[label] = parts
            if moment == highest:
                notes[label] = "the peak"
    return draw_held(rows, limits=limits, notes=notes)


def draw_held(
    rows: Mapping[str, Mapping[str, int]],
    beside: Mapping[str, tuple[int, int]] | None = None,
    limits: Mapping[str, int] | None = None,
    notes: Mapping[str, str] | None = None,
) -> tuple[style.Figure, str]:
    """(figure, the same in words): one stacked bar a row.

    Args:
        rows: label -> {part of `PARTS`: bytes}.
        beside: label -> (low, high) bytes of context and allocator, drawn behind the bar's end.
        limits: name -> bytes that can be used, a dashed line each.
        notes: label -> words behind its bar.
    """
    beside, limits, notes = beside or {}, limits or {}, notes or {}
    ends = {label: sum(parts.values()) + beside.get(label, (0, 0))[1] for label, parts in rows.items()}
    unit = style.bytes_unit([*ends.values(), *limits.values()])
    with style.page_style():
        figure = style.new_figure(2.6 + 0.52 * len(rows))
        axes = figure.subplots()
        for y, (label, parts) in enumerate(rows.items()):
            left = 0.0
            for part in (p for p in PARTS if parts.get(p)):
                color, hatch = LOOKS[part]
                axes.barh(
                    y, unit.of(parts[part]), left=left, height=0.66, color=color, hatch=hatch, edgecolor="white", linewidth=0.4,
                    label=part,
                )  # fmt: skip
                left += unit.of(parts[part])
            low, high = beside.get(label, (0, 0))
            if high:
                at = (left + unit.of(low), unit.of(high - low))
                axes.plot([left, at[0]], [y, y], color=style.INK, linewidth=0.8)
                axes.barh(y, at[1], left=at[0], height=0.3, color="white", edgecolor=style.INK, linewidth=0.8, label=BESIDE)
            said = " ".join(filter(None, (style.number(left), notes.get(label))))
            axes.annotate(
                said, (unit.of(ends[label]), y), xytext=(4, 0), textcoords="offset points", va="center", size=6.5,
                bbox={"facecolor": "white", "linewidth": 0, "pad": 0.6}, zorder=4,
            )  # fmt: skip
        for name, count in limits.items():
            axes.axvline(unit.of(count), color=style.INK, linewidth=0.9, linestyle="--")
            axes.text(
                unit.of(count), 1.0, f" {name}", transform=axes.get_xaxis_transform(), ha="left", va="bottom", size=6.5, rotation=20
            )
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(rows) - 0.4, -0.6)
        room = 1.1 + 0.011 * max(map(len, notes.values()), default=0)  # for the words behind the bars
        axes.set_xlim(0, max(1.14 * unit.of(max(limits.values(), default=0)), room * unit.of(max(ends.values()))))
        axes.set_xlabel(f"held, {unit.name}, predicted")
        found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        names = [name for name in (*PARTS, BESIDE) if name in found]
        figure.legend([found[n] for n in names], names, loc="outside upper left", ncols=5, columnspacing=1.1)
    return figure, _held_words(rows, limits, notes, unit)


def _held_words(rows, limits, notes, unit) -> str:
    words = []
    for label, parts in rows.items():
        largest = max(parts, key=parts.get)
        note = f", {notes[label]}" if label in notes else ""
        words.append(f"{label} {style.number(unit.of(sum(parts.values())))} {unit.name}, most of it {largest}{note}")
    lines = "; ".join(f"{name} {style.number(unit.of(count))}" for name, count in limits.items())
    return f"Predicted bytes held: {'; '.join(words)}." + (f" Can be used: {lines} {unit.name}." if lines else "")


# --- roofline ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """A step or a token on one card. Rates in FLOP/s."""

    intensity: float  # FLOP for each byte that must be moved
    limit: float | None  # that the card allows at this intensity
    reached: tuple[float, float] | None = None  # estimated: (low, high)


def training_point(work: Workload, card: Card) -> Point:
    """A training step; its operations are the hardware's, recompute included."""
    flops, time = flops_of(work).hardware_flops, step_time(work, card)
    limit = flops / time.limit_seconds if time.limit_seconds else None
    reached = tuple(sorted(flops / s for s in time.estimate)) if time.estimate else None
    return Point(flops / bytes_moved(work), limit, reached)


def decoding_point(work: Workload, card: Card) -> Point:
    """One token of one text, after `work.length` tokens; of attention only the projections are counted."""
    flops, time = step_flops(work.shape, "full", 1, 1).forward, decode_time(work, card)
    reached = tuple(sorted(flops * rate for rate in time.estimate)) if time.estimate else None
    return Point(flops / time.bytes_per_token, flops * time.limit if time.limit else None, reached)


def draw_roofline(card: Card, dtype: str, points: Mapping[str, Point]) -> tuple[style.Figure, str]:
    """(figure, the same in words): the roof of a card in a dtype, steps under it, and what is estimated to be reached."""
    peak, ridge = card.peaks[dtype][0], card.peaks[dtype][0] / card.bandwidth
    known = {name: p for name, p in points.items() if p.limit}
    lows = [rate for p in known.values() for rate in (p.limit, *(p.reached or ()))]
    left = min(ridge, *(p.intensity for p in known.values())) / 3
    right = 4 * max(ridge, *(p.intensity for p in known.values()))
    with style.page_style():
        figure = style.new_figure(7.2)
        axes = figure.subplots()
        roof = [left, ridge, right]
        axes.loglog(roof, [min(peak, x * card.bandwidth) / TERA for x in roof], color=style.INK, linewidth=1.2)
        axes.axvline(ridge, color=style.SOFT, linewidth=0.8, linestyle=":")
        for (name, p), (color, marker) in zip(known.items(), POINT_LOOKS):
            if p.reached:
                low, high = (rate / TERA for rate in p.reached)
                axes.plot([p.intensity] * 2, [low, p.limit / TERA], color=color, linewidth=0.9, linestyle=":")
                axes.plot([p.intensity] * 2, [low, high], color=color, linewidth=3, alpha=0.45, solid_capstyle="butt")
                axes.plot([p.intensity] * 2, [low, high], marker, color=color, markerfacecolor="white", markeredgewidth=1.2)
            axes.plot(p.intensity, p.limit / TERA, marker, color=color, markersize=6, label=name, linestyle="none")
        axes.set_xlim(left, right)
        axes.set_ylim(min(lows) / TERA / 3, 4 * peak / TERA)
        axes.text(ridge, axes.get_ylim()[0] * 1.3, f" ridge: {style.number(ridge)} FLOP a byte", size=6.5, color=style.SOFT)
        axes.text(right, 1.55 * peak / TERA, f"{card.name}, {dtype}: {style.number(peak / TERA)} TFLOP/s ", ha="right", size=6.5)
        axes.text(left * 1.1, left * 1.1 * card.bandwidth / TERA * 2.6, f"{card.bandwidth / 1e9:g} GB/s", size=6.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.set_xlabel("intensity: FLOP for each byte that must be moved")
        axes.set_ylabel("TFLOP/s")
        figure.legend(loc="outside upper left", ncols=3, title="filled: limit by the data sheet; hollow: estimated", title_fontsize=6.5)
    words = []
    for name, p in known.items():
        side = "memory" if p.intensity < ridge else "compute"
        words.append(f"{name} at {style.number(p.intensity)} FLOP a byte, bound by {side}, at most {style.number(p.limit / TERA)} TFLOP/s")
    return figure, f"Roofline of {card.name} in {dtype}, ridge at {style.number(ridge)} FLOP a byte: {'; '.join(words)}."
