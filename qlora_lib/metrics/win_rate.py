"""Win rate of one model against another from a judge's preferences, as AlpacaEval defines it.

How it works: a preference lies between 1 and 2: 1 is the other model's answer, 2 this one's, 1.5 a draw, and a judge that
weighs its own probabilities gives anything between. The win rate is the mean of preference - 1, and its standard error
that of a mean over instructions. An instruction without a preference (a judge that failed) is left out and counted.

Source: Dubois and others, "AlpacaFarm", and the leaderboard of AlpacaEval.
"""

import math
import statistics
from collections.abc import Iterable

from qlora_lib.errors import UsageError


def win_rate(preferences: Iterable[float | None]) -> dict:
    """{"win_rate", "standard_error"} in percent, {"n", "wins", "draws", "losses", "missing"} as numbers of instructions.

    The standard error of a single preference is None.

    Raises:
        UsageError: for a preference outside of [1, 2], and without any.
    """
    given = list(preferences)
    kept = [float(p) for p in given if p is not None and not math.isnan(p)]
    if wrong := [p for p in kept if not 1 <= p <= 2]:
        raise UsageError(f"a preference is {wrong[0]:g}; a number from 1 (the other model) to 2 (this one) was expected")
    if not kept:
        raise UsageError("there is no preference to take a win rate of; at least one was expected")
    shares = [p - 1 for p in kept]
    return {
        "win_rate": 100 * statistics.fmean(shares),
        "standard_error": 100 * statistics.stdev(shares) / math.sqrt(len(shares)) if len(shares) > 1 else None,
        "n": len(shares),
        "wins": sum(s > 0.5 for s in shares),
        "draws": sum(s == 0.5 for s in shares),
        "losses": sum(s < 0.5 for s in shares),
        "missing": len(given) - len(kept),
    }
