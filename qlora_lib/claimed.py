"""An arm's folder belongs to one run at a time: two shells, or a scheduler's many, share a folder of results.

How it works: the operating system's own lock on `.lock` in the folder. It ends with the process that holds it, however that
ends, so nothing is left to clear away after a kill. `.holder` says who holds it, for the message to the others (not the lock's
own file: who tries in vain may empty that). On a network file system it holds as far as that system's locks do.
"""

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from qlora_lib.errors import QloraError

LOCK_NAME, HOLDER_NAME = ".lock", ".holder"
ARM_LOCK_NAME = ".arm.lock"  # held by the process that computes, which may outlive the one that started it by a step


class FolderBusy(QloraError):
    """Another run is writing into this folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; made if it is missing.

    Raises: FolderBusy at once where another process holds it; QloraError for a folder that cannot be written.
    """
    folder = Path(folder)
    lock, arms = (FileLock(folder / name, timeout=0) for name in (LOCK_NAME, ARM_LOCK_NAME))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock:  # nobody's, and neither is the arm's
            with arms:
                pass
            lock.acquire()  # counted: it is kept where the context ends
    except Timeout:
        raise FolderBusy(
            f"another run{_holder(folder)} is writing into {folder}", "Wait until it is done, or give another folder"
        ) from None
    except (OSError, NotImplementedError) as e:  # the latter: a file system without locks
        raise QloraError(f"cannot write to {folder}: {getattr(e, 'strerror', None) or e}", "Give another folder with --out") from None
    try:
        (folder / HOLDER_NAME).write_text(f"process {os.getpid()} on {platform.node()}\n")
        yield
    finally:
        (folder / HOLDER_NAME).unlink(missing_ok=True)
        lock.release()


@contextmanager
def computing(folder: Path) -> Iterator[None]:
    """Hold `folder` for the process that computes in it, started by one that has claimed it.

    Raises FolderBusy where the process of an earlier run is still about to end.
    """
    try:
        with FileLock(Path(folder) / ARM_LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise FolderBusy(f"an earlier run has not yet left {folder}", "Wait a moment and run again") from None


def _holder(folder: Path) -> str:
    try:
        said = (folder / HOLDER_NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({said:.80})" if said else ""
