"""The two errors that a user may see: the work failed (exit 1), or it was asked for wrongly (exit 2).

Each carries one line that says what is wrong and what was expected, and a hint with the next step. Two faults have many
voices, whoever meets them: no room on the disk, and no memory. Here they are known by all of them.
"""

import errno
import shutil
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path


class QloraError(Exception):
    """The work failed; the command line prints the message and exits 1."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        self.message, self.hint = one_line(message), one_line(hint)
        super().__init__(f"{self.message}. {self.hint}" if hint else self.message)


class UsageError(QloraError):
    """Bad usage or bad settings; the command line prints the message and exits 2."""

    exit_code = 2


FULL, TOO_LONG = (errno.ENOSPC, errno.EDQUOT), errno.EFBIG
# What safetensors, torch and pip write where an `OSError` would have its number; torch's writer of archives names no cause.
SAYS_FULL = ("No space left on device", "Disk quota exceeded", "os error 28", "os error 122")
SAYS_TOO_LONG = ("File too large", "os error 27")
SAYS_NOTHING = ("unexpected pos", "iostream error", "PytorchStreamWriter failed writing")


def no_room(e: BaseException, where: Path | str, needed: str = "", then: str = "") -> QloraError | None:
    """What to say where `e`, or what it comes from, is a disk without room; else None.

    Args:
        where: the folder that was written to, where the error does not name a file.
        needed: what is to be written and its size, where that is known.
        then: the rest of the hint, from "; " or ", " on.
    """
    for cause in _causes(e):
        said, number = str(cause), getattr(cause, "errno", None)
        if isinstance(name := getattr(cause, "filename", None), (str, Path)) and name:
            where = Path(name).parent
        if number == TOO_LONG or any(words in said for words in SAYS_TOO_LONG):
            return _too_long(where, then)
        if number in FULL or any(words in said for words in SAYS_FULL):
            return _full(where, needed, then)
    if any(words in str(cause) for cause in _causes(e) for words in SAYS_NOTHING if isinstance(cause, RuntimeError)):
        return _too_long(where, then) if _limited() else _full(where, needed, then)
    return None


def _full(where: Path | str, needed: str, then: str) -> QloraError:
    free = ""
    for folder in (Path(where), *Path(where).parents):
        if folder.is_dir():
            free = f"{shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
            break
    known = "; ".join(part for part in (needed, free) if part)
    return QloraError(f"the disk that holds {where} is full{f' ({known})' if known else ''}", f"Free some space there{then}")


def _too_long(where: Path | str, then: str) -> QloraError:
    return QloraError(
        f"a file in {where} would be longer than this system allows (File too large)", f"Raise the limit (ulimit -f unlimited){then}"
    )


def _limited() -> bool:
    try:
        import resource
    except ImportError:  # not Unix
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY


def out_of_memory(e: BaseException) -> bool:
    """PyTorch has an error class for a GPU's memory and none for a CPU's; libraries wrap both."""
    return any(
        isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or any(words in str(cause) for words in NO_MEMORY)
        or getattr(cause, "errno", None) == errno.ENOMEM
        for cause in _causes(e)
    )  # fmt: skip


NO_MEMORY = ("DefaultCPUAllocator", "Cannot allocate memory", "CUDA out of memory", "os error 12", "std::bad_alloc")


def _causes(e: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from or within, the outermost first."""
    seen: set[int] = set()
    while e is not None and id(e) not in seen:
        seen.add(id(e))
        yield e
        e = e.__cause__ or e.__context__


def one_line(text: str) -> str:
    """The text without line ends, safe for a terminal: what does not print stands as its code."""
    line = " ".join(str(text).split())
    return line if line.isprintable() else "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)


def nearest(name: str, valid) -> str:
    """The hint that follows an unknown name: the closest valid one, else all of them."""
    valid = [str(v) for v in valid]
    close = get_close_matches(str(name), valid, n=1, cutoff=0.5)
    if close:
        return f"Did you mean '{close[0]}'?"
    return f"Choose from: {', '.join(valid)}"
