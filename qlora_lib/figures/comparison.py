"""Figures 1 and 2: six measures of each arm, in their own units and as ratios to the best arm.

How it works: both figures draw the six measures of `parts.MEASURES`. Lengths start at zero;
where they cannot (a logarithmic axis, or perplexities that differ by little) values are dots, which
are read by position. The whiskers at a perplexity are the paired 95 % interval of its difference
from the reference arm, laid around the arm's own value; the reference has none.
"""

import numpy as np

from qlora_lib import style
from qlora_lib.analysis import difference
from qlora_lib.figures import parts
from qlora_lib.figures.parts import MEASURES, PERPLEXITY, TRAINABLE, NothingToDraw, Records, framed
from qlora_lib.style import FAINT, INK, SOFT

COMPARISON_CAPTION = (
    "Size, training time, trainable parameters, perplexity, model FLOPs utilization and decoding "
    "speed of each arm. Whiskers are paired 95 % confidence intervals of the difference from the "
    "reference arm over the same evaluation windows."
)
RADAR_CAPTION = (
    "The same six measures as ratios to the best arm (best = 1, outward is better, linear from 0). "
    "The area has no meaning: it depends on the order of the axes."
)


def comparison_arms(records: Records) -> list[str]:
    """The unquantized base and what was trained."""
    trained = [arm for arm in style.in_order(records) if records[arm].train is not None]
    if not trained:
        raise NothingToDraw("no arm was trained")
    return [*(["base"] if "base" in records else []), *trained]


MOST_ON_RADAR = 6  # more polygons than that cannot be told apart


def radar_arms(records: Records) -> list[str]:
    """Trained arms that were scored, at most `MOST_ON_RADAR`; a ratio to the best needs two."""
    arms = [
        arm for arm in style.in_order(records)
        if records[arm].train is not None and PERPLEXITY.of(records[arm]) is not None
    ]  # fmt: skip
    if len(arms) < 2:
        raise NothingToDraw("fewer than two trained arms were scored, and a ratio needs two")
    return arms[:MOST_ON_RADAR]


def draw_comparison(records: Records) -> style.Figure:
    """Six panels, one row an arm."""
    arms = comparison_arms(records)
    reference = "full" if "full" in arms else arms[0]
    intervals = {arm: difference(records, arm, reference)[0] for arm in arms if arm != reference}
    notes = []
    if any(intervals.values()):
        notes.append(
            "Perplexity: whiskers are the paired 95 % confidence interval of the difference from "
            f"{records[reference].label}; the axis does not start at 0."
        )
    if any(records[arm].size_bytes.quantized_weights for arm in arms):
        notes.append("Hatched bars and hollow markers: weights stored in 8 bits or fewer.")
    with style.page_style():
        height = 4.3 + 2 * 0.62 * len(arms) + 0.3 * len(notes)
        figure = framed("Six measures of each arm", height, records, arms, notes)
        grid = figure.subplots(2, 3, sharey=True)
        for letter, axes, measure in zip("abcdef", grid.flat, MEASURES, strict=True):
            _panel(axes, f"({letter}) {measure.title}", measure, records, arms, intervals)
        grid[0, 0].set_ylim(len(arms) - 0.45, -0.55)
        grid[0, 0].set_yticks(range(len(arms)), [parts.wrapped(records[a].label) for a in arms])
    return figure


def _panel(axes, title, measure, records, arms, intervals):
    values = [measure.of(records[arm]) for arm in arms]
    unit = measure.unit_of(values)
    drawn = [unit.of(v) for v in values if v is not None]
    styles = style.arm_styles(records)
    dots = measure in (TRAINABLE, PERPLEXITY)
    ends = {}  # where a row's value label goes
    for row, (arm, value) in enumerate(zip(arms, values, strict=True)):
        if value is None:
            axes.annotate(
                measure.absent(records[arm]), (0, row), xycoords=("axes fraction", "data"),
                xytext=(3, 0), textcoords="offset points", va="center", size=6.5, style="italic",
                color=SOFT,
            )  # fmt: skip
            continue
        ends[row] = x = unit.of(value)
        if dots:
            axes.axhline(row, color=FAINT, lw=0.5, zorder=0)
            if measure is PERPLEXITY and intervals.get(arm):
                n = intervals[arm].nats
                low, high = (x * np.exp(edge - n.value) for edge in (n.low, n.high))
                axes.plot([low, high], [row, row], color=styles[arm].color, lw=1.6, zorder=1)
                ends[row] = high
            axes.plot(x, row, **styles[arm].point, zorder=2)
        else:
            axes.barh(row, x, height=0.66, **styles[arm].bar)
    for row, end in ends.items():
        value = unit.of(values[row])
        text = style.count(value) if measure is TRAINABLE else style.number(value, measure.digits)
        axes.annotate(
            text, (end, row), xytext=(5 if dots else 3, 0), textcoords="offset points",
            va="center", size=6.5, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8} if dots else None,
        )  # fmt: skip
    _limits(axes, measure, drawn, max(ends.values(), default=1.0))
    axes.set_title(title)
    suffix = f", {unit.name}" if unit.name else ""
    scale = ", log scale" if measure is TRAINABLE else ""
    axes.set_xlabel(f"{measure.quantity}{suffix}{scale}\n{measure.direction}")
    axes.tick_params(axis="y", length=0)


def _limits(axes, measure, drawn, end):
    """Room on the right for the value labels; dots keep clear of the axis."""
    if not drawn:
        axes.set_xticks([])
        axes.set_xlim(0, 1)
    elif measure is TRAINABLE:
        low, high = np.log10(min(drawn)), np.log10(max(drawn))
        span = max(high - low, 1.0)
        axes.set_xscale("log")
        axes.set_xlim(10 ** (low - 0.15 * span), 10 ** (high + 0.65 * span))
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: style.count(value, short=True))
    elif measure is PERPLEXITY:
        span = max(end - min(drawn), 0.02 * end)
        axes.set_xlim(min(drawn) - 0.15 * span, end + 0.55 * span)
        axes.locator_params(axis="x", nbins=4)
    else:
        axes.set_xlim(0, 1.38 * end if end else 1)
        axes.locator_params(axis="x", nbins=4)


def ratios_to_best(records: Records, arms) -> dict[str, list[float | None]]:
    """For each arm, each measure divided by (or dividing) the best arm's: best 1, higher better."""
    table = {arm: [] for arm in arms}
    for measure in MEASURES:
        values = [v for arm in arms if (v := measure.of(records[arm]))]
        best = (min if measure.lower_is_better else max)(values, default=None)
        for arm in arms:
            value = measure.of(records[arm])
            if not value:
                table[arm].append(None)
            else:
                table[arm].append(best / value if measure.lower_is_better else value / best)
    return table


def draw_radar(records: Records) -> style.Figure:
    """Six ratios on a wheel, and the same numbers in a table beside it."""
    arms = radar_arms(records)
    table, styles = ratios_to_best(records, arms), style.arm_styles(records)
    angles = np.linspace(0, 2 * np.pi, len(MEASURES), endpoint=False)
    notes = [
        "Each axis is the ratio to the best arm: best = 1, linear from 0 at the centre, outward is "
        "better. Where less is better (size, time, parameters, perplexity) it is best / value. The "
        "area has no meaning."
    ]
    with style.page_style():
        figure = framed("Six measures as ratios to the best arm", 8.8, records, arms, notes)
        left, right = figure.subfigures(1, 2, width_ratios=(1.05 if len(arms) < 5 else 0.85, 1))
        axes = left.add_subplot(projection="polar")
        axes.set_theta_zero_location("N")
        axes.set_theta_direction(-1)
        axes.set_ylim(0, 1.06)
        axes.set_xticks(angles, [parts.wrapped(m.title, 14) for m in MEASURES])
        axes.tick_params(axis="x", pad=3, labelsize=7)
        for label, angle in zip(axes.get_xticklabels(), angles, strict=True):
            side = round(np.sin(angle), 6)
            label.set_horizontalalignment("left" if side > 0 else "right" if side < 0 else "center")
        axes.set_yticks([0.25, 0.5, 0.75, 1.0], ["0.25", "0.5", "0.75", "1 = best"])
        axes.set_rlabel_position(30)
        axes.tick_params(axis="y", labelsize=5.5, labelcolor=SOFT)
        axes.grid(True)
        axes.spines["polar"].set_visible(False)
        for arm in arms:
            ratio = [np.nan if r is None else r for r in table[arm]]
            axes.plot(
                [*angles, angles[0]], [*ratio, ratio[0]], lw=1.3, ls=styles[arm].line,
                clip_on=False, **styles[arm].point,
            )  # fmt: skip
        _ratio_table(right.subplots(), records, arms, table, styles)
    return figure


def _ratio_table(axes, records, arms, table, styles):
    """Columns are arms, rows are measures; the same ratios as on the wheel."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(len(MEASURES) + 0.6, -1.8)
    head = 6.5 if len(arms) < 5 else 5.5
    axes.text(0, -0.35, "ratio to best\n(best = 1)", size=6.5, color=SOFT, va="bottom")
    first = 0.45 if len(arms) < 5 else 0.4
    columns = first + (np.arange(len(arms)) + 0.5) * (1 - first) / len(arms)
    for x, arm in zip(columns, arms, strict=True):
        axes.plot(x, -1.35, **styles[arm].point, clip_on=False)
        label = parts.wrapped(records[arm].label, 24 // len(arms))
        axes.text(x, -0.35, label, ha="center", va="bottom", size=head, weight="bold")
    for row, measure in enumerate(MEASURES):
        axes.axhline(row - 0.15, color=FAINT, lw=0.5)
        axes.text(0, row + 0.35, measure.title, va="center", size=6.5)
        for x, arm in zip(columns, arms, strict=True):
            ratio = table[arm][row]
            best = ratio == 1.0
            text = "not\nmeasured" if ratio is None else f"{ratio:.{3 if ratio < 0.1 else 2}f}"
            axes.text(
                x, row + 0.35, text, ha="center", va="center", size=5.5 if ratio is None else 6.5,
                weight="bold" if best else "normal", style="italic" if ratio is None else "normal",
                color=SOFT if ratio is None else INK,
            )  # fmt: skip
    axes.axhline(len(MEASURES) - 0.15, color=FAINT, lw=0.5)


def comparison_alt(records: Records) -> str:
    arms = comparison_arms(records)
    panels = (
        f"{m.title}: " + ", ".join(f"{records[a].label} {m.text(records[a])}" for a in arms)
        for m in MEASURES
    )
    return f"Six panels, one row for each of {parts.named(records, arms)}. {'; '.join(panels)}."


def radar_alt(records: Records) -> str:
    arms = radar_arms(records)
    table = ratios_to_best(records, arms)

    def row(arm):
        pairs = zip(MEASURES, table[arm], strict=True)
        return ", ".join(
            f"{m.title.lower()} {parts.NOT_MEASURED if r is None else style.number(r, 2)}"
            for m, r in pairs
        )

    rows = "; ".join(f"{records[arm].label}: {row(arm)}" for arm in arms)
    return f"Radar chart of ratios to the best arm, 1 being best. {rows}."
