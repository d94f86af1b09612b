"""Rows into splits, by their text alone; and the count of those that hold no example.

How it works: the SHA-256 of a row's key (its text in lower case, without punctuation and white space) says which split it
is in. So a split depends on no random generator and no order, rows of the same text are never parted, and a set that grows
keeps its split.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable

from qlora_lib.errors import QloraError
from qlora_lib.tasks.examples import Example

SPLITS = ("train", "validation", "test")
PLACES = 1 << 16


def normalized(text: str) -> str:
    """What makes two texts the same: letters and digits in lower case, one space between words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def share(key: str) -> float:
    """In [0, 1): the place of a key among all, by its hash."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[-2:], "big") / PLACES


def by_hash(
    examples: Iterable[Example], key: Callable[[Example], str], validation: float = 0.05, test: float = 0.05
) -> dict[str, list[Example]]:
    """{train, validation, test}, the latter two of about the given shares, in the order of the examples."""
    splits = {split: [] for split in SPLITS}
    for example in examples:
        place = share(key(example))
        splits["test" if place < test else "validation" if place < test + validation else "train"].append(example)
    return splits


class Sieve:
    """Counts the rows of one file, and those that hold no example by the reason.

    A file of which more than half holds none is most likely not what it was taken for: `done` then raises.
    """

    def __init__(self, what: str, expected: str):
        self.what, self.expected = what, expected
        self.rows, self.left_out, self.first = 0, Counter(), ""

    def refuse(self, where: str, why: str) -> None:
        self.first = self.first or f"{where}: {why}"
        self.left_out[why] += 1

    def done(self) -> dict[str, int]:
        bad = self.left_out.total()
        if not self.rows:
            raise QloraError(f"{self.what} holds no rows; expected {self.expected}", "Give a file with some")
        if 2 * bad > self.rows:
            raise QloraError(
                f"{self.what}: {bad} of {self.rows} rows hold no example (the first: {self.first}); expected {self.expected}",
                "Mend the file, or give it in its published format",
            )
        return dict(self.left_out)
