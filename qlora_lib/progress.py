"""A progress bar over a list of work, where someone watches."""

from collections.abc import Sequence


def bar(items: Sequence, what: str, unit: str, show: bool):
    """`items`, with a bar on standard error where `show` says so."""
    if not show:
        return items
    from tqdm.auto import tqdm

    return tqdm(items, desc=what, unit=unit, mininterval=1.0)
