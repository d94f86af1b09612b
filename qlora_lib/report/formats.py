"""How a number becomes text: one named function for each way a figure is printed.

How it works: values keep the name of their format, so that a reader of the report's data can take a
record, find the field and print it again. Text is made here and not in Typst, which prints 4.50 as
4.5. The minus sign is U+2212, a figure and its unit hold together with U+00A0. None is "not measured".
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

NOT_MEASURED = "not measured"
NBSP = "\u00a0"
KIB, MIB, GIB = 2**10, 2**20, 2**30
# A second cue beside the colour, of the audit's verdicts and the planner's.
MARKS = {
    "holds": "✓", "holds under an assumption": "◐", "does not hold": "✗", "cannot be checked here": "?",
    "fits": "✓", "tight": "◐", "does not fit": "✗",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def _minus(text: str) -> str:
    return text.replace("-", "\u2212")


def _fixed(digits: int) -> Callable[[float], str]:
    return lambda x: _minus(f"{round(x, digits) + 0.0:,.{digits}f}")  # no minus before a zero


def significant(x: float, digits: int = 3) -> str:
    """`digits` significant digits, as a power of ten where a plain decimal would be mostly zeros."""
    if x == 0:
        return "0"
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    power = int(exponent)
    if -4 <= power < digits + 3:
        return _minus(f"{float(f'{x:.{digits - 1}e}'):,.{max(0, digits - 1 - power)}f}")
    return _minus(mantissa) + f" × 10{str(power).translate(_SUPERSCRIPT)}".replace(" ", NBSP)


def scientific(x: float) -> str:
    """2e-05 as 2 × 10⁻⁵: the shortest mantissa that says the same number."""
    mantissa, exponent = f"{x:.12e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace(" ", NBSP)


def _signed(digits: int, scale: float = 1.0, unit: str = "") -> Callable[[float], str]:
    def text(x: float) -> str:
        shown = f"{x * scale:+,.{digits}f}"
        return _minus(shown.lstrip("+-") if float(shown.replace(",", "")) == 0 else shown) + unit

    return text


def _interval(one: Callable[[float], str]) -> Callable[[tuple[float, float]], str]:
    return lambda pair: f"[{one(pair[0])},{NBSP}{one(pair[1])}]"


def _range(one: Callable[[float], str]) -> Callable[[tuple[float, float]], str]:
    """Two ends that read alike are one figure."""
    return lambda pair: one(pair[0]) if one(pair[0]) == one(pair[1]) else f"{one(pair[0])} to {one(pair[1])}"


def _plain(x: Any) -> str:
    """A setting as its profile writes it."""
    if x is None:
        return "none"
    if isinstance(x, bool):
        return "on" if x else "off"
    if isinstance(x, list | tuple):
        return ", ".join(_plain(i) for i in x) or "none"
    if isinstance(x, float) and x and not 1e-3 <= abs(x) < 1e6:
        return scientific(x)
    if isinstance(x, float):
        return _minus(f"{x:g}")
    if isinstance(x, int):
        return f"{x:,}" if x >= 10_000 else _minus(str(x))
    return str(x)


def _bytes_with_unit(x: float) -> str:
    """MiB, or KiB for the tiny models of tests."""
    if x < MIB:
        return f"{_fixed(1)(x / KIB)}{NBSP}KiB"
    return f"{_fixed(1)(x / MIB)}{NBSP}MiB"


def _power(x: float) -> str:
    """One digit and a power of ten, for errors of arithmetic: 7 × 10⁻⁵."""
    return scientific(float(f"{x:.0e}"))


def _date(text: str) -> str:
    day = datetime.fromisoformat(text)
    return f"{day.day} {day:%B %Y}"


FORMATS: dict[str, Callable[[Any], str]] = {
    "text": str,
    "plain": _plain,
    "list": "; ".join,
    "reasons": lambda counted: ", ".join(f"{n:,} {why}" for why, n in counted.items()),
    "words": ", ".join,
    "numbers": lambda x: f"{len(x)} numbers",
    "count": _fixed(0),
    "decimal1": _fixed(1),
    "decimal2": _fixed(2),
    "decimal3": _fixed(3),
    "scientific": scientific,
    "decimal1_interval": _interval(_fixed(1)),
    "decimal2_interval": _interval(_fixed(2)),
    "decimal3_interval": _interval(_fixed(3)),
    "signed1": _signed(1),
    "signed2": _signed(2),
    "signed3": _signed(3),
    "signed1_interval": _interval(_signed(1)),
    "signed2_interval": _interval(_signed(2)),
    "rates": lambda pair: f"{scientific(float(f'{pair[0]:.1e}'))} to {scientific(float(f'{pair[1]:.1e}'))}",
    "factor": lambda x: significant(x, 2),
    "percent0": lambda x: f"{_minus(f'{100 * x:.0f}')}%",
    "percent": lambda x: f"{_minus(f'{100 * x:.1f}')}%",
    "percent2": lambda x: f"{_minus(f'{100 * x:.2f}')}%",
    "percent_signed": _signed(1, 100, "%"),
    "percent0_interval": _interval(lambda x: f"{_minus(f'{100 * x:.0f}')}%"),
    "percent_interval": _interval(_signed(1, 100, "%")),
    "times": lambda x: f"{x:.2f}×",
    "times_interval": _interval(lambda x: f"{x:.2f}×"),
    "shape": lambda text: text.replace("x", f"{NBSP}×{NBSP}"),  # sequences x tokens of a step
    "power": _power,
    "mib": lambda x: _fixed(1 if x >= 10 * MIB else 2)(x / MIB),
    "mib_unit": _bytes_with_unit,
    "mib_range": _range(lambda x: _fixed(1 if x >= 10 * MIB else 2)(x / MIB)),
    "gib": lambda x: _fixed(2)(x / GIB),
    "gib1_range": _range(lambda x: _fixed(1)(x / GIB)),
    "gib2_unit": lambda x: f"{_fixed(2)(x / GIB)}{NBSP}GiB",
    "gib_unit": lambda x: f"{_fixed(1)(x / GIB)}{NBSP}GiB",
    "tflop": lambda x: significant(x / 1e12),
    "gflop_unit": lambda x: f"{significant(x / 1e9)}{NBSP}GFLOP",
    "gflops_unit": lambda x: f"{significant(x / 1e9)}{NBSP}GFLOP/s",
    "seconds": lambda x: significant(x) if x < 100 else _fixed(1)(x),
    "seconds_unit": lambda x: f"{significant(x, 3)}{NBSP}s",
    "ms_unit": lambda x: f"{significant(1e3 * x)}{NBSP}ms",
    "gbs_unit": lambda x: f"{significant(x / 1e9)}{NBSP}GB/s",
    "rate": significant,
    "percent_range": _range(lambda x: f"{_minus(f'{100 * x:.0f}')}%"),
    "fits": lambda verdict: f"{MARKS[verdict]}{NBSP}{'no' if verdict == 'does not fit' else verdict}",
    "mark": lambda verdict: f"{MARKS[verdict]}{NBSP}{verdict}",
    "date": _date,
    "short": lambda text: text[:12],  # of a hash
}


def show(value: Any, name: str) -> str:
    """`value` in the named format; None is "not measured", or "none" for a setting left empty."""
    if value is None and name != "plain":
        return NOT_MEASURED
    return FORMATS[name](value)
