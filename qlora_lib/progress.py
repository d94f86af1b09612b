"""What a long piece of work tells of itself, on standard error: a line, or a bar where someone watches."""

import sys
from collections.abc import Sequence


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def bar(items: Sequence, what: str, unit: str, show: bool):
    """`items`, with a bar on standard error where `show` says so."""
    if not show:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, unit=unit, mininterval=1.0)
