"""What the settings are worth: validation loss against learning rate, rank and the rest.

How it works: sweeps.py selects the points; here each seed is a small mark and the mean of a point a line. A band shows the
tolerance within which no difference is shown. What failed is a cross at the upper edge, since its loss would flatten the rest.
Times of sweeps are never drawn: they were made on a busy machine.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from matplotlib.ticker import FixedLocator, NullFormatter, NullLocator

from qlora_lib import sensitivity, style, sweeps
from qlora_lib.figures.parts import NothingToDraw, Records, framed, settled
from qlora_lib.style import INK, SOFT
from qlora_lib.sweeps import Axis, Point

LABELS = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA", "qlora-8bit": "QLoRA, 8-bit AdamW"}


@dataclass(frozen=True)
class Look:
    color: str
    marker: str
    line: str = "-"
    hollow: bool = False

    def seeds(self) -> dict:
        return {"marker": self.marker, "ms": 3.2, "ls": "none", "mec": self.color, "mew": 0.8,
                "mfc": "white" if self.hollow else self.color, "alpha": 0.75}  # fmt: skip


LOOKS = {
    "full": Look(style.BLUE, "s"),
    "lora": Look(style.ORANGE, "^"),
    "qlora": Look(style.GREEN, "D", hollow=True),
    "qlora-8bit": Look(style.VERMILLION, "v", "--", hollow=True),
    "rank": Look(style.GREEN, "D", hollow=True),
    "rank-attention": Look(style.PURPLE, "o", "--", hollow=True),
    "tokens-tuned": Look(style.VERMILLION, "o", "--", hollow=True),
}
PLAIN = Look(style.GREEN, "D", hollow=True)

RATE_CAPTION = (
    "Validation loss against the learning rate. Small marks: one seed each; lines: their mean; ringed: each method’s best. Bars "
    "below: the rates whose loss is within the tolerance of the best, with an arrow where the grid ends first."
)
RANK_CAPTION = (
    "Validation loss against rank, and against the parameters that the rank makes trainable. Band: the tolerance around the "
    "reference, inside which no difference is shown."
)
SETTINGS_CAPTION = "Validation loss against other settings, everything else equal. Band: the tolerance around the reference."


def rate_text(rate: float) -> str:
    """0.0005 as 5 × 10⁻⁴."""
    mantissa, exponent = f"{rate:.2e}".split("e")
    power = str(int(exponent)).translate(str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻"))
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"10{power}" if mantissa == "1" else f"{mantissa} × 10{power}"


# --- the learning rate -------------------------------------------------------------------------------


def rate_arms(found: Records, _: Records) -> list[str]:
    axes = [axis for axis in sweeps.rate_axes(found).values() if len(axis.points) > 1]
    return _arms(axes, "no method was run at two learning rates")


def draw_learning_rate(found: Records, demo: Records) -> style.Figure:
    """Loss against rate above, the good ranges below."""
    arms = rate_arms(found, demo)
    axes_of = {name: a for name, a in sweeps.rate_axes(found).items() if len(a.points) > 1}
    within = sensitivity.shared_tolerance(found)
    notes = [f"Tolerance: {within:.3f} nats a token. Every seed is drawn; a cross at the upper edge failed or lies above."]
    with style.page_style():
        figure = framed("Learning rate and validation loss", 10.6, found, arms, notes)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 0.34 * len(axes_of)))
        top = _top([p for a in axes_of.values() for p in a.points], found)
        for name, axis in axes_of.items():
            _draw_axis(upper, axis, LOOKS[name], top, label=LABELS[name])
            if best := axis.best:
                upper.plot(best.value, best.mean, "o", ms=11, mfc="none", mec=LOOKS[name].color, mew=1.1)
        _bases(upper, found, top)
        upper.set_ylabel("validation loss, nats a token")
        upper.yaxis.grid(True)
        upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(axes_of), columnspacing=1.6)
        for row, (name, axis) in enumerate(axes_of.items()):
            _draw_range(lower, row, axis, within, LOOKS[name])
        lower.set_yticks(range(len(axes_of)), [LABELS[name] for name in axes_of])
        lower.set_ylim(len(axes_of) - 0.45, -0.55)
        lower.tick_params(axis="y", length=0)
        for side in ("left", "top"):
            lower.spines[side].set_visible(False)
        lower.set_xlabel("learning rate")
        lower.set_xscale("log")
        rates = [p.value for a in axes_of.values() for p in a.points]
        lower.set_xlim(min(rates) / 1.5, max(rates) * 1.6)
        lower.xaxis.set_major_locator(FixedLocator([t for d in range(-7, 0) for t in (10.0**d, 2 * 10.0**d, 5 * 10.0**d)]))
        lower.xaxis.set_major_formatter(lambda x, _: rate_text(x))
        lower.xaxis.set_minor_formatter(NullFormatter())
        lower.xaxis.set_minor_locator(NullLocator())
        return settled(figure)


def _draw_range(axes, row: int, axis: Axis, within: float, look: Look) -> None:
    span = sensitivity.good_range(axis, within)
    if span is None:
        return
    axes.plot([span.low, span.high], [row, row], color=look.color, lw=5, solid_capstyle="butt")
    for is_open, at, to in ((span.open_below, span.low, span.low / 1.25), (span.open_above, span.high, span.high * 1.25)):
        if is_open:
            axes.annotate(
                "", (to, row), (at, row), arrowprops={"arrowstyle": "-|>", "color": look.color, "lw": 1.4, "shrinkA": 0, "shrinkB": 0}
            )
    text = f"a factor of {'at least ' if span.is_open else ''}{style.number(span.factor, 2)}" if span.factor > 1 else "one rate"
    if axis.open in ("below", "above"):
        text += f"; best at the {'lower' if axis.open == 'below' else 'upper'} end"
    if span.factor == 1:
        axes.plot(span.low, row, "|", color=look.color, ms=8, mew=2)
    right = row == 0  # the first method's rates are the lowest, and there is room to their right
    at, is_open = (span.high, span.open_above) if right else (span.low, span.open_below)
    axes.annotate(
        text, (at, row), xytext=((1 if right else -1) * (21 if is_open else 6), 0), textcoords="offset points",
        ha="left" if right else "right", va="center", size=6.5, color=INK,
    )  # fmt: skip


def _bases(axes, found: Records, top: float) -> None:
    """Where each kind of training starts."""
    starts = {}
    for record in found.values():
        if record.train and record.train.eval_loss and record.train.eval_steps[0] == 0:
            starts["NF4 base, untrained" if record.method == "qlora" else "base, untrained"] = record.train.eval_loss[0]
    for label, loss in starts.items():
        if loss <= top:
            axes.axhline(loss, color=SOFT, lw=0.7, ls=":", zorder=0)
            axes.annotate(
                label, (0.998, loss), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=6, color=SOFT,
                xytext=(0, 1), textcoords="offset points",
            )  # fmt: skip


# --- rank and the other settings -----------------------------------------------------------------------


def rank_arms(found: Records, _: Records) -> list[str]:
    axes = sweeps.setting_axes(found)
    return _arms([axes[n] for n in ("rank", "rank-attention") if n in axes], "no method was run at two ranks")


def draw_rank(found: Records, demo: Records) -> style.Figure:
    """Rank, then trainable parameters, against validation loss: all linear layers and attention only."""
    arms = rank_arms(found, demo)
    axes_of = {n: a for n, a in sweeps.setting_axes(found).items() if n in ("rank", "rank-attention")}
    label = {"rank": "all linear layers", "rank-attention": "attention only"}
    notes = [_band_note(found, "rank"), "Alpha is the same at every rank, so the adapter’s scale, alpha over rank, falls as rank grows."]
    with style.page_style():
        figure = framed("Rank and target modules", 7.8, found, arms, [n for n in notes if n])
        left, right = figure.subplots(1, 2, sharey=True)
        top = _top([p for a in axes_of.values() for p in a.points], found)
        for name, axis in axes_of.items():
            _draw_axis(left, axis, LOOKS[name], top, label=label[name])
            _draw_axis(right, axis, LOOKS[name], top, x_of=lambda p: p.records[0].parameters.trainable)
        for axes in (left, right):
            axes.set_xscale("log", base=2 if axes is left else 10)
            axes.yaxis.grid(True)
            _band(axes, found, axes_of.get("rank"))
            axes.xaxis.set_minor_locator(NullLocator())
        ranks = sorted({p.value for a in axes_of.values() for p in a.points})
        left.xaxis.set_major_locator(FixedLocator(ranks))
        left.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        left.set_xlabel("rank")
        left.set_ylabel("validation loss, nats a token")
        right.set_xlabel("trainable parameters")
        low, high = right.get_xlim()
        right.xaxis.set_major_locator(FixedLocator([t for d in range(3, 11) for t in (10**d, 2 * 10**d, 5 * 10**d) if low <= t <= high]))
        right.xaxis.set_major_formatter(lambda x, _: style.count(x, short=True))
        left.legend(loc="best")
        return settled(figure)


PANELS = {  # axis -> title, label
    "alpha": ("Alpha", "alpha"),
    "dropout": ("Dropout", "dropout"),
    "warmup": ("Warm-up", "warm-up steps"),
    "tokens": ("Effective batch", "tokens a step"),
}


def settings_arms(found: Records, _: Records) -> list[str]:
    axes = sweeps.setting_axes(found)
    return _arms([axes[n] for n in (*PANELS, "tokens-tuned") if n in axes], "no other setting was run at two values")


def draw_settings(found: Records, demo: Records) -> style.Figure:
    """Small multiples with one vertical axis."""
    arms, axes_of = settings_arms(found, demo), sweeps.setting_axes(found)
    shown = [n for n in PANELS if n in axes_of or (n == "tokens" and "tokens-tuned" in axes_of)]
    notes = [_band_note(found, *(n for n in shown if n in axes_of))]
    if "tokens-tuned" in axes_of:
        rates = ", ".join(
            f"{p.value} tokens: {rate_text(p.records[0].settings['train']['learning_rate'])}" for p in axes_of["tokens-tuned"].points
        )
        notes.append(f"Dashed: each batch at the best of its own learning rates ({rates}). Every arm trained on as many tokens.")
    with style.page_style():
        figure = framed("Alpha, dropout, warm-up, batch", 7.4, found, arms, notes)
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        names = [*shown, *(["tokens-tuned"] if "tokens-tuned" in axes_of else [])]
        top = _top([p for n in names if n in axes_of for p in axes_of[n].points], found)
        for axes, name in zip(panels, shown, strict=True):
            drawn = [(n, axes_of[n]) for n in ([name, "tokens-tuned"] if name == "tokens" else [name]) if n in axes_of]
            values = sorted({p.value for _, a in drawn for p in a.points})
            for n, axis in drawn:
                _draw_axis(axes, axis, LOOKS.get(n, PLAIN), top, x_of=lambda p, values=values: values.index(p.value))
            _band(axes, found, axes_of.get(name))
            axes.set_title(PANELS[name][0])
            axes.set_xlabel(PANELS[name][1])
            axes.set_xticks(range(len(values)), [f"{v:g}" for v in values])
            axes.set_xlim(-0.5, len(values) - 0.5)
            axes.yaxis.grid(True)
        panels[0].set_ylabel("validation loss, nats a token")
        return settled(figure)


def _reference(found: Records, axis: Axis | None) -> Point | None:
    """The point of an axis that lies on the reference of all."""
    return axis and axis.at(sweeps.reference_settings(found, axis.method).get(axis.key))


def _band(axes, found: Records, axis: Axis | None) -> None:
    point = _reference(found, axis)
    if point and point.mean is not None:
        within = sensitivity.shared_tolerance(found)
        axes.axhspan(point.mean - within, point.mean + within, color=style.FAINT, alpha=0.45, lw=0, zorder=0)


def _band_note(found: Records, *names: str) -> str:
    within = sensitivity.shared_tolerance(found)
    words = {"rank": "rank", "alpha": "alpha", "dropout": "dropout", "warmup": "warm-up", "tokens": "tokens a step"}
    known = sweeps.setting_axes(found)
    at = [f"{words[n]} {p.value:g}" for n in names if (p := _reference(found, known.get(n)))]
    return f"Band: {within:.3f} nats around the reference ({', '.join(at)})." if at else ""


def _draw_axis(axes, axis: Axis, look: Look, top: float, label: str | None = None, x_of: Callable[[Point], float] = lambda p: p.value):
    """Every seed as a mark, the means as a line, what failed or lies above `top` as a cross there."""
    mean_x, mean_y = [], []
    for point in axis.points:
        x = x_of(point)
        for seed, score in zip(point.seeds, point.scores, strict=True):
            if score is None or score > top or seed in point.failures:
                axes.plot(x, top, "x", ms=6, mew=1.4, color=look.color, clip_on=False, zorder=4)
            else:
                axes.plot(x, score, **look.seeds(), zorder=3)
        if point.mean is not None and point.mean <= top and not point.failures:
            mean_x.append(x)
            mean_y.append(point.mean)
    axes.plot(mean_x, mean_y, color=look.color, ls=look.line, lw=1.3, zorder=2)
    axes.plot([], [], color=look.color, ls=look.line, marker=look.marker, mfc="white" if look.hollow else look.color, label=label)


def _top(points: Sequence[Point], found: Records) -> float:
    """The upper edge: above all that did not fail, but not so far that the best points become one."""
    losses = [x for p in points for seed, x in zip(p.seeds, p.scores) if x is not None and seed not in p.failures]
    if not losses:
        return 1.0
    lowest, highest = min(losses), max(losses)
    starts = [r.train.eval_loss[0] for r in found.values() if r.train and r.train.eval_loss]
    edge = max(starts, default=highest) + 0.02
    return min(highest, edge) + 0.04 * (min(highest, edge) - lowest)


def _arms(axes: Sequence[Axis], reason: str) -> list[str]:
    if not any(len(axis.points) > 1 for axis in axes):
        raise NothingToDraw(reason)
    return list(dict.fromkeys(r.arm for axis in axes for p in axis.points for r in p.records))


# --- in words -----------------------------------------------------------------------------------------


def _in_words(axis: Axis, text: Callable[[Point], str]) -> str:
    def loss(p: Point) -> str:
        return "failed" if p.mean is None or p.failures else f"{p.mean:.3f}"

    return ", ".join(f"{text(p)}: {loss(p)}" for p in axis.points)


def rate_alt(found: Records, _: Records) -> str:
    rows = (f"{LABELS[n]}: {_in_words(a, lambda p: rate_text(p.value))}" for n, a in sweeps.rate_axes(found).items())
    return f"Mean validation loss by learning rate. {'; '.join(rows)}."


def rank_alt(found: Records, _: Records) -> str:
    axes = {n: a for n, a in sweeps.setting_axes(found).items() if n.startswith("rank")}
    rows = (f"{n.replace('rank-', 'rank, ')}: {_in_words(a, lambda p: f'{p.value:g}')}" for n, a in axes.items())
    return f"Mean validation loss by rank. {'; '.join(rows)}."


def settings_alt(found: Records, _: Records) -> str:
    axes = {n: a for n, a in sweeps.setting_axes(found).items() if not n.startswith("rank")}
    rows = (f"{n}: {_in_words(a, lambda p: f'{p.value:g}')}" for n, a in axes.items())
    return f"Mean validation loss by setting. {'; '.join(rows)}."
