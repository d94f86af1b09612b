"""Where things lie: the checkout, the user's cache, results and pages; and atomic writing.

A notebook or a shell may start anywhere inside the checkout, so folders are found from the
package's own place, and from the working directory when the package was installed as a wheel.
"""

import os
import sys
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


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write the whole file or nothing: to a neighbour first, flushed, then renamed over `path`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as f:
            f.write(data.encode() if isinstance(data, str) else data)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
