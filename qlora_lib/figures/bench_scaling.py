"""Two figures of a bench record: how time and memory grow, and where the time of a 4-bit token goes.

How it works: a panel of the first is one series in logarithms on both axes, so that a power law is a straight line; its
legend gives each arm's fitted exponent, and a point that was not measured is left out of the line. A bar of the
second is the time of one token, its pieces the published causes and the rest. Negative rests are drawn to the left
of zero. What holds no point is written as not measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from qlora_lib import style
from qlora_lib.bench.record import BenchRecord, Cause, ScalingPoint
from qlora_lib.figures.bench import framed
from qlora_lib.figures.parts import NOT_MEASURED
from qlora_lib.style import INK, SOFT

# arm -> (label, look of its line): grey is stock, as everywhere; hollow markers are 4-bit weights.
LINES = {
    "qlora.stock": ("QLoRA, stock", {"color": style.GREY, "marker": "D", "markerfacecolor": "white", "linestyle": "--"}),
    "qlora.fast": ("QLoRA, qlora_lib", {"color": style.GREEN, "marker": "D", "markerfacecolor": "white"}),
    "full.fast": ("full, qlora_lib", {"color": style.BLUE, "marker": "s"}),
    "fp32.stock": ("fp32, stock", {"color": style.BLUE, "marker": "o", "linestyle": "--"}),
    "nf4dq_adapter.stock": (
        "NF4 + DQ, adapter, stock", {"color": style.GREY, "marker": "D", "markerfacecolor": "white", "linestyle": "--"}
    ),
    "nf4dq_adapter.fast": (
        "NF4 + DQ, adapter, qlora_lib", {"color": style.GREEN, "marker": "D", "markerfacecolor": "white"}
    ),
}  # fmt: skip
TRAINED = ("qlora.stock", "qlora.fast", "full.fast")
DECODED = ("fp32.stock", "nf4dq_adapter.stock", "nf4dq_adapter.fast")


@dataclass(frozen=True)
class Panel:
    title: str
    series: str
    x: str  # what the axis counts
    quantity: str  # of the fit
    value: Callable[[ScalingPoint], float | None]
    y: str  # the axis, with {} for the unit
    unit: Callable[[Sequence[float]], style.Unit]


def _token_seconds(point: ScalingPoint) -> float | None:
    return point.median_seconds and point.median_seconds / point.tokens


LENGTH, BATCH = "tokens in the sequence, batch 1", "sequences of {batch_length} tokens"
STEP = ("seconds", attrgetter("median_seconds"), "{} a step", style.seconds_unit)
PEAK = ("peak_tensor_bytes", attrgetter("peak_tensor_bytes"), "peak of all tensors, {}", style.bytes_unit)
TOKEN = ("seconds", _token_seconds, "{} a token", style.seconds_unit)
SPEED = ("seconds", attrgetter("tokens_per_second"), "new tokens/s", lambda _: style.Unit("", 1))
FIRST = ("seconds", attrgetter("median_seconds"), "{} to the first token", style.seconds_unit)
PANELS = (
    Panel("(a) Step time, length", "training.length", LENGTH, *STEP),
    Panel("(b) Step time, batch", "training.batch", BATCH, *STEP),
    Panel("(c) Step memory, length", "training.length", LENGTH, *PEAK),
    Panel("(d) Step memory, batch", "training.batch", BATCH, *PEAK),
    Panel("(e) Decoding, context", "decode.context", "tokens in the cache, batch 1", *TOKEN),
    Panel("(f) Decoding, batch", "decode.batch", "sequences, {contexts} tokens in the cache", *SPEED),
    Panel("(g) Time to the first token", "first_token.prompt", "tokens in the prompt, batch 1", *FIRST),
)

SCALING_CAPTION = (
    "How a training step grows with length and batch, and decoding with the context and with the sequences made at a "
    "time: the stock stack and this library, measured in turns; both axes logarithmic. Beside each panel: the exponent k of "
    "y ~ xᵏ, fitted to time or bytes by least squares of the logarithms (in (f) to the time, so 0 is a batch for nothing). "
    "This library makes one sequence with its compiled decoder and several with transformers' generate, so these are not "
    "one line."
)
CAUSES_CAPTION = (
    "One token of a 4-bit model with an adapter at batch 1, taken apart into the three causes that the study gives for "
    "QLoRA's slow decoding. Where weights are dequantized inside a product, that part cannot be told from the rest. "
    "Dashed: a token of the stock stack in fp32."
)

CAUSES = {  # cause -> look of its piece
    "dequantization": {"facecolor": style.VERMILLION, "hatch": "////", "edgecolor": "white", "linewidth": 0},
    "adapter products": {"facecolor": style.ORANGE, "hatch": "....", "edgecolor": "white", "linewidth": 0},
    "memory traffic": {"facecolor": style.SKY, "hatch": "\\\\\\\\", "edgecolor": "white", "linewidth": 0},
    "everything else": {"facecolor": "#b5b5b5", "edgecolor": "white", "linewidth": 0},
}
UNFUSED = "nf4dq_adapter.stock_unfused"
TOKENS = {UNFUSED: "stock, not fused", "nf4dq_adapter.stock": "stock", "nf4dq_adapter.fast": "qlora_lib"}  # arm -> label
REFERENCE = {"color": style.BLUE, "linestyle": (0, (3, 1.5)), "linewidth": 1.2}
TICKS = ((500, (1,)), (30, (1, 3)), (6, (1, 2, 5)), (0, (1, 2, 3, 4, 6, 8)))  # more than this span -> numbers in a decade


# --- scaling -------------------------------------------------------------------------------------


def draw_scaling(record: BenchRecord) -> style.Figure:
    """Seven panels: step time and peak memory by length and batch; decoding by context and batch; the first token."""
    with style.page_style():
        figure = framed(record, record.settings.get("scaling_repeats", record.settings["repeats"]), 21.0)
        cells = figure.subplots(4, 2).flatten()
        for axes, panel in zip(cells, PANELS, strict=False):  # the last cell is the key's
            _series(axes, panel, record)
        _key(cells[-1])
    return figure


def scaling_alt(record: BenchRecord) -> str:
    """What the figure shows, with numbers, for who cannot see it."""
    exponents = {(f.series, f.arm, f.quantity): f.exponent for f in record.fits}
    said = []
    for panel in PANELS:
        arms = []
        for arm, points in _by_arm(record, panel.series).items():
            found = [(p.x, y) for p in points if (y := panel.value(p)) is not None]
            if not found:
                arms.append(f"{LINES[arm][0]} {NOT_MEASURED}")
                continue
            unit = panel.unit([y for _, y in found])
            ends = " to ".join(f"{style.number(unit.of(y))} at {x}" for x, y in dict.fromkeys((found[0], found[-1])))
            k = exponents.get((panel.series, arm, panel.quantity))
            fitted = "" if k is None else f", exponent {_exponent(k)}"
            arms.append(f"{LINES[arm][0]} {ends} ({panel.y.format(unit.name)}){fitted}")
        said.append(f"{panel.title[4:]}: {'; '.join(arms) or NOT_MEASURED}")
    return f"Panels with logarithmic axes. {'. '.join(said)}."


def _series(axes, panel: Panel, record: BenchRecord) -> None:
    arms = _by_arm(record, panel.series)
    shown = [y for points in arms.values() for p in points if (y := panel.value(p)) is not None]
    axes.set_title(panel.title)
    grid = record.settings.get("grid", {})
    axes.set_xlabel(panel.x.format(batch_length=grid.get("batch_length", "n"), contexts=grid.get("contexts", "n")[0]))
    unit = panel.unit(shown or [2.0**31])  # s, GiB
    axes.set_ylabel(panel.y.format(unit.name))
    if not shown:
        axes.text(0.5, 0.5, NOT_MEASURED, transform=axes.transAxes, ha="center", va="center", style="italic", color=SOFT)
        axes.set_xticks([])
        axes.set_yticks([])
        return
    exponents = {f.arm: f.exponent for f in record.fits if (f.series, f.quantity) == (panel.series, panel.quantity)}
    for arm, points in arms.items():
        found = {p.what: [] for p in points}  # two ways of decoding are no one line
        for p in points:
            if (y := panel.value(p)) is not None:
                found[p.what].append((p.x, unit.of(y)))
        k = exponents.get(arm)
        measured = any(found.values())
        label = NOT_MEASURED if not measured else "k not fitted" if k is None else f"k = {_exponent(k)}"
        axes.plot([], [], **LINES[arm][1], label=label)
        for pairs in filter(None, found.values()):
            axes.plot(*zip(*pairs), **LINES[arm][1])
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    _ticks(axes, sorted({p.x for points in arms.values() for p in points}), [unit.of(y) for y in shown])
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), handlelength=2.6)


def _ticks(axes, xs: Sequence[int], ys: Sequence[float]) -> None:
    """Ticks at the places that were measured; two or more numbers on the other axis, none as a power of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xticks(xs, [f"{x:,}" for x in xs])
    axes.xaxis.set_minor_locator(NullLocator())
    low, high = min(ys), max(ys)
    room = max(1.15, (high / low) ** 0.12, (3.1 * low / high) ** 0.5)  # a span of 3 holds two ticks wherever it begins
    low, high = low / room, high * room
    subs = next(subs for span, subs in TICKS if high / low > span)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs, numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: style.number(y, 1) if y < 1e5 else f"{y:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y")


def _key(axes) -> None:
    """What the lines are, once for all panels."""
    from matplotlib.lines import Line2D

    axes.axis("off")
    for title, arms, y in (("Training", TRAINED, 1.0), ("Decoding, first token", DECODED, 0.48)):
        handles = [Line2D([], [], **LINES[arm][1], label=LINES[arm][0]) for arm in arms]
        key = axes.legend(
            handles=handles, title=title, loc="upper left", bbox_to_anchor=(0, y), alignment="left", handlelength=2.6,
            title_fontproperties={"weight": "bold", "size": 7},
        )  # fmt: skip
        axes.add_artist(key)  # a second legend takes the place of the first
    axes.legend_ = None  # or the last is drawn twice


def _by_arm(record: BenchRecord, series: str) -> dict[str, list[ScalingPoint]]:
    points = [p for p in record.scaling if p.series == series]
    return {arm: own for arm in LINES if (own := sorted((p for p in points if p.arm == arm), key=lambda p: p.x))}


def _exponent(k: float) -> str:
    return f"{k:.2f}".replace("-", "\N{MINUS SIGN}")


# --- causes --------------------------------------------------------------------------------------


def draw_causes(record: BenchRecord) -> style.Figure:
    """A stacked bar for a token of each arm."""
    arms = _by_token(record) or dict.fromkeys(("nf4dq_adapter.stock", "nf4dq_adapter.fast"), [])
    reference = fp32_seconds(record)
    totals = [_total(own) for own in arms.values()]
    unit = style.seconds_unit([*totals, reference])
    with style.page_style():
        figure = framed(record, record.settings.get("scaling_repeats", record.settings["repeats"]), 3.4 + 1.25 * len(arms))
        axes = figure.subplots()
        for y, own in enumerate(arms.values()):
            _bar(axes, y, own, unit)
        if reference is not None:
            axes.axvline(unit.of(reference), **REFERENCE)
        axes.axvline(0, color=SOFT, linewidth=0.6)
        axes.set_yticks(range(len(arms)), [_label(arm, own) for arm, own in arms.items()])
        axes.set_ylim(len(arms) - 0.45, -0.55)
        low, high = axes.get_xlim()
        axes.set_xlim(min(low, 0), 1.12 * high)  # room for the sums
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{unit.name} a token, batch 1\nless is better")
        _causes_legend(figure, reference is not None)
    return figure


def causes_alt(record: BenchRecord) -> str:
    """What the figure shows, with numbers, for who cannot see it."""

    def said(seconds: float | None) -> str:
        if seconds is None:
            return "not told apart"
        unit = style.seconds_unit([seconds])
        return f"{style.number(unit.of(seconds))} {unit.name}"

    arms, bars = _by_token(record), []
    for arm, own in arms.items():
        label, total = TOKENS[arm], _total(own)
        pieces = ", ".join(f"{c.cause} {said(c.seconds_per_token)}" for c in own)
        bars.append(f"{label}: {NOT_MEASURED}" if total is None else f"{label} {said(total)}: {pieces}")
    reference = fp32_seconds(record)
    line = "" if reference is None else f" A dashed line at {said(reference)}: a token of the stock stack in fp32."
    return f"Stacked bars of one token's time. {'; '.join(bars) or NOT_MEASURED}.{line}"


def fp32_seconds(record: BenchRecord) -> float | None:
    """Seconds a token of stock in fp32: after the shortest cache, as the causes are measured, else of the decode part."""
    points = [p for p in record.scaling if (p.series, p.arm) == ("decode.context", "fp32.stock") and p.tokens_per_second]
    found = min(points, key=lambda p: p.x, default=None) or record.measurement("decode.fp32.stock")
    return 1 / found.tokens_per_second if found and found.tokens_per_second else None


def _by_token(record: BenchRecord) -> dict[str, list[Cause]]:
    return {arm: own for arm in TOKENS if (own := [c for c in record.causes if c.arm == arm])}


def _label(arm: str, own: Sequence[Cause]) -> str:
    if any(c.cause == "dequantization" and c.seconds_per_token is None for c in own) and _total(own) is not None:
        return f"{TOKENS[arm]},\ndequantization\nin the rest"
    return TOKENS[arm]


def _total(own: Sequence[Cause]) -> float | None:
    known = [c.seconds_per_token for c in own if c.seconds_per_token is not None]
    return sum(known) if known else None


def _bar(axes, y: int, own: Sequence[Cause], unit: style.Unit) -> None:
    total = _total(own)
    if total is None:
        axes.annotate(
            NOT_MEASURED, (0, y), xytext=(4, 0), textcoords="offset points", va="center", size=6.5, style="italic", color=SOFT
        )
        return
    right = left = 0.0
    seconds = {c.cause: c.seconds_per_token for c in own}
    for cause, look in CAUSES.items():
        if not (value := unit.of(seconds.get(cause) or 0.0)):
            continue
        axes.barh(y, value, left=right if value > 0 else left, height=0.62, **look)
        right, left = (right + value, left) if value > 0 else (right, left + value)
    axes.annotate(
        f"{style.number(unit.of(total))} {unit.name}", (right, y), xytext=(4, 0), textcoords="offset points", va="center",
        size=6.5, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6}, zorder=4,
    )  # fmt: skip


def _causes_legend(figure, with_reference: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(**look, label=cause) for cause, look in CAUSES.items()]
    if with_reference:
        handles.append(Line2D([], [], **REFERENCE, label="fp32, stock"))
    figure.legend(handles=handles, loc="outside upper left", ncols=5)
