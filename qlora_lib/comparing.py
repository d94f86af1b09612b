"""Answers of one base with an adapter and of the same base with another, or with none, side by side.

How it works: the base is loaded once; between two answers only the active adapter changes (adapters.py). Both see
the same prompt and the same seed. On a terminal the answers stand in two columns, the second as it comes.
"""

import sys
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Iterable, Iterator

from qlora_lib.errors import QloraError
from qlora_lib.generation import Messages, stream_from

BASE = "base"  # what `--compare` calls the base without an adapter
GAP = " | "


@dataclass(frozen=True)
class Side:
    label: str  # as the user named it
    name: str | None  # in Adapters; None: the base alone


class Speakers:
    """A loaded base and the one or two sides that answer with it."""

    def __init__(self, model: str, adapter: Path | None, compare: str | None, quantization: str, double_quant: bool, dtype: str):
        from qlora_lib.adapters import Adapters
        from qlora_lib.evaluation import load_for_use
        from qlora_lib.models import check_adapter
        from qlora_lib.trained_on import warn_of_another_base

        wanted = [adapter] if compare is None else [adapter, None if compare == BASE else Path(compare)]
        for folder in wanted:
            if folder is not None:
                check_adapter(folder)  # told before a model is loaded
        base, self.tokenizer, _, _ = load_for_use(model, None, quantization, double_quant, dtype)
        self.adapters, self.sides = Adapters(base), []
        for name, folder in zip(("first", "second"), wanted):
            if folder is not None:
                warn_of_another_base(folder, quantization)
                self.adapters.add(name, folder)
            self.sides.append(Side(str(folder or BASE), name if folder else None))

    def answer(self, side: Side, prompt: str | Messages, **sampling) -> Iterator[str]:
        """Pieces of what this side says. Take them to the end before another side is asked."""
        self.adapters.use(side.name)
        yield from stream_from(self.adapters.model, self.tokenizer, prompt, **sampling)


def empty_note(text: str) -> None:
    """Say on standard error that an answer has nothing in it."""
    if not text.strip():
        why = "holds nothing but white space" if text else "is empty: the model ended it at once"
        print(f"note: the answer {why}", file=sys.stderr)


# --- two columns -----------------------------------------------------------------------------------


def columns(left: str, right: Iterable[str], width: int) -> Iterator[str]:
    """Lines with `left` and the text whose pieces are `right` beside it; a line as soon as its right half is whole."""
    each = (width - len(GAP)) // 2
    if each < 10:
        raise QloraError(f"two columns need {2 * 10 + len(GAP)} letters, and the terminal has {width}")
    beside = wrapped([left], each)
    for line in wrapped(right, each):
        yield f"{padded(next(beside, ''), each)}{GAP}{line}"
    for line in beside:
        yield f"{padded(line, each)}{GAP}".rstrip()


def wrapped(pieces: Iterable[str], width: int) -> Iterator[str]:
    """Lines of at most `width` cells, broken at spaces; each as soon as it cannot change any more."""
    line = ""
    for piece in pieces:
        for letter in piece.replace("\t", "    ").replace("\r", ""):
            if letter == "\n":
                yield line
                line = ""
                continue
            if cells(line + letter) > width:
                kept, space, rest = line.rpartition(" ")
                if letter == " ":
                    yield line
                    line = ""
                    continue
                yield kept if space and kept.strip() else line
                line = rest if space and kept.strip() else ""
            line += letter
    if line:
        yield line


def cells(text: str) -> int:
    """How many places of a terminal a text takes: wide letters two, marks above letters none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def padded(text: str, width: int) -> str:
    return text + " " * (width - cells(text))
