"""A training's checkpoints: the marker that ends each, which one a run goes on from, and what is kept of one gone wrong.

How it works: Trainer writes its files; then a marker is written, atomically and last, with what was measured so far and
the SHA-256 of every file. A checkpoint without its marker was cut short; one whose files differ from it was damaged
afterwards. Neither is resumed: the newest whole one is. `Trainer` reads its own state files with `weights_only=True`.
"""

import json
import shutil
import sys
from pathlib import Path

from qlora_lib.assets.store import sha256_of
from qlora_lib.paths import clear_abandoned, write_atomic

COMPLETE = "complete.json"  # the marker
FOLDER = "checkpoints"


def seal(checkpoint: Path, measured: dict) -> None:
    """Write the marker of a checkpoint whose files are all written."""
    clear_abandoned(checkpoint / COMPLETE)  # of a process killed here: before the files are counted, not while the marker is written
    files = {p.relative_to(checkpoint).as_posix(): sha256_of(p) for p in sorted(checkpoint.rglob("*")) if p.is_file()}
    files.pop(COMPLETE, None)
    write_atomic(checkpoint / COMPLETE, json.dumps({"measured": measured, "files": files}))


def measured_until(checkpoint: Path) -> dict:
    """What `seal` was given."""
    return json.loads((checkpoint / COMPLETE).read_text())["measured"]


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _numbered(out: Path) -> list[Path]:
    """Trainer's checkpoints; a folder of another name is somebody else's."""
    return [p for p in (Path(out) / FOLDER).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdecimal()]


def newest_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint under `out` that is whole; a damaged one is told and passed over."""
    marked = [folder for folder in _numbered(out) if (folder / COMPLETE).exists()]
    for checkpoint in sorted(marked, key=step_of, reverse=True):
        if (damage := _damage(checkpoint)) is None:
            return checkpoint
        print(f"  {checkpoint.name} is passed over: {damage}", file=sys.stderr, flush=True)
    return None


def _damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint that has a marker; None: nothing."""
    try:
        marker = json.loads((checkpoint / COMPLETE).read_text())
        files, _ = marker["files"], dict(marker["measured"])
        for name, digest in files.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if sha256_of(path) != digest:
                return f"{name} is not as it was written"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return f"{COMPLETE} cannot be read"
    return None


def checkpoint_size(out: Path) -> str:
    """What a checkpoint of this run takes, in words, where one has been written; else nothing."""
    sizes = [sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) for folder in _numbered(out) if (folder / COMPLETE).exists()]
    return f"a checkpoint takes {max(sizes) / 2**20:.1f} MiB" if sizes else ""


def drop_partial(out: Path) -> None:
    """Remove checkpoints whose marker was never written."""
    for folder in _numbered(out):
        if not (folder / COMPLETE).exists():
            shutil.rmtree(folder, ignore_errors=True)


def keep_good_checkpoint(out: Path, bad_from: int) -> Path | None:
    """The newest checkpoint of a step before `bad_from`; those from there on are removed.

    A step's loss is of the weights that the step before left, so where step n has a bad one, those of n - 1 may be bad.
    """
    for checkpoint in _numbered(out):
        if step_of(checkpoint) >= bad_from:
            shutil.rmtree(checkpoint, ignore_errors=True)
    return newest_checkpoint(out)
