"""Fixtures of other files that more than one file here needs."""

import pytest
from example_records import write_example
from made_notebooks import write_notebook
from test_cli import call, refused  # noqa: F401
from test_pipeline import folders  # noqa: F401

from qlora_lib.config import load_profile
from qlora_lib.notebooks import execute_notebooks, runner


@pytest.fixture
def course(monkeypatch, tmp_path):
    """Write notebooks of these cells, and execute them."""
    write_example(tmp_path / "results" / "smoke", "smoke")
    (tmp_path / "code").mkdir()
    (tmp_path / "notebooks").mkdir()
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(runner, "PACKAGE", tmp_path / "code")
    monkeypatch.setattr(runner, "project_root", lambda: tmp_path)
    monkeypatch.setattr(runner, "report_dir", lambda: tmp_path / "report")
    profile = load_profile("smoke")

    def execute(notebooks: dict[str, list[str]], only=None):
        for name, cells in notebooks.items():
            write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", cells)
        return execute_notebooks(profile, "own", only)

    return execute
