"""What this project measured, for claims that rest on it: the records that the repository carries, never a machine's own.

How it works: an audit must give the same verdicts everywhere, so it reads report/records alone. A record that is not
there raises a QloraError, and the claim cannot be checked here.
"""

import math
from functools import cache

from qlora_lib.errors import QloraError

MODEL = "SmolLM2-135M here"  # whose records these are, in words


@cache
def _records(profile: str):
    from qlora_lib.paths import committed_records
    from qlora_lib.records import read_records

    return read_records(committed_records(profile))


def arm(name: str):
    """The record of an arm of the `demo` profile."""
    try:
        return _records("demo")[name]
    except KeyError:
        raise QloraError(f"the repository has no record of the arm '{name}'", "Run it: qlora run --profile demo") from None


def rates() -> dict:
    """Each method along the learning rate, with its best (sweeps.Axis)."""
    from qlora_lib.sweeps import rate_axes

    return _there(rate_axes(_records("demo-long")), "full", "lora", "qlora", "qlora-8bit")


def settings() -> dict:
    """QLoRA along each other setting (sweeps.Axis)."""
    from qlora_lib.sweeps import setting_axes

    return setting_axes(_records("demo-long"))


def setting(name: str):
    return _there(settings(), name)[name]


def _there(axes: dict, *names: str) -> dict:
    for name in names:
        if name not in axes or axes[name].best is None:
            raise QloraError(f"the repository has no records of the sweep '{name}'", "Run it: qlora sweep --profile demo-long")
    return axes


@cache
def tolerance() -> float:
    """Nats of validation loss by which two settings may differ without a difference (sensitivity.py)."""
    from qlora_lib.sensitivity import shared_tolerance

    return shared_tolerance(_records("demo-long"))


def loss_above(axis, value) -> float:
    """Nats by which the loss at `value` lies above the axis' best."""
    point = axis.at(value)
    if point is None or point.mean is None or axis.best is None:
        raise QloraError(f"the repository has no record at {axis.key} = {value}", "Run it: qlora sweep --profile demo-long")
    return point.mean - axis.best.mean


def perplexity_above(one: str, other: str) -> tuple[float, float, float]:
    """Percent by which the test perplexity of a method lies above another's, each at its best rate: (value, low, high of 95 %)."""
    from qlora_lib.sensitivity import perplexity_difference

    found = perplexity_difference(rates()[one].best, rates()[other].best)
    if found is None:
        raise QloraError(f"the records of {one} and {other} were not scored on the same windows")
    return tuple(100 * math.expm1(x) for x in (found.value, found.low, found.high))
