"""What lies in the cache and among the results, and is not as it was left: damaged, cut short, or held by a run.

How it works: each entry of the cache, each checkpoint and each record names its files with their SHA-256 (the cache their sizes
too). A file that is missing or has another size is found at once; `deep` compares the content as well. Nothing is mended here: an
entry of the cache is made again at its next use, an arm whose record or checkpoint is damaged goes on from what is whole.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lib.assets.store import MANIFEST, sha256_of
from qlora_lib.checkpoints import COMPLETE, FOLDER, step_of
from qlora_lib.claimed import HOLDER_NAME, LOCK_NAME
from qlora_lib.doctor.findings import GIB
from qlora_lib.doctor.folders import folder_bytes, found_by
from qlora_lib.records import RECORD_NAME


@dataclass
class Kept:
    """One line for each thing found, beginning with its folder."""

    damaged: list[str] = field(default_factory=list)
    interrupted: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def in_cache(cache: Path, deep: bool = False) -> Kept:
    found = Kept()
    for folder in (p for kind in ("models", "data", "gguf") for p in found_by(cache, f"{kind}/*") if p.is_dir()):
        name = folder.relative_to(cache).as_posix()
        if re.fullmatch(r"\..*\.part", folder.name):
            if not _locked(folder.with_suffix(".lock")):
                found.interrupted.append(f"{name} ({folder_bytes(folder) / GIB:.2f} GiB)")
        elif wrong := _wrong_by_manifest(folder / MANIFEST, folder, deep):
            found.damaged.append(f"{name}: {wrong}")
    for note, folder in _hub_notes(cache):
        if folder.is_dir() and (wrong := _wrong_by_manifest(note, folder, deep)):
            found.damaged.append(f"{note.parent.relative_to(cache).as_posix()}: {wrong}")
    return found


def in_results(results: Path, deep: bool = False) -> Kept:
    """Of the arms of every profile under `results`."""
    found = Kept()
    for out in (p for p in found_by(results, "*/*") if p.is_dir()):
        name = out.relative_to(results).as_posix()
        if who := holder(out):
            found.held.append(f"{name} ({who})" if who != "held" else name)
            continue
        if (out / RECORD_NAME).is_file():
            if wrong := _wrong_record(out, deep):
                found.damaged.append(f"{name}: {wrong}")
            continue
        checkpoints = sorted((p for p in found_by(out, f"{FOLDER}/checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)), key=step_of)
        whole = None
        for checkpoint in checkpoints:
            if wrong := _wrong_checkpoint(checkpoint, deep):
                found.damaged.append(f"{name}/{checkpoint.name}: {wrong}")
            else:
                whole = checkpoint
        if checkpoints:
            found.interrupted.append(f"{name} (goes on after step {step_of(whole)})" if whole else f"{name} (begins again)")
    return found


def holder(folder: Path) -> str:
    """Who holds a folder of results, "held" where that is not known; empty: nobody. A free folder is not held to find out."""
    try:
        said = (folder / HOLDER_NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return (said[:80] or "held") if _locked(folder / LOCK_NAME) else ""


def _locked(lock: Path) -> bool:
    """Whether a process holds this lock."""
    try:
        import fcntl

        with open(lock, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def _wrong_by_manifest(manifest: Path, folder: Path, deep: bool) -> str | None:
    try:
        noted = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        files = {str(name): (int(about["size"]), str(about["sha256"])) for name, about in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{manifest.name} is missing or cannot be read"
    return wrong_file(folder, files, deep)


def _wrong_checkpoint(checkpoint: Path, deep: bool) -> str | None:
    try:
        noted = json.loads((checkpoint / COMPLETE).read_text())["files"]
        files = {str(name): (None, str(digest)) for name, digest in noted.items()}
    except FileNotFoundError:
        return "was cut short"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{COMPLETE} cannot be read"
    return wrong_file(checkpoint, files, deep)


def _wrong_record(out: Path, deep: bool) -> str | None:
    try:
        noted = json.loads((out / RECORD_NAME).read_text())["files"]
        files = {str(name): (None, str(digest)) for name, digest in noted.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{RECORD_NAME} cannot be read"
    return wrong_file(out, files, deep)


def wrong_file(folder: Path, files: Mapping[str, tuple[int | None, str]], deep: bool) -> str | None:
    """The first of the files {name: (bytes or None, SHA-256)} that is not as noted, and how."""
    for name, (size, digest) in files.items():
        path = folder / name
        try:
            now = path.stat().st_size
            if size is not None and now != size:
                return f"{name} has {now} bytes instead of {size}"
            if now == 0 and size is None:
                return f"{name} is empty"
            if deep and sha256_of(path) != digest:
                return f"{name} is not as it was written"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as e:
            return f"{name} cannot be read ({e.strerror})"
    return None


def _hub_notes(cache: Path) -> Iterator[tuple[Path, Path]]:
    """(note, snapshot folder) of what came from the hub, whose files lie in the hub's own cache."""
    notes = found_by(cache, "hub/*--*--*/*-*.json")
    if not notes:
        return
    from huggingface_hub import constants

    for note in notes:
        kind, _, repo = note.parent.name.partition("--")
        yield note, Path(constants.HF_HUB_CACHE) / f"{kind}s--{repo}" / "snapshots" / note.stem.rpartition("-")[0]


def advice(cache: Kept, results: Kept) -> list[str]:
    said = [f"In the cache, {what}: the next use makes it again, which may need the network (qlora fetch)" for what in cache.damaged]
    said += [f"An interrupted fetch has left {what} in the cache: the next one begins it anew and clears this away" for what in cache.interrupted]
    said += [f"Of the results, {what}: it is not used; the next run of that arm makes what is missing" for what in results.damaged]
    if results.interrupted:
        said.append(f"Interrupted: {_listed(results.interrupted)}; the same command again finishes what is unchanged")
    if results.held:
        said.append(f"Running now: {_listed(results.held)}; another run leaves such a folder for the end")
    return said


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
