"""Whether a folder takes files, has room and knows locks: a file without a name is written and locked there, and is gone.

How it works: of a folder that does not exist yet the nearest one above it is tried, where it would be made.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.doctor.findings import GIB

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

TEMPORARY_GIB = 0.5  # of the temporary folder: where a report is laid out and Parquet is read


@dataclass(frozen=True)
class Folder:
    what: str  # "cache", "results", "temporary files"
    path: Path
    variable: str  # that names another
    free_bytes: int
    fault: str | None  # why it takes no file
    locks: bool
    disk: int | None  # the same number: the same disk


def look_at(what: str, path: Path, variable: str) -> Folder:
    there = existing(path)
    fault, locks = _try(there)
    try:
        free, disk = shutil.disk_usage(there).free, os.stat(there).st_dev
    except OSError:
        free, disk = 0, None
    return Folder(what, Path(path), variable, free, fault, locks, disk)


def existing(path: Path) -> Path:
    """`path`, or the nearest above it that is seen to exist."""
    path = Path(path).absolute()
    while not os.path.exists(path):  # unlike Path's, False where it may not be looked at
        path = path.parent
    return path


def found_by(folder: Path, pattern: str) -> list[Path]:
    """What a pattern finds there, in order; nothing where the folder may not be looked into."""
    try:
        return sorted(folder.glob(pattern))
    except OSError:
        return []


def folder_bytes(folder: Path) -> int:
    total = 0
    for path in found_by(folder, "**/*"):
        try:
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:  # another process has just removed it
            continue
    return total


def _try(folder: Path) -> tuple[str | None, bool]:
    """(why no file can be written there, whether it can be locked)."""
    if not folder.is_dir():
        return f"{folder} is a file", True
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
            return None, _lockable(file)
    except OSError as e:
        return e.strerror or str(e), True


def _lockable(file) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def advice(folders: list[Folder], needed_gib: dict[str, float]) -> list[str]:
    """`needed_gib` by `what`; folders on one disk are told once."""
    said, told = [], set()
    for folder in folders:
        needed = needed_gib[folder.what]
        if folder.fault:
            said.append(
                f"{folder.path} cannot be written ({folder.fault}): it is the place of {folder.what}; set {folder.variable} to a folder of yours"
            )
        elif folder.free_bytes < needed * GIB and folder.disk not in told:
            told.add(folder.disk)
            said.append(f"Less than {needed:g} GiB of disk is free at {folder.path}: free some, or set {folder.variable} to another disk")
        if not folder.locks:
            said.append(f"The file system of {folder.path} has no file locks, which keep two runs apart: set {folder.variable} to a local disk")
        said += _file_nodes(folder)
    return said + _file_size(max(needed_gib.values()))


def _file_nodes(folder: Folder) -> list[str]:
    try:
        disk = os.statvfs(existing(folder.path))
    except (OSError, AttributeError):
        return []
    if disk.f_files and disk.f_favail < 1000:
        return [f"The disk of {folder.path} has room for {disk.f_favail} more files (inodes): remove small files there"]
    return []


def _file_size(needed_gib: float) -> list[str]:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    except (ImportError, AttributeError):
        return []
    if most == resource.RLIM_INFINITY or most >= needed_gib * GIB:
        return []
    return [f"A file may have no more than {most / GIB:.2g} GiB in this shell: ulimit -f unlimited"]
