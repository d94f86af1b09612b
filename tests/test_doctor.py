"""`qlora doctor`: each cause of a fault is really there, and told; what does not stand in the way is not."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qlora_lib import doctor, hardware
from qlora_lib.assets.store import entry_manifest
from qlora_lib.checkpoints import seal
from qlora_lib.claimed import claimed
from qlora_lib.config import load_profile
from qlora_lib.doctor import GIB, examine, fits_here, folders, gpu_memory, kept, needs, stack
from qlora_lib.doctor.memory import memory
from qlora_lib.errors import UsageError

WELL = doctor.Findings(
    device="cuda", device_name="NVIDIA T4", dtype="fp16", dtype_reason="because", cpu="A CPU", cpu_threads=2,
    memory_bytes=16 * GIB, memory_available_bytes=12 * GIB, gpu_memory_bytes=15 * GIB, disk_free_bytes=50 * GIB,
    cache_folder="/", cache_bytes=3 * GIB, cached_assets=["tiny-random"], bitsandbytes={"bitsandbytes": "0.50 on cuda", "layers": "NF4"},
    versions={"torch": "2.13.0"}, platform="Linux", hub="used for hub models only",
)  # fmt: skip


def told(text: str, advice: list[str]) -> str:
    """The one piece of advice with this text."""
    (found,) = [a for a in advice if text in a]
    return found


@pytest.fixture
def own_folders(tmp_path, monkeypatch):
    """(cache, results), empty."""
    cache, results = tmp_path / "cache", tmp_path / "results"
    monkeypatch.setenv("QLORA_CACHE", str(cache))
    monkeypatch.setenv("QLORA_RESULTS", str(results))
    return cache, results


# --- the whole -----------------------------------------------------------------------------------


def test_what_is_found_here(tiny_model, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    found = examine("smoke")
    assert found.device in ("cpu", "cuda") and found.dtype in ("fp32", "fp16", "bf16") and found.dtype_reason
    assert 0 < found.memory_available_bytes <= found.memory_bytes <= found.machine_memory_bytes and found.disk_free_bytes > 0
    assert "tiny-random" in found.cached_assets and "smollm2-135m" not in found.cached_assets
    assert found.cache_bytes >= (tiny_model / "model.safetensors").stat().st_size
    assert found.versions.keys() >= {"torch", "transformers", "peft", "bitsandbytes"}
    assert found.hub == "offline by HF_HUB_OFFLINE" and found.network_settings[0] == "HF_HUB_OFFLINE"
    assert found.profile == "smoke" and 2 * GIB <= found.needed_memory_bytes < 2.1 * GIB and not found.hashed
    assert found.outside_ranges == found.damaged_cache == []
    assert json.loads(json.dumps(found.to_dict()))["dtype"] == found.dtype
    text = found.to_text()
    for shown in (found.device_name, found.dtype_reason, found.cache_folder, found.results_folder, found.versions["torch"], *found.advice):
        assert shown in text


def test_a_machine_with_nothing_in_the_way():
    text = WELL.to_text()
    assert text.endswith("Nothing stands in the way.")
    assert "15.0 GiB" in text and "12.0 of 16.0 GiB free" in text and "fp16: because" in text
    limited = replace(WELL, memory_limit="limit of ulimit -v", machine_memory_bytes=64 * GIB, swap_bytes=2 * GIB, advice=["do this"])
    text = limited.to_text()
    assert "(limit of ulimit -v: the machine has 64.0; swap 2.0 GiB)" in text and "! do this" in text and "Nothing stands" not in text


def test_a_profile_is_named_and_an_unknown_one_is_a_slip(own_folders):
    assert any("needs a CUDA GPU with 14 GiB" in a for a in examine("t4-tinyllama-wikitext2").advice) or hardware.device() == "cuda"
    with pytest.raises(UsageError, match="Did you mean 'smoke'"):
        examine("smok")


def test_all_that_is_wrong_among_what_is_kept_comes_with_one_line_each(own_folders):
    cache, results = own_folders
    entry(cache / "models" / "a", b"whole")
    (cache / "models" / "a" / "weights").write_bytes(b"wh")
    checkpoint(results / "demo" / "lora", 4)
    (results / "demo" / "full").mkdir()
    with claimed(results / "demo" / "full"):
        found = examine("smoke")
    assert found.damaged_cache == ["models/a: weights has 2 bytes instead of 5"]
    assert found.interrupted_runs == ["demo/lora (goes on after step 4)"]
    assert len(found.held_folders) == 1 and found.held_folders[0].startswith(f"demo/full (process {os.getpid()} on ")
    assert "the next use makes it again" in told("In the cache, models/a", found.advice)
    assert told("Interrupted: demo/lora", found.advice) and told("Running now: demo/full", found.advice)


# --- memory --------------------------------------------------------------------------------------


def test_too_little_memory_is_told_with_what_needs_it(monkeypatch, own_folders):
    real = needs.need_of(load_profile("demo"))
    monkeypatch.setattr("qlora_lib.doctor.examining.memory", lambda: replace(memory(), available=real.memory - 1))
    advice = told("of memory is free", examine().advice)
    assert "Less than 6 GiB" in advice and "profile demo needs" in advice and "--profile smoke" in advice
    monkeypatch.setattr("qlora_lib.doctor.examining.memory", lambda: replace(memory(), usable=64 * GIB, available=64 * GIB))
    monkeypatch.setattr(hardware, "total_memory", lambda: 64 * GIB)
    assert not any("of memory is free" in a for a in examine().advice)


def test_the_need_is_the_larger_of_what_is_asked_and_what_is_planned():
    demo = load_profile("demo")
    assert needs.need_of(demo) == needs.Need(6 * GIB, "profile demo")
    larger = demo.model_copy(deep=True)
    larger.train.batch_size = 64
    arms = [(a.name, larger.settings(a).train.batch_size) for a in larger.arms if a.method == "full"]
    need = needs.need_of(larger)
    assert 64 in dict(arms).values() and need.memory > 6 * GIB and "as planned" in need.by


@pytest.mark.parametrize(
    "usable, limit, swap, said",
    [
        (16, "", 0, "close programs"),
        (4, "", 0, "take a machine with more"),
        (4, "limit of ulimit -v", 0, "raise the limit of ulimit -v"),
        (16, "", 8, "many times slower"),
    ],
)
def test_what_to_do_about_memory_depends_on_what_takes_it(usable, limit, swap, said):
    (advice,) = needs.memory_advice(load_profile("demo"), needs.Need(6 * GIB, "x"), 3 * GIB, usable * GIB, limit, swap * GIB)
    assert said in advice


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_a_control_group_above_counts(tmp_path, version):
    (tmp_path / "proc/self").mkdir(parents=True)
    names = (
        ("memory.max", "memory.current", "inactive_file")
        if version == 2
        else ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    )
    top = tmp_path / "sys/fs/cgroup" / ("" if version == 2 else "memory")
    (tmp_path / "proc/self/cgroup").write_text("1:name=systemd:/\n0::/a/b\n" if version == 2 else "4:cpu,memory:/a/b\n0::/\n")
    for folder, limit in (("a", 3 * 2**20), ("a/b", "max" if version == 2 else 2**63 - 4096)):
        (top / folder).mkdir(parents=True)
        (top / folder / names[0]).write_text(f"{limit}\n")
        (top / folder / names[1]).write_text(f"{2 * 2**20}\n")
        (top / folder / "memory.stat").write_text(f"anon 5\n{names[2]} {2**20}\n")
    found = memory(tmp_path)
    assert found.usable == 3 * 2**20 < found.machine and "container" in found.limit
    assert found.available == 2 * 2**20  # of 3 MiB 2 are used, of which the system takes 1 back when it must
    assert memory(tmp_path / "nothing").limit == ""


def test_a_limit_of_the_shell_is_found():
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, ({3 * GIB},) * 2)\n" \
              "from qlora_lib.doctor.memory import memory; m = memory(); print(m.usable, m.available < m.usable, m.limit)"  # fmt: skip
    run = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})
    assert run.stdout.strip() == f"{3 * GIB} True limit of ulimit -v", run.stderr


# --- GPU -----------------------------------------------------------------------------------------


def test_arms_that_are_too_large_for_a_gpu_are_told_with_a_way():
    advice = needs.gpu_advice(load_profile("llama3.1-8b"), "Tesla T4", 15 * GIB, 15 * GIB)
    assert "fits with QLoRA" in told("Arm lora of llama3.1-8b does not fit the T4", advice)
    assert not any("does not fit" in a for a in needs.gpu_advice(load_profile("t4-tinyllama-wikitext2"), "Tesla T4", 15 * GIB, 15 * GIB))


def test_memory_of_a_gpu_that_others_hold_and_a_card_that_is_not_known():
    t4 = load_profile("t4-tinyllama-wikitext2")
    assert "nvidia-smi" in told("Only 2.0 of 15.0 GiB", needs.gpu_advice(t4, "Tesla T4", 15 * GIB, 2 * GIB))
    assert "needs 14 GiB of GPU memory, and this one has 4.0" in needs.gpu_advice(t4, "Some Other Card", 4 * GIB, 4 * GIB)[0]


# --- folders -------------------------------------------------------------------------------------

ROOM = {"the cache": 5, "results": 5, "temporary files": 0.5}


def test_a_full_disk_is_told_once(tmp_path):
    cache, results = folders.look_at("the cache", tmp_path / "c", "QLORA_CACHE"), folders.look_at("results", tmp_path / "r", "QLORA_RESULTS")
    assert cache.fault is None and cache.locks and cache.free_bytes > 0 and list(tmp_path.iterdir()) == []
    enough = [replace(f, free_bytes=6 * GIB) for f in (cache, results)]
    assert folders.advice(enough, ROOM) == []
    full = [replace(f, free_bytes=4 * GIB) for f in (cache, results)]
    (advice,) = folders.advice(full, ROOM)
    assert "Less than 5 GiB of disk is free at" in advice and "QLORA_CACHE" in advice
    assert len(folders.advice([full[0], replace(full[1], disk=-1)], ROOM)) == 2


def test_folders_that_cannot_be_made_are_told(own_folders, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "file"))
    found = examine("smoke")
    assert found.cache_bytes == 0 and found.cached_assets == [] and "empty" in found.to_text()
    assert "set QLORA_CACHE" in told("the place of the cache", found.advice)
    assert "set QLORA_RESULTS" in told("the place of results", found.advice)


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions")
def test_a_folder_that_may_not_be_written(tmp_path):
    """As another user where this one is the superuser, who may write anywhere."""
    code = (
        "import os, sys; from pathlib import Path; from qlora_lib.doctor import folders, kept\n"
        "os.geteuid() or os.setuid(65534)\n"
        "for name in sys.argv[1:]: print(folders.look_at('results', Path(name), 'X').fault, kept.in_results(Path(name)))"
    )
    closed, unread = tmp_path / "closed", tmp_path / "unread"
    closed.mkdir(mode=0o500)
    unread.mkdir(mode=0o000)
    run = subprocess.run([sys.executable, "-c", code, closed / "new", unread / "a" / "b"], capture_output=True, text=True)
    empty = "Kept(damaged=[], interrupted=[], held=[])"
    assert run.stdout == f"Permission denied {empty}\n" * 2, run.stderr
    unread.chmod(0o700)


def test_no_byte_can_be_written(tmp_path):
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\nfrom pathlib import Path; from qlora_lib.doctor import folders\n" \
           "folder = folders.look_at('results', Path(sys.argv[1]), 'X'); print(folders.advice([folder], {'results': 1}))"  # fmt: skip
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert "cannot be written (File too large)" in run.stdout and "ulimit -f" in run.stdout, run.stderr


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(folders.fcntl, "flock", none)
    folder = folders.look_at("the cache", tmp_path, "QLORA_CACHE")
    assert not folder.locks and "no file locks" in told("set QLORA_CACHE", folders.advice([folder], ROOM))


def test_a_disk_without_room_for_files(tmp_path, monkeypatch):
    there = folders.look_at("results", tmp_path, "X")
    monkeypatch.setattr(folders.os, "statvfs", lambda _: type("Disk", (), {"f_files": 10**6, "f_favail": 3}))
    assert told("3 more files (inodes)", folders.advice([there], {"results": 0}))


# --- what is kept --------------------------------------------------------------------------------


def entry(folder: Path, content: bytes) -> None:
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(content)
    entry_manifest(folder, "a recipe").write(["weights"])


def checkpoint(out: Path, step: int) -> Path:
    folder = out / "checkpoints" / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "optimizer.pt"):
        (folder / name).write_bytes(b"state")
    seal(folder, {"seconds": []})
    return folder


def test_damage_in_the_cache(tmp_path):
    for name in ("whole", "short", "changed", "gone", "unmarked"):
        entry(tmp_path / "data" / name, b"whole")
    (tmp_path / "data" / "short" / "weights").write_bytes(b"wh")
    (tmp_path / "data" / "changed" / "weights").write_bytes(b"WHOLE")  # as many bytes
    (tmp_path / "data" / "gone" / "weights").unlink()
    (tmp_path / "data" / "unmarked" / "manifest.json").write_text("{")
    cheap = [
        "data/gone: weights is missing",
        "data/short: weights has 2 bytes instead of 5",
        "data/unmarked: manifest.json is missing or cannot be read",
    ]
    assert kept.in_cache(tmp_path).damaged == cheap
    assert kept.in_cache(tmp_path, deep=True).damaged == sorted([*cheap, "data/changed: weights is not as it was written"])
    assert kept.in_cache(tmp_path / "none") == kept.Kept()


def test_what_an_interrupted_fetch_left_unless_it_still_runs(tmp_path):
    from filelock import FileLock

    (tmp_path / "models" / ".big.part" / "scratch").mkdir(parents=True)
    (tmp_path / "models" / ".big.part" / "scratch" / "x").write_bytes(b"x" * 1000)
    assert kept.in_cache(tmp_path).interrupted == ["models/.big.part (0.00 GiB)"]
    with FileLock(tmp_path / "models" / ".big.lock"):
        assert kept.in_cache(tmp_path).interrupted == []


def test_damage_of_what_came_from_the_hub(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    snapshot = tmp_path / "hub-cache" / "models--org--name" / "snapshots" / "abc123"
    entry(snapshot, b"whole")
    note = tmp_path / "cache" / "hub" / "model--org--name" / "abc123-0123abcd.json"
    note.parent.mkdir(parents=True)
    shutil.move(snapshot / "manifest.json", note)
    assert kept.in_cache(tmp_path / "cache").damaged == []
    (snapshot / "weights").write_bytes(b"")
    assert kept.in_cache(tmp_path / "cache").damaged == ["hub/model--org--name: weights has 0 bytes instead of 5"]
    shutil.rmtree(snapshot)  # the user's own choice
    assert kept.in_cache(tmp_path / "cache").damaged == []


def test_checkpoints_that_are_cut_short_or_damaged(tmp_path):
    out = tmp_path / "demo" / "lora"
    checkpoint(out, 5)
    changed, gone, cut = checkpoint(out, 10), checkpoint(out, 15), checkpoint(out, 20)
    (changed / "optimizer.pt").write_bytes(b"STATE")
    (gone / "optimizer.pt").unlink()
    (cut / "complete.json").unlink()
    found = kept.in_results(tmp_path)
    cheap = ["demo/lora/checkpoint-15: optimizer.pt is missing", "demo/lora/checkpoint-20: was cut short"]
    assert found.damaged == cheap and found.interrupted == ["demo/lora (goes on after step 10)"]
    found = kept.in_results(tmp_path, deep=True)
    assert found.damaged == ["demo/lora/checkpoint-10: optimizer.pt is not as it was written", *cheap]
    assert found.interrupted == ["demo/lora (goes on after step 5)"]
    shutil.rmtree(out / "checkpoints" / "checkpoint-5")
    assert kept.in_results(tmp_path, deep=True).interrupted == ["demo/lora (begins again)"]


def test_records_whose_files_are_not_as_noted(tmp_path):
    digest = hashlib.sha256(b"whole").hexdigest()
    for arm, content, record in (
        ("whole", b"whole", {"files": {"adapter/x": digest}}),
        ("changed", b"WHOLE", {"files": {"adapter/x": digest}}),
        ("gone", None, {"files": {"adapter/x": digest}}),
        ("list", None, []),
    ):
        (tmp_path / "demo" / arm / "adapter").mkdir(parents=True)
        (tmp_path / "demo" / arm / "record.json").write_text(json.dumps(record))
        if content:
            (tmp_path / "demo" / arm / "adapter" / "x").write_bytes(content)
    cheap = ["demo/gone: adapter/x is missing", "demo/list: record.json cannot be read"]
    assert kept.in_results(tmp_path).damaged == cheap
    assert kept.in_results(tmp_path, deep=True).damaged == ["demo/changed: adapter/x is not as it was written", *cheap]


def test_a_folder_is_held_only_while_its_run_lives(tmp_path):
    code = "import sys, time; from pathlib import Path; from qlora_lib.claimed import claimed\n" \
           "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"  # fmt: skip
    out = tmp_path / "demo" / "lora"
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout.readline() == "held\n"
        checkpoint(out, 3)
        (held,) = kept.in_results(tmp_path).held
        assert held.startswith(f"demo/lora (process {run.pid} on ") and kept.in_results(tmp_path).interrupted == []
        run.kill()
    assert kept.in_results(tmp_path) == kept.Kept(interrupted=["demo/lora (goes on after step 3)"])


# --- the stack -----------------------------------------------------------------------------------


def test_versions_outside_of_their_ranges():
    asked = stack.ranges()
    assert {r.split(">")[0] for r in asked} >= {"torch", "transformers", "peft", "bitsandbytes"}
    assert stack.outside(asked) == []
    old = stack.outside(["torch>=99", "numpy>=1", "no-such-package-here>=2"])
    assert len(old) == 2 and old[0].endswith("and >=99 is needed") and old[1] == "no-such-package-here is missing, and >=2 is needed"


def test_an_old_package_is_found_where_it_is_installed(tmp_path):
    (tmp_path / "peft-0.1.0.dist-info").mkdir()
    (tmp_path / "peft-0.1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1.0\n")
    code = "from qlora_lib.doctor import stack; print(stack.outside(stack.ranges()))"
    path = os.pathsep.join([str(tmp_path), str(Path(doctor.__file__).parents[2])])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert "peft 0.1.0, and >=0.19 is needed" in run.stdout, run.stderr


def test_a_missing_native_library_is_found(tmp_path):
    """The package without its shared objects, as a source checkout or a broken install has it."""
    import bitsandbytes

    shutil.copytree(
        Path(bitsandbytes.__file__).parent, tmp_path / "bitsandbytes", ignore=shutil.ignore_patterns("*.so", "*.dll", "*.dylib", "__pycache__")
    )
    code = "from qlora_lib.doctor import stack; about, advice = stack.about_bitsandbytes('cpu'); print(about['native library'], advice)"
    path = os.pathsep.join([str(tmp_path), str(Path(doctor.__file__).parents[2])])
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert "none that loads" in run.stdout and "fall back to PyTorch's operations" in run.stdout, run.stderr


def test_the_native_library_that_is_loaded_here():
    about, advice = stack.about_bitsandbytes(hardware.device())
    assert about["native library"].startswith("libbitsandbytes_") and advice == []


@pytest.mark.parametrize("name", stack.THREADS)
def test_more_threads_than_cores(name):
    assert told(f"{name} is 64 and there are 2 cores", stack.threads_advice({name: "64"}, 2, None))
    assert stack.threads_advice({name: "2"}, 2, 2.0) == stack.threads_advice({name: "two"}, 2, None) == []


def test_a_container_with_less_time_than_cores(tmp_path):
    assert stack.cpu_quota(tmp_path) is None
    group = tmp_path / "sys/fs/cgroup"
    (group / "cpu").mkdir(parents=True)
    (group / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    (group / "cpu/cpu.cfs_period_us").write_text("100000\n")
    assert stack.cpu_quota(tmp_path) is None
    (group / "cpu/cpu.cfs_quota_us").write_text("150000\n")
    assert stack.cpu_quota(tmp_path) == 1.5
    (group / "cpu.max").write_text("max 100000\n")
    assert stack.cpu_quota(tmp_path) == 1.5
    (group / "cpu.max").write_text("250000 100000\n")
    assert stack.cpu_quota(tmp_path) == 2.5
    assert "runtime.threads=2" in told("the time of 2.5 of its 8 cores", stack.threads_advice({}, 8, 2.5))


def test_network_settings_matter_where_something_is_missing(own_folders, monkeypatch):
    for name in (*stack.OFFLINE, *stack.PROXIES, *stack.MIRRORS):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:8080")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "0")
    found = examine()
    assert found.network_settings == ["PIP_NO_INDEX", "HTTPS_PROXY"]
    assert "smollm2-135m" in told("PIP_NO_INDEX is set", found.advice) and told("HTTPS_PROXY set", found.advice)
    assert "secret" not in json.dumps(found.to_dict()) + found.to_text()
    assert stack.network_advice(found.network_settings, []) == []  # all is here: no harm


# --- the command ---------------------------------------------------------------------------------


def test_the_command_takes_a_profile_and_looks_deeper(own_folders, capsys, monkeypatch):
    from qlora_lib.cli import main

    monkeypatch.setattr(sys, "argv", ["qlora", "doctor", "--profile", "smoke", "--deep", "--json"])
    with pytest.raises(SystemExit) as left:
        main()
    said = json.loads(capsys.readouterr().out)
    assert left.value.code == 0 and said["profile"] == "smoke" and said["hashed"] is True and isinstance(said["advice"], list)


# --- whether a profile fits ----------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    def machine(memory: float, disk: float, gpu: float | None):
        monkeypatch.setattr(hardware, "total_memory", lambda: int(memory * GIB))
        monkeypatch.setattr(needs.shutil, "disk_usage", lambda _: type("Usage", (), {"free": int(disk * GIB)}))
        monkeypatch.setattr(needs, "gpu_memory", lambda: None if gpu is None else int(gpu * GIB))

    return machine


@pytest.mark.parametrize(
    "profile, has, fits, said",
    [
        ("demo", (24, 50, None), True, "memory: 6 GiB of 24.0; disk: 5 GiB of 50.0"),
        ("demo", (6, 5, None), True, "memory: 6 GiB of 6.0"),
        ("demo", (5.9, 50, None), False, "memory: 6 GiB of 5.9"),
        ("demo", (24, 4.9, None), False, "disk: 5 GiB of 4.9"),
        ("t4-tinyllama-wikitext2", (24, 50, None), False, "no CUDA GPU; memory"),
        ("t4-tinyllama-wikitext2", (24, 50, 15), True, "GPU memory: 14 GiB of 15.0"),
        ("t4-tinyllama-wikitext2", (24, 50, 8), False, "GPU memory: 14 GiB of 8.0"),
        ("t4-tinyllama-wikitext2", (8, 50, 15), False, "memory: 12 GiB of 8.0"),
    ],
)
def test_a_profile_fits_where_each_need_is_met(machine, profile, has, fits, said):
    machine(*has)
    found, why = fits_here(load_profile(profile))
    assert found is fits and said in why


@pytest.mark.parametrize("says, bytes_", [("15360\n", 15360 * 2**20), ("81559\n81559\n", 81559 * 2**20), ("", None), ("[N/A]\n", None)])
def test_the_memory_of_a_gpu_is_what_the_driver_says(monkeypatch, tmp_path, says, bytes_):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{says}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_memory() == bytes_


def test_no_driver_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory() is None
