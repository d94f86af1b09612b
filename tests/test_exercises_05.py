"""Exercises of notebook 05: right answers by other ways than the library's, wrong ones as they are made."""

import math

import numpy as np
import pytest
import torch
from exercising import accepted, rejected
from scipy import stats

from qlora_lib.analysis import paired_interval
from qlora_lib.course.exercises.comparison import EXERCISES, _windows

TOTAL, LINEAR, ADAPTER = 1_100_048_384, 968_884_224, 12_615_680
REST = TOTAL - LINEAR


RIGHT = [
    ("05.1", 16 * TOTAL / (4.127 * LINEAR + 16 * REST + 16 * ADAPTER)),
    ("05.1", 2.794),
    ("05.2", 0.6789),
    ("05.2", 2 / 3 + 12_615_680 / 1_034_420_224),
]
WRONG = [
    ("05.1", 3.82, "Every weight was taken as quantized and scales as free"),
    ("05.1", 2_098.18 / 548.61, "Every weight was taken as quantized and scales as free"),
    ("05.1", 2 * TOTAL / (TOTAL * 4.127 / 8 + 2 * ADAPTER), "Every weight was taken as quantized."),
    ("05.1", 2 * TOTAL / (LINEAR / 2 + 2 * REST + 2 * ADAPTER), "The scales were forgotten"),
    ("05.1", 2 * TOTAL / (LINEAR * 4.5 / 8 + 2 * REST + 2 * ADAPTER), "The scales were counted in 32 bits"),
    ("05.1", 2 * TOTAL / (LINEAR * 4.127 / 8 + 2 * REST), "The adapter was forgotten"),
    ("05.2", 3.53 / 13.52, "The bits of the weights were taken for operations"),
    ("05.2", 4 / 6, "The adapter's products were forgotten"),
    ("05.2", (2 * 1_034_420_224 + 6 * ADAPTER) / (6 * 1_034_420_224), "The frozen base was spared the backward pass"),
    ("05.2", ADAPTER / 1_034_420_224, "Only the trained weights were counted"),
    ("05.2", (4 * TOTAL + 6 * ADAPTER) / (6 * TOTAL), "The embedding was counted as a product"),
]


@pytest.mark.parametrize("key, answer", RIGHT)
def test_right_numbers(key, answer):
    accepted(key, answer)


@pytest.mark.parametrize("key, answer, said", WRONG)
def test_wrong_numbers_are_named(key, answer, said):
    rejected(key, answer, said)


def test_the_peak_that_was_used():
    accepted("05.3", "RTX 3090")
    rejected("05.3", "T4", "Not “T4”: 4.69 TFLOP/s are 7.2 %")
    rejected("05.3", "RTX 3070", "Not “RTX 3070”")
    rejected("05.3", "A100 40GB", "Not “A100 40GB”")


def by_numpy(a, b):
    d = np.asarray(a) - np.asarray(b)
    return d.mean(), stats.sem(d)


def apart(a, b):
    return (a - b).mean(), torch.sqrt(a.var() / len(a) + b.var() / len(b))


def spread(a, b):
    d = a - b
    return d.mean(), d.std()


def over_n(a, b):
    d = a - b
    return d.mean(), d.std() / len(d)


def of_a_population(a, b):
    d = (a - b).numpy()
    return d.mean(), d.std() / math.sqrt(len(d))


def turned(a, b):
    mean, error = by_numpy(b, a)
    return mean, error


@pytest.mark.parametrize(
    "answer, said",
    [
        (apart, "The pairs were torn apart"),
        (spread, "The spread of single windows"),
        (over_n, "It was divided by n"),
        (of_a_population, "N stands where"),
        (turned, "The difference has the other sign"),
    ],
)
def test_wrong_intervals_are_named(answer, said):
    rejected("05.4", answer, said)


def test_the_interval_of_the_pages():
    accepted("05.4", by_numpy)
    a, b = _windows(20, 0)
    interval = paired_interval(a.tolist(), b.tolist())
    mean, error = by_numpy(a, b)
    assert interval.value == pytest.approx(mean)
    assert interval.high - interval.low == pytest.approx(2 * stats.t.ppf(0.975, 19) * error)


def test_the_slow_recipe():
    accepted("05.5", "gradient checkpointing")
    rejected("05.5", "NF4 weights", "Not “NF4 weights”: turning them back")
    rejected("05.5", "double quantization", "Not “double quantization”")
    rejected("05.5", "the 8-bit optimizer", "Not “the 8-bit optimizer”")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)
