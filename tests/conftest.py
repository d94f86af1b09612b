"""What every test stands on: folders of its own, no network, one thread, one tiny model.

Tests marked `demo` are the exception: they use the user's own cache, and may fetch into it.
"""

import os
import signal
import socket

# Before torch is imported anywhere: bitsandbytes would compile odd widths for seconds each.
os.environ["TORCHDYNAMO_DISABLE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run in two processes

import hypothesis
import promises
import pytest
from promises import pytest_runtest_logreport, pytest_sessionfinish  # noqa: F401  hooks

# A busy machine is no failure.
hypothesis.settings.register_profile("tests", deadline=None, max_examples=50)
hypothesis.settings.load_profile("tests")

# The longest files, a minute and more: begun last, one of them would keep the other process waiting.
LONGEST_FIRST = ("test_notebooks.py", "test_kills.py", "test_training.py", "test_processes.py", "test_claims.py", "test_cli.py", "test_study.py")

OURS = ("QLORA_CACHE", "QLORA_RESULTS", "HF_HUB_OFFLINE", "PIP_NO_INDEX")
USERS_OWN = {name: os.environ.get(name) for name in OURS}


def pytest_collection_modifyitems(config, items):
    promises.pytest_collection_modifyitems(config, items)
    place = {name: number for number, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory):
    with pytest.MonkeyPatch.context() as session:
        session.setenv("QLORA_CACHE", str(tmp_path_factory.mktemp("cache")))
        session.setenv("QLORA_RESULTS", str(tmp_path_factory.mktemp("results")))
        session.setenv("HF_HUB_OFFLINE", "1")
        session.setenv("PIP_NO_INDEX", "1")
        yield


@pytest.fixture(autouse=True)
def _demo_uses_the_users_cache(request, tmp_path):
    if request.node.get_closest_marker("demo") is None:
        yield
        return
    with pytest.MonkeyPatch.context() as test:
        for name, value in USERS_OWN.items():
            test.delenv(name) if value is None else test.setenv(name, value)
        test.setenv("QLORA_RESULTS", str(tmp_path / "results"))
        yield


@pytest.fixture(autouse=True)
def _main_leaves_nothing_behind(monkeypatch):
    """`cli.main` is made to own its process: what it sets there ends with the test."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setenv("QLORA_DEBUG", "")
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture(autouse=True)
def _no_network(request, monkeypatch):
    """Only this machine may be called: a test that asks another one fails."""
    if request.node.get_closest_marker("demo") is not None:
        return
    connect = socket.socket.connect

    def local_only(self, address):
        host = address[0] if isinstance(address, tuple) else ""  # a Unix socket is a path
        if host not in ("", "localhost", "127.0.0.1", "::1"):
            raise OSError(f"a test asked the network for {host}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", local_only)


@pytest.fixture(scope="session")
def tiny_model():
    """The folder of the tiny random model."""
    from qlora_lib.assets import resolve_model

    return resolve_model("tiny-random").path


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model):
    from qlora_lib.models import load_tokenizer

    return load_tokenizer(tiny_model)
