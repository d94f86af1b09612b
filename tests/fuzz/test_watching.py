"""The watch itself: each thing that a call must not do is seen when a call does it."""

import os
import pickle
import socket
import subprocess
import sys
import time

import pytest
import watching

from qlora_lib.errors import QloraError

EVIL = pickle.dumps(os.getcwd)


def connect():
    with socket.socket() as s:
        s.settimeout(0.1)
        s.connect(("192.0.2.1", 9))


def fail(text: str):
    raise QloraError(text)


@pytest.mark.parametrize(
    "act",
    [
        lambda root: (root / "beside" / "new").write_text("x"),
        lambda root: (root / "beside" / "precious").unlink(),
        lambda root: (root / "other").mkdir(),
        lambda root: (root / "beside" / "precious").rename(root / "given" / "mine"),
        lambda root: os.symlink("/", root / "beside" / "link"),
        lambda root: (root / "scratch" / "left").write_text("x"),
        lambda root: connect(),
        lambda root: subprocess.run(
            [sys.executable, "--version"], stdout=subprocess.DEVNULL
        ),
        lambda root: pickle.loads(EVIL),
        lambda root: {}["unforeseen"],
        lambda root: print("Traceback (most recent call last):"),
        lambda root: print(watching.SECRET),
        lambda root: print("error: told, and yet done", file=sys.stderr),
        lambda root: (
            print("error: told, then failed", file=sys.stderr) or fail("again")
        ),
        lambda root: sys.exit(3),
        lambda root: time.sleep(5),
        lambda root: bytearray(watching.MEMORY + 2**20),
    ],
)
def test_what_must_not_happen_is_seen(doors, monkeypatch, act):
    monkeypatch.setattr(watching, "SECONDS", 1)
    doors.fresh()
    with monkeypatch.context() as here:
        here.setattr("qlora_lib.config.profile_names", lambda: act(doors.root) and [])
        with pytest.raises(AssertionError):
            doors.call("profiles")


def test_what_may_happen_is_let_be(doors, monkeypatch):
    doors.fresh()
    with monkeypatch.context() as here:
        here.setattr(
            "qlora_lib.config.profile_names",
            lambda: (doors.given / "mine").write_text("x") and [],
        )
        assert doors.call("profiles").code == 0
        here.setattr("qlora_lib.config.profile_names", lambda: fail("a\x1b[2Jb"))
        assert doors.call("profiles").err == "error: a\\x1b[2Jb\n"
