"""Lesson 11, its second half: what a rank costs, what alpha does with it, and what a sweep of learning rates shows."""

import math
import statistics

from qlora_lib import style
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.figures.sweeps import rate_text
from qlora_lib.sensitivity import good_span

# --- 11.4 trainable parameters ---------------------------------------------------------------------


def trainable(rank: int, layers: int, hidden: int, kv_width: int, intermediate: int) -> list[int]:
    """[attention only, all linear layers]."""
    attention = 2 * (hidden + hidden) + 2 * (hidden + kv_width)
    return [layers * rank * attention, layers * rank * (attention + 3 * (hidden + intermediate))]


def _weights(rank, layers, hidden, kv_width, intermediate) -> list[int]:
    attention = 2 * hidden * hidden + 2 * hidden * kv_width
    return [layers * attention, layers * (attention + 3 * hidden * intermediate)]


def _one_factor(rank, layers, hidden, kv_width, intermediate) -> list[int]:
    attention = 4 * hidden
    return [layers * rank * attention, layers * rank * (attention + 2 * hidden + intermediate)]


def _two_projections(rank, layers, hidden, kv_width, intermediate) -> list[int]:
    attention = 2 * (hidden + hidden) + 2 * (hidden + kv_width)
    return [layers * rank * attention, layers * rank * (attention + 2 * (hidden + intermediate))]


count = Function(
    key="11.4",
    title="Trainable parameters at a rank",
    axis="parameters",
    expected=trainable,
    cases=lambda: [
        Case("SmolLM2-135M at rank 16", (16, 30, 576, 192, 1536)),
        Case("SmolLM2-135M at rank 4", (4, 30, 576, 192, 1536)),
        Case("a model of the size of Llama-3.1-8B at rank 8", (8, 32, 4096, 1024, 14_336)),
    ],
    explain="Both grow with the rank; the MLP's three wide layers have most of what all-linear trains.",
    mistakes=(
        Mistake(
            name="weights of the frozen matrices were counted",
            why="An adapter has r (in + out) numbers for a matrix of in × out.",
            answer=_weights,
        ),
        Mistake(name="A was counted without B", why="Both factors are trained: r × in and out × r.", answer=_one_factor),
        Mistake(
            name="keys and values were taken as wide as queries",
            why="With grouped queries their outputs are narrower.",
            answer=lambda r, layers, h, k, m: trainable(r, layers, h, h, m),
        ),
        Mistake(name="two matrices of the MLP were counted", why="There are gate, up and down.", answer=_two_projections),
        Mistake(
            name="one layer was counted",
            why="Every layer has adapters of its own.",
            answer=lambda r, layers, h, k, m: trainable(r, 1, h, k, m),
        ),
        Mistake(
            name="the MLP alone was returned for all linear layers",
            why="All linear layers are the attention's four and the MLP's three.",
            answer=lambda r, layers, h, k, m: [trainable(r, layers, h, k, m)[0], layers * r * 3 * (h + m)],
        ),
    ),
)


# --- 11.5 alpha when the rank changes --------------------------------------------------------------

OLD_RANK, NEW_RANK, ALPHA = 16, 64, 16

scale = Number(
    key="11.5",
    title="Alpha when the rank changes",
    unit="alpha",
    expected=lambda: ALPHA * NEW_RANK / OLD_RANK,
    explain="The scale stays alpha over rank, here 1. A rank that is swept at one alpha sweeps the scale with it.",
    mistakes=(
        Mistake(
            name="alpha was kept",
            why="Then the scale, alpha over rank, falls to a quarter, and each pair of directions learns as if at a lower rate.",
            answer=lambda: ALPHA,
        ),
        Mistake(name="alpha was divided", why="The rank stands in the divisor of the scale: alpha grows with it.", answer=lambda: ALPHA * OLD_RANK / NEW_RANK),
        Mistake(
            name="the root of the rank was taken",
            why="That keeps alpha/√r, the scale of rank-stabilized LoRA; the task has alpha/r.",
            answer=lambda: ALPHA * math.sqrt(NEW_RANK / OLD_RANK),
        ),
        Mistake(name="twice the rank was taken", why="A common rule, but it doubles the scale of this setting.", answer=lambda: 2 * NEW_RANK),
        Mistake(name="the scale was returned", why="The task asks for the alpha that keeps it.", answer=lambda: ALPHA / OLD_RANK),
    ),
)


# --- 11.6 the good range ---------------------------------------------------------------------------

RATES = [5e-4, 1e-3, 2e-3, 4e-3, 8e-3]


def good(rates: list[float], losses: list[float], within: float) -> list[float]:
    """[lowest, highest] good rate, as exponents of ten."""
    span = good_span(rates, losses, within)
    return [math.log10(span.low), math.log10(span.high)]


def _on_the_grid(rates, losses, within) -> list[float]:
    kept = [r for r, x in zip(rates, losses) if x <= min(losses) + within]
    return [math.log10(kept[0]), math.log10(kept[-1])]


def _walk(rates, losses, limit, cross) -> list[float]:
    best, ends = losses.index(min(losses)), []
    for step in (-1, 1):
        i = best
        while 0 <= i + step < len(rates) and losses[i + step] <= limit:
            i += step
        j = i + step
        ends.append(cross(rates[i], rates[j], (limit - losses[i]) / (losses[j] - losses[i])) if 0 <= j < len(rates) else rates[i])
    return [math.log10(end) for end in ends]


def _logarithmic(a: float, b: float, share: float) -> float:
    return math.exp(math.log(a) + share * math.log(b / a))


good_rate = Function(
    key="11.6",
    title="The good range of a curve",
    axis="log10 of the rate",
    expected=good,
    cases=lambda: [
        Case("a smooth curve", (RATES, [3.46, 3.43, 3.40, 3.41, 3.50], 0.02)),
        Case("a best rate at the end of the grid", (RATES, [3.50, 3.47, 3.44, 3.42, 3.41], 0.02)),
        Case("a second dip", (RATES, [3.415, 3.45, 3.40, 3.44, 3.60], 0.02)),
        Case("a wide tolerance", (RATES, [3.46, 3.43, 3.40, 3.41, 3.50], 0.05)),
    ],
    explain="It ends at the grid's edge where the grid ends first: then the true range is at least as wide, and must be called open.",
    mistakes=(
        Mistake(
            name="the range ends at tried rates",
            why="The loss crosses the limit between two of them: take it as linear in the logarithm of the rate.",
            answer=_on_the_grid,
        ),
        Mistake(
            name="the loss was taken as linear in the rate",
            why="The grid's steps are factors: take it as linear in the logarithm of the rate.",
            answer=lambda r, x, w: _walk(r, x, min(x) + w, lambda a, b, share: a + share * (b - a)),
        ),
        Mistake(
            name="the limit was taken relative to the loss",
            why="The tolerance is in nats: add it to the best loss.",
            answer=lambda r, x, w: _walk(r, x, min(x) * (1 + w), _logarithmic),
        ),
        Mistake(
            name="half of the tolerance was taken",
            why="A rate is good if its loss lies within the tolerance of the best, above it: below it there is none.",
            answer=lambda r, x, w: _walk(r, x, min(x) + w / 2, _logarithmic),
        ),
        Mistake(
            name="the rates were returned, and not their logarithms",
            why="The task asks for exponents of ten, so that both ends can be compared on one scale.",
            answer=lambda r, x, w: [10**e for e in good(r, x, w)],
        ),
    ),
    tolerance=1e-4,
)


# --- 11.7 which claim a figure supports ------------------------------------------------------------

DRAWN = {  # made up: method -> (rates, losses of two seeds)
    "LoRA": (RATES, [(3.388, 3.380), (3.352, 3.340), (3.327, 3.321), (3.322, 3.318), (3.402, 3.391)]),
    "QLoRA": (RATES[:4], [(3.492, 3.486), (3.455, 3.449), (3.428, 3.420), (3.419, 3.411)]),
}
TOLERANCE = 0.02


def draw_claims(answer: str = "") -> tuple[style.Figure, str]:
    """The made-up curves of 11.7 with their good ranges."""
    looks = {"LoRA": (style.ORANGE, "^", "-"), "QLoRA": (style.GREEN, "D", "--")}
    told = []
    with style.page_style():
        figure = style.new_figure(6.4)
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3.6, 1))
        for row, (name, (rates, seeds)) in enumerate(DRAWN.items()):
            color, marker, line = looks[name]
            means = [statistics.fmean(s) for s in seeds]
            for rate, pair in zip(rates, seeds):
                upper.plot([rate] * len(pair), pair, marker, color=color, ms=3.6, mfc="white")
            upper.plot(rates, means, line, color=color, lw=1.1, zorder=1)
            upper.plot([], [], line, color=color, marker=marker, mfc="white", label=name)
            span = good_span(rates, means, TOLERANCE)
            lower.plot([span.low, span.high], [row, row], color=color, lw=5, solid_capstyle="butt")
            if span.open_above:
                lower.annotate("", (span.high * 1.3, row), (span.high, row), arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.4})
            told.append(f"{name}: good from {span.low:.1e} to {span.high:.1e}{', open above' if span.open_above else ''}")
        upper.set_xscale("log")
        upper.set_ylabel("validation loss, nats a token")
        upper.yaxis.grid(True)
        upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
        lower.set_yticks(range(len(DRAWN)), list(DRAWN))
        lower.set_ylim(len(DRAWN) - 0.4, -0.6)
        lower.set_xlabel("learning rate (made-up numbers)")
        lower.set_xticks(RATES, [rate_text(r) for r in RATES])
        lower.minorticks_off()
    return figure, f"Made-up losses against the learning rate. {'; '.join(told)}."


claim = Choice(
    key="11.7",
    title="What a figure supports",
    right="not comparable yet",
    options={
        "QLoRA is more sensitive": (
            "its bar is shorter because its grid ends at 4 × 10⁻³: what ends it is the experimenter. An open range can be of any width above "
            "what was seen."
        ),
        "equally sensitive": "that no difference is shown is not that there is none; here not even the range was seen whole.",
        "QLoRA is worse at every rate": (
            "at equal rates its loss is higher, but it starts from a coarser base. The question is how wide its range is, and "
            "a method is compared at its own best, which for QLoRA may lie above."
        ),
        "not comparable yet": (
            "QLoRA’s range is open above, with its best at the last rate tried: extend its grid until the loss rises, with the same rates for both, "
            "then compare the widths seed by seed."
        ),
        "8e-3 would break QLoRA": "it was not tried. LoRA's loss there is no measurement of QLoRA.",
    },
    draw=draw_claims,
)

EXERCISES = [count, scale, good_rate, claim]
