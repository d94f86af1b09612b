"""Exercises whose checker says what is wrong, names the mistake where it knows it, and draws the difference.

How it works: an exercise knows how to compute the right answer with the library, and the typical wrong
ones. `check` compares a reader's answer with them and returns a `Verdict`: a sentence and a picture. Three
kinds are enough: a `Number` to derive, a `Function` to write, a `Choice` to reason. Whatever a reader
gives, the outcome is a sentence: an exception in their function is told as one, and `...` means that
there is no answer yet, so that a notebook with open exercises runs to its end.
"""

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch

from qlora_lib.course import drawing
from qlora_lib.course.exercises import MODULES, exercises_of
from qlora_lib.errors import UsageError, nearest, one_line
from qlora_lib.notebooks.shown import Picture, paragraphs
from qlora_lib.style import Figure

OPEN = "No answer yet: replace the dots and run the cell again."


@dataclass(frozen=True)
class Verdict:
    """What the checker says of one answer."""

    correct: bool
    message: str
    picture: Picture | None = None
    lead: str = "Not yet."

    def _ipython_display_(self) -> None:
        from IPython.display import display

        display(paragraphs([self.message], [self.lead]))
        if self.picture is not None:
            display(self.picture)

    def __repr__(self) -> str:
        return f"{self.lead} {self.message}"


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A typical wrong way. `answer` makes what it leads to: a number (of the given), or a function."""

    name: str
    why: str
    answer: Callable


@dataclass(frozen=True)
class Case:
    """Arguments that a reader's function is tried on."""

    label: str
    args: tuple


@dataclass(frozen=True, kw_only=True)
class Exercise:
    """What all kinds have: the key is the notebook's number, a point, and the exercise's own."""

    key: str
    title: str
    explain: str = ""  # said with a right answer
    mistakes: tuple[Mistake, ...] = ()

    def _accept(self, picture: Picture | None) -> Verdict:
        return Verdict(True, self.explain, picture, "Right.")

    def _name(self, mistake: Mistake, picture: Picture | None) -> Verdict:
        return Verdict(False, f"{mistake.name[:1].upper()}{mistake.name[1:]}. {mistake.why}", picture)


@dataclass(frozen=True, kw_only=True)
class Number(Exercise):
    """A number to derive.

    expected and a mistake's `answer`: of the given (keyword arguments of `check`) to the number.
    parts: what the right number is made of, in its unit; drawn as one stacked bar.
    tolerance: relative.
    """

    unit: str
    expected: Callable[..., float]
    parts: Callable[..., Mapping[str, float]] | None = None
    tolerance: float = 1e-3

    def judge(self, answer: Any, **given) -> Verdict:
        try:
            value = None if isinstance(answer, str | bool) else float(answer)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            value = None
        if value is None or not math.isfinite(value):
            shown = one_line(repr(answer))[:60]
            return Verdict(False, f"{shown} is not a number; a number of {self.unit} was expected.")
        expected = float(self.expected(**given))
        parts = dict(self.parts(**given)) if self.parts else {}
        figure, alt = drawing.number(value, expected, parts, self.unit)
        picture = Picture(figure, alt)
        if self._equal(value, expected):
            return self._accept(picture)
        for mistake in self.mistakes:
            if self._equal(value, float(mistake.answer(**given))):
                return self._name(mistake, picture)
        return Verdict(False, self._by_how_much(value, expected), picture)

    def _equal(self, a: float, b: float) -> bool:
        return math.isclose(a, b, rel_tol=self.tolerance, abs_tol=1e-12)

    def _by_how_much(self, value: float, expected: float) -> str:
        if value * expected <= 0:
            return f"{value:g} {self.unit} is not it; mind the sign and the zero."
        ratio = value / expected
        direction, ratio = ("too large", ratio) if ratio > 1 else ("too small", 1 / ratio)
        by = f"by {100 * (ratio - 1):.2g} %" if ratio < 1.5 else f"by a factor of {ratio:.3g}"
        return f"{value:g} {self.unit} is {direction}, {by}. Compare it with what the right one is made of."


@dataclass(frozen=True, kw_only=True)
class Function(Exercise):
    """A function to write; a mistake's `answer` is a wrong one.

    cases: what it is tried on. It may return a number, a tensor, or a tuple of these.
    tolerance: absolute, of every element; 0 asks for equality.
    """

    expected: Callable
    cases: Callable[[], list[Case]]
    tolerance: float = 0.0
    axis: str = "value"  # what the elements are, with their unit

    def judge(self, answer: Any) -> Verdict:
        if not callable(answer):
            return Verdict(False, f"A function was expected, not {one_line(repr(answer))[:60]}; give its name without calling it.")
        cases, outputs = self.cases(), []
        for case in cases:
            try:
                output = answer(*copy.deepcopy(case.args))
            except Exception as e:  # a reader's code may raise anything
                return Verdict(False, f"For {case.label} your function stopped: {type(e).__name__}: {one_line(str(e))[:200]}.")
            if output is None or output is ...:
                text = OPEN if case is cases[0] else f"For {case.label} your function returns nothing."
                return Verdict(False, text, lead="Open." if text == OPEN else "Not yet.")
            try:
                outputs.append(_flat(output))
            except (TypeError, ValueError, RuntimeError):
                return Verdict(False, f"For {case.label} your function returns {one_line(repr(output))[:60]}; numbers were expected.")
        wanted = [_flat(self.expected(*copy.deepcopy(case.args))) for case in cases]
        at = self._first_difference(outputs, wanted)
        shown = cases[0] if at is None else cases[at]
        picture = self._draw(shown.label, outputs[cases.index(shown)], wanted[cases.index(shown)])
        if at is None:
            return self._accept(picture)
        for mistake in self.mistakes:
            if self._first_difference(outputs, [self._tried(mistake, case) for case in cases]) is None:
                return self._name(mistake, picture)
        return Verdict(False, self._where(shown.label, outputs[at], wanted[at]), picture)

    def _tried(self, mistake: Mistake, case: Case) -> list[torch.Tensor] | None:
        try:
            return _flat(mistake.answer(*copy.deepcopy(case.args)))
        except Exception:  # a wrong way need not work for every case
            return None

    def _first_difference(self, outputs: list, wanted: list) -> int | None:
        return next((i for i, (o, w) in enumerate(zip(outputs, wanted)) if w is None or not self._same(o, w)), None)

    def _same(self, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> bool:
        if [f.shape for f in found] != [w.shape for w in wanted]:
            return False
        close = (torch.isclose(f, w, rtol=0, atol=self.tolerance, equal_nan=True) for f, w in zip(found, wanted))
        return all(bool(c.all()) for c in close)

    def _where(self, label: str, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> str:
        if len(found) != len(wanted):
            return f"For {label} {len(wanted)} values were expected, and your function returns {len(found)}."
        for number, (f, w) in enumerate(zip(found, wanted), 1):
            which = f" of value {number}" if len(wanted) > 1 else ""
            if f.shape != w.shape:
                return f"For {label} the shape{which} is {list(f.shape)}, and {list(w.shape)} was expected."
            wrong = ~torch.isclose(f, w, rtol=0, atol=self.tolerance, equal_nan=True)
            if wrong.any():
                first = int(wrong.view(-1).nonzero()[0])
                got, right = float(f.view(-1)[first]), float(w.view(-1)[first])
                return (
                    f"For {label} {int(wrong.sum())} of {wrong.numel()} elements{which} differ; the first is element "
                    f"{first}: {got:.6g} where {right:.6g} was expected."
                )
        raise AssertionError("called for equal outputs")

    def _draw(self, label: str, found: list[torch.Tensor], wanted: list[torch.Tensor]) -> Picture | None:
        pairs = [(f, w) for f, w in zip(found, wanted) if f.numel() and w.numel()]
        differing = [(f, w) for f, w in pairs if not self._same([f], [w])]
        if not pairs:
            return None
        f, w = (differing or pairs)[0]
        return Picture(*drawing.elements(f.view(-1).numpy(), w.view(-1).numpy(), label, self.axis, self.tolerance))


@dataclass(frozen=True, kw_only=True)
class Choice(Exercise):
    """One of several statements or names; each option says why it is, or is not, the right one.

    draw: of the answer and the given, to the figure of the evidence and its words.
    """

    options: Mapping[str, str]
    right: str
    draw: Callable[..., tuple[Figure, str]]

    def judge(self, answer: Any, **given) -> Verdict:
        said = answer.strip() if isinstance(answer, str) else answer
        if said not in self.options:
            return Verdict(False, f"{one_line(repr(answer))[:60]} is none of the options: {', '.join(self.options)}.")
        picture = Picture(*self.draw(said, **given))
        if said == self.right:
            reason = self.options[said]
            return Verdict(True, reason[:1].upper() + reason[1:], picture, "Right.")
        return Verdict(False, f"Not “{said}”: {self.options[said]}", picture)


def _flat(output: Any) -> list[torch.Tensor]:
    """A function's output as fp64 tensors."""
    values = output if isinstance(output, tuple | list) and not _is_row(output) else (output,)
    return [v.detach().double() if isinstance(v, torch.Tensor) else torch.as_tensor(v, dtype=torch.float64) for v in values]


def _is_row(values) -> bool:
    """Plain numbers side by side stand for one tensor."""
    return isinstance(values, tuple | list) and all(isinstance(v, Real) or getattr(v, "ndim", None) == 0 for v in values)


def exercise(key: str):
    """The exercise with this key. Raises UsageError for an unknown one."""
    number = str(key).split(".")[0]
    if number not in MODULES:
        raise UsageError(f"no exercise '{key}'", nearest(number, MODULES))
    found = {e.key: e for e in exercises_of(number)}
    if key not in found:
        raise UsageError(f"no exercise '{key}'", nearest(key, found))
    return found[key]


def check(key: str, answer: Any, **given) -> Verdict:
    """What is right or wrong about an answer, with a picture.

    Args:
        key: of the exercise, e.g. "01.2".
        answer: the reader's number, function or choice; `...` while there is none.
        given: what the exercise's number or evidence depends on, as its task says.
    """
    found = exercise(key)
    if answer is ... or answer is None:
        return Verdict(False, OPEN, lead="Open.")
    return found.judge(answer, **given)
