"""Exercises of 07_fault_lab: eight patients, each with one of eight mistakes.

How it works: which patient has which mistake is fixed, so an answer is right under every profile. With the
lab's results (`lab`) the picture is the evidence measured on this patient; without them it is the
key by which the mistakes are told apart.
"""

from functools import partial

from qlora_lib.course.answers import Choice
from qlora_lib.course.faults.advice import ADVICE
from qlora_lib.course.faults.drawing import evidence, key
from qlora_lib.course.faults.settings import FAULTS, PATIENTS
from qlora_lib.style import Figure


def draw(answer: str, lab=None, *, label: str) -> tuple[Figure, str]:
    """The evidence for or against `answer`, beside what decides."""
    if lab is None:
        return key(answer)
    return evidence(lab.patient(label), lab.healthy, answer, PATIENTS[label])


EXERCISES = [
    Choice(
        key=f"07.{number}",
        title=f"Patient {label}",
        options={fault: ADVICE[fault].told_by if fault == right else ADVICE[fault].would for fault in FAULTS},
        right=right,
        draw=partial(draw, label=label),
    )
    for number, (label, right) in enumerate(PATIENTS.items(), 1)
]
