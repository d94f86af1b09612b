"""Predictions against measurements: what the ledger of the course holds, on one axis of ratios."""

from collections.abc import Sequence

from qlora_lib import style
from qlora_lib.figures.parts import NothingToDraw
from qlora_lib.notebooks.ledger import Entry
from qlora_lib.report.formats import show

WIDEST = 32.0  # ratios beyond it are drawn at the border


def draw_predictions(entries: Sequence[Entry]) -> style.Figure:
    """One row a prediction: the reader's (circle) and the rule's (square) as multiples of the measured value."""
    rows = _drawable(entries)
    if not rows:
        raise NothingToDraw("the ledger holds no prediction yet; write down guesses in the lessons")
    with style.page_style():
        figure = style.new_figure(2.2 + 0.42 * len(rows))
        axes = figure.subplots()
        axes.axvspan(1 / 1.1, 1.1, color=style.FAINT, zorder=0)
        axes.axvline(1, color=style.INK, linewidth=0.8, zorder=1)
        for y, entry in enumerate(rows):
            for predicted, look in ((entry.rule, _RULE), (entry.guess, _GUESS)):
                if predicted is not None and predicted * entry.value > 0:
                    axes.plot([_ratio(predicted, entry)], [y], zorder=3, **look)
        axes.set_yticks(range(len(rows)), [f"{e.name}: {show(e.value, e.form)}" for e in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xscale("log", base=2)
        axes.set_xlim(1 / WIDEST * 0.8, WIDEST * 1.25)
        ticks = [1 / 16, 1 / 4, 1 / 2, 1, 2, 4, 16]
        axes.set_xticks(ticks, ["1/16", "1/4", "1/2", "1", "2", "4", "16"])
        axes.minorticks_off()
        axes.grid(axis="y")
        figure.supxlabel("prediction as a multiple of what was measured (band: within a tenth)", fontsize=7)
        for label, look in (("your first prediction", _GUESS), ("the simple rule", _RULE)):
            axes.plot([], [], label=label, **look)
        figure.legend(loc="outside upper right", ncols=2)
    return figure


def predictions_alt(entries: Sequence[Entry]) -> str:
    """The same in words."""
    parts = []
    for entry in _drawable(entries):
        said = [f"you {show(entry.guess, entry.form)}"] if entry.guess is not None else []
        said += [f"the rule {show(entry.rule, entry.form)}"] if entry.rule is not None else []
        parts.append(f"{entry.name}: {', '.join(said)}; {entry.what.lower()} {show(entry.value, entry.form)}")
    return "Predictions against measurements. " + ". ".join(parts) + "."


_GUESS = {"marker": "o", "color": style.VERMILLION, "markersize": 5.5, "linestyle": "none"}
_RULE = {
    "marker": "s", "markeredgecolor": style.BLUE, "markerfacecolor": "white", "markeredgewidth": 1.2, "markersize": 5,
    "linestyle": "none",
}  # fmt: skip


def _drawable(entries: Sequence[Entry]) -> list[Entry]:
    """Those with a prediction that a ratio to the measured value can be formed of."""
    return [e for e in entries if any(p is not None and p * e.value > 0 for p in (e.guess, e.rule))]


def _ratio(predicted: float, entry: Entry) -> float:
    return min(max(predicted / entry.value, 1 / WIDEST), WIDEST)
