"""film-reviews: sentences of film reviews with the mean of people's ratings; the stand-in for SST-2.

How it works: the file has a number, a mean rating from -4 to 4 and a sentence a line. A sentence is positive or negative by
the sign of its rating where that is 1 or more away from 0, else it is left out: people did not agree. Of sentences that
differ in nothing but case, punctuation and white space one is kept; where they are rated with both signs, none. 80/10/10
by the hash of that text. SST-2's sentences come from the same corpus (Pang and Lee, 2005), but in lower case and parted
into tokens, with labels by other people, and its training set holds their phrases too: so the two differ in numbers.
"""

from collections import Counter
from pathlib import Path

from qlora_lib.errors import QloraError
from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.published import review
from qlora_lib.tasks.splits import by_hash, normalized

LEAST = 1.0  # of the absolute mean rating


def make_reviews(path: Path) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """({split: reviews}, rows left out by reason) of movieReviewSnippets_GroundTruth.txt."""
    left_out, rows = Counter(), []
    for line in path.read_text(encoding="utf-8").splitlines():
        number, rating, sentence = line.split("\t")
        if abs(float(rating)) < LEAST:
            left_out[f"mean rating between -{LEAST:g} and {LEAST:g}"] += 1
        elif text := " ".join(sentence.split()):
            rows.append((number, text, int(float(rating) > 0)))
    signs: dict[str, set[int]] = {}
    for _, text, label in rows:
        signs.setdefault(normalized(text), set()).add(label)
    kept: dict[str, Example] = {}
    for number, text, label in rows:
        key = normalized(text)
        if len(signs[key]) > 1:
            left_out["same sentence with the other sign"] += 1
        elif key in kept:
            left_out["same sentence again"] += 1
        else:
            kept[key] = review(number, text, label)
    if not kept:
        raise QloraError(f"{path} holds no rated sentences", "Fetch it again: qlora fetch film-reviews")
    keys = {example.id: key for key, example in kept.items()}
    return by_hash(kept.values(), lambda e: keys[e.id], validation=0.1, test=0.1), dict(left_out)
