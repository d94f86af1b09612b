"""One hostile input at a time: the command line in this process, watched by Python's own audit events.

How it works: `Watched.call` runs `qlora_lib.cli.main`, the door that users have, with a time limit, and records what the
interpreter says of itself meanwhile (`sys.addaudithook`): files opened for writing, made, renamed and removed, addresses
that were asked, programs that were started, classes that a pickle named. `check` then holds it to the promise: exit code
0, 1 or 2; one line that begins with "error:" at most, printable, foreseen and no traceback; nothing touched outside the
folders given; no network, no program, no pickle. Compiled code writes without audit events, so the folder around the
input is compared too.
"""

import io
import os
import re
import resource
import signal
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

SECRET = "hf_tHiSiSaSeCrEt0123456789"  # what HF_TOKEN and OPENAI_API_KEY hold meanwhile
MEMORY = 3 * 2**30  # bytes that one input may take
SECONDS = 20  # far more than any of these inputs needs, also on a busy machine
CHANGES = {  # event -> which of its arguments are paths that it changes
    "os.mkdir": (0,), "os.rename": (0, 1), "os.remove": (0,), "os.rmdir": (0,), "os.symlink": (1,), "os.link": (1,),
    "os.truncate": (0,), "os.chmod": (0,), "os.chown": (0,), "os.utime": (0,), "shutil.rmtree": (0,), "shutil.move": (0, 1),
}  # fmt: skip
REACHES = {
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "urllib.Request",
}
STARTS = {
    "subprocess.Popen",
    "os.exec",
    "os.system",
    "os.posix_spawn",
    "os.fork",
    "os.forkpty",
}
CONTROL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)  # all but the end of a line


class Hang(BaseException):
    """Nothing that the product catches."""


class _Events:
    """The audit hook, of which a process can have no fewer than it was given: it listens only while asked."""

    listening = False
    thread: int | None = None
    seen: list[tuple[str, str]] = []

    @classmethod
    def hook(cls, event: str, args: tuple) -> None:
        if not cls.listening or threading.get_ident() != cls.thread:
            return
        if event == "open":
            path, mode, flags = args
            writes = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
                if isinstance(flags, int)
                else 0
            )
            if (
                writes or (isinstance(mode, str) and set(mode) & set("wax+"))
            ) and not isinstance(path, int):
                cls.seen.append(("writes", os.fsdecode(path)))
        elif event in CHANGES:
            cls.seen += [
                ("writes", os.fsdecode(args[i]))
                for i in CHANGES[event]
                if isinstance(args[i], str | bytes | os.PathLike)
            ]
        elif event in REACHES:
            if not (
                event == "socket.connect" and isinstance(args[1], str | bytes)
            ):  # a socket of this machine is a path
                cls.seen.append(("reaches", repr(args)[:200]))
        elif (
            event in STARTS and args[0] != "nvidia-smi"
        ):  # which says what GPU there is
            cls.seen.append(("starts", repr(args)[:200]))
        elif event == "pickle.find_class" and not _of_numba():
            cls.seen.append(("unpickles", ".".join(map(str, args))))


sys.addaudithook(_Events.hook)


def _of_numba() -> bool:
    """Whether numba reads the machine code that it has kept of our own functions."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_globals.get("__name__") == "numba.core.caching":
            return True
        frame = frame.f_back
    return False


@contextmanager
def listening():
    """[(what, of what)] of the audit events inside, of this thread."""
    _Events.seen, _Events.thread, _Events.listening = [], threading.get_ident(), True
    try:
        yield _Events.seen
    finally:
        _Events.listening = False


class Out:
    """What one call did."""

    def __init__(self, argv: list[str]):
        self.argv, self.code, self.out, self.err, self.events = argv, None, "", "", []

    def __repr__(self) -> str:
        return f"qlora {' '.join(map(repr, self.argv))}\nexit {self.code!r}\nout: {self.out[-800:]}\nerr: {self.err[-1500:]}\nevents: {self.events}"


class Watched:
    """Calls with inputs in a folder of their own."""

    def __init__(self, root: Path, allowed: list[Path]):
        self.root, self.given, self.scratch = root, root / "given", root / "scratch"
        self.allowed = [str(p.resolve()) for p in (self.given, self.scratch, *allowed)]
        self.talks = False
        self.given.mkdir(parents=True)
        self.scratch.mkdir()
        (root / "beside").mkdir()
        (root / "beside" / "precious").write_text("keep")

    def fresh(self) -> Path:
        """The folder of the next input, empty."""
        _empty(self.given)
        return self.given

    def call(self, *words, stdin: str = "") -> Out:
        """`qlora WORDS...`, checked."""
        from qlora_lib.cli import main

        found = Out([str(w) for w in words])
        before, streams, argv, here = (
            _listing(self.root / "beside"),
            (sys.stdin, sys.stdout, sys.stderr),
            sys.argv,
            os.getcwd(),
        )
        handler = signal.getsignal(signal.SIGTERM)
        sys.stdin = io.StringIO(stdin)
        sys.stdout, sys.stderr = (
            io.TextIOWrapper(io.BytesIO(), "utf-8", write_through=True)
            for _ in range(2)
        )
        sys.argv = ["qlora", *found.argv]
        os.chdir(self.given)
        try:
            with listening() as events, _limit():
                try:
                    main()
                except SystemExit as e:
                    found.code = e.code
                except Hang:
                    found.code = "hang"
            found.events = list(events)
        finally:
            found.out, found.err = (
                s.buffer.getvalue().decode("utf-8", "replace")
                for s in (sys.stdout, sys.stderr)
            )
            (sys.stdin, sys.stdout, sys.stderr), sys.argv = streams, argv
            signal.signal(signal.SIGTERM, handler)
            os.chdir(here)
        self.check(found)
        assert _listing(self.root / "beside") == before, found
        assert sorted(p.name for p in self.root.iterdir()) == [
            "beside",
            "given",
            "scratch",
        ] and not any(self.scratch.iterdir()), found
        return found

    @contextmanager
    def several_errors(self):
        """For a chat, in which each message may be refused and the next one answered."""
        self.talks = True
        try:
            yield
        finally:
            self.talks = False

    def check(self, found: Out) -> None:
        assert found.code in (0, 1, 2), found
        assert (
            "Traceback" not in found.err + found.out
            and SECRET not in found.err + found.out
        ), found
        errors = [line for line in found.err.split("\n") if line.startswith("error:")]
        assert not any(CONTROL.search(line) for line in errors), found
        if not self.talks:
            assert len(errors) <= 1 and bool(errors) == bool(found.code), found
            assert not errors or found.err.endswith(errors[0] + "\n"), found
        assert "asked the network" not in found.err, found  # which the tests refuse
        assert "not foreseen" not in found.err and "out of memory" not in found.err, (
            found
        )
        foreign = [
            e for e in found.events if not (e[0] == "writes" and self._inside(e[1]))
        ]
        assert not foreign, (foreign, found)

    def _inside(self, path: str) -> bool:
        if (
            path == os.devnull or "__pycache__" in path
        ):  # Python's own, of modules that are first imported here
            return True
        full = os.path.join(self.given, path)
        full = os.path.join(
            os.path.realpath(os.path.dirname(full)), os.path.basename(full)
        )
        return any(
            full == folder or full.startswith(folder + os.sep)
            for folder in self.allowed
        )


@contextmanager
def _limit():
    def ring(*_):
        raise Hang

    handler, memory = (
        signal.signal(signal.SIGALRM, ring),
        resource.getrlimit(resource.RLIMIT_AS),
    )
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    statm = Path("/proc/self/statm")
    if statm.is_file():
        resource.setrlimit(
            resource.RLIMIT_AS,
            (
                int(statm.read_text().split()[0]) * resource.getpagesize() + MEMORY,
                memory[1],
            ),
        )
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


def watched(act, inside: Path):
    """What `act()` gives, under the time limit, with nothing written but in `inside`, and nothing reached, started or unpickled."""
    with listening() as events, _limit():
        result = act()
    here = str(inside) + os.sep
    assert all(
        what == "writes"
        and ("__pycache__" in path or os.path.abspath(path).startswith(here))
        for what, path in events
    ), events
    return result


def _listing(folder: Path) -> list:
    return sorted(
        (str(p), p.lstat().st_mtime_ns, p.lstat().st_size)
        for p in (folder, *folder.rglob("*"))
    )


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            _empty(path)
            path.rmdir()
        else:
            path.unlink()
