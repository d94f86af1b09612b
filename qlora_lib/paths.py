"""Where things lie: the checkout, the user's cache, results and pages; and atomic writing.

A notebook or a shell may start anywhere inside the checkout, so folders are found from the
package's own place, and from the working directory when the package was installed as a wheel.
"""

import glob
import os
import platform
import shutil
import sys
from contextlib import suppress
from pathlib import Path


def project_root() -> Path:
    """The checkout that holds `notebooks/` and `report/`, or the working directory."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def users_path(name: str | Path) -> Path:
    """What a user named, `~` as a home folder; as it stands where that home is nobody's."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def cache_dir() -> Path:
    """`$QLORA_CACHE`, or the platform's cache folder for this user."""
    if override := os.environ.get("QLORA_CACHE"):
        return Path(override).expanduser().resolve()
    if sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "qlora_lib"


def results_dir(profile: str) -> Path:
    """`$QLORA_RESULTS/<profile>`, or `results/<profile>` in the checkout."""
    if override := os.environ.get("QLORA_RESULTS"):
        return Path(override).expanduser().resolve() / profile
    return project_root() / "results" / profile


def course_dir(profile: str) -> Path:
    """What a reader of the course leaves: predictions, and figures kept for a talk."""
    return results_dir(profile) / "course"


def figures_dir(profile: str) -> Path:
    return project_root() / "figures" / profile


def report_dir() -> Path:
    return project_root() / "report"


def committed_records(profile: str) -> Path:
    """Records that the repository carries, so that pages can be drawn without training."""
    return project_root() / "report" / "records" / profile


def part_of(path: Path) -> Path:
    """The hidden neighbour that this process fills before it is renamed to `path`; those that killed processes left are removed."""
    clear_abandoned(path)
    return path.with_name(f".{path.name}.{os.getpid()}@{platform.node()}.part")


def abandoned(path: Path) -> list[Path]:
    """Neighbours of `path`, files or folders, that processes of this machine were filling and will not: they are gone."""
    left = []
    for part in path.parent.glob(f".{glob.escape(path.name)}.*@{glob.escape(platform.node())}.part"):
        import psutil  # only where a process was killed

        process = part.name[len(path.name) + 2 :].split("@")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            left.append(part)
    return left


def clear_abandoned(path: Path) -> None:
    for left in abandoned(path):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        with suppress(OSError):  # what cannot be removed is no reason not to write
            left.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write the whole file or nothing: to a neighbour first, flushed, then renamed over `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        with open(part, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as e:
        e.filename = str(path)  # of a full disk the system names none, and nobody knows the neighbour's
        raise
    finally:
        with suppress(OSError):  # what stands in the way of the file stands in the way of this
            part.unlink(missing_ok=True)
