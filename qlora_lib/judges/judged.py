"""What a run of a judge leaves: the comparisons, what is missing and why, what a place was worth, what it cost.

How it works: the random order cancels a judge's bias for a place from the mean; the bias stays in every single preference,
as noise. So it is measured and shown beside the rate.
"""

import math
from collections import Counter
from dataclasses import dataclass

from qlora_lib.judges.base import Verdict
from qlora_lib.metrics.win_rate import win_rate


@dataclass(frozen=True)
class Judged:
    """One comparison an instruction, in the order of the instructions."""

    annotations: list[dict]  # in AlpacaEval's format
    preferences: list[float | None]  # 1 the baseline, 2 the model
    lengths: list[int]  # characters of the model's answers
    baseline_lengths: list[int]
    verdicts: list[Verdict | None]  # as the judge saw the pair; None: it was not asked
    model_first: list[bool]  # whether the model's answer came first

    @property
    def missing(self) -> dict[str, int]:
        """reason -> instructions without a preference"""
        why = (a["failure"] for a in self.annotations if a["preference"] is None)
        return dict(Counter(why).most_common())

    @property
    def position_bias(self) -> dict | None:
        """What a place is worth where the judge was asked, in percent; None where it never answered.

        `first_place_wins` alone misleads: a strong baseline that the coin put first more often raises it. So `advantage` is
        the model's win rate where it was seen first, less that where it was seen second: 0 without a bias. Their mean is
        `balanced_win_rate`: with few instructions the coin is uneven, and a bias moves the plain rate by what it is uneven.
        """
        seen = {True: [], False: []}
        for preference, verdict, first in zip(self.preferences, self.verdicts, self.model_first, strict=True):
            if verdict is not None and preference is not None:
                seen[first].append(preference)
        first, second = seen[True], seen[False]
        if not first and not second:
            return None
        result = {
            "first_place_wins": win_rate([*first, *(3 - p for p in second)])["win_rate"], "n": len(first) + len(second),
            "win_rate_when_first": None, "win_rate_when_second": None, "advantage": None, "standard_error": None,
            "balanced_win_rate": None,
        }  # fmt: skip
        if first and second:
            rates = win_rate(first), win_rate(second)
            errors = [rate["standard_error"] for rate in rates]
            result |= {
                "win_rate_when_first": rates[0]["win_rate"], "win_rate_when_second": rates[1]["win_rate"],
                "advantage": rates[0]["win_rate"] - rates[1]["win_rate"],
                "standard_error": None if None in errors else math.hypot(*errors),
                "balanced_win_rate": (rates[0]["win_rate"] + rates[1]["win_rate"]) / 2,
            }  # fmt: skip
        return result

    @property
    def cost(self) -> dict:
        """Tokens and dollars of every answer used, and of those alone that this run asked for."""
        asked = [v for v in self.verdicts if v is not None]
        new = [v for v in asked if not v.cached]
        return {
            "asked": len(new), "from_cache": len(asked) - len(new),
            "prompt_tokens": total(v.prompt_tokens for v in asked),
            "completion_tokens": total(v.completion_tokens for v in asked),
            "cost_usd": total(v.cost_usd for v in asked), "cost_usd_this_run": total(v.cost_usd for v in new),
        }  # fmt: skip


def total(values) -> float | int | None:
    """The sum of what is known; None where nothing is."""
    known = [v for v in values if v is not None]
    return sum(known) if known else None
