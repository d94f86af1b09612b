"""Folders and stops that every fuzz test stands on, and how many inputs there were, told at the end."""

import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from watching import SECRET, Watched

from qlora_lib.errors import QloraError


class Stopped(QloraError):
    """Arguments and files were found to be good, and here the work would begin."""


def stop(*_, **__):
    raise Stopped("stopped by the test", "The work would begin here")


@pytest.fixture
def doors(monkeypatch, tmp_path, tiny_model):
    """The command line up to where a model is loaded, an arm started, a notebook run, a file fetched, or a minute measured."""
    import qlora_lib.assets.hub
    import qlora_lib.assets.package_index
    import qlora_lib.assets.resolve
    import qlora_lib.bench.gpu_check
    import qlora_lib.bench.run
    import qlora_lib.calibration
    import qlora_lib.claims
    import qlora_lib.cli.bench
    import qlora_lib.doctor
    import qlora_lib.merging
    import qlora_lib.models
    import qlora_lib.notebooks
    import qlora_lib.pipeline
    import qlora_lib.study
    from qlora_lib.notebooks.runner import choose

    def run_notebooks(profile, only=None, force=False, solutions=False):
        choose(only, solutions)
        stop()

    one_claim = qlora_lib.claims.audit
    for module, name in (
        (qlora_lib.assets.hub, "_download"), (qlora_lib.assets.package_index, "pip_download"), (qlora_lib.bench.run, "run_bench"),
        (qlora_lib.bench.gpu_check, "run_gpu_check"), (qlora_lib.calibration, "calibrate"), (qlora_lib.cli.bench, "start_again_with"),
        (qlora_lib.doctor, "examine"), (qlora_lib.models, "load_base"), (qlora_lib.pipeline, "records_of"), (qlora_lib.study, "_spawn"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, stop)
    monkeypatch.setattr(qlora_lib.notebooks, "run_notebooks", run_notebooks)
    monkeypatch.setattr(
        qlora_lib.claims, "audit", lambda ids=None: one_claim(["study-memory-01"])
    )
    watched = Watched(
        tmp_path / "watched",
        [Path(os.environ[name]) for name in ("QLORA_CACHE", "QLORA_RESULTS")],
    )
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("HOME", str(watched.given))
    monkeypatch.setattr(tempfile, "tempdir", str(watched.scratch))
    return watched


@pytest.fixture(scope="session")
def load_base():
    """The product's own, before `doors` puts a stop in its place."""
    from qlora_lib.models import load_base

    return load_base


@pytest.fixture
def loading(load_base, doors, monkeypatch, tiny_model):
    """As `doors`, and models are really loaded; a copy of one lies in the folder."""
    monkeypatch.setattr("qlora_lib.models.load_base", load_base)
    shutil.copytree(tiny_model, doors.fresh() / "model")
    return doors


@pytest.fixture
def count(request):
    """Call it with what kind of input was tried."""
    kinds: Counter = Counter()
    yield lambda kind: kinds.update([kind])
    request.node.user_properties.extend(
        ("fuzzed", (kind, n)) for kind, n in kinds.items()
    )


def pytest_terminal_summary(terminalreporter):
    total: Counter = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in (
                getattr(report, "user_properties", ())
                if getattr(report, "when", "") == "teardown"
                else ()
            ):
                if name == "fuzzed":
                    total[value[0]] += value[1]
    if total:
        terminalreporter.write_line(
            f"hostile inputs: {total.total():,} ({', '.join(f'{kind} {n:,}' for kind, n in sorted(total.items()))})"
        )
