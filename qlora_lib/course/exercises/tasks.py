"""Lesson 11: what a metric counts, and what it is worth on n examples. Its second half, sweeps, is in ranks.py."""

import math
import statistics
from collections import Counter

from qlora_lib.course.answers import Case, Function, Mistake
from qlora_lib.course.exercises import ranks
from qlora_lib.course.proportions import (
    paired_difference,
    proportion_interval,
    unpaired_error,
)
from qlora_lib.metrics.squad import (
    ARTICLES,
    NO_PUNCTUATION,
    normalize_answer,
    squad_em_f1,
)

# --- 11.1 exact match and F1 -----------------------------------------------------------------------


def _scores(prediction: str, answers: list[str], normalize=normalize_answer, best=max, bag=Counter, equal=None) -> tuple[float, float]:
    """EM and F1 with one part replaced by another."""
    found, wanted = normalize(prediction), [normalize(a) for a in answers]

    def f1(answer: str) -> float:
        one, other = bag(found.split()), bag(answer.split())
        same = sum((Counter(one) & Counter(other)).values())
        return 2 * same / (sum(Counter(one).values()) + sum(Counter(other).values())) if same else 0.0

    match = found in wanted if equal is None else any(equal(found, a) for a in wanted)
    return 100.0 * match, 100.0 * best([f1(a) for a in wanted])


def _articles_first(text: str) -> str:
    return " ".join(ARTICLES.sub(" ", text.lower()).translate(NO_PUNCTUATION).split())


def _parted(text: str) -> str:
    """Punctuation becomes white space."""
    return " ".join(ARTICLES.sub(" ", "".join(" " if ord(c) in NO_PUNCTUATION else c for c in text.lower())).split())


em_f1 = Function(
    key="11.1",
    title="Exact match and F1",
    axis="exact match, F1: percent",
    expected=lambda prediction, answers: list(squad_em_f1(prediction, answers)),
    cases=lambda: [
        Case("a right answer in a sentence", ("It was the Normans.", ["the Normans"])),
        Case("another spelling", ("an ARMY of Normans!", ["The army of  Normans", "Normans"])),
        Case("a word that comes twice", ("New York, New York", ["New York"])),
        Case("points inside a word", ("at 7 a.m.", ["7 am", "seven"])),
        Case("a hyphen", ("well-known", ["well known"])),
        Case("a wrong answer", ("the Vikings", ["the Normans"])),
        Case("an article alone, which leaves nothing", ("the", ["The"])),
    ],
    explain="Two answers of which nothing is left match exactly and share no word: F1 0, as the official script has it.",
    mistakes=(
        Mistake(
            name="articles were kept",
            why="“the Normans” and “Normans” are the same answer: take out a, an and the.",
            answer=lambda p, a: list(_scores(p, a, lambda t: " ".join(t.lower().translate(NO_PUNCTUATION).split()))),
        ),
        Mistake(
            name="articles were taken out before the punctuation",
            why="In “a.m.” an article then stands alone: the script takes punctuation out first.",
            answer=lambda p, a: list(_scores(p, a, _articles_first)),
        ),
        Mistake(
            name="punctuation was replaced by a space",
            why="The script takes it out, so that “well-known” becomes one word.",
            answer=lambda p, a: list(_scores(p, a, _parted)),
        ),
        Mistake(
            name="case was kept",
            why="Both texts are written in lower case first.",
            answer=lambda p, a: list(_scores(p, a, lambda t: " ".join(ARTICLES.sub(" ", t.translate(NO_PUNCTUATION)).split()))),
        ),
        Mistake(
            name="words were counted once each",
            why="F1 compares bags: a word that comes twice counts twice.",
            answer=lambda p, a: list(_scores(p, a, bag=lambda words: dict.fromkeys(words, 1))),
        ),
        Mistake(
            name="the mean over the right answers was taken",
            why="Any of them is right, so the best one counts.",
            answer=lambda p, a: list(_scores(p, a, best=statistics.fmean)),
        ),
        Mistake(
            name="containing the answer was taken for matching it",
            why="An exact match is equality of the normalized texts.",
            answer=lambda p, a: list(_scores(p, a, equal=lambda found, answer: answer in found)),
        ),
        Mistake(
            name="shares were returned, and not percent",
            why="Both are reported from 0 to 100.",
            answer=lambda p, a: [x / 100 for x in squad_em_f1(p, a)],
        ),
    ),
    tolerance=1e-6,
)


# --- 11.2 the interval of an accuracy --------------------------------------------------------------


def _plain_interval(right: int, n: int, z: float = 1.96) -> list[float]:
    share = right / n
    half = z * math.sqrt(share * (1 - share) / n)
    return [100 * (share - half), 100 * (share + half)]


def _undivided(right: int, n: int) -> list[float]:
    low, high = proportion_interval(right, n)
    return [(1 + 1.96**2 / n) * x for x in (low, high)]


def _uncentred(right: int, n: int) -> list[float]:
    low, high = proportion_interval(right, n)
    half = (high - low) / 2
    return [100 * right / n - half, 100 * right / n + half]


interval = Function(
    key="11.2",
    title="The interval of an accuracy",
    axis="percent",
    expected=lambda right, n: list(proportion_interval(right, n)),
    cases=lambda: [
        Case("172 of 200 right", (172, 200)),
        Case("20 of 20 right", (20, 20)),
        Case("none of 60 right", (0, 60)),
        Case("800 of 872 right", (800, 872)),
    ],
    explain="20 of 20 leave room for a true accuracy well below 100 %, and the interval never leaves the scale.",
    mistakes=(
        Mistake(
            name="the formula p ± z √(p(1-p)/n) was used",
            why="It takes the spread at what was found, so that 20 of 20 would be certain.",
            answer=_plain_interval,
        ),
        Mistake(name="the divisor 1 + z²/n was forgotten", why="It pulls the interval to the middle, and back onto the scale.", answer=_undivided),
        Mistake(
            name="the interval was centred at what was found",
            why="Wilson's centre is pulled towards a half, by as much as n is small.",
            answer=_uncentred,
        ),
        Mistake(
            name="one standard error to either side was taken",
            why="95 % need z = 1.96.",
            answer=lambda right, n: list(proportion_interval(right, n, 1.0)),
        ),
        Mistake(
            name="z of a one-sided level was taken",
            why="2.5 % are left out on each side, so z is 1.96.",
            answer=lambda right, n: list(proportion_interval(right, n, 1.645)),
        ),
        Mistake(
            name="shares were returned, and not percent",
            why="Accuracies are reported from 0 to 100.",
            answer=lambda right, n: [x / 100 for x in proportion_interval(right, n)],
        ),
    ),
    tolerance=0.02,
)


# --- 11.3 a paired difference ----------------------------------------------------------------------

BEFORE = [100.0 * x for x in (1, 0, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1)]
AFTER = [100.0 * x for x in (1, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1)]


def _spread(before: list[float], after: list[float], of) -> list[float]:
    differences = [b - a for a, b in zip(before, after)]
    return [statistics.fmean(differences), of(differences)]


paired = Function(
    key="11.3",
    title="Before and after, on the same examples",
    axis="points",
    expected=lambda before, after: list(paired_difference(before, after)),
    cases=lambda: [
        Case("twelve reviews, right or wrong", (BEFORE, AFTER)),
        Case("F1 of five answers", ([20.0, 0.0, 66.7, 40.0, 100.0], [50.0, 0.0, 80.0, 30.0, 100.0])),
        Case("a model that became worse", (AFTER, BEFORE)),
    ],
    explain="Examples that both get right, or both wrong, add nothing to the spread: only what changed does.",
    mistakes=(
        Mistake(
            name="the two were treated as different examples",
            why="Then how hard each example is counts twice; in the difference of one example it cancels.",
            answer=lambda a, b: [statistics.fmean(b) - statistics.fmean(a), unpaired_error(a, b)],
        ),
        Mistake(
            name="the spread of one example was returned",
            why="The mean of n examples is steadier, by the root of n.",
            answer=lambda a, b: _spread(a, b, statistics.stdev),
        ),
        Mistake(
            name="the spread was divided by n",
            why="It is the variance of a mean that falls with n.",
            answer=lambda a, b: _spread(a, b, lambda d: statistics.stdev(d) / len(d)),
        ),
        Mistake(
            name="the deviations were averaged over n",
            why="They are taken from the sample's own mean, so n - 1 are free.",
            answer=lambda a, b: _spread(a, b, lambda d: statistics.pstdev(d) / math.sqrt(len(d))),
        ),
        Mistake(
            name="before less after was returned",
            why="A gain is to be positive.",
            answer=lambda a, b: [-paired_difference(a, b)[0], paired_difference(a, b)[1]],
        ),
        Mistake(
            name="the half-width of an interval was returned",
            why="That is 1.96 times the standard error.",
            answer=lambda a, b: [paired_difference(a, b)[0], 1.96 * paired_difference(a, b)[1]],
        ),
    ),
    tolerance=1e-2,
)

EXERCISES = [em_f1, interval, paired, *ranks.EXERCISES]
