"""The ledger: what a reader predicted, what a simple rule says, and what was then measured.

How it works: one JSON file a profile, written whole after each measurement. The first prediction
counts: it was made before the answer was seen. Running a notebook headlessly, or again, renews what
was measured and leaves predictions alone. A damaged file is put aside, never overwritten.
"""

import json
import math
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from qlora_lib.errors import UsageError
from qlora_lib.paths import write_atomic


@dataclass(frozen=True)
class Entry:
    name: str  # "02 bytes of the model over a quarter": the notebook's number first
    guess: float | None  # the reader's first
    rule: float | None  # of a simple rule or a published write-up
    value: float
    form: str  # how the numbers are printed (report/formats.py)
    what: str  # how the value was got: measured, counted, ...


class Ledger:
    """Entries of one profile, lesson by lesson, in each in the order in which they were first made."""

    def __init__(self, path: Path):
        self.path = path
        self.trouble: str | None = None  # why nothing is kept, for the page
        self._entries: dict[str, Entry] = {}
        self._entries = self._read()

    @property
    def entries(self) -> list[Entry]:
        return sorted(self._entries.values(), key=lambda entry: entry.name[:2])

    def note(
        self, name: str, guess: float | None, value: float, form: str, what: str, rule: float | None = None
    ) -> Entry:
        """Keep a prediction and what was measured; the entry as it now stands.

        Raises UsageError for a guess that is no finite number.
        """
        if guess is not None:
            guess = _number(guess)
        self._entries = self._read()  # another notebook may have written in the meantime
        before = self._entries.get(name)
        first = before.guess if before and before.guess is not None else guess
        entry = Entry(name, first, None if rule is None else float(rule), float(value), form, what)
        self._entries[name] = entry
        text = json.dumps([asdict(e) for e in self.entries], indent=1, allow_nan=False) + "\n"
        try:
            write_atomic(self.path, text)
            self.trouble = None
        except OSError as e:
            self.trouble = f"The ledger is not kept: {self.path.name} cannot be written ({e.strerror})."
        return entry

    def _read(self) -> dict[str, Entry]:
        if not self.path.is_file():
            return self._entries  # of this process, where nothing can be written
        try:
            return {e["name"]: Entry(**e) for e in json.loads(self.path.read_text())}
        except (ValueError, TypeError, KeyError):
            os.replace(self.path, self.path.with_suffix(".damaged.json"))
            return {}


def _number(guess) -> float:
    try:
        found = float(guess)
    except (TypeError, ValueError):
        found = math.nan
    if not math.isfinite(found):
        raise UsageError(f"{guess!r} is no prediction; a number was expected", "Set guess = 2.5, say, and run the cell again")
    return found
