"""Lesson 9: the figures of the report."""

from math import cos, pi, radians, sin

from qlora_lib.course.anatomy import Method, anatomy
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.exercises.memory import SMOLLM2
from qlora_lib.figures.talk import draw_memory_anatomy
from qlora_lib.figures.training import moving_average

# --- 09.1 one scale for six units ------------------------------------------------------------------


def to_best(values: list[float], lower_is_better: bool) -> list[float]:
    best = min(values) if lower_is_better else max(values)
    return [best / v if lower_is_better else v / best for v in values]


ratios = Function(
    key="09.1",
    title="Ratios to the best",
    axis="ratio",
    expected=to_best,
    cases=lambda: [
        Case("bytes of three arms, less is better", ([538.0, 558.0, 188.0], True)),
        Case("tokens a second, more is better", ([15.8, 9.8, 4.9], False)),
        Case("two equal arms", ([2.0, 2.0, 8.0], True)),
    ],
    tolerance=1e-9,
    explain="The best is 1, half as good is 0.5, and nothing is ever 0: distances on the wheel are ratios.",
    mistakes=(
        Mistake(
            name="where less is better the ratio was not turned over",
            why="The smallest number must become 1, and twice as much a half.",
            answer=lambda v, low: [x / max(v) for x in v],
        ),
        Mistake(
            name="min-max scaling was used",
            why="It puts the worst arm at 0, even where it is worse by a thousandth.",
            answer=lambda v, low: [(max(v) - x if low else x - min(v)) / (max(v) - min(v)) for x in v],
        ),
        Mistake(
            name="it was divided by the first arm, and not by the best",
            why="A ratio to a fixed arm may exceed 1, and leave the wheel.",
            answer=lambda v, low: [v[0] / x if low else x / v[0] for x in v],
        ),
        Mistake(
            name="the better values became the larger ratios beyond 1",
            why="The ratio is to the best, so it cannot exceed 1.",
            answer=lambda v, low: [x / min(v) if low else max(v) / x for x in v],
        ),
    ),
)


# --- 09.2 an area without meaning ------------------------------------------------------------------


def area(spokes: list[float]) -> float:
    angle = 2 * pi / len(spokes)
    return sum(a * b for a, b in zip(spokes, spokes[1:] + spokes[:1])) * sin(angle) / 2


areas = Function(
    key="09.2",
    title="The area of a radar",
    axis="area",
    expected=area,
    cases=lambda: [
        Case("large and small ratios in turn", ([1.0, 0.2, 1.0, 0.2, 1.0, 0.2],)),
        Case("the same ratios, large ones side by side", ([1.0, 1.0, 1.0, 0.2, 0.2, 0.2],)),
        Case("a square", ([1.0, 1.0, 1.0, 1.0],)),
    ],
    tolerance=1e-9,
    explain="The same six numbers in another order have another area: 0.52 "
    "and 1.07 for the first two cases. It means nothing.",
    mistakes=(
        Mistake(
            name="the polygon was not closed",
            why="The last spoke has the first for a neighbour.",
            answer=lambda s: sum(a * b for a, b in zip(s, s[1:])) * sin(2 * pi / len(s)) / 2,
        ),
        Mistake(
            name="whole parallelograms were added",
            why="Two spokes and the rim between them make a triangle: half of it.",
            answer=lambda s: 2 * area(s),
        ),
        Mistake(
            name="the cosine was taken for the sine",
            why="The height of such a triangle is a spoke times the sine of the angle between the two.",
            answer=lambda s: sum(a * b for a, b in zip(s, s[1:] + s[:1])) * cos(2 * pi / len(s)) / 2,
        ),
        Mistake(
            name="the angle of six spokes was used for any number",
            why="It is a full turn divided by the number of spokes.",
            answer=lambda s: sum(a * b for a, b in zip(s, s[1:] + s[:1])) * sin(radians(60)) / 2,
        ),
        Mistake(
            name="every spoke was squared",
            why="Neighbours are multiplied, and that is just why their order matters.",
            answer=lambda s: sum(a * a for a in s) * sin(2 * pi / len(s)) / 2,
        ),
    ),
)


# --- 09.3 a smooth line ----------------------------------------------------------------------------

LOSS = [4.0, 3.5, 3.7, 3.1, 3.4, 2.9, 3.0]


def smooth(values: list[float], width: int) -> list[float]:
    return moving_average(values, width).tolist()


def _window_mean(values, first, last) -> float:
    cut = values[max(0, first) : last]
    return sum(cut) / len(cut)


averages = Function(
    key="09.3",
    title="The heavy line",
    axis="loss, nats a token",
    expected=smooth,
    cases=lambda: [
        Case("seven steps, width 3", (LOSS, 3)),
        Case("seven steps, width 5", (LOSS, 5)),
        Case("width 1", (LOSS[:3], 1)),
    ],
    tolerance=1e-9,
    explain="Near the ends it is a mean of fewer steps, and so less smooth: "
    "do not read much into its first and last points.",
    mistakes=(
        Mistake(
            name="the steps beyond the ends were counted as zeros",
            why="A loss that was not measured is not 0: the line would dive at both ends.",
            answer=lambda v, w: [sum(v[max(0, i - w // 2) : i + w // 2 + 1]) / w for i in range(len(v))],
        ),
        Mistake(
            name="the ends were left out",
            why="A point for every step was asked for, from those of its neighbours that exist.",
            answer=lambda v, w: [sum(v[i : i + w]) / w for i in range(len(v) - w + 1)],
        ),
        Mistake(
            name="the mean looks back only",
            why="A trailing mean lags: it shows a fall when it is over. The line is centred.",
            answer=lambda v, w: [_window_mean(v, i - w + 1, i + 1) for i in range(len(v))],
        ),
        Mistake(
            name="the window is one step too long",
            why="A width of 3 is a step, the one before and the one after.",
            answer=lambda v, w: [_window_mean(v, i - (w + 1) // 2, i + (w + 1) // 2 + 1) for i in range(len(v))],
        ),
    ),
)


# --- 09.4 a cut axis -------------------------------------------------------------------------------

LOW, HIGH, START = 21.86, 27.23, 20.0
SEEN = (HIGH - START) / (LOW - START)  # ratio of the bars
TRUE = HIGH / LOW

lie = Number(
    key="09.4",
    title="A bar that does not start at zero",
    unit="times",
    expected=lambda: (SEEN - 1) / (TRUE - 1),
    explain="The eye is shown a rise of 289 % for one of 25 %. Bars start at zero, or become dots.",
    mistakes=(
        Mistake(
            name="the ratio of the bars was given",
            why="That is what one sees; the lie factor divides the effect that is seen by the one that is there.",
            answer=lambda: SEEN,
        ),
        Mistake(
            name="the ratio of the values was given",
            why="That is the truth; the lie factor divides the effect that is seen by it.",
            answer=lambda: TRUE,
        ),
        Mistake(
            name="ratios were divided, and not effects",
            why="An effect is a *change*: the ratio less 1.",
            answer=lambda: SEEN / TRUE,
        ),
        Mistake(
            name="the fraction is upside down",
            why="Above 1 the graphic exaggerates.",
            answer=lambda: (TRUE - 1) / (SEEN - 1),
        ),
    ),
    tolerance=5e-3,
)


# --- 09.5 which figure -----------------------------------------------------------------------------


def draw_memory(answer: str):
    methods = {
        "Full": Method("full"),
        "LoRA": Method("lora", 16, 0.05),
        "QLoRA": Method("qlora", 16, 0.05, four_bit=True, optimizer_bits=8),
    }
    bars = {name: dict(anatomy(SMOLLM2, m, 4, 128).parts) for name, m in methods.items()}
    totals = ", ".join(f"{n} {sum(p.values()) / 2**20:,.0f} MiB" for n, p in bars.items())
    return draw_memory_anatomy(bars, {}), f"Computed memory at the peak of a step: {totals}."


which = Choice(
    key="09.5",
    title="The right figure for the question",
    right="memory at the peak",
    options={
        "memory at the peak": (
            "whether training fits is decided by the highest moment of a "
            "step, activations included, and only here do they show."
        ),
        "perplexity against bytes": "its bytes are those of the deployed model: training holds several times as many.",
        "the radar": "a ratio to the best hides every absolute size; nobody can tell from it whether 8 GB are enough.",
        "loss curves": "they show what is learned a token, and no byte.",
        "trainable parameters": (
            "few trained weights spare gradients and states, but activations and the base are not in the number."
        ),
    },
    draw=draw_memory,
)

EXERCISES = [ratios, areas, averages, lie, which]
