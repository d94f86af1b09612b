"""What bytes buy: perplexity against deployed size, and what quantization alone costs.

How it works: a deployed arm is one point, its resident bytes (adapter included) against its
perplexity; the dotted steps join the arms that no other arm beats in both. Quantization alone is
the base in each data type on the same windows, so its cost has a paired interval.
"""

from qlora_lib import style
from qlora_lib.analysis import deployed, difference
from qlora_lib.figures import parts
from qlora_lib.figures.parts import PERPLEXITY, SIZE, NothingToDraw, Records, framed
from qlora_lib.style import FAINT, INK, SOFT

BYTES_CAPTION = (
    "Perplexity against the bytes that are deployed, for every arm that was scored. The dotted line "
    "joins the arms that no other arm beats in both size and perplexity."
)
COLUMNS = (0.0, 0.27, 0.88)  # of the table beside the dots, in its width
ALONE_CAPTION = (
    "Perplexity of the untrained base in each data type, on the same windows. Whiskers are paired "
    "95 % confidence intervals of the difference from the unquantized base."
)


def scored_arms(records: Records) -> list[str]:
    arms = [arm for arm in style.in_order(records) if deployed(records[arm])[0] is not None]
    if len(arms) < 2:
        raise NothingToDraw("fewer than two arms were scored")
    return arms


def quantized_arms(records: Records) -> list[str]:
    """The unquantized base, then each quantized one."""
    bases = [
        arm for arm in style.in_order(records)
        if records[arm].method == "base" and not records[arm].derived_from
        and deployed(records[arm])[0] is not None
    ]  # fmt: skip
    if "base" not in bases or len(bases) < 2:
        raise NothingToDraw("the unquantized base and a quantized one were not both scored")
    return ["base", *sorted(set(bases) - {"base"}, key=lambda arm: records[arm].perplexity.before)]


def front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Arms that no other arm beats in both coordinates (lower is better), from left to right."""
    best, kept = float("inf"), []
    for arm in sorted(points, key=lambda arm: points[arm]):
        if points[arm][1] < best:
            best = points[arm][1]
            kept.append(arm)
    return kept


def draw_quality_against_bytes(records: Records) -> style.Figure:
    """One point an arm: resident bytes deployed, perplexity."""
    arms, styles = scored_arms(records), style.arm_styles(records)
    unit = style.bytes_unit([SIZE.of(records[arm]) for arm in arms])
    points = {arm: (unit.of(SIZE.of(records[arm])), deployed(records[arm])[0]) for arm in arms}
    missing = [arm for arm in style.in_order(records) if arm not in arms]
    notes = [
        "Down and left is better; the vertical axis does not start at 0. Dotted: arms that no other "
        "arm beats in both.",
        "Hollow markers: weights stored in 8 bits or fewer.",
    ]
    if missing:
        notes[-1] += f" Perplexity {parts.NOT_MEASURED}: {parts.named(records, missing)}."
    with style.page_style():
        figure = framed("Perplexity against deployed size", 9.6, records, arms, notes)
        axes = figure.subplots()
        low, high = min(p for _, p in points.values()), max(p for _, p in points.values())
        span = max(high - low, 0.02 * high)
        axes.set_ylim(low - 0.09 * span, high + 0.09 * span)
        axes.set_xlim(0, 1.3 * max(b for b, _ in points.values()))
        axes.grid(True)
        steps = [points[arm] for arm in front(points)]
        axes.step(
            [x for x, _ in steps], [y for _, y in steps], where="post", ls=":", lw=1, color=SOFT,
            zorder=1,
        )  # fmt: skip
        for arm, (x, y) in points.items():
            axes.plot(x, y, **styles[arm].point, zorder=3)
        _label_points(axes, points, records, styles)
        axes.set_xlabel(f"resident weights, adapter included, {unit.name}")
        axes.set_ylabel("perplexity")
    return figure


def _label_points(axes, points, records, styles):
    """Names in a column to the right of each cluster of points, with leaders."""
    right, (bottom, top) = axes.get_xlim()[1], axes.get_ylim()
    clusters: list[list[str]] = []
    for arm in sorted(points, key=lambda arm: points[arm]):
        # Nearer than a label is wide: the label would lie on the next point.
        if clusters and points[arm][0] - points[clusters[-1][-1]][0] < 0.3 * right:
            clusters[-1].append(arm)
        else:
            clusters.append([arm])
    for cluster in clusters:
        column = max(points[arm][0] for arm in cluster) + 0.035 * right
        heights = parts.spread([points[arm][1] for arm in cluster], 0.052 * (top - bottom))
        over = max(0.0, max(heights) - top)
        for arm, at in zip(cluster, heights, strict=True):
            x, y = points[arm]
            axes.plot([x, column], [y, at - over], color=styles[arm].color, lw=0.5, zorder=2)
            axes.text(
                column, at - over, f" {records[arm].label}, {style.number(y, 4)}", va="center",
                size=6.5, color=INK, zorder=4,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
            )  # fmt: skip


def draw_quantization_alone(records: Records) -> style.Figure:
    """The base in each data type: perplexity, its change and the bytes."""
    arms, styles = quantized_arms(records), style.arm_styles(records)
    reference = deployed(records["base"])[0]
    unit = style.bytes_unit([SIZE.of(records[arm]) for arm in arms])
    notes = [
        "Whiskers and brackets: paired 95 % confidence interval of the difference from "
        f"{records['base'].label}; the axis does not start at 0."
    ]
    with style.page_style():
        figure = framed(
            "What quantization alone costs: the untrained base", 3.9 + 0.62 * len(arms), records,
            arms, notes,
        )  # fmt: skip
        axes, table = figure.subplots(1, 2, sharey=True, width_ratios=(1, 0.72))
        table.set_axis_off()
        axes.axvline(reference, color=SOFT, lw=0.8, ls="--", zorder=0)
        for row, arm in enumerate(arms):
            axes.axhline(row, color=FAINT, lw=0.5, zorder=0)
            value, change = deployed(records[arm])[0], "reference"
            if arm != "base":
                change = f"{_percent(value / reference)}, no interval"
                if d := difference(records, arm, "base")[0]:
                    r = d.ratio
                    axes.plot(
                        [reference * r.low, reference * r.high], [row, row],
                        color=styles[arm].color, lw=1.6, zorder=1,
                    )  # fmt: skip
                    low, high = (_percent(x).removesuffix(" %") for x in (r.low, r.high))
                    change = f"{_percent(r.value)} [{low}, {high}]"
            axes.plot(value, row, **styles[arm].point, zorder=2)
            cells = (style.number(value, 4), change, style.number(unit.of(SIZE.of(records[arm]))))
            for x, cell in zip(COLUMNS, cells, strict=True):
                table.text(
                    x, row, cell, transform=table.get_yaxis_transform(), va="center", size=6.5
                )
        headers = ("perplexity", "change [95 % CI]", unit.name)
        for x, header in zip(COLUMNS, headers, strict=True):
            table.text(
                x, -0.75, header, transform=table.get_yaxis_transform(), va="center", size=6.5,
                weight="bold",
            )  # fmt: skip
        axes.set_yticks(range(len(arms)), [parts.wrapped(records[a].label, 18) for a in arms])
        axes.set_ylim(len(arms) - 0.5, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("perplexity (less is better)")
    return figure


def _percent(ratio: float) -> str:
    return f"{100 * (ratio - 1):+.1f} %".replace("-", "\N{MINUS SIGN}")


def bytes_alt(records: Records) -> str:
    rows = (
        f"{records[a].label}: {SIZE.text(records[a])}, perplexity {PERPLEXITY.text(records[a])}"
        for a in scored_arms(records)
    )
    return f"Scatter plot of perplexity against resident bytes. {'; '.join(rows)}."


def alone_alt(records: Records) -> str:
    rows = (
        f"{records[a].label} {PERPLEXITY.text(records[a])}" for a in quantized_arms(records)
    )
    return f"Perplexity of the untrained base by data type: {', '.join(rows)}."
