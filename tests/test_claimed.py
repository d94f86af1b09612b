"""Several processes on one folder of results: each arm runs once, whoever runs it and whoever is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from qlora_lib.claimed import FolderBusy, claimed
from qlora_lib.config import PROFILES_DIR, load_profile
from qlora_lib.errors import QloraError
from qlora_lib.paths import results_dir
from qlora_lib.records import read_record

# A shell that runs a profile; it prints the arms that it runs itself, in this process to save the seconds of a start.
SHELL = """
import sys
from qlora_lib import arm, hardware, study
from qlora_lib.config import load_profile

def spawn(job):
    print(job.arm.name, flush=True)
    arm.run(job)

hardware.gemm_peak = lambda dtype: 1e11
study._spawn, study.ASK_AGAIN = spawn, 0.1
study.run_profile(load_profile(sys.argv[1]))
print("done", flush=True)
"""


@pytest.fixture
def sweep(tmp_path):
    """A profile of a base and four short trainings, and how to start a shell that runs it."""
    values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())
    values["arms"] = values["arms"][:1]  # the base
    values["train"] |= {"max_steps": 16}
    values["evaluation"]["new_tokens"] = 0
    values["sweeps"] = [{"name": "rank", "label": "Rank", "method": "lora", "vary": {"lora.rank": [2, 4]}, "seeds": [0, 1]}]
    path = tmp_path / f"{tmp_path.name.replace('_', '-')}.yaml"
    path.write_text(yaml.safe_dump(values))
    shells = []

    def start() -> subprocess.Popen:
        command = [sys.executable, "-c", SHELL, str(path)]
        shells.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
        return shells[-1]

    yield load_profile(str(path)), start
    for shell in shells:
        shell.kill()
        shell.communicate()


def records(profile) -> dict:
    return {arm.name: read_record(results_dir(profile.name) / arm.name / "record.json") for arm in profile.arms}


@pytest.mark.promise("two-runs")
def test_two_shells_share_a_sweep_and_each_arm_runs_once(sweep, tiny_model):
    profile, start = sweep
    shells = start(), start()
    said = [shell.communicate(timeout=120) for shell in shells]
    assert [shell.returncode for shell in shells] == [0, 0], said
    ran = [out.split() for out, _ in said]
    assert ran[0].pop() == ran[1].pop() == "done"
    assert sorted(ran[0] + ran[1]) == sorted(arm.name for arm in profile.arms)
    assert all(r.status == "complete" and r.arm == name for name, r in records(profile).items())
    assert not list(results_dir(profile.name).glob("*/checkpoints"))


@pytest.mark.promise("two-runs")
def test_what_a_killed_shell_had_begun_the_other_ends(sweep, tiny_model):
    profile, start = sweep
    first, second = start(), start()
    begun = first.stdout.readline().strip()
    taken = second.stdout.readline().strip()
    assert taken not in ("", begun)  # it took another arm
    os.kill(first.pid, signal.SIGKILL)
    lost = [begun, *first.communicate()[0].split()]
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    assert all(r.status == "complete" for r in records(profile).values())
    assert {arm.name for arm in profile.arms} - set(lost[:-1]) <= {taken, *out.split(), lost[-1]}
    assert not set(lost[:-1]) & set(out.split())  # what the first had finished is not run again


@pytest.mark.promise("two-runs")
@pytest.mark.only_in_make_faults
def test_an_arm_that_another_run_has_is_left_for_the_end_and_run_where_that_gives_none(sweep, tiny_model):
    profile, start = sweep
    with claimed(results_dir(profile.name) / profile.arms[1].name):
        shell = start()
        ran = [shell.stdout.readline().strip() for _ in profile.arms[1:]]  # all others, while this one is held
    out, err = shell.communicate(timeout=120)
    assert [*ran, *out.split()] == [profile.arms[i].name for i in (0, 2, 3, 4, 1)] + ["done"]
    assert f"left for later: another run (process {os.getpid()} on " in err


def test_a_folder_is_held_by_one_and_the_other_is_told_who(tmp_path):
    folder = tmp_path / "arm"
    with claimed(folder):
        told = subprocess.run(
            [sys.executable, "-c", "import sys; from pathlib import Path; from qlora_lib.claimed import claimed\n"
             "with claimed(Path(sys.argv[1])): pass", str(folder)],
            capture_output=True, text=True,
        )  # fmt: skip
        assert told.returncode and f"FolderBusy: another run (process {os.getpid()} on " in told.stderr
    with claimed(folder):  # free again
        pass


@pytest.mark.promise("two-runs")
def test_a_hold_ends_with_the_process_that_had_it(tmp_path):
    code = "import sys, time; from pathlib import Path; from qlora_lib.claimed import claimed\n" \
           "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(FolderBusy, match=f"process {holder.pid} on .*is writing into"):
            with claimed(tmp_path):
                pass
        holder.kill()
    until = time.monotonic() + 10
    while True:
        try:
            with claimed(tmp_path):
                break
        except FolderBusy:
            assert time.monotonic() < until


@pytest.mark.promise("read-only")
def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QloraError, match="cannot write to .*Not a directory"):
        with claimed(tmp_path / "file" / "arm"):
            pass
    assert Path(tmp_path / "file").read_text() == ""
