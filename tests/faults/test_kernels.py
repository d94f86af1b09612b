"""A notebook whose kernel dies: it is told, logged, never taken for finished, and stops no other."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import yaml
from made_notebooks import write_notebook

from qlora_lib.config import PROFILES_DIR
from qlora_lib.errors import QloraError
from qlora_lib.notebooks import NotebookFailed, stamps

DEATHS = {
    "SIGKILL": ("import os; os.kill(os.getpid(), 9)", "the system ended it (SIGKILL), most likely for want of memory"),
    "os._exit": ("import os; os._exit(0)", "it left with exit code 0"),
    "a segfault": ("import ctypes; ctypes.string_at(0)", "SIGSEGV ended it"),
}


def pages(tmp_path: Path) -> Path:
    return tmp_path / "report" / "smoke" / "notebooks"


def shown(path: Path) -> str:
    return json.dumps([cell.get("outputs", []) for cell in nbformat.read(path, as_version=4).cells])


ONCE = "from pathlib import Path\nif not Path({witness!r}).exists():\n    Path({witness!r}).touch()\n    {death}\nprint('all is well')"


@pytest.mark.promise("kernel-dies")
@pytest.mark.parametrize("place", [
    pytest.param(0, id="first cell", marks=pytest.mark.only_in_make_faults), pytest.param(1, id="middle cell"),
    pytest.param(2, id="last cell", marks=pytest.mark.only_in_make_faults),
])  # fmt: skip
@pytest.mark.parametrize("death", [
    "SIGKILL", pytest.param("os._exit", marks=pytest.mark.only_in_make_faults), pytest.param("a segfault", marks=pytest.mark.only_in_make_faults),
])  # fmt: skip
def test_a_dead_kernel_is_told_and_its_notebook_runs_again(course, tmp_path, monkeypatch, death, place):
    """Once: the second run of the same notebook finds the witness and completes."""
    monkeypatch.setenv("HF_TOKEN", "hf_thisIsASecret123")
    code, how = DEATHS[death]
    cells = [f"import os\nprint('cell {n} was here', os.environ['HF_TOKEN'])" for n in range(3)]
    deadly = ONCE.format(witness=str(tmp_path / "died"), death=code)
    cells[place] = f"print('going', flush=True)\n{deadly}"
    with pytest.raises(NotebookFailed) as told:
        course({"01_made": cells})
    folder = pages(tmp_path)
    number = place + 3  # after the parameters, and those that papermill puts in
    assert told.value.message == f"the kernel of notebook 01_made died in its cell {number} (`print('going', flush=True)`): {how}"
    assert told.value.exit_code == 1 and str(folder / "01_made.failed.ipynb") in told.value.hint and "01_made.log" in told.value.hint
    assert sorted(p.name for p in folder.iterdir()) == ["01_made.failed.ipynb", "01_made.log"]  # no page, and no stamp
    kept, log = (shown(folder / "01_made.failed.ipynb"), (folder / "01_made.log").read_text())
    for n in range(3):
        assert (f"cell {n} was here" in kept) == (f"  | cell {n} was here" in log) == (n < place)
    assert "hf_thisIsASecret123" not in log and ("[HF_TOKEN]" in log) == (place > 0)
    assert f"cell {number} has not ended" in log and f"cell {number} ends" not in log and f"the kernel has died: {how}" in log
    assert ("Fatal Python error: Segmentation fault" in log) == (death == "a segfault")

    (done,) = course({"01_made": cells})
    assert not done.cached and "all is well" in shown(done.output)
    assert sorted(p.name for p in folder.iterdir()) == ["01_made.html", "01_made.ipynb", "01_made.log", "01_made.stamp.json"]
    log = (folder / "01_made.log").read_text()
    assert "died" not in log and re.search(r"notebook 01_made ends after \d", log)
    assert course({})[0].cached


@pytest.mark.promise("kernel-dies")
def test_the_other_notebooks_go_on_and_the_end_tells(course, tmp_path, capfd):
    notebooks = {
        "01_dies": [DEATHS["SIGKILL"][0]], "02_lives": ["print('two')"], "03_fails": ["1 / 0"], "04_lives": ["print('four')"], "05_left": ["5"],
    }  # fmt: skip
    with pytest.raises(NotebookFailed) as told:
        course(notebooks, only=["1", "2", "3", "4"])
    assert told.value.message == "2 of 4 notebooks failed: 01_dies, 03_fails" and told.value.exit_code == 1
    assert [e.name for e in told.value.executed] == ["02_lives", "04_lives"]
    err = capfd.readouterr().err
    assert "  error: the kernel of notebook 01_dies died in its cell 3" in err and "  error: notebook 03_fails failed in its cell 3" in err
    assert "four" in shown(pages(tmp_path) / "04_lives.ipynb") and not (pages(tmp_path) / "05_left.ipynb").exists()
    write_notebook(tmp_path / "notebooks" / "01_dies.ipynb", ["print('mended')"])
    write_notebook(tmp_path / "notebooks" / "03_fails.ipynb", ["print('mended')"])
    again = course({}, only=["1", "2", "3", "4"])
    assert [(e.name, e.cached) for e in again] == [("01_dies", False), ("02_lives", True), ("03_fails", False), ("04_lives", True)]


@pytest.mark.promise("kernel-dies")
@pytest.mark.parametrize("death", ["SIGKILL", pytest.param("os._exit", marks=pytest.mark.only_in_make_faults)])
def test_a_kernel_that_dies_after_its_last_answer_is_no_finished_notebook(course, tmp_path, death):
    """The cell has its number and papermill calls it completed; the notebook's end asks the kernel once more."""
    later = f"import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.2), exec({DEATHS[death][0]!r}))).start()\nprint('soon')"
    wait = "import time\ntime.sleep(0.05)"
    with pytest.raises(QloraError, match="the kernel of notebook 01_made died"):
        course({"01_made": [later, wait, "import time; time.sleep(5)"]})
    assert not stamps.stamp_path(pages(tmp_path) / "01_made.ipynb").exists() and not (pages(tmp_path) / "01_made.ipynb").exists()


# --- the command itself, asked to leave or killed inside a notebook -------------------------------

COMMAND = """
import sys
from pathlib import Path
from qlora_lib.notebooks import runner
place = Path(sys.argv.pop(1))
runner.project_root, runner.report_dir, runner.PACKAGE = lambda: place, lambda: place / "report", place / "code"
from qlora_lib.cli import main
main()
"""


@pytest.fixture
def command(tmp_path):
    """`qlora run` of one arm and three notebooks, the second of which waits until a file is there."""
    values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())
    values["arms"] = values["arms"][:1]
    values["evaluation"] |= {"new_tokens": 0, "windows": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(values))
    for folder in ("notebooks", "code"):
        (tmp_path / folder).mkdir()
    waits = f"import time\nfrom pathlib import Path\nprint('waiting', flush=True)\nwhile not Path({str(tmp_path / 'go')!r}).exists(): time.sleep(0.05)"
    for name, cell in {"01_first": "print(1)", "02_second": waits, "03_third": "print(3)"}.items():
        write_notebook(tmp_path / "notebooks" / f"{name}.ipynb", [cell])
    words = [sys.executable, "-c", COMMAND, tmp_path, "run", "--profile", tmp_path / "tiny.yaml", "--json"]
    env = os.environ | {"QLORA_RESULTS": str(tmp_path / "results")}
    started = []

    def start(**more) -> subprocess.Popen:
        started.append(
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, start_new_session=True, **more)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def waiting(log: Path) -> None:
    until = time.monotonic() + 90
    while not (log.is_file() and "  | waiting" in log.read_text()):
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.promise("asked-to-leave")
@pytest.mark.only_in_make_faults
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["SIGTERM", "Ctrl-C"])
def test_asked_to_leave_inside_a_notebook_the_next_run_goes_on_there(command, tmp_path, tiny_model, number, code):
    folder = tmp_path / "report" / "tiny" / "notebooks"
    listens = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a shell's background job is started deaf to it
    first = command(preexec_fn=listens)
    waiting(folder / "02_second.log")  # the log is there while the cell still runs
    os.kill(first.pid, number)
    out, err = first.communicate(timeout=60)
    assert (first.returncode, out) == (code, ""), err
    assert "Traceback" not in err
    assert "notebook 02_second has not ended" in (folder / "02_second.log").read_text()
    assert sorted(p.name for p in folder.glob("*.stamp.json")) == ["01_first.stamp.json"]
    (tmp_path / "go").touch()
    second = command()
    out, err = second.communicate(timeout=90)
    assert second.returncode == 0, err
    rows = {row["notebook"]: row["cached"] for row in json.loads(out)["notebooks"]}
    assert rows == {"01_first": True, "02_second": False, "03_third": False}
    assert "taken from the cache" in err  # the arm
    assert not list(folder.glob(".running-*"))
