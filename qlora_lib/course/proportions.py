"""What an accuracy on n examples is worth, and whether test examples were seen in training.

How it works: the interval of a proportion is Wilson's: of all true rates, those within z standard errors of what was
found. A difference between two models on the same examples is a mean of differences, example by example. Overlap is counted
in runs of words.

Sources: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference"; runs of words: Brown and others,
"Language Models are Few-Shot Learners", appendix C, which counts runs of 13.
"""

import math
import re
import statistics
from collections import Counter
from collections.abc import Sequence

Z = 1.959964  # of a 95 % interval


def proportion_interval(right: int, n: int, z: float = Z) -> tuple[float, float]:
    """Wilson's interval of a rate of which `right` of `n` were seen, in percent."""
    share, spread = right / n, z * z / n
    middle = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return 100 * (middle - half) / (1 + spread), 100 * (middle + half) / (1 + spread)


def paired_difference(before: Sequence[float], after: Sequence[float]) -> tuple[float, float]:
    """(mean of after less before, its standard error), of scores on the same examples and in their unit."""
    differences = [b - a for a, b in zip(before, after, strict=True)]
    return statistics.fmean(differences), statistics.stdev(differences) / math.sqrt(len(differences))


def unpaired_error(before: Sequence[float], after: Sequence[float]) -> float:
    """The standard error that the same difference would have on different examples."""
    return math.sqrt(statistics.variance(before) / len(before) + statistics.variance(after) / len(after))


def runs(text: str, length: int) -> set[tuple[str, ...]]:
    """All runs of so many words within a line; of a text whose lines are all shorter, its words as one run."""
    lines = [re.findall(r"\w+", line) for line in text.lower().splitlines()]
    found = {tuple(words[i : i + length]) for words in lines for i in range(len(words) - length + 1)}
    return found or {tuple(word for words in lines for word in words)}


def shared_runs(test: Sequence[str], train: Sequence[str], length: int = 8, common: float = 0.01) -> list[list[str]]:
    """For each test text its runs of `length` words that stand in a training text, in order of the alphabet.

    A run that more than the share `common` of training texts have, and more than two, is a template's and does not count.
    """
    counts = Counter(run for text in train for run in runs(text, length))
    known = {run for run, n in counts.items() if n <= max(2, common * len(train))}
    return [sorted(" ".join(run) for run in runs(text, length) & known) for text in test]
