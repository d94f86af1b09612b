"""The exercises of 07_fault_lab: eight diagnoses, with and without the lab's results."""

import pytest
import tiny

from qlora_lib.course.answers import OPEN, check
from qlora_lib.course.exercises import exercises_of
from qlora_lib.course.faults.run import Lab
from qlora_lib.course.faults.settings import TINY
from qlora_lib.style import render

one_thread = tiny.one_thread

# Written down apart from the code: a shuffle that changed would change the answers of printed courses.
RIGHT = {
    "07.1": "leaked split",
    "07.2": "loss on the prompt",
    "07.3": "merged onto the wrong base",
    "07.4": "pad = eos",
    "07.5": "alpha/r wrong",
    "07.6": "no chat template",
    "07.7": "learning rate ten times off",
    "07.8": "fp16 overflow",
}
# What a reader would confuse it with, and a word of the message that leads on.
WRONG = {
    "07.1": {
        "no chat template": "cost far more in the chat template",
        "learning rate ten times off": "sizes of the trained updates",
        "loss on the prompt": "Count the scored tokens",
    },
    "07.2": {
        "no chat template": "the two validation losses",
        "learning rate ten times off": "from the first steps on",
        "pad = eos": "one token less",
    },
    "07.3": {
        "alpha/r wrong": "direction of the trained one",
        "learning rate ten times off": "several times smaller or larger",
        "no chat template": "as good as the healthy one's",
    },
    "07.4": {
        "loss on the prompt": "far more tokens would be scored",
        "no chat template": "the two validation losses",
        "alpha/r wrong": "another size",
    },
    "07.5": {
        "merged onto the wrong base": "a cosine below one",
        "learning rate ten times off": "another from the first steps on",
        "fp16 overflow": "whether the losses are finite",
    },
    "07.6": {
        "leaked split": "people that nobody looked at",
        "alpha/r wrong": "another size",
        "pad = eos": "Count the scored tokens",
    },
    "07.7": {
        "alpha/r wrong": "training would be the healthy run's own",
        "fp16 overflow": "too good to be true",
        "loss on the prompt": "first training loss",
    },
    "07.8": {
        "learning rate ten times off": "several times smaller or larger",
        "leaked split": "better than the healthy run's",
        "merged onto the wrong base": "the healthy run's own",
    },
}


@pytest.fixture(scope="module")
def lab():
    """Few steps suffice: what is tested is that evidence is drawn, not what it shows."""
    from dataclasses import replace

    return Lab("tiny-random", replace(TINY, steps=2, eval_every=2, pretraining_steps=2, new_tokens=4))


def test_there_is_an_exercise_for_every_patient():
    assert [e.key for e in exercises_of("07")] == list(RIGHT)
    assert all(len(e.options) == 8 for e in exercises_of("07"))


@pytest.mark.parametrize("key", RIGHT)
def test_the_right_diagnosis_is_accepted_explained_and_drawn(key, lab):
    for given in ({}, {"lab": lab}):
        verdict = check(key, RIGHT[key], **given)
        assert verdict.correct and len(verdict.message) > 80
        assert len(render(verdict.picture.figure, "png")) > 5000 and RIGHT[key] in verdict.picture.alt


@pytest.mark.parametrize("key, answer", [(key, answer) for key, answers in WRONG.items() for answer in answers])
def test_a_wrong_diagnosis_is_told_what_it_would_have_looked_like(key, answer):
    verdict = check(key, answer)
    assert not verdict.correct and answer in verdict.message and WRONG[key][answer] in verdict.message
    assert RIGHT[key] not in verdict.message
    assert render(verdict.picture.figure, "png")


def test_wrong_evidence_stands_beside_what_decides_and_the_name_is_not_told(lab):
    verdict = check("07.1", "fp16 overflow", lab=lab)
    titles = [axes.get_title(loc="left") for axes in verdict.picture.figure.axes]
    assert titles == ["fp16 overflow: no", "what decides"]
    assert "What decides: validation loss" in verdict.picture.alt and "leaked" not in verdict.picture.alt


@pytest.mark.parametrize("answer", ["too little data", 3, "A", ""])
def test_what_is_none_of_the_eight_is_told_the_eight(answer):
    verdict = check("07.1", answer)
    assert not verdict.correct and "none of the options" in verdict.message and "pad = eos" in verdict.message


def test_an_open_exercise_is_no_error():
    assert check("07.4", ...).message == OPEN


def test_spaces_around_a_name_do_not_matter():
    assert check("07.4", " pad = eos ").correct
