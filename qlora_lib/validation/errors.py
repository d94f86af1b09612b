"""How large errors are: predicted over what it is held against, less one."""

import statistics
from dataclasses import dataclass

LIMIT = 0.10  # of an error that wants an explanation


@dataclass(frozen=True)
class Errors:
    """Of several cases, as fractions."""

    cases: int
    mean_absolute: float
    worst: float  # the largest by size, with its sign
    worst_case: str

    @classmethod
    def of(cls, errors: dict[str, float]) -> "Errors":
        """errors: name -> predicted over measured, less one; at least one."""
        worst = max(errors, key=lambda name: abs(errors[name]))
        return cls(len(errors), statistics.fmean(map(abs, errors.values())), errors[worst], worst)
