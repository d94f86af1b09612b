"""Execute one notebook: papermill, a log that outlives the kernel, the page, and last the stamp.

How it works: papermill writes into a temporary folder, and what it wrote is renamed into place only when all cells have run.
It marks the cells of a dead kernel "completed", so a failure is taken from the exception alone; what had run by then is
kept as NN.failed.ipynb, and NN.log (log.py) tells of each cell as it goes.
"""

import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from qlora_lib.errors import QloraError, no_room
from qlora_lib.notebooks.log import Log, log_path
from qlora_lib.notebooks.stamps import stamp_path, write_stamp
from qlora_lib.paths import write_atomic

if TYPE_CHECKING:
    from qlora_lib.notebooks.kernel import SharedKernel
    from qlora_lib.notebooks.runner import Executed

ENGINE = "qlora_lib"  # of papermill; engine.py
RUNNING = ".running-"  # folders in which a notebook is executed; the number of the process follows
WIDGET = "application/vnd.jupyter.widget-view+json"


class NotebookFailed(QloraError):
    """A cell raised, or the kernel died."""

    executed: Sequence["Executed"] = ()  # the notebooks that did not fail


def make_pages(source: Path, output: Path, parameters: dict[str, str], key: str, kernel: "SharedKernel") -> None:
    """Execute one notebook, write its HTML, and last the stamp that says both are whole."""
    from qlora_lib.notebooks.html import to_html

    folder = output.parent
    folder.mkdir(parents=True, exist_ok=True)
    _remove_left_behind(folder)
    stamp_path(output).unlink(missing_ok=True)
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
    write_stamp(output, key, seconds, peak)


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
