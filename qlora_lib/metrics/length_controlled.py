"""Length-controlled win rate: what a judge would prefer if both models' answers were of the same length.

How it works: judges like long answers. A logistic regression predicts each preference (0 the baseline, 1 this model) from

    model term + length term * tanh((baseline's characters - ours) / their standard deviation) + difficulty term * difficulty

and the rate is the mean of what it predicts with the length term left out. It is fitted as AlpacaEval 2 fits it: on
probabilities rather than labels, without an intercept beside the model term, with an L1 penalty whose strength is the
best of ten in a cross-validation of five folds.

AlpacaEval publishes the difficulty of each of its own 805 instructions, and the preferences for two answers that were made
to game length, which anchor its fit (`df_gamed.csv`, see `read_gamed`). Other instructions have neither: the result names the
model that was fitted by the name that AlpacaEval gives it, and lists its terms.

    length_controlled_minimal   model and length
    length_controlled_noreg     and difficulty
    length_controlled_v1        and the gamed answers: the leaderboard's

Without these anchors the rate is an extrapolation where one model's answers are nearly always the longer ones: the length
term then explains what the model term could. `warnings` says so, and `longer` is how often this model's were longer.

Source: Dubois and others, "Length-Controlled AlpacaEval" (2024), and metrics/glm_winrate.py of alpaca_eval 0.6.6. Two
things differ. Its solver stops early (tolerance 1e-4), this one at convergence. Its `lc_standard_error` is the spread of
the predictions over instructions, which is 0 without a difficulty; it is here as `predictions_standard_error`, beside a
standard error of the rate itself.
"""

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np

from qlora_lib.errors import UsageError
from qlora_lib.metrics.win_rate import win_rate

STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the penalty: scikit-learn's C
FOLDS = 5
GAMED_WEIGHT = 0.2 / 2  # of one instruction's two gamed answers together, against 1 for this model's


@dataclass(frozen=True)
class Gamed:
    """AlpacaEval's own: the difficulty of its instructions, and preferences for two answers that game length."""

    difficulty: tuple[float, ...]  # [instructions]
    lengths: tuple[float, ...]  # [rows] length differences, already divided by their standard deviation
    row_difficulty: tuple[float, ...]  # [rows]
    preferences: tuple[float, ...]  # [rows] 0 to 1


def read_gamed(path: Path) -> Gamed:
    """AlpacaEval's `df_gamed.csv`, from the data set tatsu-lab/alpaca_eval on the hub.

    Raises:
        UsageError: for a file that cannot be read as one.
    """
    try:
        with open(path, newline="", encoding="utf-8") as f:
            rows = [row for row in csv.DictReader(f) if row["preference"]]
        first = {int(row["index"]): float(row["instruction_difficulty"]) for row in reversed(rows)}
        if not first:
            raise ValueError("no rows")
        return Gamed(
            tuple(first[i] for i in range(len(first))),
            *(tuple(float(row[k]) for row in rows) for k in ("std_delta_len", "instruction_difficulty", "preference")),
        )
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as e:
        raise UsageError(
            f"{path} is not AlpacaEval's df_gamed.csv ({type(e).__name__}: {e})",
            "Columns index, preference, std_delta_len and instruction_difficulty were expected",
        ) from None


def length_controlled_win_rate(
    preferences: Sequence[float | None],
    lengths: Sequence[int],
    baseline_lengths: Sequence[int],
    difficulty: Sequence[float] | None = None,
    gamed: Gamed | None = None,
) -> dict:
    """`win_rate`'s dictionary and the length-controlled rate, both in percent.

    Beside those of `win_rate`: length_controlled_win_rate, length_controlled_standard_error (of the rate, over
    instructions), predictions_standard_error (AlpacaEval's `lc_standard_error`), glm (the model fitted), terms (name ->
    fitted coefficient), absent (terms that were not fitted, and why), mean_length, mean_baseline_length, longer (percent of
    the instructions where this model's answer is the longer one) and warnings. Where nothing can be fitted the rate is
    None and `absent` says why.

    Args:
        preferences: 1 (the baseline) to 2 (this model), None where the judge failed; one an instruction.
        lengths: characters of this model's answers.
        baseline_lengths: characters of the baseline's.
        difficulty: of each instruction, as AlpacaEval publishes it for its own.
        gamed: anchors the fit as the leaderboard's; needs `difficulty`.

    Raises:
        UsageError: where the numbers of entries differ, for a preference outside of [1, 2], and without any.
    """
    n = len(preferences)
    for name, values in (("lengths", lengths), ("baseline_lengths", baseline_lengths), ("difficulty", difficulty)):
        if values is not None and len(values) != n:
            raise UsageError(f"{n} preferences and {len(values)} {name} were given; one an instruction was expected")
    if gamed is not None and difficulty is None:
        raise UsageError("the gamed answers anchor a fit with difficulties; pass both or neither")
    result = win_rate(preferences)
    y = np.array([math.nan if p is None else p - 1 for p in preferences], dtype=float)
    gaps = np.asarray(baseline_lengths, dtype=float) - np.asarray(lengths, dtype=float)
    spread = gaps.std(ddof=1) if n > 1 else 0.0

    terms, absent = ["model"], {}
    if spread > 0:
        terms.insert(0, "length")
    else:
        absent["length"] = "every length difference is the same"
    if difficulty is not None:
        terms.insert(-1, "difficulty")
    else:
        absent["difficulty"] = "no difficulties of these instructions were given"
    if difficulty is not None and gamed is None:
        absent["gamed answers"] = "not given"
    size = "v1" if gamed is not None else "minimal" if difficulty is None else "noreg"
    result |= {
        "length_controlled_win_rate": None, "length_controlled_standard_error": None, "predictions_standard_error": None,
        "glm": f"length_controlled_{size}", "terms": None, "absent": absent,
        "mean_length": float(np.mean(lengths)), "mean_baseline_length": float(np.mean(baseline_lengths)),
        "longer": 100 * float((gaps < 0).mean()), "warnings": [],
    }  # fmt: skip
    if result["n"] < FOLDS:
        absent["all"] = f"{result['n']} preferences are too few: at least {FOLDS} are needed"
        return result

    columns = {
        "length": np.tanh(gaps / spread) if spread > 0 else None,
        "difficulty": None if difficulty is None else np.asarray(difficulty, dtype=float),
        "model": np.ones(n),
    }
    x = np.column_stack([columns[name] for name in terms])  # [n, terms]
    at_equal_length = x * [name != "length" for name in terms]
    kept = ~np.isnan(y)
    anchors = _anchors(gamed, terms)
    rows = np.concatenate([anchors[0], x[kept]])
    wanted = np.concatenate([anchors[1], y[kept]])
    weights = np.concatenate([np.full(len(anchors[1]), GAMED_WEIGHT), np.ones(int(kept.sum()))])
    coefficients = fit(rows, wanted, weights, _best_strength(rows, wanted, weights))
    predicted = _logistic(at_equal_length @ coefficients)
    rate = 100 * float(predicted.mean())
    return result | {
        "length_controlled_win_rate": rate,
        "length_controlled_standard_error": _standard_error(x, y, at_equal_length, rows, weights, coefficients),
        "predictions_standard_error": 100 * float(predicted.std(ddof=1)) / math.sqrt(n),
        "terms": dict(zip(terms, coefficients.tolist(), strict=True)),
        "warnings": _warnings(result["win_rate"], rate, gaps, coefficients, gamed is not None),
    }


def _warnings(raw: float, controlled: float, gaps: np.ndarray, coefficients: np.ndarray, anchored: bool) -> list[str]:
    """What makes the controlled rate doubtful. The bounds of a suspicious change are alpaca_eval's own."""
    found = []
    if coefficients[-1] == 0:
        found.append("the penalty left no model term: these preferences do not tell the models apart")
    longer, shorter = (100 * float(side.mean()) for side in (gaps < 0, gaps > 0))
    if not anchored and max(longer, shorter) > 90 and min(longer, shorter) < 10:
        side = "longer" if longer > shorter else "shorter"
        found.append(
            f"{max(longer, shorter):.0f} % of this model's answers are the {side} ones: equal length is an extrapolation"
        )
    if controlled < min(raw * 3 / 4, raw - 10) or controlled > max(raw + (100 - raw) / 4, raw + 10):
        found.append(f"far from the raw rate ({controlled:.1f} % against {raw:.1f} %): the fit may have failed")
    return found


def _anchors(gamed: Gamed | None, terms: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the gamed answers: they have a length and a difficulty, and no part in the model term."""
    if gamed is None:
        return np.empty((0, len(terms))), np.empty(0)
    columns = {
        "length": np.tanh(np.array(gamed.lengths)),
        "difficulty": np.array(gamed.row_difficulty),
        "model": np.zeros(len(gamed.lengths)),
    }
    return np.column_stack([columns[name] for name in terms]), np.array(gamed.preferences)


def fit(x: np.ndarray, y: np.ndarray, weights: np.ndarray, strength: float) -> np.ndarray:
    """The minimum over w of |w|_1 + strength * sum of weights * logistic loss of y (0 to 1) at x w.

    Proximal Newton: the minimum of the second-order model at w, then a step towards it as long as the loss falls.
    """
    w = np.zeros(x.shape[1])
    value = _objective(w, x, y, weights, strength)
    for _ in range(200):
        p = _logistic(x @ w)
        gradient = strength * (x.T @ (weights * (p - y)))
        curvature = strength * (x.T * (weights * p * (1 - p))) @ x
        curvature += (1e-12 + 1e-13 * curvature.trace()) * np.eye(len(w))
        step, length = _direction(w, gradient, curvature), 1.0
        while (new := _objective(w + length * step, x, y, weights, strength)) > value and length > 1e-12:
            length /= 2
        if new > value:
            break
        w, value = w + length * step, new
        if np.abs(length * step).max() < 1e-11:
            break
    return w


def _direction(w: np.ndarray, gradient: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """The step to the minimum of the second-order model and |w|_1: for each pattern of signs that is a linear system.

    The pattern of w itself is nearly always right; else the lowest of all 27 (three terms) is.
    """
    target, best, lowest = curvature @ w - gradient, np.zeros_like(w), math.inf
    for signs in [np.sign(w), *(np.array(pattern) for pattern in product((-1.0, 0.0, 1.0), repeat=len(w)))]:
        active, new = signs != 0, np.zeros_like(w)
        if active.any():
            new[active] = np.linalg.solve(curvature[np.ix_(active, active)], (target - signs)[active])
        left = target - curvature @ new  # of the slope: at the minimum the sign where active, within 1 elsewhere
        if (new[active] * signs[active] > 0).all() and (np.abs(left[~active]) <= 1).all():
            return new - w
        step = new - w
        value = gradient @ step + step @ curvature @ step / 2 + np.abs(new).sum()
        if value < lowest:
            best, lowest = step, value
    return best


def _objective(w, x, y, weights, strength) -> float:
    z = x @ w
    return float(np.abs(w).sum() + strength * (weights * (np.logaddexp(0, z) - y * z)).sum())


def _best_strength(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """The strength whose predictions of the left-out folds have the least loss, the weakest of equals.

    Folds are dealt in turn from the last row on, as scikit-learn's GroupKFold does for groups of one size.
    """
    fold = np.arange(len(y))[::-1] % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for k in range(FOLDS):
        train, test = fold != k, fold == k
        for i, strength in enumerate(STRENGTHS):
            p = np.clip(_logistic(x[test] @ fit(x[train], y[train], weights[train], strength)), 1e-15, 1 - 1e-15)
            losses[i] -= np.mean(weights[test] * (y[test] * np.log(p) + (1 - y[test]) * np.log(1 - p)))
    return float(STRENGTHS[losses.argmin()])


def _standard_error(x, y, at_equal_length, rows, weights, w) -> float | None:
    """Of the rate over instructions, in percent: each one's influence through the fit and through the mean (sandwich)."""
    active = w != 0
    if not active[-1]:  # the penalty decided, not the preferences
        return None
    p, n, kept = _logistic(at_equal_length @ w), len(y), ~np.isnan(y)
    influence = (p - p.mean()) / n
    fitted = _logistic(rows @ w)
    curvature = (rows[:, active].T * (weights * fitted * (1 - fitted))) @ rows[:, active]
    score = x[kept][:, active] * (y[kept] - _logistic(x[kept] @ w))[:, None]
    slope = (p * (1 - p)) @ at_equal_length[:, active] / n
    try:
        influence[kept] += (score - score.mean(axis=0)) @ np.linalg.solve(curvature, slope)
    except np.linalg.LinAlgError:
        return None
    return 100 * float(np.sqrt((influence**2).sum() * n / (n - 1)))


def _logistic(z: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -z))
