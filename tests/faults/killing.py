"""SIGKILL for a real command, at a moment that a test names.

How it works: `Command` starts `python -m qlora_lib ...` (or other code) as a shell would, and kills it in one of three ways:
all of it, as a machine that is lost; its first process alone, as a closed terminal or a scheduler does it; or one of the processes
that it started, as the system does when memory runs out. The moment is either found on disk or in what the command says, plus a
random delay, or it is exact: a `Moment` is a system call that Python is about to make (an audit event: a file is
opened, renamed, removed), and the process that comes to it dies before making it. The processes carry a mark in their
environment, so that a test can tell whether one of them is left.
"""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

MARK, AT, TOP = "QLORA_TEST_MARK", "QLORA_TEST_KILL_AT", "QLORA_TEST_KILL_TOP"
SECONDS = 120  # that anything here may take, on a busy machine

# Imported by every Python that the command starts: `sitecustomize` on PYTHONPATH.
HOOK = f'''
import json, os, re, signal, sys

os.environ.setdefault("{TOP}", str(os.getpid()))
if at := os.environ.get("{AT}"):
    at, seen, wanted = json.loads(at), 0, None

    def hook(event, args):
        global seen, wanted
        if event != at["event"]:
            return
        wanted = wanted or re.compile(at["path"])
        if wanted.search(" -> ".join(str(a) for a in args[:2] if isinstance(a, (str, os.PathLike)) and a not in ("w", "wb", "r", "rb"))):
            seen += 1
            if seen == at["nth"]:
                if at["whole"]:
                    os.kill(int(os.environ["{TOP}"]), signal.SIGKILL)
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
'''


@dataclass(frozen=True)
class Moment:
    """Right before a process makes this call for the `nth` time; of a renaming, `path` is searched in "from -> to"."""

    event: str  # open, os.rename, os.remove, os.mkdir, shutil.rmtree
    path: str  # a regular expression
    nth: int = 1
    whole: bool = True  # the command's first process is killed with the one that comes to it


class Command:
    """One run of a command that is about to be killed, or that is to end well."""

    def __init__(
        self, arguments: list, folder: Path, environment: dict[str, str], at: Moment | None = None, code: str | None = None
    ):
        self.mark, self.folder = uuid.uuid4().hex, folder
        hooks = folder / "hooks"
        hooks.mkdir(parents=True, exist_ok=True)
        (hooks / "sitecustomize.py").write_text(HOOK)
        paths = [str(hooks), *filter(None, [environment.get("PYTHONPATH", os.environ.get("PYTHONPATH"))])]
        own = {MARK: self.mark, "PYTHONPATH": os.pathsep.join(paths)} | ({AT: json.dumps(asdict(at))} if at else {})
        inherited = {k: v for k, v in os.environ.items() if k not in (AT, TOP, MARK)}
        self.stderr, self.stdout = (folder / f"{self.mark}.{stream}" for stream in ("stderr", "stdout"))
        start = ["-c", code] if code else ["-m", "qlora_lib"]
        with open(self.stderr, "wb") as err, open(self.stdout, "wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, *start, *map(str, arguments)], stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env=inherited | environment | own, cwd=environment.get("PYTHONPATH"), start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.stderr.read_text(errors="replace")

    def until(self, there: Callable[[], object], delay: float = 0.0) -> None:
        """Wait until `there()`, then `delay` seconds more; the command must still be running."""
        end = time.monotonic() + SECONDS
        while not there():
            assert self.process.poll() is None, f"ended before the moment:\n{self.said}"
            assert time.monotonic() < end, f"the moment did not come:\n{self.said}"
            time.sleep(0.002)
        time.sleep(delay)
        assert self.process.poll() is None, f"ended {delay:.3f} s after the moment:\n{self.said}"

    def killed(self) -> None:
        """Wait for the end that a `Moment` brings."""
        assert self.process.wait(SECONDS) == -signal.SIGKILL, f"the moment did not come:\n{self.said}"

    def kill_all(self) -> None:
        self.process.kill()
        while left := self.started():
            for process in left:
                _kill(process)
        self.process.wait(SECONDS)

    def kill_first(self) -> None:
        self.process.kill()
        self.process.wait(SECONDS)

    def started(self) -> list[psutil.Process]:
        """What runs of the processes that the command has started, whoever is their parent now."""
        found = []
        for process in psutil.process_iter():
            try:
                if (
                    process.pid != self.process.pid
                    and process.environ().get(MARK) == self.mark
                    and process.status() != psutil.STATUS_ZOMBIE
                ):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                pass
        return found

    def none_left(self, within: float = 30.0) -> None:
        """All processes that the command has started leave by themselves."""
        end = time.monotonic() + within
        while left := self.started():
            assert time.monotonic() < end, f"still there: {[p.cmdline() for p in left]}"
            time.sleep(0.02)

    def ends_well(self) -> "Command":
        code = self.process.wait(SECONDS)
        assert code == 0 and "Traceback" not in self.said, self.said
        self.none_left()
        return self

    def clear(self) -> None:
        for process in [*([self.process] if self.process.poll() is None else []), *self.started()]:
            _kill(process)
        self.process.wait()


def _kill(process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        pass


def listing(folder: Path, but: tuple[str, ...] = (".lock", ".arm.lock")) -> list[str]:
    """Every file and folder under `folder`, locks left out: what the next run must find again, and nothing else."""
    if not folder.exists():
        return []
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.name not in but and p.suffix != ".lock")
