"""A judge that needs no model: it prefers the answer that shares more words with a reference answer.

This is NOT a judge of quality. It knows no facts, no style and no instruction; an answer that is right in other words
loses to one that repeats the reference's. It is there so that everything around a judge (random order, win rate, its error,
control of length) runs anywhere and gives the same number twice. Name it with every rate that comes from it.

How it works: the token F1 of SQuAD v1.1 between each answer and the reference, 0 to 100; within `margin` points: a draw.
"""

from qlora_lib.judges.base import Verdict
from qlora_lib.metrics.squad import squad_em_f1


class ReferenceOverlapJudge:
    needs_reference = True
    parallel = 1
    name = "reference-overlap"

    def __init__(self, margin: float = 5.0):
        self.margin = margin
        self.protocol = (
            f"AlpacaEval-style: reference-overlap, the answer with the higher token F1 with the reference wins, "
            f"a draw within {margin:g} points; no judge of quality"
        )

    def compare(self, instruction: str, output_1: str, output_2: str, reference: str | None = None) -> Verdict:
        if not reference or not reference.strip():
            return Verdict(None, "no reference answer")
        first, second = (squad_em_f1(text, [reference])[1] for text in (output_1, output_2))
        raw = {"f1": [first, second]}
        if abs(first - second) <= self.margin:
            return Verdict(1.5, raw=raw)
        return Verdict(1.0 if first > second else 2.0, raw=raw)

    def describe(self) -> dict:
        return {"kind": self.name, "name": self.name, "margin": self.margin, "judges_quality": False}
