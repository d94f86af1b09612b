"""Exact match and F1 of answers to questions, as SQuAD v1.1 defines them.

How it works: answers are compared as bags of normalized tokens: lower case, no punctuation, no articles, one space. Exact
match is equality of the normalized texts; F1 is the harmonic mean of precision and recall over the bags. Where a question
has several right answers, the best of each counts. Two answers without any token left match exactly and have F1 0: that
is how the official script of v1.1 has it.

Source: Rajpurkar and others, "SQuAD: 100,000+ Questions for Machine Comprehension of Text", and its evaluate-v1.1.py.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence

from qlora_lib.errors import UsageError

ARTICLES = re.compile(r"\b(a|an|the)\b")
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)  # of ASCII alone, as in the official script


def normalize_answer(text: str) -> str:
    """Lower case without punctuation, articles and superfluous white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(NO_PUNCTUATION)).split())


def squad_em_f1(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """(exact match, F1) of one prediction, each 0 to 100, the best over the right answers.

    Raises:
        UsageError: without a right answer, or where `answers` is one text and not several.
    """
    if isinstance(answers, str):
        raise UsageError("the right answers are one text; a list of texts was expected", "Write [answer]")
    if not answers:
        raise UsageError("there is no right answer to compare with; at least one was expected")
    found = normalize_answer(prediction)
    wanted = [normalize_answer(answer) for answer in answers]
    return 100.0 * (found in wanted), 100.0 * max(_f1(found.split(), answer.split()) for answer in wanted)


def _f1(found: list[str], wanted: list[str]) -> float:
    same = (Counter(found) & Counter(wanted)).total()
    return 2 * same / (len(found) + len(wanted)) if same else 0.0
