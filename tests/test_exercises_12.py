"""Exercises of notebook 12: right answers by other ways than the library's, wrong ones as they are made; its simulated judges."""

import math
from itertools import pairwise
from math import comb

import numpy as np
import pytest
import torch
from exercising import accepted, rejected
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lib.course.answers import check
from qlora_lib.course.exercises.judges import CLAIM_ERROR, EXERCISES
from qlora_lib.course.judging import (
    SimulatedJudge,
    draw_interval,
    draw_length_fit,
    draw_lengths,
    draw_order,
    draw_spread,
    instructions_needed,
)
from qlora_lib.judges import judge_pairs
from qlora_lib.metrics.length_controlled import length_controlled_win_rate
from qlora_lib.notebooks.shown import Picture


# --- 12.1 the standard error


def by_pairs(preferences):
    """The sample's variance without its mean: half the mean squared difference of two of them."""
    n = len(preferences)
    squares = sum((a - b) ** 2 for a in preferences for b in preferences) / 2
    return 100 * math.sqrt(squares / (n * (n - 1)) / n)


def of_numpy(ddof):
    return lambda p: 100 * np.std(np.array(p), ddof=ddof) / np.sqrt(len(p))


def bernoulli(p):
    share = sum(x - 1 for x in p) / len(p)
    return 100 * (share * (1 - share) / len(p)) ** 0.5


def test_the_error_of_a_win_rate():
    accepted("12.1", by_pairs)
    accepted("12.1", of_numpy(1))
    accepted("12.1", lambda p: 100 * (torch.tensor(p, dtype=torch.float64) - 1).std() / len(p) ** 0.5)
    rejected("12.1", lambda p: 100 * np.std(p, ddof=1), "The spread of one judgement")
    rejected("12.1", lambda p: 100 * np.std(p, ddof=1) / len(p), "The spread was divided by n")
    rejected("12.1", of_numpy(0), "The deviations were averaged over n")
    rejected("12.1", bernoulli, "The formula of wins and losses")
    rejected("12.1", lambda p: 1.96 * by_pairs(p), "The half-width of an interval")
    rejected("12.1", lambda p: by_pairs(p) / 100, "A share was returned")


# --- 12.2 how many instructions


def power_of(n, rate):
    """Exactly: the probability that n wins and losses at this rate are told from 50, with more wins."""
    least = next(k for k in range(n + 1) if k / n - 0.5 > 1.959964 * 0.5 / math.sqrt(n))
    return math.fsum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(least, n + 1))


@pytest.mark.parametrize("rate", [60, 70])
def test_the_formula_of_instructions_has_the_power_it_promises(rate):
    n = math.ceil(instructions_needed(rate))
    around = [power_of(m, rate / 100) for m in range(n - 6, n + 7)]  # the binomial's steps are averaged out
    assert abs(sum(around) / len(around) - 0.8) < 0.015
    assert power_of(round(0.7 * n), rate / 100) < 0.75


def test_the_numbers_that_the_lesson_says():
    assert math.ceil(instructions_needed(55)) == 783 and math.ceil(instructions_needed(60)) == 194
    assert all(a > b for a, b in pairwise(map(instructions_needed, (51, 53, 55, 60, 70))))


@pytest.mark.parametrize("answer", [194, 193.85, ((1.96 * 0.5 + 0.84 * 0.6 * 0.8164966) / 0.1) ** 2])
def test_how_many_instructions(answer):
    accepted("12.2", answer)


@pytest.mark.parametrize(
    "answer, said",
    [
        (1.96**2 * 0.25 / 0.01, "An evaluation that finds it only half of the time"),
        (96, "An evaluation that finds it only half of the time"),
        ((1.645 * 0.5 + 0.8416 * 0.24**0.5) ** 2 / 0.01, "A one-sided level"),
        ((1.96 * 0.5 + 0.8416 * 0.24**0.5) / 0.1, "The quotient was not squared"),
        ((1.96 * 0.25 + 0.8416 * 0.24) ** 2 / 0.01, "Variances were taken"),
        (196, "The spread of equal models was taken for both"),
        ((1.96 + 0.84) ** 2 * 0.5 * 0.5 / (0.6 - 0.5) ** 2, "The spread of equal models was taken for both"),
        (math.ceil((1.96 + 0.8416) ** 2 / 4 / 0.1**2), "The spread of equal models was taken for both"),
        ((1.96 + 0.84) ** 2 * 0.6 * 0.4 / 0.01, "The spread of the better model was taken for both"),
        (783, "The rate of the example"),
        ((1.96 * 0.5 + 0.8416 * 0.24**0.5) ** 2 / 0.04, "The distance from one model to the other"),
        (805, "805 instructions is too large"),
    ],
)
def test_wrong_numbers_of_instructions(answer, said):
    rejected("12.2", answer, said)


# --- 12.3 the weighted preference


def as_logit(likely):
    """The share of M is the logistic function of the difference of both log-probabilities."""
    if "m" not in likely or "M" not in likely:
        return 2.0 if "M" in likely else 1.0
    return 1 + 1 / (1 + math.exp(likely["m"] - likely["M"]))


def softmax(likely, names=("m", "M")):
    weights = [math.exp(likely[n]) if n in likely else 0 for n in names]
    return weights[1] / sum(weights)


def test_the_weighted_preference():
    accepted("12.3", as_logit)
    accepted("12.3", lambda likely: 1 + softmax(likely))
    rejected("12.3", lambda likely: 2 - softmax(likely), "The names were swapped")
    rejected("12.3", lambda likely: 1 + math.exp(likely.get("M", -math.inf)), "The weights were not divided")
    rejected(
        "12.3", lambda likely: 1.0 if likely.get("m", -99) > likely.get("M", -99) else 2.0, "The likelier name alone"
    )
    rejected("12.3", lambda likely: as_logit(likely) if {"m", "M"} <= likely.keys() else 1.5, "A name that is absent")
    rejected("12.3", softmax, "The 1 was forgotten")
    missing = check("12.3", lambda likely: 1 + softmax(likely, ("m", "M")) if likely["m"] and likely["M"] else 0)
    assert not missing.correct and "your function stopped: KeyError" in missing.message


# --- 12.4 turned back


def turned(seen, model_first):
    """1.5 plus the distance from the draw, with the sign of where the model stood."""
    return [1.5 + (-1) ** first * (p - 1.5) for p, first in zip(seen, model_first)]


def test_turned_back():
    accepted("12.4", turned)
    accepted("12.4", lambda p, f: torch.where(torch.tensor(f), 3 - torch.tensor(p).double(), torch.tensor(p).double()))
    rejected("12.4", lambda p, f: p, "Nothing was turned back")
    rejected("12.4", lambda p, f: turned(p, [not x for x in f]), "The wrong ones were turned")
    rejected("12.4", lambda p, f: [3 - x for x in p], "All were turned")
    rejected("12.4", lambda p, f: [2 - x if y else x for x, y in zip(p, f)], "It was mirrored at the wrong point")
    rejected("12.4", lambda p, f: [float(round(x)) for x in turned(p, f)], "A weight was rounded")


# --- the choices


def test_what_a_controlled_rate_means():
    accepted("12.5", "equal lengths")
    for answer in ("short answers", "cut answers", "equally long pairs", "real quality"):
        rejected("12.5", answer, f"Not “{answer}”")


def test_what_a_result_supports():
    accepted("12.6", "48 to 68 by this judge")
    for answer in ("it is better", "they are equal", "58 % of users", "58 % on AlpacaEval"):
        rejected("12.6", answer, f"Not “{answer}”")
    assert CLAIM_ERROR == pytest.approx(100 * math.sqrt(0.58 * 0.42 / 99))
    assert [round(58 + side * 1.96 * CLAIM_ERROR) for side in (-1, 1)] == [48, 68]
    # "about once in fifteen evaluations": exactly
    assert 14 < 2**100 / sum(comb(100, k) for k in range(58, 101)) < 16


# --- 12.7 the bill


def by_request(n, template, instruction, answers, prices):
    return sum((template + instruction + answers[0] + answers[1]) / 1e6 * prices[0] + prices[1] / 1e6 for _ in range(n))


def test_the_bill():
    accepted("12.7", by_request)
    rejected(
        "12.7", lambda n, t, i, a, p: (t * p[0] + n * ((i + sum(a)) * p[0] + p[1])) / 1e6, "The template was paid once"
    )
    rejected("12.7", lambda n, t, i, a, p: by_request(n, 0, i, a, p), "The template was forgotten")
    rejected("12.7", lambda n, t, i, a, p: by_request(n, t, i, [a[0], 0], p), "One answer was forgotten")
    rejected(
        "12.7",
        lambda n, t, i, a, p: n * ((t + i) * p[0] + (a[0] + a[1] + 1) * p[1]) / 1e6,
        "The answers were paid as written",
    )
    rejected("12.7", lambda n, t, i, a, p: by_request(n, t, i, a, [p[0], 0]), "The verdict was forgotten")
    rejected("12.7", lambda n, t, i, a, p: by_request(n, t, i, a, p) * 1000, "The price was taken for a thousand")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)


# --- the simulated judge, and the pictures


def logistic(z):
    return math.exp(z) / (1 + math.exp(z))


@pytest.mark.parametrize("place", [-1.0, 0.0, 1.5])
def test_a_simulated_judge_has_the_mind_that_it_was_given(place):
    n = 4000
    questions = [f"q{i}" for i in range(n)]
    judge = SimulatedJudge(lambda text: 0.4 * (text == "ours"), place)
    bias = judge_pairs(questions, ["ours"] * n, ["theirs"] * n, judge).position_bias
    assert bias["win_rate_when_first"] == pytest.approx(100 * logistic(0.4 + place), abs=3.5)
    assert bias["win_rate_when_second"] == pytest.approx(100 * logistic(0.4 - place), abs=3.5)
    again = SimulatedJudge(lambda text: 0.4 * (text == "ours"), place)
    assert again.compare("q1", "a", "b") == judge.compare("q1", "a", "b")


@settings(max_examples=50)
@given(st.floats(0, 3), st.floats(0, 4))
def test_a_random_order_shrinks_a_difference_and_never_turns_it(quality, place):
    """What the lesson says of it, for any strength of the bias: the mean over both orders lies between 50 and the truth."""
    both = (logistic(quality + place) + logistic(quality - place)) / 2
    assert 0.5 - 1e-12 <= both <= logistic(quality) + 1e-12


def simulated(times, n=200):
    rng = np.random.default_rng(0)
    theirs = rng.lognormal(6.5, 0.6, n)
    ours = theirs * times * rng.lognormal(0, 0.4, n)
    won = rng.random(n) < 1 / (1 + np.exp(-1.2 * np.log(ours / theirs)))
    return length_controlled_win_rate(1.0 + won, ours.round(), theirs.round())


def test_pictures_say_what_they_show():
    figure, alt = draw_spread(100, 60)
    assert "100 instructions and a true rate of 60" in alt and "told from 50" in figure.axes[0].get_title("left")
    results = {times: [simulated(times)] for times in (1, 3)}
    figure, alt = draw_lengths(results, 50)
    assert f"3 times as long {results[3][0]['win_rate']:.1f} and" in alt
    circled = next(line for line in figure.axes[0].lines if line.get_label() == "the library warns")
    assert list(circled.get_xdata()) == [3] and results[3][0]["warnings"] and not results[1][0]["warnings"]
    places = np.linspace(0, 2, 5)
    measured = {"fixed": [(0, 60.0, 1.0), (2, 20.0, 1.0)], "random": [(0, 61.0, 1.0), (2, 56.0, 1.0)]}
    figure, alt = draw_order(places, {name: 50 + places for name in measured}, measured, 62.2)
    assert "fixed: 20.0 %" in alt and "random: 56.0 %" in alt
    assert "58 %" in draw_length_fit()[1] and "40 %" in draw_length_fit()[1]
    assert "50 is inside" in draw_interval(58, 5, "x")[1] and "50 is outside" in draw_interval(70, 5, "x")[1]
    assert Picture(figure, alt)._repr_mimebundle_()[0]["image/png"].startswith(b"\x89PNG")
