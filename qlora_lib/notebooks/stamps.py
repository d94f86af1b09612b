"""The stamp beside an executed notebook: what decided it, what its pages were then, and what it took.

How it works: written last, so it says that both pages are whole. A notebook is up to date where its stamp has the key
that it would get now, and its pages are still what they were.
"""

import hashlib
import json
from pathlib import Path

from qlora_lib.paths import write_atomic
from qlora_lib.progress import say


def stamp_path(output: Path) -> Path:
    return output.with_suffix(".stamp.json")


def up_to_date(output: Path, key: str) -> bool:
    try:
        stamp = json.loads(stamp_path(output).read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(stamp, dict) or stamp.get("key") != key:
        return False
    if stamp.get("files") == _made(output):
        return True
    say(f"the pages of notebook {output.stem} are not as they were made: made again")
    return False


def _made(output: Path) -> dict[str, str] | None:
    """SHA-256 of an executed notebook and of its page; None where one is missing."""
    try:
        return {path.name: hashed(path.read_bytes()) for path in (output, output.with_suffix(".html"))}
    except OSError:
        return None


def write_stamp(output: Path, key: str, seconds: float, peak_resident_bytes: int | None) -> None:
    spent = {"key": key, "files": _made(output), "seconds": round(seconds, 2), "peak_resident_bytes": peak_resident_bytes}
    write_atomic(stamp_path(output), json.dumps(spent, indent=1) + "\n")


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
