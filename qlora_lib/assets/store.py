"""The cache: entries that are whole or absent, checked on each use, made once by one process.

How it works: `make_once` returns an entry whose manifest holds. Otherwise it takes the entry's lock
(the operating system drops it when its holder dies), looks again, makes the entry in a hidden
sibling folder, writes `manifest.json` last and renames the folder into place.

Hashing 513 MB takes about half a second, more without the CPU's SHA instructions, and each arm
resolves its model in a process of its own. So a file whose size and modification time are the ones
that the manifest notes counts as verified; any other is hashed again.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Callable, Iterable

from qlora_lib.errors import QloraError, no_room, out_of_memory
from qlora_lib.paths import cache_dir, write_atomic
from qlora_lib.progress import say

MANIFEST = "manifest.json"
LARGER_DISK = ", or set QLORA_CACHE to a folder on a larger disk"


def sha256_of(path: Path, sync: bool = False) -> str:
    """Hex SHA-256 of a file; `sync` also flushes it to the disk."""
    with open(path, "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
        if sync:
            os.fsync(f.fileno())
    return digest


@contextlib.contextmanager
def clear_disk_errors(where: Path):
    """A full disk, or a place that cannot be read or written, is one line with the next step."""
    try:
        yield
    except QloraError:
        raise
    except Exception as e:
        if full := no_room(e, where, then=LARGER_DISK):  # safetensors and torch have errors of their own for it
            raise full from e
        if out_of_memory(e) or not isinstance(e, OSError):
            raise
        raise QloraError(
            f"cannot use {e.filename or where} ({e.strerror or type(e).__name__})",
            "Make it readable and writable, or set QLORA_CACHE to another folder",
        ) from e


class Manifest:
    """Size, SHA-256 and modification time of files under `folder`, noted in the JSON file `path`.

    `recipe` says what the files were made from and how: an entry made by another recipe is not it.
    """

    def __init__(self, path: Path, folder: Path, recipe: str):
        self.path, self.folder, self.recipe = Path(path), Path(folder), recipe

    def read(self) -> dict[str, dict] | None:
        try:
            noted = json.loads(self.path.read_text(encoding="utf-8"))
            return noted["files"] if noted["recipe"] == self.recipe else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, names: Iterable[str], durable: bool = False) -> dict[str, dict]:
        """Hash and note the files. `durable` flushes them to the disk and must succeed; else the
        note only saves time, and a cache that cannot be written is no reason to stop."""
        files = {}
        for name in sorted(names):
            path = self.folder / name
            stat = path.stat()
            sha = sha256_of(path, sync=durable)
            files[name] = {"size": stat.st_size, "sha256": sha, "mtime_ns": stat.st_mtime_ns}
        with contextlib.nullcontext() if durable else contextlib.suppress(OSError):
            self._store(files)
        return files

    def damaged(self) -> dict[str, str]:
        """{file: what is wrong with it}, {} when all is well; a missing manifest damages itself."""
        files = self.read()
        if not files:
            return {self.path.name: "missing or of another version"}
        wrong, touched = {}, False
        for name, noted in files.items():
            path = self.folder / name
            try:
                stat = path.stat()
                if stat.st_size != noted["size"]:
                    wrong[name] = f"{stat.st_size} bytes instead of {noted['size']}"
                elif stat.st_mtime_ns != noted["mtime_ns"]:
                    if sha256_of(path) != noted["sha256"]:
                        wrong[name] = "other content (SHA-256)"
                    noted["mtime_ns"], touched = stat.st_mtime_ns, True
            except OSError as e:
                wrong[name] = "missing" if isinstance(e, FileNotFoundError) else str(e.strerror)
        if touched and not wrong:  # a copied cache: hashed once, not on each use
            with contextlib.suppress(OSError):
                self._store(files)
        return wrong

    def _store(self, files: dict[str, dict]) -> None:
        write_atomic(self.path, json.dumps({"recipe": self.recipe, "files": files}, indent=1))


def entry_manifest(entry: Path, recipe: str) -> Manifest:
    return Manifest(entry / MANIFEST, entry, recipe)


def _lock_of(entry: Path, **more):
    from filelock import FileLock

    return FileLock(entry.parent / f".{entry.name}.lock", **more)


@contextlib.contextmanager
def locked(entry: Path, what: str):
    """Hold the lock of a cache entry; say so when another process has it."""
    from filelock import Timeout

    entry.parent.mkdir(parents=True, exist_ok=True)
    lock = _lock_of(entry)
    try:
        try:
            lock.acquire(timeout=0.5)
        except Timeout:
            say(f"waiting for another process that is fetching {what}")
            lock.acquire()
    except NotImplementedError:  # some network file systems
        raise QloraError(
            f"the file system of {entry.parent} has no file locks",
            "Set QLORA_CACHE to a folder on a local disk",
        ) from None
    try:
        yield
    finally:
        lock.release()


def make_once(
    entry: Path, recipe: str, what: str, make: Callable[[Path, Path], None]
) -> Path:
    """The whole and verified folder `entry`, made by `make(folder, scratch)` if need be."""
    manifest = entry_manifest(entry, recipe)
    with clear_disk_errors(cache_dir()):
        part = entry.with_name(f".{entry.name}.part")
        if not manifest.damaged():
            _drop(part, entry)
            return entry
        with locked(entry, what):
            if not (wrong := manifest.damaged()):
                return entry
            if entry.exists():
                name, why = next(iter(wrong.items()))
                say(f"the cached copy of {what} is damaged ({name}: {why}): made again")
                shutil.rmtree(entry)
            # What a killed process left here is nobody's: this process holds the lock.
            shutil.rmtree(part, ignore_errors=True)
            folder, scratch = part / "entry", part / "scratch"
            folder.mkdir(parents=True)
            scratch.mkdir()
            try:
                make(folder, scratch)
                names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
                entry_manifest(folder, recipe).write(names, durable=True)
                os.replace(folder, entry)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return entry


def _drop(part: Path, entry: Path) -> None:
    """Remove what a process left that was killed after it had put the whole entry in its place."""
    if part.exists():
        with contextlib.suppress(OSError, NotImplementedError):  # another process is at it; a cache that can only be read
            with _lock_of(entry, timeout=0):
                shutil.rmtree(part, ignore_errors=True)


def noted_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """{name: SHA-256} of the user's own files, noted in the cache so that each is hashed once.

    A changed file is hashed again: here the files are right, whatever they hold.
    """
    names = sorted(names)
    key = hashlib.sha256("\n".join([str(folder), *names]).encode()).hexdigest()[:16]
    manifest = Manifest(cache_dir() / "local" / f"{key}.json", folder, recipe=str(folder))
    files = manifest.read() if not manifest.damaged() else manifest.write(names)
    return {name: noted["sha256"] for name, noted in files.items()}


def digest(hashes: dict[str, str]) -> str:
    """One SHA-256 over names and hashes; equal files in any folder have equal digests."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()
