"""Measures the whole grid into one record, and goes on where an earlier call has stopped.

How it works: a real model's case has a process of its own, tiny ones share one; each answers a line of JSON a case. After
every answer the record is written whole. What stands in it is kept as long as the packages that were measured are the
same versions; predictions are cheap and always made anew. A process that dies (of memory, say) costs the case that it was
at, with the reason, and the others go on.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.errors import QloraError, one_line
from qlora_lib.paths import project_root
from qlora_lib.validation.grid import REAL, SHAPES, Case, Format, cases, formats
from qlora_lib.validation.record import (
    DEPENDS_ON,
    PROTOCOL,
    AtRest,
    Bytes,
    MeasuredStep,
    Provenance,
    Step,
    ValidationRecord,
    read_validation,
    shapes_of,
)

THREADS = 1  # sizes do not depend on it
KNOWN: dict[str, Case | Format] = {entry.name: entry for entry in (*formats(), *cases())}


def run(out: Path, only: str | None = None, progress: bool = True) -> ValidationRecord:
    """Measure what `out` lacks of the grid (`only`: `real` or `tiny`), and write it there; returns the whole record.

    Raises QloraError when no case could be measured.
    """
    out, begun = Path(out), time.perf_counter()
    earlier = _earlier(out)
    entries = {name: _entry(name, answer) for name, answer in _kept(earlier).items()}
    spent, machine = earlier.provenance.seconds if earlier else 0.0, _machine()
    wanted = [entry.name for entry in (*formats(only), *cases(only))]
    left = [name for name in wanted if name not in entries]

    def record() -> ValidationRecord:
        seconds = spent + (time.perf_counter() - begun if left else 0.0)
        return _record(entries, Provenance(finished=datetime.now(UTC).isoformat(timespec="seconds"), seconds=seconds, **machine))

    with _bar(len(wanted), len(wanted) - len(left), progress) as bar:
        for group in _groups([KNOWN[name] for name in left]):
            for name, answer in _measured(group):
                entries[name] = _entry(name, answer)
                record().write(out)
                bar.update()
    if not any(entries[name].measured for name in wanted):
        raise QloraError(
            f"no case could be measured: {entries[wanted[0]].reason}", "`qlora doctor` shows what this machine can do"
        )
    whole = record()
    whole.write(out)
    return whole


def _earlier(out: Path) -> ValidationRecord | None:
    """The record that stands there, unless it is of other versions of the packages that are measured."""
    if not out.is_file():
        return None
    record = read_validation(out)
    same = all(record.provenance.versions.get(name) == version(name) for name in DEPENDS_ON)
    return record if same and record.protocol == PROTOCOL else None


def _kept(record: ValidationRecord | None) -> dict[str, dict]:
    """What was measured of the present grid; a case that failed is tried again, one of another shape too."""
    if record is None:
        return {}
    same = {name for name in record.shapes if record.shapes[name] == shapes_of([name]).get(name)}
    entries = [e for e in (*record.steps, *record.at_rest) if e.measured and e.model in same]
    return {e.name: e.measured.model_dump() for e in entries if e.name in KNOWN}


def _entry(name: str, answer: dict | str) -> Step | AtRest:
    """answer: bytes, or why there are none."""
    what = KNOWN[name]
    part, kind = (Step, MeasuredStep) if isinstance(what, Case) else (AtRest, Bytes)
    if isinstance(answer, str):
        return part.of(what, SHAPES[what.model], None, answer)
    return part.of(what, SHAPES[what.model], kind(**answer))


def _record(entries: dict[str, Step | AtRest], provenance: Provenance) -> ValidationRecord:
    """In the order of the grid, whatever the order in which they were measured."""
    present = [entries[name] for name in KNOWN if name in entries]
    return ValidationRecord(
        protocol=PROTOCOL,
        shapes=shapes_of(e.model for e in present),
        steps=[e for e in present if isinstance(e, Step)],
        at_rest=[e for e in present if isinstance(e, AtRest)],
        provenance=provenance,
    )


def _machine() -> dict:
    return {
        "cpu": hardware.cpu_name(), "threads": THREADS, "platform": hardware.platform_name(),
        "versions": hardware.versions(), "git_commit": hardware.git_commit(),
    }  # fmt: skip


# --- processes -------------------------------------------------------------------------------------


def _groups(entries: list[Case | Format]) -> Iterator[list[str]]:
    """Names that one process measures: all tiny ones together, each real one alone."""
    tiny = [entry.name for entry in entries if entry.model != REAL]
    yield from [tiny] if tiny else []
    yield from ([entry.name] for entry in entries if entry.model == REAL)


def _measured(names: list[str]) -> Iterator[tuple[str, dict | str]]:
    """(name, bytes or the reason why not) of each; a new process takes over where one has died."""
    left = list(names)
    while left:
        with tempfile.TemporaryFile("w+") as said, _process(left, said) as child:
            try:
                for line in child.stdout:
                    (name, answer), *_ = json.loads(line).items()
                    left.remove(name)
                    yield name, answer
            except BaseException:  # the caller has stopped
                child.terminate()
                raise
            child.wait()
            if left:
                yield left.pop(0), _why(child.returncode, said)


def _process(names: list[str], said) -> subprocess.Popen:
    command = [sys.executable, "-m", "qlora_lib.validation.measure", *names]
    env = {**os.environ, **hardware.threads_environment(THREADS, keep_freed_memory=False)}
    # the package that is running now, installed or not
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(project_root()), env.get("PYTHONPATH")]))
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=said, env=env, text=True)


def _why(code: int, said) -> str:
    """Of a process that failed: the last line that it said, or the signal that ended it."""
    if code < 0:
        return f"its process was ended by signal {-code}" + (": probably out of memory" if code == -9 else "")
    said.seek(0)
    lines = [line.strip() for line in said if line.strip()]
    return one_line(lines[-1])[:200] if lines else f"its process ended with code {code}"


def _bar(total: int, done: int, show: bool):
    from tqdm.auto import tqdm

    return tqdm(total=total, initial=done, desc="validation", unit="case", disable=not show, mininterval=1.0)
