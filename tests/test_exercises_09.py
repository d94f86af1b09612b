"""Exercises of notebook 09: right answers by other ways than the library's, wrong ones as they are made."""

import math

import numpy as np
import pytest

from exercising import accepted, rejected
from qlora_lib.course.answers import check
from qlora_lib.course.exercises.figures import EXERCISES


def not_turned_over(values, lower_is_better):
    return [v / max(values) for v in values]


def min_max(values, lower_is_better):
    low, high = min(values), max(values)
    scaled = [(v - low) / (high - low) for v in values]
    return [1 - s for s in scaled] if lower_is_better else scaled


def to_the_first(values, lower_is_better):
    return [values[0] / v for v in values] if lower_is_better else [v / values[0] for v in values]


def upside_down(values, lower_is_better):
    best = min(values) if lower_is_better else max(values)
    return [v / best if lower_is_better else best / v for v in values]


def test_ratios_to_the_best():
    def with_numpy(values, lower_is_better):
        values = np.array(values)
        return (values.min() / values if lower_is_better else values / values.max()).tolist()

    accepted("09.1", with_numpy)
    rejected("09.1", not_turned_over, "Where less is better the ratio was not turned over")
    rejected("09.1", min_max, "Min-max scaling")
    rejected("09.1", to_the_first, "It was divided by the first arm")
    rejected("09.1", upside_down, "The better values became the larger ratios")


def shoelace(spokes):
    turn = 2 * math.pi / len(spokes)
    x = [r * math.cos(i * turn) for i, r in enumerate(spokes)]
    y = [r * math.sin(i * turn) for i, r in enumerate(spokes)]
    return sum(x[i - 1] * y[i] - x[i] * y[i - 1] for i in range(len(spokes))) / 2


def open_polygon(spokes):
    turn = 2 * math.pi / len(spokes)
    return sum(spokes[i] * spokes[i + 1] for i in range(len(spokes) - 1)) * math.sin(turn) / 2


def parallelograms(spokes):
    return sum(spokes[i - 1] * spokes[i] for i in range(len(spokes))) * math.sin(2 * math.pi / len(spokes))


def cosine(spokes):
    return sum(spokes[i - 1] * spokes[i] for i in range(len(spokes))) * math.cos(2 * math.pi / len(spokes)) / 2


def sixty_degrees(spokes):
    return sum(spokes[i - 1] * spokes[i] for i in range(len(spokes))) * math.sqrt(3) / 4


def squares(spokes):
    return sum(r**2 for r in spokes) * math.sin(2 * math.pi / len(spokes)) / 2


def test_areas():
    accepted("09.2", shoelace)
    rejected("09.2", open_polygon, "The polygon was not closed")
    rejected("09.2", parallelograms, "Whole parallelograms")
    rejected("09.2", cosine, "The cosine was taken")
    rejected("09.2", sixty_degrees, "The angle of six spokes")
    rejected("09.2", squares, "Every spoke was squared")
    first = check("09.2", shoelace).message
    for spokes in ([1, 0.2] * 3, [1, 1, 1, 0.2, 0.2, 0.2]):
        assert f"{shoelace(spokes):.2f}" in first


def zeros_outside(values, width):
    return np.convolve(values, np.ones(width) / width, "same").tolist()


def ends_left_out(values, width):
    return np.convolve(values, np.ones(width) / width, "valid").tolist()


def looks_back(values, width):
    return [float(np.mean(values[max(0, i + 1 - width) : i + 1])) for i in range(len(values))]


def too_long(values, width):
    reach = width // 2 + 1
    return [float(np.mean(values[max(0, i - reach) : i + reach + 1])) for i in range(len(values))]


def test_moving_means():
    def masked(values, width):
        values = np.array(values)
        place = np.arange(len(values))
        return [values[abs(place - i) <= width // 2].mean() for i in place]

    accepted("09.3", masked)
    rejected("09.3", zeros_outside, "The steps beyond the ends were counted as zeros")
    rejected("09.3", ends_left_out, "The ends were left out")
    rejected("09.3", looks_back, "The mean looks back only")
    rejected("09.3", too_long, "The window is one step too long")


@pytest.mark.parametrize(
    "answer, said",
    [
        (7.23 / 1.86, "The ratio of the bars was given"),
        (27.23 / 21.86, "The ratio of the values was given"),
        (3.12, "Ratios were divided"),
        (0.0851, "The fraction is upside down"),
    ],
)
def test_wrong_lie_factors_are_named(answer, said):
    rejected("09.4", answer, said)


def test_the_lie_factor():
    accepted("09.4", 11.75)
    accepted("09.4", (5.37 / 1.86) / (5.37 / 21.86))


def test_the_right_figure():
    accepted("09.5", "memory at the peak")
    rejected(
        "09.5", "perplexity against bytes", "Not “perplexity against bytes”: its bytes are those of the deployed model"
    )
    rejected("09.5", "the radar", "Not “the radar”")
    rejected("09.5", "loss curves", "Not “loss curves”")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)
