"""Execute the notebooks of the course headlessly, each once for the same code, records and parameters.

How it works: a notebook is executed (execution.py) unless the stamp beside its pages (stamps.py) has the hash of all that
decides it now. One that failed stops no other; it is named at the end. The kernel is this very Python, one for all
notebooks (kernel.py): installed kernel specifications are not asked, because another environment's "python3" may stand before
ours.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qlora_lib import hardware
from qlora_lib.config import Profile
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.notebooks.execution import NotebookFailed, make_pages
from qlora_lib.notebooks.stamps import hashed, up_to_date
from qlora_lib.paths import committed_records, course_dir, project_root, report_dir
from qlora_lib.progress import say
from qlora_lib.records import RunRecord, read_records, records_of, task_records_of

PACKAGE = Path(__file__).resolve().parent.parent
SOLUTIONS = "solutions"  # folder beside the notebooks, and beside their pages
SWEPT = "demo-long"  # whose records in the repository lessons draw under any profile


@dataclass(frozen=True)
class Executed:
    name: str  # 05_comparison, or solutions/05_comparison
    output: Path  # the executed .ipynb
    html: Path
    cached: bool
    seconds: float  # of this call


def run_notebooks(
    profile: Profile, only: list[str] | None = None, force: bool = False, solutions: bool = False
) -> list[Executed]:
    """Run the arms of the profile that are missing, then execute the notebooks on their records.

    Raises UsageError for an unknown number in `only`, QloraError when an arm or a cell fails.
    """
    from qlora_lib.study import run_profile

    choose(only)  # a wrong number is told before the training
    run_profile(profile)
    return execute_notebooks(profile, "own", only, force, solutions)


def execute_notebooks(
    profile: Profile,
    records: Literal["own", "committed"] = "own",
    only: list[str] | None = None,
    force: bool = False,
    solutions: bool = False,
) -> list[Executed]:
    """Execute the notebooks on records that exist, into report/<profile>/notebooks/; nothing is trained.

    Args:
        only: numbers such as "05"; all notebooks when None.
        force: execute again what is up to date.
        solutions: also the solutions of each, right after it.

    Raises NotebookFailed at the end when a notebook failed; those that did not are made.
    """
    from qlora_lib.notebooks.kernel import SharedKernel

    # What draws the predictions of all others comes last.
    sources = sorted(choose(only, solutions), key=lambda source: _draws_ledger(source.read_bytes()))
    found = records_of(profile.name, records)[0] | task_records_of(profile.name, records)[0]
    found |= {f"{SWEPT}/{arm}": record for arm, record in read_records(committed_records(SWEPT)).items()}
    pages = report_dir() / profile.name / "notebooks"
    parameters = {"profile": profile.name, "records": records}
    shared = _shared_key(parameters, found)
    executed, failures = [], {}
    with SharedKernel() as kernel:
        for number, source in enumerate(sources, 1):
            begun = time.perf_counter()
            name = _name(source)
            output = pages / f"{name}.ipynb"
            key = hashed(shared.encode() + _decides(source, profile.name))
            cached = not force and up_to_date(output, key)
            if not cached:
                say(f"({number}/{len(sources)}) notebook {name}")
                try:
                    make_pages(source, output, parameters, key, kernel)
                except NotebookFailed as e:
                    failures[name] = e
                    if len(sources) > 1:
                        say(f"  error: {e}")
                    continue
            seconds = time.perf_counter() - begun
            say(f"notebook {name}: " + ("up to date" if cached else f"{seconds:.0f} s"))
            executed.append(Executed(name, output, output.with_suffix(".html"), cached, seconds))
    if failures:
        raise _failure(failures, executed, len(sources))
    return executed


def _failure(failures: dict[str, NotebookFailed], executed: list[Executed], asked: int) -> NotebookFailed:
    """What is told at the end: the one failure where one notebook was asked for, else which of them failed."""
    failure = next(iter(failures.values()))
    if asked > 1:
        failure = NotebookFailed(
            f"{len(failures)} of {asked} notebooks failed: {', '.join(failures)}",
            "The others are made; mend the cause printed above and run again",
        )
    failure.executed = executed
    return failure


def choose(only: list[str] | None = None, solutions: bool = False) -> list[Path]:
    """The notebooks' files in order, all of them or those whose numbers are named; each with its solutions."""
    folder = project_root() / "notebooks"
    files = {path.name.split("_")[0]: path for path in sorted(folder.glob("[0-9]*.ipynb"))}
    if not files:
        raise QloraError(f"no notebooks in {folder}", "Run from a checkout of the repository")
    wanted = list(files) if only is None else [number.strip().zfill(2) for number in only]
    for number in wanted:
        if number not in files:
            raise UsageError(f"no notebook '{number}'", f"Choose from: {', '.join(files)}")
    chosen = [path for number, path in files.items() if number in wanted]
    if solutions:
        pairs = [(path, folder / SOLUTIONS / path.name) for path in chosen]
        chosen = [path for pair in pairs for path in pair if path.is_file()]
    return chosen


def _name(source: Path) -> str:
    return f"{SOLUTIONS}/{source.stem}" if source.parent.name == SOLUTIONS else source.stem


# --- the cache -----------------------------------------------------------------------------------


def _shared_key(parameters: dict[str, str], records: dict[str, RunRecord]) -> str:
    """All that decides every notebook's output, but its own source: the whole package's code (cells
    may call any of it), the records, and the versions of the stack."""
    code = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".yaml") and "__pycache__" not in p.parts]
    parts = {
        "parameters": parameters,
        "code": {str(p.relative_to(PACKAGE)): hashed(p.read_bytes()) for p in sorted(code)},
        "records": {arm: hashed(record.to_json().encode()) for arm, record in records.items()},
        "committed": {p.name: hashed(p.read_bytes()) for p in sorted(committed_records("").glob("*.json"))},
        "versions": hardware.versions(),
        "cpu": hardware.cpu_name(),
    }
    return json.dumps(parts, sort_keys=True)


def _decides(source: Path, profile: str) -> bytes:
    """The notebook itself with its data, and where it draws the ledger, the ledger."""
    text, ledger = source.read_bytes(), course_dir(profile) / "predictions.json"
    text += b"".join(path.read_bytes() for path in sorted((project_root() / "notebooks" / "data").glob("*")) if path.name.encode() in text)
    return text + ledger.read_bytes() if _draws_ledger(text) and ledger.is_file() else text


def _draws_ledger(notebook: bytes) -> bool:
    return b"lesson.predictions()" in notebook
