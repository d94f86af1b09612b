"""What a notebook run leaves however it ends: one line as a cell starts and ends, and the text it streams, as it comes.

How it works: NN.log stands beside the executed notebook, is opened afresh by each run and flushed at every line, so it is
there when the kernel, or this process, is killed. `Log` is also the file to which papermill's client writes the cells'
standard output and error. The kernel's own standard error, where Python's fault handler writes what it did when it crashed,
goes to a file of its own while the kernel lives and is copied to the log of the notebook in which it died.

Values of environment variables whose names speak of a secret are written as the name alone.
"""

import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from qlora_lib.errors import one_line

SECRETS = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY|_KEY$", re.IGNORECASE)
SHORTEST = 8  # of a secret: shorter values would also be parts of other words


def log_path(output: Path) -> Path:
    return output.with_suffix(".log")


def without_secrets(text: str) -> str:
    """The text, with `[NAME]` in place of what a secret's variable holds."""
    for name, value in os.environ.items():
        if SECRETS.search(name) and len(value.strip()) >= SHORTEST:
            text = text.replace(value.strip(), f"[{name}]")
    return text


class Log:
    """A file of lines, each with the time of day; what cannot be written to it stops no notebook."""

    def __init__(self, path: Path):
        self.path, self._part = path, ""
        self._file = None
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "w", encoding="utf-8", errors="backslashreplace")

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *exc) -> None:
        if self._part:
            self.write("\n")
        if self._file is not None:
            with suppress(OSError):
                self._file.close()

    def line(self, text: str) -> None:
        """What the run says of itself."""
        if self._part:  # a cell's text that had no end
            self.write("\n")
        self._put(f"{datetime.now():%Y-%m-%d %H:%M:%S}  {one_line(text)}")

    def write(self, text: str) -> None:
        """What a cell streams: kept until its line ends, so that no secret is torn in two."""
        *lines, self._part = (self._part + text).replace("\r\n", "\n").split("\n")
        for line in lines:
            self._put(f"  | {line.rpartition(chr(13))[2]}")  # of a progress bar, how it ended

    def flush(self) -> None:
        """Every line is flushed as it is written."""

    def _put(self, line: str) -> None:
        if self._file is not None:
            with suppress(OSError):
                self._file.write(without_secrets(line) + "\n")
                self._file.flush()


def cells_told(nb_man, log: Log) -> None:
    """Let papermill's manager of a run write a line to `log` as each cell starts and ends."""
    started: dict[int, datetime] = {}
    failed: set[int] = set()

    def start(cell, cell_index: int) -> None:
        if cell.cell_type == "code":
            started[cell_index] = datetime.now()
            first = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
            log.line(f"cell {cell_index + 1} of {len(nb_man.nb.cells)} starts: {first:.80}")

    def end(cell, cell_index: int) -> None:
        # papermill calls a cell complete also where its kernel has died: nbclient then has no answer to note
        if cell_index in started and cell_index not in failed:
            seconds = (datetime.now() - started[cell_index]).total_seconds()
            done = "shell.execute_reply" in cell.metadata.get("execution", {})
            log.line(f"cell {cell_index + 1} " + (f"ends after {seconds:.1f} s" if done else f"has not ended ({seconds:.1f} s)"))

    def fail(cell, cell_index: int) -> None:
        failed.add(cell_index)
        error = next((o for o in cell.get("outputs", []) if o.output_type == "error"), {})
        log.line(f"cell {cell_index + 1} fails: {error.get('ename', 'error')}: {error.get('evalue', '')}")

    for name, tell in (("cell_start", start), ("cell_complete", end), ("cell_exception", fail)):
        setattr(nb_man, name, _and_tell(getattr(nb_man, name), tell))


def _and_tell(call: Callable, tell: Callable) -> Callable:
    def both(cell, cell_index=None, **kwargs):
        tell(cell, cell_index)
        return call(cell, cell_index=cell_index, **kwargs)

    return both
