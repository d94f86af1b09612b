"""The framework of the course: verdicts, pictures, the ledger, controls."""

import json

import numpy as np
import pytest
import torch

from qlora_lib.course import answers
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number, check
from qlora_lib.course.control import control
from qlora_lib.errors import UsageError
from qlora_lib.notebooks.ledger import Ledger
from qlora_lib.notebooks.predictions import draw_predictions, predictions_alt
from qlora_lib.notebooks.execution import WIDGET
from qlora_lib.notebooks.shown import Picture
from qlora_lib import style


def bits(half: float = 0.5) -> float:
    return 4 + half


NUMBER = Number(
    key="00.1", title="Bits", unit="bits", expected=bits, explain="4 bits of code and the scale's share.",
    parts=lambda half=0.5: {"code": 4.0, "scale": half},
    mistakes=(
        Mistake(name="the scale was forgotten", why="Every block keeps one.", answer=lambda half=0.5: 4.0),
        Mistake(name="bytes, not bits", why="A byte has eight.", answer=lambda half=0.5: (4 + half) / 8),
    ),
)  # fmt: skip
FUNCTION = Function(
    key="00.2", title="Absmax", expected=lambda x: x.abs().max(), explain="The largest magnitude.", axis="absmax",
    cases=lambda: [Case("a row with a large negative value", (torch.tensor([1.0, -3.0, 2.0]),)), Case("zeros", (torch.zeros(2),))],
    mistakes=(Mistake(name="the sign was kept", why="A magnitude has none.", answer=lambda x: x.max()),),
)  # fmt: skip


def picture(value=1, **_):
    with style.page_style():
        figure = style.new_figure(3)
        figure.subplots().plot([0, value])
    return figure, "a line"


CHOICE = Choice(
    key="00.3", title="Which", options={"nf4": "quantiles.", "int4": "even levels.", "fp4": "exponents."}, right="nf4",
    draw=lambda answer, **_: picture(),
)  # fmt: skip


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setattr(answers, "MODULES", {"00": "made"})
    monkeypatch.setattr(answers, "exercises_of", lambda number: [NUMBER, FUNCTION, CHOICE])


@pytest.mark.parametrize("key", ["00.1", "00.2", "00.3"])
def test_dots_are_no_answer_and_no_error(key):
    assert check(key, ...).lead == "Open." and not check(key, ...).correct
    assert check(key, None).picture is None


@pytest.mark.parametrize("answer", [4.5, np.float32(4.5), torch.tensor(4.5), 4.5001])
def test_the_right_number_is_explained_and_drawn(answer):
    verdict = check("00.1", answer)
    assert verdict.correct and "scale's share" in verdict.message and verdict.picture.alt.startswith("Your answer")


@pytest.mark.parametrize(
    "answer, said",
    [
        (4.0, "The scale was forgotten. Every block keeps one."),
        (0.5625, "Bytes, not bits"),
        (9.0, "too large, by a factor of 2"),
        (4.4, "too small, by 2.3 %"),
        (-4.5, "mind the sign"),
        (450.0, "by a factor of 100"),
        ("4.5", "'4.5' is not a number"),
        (True, "is not a number"),
        (float("nan"), "is not a number"),
        ([1, 2], "is not a number"),
    ],
)
def test_a_wrong_number_is_told_apart(answer, said):
    verdict = check("00.1", answer)
    assert not verdict.correct and said in verdict.message


def test_what_is_given_decides_the_number():
    assert check("00.1", 4.25, half=0.25).correct and not check("00.1", 4.5, half=0.25).correct


def test_functions_are_tried_on_every_case():
    assert check("00.2", lambda x: x.abs().amax()).correct
    assert check("00.2", lambda x: float(x.abs().max())).correct
    kept = check("00.2", lambda x: x.max())
    assert not kept.correct and kept.message.startswith("The sign was kept") and kept.picture is not None
    other = check("00.2", lambda x: x.abs().max() + 1)
    assert "1 of 1 elements differ; the first is element 0: 4 where 3 was expected" in other.message


@pytest.mark.parametrize(
    "function, said",
    [
        (lambda x: 1 / 0, "For a row with a large negative value your function stopped: ZeroDivisionError"),
        (lambda x, y: x, "your function stopped: TypeError"),
        (lambda x: x.abs(), r"the shape is \[3\], and \[\] was expected"),
        (lambda x: (x.abs().max(), 1), "the shape is \\[2\\], and \\[\\] was expected"),
        (lambda x: "3", "numbers were expected"),
        (3.0, "A function was expected, not 3.0"),
        (lambda x: None if x.max() == 0 else x.abs().max(), "For zeros your function returns nothing"),
    ],
)
def test_what_a_function_does_wrong_is_a_sentence(function, said):
    import re

    verdict = check("00.2", function)
    assert not verdict.correct and re.search(said, verdict.message), verdict.message


def test_a_function_of_dots_is_open_and_cannot_spoil_the_case():
    def open_function(x): ...

    def spoils(x):
        found = x.abs().max()
        x.zero_()
        return found

    assert check("00.2", open_function).lead == "Open."
    assert check("00.2", spoils).correct


def test_a_choice_is_answered_by_its_reason():
    assert check("00.3", " nf4 ").correct
    wrong = check("00.3", "int4")
    assert not wrong.correct and "int4" in wrong.message and "even levels" in wrong.message and wrong.picture
    assert "none of the options: nf4, int4, fp4" in check("00.3", "af4").message
    assert "none of the options" in check("00.3", 4).message


def test_unknown_exercises_name_the_nearest():
    with pytest.raises(UsageError, match="no exercise '00.4'"):
        check("00.4", 1)
    with pytest.raises(UsageError, match="no exercise '42.1'"):
        check("42.1", 1)


def test_a_verdict_shows_words_then_the_picture(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    check("00.1", 4.0)._ipython_display_()
    assert "<strong>Not yet.</strong>" in shown[0].html and isinstance(shown[1], Picture)
    assert repr(check("00.1", 4.5)).startswith("Right. ")


# --- the ledger -----------------------------------------------------------------------------------


def test_the_first_prediction_counts(tmp_path):
    path = tmp_path / "course" / "predictions.json"
    Ledger(path).note("01 a", None, 2.0, "rate", "Measured", rule=4)
    Ledger(path).note("01 a", 3, 2.0, "rate", "Measured", rule=4)
    ledger = Ledger(path)
    assert ledger.note("01 a", 2.0, 2.5, "rate", "Measured", rule=4).guess == 3.0
    assert [(e.guess, e.value, e.rule) for e in Ledger(path).entries] == [(3.0, 2.5, 4.0)]
    assert ledger.note("01 a", None, 2.5, "rate", "Measured").guess == 3.0


def test_two_notebooks_share_a_ledger(tmp_path):
    one, two = Ledger(tmp_path / "p.json"), Ledger(tmp_path / "p.json")
    one.note("02 b", 1, 1, "rate", "Measured")
    two.note("01 a", 1, 1, "rate", "Measured")
    assert [e.name for e in Ledger(tmp_path / "p.json").entries] == ["01 a", "02 b"]


@pytest.mark.parametrize("text", ["{", '[{"name": 1}]', "[3]", '{"a": 1}'])
def test_a_damaged_ledger_is_put_aside(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    assert Ledger(tmp_path / "p.json").entries == []
    assert (tmp_path / "p.damaged.json").read_text() == text


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    ledger = Ledger(tmp_path / "file" / "p.json")
    assert ledger.note("01 a", 1, 2, "rate", "Measured").guess == 1
    assert "cannot be written" in ledger.trouble and len(ledger.entries) == 1


@pytest.mark.parametrize("guess", ["many", float("nan"), float("inf"), [1]])
def test_no_prediction_but_a_number(tmp_path, guess):
    with pytest.raises(UsageError, match="is no prediction; a number was expected"):
        Ledger(tmp_path / "p.json").note("01 a", guess, 2, "rate", "Measured")
    assert not (tmp_path / "p.json").exists()


def test_predictions_are_drawn_as_ratios(tmp_path):
    ledger = Ledger(tmp_path / "p.json")
    ledger.note("01 near", 1.05, 1.0, "rate", "Measured", rule=2.0)
    ledger.note("02 far", 1e6, 1.0, "rate", "Measured")
    ledger.note("03 unguessed", None, 1.0, "rate", "Measured")
    ledger.note("04 other sign", -1.0, 1.0, "rate", "Measured")
    axes = draw_predictions(ledger.entries).axes[0]
    drawn = [(float(x), y) for line in axes.lines for x, y in zip(line.get_xdata(), line.get_ydata()) if line.get_marker() in "os"]
    assert drawn == [(2.0, 0), (1.05, 0), (32.0, 1)]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["01 near: 1.00", "02 far: 1.00"]
    assert "the rule 2.00" in predictions_alt(ledger.entries)
    assert json.loads((tmp_path / "p.json").read_text())[2]["guess"] is None


# --- controls -------------------------------------------------------------------------------------


def test_a_control_carries_a_static_picture():
    seen = []

    def draw(block_size, kind):
        seen.append((block_size, kind))
        return Picture(*picture(block_size))

    bundle, metadata = control(draw, block_size=[64, 32, 128, 256], kind=["nf4", "int4"])._repr_mimebundle_()
    assert seen[0] == (64, "nf4")
    assert bundle["image/png"].startswith(b"\x89PNG") and "block_size = 64, kind = nf4" in bundle["text/plain"]
    assert set(bundle) >= {WIDGET} and metadata["image/png"]["alt"] == "a line"


def test_a_control_redraws_what_is_chosen():
    seen = []

    def draw(rank):
        seen.append(rank)
        return Picture(*picture(rank))

    box = control(draw, rank=[8, 2, 4, 16]).widget()
    slider, image = box.children
    before = image.value
    slider.value = 16
    assert seen == [8, 16] and slider.options == (2, 4, 8, 16)
    assert bytes(image.value[:4]) == b"\x89PNG" and image.value != before


def test_a_control_needs_values():
    with pytest.raises(UsageError, match="'rank' has no values"):
        control(lambda rank: None, rank=[])
