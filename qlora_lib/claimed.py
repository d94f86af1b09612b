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


class FolderBusy(QloraError):
    """Another run is writing into this folder."""


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; made if it is missing.

    Raises: FolderBusy at once where another process holds it; QloraError for a folder that cannot be written.
    """
    folder = Path(folder)
    lock = FileLock(folder / LOCK_NAME, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
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


def _holder(folder: Path) -> str:
    try:
        said = (folder / HOLDER_NAME).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
    return f" ({said:.80})" if said else ""
