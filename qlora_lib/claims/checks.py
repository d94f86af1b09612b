"""Figures out of quotations, and when a recomputed figure agrees with a printed one.

How it works: a printed figure stands for every number that rounds to it: 2.88 is [2.875, 2.885]. Arithmetic on printed
figures carries these ranges along, so that 500 steps of a printed 2.88 s are [1437.5, 1442.5] s, and two figures agree
when their ranges meet. A figure that is computed exactly has a range of no width.

    figures("13.18% ... 4.69")  ->  [13.18 ± 0.005, 4.69 ± 0.005]
    agree(figure("73.9%"), 100 * (1 - figure("548.61") / figure("2,098.18")))  ->  True
"""

import re
from dataclasses import dataclass
from functools import cache

from qlora_lib.cost.shapes import ModelShape
from qlora_lib.published import REFERENCES, published

MIB, GIB = 2**20, 2**30
MB, GB = 10**6, 10**9
TERA = 10**12

# A number with thousands separators or decimals; not part of a name such as "q8" or "wikitext-2".
_NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")
_POWER = re.compile(r"(\d+)\s*×\s*10(?:\^\{?(-?\d+)\}?|([⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+))")
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_SLACK = 1e-12  # relative; fp64 products of decimal figures are that exact, and counts of billions differ by more


@dataclass(frozen=True)
class Figure:
    """A number with the range that its print allows. `value` lies in [low, high]."""

    value: float
    low: float
    high: float

    def __add__(self, other) -> "Figure":
        o = exactly(other)
        return Figure(self.value + o.value, self.low + o.low, self.high + o.high)

    def __mul__(self, other) -> "Figure":
        o = exactly(other)
        ends = [a * b for a in (self.low, self.high) for b in (o.low, o.high)]
        return Figure(self.value * o.value, min(ends), max(ends))

    def __truediv__(self, other) -> "Figure":
        o = exactly(other)
        if o.low <= 0 <= o.high:
            raise ZeroDivisionError(f"a range with zero in it: {o.low} to {o.high}")
        ends = [a / b for a in (self.low, self.high) for b in (o.low, o.high)]
        return Figure(self.value / o.value, min(ends), max(ends))

    def __neg__(self) -> "Figure":
        return Figure(-self.value, -self.high, -self.low)

    def __sub__(self, other) -> "Figure":
        return self + -exactly(other)

    def __rsub__(self, other) -> "Figure":
        return exactly(other) + -self

    def __rtruediv__(self, other) -> "Figure":
        return exactly(other) / self

    def __abs__(self) -> "Figure":
        low, high = sorted((abs(self.low), abs(self.high)))
        return Figure(abs(self.value), 0.0 if self.low < 0 < self.high else low, high)

    __radd__, __rmul__ = __add__, __mul__


def exactly(number: "Figure | float") -> Figure:
    """A number that was not rounded."""
    return number if isinstance(number, Figure) else Figure(number, number, number)


def rounded(number: float, decimals: int) -> Figure:
    """What a figure printed with so many decimals stands for; negative: tens, hundreds."""
    half = 0.5 * 10.0**-decimals
    return Figure(number, number - half, number + half)


def figures(text: str) -> list[Figure]:
    """The numbers of a text in their order and printed unit (73.9% is 73.9), each with its range.

    "2 × 10⁻⁵" and "2×10^{-5}" are one number, exact. A whole number is exact too: counts are not rounded.
    """
    found = []
    for m in re.finditer(f"(?P<power>{_POWER.pattern})|(?P<plain>{_NUMBER.pattern})", text):
        if m["power"]:
            mantissa, plain, raised = _POWER.fullmatch(m["power"]).groups()
            exponent = int(plain) if plain else int(raised.translate(_SUPERSCRIPT))
            found.append(exactly(int(mantissa) * 10.0**exponent))
        else:
            digits = m["plain"].replace(",", "").replace("−", "-")
            places = len(digits.partition(".")[2])
            found.append(rounded(float(digits), places) if places else exactly(float(digits)))
    return found


def figure(text: str, index: int = 0) -> Figure:
    """One number of a text; ValueError when it has none there."""
    found = figures(text)
    if index >= len(found):
        raise ValueError(f"no figure {index} in '{text}'")
    return found[index]


def cell(table: int, row: str, column: str = "value") -> Figure:
    """A figure of the study's printed tables."""
    return figure(published(table, row, column).text)


def maybe(table: int, row: str, column: str) -> Figure | None:
    """A figure that the study may print; None where its tables have no such row, column or number."""
    try:
        return cell(table, row, column)
    except (KeyError, ValueError):
        return None


def reference(key: str) -> Figure:
    """A figure of published.REFERENCES."""
    return figure(REFERENCES[key].text)


def agree(claimed: Figure | float, recomputed: Figure | float, tolerance: float = 0.0) -> bool:
    """Whether the ranges of two figures meet, when each is widened by `tolerance` (relative to its value)."""
    a, b = exactly(claimed), exactly(recomputed)
    slack = max(tolerance, _SLACK)
    return (
        a.low - slack * abs(a.value) <= b.high + slack * abs(b.value)
        and b.low - slack * abs(b.value) <= a.high + slack * abs(a.value)
    )


def about(claimed: float, recomputed: float, digits: int = 2) -> bool:
    """Whether a number rounds to what a text calls "about `claimed`", at so many significant digits."""
    return float(f"{claimed:.{digits}g}") == float(f"{recomputed:.{digits}g}")


def change(new: Figure | float, old: Figure | float) -> Figure:
    """Percent by which `new` is above `old`."""
    return 100 * (exactly(new) / exactly(old) - 1)


@cache
def tinyllama() -> ModelShape:
    """TinyLlama-1.1B by its published config.json."""
    w = {k: int(reference(f"tinyllama.{k}").value) for k in ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary")}
    return ModelShape(
        w["hidden"], w["layers"], w["heads"], w["kv_heads"], w["hidden"] // w["heads"], w["intermediate"], w["vocabulary"]
    )
