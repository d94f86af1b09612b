"""What a judge is: given an instruction and two answers, it says which is better, or why it cannot say.

How it works: a judge sees the answers as first and second and knows nothing of models; `judges.run` puts them in a random
order and turns the verdict back. One that fails returns a verdict without a preference, and the run goes on; one that can
never succeed (a wrong key) raises `QloraError`, and the run stops.
"""

from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class Verdict:
    """One comparison."""

    preference: float | None  # 1 (the first) to 2 (the second), 1.5 a draw; None: no judgement
    why: str = ""  # without a preference: the reason, in a few words that are the same for the same reason
    cost_usd: float | None = None  # by the prices that the user gave
    cached: bool = False  # the answer was on the disk
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    detail: str = ""  # of a failure: what was received, shortened
    raw: dict | None = field(default=None, compare=False)  # what the judge answered, for the annotations


class Judge(Protocol):
    name: str  # the annotator's name in annotations
    protocol: str  # what a preference of this judge means, in words
    needs_reference: bool
    parallel: int  # comparisons that may run at once

    def compare(self, instruction: str, output_1: str, output_2: str, reference: str | None = None) -> Verdict: ...

    def describe(self) -> dict:
        """Settings that a record shows; no secret."""
        ...
