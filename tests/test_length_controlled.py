"""The length-controlled win rate against alpaca_eval's own code, and what has to hold for any preferences."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lib.errors import UsageError
from qlora_lib.metrics.length_controlled import Gamed, fit, length_controlled_win_rate, read_gamed

EXAMPLE = json.loads((Path(__file__).parent / "alpaca_eval_example.json").read_text(encoding="utf-8"))
NAMES = {
    "length": "np.tanh(std_delta_len)",
    "difficulty": "instruction_difficulty",
    "model": "not_gamed_baseline.astype(float)",
}


def example(**more):
    return length_controlled_win_rate(EXAMPLE["preference"], EXAMPLE["length_2"], EXAMPLE["length_1"], **more)


@pytest.fixture
def gamed(tmp_path):
    columns = EXAMPLE["gamed"]
    with open(tmp_path / "df_gamed.csv", "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return read_gamed(tmp_path / "df_gamed.csv")


@pytest.mark.parametrize("glm", ["length_controlled_minimal", "length_controlled_noreg", "length_controlled_v1"])
def test_the_worked_example_equals_alpaca_eval(glm, gamed):
    more = {} if glm.endswith("minimal") else {"difficulty": EXAMPLE["difficulty"]}
    found = example(**more, gamed=gamed if glm.endswith("v1") else None)
    published, converged = EXAMPLE["published"][glm], EXAMPLE["converged"][glm]
    assert found["glm"] == glm and set(found["terms"]) == {k for k, name in NAMES.items() if name in converged["weights"]}
    for key, wanted in (("win_rate", "win_rate"), ("standard_error", "standard_error"), ("wins", "n_wins"), ("losses", "n_wins_base"),
                        ("draws", "n_draws"), ("n", "n_total")):  # fmt: skip
        assert found[key] == pytest.approx(published[wanted], rel=1e-12)
    # to the last digits where its solver converges too, and near to where its tolerance of 1e-4 stops it
    assert found["length_controlled_win_rate"] == pytest.approx(converged["length_controlled_winrate"], abs=1e-8)
    assert found["length_controlled_win_rate"] == pytest.approx(published["length_controlled_winrate"], abs=5e-3)
    assert found["predictions_standard_error"] == pytest.approx(converged["lc_standard_error"], abs=1e-8)
    for term, value in found["terms"].items():
        assert value == pytest.approx(converged["weights"][NAMES[term]], abs=1e-8)


def test_what_is_absent_is_said(gamed):
    assert set(example()["absent"]) == {"difficulty"}
    assert set(example(difficulty=EXAMPLE["difficulty"])["absent"]) == {"gamed answers"}
    assert example(difficulty=EXAMPLE["difficulty"], gamed=gamed)["absent"] == {}
    assert example()["missing"] == 1 and example()["n"] == 59


def test_the_gamed_file_gives_a_difficulty_an_instruction(gamed):
    assert list(gamed.difficulty) == EXAMPLE["difficulty"]
    assert isinstance(gamed, Gamed) and len(gamed.preferences) == 2 * len(gamed.difficulty)


@pytest.mark.parametrize(
    "text", ["", "index,preference\n1,x\n", "a,b\n1,2\n", "index,preference,std_delta_len,instruction_difficulty\n5,1,1,1\n"]
)
def test_another_file_is_refused(tmp_path, text):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(UsageError, match="df_gamed"):
        read_gamed(tmp_path / "x.csv")


def simulated(n, model, length, seed=0):
    """(preferences, lengths, baseline lengths) of a judge that has exactly the terms of the regression."""
    rng = np.random.default_rng(seed)
    ours, theirs = rng.integers(50, 900, n), rng.integers(50, 700, n)
    gaps = theirs - ours
    z = model + length * np.tanh(gaps / gaps.std(ddof=1))
    draws = rng.random(n) < 1 / (1 + np.exp(-z))
    return np.clip(1 + draws, 1, 2).astype(float).tolist(), ours.tolist(), theirs.tolist()


def test_a_bias_for_length_is_taken_out():
    found = length_controlled_win_rate(*simulated(3000, model=-0.4, length=-2.0))
    wanted = 100 / (1 + math.exp(0.4))
    error = found["length_controlled_standard_error"]
    assert abs(found["length_controlled_win_rate"] - wanted) < 3 * error < 6
    assert abs(found["win_rate"] - wanted) > 5 * found["standard_error"]  # the raw rate is far off
    assert found["terms"]["length"] == pytest.approx(-2.0, abs=0.35)
    assert found["warnings"] == [] or "far from" in found["warnings"][0]


def test_without_an_effect_of_length_the_rates_agree():
    preferences, ours, theirs = simulated(400, model=0.6, length=0.0)
    # each preference once with either sign of the difference, so that length explains nothing at all
    found = length_controlled_win_rate(preferences * 2, ours + theirs, theirs + ours)
    assert abs(found["terms"]["length"]) < 1e-6
    assert found["length_controlled_win_rate"] == pytest.approx(found["win_rate"], abs=0.2)
    assert found["length_controlled_standard_error"] == pytest.approx(found["standard_error"], rel=0.02)


preference = st.one_of(st.sampled_from([1.0, 1.5, 2.0]), st.floats(1, 2))
rows = st.lists(st.tuples(preference, st.integers(0, 500), st.integers(0, 500), st.floats(-3, 3)), min_size=8, max_size=40)


@settings(max_examples=25)
@given(rows, st.booleans())
def test_the_other_models_view_is_the_rest_to_100(rows, with_difficulty):
    preferences, ours, theirs, difficulty = (list(column) for column in zip(*rows, strict=True))
    difficulty = difficulty if with_difficulty else None
    found = length_controlled_win_rate(preferences, ours, theirs, difficulty)
    swapped = length_controlled_win_rate([3 - p for p in preferences], theirs, ours, difficulty)
    assert 0 <= found["length_controlled_win_rate"] <= 100
    assert swapped["length_controlled_win_rate"] == pytest.approx(100 - found["length_controlled_win_rate"], abs=1e-4)


@settings(max_examples=25)
@given(rows, st.sampled_from([0.1, 1.0, 100.0]))
def test_the_fit_is_a_minimum(rows, strength):
    """The conditions of an L1 minimum, which no solver of another kind could fail: gradient against sign."""
    y = np.array([row[0] - 1 for row in rows])
    x = np.column_stack([np.tanh([(row[1] - row[2]) / 200 for row in rows]), [row[3] for row in rows], np.ones(len(rows))])
    w = fit(x, y, np.ones(len(y)), strength)
    gradient = strength * x.T @ (1 / (1 + np.exp(-x @ w)) - y)
    for value, slope in zip(w, gradient, strict=True):
        assert abs(slope + np.sign(value)) < 1e-4 * (1 + strength) if value else abs(slope) <= 1 + 1e-6


def test_the_standard_error_is_that_of_resampled_instructions():
    preferences, ours, theirs = simulated(300, model=-0.4, length=-2.0)
    found = length_controlled_win_rate(preferences, ours, theirs)
    gaps = np.array(theirs) - np.array(ours)
    x, y = np.column_stack([np.tanh(gaps / gaps.std(ddof=1)), np.ones(300)]), np.array(preferences) - 1
    rng, rates = np.random.default_rng(1), []
    for _ in range(300):
        rows = rng.integers(0, 300, 300)
        rates.append(100 / (1 + math.exp(-fit(x[rows], y[rows], np.ones(300), 1e4)[1])))
    assert found["length_controlled_standard_error"] == pytest.approx(np.std(rates, ddof=1), rel=0.15)


def test_one_sided_lengths_are_warned_of():
    preferences, ours, theirs = simulated(200, model=0.0, length=-3.0)
    found = length_controlled_win_rate(preferences, [a + 2000 for a in theirs], theirs)
    assert found["longer"] == 100 and "length" in found["absent"]  # one and the same difference: nothing to fit
    found = length_controlled_win_rate(preferences, [a + 1000 for a in ours], theirs)
    assert any("extrapolation" in w for w in found["warnings"])


def test_too_few_or_uniform_is_no_rate_or_a_warned_one():
    few = length_controlled_win_rate([1.0, 2.0, None, None, None, None], [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1])
    assert few["length_controlled_win_rate"] is None and "too few" in few["absent"]["all"] and few["win_rate"] == 50
    draws = length_controlled_win_rate([1.5] * 20, list(range(20)), [10] * 20)
    assert draws["length_controlled_win_rate"] == pytest.approx(50)
    assert draws["length_controlled_standard_error"] is None and "no model term" in draws["warnings"][0]


def test_unequal_numbers_are_refused():
    with pytest.raises(UsageError, match="3 preferences and 2 lengths"):
        length_controlled_win_rate([1, 2, 1], [1, 2], [1, 2, 3])
    with pytest.raises(UsageError, match="both or neither"):
        length_controlled_win_rate([1, 2], [1, 2], [1, 2], gamed=Gamed((), (), (), ()))
