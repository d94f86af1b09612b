"""Two figures of the memory model's errors: against what was measured here, and against what others have published.

How it works: colour and marker say the method, a hollow marker gradient checkpointing (or, of a published figure, that
its source leaves settings open). An error is predicted over measured, or over published, less one; both are drawn on an axis of
per cent around zero, with lines at 5 and 10 %. What was not measured is not drawn, and is counted in the alternative text.
"""

import textwrap

from qlora_lib import style
from qlora_lib.figures.parts import POINT, NothingToDraw, settled
from qlora_lib.style import INK, METHOD_COLOR, METHOD_MARKER, SOFT
from qlora_lib.validation.errors import Errors
from qlora_lib.validation.grid import REAL
from qlora_lib.validation.published_gpu import Compared
from qlora_lib.validation.record import DEPENDS_ON, Step, ValidationRecord
from qlora_lib.validation.summary import errors_of

END = 60  # per cent, of the axis of published figures
LEVELS = (0.10, 0.15)  # its lines
LINES = ("--", ":")
COUNTED = {"marker": "x", "linestyle": "none", "color": INK, "markersize": 3.5, "markeredgewidth": 0.8}
METHODS = {"full": "full", "lora": "LoRA", "qlora": "QLoRA"}
TICKS = {2**20: "1 MiB", 2**23: "8 MiB", 2**26: "64 MiB", 2**29: "512 MiB", 2**32: "4 GiB"}
CAPTION = (
    "Peak bytes of a training step, predicted from shapes and measured on the CPU with the stock stack, on the real "
    "model and on tiny ones. Lines: equal, and 5 and 10 % off. Hollow: with gradient checkpointing."
)
PUBLISHED_CAPTION = (
    "Memory on GPUs as others have published it, and the error of what is predicted from the settings that they "
    "state. Hollow: the source leaves settings open, and we assume them; at the right edge, where the axis ends. "
    "Crosses: with what of that program's differences can be counted."
)


def draw_validation(record: ValidationRecord) -> style.Figure:
    """(a) Predicted against measured bytes; (b) the error of each case. Raises NothingToDraw of no measured step."""
    steps = _measured(record)
    with style.page_style():
        figure = _framed(_foot(record), 9.2)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        _scatter(left, steps)
        _by_case(right, steps)
        _legend(figure, "with checkpointing")
        return settled(figure)


def validation_alt(record: ValidationRecord) -> str:
    """What the figure shows, with numbers, for who cannot see it."""
    steps = _measured(record)

    def said(label: str, errors: Errors) -> str:
        mean = style.number(100 * errors.mean_absolute, 2)
        return f"{label} {errors.cases} cases, mean {mean} %, worst {_percent(errors.worst)} ({errors.worst_case})"

    kinds = {"real model": record.of("real"), "tiny models": record.of("tiny")}
    kinds |= {METHODS[m]: [s for s in steps if s.method == m] for m in METHODS}
    parts = [said(label, errors_of(some)) for label, some in {"all": steps, **kinds}.items() if some]
    missing = len(record.steps) - len(steps)
    return f"Predicted peak over measured peak, less one: {'; '.join(parts)}" + (f"; {missing} not measured." if missing else ".")


def draw_published(compared: list[Compared]) -> style.Figure:
    """The error of each published figure, one row each. Bounds are left out: they have no error."""
    rows = [c for c in compared if c.error is not None]
    if not rows:
        raise NothingToDraw("no published figure has an error")
    with style.page_style():
        foot = "Published by the sources named; predicted by qlora_lib.cost from their settings; not measured by this project."
        figure = _framed(foot, 2.2 + 0.42 * len(rows), left=0.025)
        axes = figure.subplots()
        _bands(axes, vertical=True, levels=LEVELS)
        for y, c in enumerate(rows):
            look = _look(c.figure.work.method, hollow=not c.settings_stated)
            if 100 * c.error > END:  # told in words: its size would hide the others
                note = f"{_percent(c.error)}: impossible settings" if c.impossible else _percent(c.error)
                behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.4}  # or a line would cross it
                axes.text(END, y, f"{note}  ", ha="right", va="center", size=6, color=INK, zorder=2, bbox=behind)
                axes.plot(END, y, **{**look, "marker": ">"}, clip_on=False)
                continue
            axes.plot([0, 100 * c.error], [y, y], color=style.FAINT, linewidth=1.2, zorder=1)
            axes.plot(100 * c.error, y, **look)
            if c.with_differences is not None:
                axes.plot(100 * c.with_differences, y, **COUNTED)
        axes.set_xlim(-END, END)
        axes.set_yticks(range(len(rows)), [_row(c) for c in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("predicted / published − 1, %")
        axes.tick_params(axis="y", length=0, labelsize=6)
        _legend(figure, "settings assumed", {
            "differences counted in": COUNTED, **{f"{100 * level:.0f} % off": {"color": SOFT, "linewidth": 0.7, "linestyle": line}
                                                  for level, line in zip(LEVELS, LINES)},
        })  # fmt: skip
        return settled(figure)


def published_alt(compared: list[Compared]) -> str:
    said = [f"{_row(c)}: {_percent(c.error)}" for c in compared if c.error is not None]
    return f"Predicted over published memory, less one: {'; '.join(said)}."


# --- parts -----------------------------------------------------------------------------------------


def _measured(record: ValidationRecord) -> list[Step]:
    if not (steps := record.of()):
        raise NothingToDraw("the record has no measured step")
    return steps


def _scatter(axes, steps: list[Step]) -> None:
    ends = [s.measured.peak_bytes for s in steps] + [s.predicted.peak_bytes for s in steps]
    low, high = 0.7 * min(ends), 1.4 * max(ends)
    for off, line in ((0, "-"), (0.05, "--"), (0.10, ":")):
        for sign in (1, -1) if off else (1,):
            axes.plot([low, high], [low * (1 + sign * off), high * (1 + sign * off)], line, color=SOFT, linewidth=0.7, zorder=1)
    for s in steps:
        axes.plot(s.measured.peak_bytes, s.predicted.peak_bytes, **_look(s.method, s.checkpointing))
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
    ticks = {at: label for at, label in TICKS.items() if low < at < high}
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(list(ticks), list(ticks.values()))
        axis.set_ticks([], minor=True)
    axes.set_xlabel("measured peak")
    axes.set_ylabel("predicted peak")
    axes.set_title("(a) Predicted against measured")


def _by_case(axes, steps: list[Step]) -> None:
    """Errors from left to right: tiny models, then the real one, each by measured bytes."""
    order = sorted(steps, key=lambda s: (s.model == REAL, s.measured.peak_bytes))
    _bands(axes, vertical=False, levels=(0.05, 0.10))
    for x, s in enumerate(order):
        axes.plot(x, 100 * s.error, **_look(s.method, s.checkpointing))
    tiny = sum(s.model != REAL for s in order)
    if 0 < tiny < len(order):
        axes.axvline(tiny - 0.5, color=SOFT, linewidth=0.7)
    for label, begin, end in (("tiny models", 0, tiny), ("real model", tiny, len(order))):
        at = (begin + end) / 2 - 0.5
        if end > begin:
            axes.text(at, 0.985, label, transform=axes.get_xaxis_transform(), ha="center", va="top", size=6.5, color=SOFT)
    e = errors_of(steps)
    said = f"mean {style.number(100 * e.mean_absolute, 2)} %, worst {_percent(e.worst)}"
    axes.text(0.985, 0.02, said, transform=axes.transAxes, ha="right", va="bottom", size=6.5)
    reach = max(11.5, 115 * max(abs(s.error) for s in order))
    axes.set(ylim=(-reach, reach), xlim=(-1, len(order)))
    axes.set_xticks([])
    axes.set_xlabel("cases, by measured bytes")
    axes.set_ylabel("predicted / measured − 1, %")
    axes.set_title("(b) Error of each case")


def _bands(axes, vertical: bool, levels: tuple[float, float]) -> None:
    draw = axes.axvline if vertical else axes.axhline
    draw(0, color=SOFT, linewidth=0.8, zorder=0)
    for level, line in zip(levels, LINES):
        for sign in (1, -1):
            draw(100 * sign * level, color=SOFT, linewidth=0.7, linestyle=line, zorder=0)


def _look(method: str, hollow: bool) -> dict:
    color = METHOD_COLOR[method]
    return {
        "marker": METHOD_MARKER[method], "linestyle": "none", "markersize": 3.8, "markeredgewidth": 0.9,
        "markeredgecolor": color, "markerfacecolor": "white" if hollow else color, "zorder": 3,
    }  # fmt: skip


def _row(c: Compared) -> str:
    f = c.figure
    return f"{f.source.short}: {f.what}, {f.value:g} {f.unit}"


def _percent(error: float) -> str:
    return f"{100 * error:+.{1 if abs(error) >= 0.005 else 2}f} %".replace("-", "\N{MINUS SIGN}")


def _foot(record: ValidationRecord) -> str:
    p = record.provenance
    versions = ", ".join(f"{name} {p.versions[name]}" for name in DEPENDS_ON if name in p.versions)
    return f"Measured on: {p.cpu}, fp32 · {versions} · predicted by qlora_lib.cost, not measured"


def _framed(foot: str, height: float, left: float = 0.0) -> style.PageFigure:
    """left: share of the width that long labels get besides; the solver measures text at another resolution than the file's."""
    figure = style.new_figure(height)
    lines = textwrap.wrap(foot, 140)
    bottom = (8.2 * len(lines) + 5) * POINT / (height * style.CM)
    figure.text(0.004, 2 * POINT / (height * style.CM), "\n".join(lines), size=5.6, color=SOFT, va="bottom", linespacing=1.25)
    figure.get_layout_engine().set(rect=(left, bottom, 1 - left, 1 - bottom), w_pad=3 * POINT, h_pad=4 * POINT)
    return figure


def _legend(figure, hollow: str, more: dict[str, dict] | None = None) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], **_look(method, False), label=label) for method, label in METHODS.items()]
    handles.append(Line2D([], [], **{**_look("full", True), "markeredgecolor": INK, "marker": "o"}, label=hollow))
    handles += [Line2D([], [], **look, label=label) for label, look in (more or {}).items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles))
