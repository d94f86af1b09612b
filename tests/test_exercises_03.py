"""The exercises of 03_lora: right answers from elsewhere, and wrong ones as a reader would write them."""

import math

import numpy as np
import peft
import pytest
import torch

from qlora_lib.course.answers import OPEN, check, exercise
from qlora_lib.course.exercises import exercises_of
from qlora_lib.figures import talk

KEYS = [f"03.{i}" for i in range(1, 8)]


def forward_by_peft(x, weight, a, b, alpha):
    """The output of PEFT's layer with these very matrices."""
    (out, width), rank = weight.shape, a.shape[0]
    model = torch.nn.Sequential(torch.nn.Linear(width, out, bias=False, dtype=weight.dtype))
    model = peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"])).eval()
    layer = model.base_model.model[0]
    with torch.no_grad():
        layer.base_layer.weight.copy_(weight)
        layer.lora_A.default.weight.copy_(a)
        layer.lora_B.default.weight.copy_(b)
        return model(x)


def merge_by_outputs(weight, a, b, alpha, rank_stabilized):
    """What both paths make of the unit vectors, column by column."""
    unit = torch.eye(weight.shape[1], dtype=weight.dtype)
    scaling = alpha * a.shape[0] ** (-0.5 if rank_stabilized else -1)
    return torch.stack([weight @ e + scaling * (b @ (a @ e)) for e in unit], dim=1)


RIGHT = {
    "03.1": 1.58434653 / (math.pi**2 / 6 - 1 / 576 + 1 / (2 * 576**2)),  # Euler-Maclaurin for the tail
    "03.2": forward_by_peft,
    "03.3": 12_615_680,  # as printed by the study
    "03.4": "both zero",
    "03.5": 4 * math.sqrt(2),
    "03.6": merge_by_outputs,
    "03.7": "dequantized",
}


@pytest.mark.parametrize("key", KEYS)
def test_the_right_answer_is_accepted_and_drawn(key):
    verdict = check(key, RIGHT[key])
    assert verdict.correct and len(verdict.message) > 40, verdict.message
    assert verdict.picture.alt and verdict.picture.figure.axes


WRONG = [
    ("03.1", sum(1 / i for i in range(1, 17)) / sum(1 / i for i in range(1, 577)), "not their squares"),
    ("03.1", 16 / 576, "Ranks were counted"),
    ("03.1", 1 - RIGHT["03.1"], "what is dropped"),
    ("03.1", 0.5, "too small"),
    ("03.2", lambda x, w, a, b, alpha: x @ w.T + (x @ a.T) @ b.T, "scaling was forgotten"),
    ("03.2", lambda x, w, a, b, alpha: x @ w.T + alpha * x @ a.T @ b.T, "without the rank"),
    ("03.2", lambda x, w, a, b, alpha: x @ w.T + len(a) / alpha * x @ (b @ a).T, "upside down"),
    ("03.2", lambda x, w, a, b, alpha: (x @ w.T + x @ (b @ a).T) * alpha / len(a), "base's output was scaled"),
    ("03.2", lambda x, w, a, b, alpha: x @ w + alpha / len(a) * x @ a.T @ b.T, "not transposed"),
    ("03.2", lambda x, w, a, b, alpha: alpha / len(a) * x @ a.T @ b.T, "base's output is missing"),
    ("03.2", lambda x, w, a, b, alpha: x @ w.T + alpha / len(a) * x @ a.T @ b.T + 1, "24 of 24 elements differ"),
    ("03.3", 573_440, "one layer"),
    ("03.3", 22 * 16 * (6 * 2048 + 5632), "Only one of the two matrices"),
    ("03.3", 22 * 16 * (2 * (768 + 2048) + 2 * (768 + 256) + 3 * (768 + 5632)), "hidden width of the study's table"),
    ("03.3", 22 * (2 * 2048 * 2048 + 2 * 2048 * 256 + 3 * 2048 * 5632), "full update"),
    ("03.3", 22 * 16 * (4 * 4096 + 3 * 7680), "as wide as the queries"),
    ("03.3", 12_615_681, "too large"),
    ("03.4", "A random, B zero", "after that step both move"),
    ("03.4", "A zero, B random", "after that step both move"),
    ("03.4", "both random", "no longer the base's"),
    ("03.4", "neither", "none of the options"),
    ("03.5", 32 / 32, "alpha / r"),
    ("03.5", 32 / 4, "old rank"),
    ("03.5", 32 / 4 / 2, "halved"),
    ("03.5", 8 * 2**0.5, "larger"),
    ("03.6", lambda w, a, b, alpha, rs: w + b @ a, "scaling was forgotten"),
    ("03.6", lambda w, a, b, alpha, rs: w + alpha / len(a) * (b @ a), "square root was left out"),
    ("03.6", lambda w, a, b, alpha, rs: w + alpha / len(a) ** 0.5 * (b @ a), "used for every adapter"),
    ("03.6", lambda w, a, b, alpha, rs: alpha / (len(a) ** 0.5 if rs else len(a)) * b @ a, "Only the product"),
    ("03.6", lambda w, a, b, alpha, rs: w + alpha / (len(a) ** 0.5 if rs else len(a)) * (a.T @ b.T), "transposed"),
    ("03.7", "original", "nobody has evaluated"),
    ("03.7", "quantized again", "rounding to sixteen levels once more"),
    ("03.7", "any", "differ in their outputs"),
]


@pytest.mark.parametrize("key, answer, message", WRONG)
def test_a_wrong_answer_is_told_which_mistake_it_is(key, answer, message):
    verdict = check(key, answer)
    assert not verdict.correct
    assert message in verdict.message
    if "options" not in message:
        assert verdict.picture.figure.axes and verdict.picture.alt


def test_every_exercise_is_here_and_each_way_to_err_is_another():
    assert [e.key for e in exercises_of("03")] == KEYS
    for e in exercises_of("03"):
        assert check(e.key, ...).message == OPEN
        assert len(e.mistakes) >= 3 or len(e.options) >= 4
        for mistake in e.mistakes:
            answer = mistake.answer() if hasattr(e, "unit") else mistake.answer
            assert check(e.key, answer).message.lower().startswith(mistake.name.lower()), (e.key, mistake.name)


def test_a_function_that_is_not_written_yet():
    def empty(x, weight, a, b, alpha): ...

    assert check("03.2", empty).message == OPEN


def test_the_talk_figure_shows_what_the_rank_keeps():
    falling = np.arange(1, 65) ** -2.0
    flat = np.full(64, 1 / 64)
    curves = {k: {"update": falling / falling.sum(), "weight": flat, "noise": flat} for k in ("q_proj", "down_proj")}
    figure = talk.draw_singular_values(curves, rank=16)
    top, _, bottom, _ = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes[:2]] == ["q_proj", "down_proj"]
    marks = [line.get_ydata()[0] for line in bottom.lines if line.get_marker() == "D"]
    assert marks == pytest.approx([100 * falling[:16].sum() / falling.sum(), 25, 25])
    assert top.lines[0].get_ydata()[3] == pytest.approx(1 / 4)  # sigma_4 / sigma_1
    assert not any("$" in label.get_text() for axes in figure.axes for label in axes.get_xticklabels() + axes.get_yticklabels())


def test_the_printed_picture_of_the_right_base_is_the_reason():
    """Only the dequantized base gives the outputs that were trained."""
    assert "dequantized 0 %" in check("03.7", "original").picture.alt
    assert exercise("03.4").right == "both zero"
