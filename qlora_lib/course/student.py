"""A copy of the course to hand out: the lessons without their solutions.

How it works: the lessons and their README are copied as they lie in git, with no outputs. What only a
teacher needs (the solutions folder, and the part of the README between the `teacher` marks) is left
out, and a link that would lead out of the copy leads to the repository on the web instead.
"""

import json
import os
import re
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path

from qlora_lib.errors import UsageError
from qlora_lib.notebooks.runner import choose
from qlora_lib.paths import write_atomic

TEACHER = re.compile(r"<!-- teacher -->.*?<!-- /teacher -->\n?", re.DOTALL)
CHECKED = re.compile(r'\bcheck\("(\d\d\.\d+)"')
OUTSIDE = re.compile(r"\]\((\.\./[^)\s]+)\)")


@dataclass(frozen=True)
class LessonInfo:
    number: str
    name: str  # 01_quantization
    title: str
    exercises: int


def lessons() -> list[LessonInfo]:
    """The lessons in their order."""
    found = []
    for path in choose():
        number = path.stem.split("_")[0]
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        title = sources[0].splitlines()[0].removeprefix("# ").strip()
        exercises = {key for source in sources for key in CHECKED.findall(source)}
        found.append(LessonInfo(number, path.stem, title, len(exercises)))
    return found


def write_student_copy(folder: Path) -> list[Path]:
    """Write the lessons and their README into `folder`, without solutions; the files written.

    Raises UsageError when the folder holds anything already, or lies inside the course itself.
    """
    folder, source = Path(os.path.realpath(folder)), choose()[0].parent
    if folder == source or source in folder.parents:
        raise UsageError(f"{folder} lies inside the course", "Give a folder elsewhere")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} is there already, and not an empty folder", "Give a new folder")
    web = f"{_repository()}/blob/main"
    written = []
    for path in [*choose(), source / "README.md"]:
        text = TEACHER.sub("", path.read_text(encoding="utf-8"))
        target = folder / path.name
        write_atomic(target, OUTSIDE.sub(lambda link: f"]({web}/{link[1].removeprefix('../')})", text))
        written.append(target)
    return written


def _repository() -> str:
    urls = dict(line.split(", ", 1) for line in metadata("qlora_lib").get_all("Project-URL") or [])
    return urls["Repository"]

