"""How time and memory grow: exponents of power laws, from the points of a series.

How it works: y = c x^k is a line in logarithms, log y = log c + k log x; k is its slope by least squares. 1 is
proportional, 0 is no growth, 2 is quadratic. A sum of a fixed cost and a growing one is no power law, so the worst
relative distance of a point from the fitted curve is given beside the exponent.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from qlora_lib.bench.record import Fit, ScalingPoint

FEWEST = 3  # points: a line goes through any two
QUANTITIES = {
    "seconds": "median_seconds",
    "peak_tensor_bytes": "peak_tensor_bytes",
    "above_resident_bytes": "above_resident_bytes",
}


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float | None, float | None]:
    """(k, worst |y / (c x^k) - 1|) of y = c x^k, all positive; (None, None) of fewer than three points."""
    if len(x) < FEWEST:
        return None, None
    log_x, log_y = np.log(x), np.log(y)
    lines = np.column_stack([log_x, np.ones_like(log_x)])  # [points, 2]
    solution, *_ = np.linalg.lstsq(lines, log_y, rcond=None)
    apart = np.expm1(log_y - lines @ solution)
    return float(solution[0]), float(np.abs(apart).max())


def fit_all(points: Sequence[ScalingPoint]) -> list[Fit]:
    """A fit for every series, arm and quantity that has a point.

    Where an arm runs one thing at some places of a series and another thing at others, what runs at most of them
    is fitted: two things have no exponent in common.
    """
    fits = []
    for series, arm in dict.fromkeys((p.series, p.arm) for p in points):
        own = [p for p in points if (p.series, p.arm) == (series, arm) and p.reason is None]
        usual = Counter(p.what for p in own).most_common(1)
        own = [p for p in own if p.what == usual[0][0]]
        for quantity, attribute in QUANTITIES.items():
            pairs = [(p.x, y) for p in own if (y := getattr(p, attribute))]
            if not pairs and quantity != "seconds":
                continue  # memory is a matter of training
            exponent, worst = power_law([x for x, _ in pairs], [y for _, y in pairs])
            fits.append(
                Fit(
                    series=series, arm=arm, quantity=quantity, exponent=exponent, points=len(pairs),
                    worst_relative_residual=worst,
                )
            )  # fmt: skip
    return fits
