"""Lesson 12: win rates, and the traps of judges."""

import math
import statistics

from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.judging import draw_interval, draw_length_fit, instructions_needed
from qlora_lib.judges.alpaca_eval import FIRST, SECOND, weighted_preference
from qlora_lib.metrics.win_rate import win_rate

# --- 12.1 the standard error -----------------------------------------------------------------------


def standard_error(preferences: list[float]) -> float:
    return win_rate(preferences)["standard_error"]


def _binomial(preferences: list[float]) -> float:
    rate = statistics.fmean(p - 1 for p in preferences)
    return 100 * math.sqrt(rate * (1 - rate) / len(preferences))


error = Function(
    key="12.1",
    title="The error of a win rate",
    axis="percent",
    expected=standard_error,
    cases=lambda: [
        Case("ten judgements that are wins or losses", ([2.0, 1.0, 2.0, 2.0, 1.0, 2.0, 1.0, 2.0, 2.0, 1.0],)),
        Case("judgements with draws", ([1.5, 2.0, 1.5, 1.0, 1.5, 2.0],)),
        Case("weighted judgements", ([1.91, 1.42, 1.73, 1.08, 1.55, 1.66, 1.97, 1.31],)),
        Case("equal judgements", ([1.5, 1.5, 1.5, 1.5],)),
    ],
    explain="The spread of the judgements over the root of their number. Draws and weights spread less than wins and losses do.",
    mistakes=(
        Mistake(
            name="the spread of one judgement was returned",
            why="The mean of n judgements is steadier than one of them, by the root of n.",
            answer=lambda p: 100 * statistics.stdev(p),
        ),
        Mistake(
            name="the spread was divided by n",
            why="It is the variance of a mean that falls with n; its root falls with the root of n.",
            answer=lambda p: 100 * statistics.stdev(p) / len(p),
        ),
        Mistake(
            name="the deviations were averaged over n",
            why="They are taken from the sample's own mean, so n - 1 of them are free.",
            answer=lambda p: 100 * statistics.pstdev(p) / math.sqrt(len(p)),
        ),
        Mistake(
            name="the formula of wins and losses was used",
            why="A draw and a weight are nearer to the mean than a win or a loss is: take the spread of the judgements themselves.",
            answer=_binomial,
        ),
        Mistake(
            name="the half-width of an interval was returned",
            why="That is 1.96 times what was asked for.",
            answer=lambda p: 1.96 * standard_error(p),
        ),
        Mistake(
            name="a share was returned, and not percent",
            why="Win rates are in percent, and so are their errors.",
            answer=lambda p: standard_error(p) / 100,
        ),
    ),
    tolerance=1e-6,
)


# --- 12.2 how many instructions --------------------------------------------------------------------

EXPECTED, Z_LEVEL, Z_POWER = 0.60, 1.96, 0.8416

needed = Number(
    key="12.2",
    title="How many instructions",
    unit="instructions",
    expected=lambda: instructions_needed(100 * EXPECTED),
    explain="Twice the distance from 50 needs a quarter of the judgements: compare it with those that 55 % needs.",
    mistakes=(
        Mistake(
            name="an evaluation that finds it only half of the time was planned",
            why="With so many the interval just reaches 50 when the rate comes out as expected, and it comes out lower half of the time.",
            answer=lambda: (Z_LEVEL * 0.5 / (EXPECTED - 0.5)) ** 2,
        ),
        Mistake(
            name="a one-sided level was taken",
            why="The model could also have become worse: 5 % is for both sides together.",
            answer=lambda: ((1.6449 * 0.5 + Z_POWER * math.sqrt(0.24)) / 0.1) ** 2,
        ),
        Mistake(
            name="the quotient was not squared",
            why="The error falls with the root of the number: square the quotient.",
            answer=lambda: (Z_LEVEL * 0.5 + Z_POWER * math.sqrt(0.24)) / 0.1,
        ),
        Mistake(
            name="variances were taken for standard deviations",
            why="A z counts standard deviations, so take the roots of 1/4 and p (1 - p).",
            answer=lambda: ((Z_LEVEL * 0.25 + Z_POWER * 0.24) / 0.1) ** 2,
        ),
        Mistake(
            name="the spread of equal models was taken for both",
            why="A model that wins 60 % has judgements of its own spread, √(p (1 - p)): the half belongs to the level alone.",
            answer=lambda: ((Z_LEVEL + Z_POWER) * 0.5 / 0.1) ** 2,
        ),
        Mistake(
            name="the spread of the better model was taken for both",
            why="The level asks what equal models do, and their judgements spread by a half.",
            answer=lambda: ((Z_LEVEL + Z_POWER) * math.sqrt(0.24) / 0.1) ** 2,
        ),
        Mistake(
            name="the rate of the example was taken",
            why="The task asks for 60 %, and not 55.",
            answer=lambda: instructions_needed(55),
        ),
        Mistake(
            name="the distance from one model to the other was doubled",
            why="60 against 40 is a distance of 10 points from 50, and 50 is what is to be excluded.",
            answer=lambda: ((Z_LEVEL * 0.5 + Z_POWER * math.sqrt(0.24)) / 0.2) ** 2,
        ),
    ),
    tolerance=8e-3,  # rounded up, or with 0.84 for the z
)


# --- 12.3 the weighted preference ------------------------------------------------------------------


def _shares(likely: dict) -> tuple[float, float]:
    return tuple(math.exp(likely[name]) if name in likely else 0.0 for name in (FIRST, SECOND))


def _swapped_names(likely: dict) -> float:
    first, second = _shares(likely)
    return 1 + first / (first + second)


def _of_logarithms(likely: dict) -> float:
    first, second = likely[FIRST], likely[SECOND]
    return 1 + second / (first + second)


def _by_name(likely: dict) -> float:
    first, second = _shares(likely)
    return 1.0 if first > second else 2.0


def _absent_is_even(likely: dict) -> float:
    return weighted_preference(likely) if {FIRST, SECOND} <= set(likely) else 1.5


def _without_case(likely: dict) -> float:
    both = sum(_shares(likely))
    return 1 + both / (2 * both)


weighted = Function(
    key="12.3",
    title="The weighted preference",
    axis="preference, 1 to 2",
    expected=weighted_preference,
    cases=lambda: [
        Case("a judge that leans to the first answer", ({"m": -0.22, "M": -1.71, "The": -5.0},)),
        Case("a judge that knows", ({"M": -0.0004, "m": -7.9, "Both": -12.1},)),
        Case(
            "a judge that spends half of its weight elsewhere", ({"Both": -0.7, "M": -1.4, "m": -1.5, "Neither": -4.0},)
        ),
        Case("a second name that is not among the likeliest", ({"m": -0.02, "Model": -4.1, "\n": -6.0},)),
        Case("a first name that is not among the likeliest", ({"M": -0.4, "Model": -1.2},)),
    ],
    explain="The weight of the second name among both; what the judge spends on other words does not count.",
    mistakes=(
        Mistake(
            name="the names were swapped",
            why="The preference rises to 2 with the second answer, and that is the capital M.",
            answer=_swapped_names,
        ),
        Mistake(
            name="the weights were not divided by their sum",
            why="Other words have weight too: only the share of M among both names counts.",
            answer=lambda likely: 1 + _shares(likely)[1],
        ),
        Mistake(
            name="the likelier name alone was counted",
            why="So the unweighted protocol has it; here a judge that is not sure says so.",
            answer=_by_name,
        ),
        Mistake(
            name="a name that is absent was made a draw",
            why="It is not among the likeliest words: its weight counts as 0, and the other one takes all.",
            answer=_absent_is_even,
        ),
        Mistake(
            name="the 1 was forgotten",
            why="The share of M is 0 to 1, and a preference 1 to 2.",
            answer=lambda likely: weighted_preference(likely) - 1,
        ),
        Mistake(
            name="both names were taken for one",
            why="m and M differ by their case alone: do not make them alike.",
            answer=_without_case,
        ),
    ),
    tolerance=1e-6,
)


# --- 12.4 turned back ------------------------------------------------------------------------------


def turned_back(seen: list[float], model_first: list[bool]) -> list[float]:
    return [3 - p if first else p for p, first in zip(seen, model_first)]


turning = Function(
    key="12.4",
    title="Turned back",
    axis="preference, 1 to 2",
    expected=turned_back,
    cases=lambda: [
        Case("wins of either place", ([1.0, 2.0, 1.0, 2.0], [True, True, False, False])),
        Case("weighted judgements and a draw", ([1.2, 1.9, 1.5, 1.37], [True, False, True, True])),
        Case("a judge that always takes the first", ([1.0, 1.0, 1.0, 1.0], [True, False, False, True])),
    ],
    explain="3 - p is p mirrored at the draw, 1.5. A judge that always takes the first place ends near 50, by the coin alone.",
    mistakes=(
        Mistake(
            name="nothing was turned back",
            why="The judge says first or second, and the coin decided who that was.",
            answer=lambda p, f: list(p),
        ),
        Mistake(
            name="the wrong ones were turned",
            why="A preference of 2 already means the model where the model was shown second.",
            answer=lambda p, f: [q if first else 3 - q for q, first in zip(p, f)],
        ),
        Mistake(
            name="all were turned",
            why="Only those count as turned where the coin put the model's answer first.",
            answer=lambda p, f: [3 - q for q in p],
        ),
        Mistake(
            name="it was mirrored at the wrong point",
            why="1 has to become 2, and 2 has to become 1; a draw stays 1.5.",
            answer=lambda p, f: [2 - q if first else q for q, first in zip(p, f)],
        ),
        Mistake(
            name="a weight was rounded to a name",
            why="A judge that is not sure stays so in either order.",
            answer=lambda p, f: [float(round(q)) for q in turned_back(p, f)],
        ),
    ),
    tolerance=1e-6,
)


# --- 12.5 what a controlled rate means -------------------------------------------------------------

controlled = Choice(
    key="12.5",
    title="What a controlled rate means",
    right="equal lengths",
    options={
        "equal lengths": "it is what the fitted judge would say if each answer were as long as the baseline's: read off the curve where "
        "the difference is 0.",
        "short answers": "the controlled rate rewards no brevity: an answer that is shorter is controlled as one that is longer is, "
        "in the other direction.",
        "cut answers": "nothing is cut and nothing is judged again: it is computed from the judgements that there are.",
        "equally long pairs": "pairs whose answers are not equally long are not left out. All of them fit the curve, and where there is "
        "hardly a pair near 0 the curve is continued to there.",
        "real quality": "it is the same judge with one bias taken out. Place, style and its own family's words are still in it.",
    },
    draw=lambda answer, **_: draw_length_fit(answer),
)


# --- 12.6 what a result supports -------------------------------------------------------------------

CLAIM_RATE, CLAIM_N = 58.0, 100
CLAIM_ERROR = standard_error([2.0] * 58 + [1.0] * 42)

claim = Choice(
    key="12.6",
    title="What a result supports",
    right="48 to 68 by this judge",
    options={
        "it is better": "the interval holds 50: two equal models give 58 of 100 or more about once in fifteen evaluations.",
        "they are equal": "the interval holds 68 too. That a difference was not found is no proof that there is none.",
        "48 to 68 by this judge": "this is what was measured: an estimate with its error, of what this judge says on instructions like these.",
        "58 % of users": "no user was asked. What a judge's rate says of people's has to be measured, with people.",
        "58 % on AlpacaEval": "that name stands for its 805 instructions, its baseline and its judge, and none of them is there.",
    },
    draw=lambda answer, **_: draw_interval(CLAIM_RATE, CLAIM_ERROR, f"{CLAIM_N} judgements"),
)


# --- 12.7 what it costs ----------------------------------------------------------------------------


def cost(n: int, template: int, instruction: float, answers: list[float], prices: list[float]) -> float:
    return n * ((template + instruction + sum(answers)) * prices[0] + prices[1]) / 1e6


bill = Function(
    key="12.7",
    title="The bill",
    axis="dollars",
    expected=cost,
    cases=lambda: [
        Case("805 judgements at made-up prices", (805, 400, 30.0, [350.0, 420.0], [4.0, 9.0])),
        Case("100 judgements of short answers", (100, 400, 12.0, [20.0, 25.0], [1.0, 8.0])),
        Case("prompts that cost nothing", (50, 400, 30.0, [300.0, 300.0], [0.0, 6.0])),
    ],
    explain="Nearly all of it is reading: a verdict is a single token. Long answers cost twice, once as length bias.",
    mistakes=(
        Mistake(
            name="the template was paid once",
            why="Every judgement is a request of its own, and brings the whole prompt.",
            answer=lambda n, t, i, a, p: (t * p[0] + n * ((i + sum(a)) * p[0] + p[1])) / 1e6,
        ),
        Mistake(
            name="the template was forgotten",
            why="The judge reads the question that it is asked, every time.",
            answer=lambda n, t, i, a, p: n * ((i + sum(a)) * p[0] + p[1]) / 1e6,
        ),
        Mistake(
            name="one answer was forgotten",
            why="A comparison reads two of them: the baseline's too, though it was written long ago.",
            answer=lambda n, t, i, a, p: cost(n, t, i, a[:1], p),
        ),
        Mistake(
            name="the answers were paid as written by the judge",
            why="It reads them. It writes one token.",
            answer=lambda n, t, i, a, p: n * ((t + i) * p[0] + (sum(a) + 1) * p[1]) / 1e6,
        ),
        Mistake(
            name="the verdict was forgotten",
            why="It is one token, at the price of written ones.",
            answer=lambda n, t, i, a, p: n * (t + i + sum(a)) * p[0] / 1e6,
        ),
        Mistake(
            name="the price was taken for a thousand tokens",
            why="It is for a million.",
            answer=lambda n, t, i, a, p: 1e3 * cost(n, t, i, a, p),
        ),
    ),
    tolerance=1e-6,
)

EXERCISES = [error, needed, weighted, turning, controlled, claim, bill]
