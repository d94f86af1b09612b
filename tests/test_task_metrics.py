"""Exact match, F1 and win rate against independent implementations and hand-made hard cases."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lib.errors import UsageError
from qlora_lib.metrics import squad_em_f1, win_rate
from qlora_lib.metrics.squad import normalize_answer


@pytest.mark.parametrize(
    ("prediction", "answers", "em", "f1"),
    [
        ("The Eiffel tower!", ["eiffel tower"], 100, 100),
        ("a an the", ["the"], 100, 0),  # nothing is left of either
        ("", [""], 100, 0),
        ("", ["Paris"], 0, 0),
        ("Theatre", ["theatre"], 100, 100),  # an article only as a whole word
        ("the-atre", ["atre"], 0, 0),  # punctuation goes first, so no article is found in "theatre"
        ("U.S.A.", ["USA"], 100, 100),
        ("in the  year\t1066", ["1066"], 0, 50),
        ("Zürich", ["zürich"], 100, 100),
        ("“Paris”", ["Paris"], 0, 0),  # the official script knows ASCII punctuation only
        ("new york new york", ["new york"], 0, 200 * 2 / 6),  # each token as often as it is there
        ("Rome", ["Paris", "rome", "Rome, Italy"], 100, 100),
        ("rome italy", ["Paris", "Rome", "Rome, Italy."], 100, 100),
        ("ancient rome", ["Paris", "Rome"], 0, 200 / 3),
    ],
)
def test_hard_cases(prediction, answers, em, f1):
    assert squad_em_f1(prediction, answers) == (em, pytest.approx(f1))


def slow(prediction, answers):
    """The same by removing matched tokens one by one, character by character where it can."""

    def normal(text):
        kept = "".join(c for c in text.lower() if not (c.isascii() and c.isprintable() and not c.isalnum() and c != " "))
        return [w for w in re.split(r"\s+", re.sub(r"\b(a|an|the)\b", " ", kept)) if w]

    best_em = best_f1 = 0.0
    for answer in answers:
        found, wanted = normal(prediction), normal(answer)
        best_em = max(best_em, 100.0 * (found == wanted))
        left, same = list(wanted), 0
        for token in found:
            if token in left:
                left.remove(token)
                same += 1
        if same:
            precision, recall = same / len(found), same / len(wanted)
            best_f1 = max(best_f1, 100 * 2 * precision * recall / (precision + recall))
    return best_em, best_f1


words = st.text(st.sampled_from("ab theTHEn.,'-Zü \t1"), max_size=24)


@given(words, st.lists(words, min_size=1, max_size=3))
def test_equal_to_an_independent_implementation(prediction, answers):
    assert squad_em_f1(prediction, answers) == pytest.approx(slow(prediction, answers))


@given(words)
def test_normalizing_twice_is_normalizing_once_unless_an_article_comes_to_light(text):
    once = normalize_answer(text)
    assert normalize_answer(once) == once


def test_answers_have_to_be_a_list_that_is_not_empty():
    with pytest.raises(UsageError, match="list of texts"):
        squad_em_f1("a", "a")
    with pytest.raises(UsageError, match="at least one"):
        squad_em_f1("a", [])


def test_a_win_rate_by_hand():
    assert win_rate([1.0, 2.0, 1.5]) == {
        "win_rate": 50.0, "standard_error": pytest.approx(100 * 0.5 / math.sqrt(3)),
        "n": 3, "wins": 1, "draws": 1, "losses": 1, "missing": 0,
    }  # fmt: skip
    assert win_rate([2.0])["standard_error"] is None
    assert win_rate([2.0, None, float("nan"), 2.0])["missing"] == 2


@given(st.lists(st.floats(1, 2), min_size=2, max_size=40))
def test_a_win_rate_is_a_mean_with_its_standard_error(preferences):
    found, shares = win_rate(preferences), np.array(preferences) - 1
    assert found["win_rate"] == pytest.approx(100 * shares.mean())
    assert found["standard_error"] == pytest.approx(100 * shares.std(ddof=1) / np.sqrt(len(shares)), abs=1e-9)
    swapped = win_rate([3 - p for p in preferences])  # the other model's view
    assert swapped["win_rate"] == pytest.approx(100 - found["win_rate"]) and swapped["wins"] == found["losses"]


@pytest.mark.parametrize("preferences", [[], [None], [0.0], [2.5, 1.0]])
def test_what_is_no_preference_is_refused(preferences):
    with pytest.raises(UsageError, match="preference"):
        win_rate(preferences)
