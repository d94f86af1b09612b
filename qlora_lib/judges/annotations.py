"""AlpacaEval's annotation files: a JSON list of comparisons, read and written so that alpaca_eval's own tools read ours.

How it works: an entry has `instruction`, `output_1` by `generator_1` (the baseline), `output_2` by `generator_2`, and
`preference` from 1 (output_1) to 2 (output_2); 1.5, and 0 in old files, is a draw; null no judgement. Lengths are in
characters, as there.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.errors import UsageError
from qlora_lib.paths import write_atomic

NEEDED = ("instruction", "output_1", "output_2", "preference")


@dataclass(frozen=True)
class Annotations:
    """One model against one baseline by one judge, in the file's order."""

    entries: list[dict]
    preferences: list[float | None]
    model: str | None
    baseline: str | None
    annotator: str | None

    @property
    def lengths(self) -> list[int]:
        return [len(entry["output_2"]) for entry in self.entries]

    @property
    def baseline_lengths(self) -> list[int]:
        return [len(entry["output_1"]) for entry in self.entries]


def read_annotations(path: Path) -> Annotations:
    """An annotation file.

    Raises:
        UsageError: naming the first entry that is none, or where several models or judges are in one file.
    """
    if Path(path).exists() and not Path(path).is_file():
        raise UsageError(f"{path} is no regular file; AlpacaEval's annotations.json was expected")
    try:
        entries = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"cannot read {path} ({getattr(e, 'strerror', None) or type(e).__name__})") from None
    except (ValueError, RecursionError) as e:
        raise UsageError(f"{path} is no JSON ({e}); a list of annotations was expected") from None
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{path} holds no list of annotations; AlpacaEval's annotations.json was expected")
    preferences = [_preference(entry, f"entry {i} of {path}") for i, entry in enumerate(entries)]
    names = [_only(entries, key, path) for key in ("generator_2", "generator_1", "annotator")]
    return Annotations(entries, preferences, *names)


def write_annotations(path: Path, entries: list[dict]) -> None:
    write_atomic(path, json.dumps(entries, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _preference(entry, where: str) -> float | None:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is no object; keys {', '.join(NEEDED)} were expected")
    if absent := [key for key in NEEDED if key not in entry]:
        raise UsageError(f"{where} has no {absent[0]}; keys {', '.join(NEEDED)} were expected")
    if wrong := [key for key in NEEDED[:3] if not isinstance(entry[key], str)]:
        raise UsageError(f"{where}: {wrong[0]} is no text")
    value = entry["preference"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise UsageError(f"{where}: preference is {value!r:.40}; a number from 1 to 2, 0 (a draw) or null was expected")
    return 1.5 if value == 0 else float(value)


def _only(entries: list[dict], key: str, path) -> str | None:
    names = sorted({str(entry[key]) for entry in entries if entry.get(key) is not None})
    if len(names) > 1:
        raise UsageError(f"{path} has several values of {key} ({', '.join(names[:3])}); one a file was expected")
    return names[0] if names else None
