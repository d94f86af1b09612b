"""Exercises of notebook 11: right answers by other ways than the library's, wrong ones as they are made."""

import math
import re
import string

import numpy as np
import pytest
from exercising import accepted, rejected
from example_records import example_records
from example_sweeps import example_sweeps, example_task_sweeps, example_tasks, loss_of
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, ttest_rel

from qlora_lib.cost.shapes import SMOLLM2
from qlora_lib.course import studied
from qlora_lib.course.answers import check
from qlora_lib.course.exercises.ranks import draw_claims
from qlora_lib.course.exercises.tasks import EXERCISES
from qlora_lib.course.proportions import (
    paired_difference,
    proportion_interval,
    runs,
    shared_runs,
    unpaired_error,
)
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.studies import Studies
from qlora_lib.sweeps import ATTENTION


# --- 11.1, beside SQuAD's own script, evaluate-v1.1.py, written from its description ------------------


def script(prediction, answers, lower=True, articles=True, punctuation="out", first=False, bag=list, over=max):
    """[exact match, F1] with a step left out, replaced, or in another place."""

    def drop(text):
        if punctuation == "out":
            return "".join(c for c in text if c not in set(string.punctuation))
        return "".join(" " if c in string.punctuation else c for c in text)

    def without(text):
        return re.sub(r"\b(a|an|the)\b", " ", text) if articles else text

    def words(text):
        text = text.lower() if lower else text
        return (drop(without(text)) if first else without(drop(text))).split()

    def f1(found, wanted):
        found, wanted = bag(found), bag(wanted)
        left, same = list(wanted), 0
        for w in found:
            if w in left:
                left.remove(w)
                same += 1
        if not same:
            return 0.0
        precision, recall = same / len(found), same / len(wanted)
        return 2 * precision * recall / (precision + recall)

    found, wanted = words(prediction), [words(a) for a in answers]
    return [100 * float(max(found == w for w in wanted)), 100 * over([f1(found, w) for w in wanted])]


def once(words):
    return list(dict.fromkeys(words))


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda p, a: script(p, a, articles=False), "Articles were kept"),
        (lambda p, a: script(p, a, first=True), "Articles were taken out before the punctuation"),
        (lambda p, a: script(p, a, punctuation="space"), "Punctuation was replaced by a space"),
        (lambda p, a: script(p, a, lower=False), "Case was kept"),
        (lambda p, a: script(p, a, bag=once), "Words were counted once each"),
        (lambda p, a: script(p, a, over=lambda x: sum(x) / len(x)), "The mean over the right answers"),
        (lambda p, a: [x / 100 for x in script(p, a)], "Shares were returned"),
    ],
)
def test_exact_match_and_f1(answer, said):
    rejected("11.1", answer, said)


def test_exact_match_and_f1_right():
    accepted("11.1", script)


def test_containing_is_not_matching():
    def contains(p, a):
        def clean(t):
            return " ".join(re.sub(r"\b(a|an|the)\b", " ", "".join(c for c in t.lower() if c not in string.punctuation)).split())

        return [100.0 * any(clean(x) in clean(p) for x in a), script(p, a)[1]]

    rejected("11.1", contains, "Containing the answer was taken for matching it")


# --- 11.2 and 11.3, beside scipy ---------------------------------------------------------------------


def wilson(right, n, level=0.95):
    ci = binomtest(right, n).proportion_ci(level, method="wilson")
    return [100 * ci.low, 100 * ci.high]


def wald(right, n):
    half = 1.96 * (right / n * (1 - right / n) / n) ** 0.5
    return [100 * (right / n - half), 100 * (right / n + half)]


def undivided(right, n):
    p, z = right / n, 1.96
    half = z * (p * (1 - p) / n + z * z / 4 / n**2) ** 0.5
    return [100 * (p + z * z / 2 / n - half), 100 * (p + z * z / 2 / n + half)]


def uncentred(right, n):
    p, z = right / n, 1.96
    half = z * (p * (1 - p) / n + z * z / 4 / n**2) ** 0.5 / (1 + z * z / n)
    return [100 * (p - half), 100 * (p + half)]


@pytest.mark.parametrize(
    "answer, said",
    [
        (wald, "The formula p ± z"),
        (undivided, "The divisor 1 + z²/n was forgotten"),
        (uncentred, "The interval was centred"),
        (lambda r, n: wilson(r, n, 0.6827), "One standard error"),
        (lambda r, n: wilson(r, n, 0.90), "Z of a one-sided level"),
        (lambda r, n: [x / 100 for x in wilson(r, n)], "Shares were returned"),
    ],
)
def test_interval(answer, said):
    rejected("11.2", answer, said)


def test_interval_right():
    accepted("11.2", wilson)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_intervals_are_scipys(pair):
    low, high = proportion_interval(*pair)
    assert np.allclose([low, high], wilson(*pair), atol=1e-4) and -1e-9 <= low <= 100 * pair[0] / pair[1] + 1e-9 <= high + 2e-9


def of_scipy(before, after):
    test = ttest_rel(after, before)
    mean = float(np.mean(np.subtract(after, before)))
    return [mean, float(mean / test.statistic) if mean else float(np.std(np.subtract(after, before), ddof=1) / len(after) ** 0.5)]


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda b, a: [np.mean(a) - np.mean(b), ((np.var(a, ddof=1) + np.var(b, ddof=1)) / len(a)) ** 0.5], "The two were treated as different"),
        (lambda b, a: [np.mean(a) - np.mean(b), np.std(np.subtract(a, b), ddof=1)], "The spread of one example"),
        (lambda b, a: [np.mean(a) - np.mean(b), np.std(np.subtract(a, b), ddof=1) / len(a)], "The spread was divided by n"),
        (lambda b, a: [np.mean(a) - np.mean(b), np.std(np.subtract(a, b)) / len(a) ** 0.5], "The deviations were averaged over n"),
        (lambda b, a: [-of_scipy(b, a)[0], of_scipy(b, a)[1]], "Before less after"),
        (lambda b, a: [of_scipy(b, a)[0], 1.96 * of_scipy(b, a)[1]], "The half-width"),
    ],
)
def test_paired(answer, said):
    rejected("11.3", lambda b, a: [float(x) for x in answer(b, a)], said)


def test_paired_right():
    accepted("11.3", of_scipy)


def test_pairing_pays_where_both_agree():
    before = [100.0, 100.0, 0.0, 0.0] * 10
    after = [100.0, 100.0, 100.0, 0.0] * 10
    assert paired_difference(before, after)[1] < unpaired_error(before, after)
    swapped = [100.0 - x for x in before]  # from one constant answer to the other: pairing costs
    assert paired_difference(before, swapped)[1] > unpaired_error(before, swapped)


# --- 11.4 and 11.5 -----------------------------------------------------------------------------------


def by_shapes(rank, layers, hidden, kv, wide, factors=lambda r, i, o: r * (i + o), mlp=3):
    attention = [(hidden, hidden), (hidden, kv), (hidden, kv), (hidden, hidden)]
    rest = [(hidden, wide), (hidden, wide), (wide, hidden)][:mlp]
    return [layers * sum(factors(rank, *s) for s in attention), layers * sum(factors(rank, *s) for s in [*attention, *rest])]


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda *a: by_shapes(*a, factors=lambda r, i, o: i * o), "Weights of the frozen matrices"),
        (lambda *a: by_shapes(*a, factors=lambda r, i, o: r * i), "A was counted without B"),
        (lambda r, n, h, k, m: by_shapes(r, n, h, h, m), "Keys and values were taken as wide"),
        (lambda *a: by_shapes(*a, mlp=2), "Two matrices of the MLP"),
        (lambda r, n, *a: by_shapes(r, 1, *a), "One layer was counted"),
        (lambda *a: [by_shapes(*a)[0], by_shapes(*a)[1] - by_shapes(*a)[0]], "The MLP alone"),
    ],
)
def test_trainable(answer, said):
    rejected("11.4", answer, said)


def test_trainable_right():
    accepted("11.4", by_shapes)
    assert by_shapes(16, 30, 576, 192, 1536) == [SMOLLM2.lora_parameters(16, ATTENTION), SMOLLM2.lora_parameters(16)]


@pytest.mark.parametrize(
    "answer, said",
    [(16, "Alpha was kept"), (4, "Alpha was divided"), (32, "The root of the rank"), (128, "Twice the rank"), (1, "The scale was returned")],
)
def test_alpha(answer, said):
    rejected("11.5", answer, said)


def test_alpha_right():
    accepted("11.5", 64)


# --- 11.6 and 11.7 -----------------------------------------------------------------------------------


def crossing(rates, losses, limit, log=True):
    """The interval around the best on a fine grid of an interpolated curve."""
    x = np.log10(rates) if log else np.asarray(rates)
    fine = np.linspace(x[0], x[-1], 400_001)
    fits = np.interp(fine, x, losses) <= limit + 1e-12
    at = int(np.argmin(np.abs(fine - x[int(np.argmin(losses))])))
    low, high = at, at
    bad = np.flatnonzero(~fits)
    low = bad[bad < at].max() + 1 if (bad < at).any() else 0
    high = bad[bad > at].min() - 1 if (bad > at).any() else len(fine) - 1
    ends = [float(fine[low]), float(fine[high])]
    return ends if log else [math.log10(e) for e in ends]


@pytest.mark.parametrize(
    "answer, said",
    [
        (lambda r, x, w: [math.log10(f([a for a, b in zip(r, x) if b <= min(x) + w])) for f in (min, max)], "The range ends at tried rates"),
        (lambda r, x, w: crossing(r, x, min(x) + w, log=False), "The loss was taken as linear in the rate"),
        (lambda r, x, w: crossing(r, x, min(x) * (1 + w)), "The limit was taken relative"),
        (lambda r, x, w: crossing(r, x, min(x) + w / 2), "Half of the tolerance"),
        (lambda r, x, w: [10**e for e in crossing(r, x, min(x) + w)], "The rates were returned"),
    ],
)
def test_good_range(answer, said):
    rejected("11.6", answer, said)


def test_good_range_right():
    accepted("11.6", lambda r, x, w: crossing(r, x, min(x) + w))


def test_choice_is_answered_with_its_reason():
    accepted("11.7", "not comparable yet")
    claim = EXERCISES[-1]
    for option in set(claim.options) - {claim.right}:
        verdict = check("11.7", option)
        assert not verdict.correct and option in verdict.message and verdict.picture is not None
    assert "open above" in draw_claims()[1] and draw_claims()[1].count("open") == 1


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.key)
def test_every_exercise_knows_its_mistakes(exercise):
    names = [m.name for m in exercise.mistakes] or list(exercise.options)
    assert len(set(names)) == len(names) >= 4


# --- contamination -------------------------------------------------------------------------------------


def test_runs_are_counted_without_case_and_within_lines():
    assert runs("The Cat, the dog.", 3) == {("the", "cat", "the"), ("cat", "the", "dog")}
    assert runs("a b c\nd e", 3) == {("a", "b", "c")}  # none across the line's end, and the short line counts for nothing
    assert runs("Short\ntext", 8) == {("short", "text")}


def test_what_every_prompt_has_is_no_leak():
    template = "answer the question with a few words of the text below"
    train = [f"{template}\nthe river {i} rises in the hills and flows north" for i in range(1000)]
    test = [f"{template}\nit was said that the river 7 rises in the hills and", f"{template}\nsomething new altogether"]
    found = shared_runs(test, train, length=6)
    assert found == [["7 rises in the hills and", "river 7 rises in the hills", "the river 7 rises in the"], []]
    assert shared_runs(test, train, length=6, common=1.0)[1]  # the template itself


# --- what the lesson shows -----------------------------------------------------------------------------


class AnyLesson:
    """As much of a lesson as `Studied` asks for."""

    def __init__(self, name="demo", tasks=None):
        self.profile = type("Profile", (), {"name": name})
        self.records, self.tasks = example_records("demo"), tasks or {}


def shown_with(monkeypatch, found: Studies, name="demo"):
    asked = []
    monkeypatch.setattr(studied, "studies_of", lambda profile: asked.append(profile) or (found if profile == "demo" else Studies()))
    return studied.Studied(AnyLesson(name, found.tasks)), asked


def test_all_is_shown_that_was_swept(monkeypatch):
    shown, asked = shown_with(monkeypatch, Studies(example_sweeps(), example_tasks(), example_task_sweeps()))
    assert asked == ["demo"] and shown.settings == list(studied.SETTINGS) and not shown.missing
    assert "Full fine-tuning" in shown.table("sweep-methods").text
    assert "84.5" in shown.table("task-tasks").text
    assert "not measured" not in shown.origin().text
    assert shown.best("lora").value == 2e-3
    for setting in ("rate, QLoRA", "dropout"):
        assert "Validation loss" in shown.curve(setting).alt


def test_another_profile_shows_the_demos_sweeps(monkeypatch):
    shown, asked = shown_with(monkeypatch, Studies(example_sweeps()), "smoke")
    assert asked == ["smoke", "demo"] and "profile “demo-long”" in shown.origin().text and not shown.found.tasks


def test_without_sweeps_it_says_so(monkeypatch):
    shown, _ = shown_with(monkeypatch, Studies())
    assert NOT_MEASURED in shown.origin().text and shown.settings == []
    for slot in ("sweep-method", "sweep-best", "sweep-sensitivity", "sweep-rank", "sweep-settings", "sweep-batch", "task-moved", "task-rank"):
        assert NOT_MEASURED in shown.say(slot).text.lower(), slot
    assert NOT_MEASURED in shown.table("sweep-settings").text.lower()
    assert "Not drawn" in shown.figure("task-rank").text
    assert studied.good_rates({}) == [] and shown.best("full") is None


def test_a_failed_seed_is_a_cross_and_no_mean(monkeypatch):
    fails = example_sweeps(lambda m, s, seed: None if (m, s.train.learning_rate, seed) == ("lora", 8e-3, 1) else loss_of(m, s, seed))
    shown, _ = shown_with(monkeypatch, Studies(fails))
    picture = shown.curve("rate, LoRA")
    assert "8 × 10⁻³: failed" in picture.alt
    left = picture.figure.axes[0]
    assert [line.get_marker() for line in left.lines].count("x") == 1
    means = next(line for line in left.lines if len(line.get_xdata()) > 1)
    assert len(means.get_xdata()) == 4


def test_a_small_difference_is_not_drawn_large(monkeypatch):
    shown, _ = shown_with(monkeypatch, Studies(example_sweeps()))
    low, high = shown.curve("dropout").figure.axes[0].get_ylim()
    assert high - low >= 4 * shown.tolerance
