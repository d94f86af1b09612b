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
    """All runs of so many words of a text; of a shorter text, the text as one run."""
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + length]) for i in range(max(1, len(words) - length + 1))}


def seen_share(test: Sequence[str], train: Sequence[str], length: int = 8, common: float = 0.01) -> float:
    """Share of test texts, from 0 to 1, of which any run of `length` words stands in a training text.

    A run that more than the share `common` of training texts have, and more than two, is a template's and does not count.
    """
    counts = Counter(run for text in train for run in runs(text, length))
    known = {run for run, n in counts.items() if n <= max(2, common * len(train))}
    return sum(not known.isdisjoint(runs(text, length)) for text in test) / len(test)
