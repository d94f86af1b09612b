"""Limits of the machine, really met: no room on the disk, no memory, a folder that cannot be written.

`short_files` lowers this process's limit on a file's size (RLIMIT_FSIZE), so that the system itself refuses to write on; a small
tmpfs in a name space of one's own, where the system lets a user have one, is a disk that is really full. Memory ends by
RLIMIT_AS in processes of their own.
"""

import contextlib
import io
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import yaml
from example_records import example_records, write_example

from qlora_lib import arm as arm_module
from qlora_lib import assets, figures, hardware, study
from qlora_lib.checkpoints import newest_checkpoint
from qlora_lib.config import PROFILES_DIR, load_profile
from qlora_lib.errors import QloraError, no_room, out_of_memory
from qlora_lib.records import RunRecord, read_record
from qlora_lib.study import ArmFailed, run_arm

one_thread = tiny.one_thread
LINE = "a file in {} would be longer than this system allows \\(File too large\\). Raise the limit \\(ulimit -f unlimited\\)"


@contextlib.contextmanager
def short_files(most: int):
    """No file of this process, or of one that it starts, may be longer than `most` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))  # Python ignores SIGXFSZ, so that a write fails with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def files(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.suffix != ".lock"}


# --- the disk is full: the cache -----------------------------------------------------------------


@pytest.fixture
def cache(monkeypatch, tmp_path) -> Path:
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.promise("disk-full")
def test_a_model_that_is_made_here(cache):
    with short_files(50_000), pytest.raises(QloraError, match=LINE.format(".*cache") + ", or set QLORA_CACHE") as told:
        assets.resolve_model("tiny-random", progress=False)
    assert told.value.exit_code == 1 and files(cache) == {} and not assets.is_cached("tiny-random")
    assert assets.resolve_model("tiny-random", progress=False).path.is_dir()


@pytest.mark.promise("disk-full")
def test_a_gguf_file_that_is_converted(cache, tiny_model, tmp_path):
    from test_assets import write_gguf

    path = tmp_path / "little.gguf"
    write_gguf(path, assets.ModelAsset("tiny", tiny_model, "", "", None))
    with short_files(50_000), pytest.raises(QloraError, match=LINE.format(".*cache")):
        assets.resolve_model(path, progress=False)
    assert [name for name in files(cache) if not name.startswith("local/")] == []  # in which only hashes of the user's files stand
    assert assets.resolve_model(path, progress=False).path.is_dir()


@pytest.mark.promise("disk-full")
def test_an_artefact_that_pip_brings(cache, monkeypatch, tmp_path):
    from qlora_lib.assets.registry import DATA, DataSpec
    from test_assets import artefact, make_wheel, sha

    text = os.urandom(300_000)  # which no archive makes shorter
    wheel = make_wheel(tmp_path / "links", {"fakepkg/some.txt": text})
    source = artefact(wheel, member="fakepkg/some.txt", member_sha256=sha(text), member_size=len(text))
    monkeypatch.setitem(DATA, "fake", DataSpec("fake", source, {"all": "some.txt"}, "CC0", "nobody"))
    for name, value in {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "PIP_FIND_LINKS": str(tmp_path / "links")}.items():
        monkeypatch.setenv(name, value)
    for most in (100_000, 350_000):  # pip's own file, and then ours, which holds no compression
        with short_files(most):
            if most < len(text):
                with pytest.raises(QloraError, match=LINE.format(".*cache.*")):
                    assets.resolve_data_files("fake", progress=False)
                assert files(cache) == {}
            else:
                assert assets.resolve_data_files("fake", progress=False).files["all"].read_bytes() == text


# --- the disk is full: an arm ---------------------------------------------------------------------


@pytest.fixture
def in_process(monkeypatch):
    """Arms run here, as their own process runs them: their exit code is what `study` makes of it."""

    def spawn(job):
        monkeypatch.setattr(sys, "stdin", io.StringIO(job.to_json()))
        if code := arm_module.main():
            raise ArmFailed(f"arm '{job.arm.name}' left with {code}")

    monkeypatch.setattr(study, "_spawn", spawn)
    monkeypatch.setattr(hardware, "gemm_peak", lambda dtype: 1e11)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Records of the uninterrupted arms."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "gemm_peak", lambda dtype: 1e11)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(study, "_spawn", arm_module.run)
        profile, out = load_profile("smoke"), tmp_path_factory.mktemp("whole")
        return {name: run_arm(profile, profile.arm(name), out / name, dict(SETTINGS)).record for name in ("full", "lora")}


SETTINGS = {"train.save_every": 2, "evaluation.new_tokens": 0, "evaluation.windows": 2}


def from_then_on(monkeypatch, place, name: str, most: int):
    """When `place.name` is called, files become short before it does its work."""
    real = getattr(place, name)
    limits = contextlib.ExitStack()

    def limited_from_here(*args, **kwargs):
        limits.enter_context(short_files(most))
        return real(*args, **kwargs)

    monkeypatch.setattr(place, name, limited_from_here)
    return limits


def third_checkpoint(monkeypatch):
    from transformers import Trainer

    real, limits = Trainer._save_checkpoint, contextlib.ExitStack()

    def save(self, *args, **kwargs):
        if self.state.global_step == 4:
            limits.enter_context(short_files(60_000))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "_save_checkpoint", save)
    return limits


WRITES = {
    "a checkpoint": third_checkpoint,
    "the weights": lambda monkeypatch: from_then_on(monkeypatch, arm_module, "_save", 10_000),
    "the record": lambda monkeypatch: from_then_on(monkeypatch, RunRecord, "write", 1_000),
}


@pytest.mark.promise("disk-full")
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("name", ["full", pytest.param("lora", marks=pytest.mark.only_in_make_faults)])
def test_an_arm(whole, in_process, monkeypatch, tmp_path, capfd, tiny_model, name, write):
    profile, out = load_profile("smoke"), tmp_path / "run"
    with monkeypatch.context() as until_there_is_room, WRITES[write](until_there_is_room):
        with pytest.raises(ArmFailed, match="left with 1"):
            run_arm(profile, profile.arm(name), out, dict(SETTINGS))
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(said) == 1 and re.match(
        f"error: {LINE.format('.*run.*')}; the same command goes on from the newest whole checkpoint", said[0]
    )
    assert newest_checkpoint(out).name == "checkpoint-" + ("2" if write == "a checkpoint" else "4")
    assert all((p / "complete.json").is_file() for p in out.glob("checkpoints/checkpoint-*"))  # no half one takes room
    assert not (out / "record.json").exists() and not list(out.glob(".*.part"))
    record = run_arm(profile, profile.arm(name), out, dict(SETTINGS)).record
    assert record.train.resumed_from_step == (2 if write == "a checkpoint" else 4)
    assert record.train.loss == whole[name].train.loss and record.files == whole[name].files
    assert record.perplexity == whole[name].perplexity


# --- the disk is full: pages ----------------------------------------------------------------------


@pytest.mark.promise("disk-full")
def test_a_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", dict(list(figures.FIGURES.items())[:3]))
    records = example_records("smoke")
    drawn = figures.draw_all(records, tmp_path, formats=("svg",))
    before = files(tmp_path)
    records["lora"].train.loss = [x + 1 for x in records["lora"].train.loss]
    with short_files(10_000), pytest.raises(OSError) as told:
        figures.draw_all(records, tmp_path, formats=("svg",))
    assert re.match(LINE.format(".*"), str(no_room(told.value, tmp_path)))
    after = files(tmp_path)
    assert after.keys() == before.keys() and all(len(data) > 1000 for data in after.values())  # each is the old or the new one
    again = figures.draw_all(records, tmp_path, formats=("svg",))
    assert [f.path_svg for f in again] == [f.path_svg for f in drawn] and files(tmp_path) != before


@pytest.mark.promise("disk-full")
@pytest.mark.only_in_make_faults
def test_the_pdf(folders, refused, call, monkeypatch):
    from qlora_lib.report import build

    words = ["report", "--profile", "smoke", "--committed", "--no-notebooks"]
    pdf, write = folders / "report" / "smoke.pdf", build.write_atomic
    assert call(*words)[0] == 0
    before = pdf.read_bytes()

    def no_room_for_a_pdf(path, data):
        with short_files(len(data) // 2) if path == pdf else contextlib.nullcontext():
            write(path, data)

    with monkeypatch.context() as full:
        full.setattr(build, "write_atomic", no_room_for_a_pdf)
        said = refused(1, *words)
    assert re.match(f"error: {LINE.format('.*report')}", said) and pdf.read_bytes() == before
    assert call(*words)[0] == 0


@pytest.mark.promise("disk-full")
def test_a_notebook(course, tmp_path):
    cells = ["print('first')", "print(4_000 * (75 * 'x' + '\\n'))"]
    with short_files(200_000), pytest.raises((OSError, QloraError)) as told:
        course({"01_made": cells})
    assert re.match(LINE.format(".*"), str(no_room(told.value, tmp_path)))
    folder = tmp_path / "report" / "smoke" / "notebooks"
    assert not list(folder.glob("*.stamp.json")) and not list(folder.glob(".running*"))
    (done,) = course({})
    assert not done.cached


# --- a disk that is really full -------------------------------------------------------------------


def can_mount() -> bool:
    if not shutil.which("unshare"):
        return False
    tried = subprocess.run(["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True)
    return tried.returncode == 0


def in_own_namespace(script: str, place: Path, **environment: str) -> list[str]:
    """Lines of standard error of a script that may mount; `qlora` in it is this command, `$PLACE` the folder to mount on."""
    place.mkdir(exist_ok=True)
    env = os.environ | {"PLACE": str(place)} | {name: str(value) for name, value in environment.items()}
    script = f'qlora() {{ {sys.executable} -m qlora_lib "$@"; echo exit $? >&2; }}\n{script}'
    run = subprocess.run(["unshare", "-rm", "sh", "-c", script], env=env, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr
    return run.stderr.splitlines()


TRAIN = """
train() {{ qlora train --profile smoke --method full --set train.save_every=2 --set evaluation.new_tokens=0 --out $PLACE/run; }}
mount -t tmpfs -o size={size} none $PLACE
train
echo between >&2
mount -o remount,size=100m $PLACE
train
cp $PLACE/run/record.json $KEEP
"""

if can_mount():

    @pytest.mark.promise("disk-full")
    @pytest.mark.only_in_make_faults
    @pytest.mark.parametrize("size, last", [("1m", None), ("2m", 2), ("2400k", 4)])
    def test_training_on_a_full_disk(tmp_path, tiny_model, whole, size, last):
        """Too small for the first checkpoint, for the second, and for what is kept at the end."""
        lines = in_own_namespace(TRAIN.format(size=size), tmp_path / "disk", KEEP=tmp_path / "record.json")
        first, second = lines[: lines.index("between")], lines[lines.index("between") :]
        (said,) = (line for line in first if line.startswith("error:"))
        known = r"a checkpoint takes \d+\.\d MiB; " if last else ""
        full = rf"error: the disk that holds .*disk/run.* is full \({known}\d+ MiB free\). Free some space there; the same command goes on"
        assert re.match(full, said) and first[-1] == "exit 1" and second[-1] == "exit 0"
        record = read_record(tmp_path / "record.json")
        assert record.train.resumed_from_step == last and record.train.steps == 6

    @pytest.mark.promise("disk-full")
    @pytest.mark.only_in_make_faults
    def test_the_cache_on_a_full_disk(tmp_path):
        script = """
        mount -t tmpfs -o size=200k none $PLACE
        qlora fetch tiny-random
        find $PLACE -type f -not -name '*.lock' >&2
        mount -o remount,size=20m $PLACE
        qlora fetch tiny-random
        """
        lines = in_own_namespace(script, tmp_path / "disk", QLORA_CACHE=tmp_path / "disk" / "cache")
        (said,) = (line for line in lines if line.startswith("error:"))
        assert re.match(
            r"error: the disk that holds .*disk/cache.* is full \(0 MiB free\). Free some space there, or set QLORA_CACHE", said
        )
        assert lines[-2:] == ["exit 1", "exit 0"]  # and no file between them


# --- memory ---------------------------------------------------------------------------------------


def limited(*words: str, gib: float, **environment) -> subprocess.CompletedProcess:
    most = int(gib * 2**30)
    return subprocess.run(
        [sys.executable, "-m", "qlora_lib", *map(str, words)], capture_output=True, text=True, timeout=240,
        env=os.environ | environment, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (most, most)),
    )  # fmt: skip


@pytest.fixture(scope="module")
def much_text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "much.txt"
    path.write_text("The small model keeps a quantized weight matrix and trains a low-rank adapter.\n\n" * 12_000)
    return path


@pytest.mark.promise("memory-limit")
@pytest.mark.only_in_make_faults
def test_arms_beyond_the_limit_fail_with_advice_that_helps_and_the_others_go_on(tmp_path, tiny_model, much_text, monkeypatch):
    """`ulimit -v`; the change that the message names makes the arm fit, at the latest when it is made for the third time:
    how much of such a limit the libraries take by themselves differs between machines."""
    values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())
    arms = {a["name"]: a for a in values["arms"]}
    values["arms"] = [arms["lora"] | {"name": "large", "set": {"train.batch_size": 256}}, arms["base"]]
    values["data"] |= {"name": str(much_text), "window_length": 512}
    values["train"] |= {"max_steps": 1, "warmup_steps": 0, "eval_windows": 1}
    values["evaluation"] |= {"new_tokens": 0, "windows": 2}
    path = tmp_path / "limited.yaml"
    path.write_text(yaml.safe_dump(values))
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "results"))
    run = limited("sweep", "--profile", path, gib=3.1)
    lines = run.stderr.splitlines()
    assert run.returncode == 1 and "Traceback" not in run.stderr, run.stderr
    (said,) = (line for line in lines if line.startswith("  error:"))
    told = (
        r"  error: arm 'large' ran out of memory. Its step is planned to need (0.\d\d) GiB, and \d.\d\d GiB can be used; "
        r"train.batch_size=(\d+) with train.gradient_accumulation_steps=(\d+) needs 0.\d\d GiB \(the same result, but for rounding\), "
        r"or train.gradient_checkpointing=true needs 0.\d\d GiB"
    )
    assert (found := re.match(told, said)), run.stderr
    assert lines[-1].startswith("error: 1 of 2 arms failed: large") and read_record(
        tmp_path / "results" / "limited" / "base" / "record.json"
    )
    assert 0.9 <= float(found[1]) < 1.0
    for tries in range(3):
        values["arms"][0]["set"] = {"train.batch_size": int(found[2]), "train.gradient_accumulation_steps": int(found[3])}
        assert int(found[2]) * int(found[3]) == 256
        path.write_text(yaml.safe_dump(values))
        run = limited("sweep", "--profile", path, gib=3.1)
        if run.returncode == 0:
            break
        found = next(again for line in run.stderr.splitlines() if (again := re.match(told, line)))
    assert run.returncode == 0 and "1 arms run, 1 taken from the cache" in run.stdout, run.stderr


@pytest.mark.promise("memory-limit")
@pytest.mark.only_in_make_faults
def test_an_evaluation_beyond_the_limit(tiny_model, much_text):
    run = limited("eval", "--model", "tiny-random", "--context", "2048", "--batch-size", "4000", "--data", much_text, gib=3.1)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == ADVICE


ADVICE = "error: out of memory. Use a smaller batch, context or model, or --quantization nf4"


@pytest.mark.promise("memory-limit")
@pytest.mark.parametrize("lack", ["too large a tensor", "OutOfMemoryError"])
@pytest.mark.parametrize(
    "words",
    [("eval", "--data", "FILE"), ("generate", "--prompt", "x"), ("merge", "--adapter", "ADAPTER", "--out", "OUT")],
    ids=lambda w: w[0],
)
def test_commands_that_load_a_model(call, monkeypatch, tmp_path, tiny_model, adapter, words, lack):
    """While the base is loaded: PyTorch's own error on a CPU, and by construction that of a GPU."""
    import torch
    from transformers import AutoModelForCausalLM

    def load(*_, **__):
        if lack == "OutOfMemoryError":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return torch.empty(2**50)

    (tmp_path / "text.txt").write_text("A few words.\n" * 100)
    places = {"FILE": tmp_path / "text.txt", "ADAPTER": adapter, "OUT": tmp_path / "merged"}
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    code, out, err = call(words[0], "--model", "tiny-random", *(places.get(w, w) for w in words[1:]))
    assert (code, err.splitlines()[-1]) == (1, ADVICE) and not (tmp_path / "merged").exists()


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """Of the tiny model, not trained."""
    from qlora_lib.models import save_adapter

    _, settings = tiny.arm("lora")
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    save_adapter(tiny.trainable("lora", settings), folder)
    return folder


@pytest.mark.promise("memory-limit")
@pytest.mark.parametrize("script, why", [
    ("kill -9 $$", "arm 'qlora': the system ended it, most likely for want of memory"),
    ("exit 12", "arm 'qlora' ran out of memory"),
], ids=["ended by the kernel", "said by PyTorch"])  # fmt: skip
def test_an_arm_that_the_system_ended_gets_the_same_advice(tmp_path, monkeypatch, tiny_model, script, why):
    (tmp_path / "python").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    profile = load_profile("smoke")
    with pytest.raises(ArmFailed) as told:
        run_arm(profile, profile.arm("qlora"), tmp_path / "out")
    assert told.value.message == why
    assert "train.gradient_checkpointing=true needs" in told.value.hint and "train.batch_size=" in told.value.hint


LACKS = {
    "a GPU's memory": lambda torch: torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 14.56 GiB"
    ),
    "a tokenizer": lambda torch: MemoryError(),
    "a worker process": lambda torch: OSError(12, "Cannot allocate memory"),
    "a file that is mapped": lambda torch: RuntimeError("Cannot allocate memory (os error 12)"),
}


@pytest.mark.promise("memory-limit")
@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("where", ["prepare_data", "train"])
def test_whoever_lacks_memory_the_arm_says_so(monkeypatch, capfd, tmp_path, tiny_model, lack, where):
    """By construction; wrapped as a library might, too."""
    import torch
    from qlora_lib import scoring, training
    from qlora_lib.job import OUT_OF_MEMORY, Job

    def fails(*_, **__):
        try:
            raise LACKS[lack](torch)
        except Exception as e:
            raise ValueError("a library's own words") from e

    monkeypatch.setattr({"prepare_data": scoring, "train": training}[where], where, fails)
    profile = load_profile("smoke")
    entry = profile.arm("lora")
    settings = profile.settings(entry, {"evaluation.perplexity": False})
    job = Job("smoke", entry, settings, tmp_path, "key", None)
    monkeypatch.setattr(sys, "stdin", io.StringIO(job.to_json()))
    assert arm_module.main() == OUT_OF_MEMORY
    assert "[lora] ran out of memory: a library's own words" in capfd.readouterr().err


def test_other_errors_are_no_lack_of_memory_or_room(tmp_path):
    for other in (ValueError("no"), OSError(13, "Permission denied", "x"), RuntimeError("shapes differ"), KeyError("os error")):
        assert no_room(other, tmp_path) is None and not out_of_memory(other)
    assert no_room(OSError(28, "No space left on device"), tmp_path / "not" / "yet").message.startswith(
        f"the disk that holds {tmp_path}/not/yet is full ("
    )


# --- folders that cannot be written ----------------------------------------------------------------

NOWHERE = Path("/proc/qlora")  # in which nobody may make anything, not even the superuser


@pytest.mark.promise("read-only")
@pytest.mark.parametrize("what", ["cache", "results", "figures", "notebooks", pytest.param("report", marks=pytest.mark.only_in_make_faults)])
def test_a_folder_that_takes_nothing_is_named(folders, call, monkeypatch, tmp_path, what):
    from qlora_lib import pipeline
    from qlora_lib.notebooks import runner
    from qlora_lib.report import build

    words = ["report", "--profile", "smoke", "--committed", "--no-notebooks"]
    if what == "figures":
        monkeypatch.setattr(pipeline, "figures_dir", lambda profile: NOWHERE / "figures")
    elif what == "report":
        monkeypatch.setattr(build, "report_dir", lambda: NOWHERE / "report")
        monkeypatch.setattr(pipeline, "report_dir", lambda: NOWHERE / "report")
    elif what == "notebooks":
        words = ["run", "--profile", "smoke", "--only", "01"]
        monkeypatch.setattr("qlora_lib.study.run_profile", lambda profile: [])
        monkeypatch.setattr(runner, "report_dir", lambda: NOWHERE)
        write_example(tmp_path / "results" / "smoke", "smoke")
    elif what == "results":
        words = ["train", "--profile", "smoke", "--method", "lora", "--out", NOWHERE / "run"]
    else:
        words = ["fetch", "tiny-random"]
        monkeypatch.setenv("QLORA_CACHE", str(NOWHERE / "cache"))
    code, out, err = call(*words)
    (said,) = (line for line in err.splitlines() if line.startswith("error:"))
    assert (code, out) == (1, "") and str(NOWHERE) in said and "Traceback" not in err and "not foreseen" not in said, err


READ_ONLY = """
mkdir -p $PLACE/cache $PLACE/results
export QLORA_CACHE=$PLACE/cache QLORA_RESULTS=$PLACE/results
qlora train --profile smoke --method lora --set evaluation.new_tokens=0 --set evaluation.windows=2 --out $PLACE/results/run
find $PLACE -type f -not -name '.*lock' -exec sha256sum {} + | sort > $KEEP/before
mount --bind $PLACE $PLACE
mount -o remount,ro,bind $PLACE
echo read-only >&2
qlora train --profile smoke --method lora --set evaluation.new_tokens=0 --set evaluation.windows=2 --out $PLACE/results/run
qlora train --profile smoke --method lora --set seed=1 --out $PLACE/results/run
qlora fetch tiny-random
qlora generate --model tiny-random --adapter $PLACE/results/run/adapter --prompt x --max-new-tokens 2
find $PLACE -type f -not -name '.*lock' -exec sha256sum {} + | sort > $KEEP/after
"""

if can_mount():

    @pytest.mark.promise("read-only")
    @pytest.mark.only_in_make_faults
    def test_a_read_only_mount_keeps_all_and_serves_what_it_has(tmp_path):
        lines = in_own_namespace(READ_ONLY, tmp_path / "disk", KEEP=tmp_path)
        lines = lines[lines.index("read-only") + 1 :]
        codes = [line for line in lines if line.startswith("exit")]
        assert codes == ["exit 0", "exit 1", "exit 0", "exit 0"], lines  # the record, the model and the adapter are there to be read
        (said,) = (line for line in lines if line.startswith("error:"))
        assert re.match("error: cannot write to .*results/run: Read-only file system. Give another folder with --out", said)
        assert (tmp_path / "before").read_text() == (tmp_path / "after").read_text() != ""
