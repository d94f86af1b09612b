"""Examples that were made here, kept in the cache: cutting questions out of thousands of articles takes ten seconds.

How it works: a cache file is the SHA-256 of its JSON, then the JSON; a damaged one is made again. Its name is the hash of
the source file's and of the code that makes examples of it, so that a change of either makes them anew.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from qlora_lib.paths import cache_dir, write_atomic
from qlora_lib.tasks.examples import Example, Message

Made = tuple[dict[str, list[Example]], dict[str, int]]  # examples by split, what was left out by reason


def made_once(name: str, revision: str, make: Callable[[], Made]) -> Made:
    """What `make` gives, from the cache where it is there."""
    path = cache_dir() / "examples" / f"{name}-{_key(revision)}.json"
    try:
        digest, _, text = path.read_bytes().partition(b"\n")
        if hashlib.sha256(text).hexdigest().encode() == digest:
            return _read(text)
    except OSError:
        pass  # not there
    splits, left_out = make()
    rows = {split: [asdict(example) for example in examples] for split, examples in splits.items()}
    text = json.dumps([rows, left_out]).encode()
    try:
        write_atomic(path, hashlib.sha256(text).hexdigest().encode() + b"\n" + text)
    except OSError:
        pass  # a full or read-only cache costs seconds next time, nothing else
    return splits, left_out


def _read(text: bytes) -> Made:
    rows, left_out = json.loads(text)
    return {split: [_example(row) for row in some] for split, some in rows.items()}, left_out


def _example(row: dict) -> Example:
    messages = tuple(Message(**message) for message in row.pop("messages"))
    return Example(messages=messages, **{key: tuple(value) if isinstance(value, list) else value for key, value in row.items()})


def _key(revision: str) -> str:
    total = hashlib.sha256(revision.encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        total.update(path.read_bytes())
    return total.hexdigest()[:16]
