"""Judges that compare two models' answers, and what a win rate by one is worth."""

from qlora_lib.judges.annotations import read_annotations, write_annotations
from qlora_lib.judges.base import Judge, Verdict
from qlora_lib.judges.judged import Judged
from qlora_lib.judges.run import evaluate_annotations, evaluate_pairs, judge_pairs, make_judge
from qlora_lib.judges.settings import JudgeSettings

__all__ = [
    "Judge", "JudgeSettings", "Judged", "Verdict", "evaluate_annotations", "evaluate_pairs", "judge_pairs", "make_judge",
    "read_annotations", "write_annotations",
]  # fmt: skip
