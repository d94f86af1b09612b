"""Execute the notebooks of the course headlessly, each once for the same code, records and parameters.

How it works: papermill runs every notebook, in a temporary file that is renamed into
report/<profile>/notebooks/ only when all its cells have run. Papermill marks the cells of a dead
kernel "completed", so a failure is taken from the exception alone; what had run by then is kept as
NN.failed.ipynb, and NN.log (log.py) tells of each cell as it goes. A notebook that failed stops no other.
Beside each output a stamp holds the hash of all that decides it, and those of the pages; equal ones mean
that nothing is executed. The kernel is this very Python, one for all notebooks (kernel.py): installed kernel
specifications are not asked, because another environment's "python3" may stand before ours.
"""

import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qlora_lib import hardware
from qlora_lib.config import Profile
from qlora_lib.errors import QloraError, UsageError, no_room
from qlora_lib.notebooks.log import Log, log_path
from qlora_lib.paths import committed_records, course_dir, project_root, report_dir, write_atomic
from qlora_lib.records import RunRecord, read_records, records_of, task_records_of

if TYPE_CHECKING:
    from qlora_lib.notebooks.kernel import SharedKernel

PACKAGE = Path(__file__).resolve().parent.parent
SOLUTIONS = "solutions"  # folder beside the notebooks, and beside their pages
ENGINE = "qlora_lib"  # of papermill; engine.py
RUNNING = ".running-"  # folders in which a notebook is executed; the number of the process follows
SWEPT = "demo-long"  # whose records in the repository lessons draw under any profile
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookFailed(QloraError):
    """A cell raised, or the kernel died."""

    executed: Sequence["Executed"] = ()  # the notebooks that did not fail


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
            key = _hash(shared.encode() + _decides(source, profile.name))
            cached = not force and _up_to_date(output, key)
            if not cached:
                _say(f"({number}/{len(sources)}) notebook {name}")
                try:
                    _make(source, output, parameters, key, kernel)
                except NotebookFailed as e:
                    failures[name] = e
                    if len(sources) > 1:
                        _say(f"  error: {e}")
                    continue
            seconds = time.perf_counter() - begun
            _say(f"notebook {name}: " + ("up to date" if cached else f"{seconds:.0f} s"))
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


def stamp_path(output: Path) -> Path:
    return output.with_suffix(".stamp.json")


# --- the cache -----------------------------------------------------------------------------------


def _shared_key(parameters: dict[str, str], records: dict[str, RunRecord]) -> str:
    """All that decides every notebook's output, but its own source: the whole package's code (cells
    may call any of it), the records, and the versions of the stack."""
    code = [p for p in PACKAGE.rglob("*") if p.suffix in (".py", ".yaml") and "__pycache__" not in p.parts]
    parts = {
        "parameters": parameters,
        "code": {str(p.relative_to(PACKAGE)): _hash(p.read_bytes()) for p in sorted(code)},
        "records": {arm: _hash(record.to_json().encode()) for arm, record in records.items()},
        "committed": {p.name: _hash(p.read_bytes()) for p in sorted(committed_records("").glob("*.json"))},
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


def _up_to_date(output: Path, key: str) -> bool:
    try:
        stamp = json.loads(stamp_path(output).read_text())
    except (OSError, ValueError):
        return False
    if not isinstance(stamp, dict) or stamp.get("key") != key:
        return False
    if stamp.get("files") == _made(output):
        return True
    _say(f"the pages of notebook {output.stem} are not as they were made: made again")
    return False


def _made(output: Path) -> dict[str, str] | None:
    """SHA-256 of an executed notebook and of its page; None where one is missing."""
    try:
        return {path.name: _hash(path.read_bytes()) for path in (output, output.with_suffix(".html"))}
    except OSError:
        return None


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- one notebook --------------------------------------------------------------------------------


def _make(source: Path, output: Path, parameters: dict[str, str], key: str, kernel: "SharedKernel") -> None:
    """Execute one notebook, write its HTML, and last the stamp that says both are whole."""
    from qlora_lib.notebooks.html import to_html

    folder, stamp = output.parent, stamp_path(output)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(folder)
    stamp.unlink(missing_ok=True)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix=f"{RUNNING}{os.getpid()}-", dir=folder) as running, Log(log_path(output)) as log:
        part = Path(running) / source.name
        log.line(f"notebook {source.stem} starts, parameters {parameters}")
        try:
            peak = _papermill(source, part, parameters, folder, kernel, log)
        except BaseException as e:
            log.line(f"notebook {source.stem} has not ended: {e if isinstance(e, QloraError) else repr(e)}")
            raise
        _for_any_reader(part)
        write_atomic(output, part.read_bytes())
        log.line(f"notebook {source.stem} ends after {time.perf_counter() - begun:.1f} s")
    (folder / f"{source.stem}.failed.ipynb").unlink(missing_ok=True)
    seconds = time.perf_counter() - begun
    write_atomic(output.with_suffix(".html"), to_html(output))
    spent = {"key": key, "files": _made(output), "seconds": round(seconds, 2), "peak_resident_bytes": peak}
    write_atomic(stamp, json.dumps(spent, indent=1) + "\n")


def _remove_left_behind(folder: Path) -> None:
    """Scratch folders of runs that were killed."""
    import psutil

    for left in folder.glob(f"{RUNNING}*"):
        process = left.name.removeprefix(RUNNING).split("-")[0]
        if not process.isdecimal() or not psutil.pid_exists(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _papermill(source: Path, part: Path, parameters: dict[str, str], folder: Path, kernel: "SharedKernel", log: Log) -> int | None:
    """Execute `source` into `part`; returns the kernel's peak resident bytes where they can be had."""
    import papermill
    import qlora_lib.notebooks.engine  # noqa: F401  registers itself
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.ERROR)
    try:
        papermill.execute_notebook(
            source,
            part,
            parameters=parameters,
            kernel_name="python3",
            km=kernel.fresh(source.parent),
            coalesce_streams=True,  # text that a cell streams is one output, not one a word
            progress_bar={"file": sys.stderr, "leave": False} if sys.stderr.isatty() else False,
            cwd=source.parent,
            engine_name=ENGINE,
            log=log,
        )
    except PapermillExecutionError as e:
        what = f"{e.ename}: {_last_line(e.evalue)}" if e.evalue else e.ename
        cell = f"its cell {e.cell_index + 1} (In [{e.exec_count}], `{_first_line(e.source)}`)"
        kept = _keep_partial(part, folder)
        raise NotebookFailed(
            f"notebook {source.stem} failed in {cell}: {what}", f"What had run is in {kept}, and its log in {log.path.name} beside it"
        ) from None
    except (DeadKernelError, RuntimeError) as e:
        if no_room(e, folder):
            raise
        where, (how, last_words) = _running_cell(part), kernel.how_it_died()
        log.line(f"the kernel has died: {how}")
        if last_words.strip():
            log.line("the kernel's own standard error:")
            log.write(last_words)
        kept = _keep_partial(part, folder)
        raise NotebookFailed(
            f"the kernel of notebook {source.stem} died{where}: {how}",
            f"What had run is in {kept}, and its log in {log.path.name} beside it",
        ) from None
    return kernel.peak_resident_bytes()


def _keep_partial(part: Path, folder: Path) -> Path:
    kept = folder / f"{part.stem}.failed.ipynb"
    if part.is_file():  # papermill writes it before the first cell
        os.replace(part, kept)
    return kept


def _running_cell(part: Path) -> str:
    """The cell that was running when the kernel died: the last that papermill had started."""
    import nbformat

    try:
        cells = nbformat.read(part, as_version=4).cells
    except (OSError, ValueError):
        return ""
    started = [n for n, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    return f" in its cell {started[-1] + 1} (`{_first_line(cells[started[-1]].source)}`)" if started else ""


def _for_any_reader(path: Path) -> None:
    """Drop what names this machine, and widgets, which are dead without their kernel: their pictures stay."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    for key in ("input_path", "output_path"):
        notebook.metadata.get("papermill", {}).pop(key, None)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    nbformat.write(notebook, path)


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")[:80]


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")[:300]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
