"""SIGKILL, wherever a run may be: the same command then goes on, and ends as if nothing had happened.

How it works: each test starts a real command, kills it (killing.py), starts the same command again, and holds what is there then
against a run that nobody killed. What is on the disk must be the same, file for file, so nothing half-written is left either.
"""

import json
import os
import platform
import random
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from example_records import example_records
from killing import Command, Moment, listing
from safetensors.numpy import load_file
from test_assets import MEMBER, TEXT, make_wheel, sha, write_gguf

from qlora_lib.assets.store import sha256_of
from qlora_lib.checkpoints import seal
from qlora_lib.claimed import claimed
from qlora_lib.config import PROFILES_DIR, load_profile
from qlora_lib.paths import write_atomic
from qlora_lib.records import read_record

ROOT = Path(__file__).resolve().parent.parent.parent
SAVE_EVERY, STEPS = 3, 12
ALL, FIRST, ARM = "all of it", "its first process", "the arm"
slow = pytest.mark.only_in_make_faults


@pytest.fixture
def start(tmp_path):
    """Start a command; all that it started is gone when the test is over."""
    begun = []

    def do(*arguments, at: Moment | None = None, code: str | None = None, **environment) -> Command:
        begun.append(Command(list(arguments), tmp_path / "commands", environment, at, code))
        return begun[-1]

    yield do
    for command in begun:
        command.clear()


def delay(seed: int, longest: float) -> float:
    """Seconds; shown where the test fails."""
    seconds = random.Random(seed).uniform(0, longest)
    print(f"seed {seed}: {seconds:.4f} s after the moment")
    return seconds


# --- training, checkpoints, records ----------------------------------------------------------------


def training(method: str, out: Path) -> list:
    settings = {
        "train.max_steps": STEPS,
        "train.save_every": SAVE_EVERY,
        "evaluation.new_tokens": 0,
        "runtime.meter_tensors": "false",
        "runtime.fast": "false" if method == "lora" else "true",  # both stacks; the stock one starts sooner
    }
    assignments = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    return ["train", "--profile", "smoke", "--method", method, *assignments, "--out", out]


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory, tiny_model):
    """The folder of a run of this method that nobody killed."""
    runs = {}

    def of(method: str) -> Path:
        if method not in runs:
            folder = tmp_path_factory.mktemp(f"uninterrupted-{method}")
            Command(training(method, folder / "run"), folder / "commands", {}).ends_well()
            runs[method] = folder / "run"
        return runs[method]

    return of


def steps_said(command: Command) -> list[int]:
    return [int(step) for step in re.findall(r"^  step (\d+)/", command.said, re.MULTILINE)]


def same_run(out: Path, reference: Path) -> None:
    """One whole record, with the numbers of the other run bit for bit, the same weights, and no file more or less."""
    ours, theirs = (read_record(folder / "record.json") for folder in (out, reference))
    assert list(out.parent.rglob("record.json")) == [out / "record.json"] and ours.status == "complete"
    for name in ("steps", "tokens", "loss", "eval_loss", "eval_steps", "learning_rate", "grad_norm"):
        assert getattr(ours.train, name) == getattr(theirs.train, name), name
    assert len(ours.train.loss) == STEPS and ours.perplexity == theirs.perplexity
    assert ours.files.keys() == theirs.files.keys() and all(sha256_of(out / name) == digest for name, digest in ours.files.items())
    (weights,) = (name for name in ours.files if name.endswith(".safetensors"))
    assert ours.files[weights] == theirs.files[weights]
    assert listing(out) == listing(reference)
    with claimed(out):  # nobody's
        pass


def goes_on(start, arguments: list, killed: Command, out: Path, reference: Path, repeated: int = SAVE_EVERY) -> None:
    """The same command again ends the run, and trains at most `repeated` steps again."""
    before = max(steps_said(killed), default=0)
    command = start(*arguments).ends_well()
    same_run(out, reference)
    resumed = read_record(out / "record.json").train.resumed_from_step or 0
    again = steps_said(command)
    assert before - resumed <= repeated, f"step {before} was done, gone on after {resumed}:\n{command.said}"
    assert again == list(range(resumed + 1, STEPS + 1))


@pytest.mark.promise("killed-training")
@pytest.mark.parametrize(
    ("method", "which", "seed"),
    [
        ("lora", ALL, 1),
        pytest.param("lora", ARM, 2, marks=slow),
        pytest.param("lora", FIRST, 3, marks=slow),
        pytest.param("qlora", ALL, 4, marks=slow),
        pytest.param("full", ALL, 5, marks=slow),
    ],
)
def test_a_killed_training_repeats_at_most_one_interval(start, tmp_path, uninterrupted, method, which, seed):
    out = tmp_path / "run"
    step = random.Random(seed).randint(1, STEPS - 2)
    run = start(*training(method, out))
    run.until(lambda: step in steps_said(run), delay(seed, 0.05))
    if which == ALL:
        run.kill_all()
    elif which == FIRST:  # the arm notices, ends its step and writes a checkpoint
        run.kill_first()
        run.none_left()
    else:
        (arm,) = run.started()
        arm.kill()
        assert run.process.wait(60) == 1 and "error: arm 'lora': the system ended it" in run.said
    goes_on(start, training(method, out), run, out, uninterrupted(method), 0 if which == FIRST else SAVE_EVERY)


@pytest.mark.promise("killed-checkpoint")
@slow
@pytest.mark.parametrize(
    "at",
    [
        Moment("open", r"checkpoint-6/trainer_state\.json"),
        Moment("open", r"checkpoint-3/\.complete\.json"),
        Moment("shutil.rmtree", r"checkpoint-3$"),  # the oldest of three makes room
        6,
    ],
    ids=["before the state", "before the first marker", "before the oldest goes", "at random"],
)
def test_a_run_killed_while_it_writes_a_checkpoint_goes_on_from_the_one_before(start, tmp_path, uninterrupted, at):
    out = tmp_path / "run"
    if isinstance(at, Moment):
        run = start(*training("lora", out), at=at)
        run.killed()
        run.none_left()
    else:
        run = start(*training("lora", out))
        run.until((out / "checkpoints" / f"checkpoint-{at}").is_dir, delay(at, 0.01))
        run.kill_all()
    goes_on(start, training("lora", out), run, out, uninterrupted("lora"))


@pytest.mark.promise("killed-checkpoint")
@slow
def test_a_checkpoint_that_is_written_again_after_a_kill_is_whole(start, tmp_path, uninterrupted, record_property):
    """What the first kill left in its folder must not make the second one's files differ from their marker."""
    record_property("caused", 2)
    out = tmp_path / "run"
    for at in (Moment("os.rename", r"checkpoint-6/complete\.json$"), Moment("open", r"checkpoint-9/trainer_state\.json")):
        run = start(*training("lora", out), at=at)
        run.killed()
        run.none_left()
    goes_on(start, training("lora", out), run, out, uninterrupted("lora"))


@pytest.mark.promise("killed-checkpoint")
@slow
@pytest.mark.parametrize(
    ("at", "others"),
    [
        (Moment("open", r"run/checkpoints/key$"), False),
        (Moment("shutil.rmtree", r"run/checkpoints/checkpoint-9$"), True),
        (Moment("os.remove", r"run/record\.json$"), True),
    ],
    ids=["in a new folder", "in a checkpoint", "before the record"],
)
def test_a_run_killed_while_it_makes_its_folder_ready_starts_from_the_beginning(start, tmp_path, uninterrupted, at, others):
    """`others`: the folder holds the record and a checkpoint of a run with other settings."""
    out = tmp_path / "run"
    if others:
        shutil.copytree(uninterrupted("lora"), out)
        record = read_record(out / "record.json")
        record.provenance.cache_key = "other settings"
        record.write(out)
        (out / "checkpoints" / "checkpoint-9").mkdir(parents=True)
        (out / "checkpoints" / "key").write_text("other settings")
        seal(out / "checkpoints" / "checkpoint-9", {})
    run = start(*training("lora", out), at=at)
    run.killed()
    goes_on(start, training("lora", out), run, out, uninterrupted("lora"), 0)


@pytest.mark.promise("killed-record")
@pytest.mark.parametrize(
    ("at", "written"),
    [
        (Moment("shutil.rmtree", r"run/checkpoints$"), True),
        pytest.param(Moment("open", r"run/adapter/adapter_config\.json"), False, marks=slow),
        pytest.param(Moment("open", r"run/\.record\.json"), False, marks=slow),
        pytest.param(Moment("os.rename", r"run/record\.json$"), False, marks=slow),
    ],
    ids=["after the record", "in the adapter", "before the record", "before the record's name"],
)
def test_a_record_is_whole_or_absent_and_never_twice(start, tmp_path, uninterrupted, at, written):
    out = tmp_path / "run"
    run = start(*training("lora", out), at=at)
    run.killed()
    run.none_left()
    assert (out / "record.json").is_file() == written
    if not written:
        goes_on(start, training("lora", out), run, out, uninterrupted("lora"))
        return
    record = (out / "record.json").read_bytes()
    again = start(*training("lora", out)).ends_well()
    assert steps_said(again) == [] and (out / "record.json").read_bytes() == record
    same_run(out, uninterrupted("lora"))


@pytest.mark.promise("killed-record")
@slow
def test_a_killed_sweep_keeps_the_arms_it_has_and_makes_none_twice(start, tmp_path, tiny_model):
    values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())
    values["arms"] = [{"name": name, "label": name, "method": "lora", "set": {"seed": i}} for i, name in enumerate(("one", "two"))]
    values["train"] |= {"max_steps": STEPS, "save_every": SAVE_EVERY}
    values["evaluation"]["new_tokens"] = 0
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(values))
    results = tmp_path / "results"
    arguments = ["sweep", "--profile", tmp_path / "sweep.yaml"]
    run = start(*arguments, at=Moment("os.rename", r"two/record\.json$"), QLORA_RESULTS=str(results))
    run.killed()
    run.none_left()
    first = (results / "sweep" / "one" / "record.json").read_bytes()
    again = start(*arguments, QLORA_RESULTS=str(results)).ends_well()
    assert "1 arms run, 1 taken from the cache" in again.stdout.read_text() and steps_said(again) == [10, 11, 12]
    assert (results / "sweep" / "one" / "record.json").read_bytes() == first
    one, two = (listing(results / "sweep" / name) for name in ("one", "two"))
    assert one == two and [read_record(p).arm for p in sorted(results.rglob("record.json"))] == ["one", "two"]


# --- downloads -------------------------------------------------------------------------------------

FETCH = """
import sys
from qlora_lib.assets import registry
from qlora_lib.cli import main
registry.DATA["some-text"] = registry.DataSpec(
    "some-text", registry.Artefact("fakepkg==1.0", sys.argv.pop(1), {member!r}, {sha!r}, {size}), {{"all": "some.txt"}}, "CC0", "nobody")
main()
""".format(member=MEMBER, sha=sha(TEXT.encode()), size=len(TEXT.encode()))  # fmt: skip


class Index(ThreadingHTTPServer):
    """A page of links to one wheel, of which the first to ask gets the half and then nothing, for as long as `stalls`."""

    daemon_threads = True

    def __init__(self, wheel: bytes, stalls: bool):
        self.wheel, self.stalls, self.half, self.end = wheel, stalls, threading.Event(), threading.Event()
        super().__init__(("127.0.0.1", 0), _Serve)


class _Serve(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        server, name = self.server, "fakepkg-1.0-py3-none-any.whl"
        data = server.wheel if self.path.endswith(".whl") else f'<!DOCTYPE html><a href="/{name}">{name}</a>'.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if data is server.wheel else "text/html")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if data is server.wheel and server.stalls and not server.half.is_set():
            self.wfile.write(data[: len(data) // 2])
            self.wfile.flush()
            server.half.set()
            server.end.wait(60)
            return
        self.wfile.write(data)


@pytest.fixture
def index(tmp_path):
    begun = []

    def serve(stalls: bool) -> Index:
        noise = random.Random(0).randbytes(300_000)  # so that half of it is more than the headers
        begun.append(server := Index(make_wheel(tmp_path / "wheel", {MEMBER: TEXT.encode(), "fakepkg/noise": noise}), stalls))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return server

    yield serve
    for server in begun:
        server.end.set()
        server.shutdown()
        server.server_close()


@pytest.mark.promise("killed-download")
@pytest.mark.parametrize(
    ("at", "which"),
    [
        (Moment("shutil.rmtree", r"data/\.some-text\.part$", nth=2), ALL),  # the file is in its place, the download beside it
        pytest.param(1, ALL, marks=slow),
        pytest.param(2, FIRST, marks=slow),
        pytest.param(Moment("open", r"entry/some\.txt$"), ALL, marks=slow),
        pytest.param(Moment("os.rename", r"data/some-text$"), ALL, marks=slow),
    ],
    ids=["after it", "at half of it", "at half of it, pip not", "while unpacking", "before its name"],
)
def test_a_killed_download_is_whole_or_absent(start, tmp_path, index, at, which):
    cache, server = tmp_path / "cache", index(stalls=isinstance(at, int))
    environment = {
        "QLORA_CACHE": str(cache), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_CACHE_DIR": "1", "NO_PROXY": "127.0.0.1",
        "PIP_FIND_LINKS": f"http://127.0.0.1:{server.server_port}/",
    }  # fmt: skip
    arguments = [sha(server.wheel), "fetch", "some-text"]
    if isinstance(at, int):
        run = start(*arguments, code=FETCH, **environment)
        run.until(server.half.is_set, delay(at, 0.3))
        run.kill_all() if which == ALL else run.kill_first()
    else:
        run = start(*arguments, code=FETCH, at=at, **environment)
        run.killed()
    entry = cache / "data" / "some-text"
    assert not entry.exists() or (entry / "some.txt").read_text() == TEXT
    start(*arguments, code=FETCH, **environment).ends_well()
    run.none_left()
    assert listing(cache) == ["data", "data/some-text", "data/some-text/manifest.json", "data/some-text/some.txt"]
    assert (entry / "some.txt").read_text() == TEXT
    noted = json.loads((entry / "manifest.json").read_text())["files"]["some.txt"]
    assert noted["sha256"] == sha(TEXT.encode()) and noted["size"] == len(TEXT.encode())


# --- conversion, merging, export ---------------------------------------------------------------------


@pytest.mark.promise("killed-conversion")
@pytest.mark.parametrize(
    "at", [Moment("os.rename", r"/made/tiny\.gguf$"), pytest.param(6, marks=slow)], ids=["before its name", "at random"]
)
def test_a_killed_export_is_whole_or_absent(start, tmp_path, tiny_model, at):
    from qlora_lib.export.gguf_file import export_gguf

    made = tmp_path / "made" / "tiny.gguf"
    arguments = ["export", "--model", "tiny-random", "--out", made]
    if isinstance(at, Moment):
        run = start(*arguments, at=at)
        run.killed()
    else:
        run = start(*arguments)
        run.until(lambda: list(made.parent.glob(".tiny.gguf.*")) or made.exists(), delay(at, 0.02))
        run.kill_all()
    if not made.exists():
        start(*arguments).ends_well()
    assert listing(made.parent) == [made.name]
    assert made.read_bytes() == export_gguf(tiny_model, tmp_path / "reference.gguf", name="tiny-random").path.read_bytes()


@pytest.mark.promise("killed-conversion")
@slow
@pytest.mark.parametrize(
    "at", [7, Moment("open", r"entry/\.manifest\.json"), Moment("os.rename", r"models/gguf-\w+$")],
    ids=["at random", "before the manifest", "before its name"],
)  # fmt: skip
def test_a_killed_conversion_is_whole_or_absent(start, tmp_path, tiny_model, at):
    from qlora_lib.assets import resolve_model

    def whole(entry: Path) -> None:
        noted = json.loads((entry / "manifest.json").read_text())["files"]
        assert listing(entry) == sorted(["manifest.json", *noted])
        assert all(sha256_of(entry / name) == note["sha256"] for name, note in noted.items())

    cache, gguf = tmp_path / "cache", tmp_path / "little.gguf"
    write_gguf(gguf, resolve_model("tiny-random"))
    if isinstance(at, int):
        run = start("fetch", gguf, QLORA_CACHE=str(cache))
        run.until(lambda: list(cache.glob("models/.gguf-*.part/entry/*")), delay(at, 0.03))  # its first file is there
        run.kill_all()
    else:
        run = start("fetch", gguf, QLORA_CACHE=str(cache), at=at)
        run.killed()
    for entry in cache.glob("models/gguf-*"):
        whole(entry)
    start("fetch", gguf, QLORA_CACHE=str(cache)).ends_well()
    (entry,) = cache.glob("models/gguf-*")
    assert [name for name in listing(cache / "models") if "/" not in name] == [entry.name]
    whole(entry)
    theirs, ours = (load_file(tiny_model / "model.safetensors"), load_file(entry / "model.safetensors"))
    assert ours.keys() == theirs.keys() and all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.promise("killed-conversion")
@slow
def test_a_run_killed_while_it_writes_quantized_weights_leaves_no_copy_of_them(start, tmp_path, tiny_model):
    out = tmp_path / "run"
    arguments = ["train", "--profile", "smoke", "--arm", "base-nf4dq", "--set", "evaluation.new_tokens=0", "--out", out]
    run = start(*arguments, at=Moment("open", r"run/\.scratch-[^/]*/config\.json"))
    run.killed()
    run.none_left()
    assert list(out.glob(".scratch-*"))
    start(*arguments).ends_well()
    assert listing(out) == ["record.json"] and read_record(out / "record.json").size_bytes.on_disk > 0


@pytest.fixture(scope="session")
def merged_by_nobody_killed(tmp_path_factory, uninterrupted):
    folder = tmp_path_factory.mktemp("merged")
    Command(
        ["merge", "--adapter", uninterrupted("lora") / "adapter", "--out", folder / "reference" / "merged"], folder, {}
    ).ends_well()
    return folder / "reference"


@pytest.mark.promise("killed-conversion")
@slow
@pytest.mark.parametrize(
    "at",
    [Moment("open", r"\.part/\.README\.md"), Moment("os.rename", r"\.part -> .*/merged$")],
    ids=["in the new one", "between old and new"],
)
def test_a_killed_merge_leaves_no_half_written_model(start, tmp_path, uninterrupted, merged_by_nobody_killed, at):
    merged, adapter = tmp_path / "made" / "merged", uninterrupted("lora") / "adapter"
    arguments = ["merge", "--adapter", adapter, "--force", "--out", merged]
    shutil.copytree(merged_by_nobody_killed / "merged", merged)  # which the merge is to replace
    (merged / "notes.txt").write_text("of the old one")
    run = start(*arguments, at=at)
    run.killed()
    if not merged.exists():  # a merge that is refused puts the old one back
        assert start(*(word for word in arguments if word != "--force")).process.wait(60) == 2
    assert (merged / "notes.txt").exists()
    start(*arguments).ends_well()
    assert listing(merged.parent) == listing(merged_by_nobody_killed)
    assert (merged / "model.safetensors").read_bytes() == (merged_by_nobody_killed / "merged" / "model.safetensors").read_bytes()


def test_only_what_killed_processes_of_this_machine_left_is_removed(tmp_path):
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    here, page = platform.node(), tmp_path / "page.html"
    left = [f".page.html.{gone.pid}@{here}.part", f".page.html.{os.getppid()}@{here}.part", f".page.html.{gone.pid}@another-machine.part",
            f".other.html.{gone.pid}@{here}.part"]  # fmt: skip
    for name in left:
        (tmp_path / name).write_text("half")
    write_atomic(page, "whole")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["page.html", *left[1:]]) and page.read_text() == "whole"


# --- notebooks and pages ---------------------------------------------------------------------------


@pytest.fixture
def checkout(tmp_path):
    """A copy of the code and of what pages are made from, so that pages are made there."""
    folder = tmp_path / "checkout"
    shutil.copytree(ROOT / "qlora_lib", folder / "qlora_lib")
    own = shutil.ignore_patterns("*.pdf", "demo", "smoke")
    shutil.copytree(ROOT / "report", folder / "report", ignore=own)
    (folder / "notebooks").mkdir()
    return folder


def lesson(path: Path, ran: Path, seconds: float) -> None:
    """A notebook of a few cells that takes so long, and says in `ran` when it begins and ends."""
    import nbformat.v4 as v4

    tell = f"with open({str(ran)!r}, 'a') as f: f.write"
    cells = [
        v4.new_code_cell("profile, records = 'demo', 'auto'", metadata={"tags": ["parameters"]}),
        v4.new_code_cell(f"{tell}('{path.stem} begins\\n')"),
        v4.new_code_cell(f"import time\nfor i in range(50):\n    print(i)\n    time.sleep({seconds / 50})"),
        v4.new_code_cell(f"{tell}('{path.stem} ends\\n')"),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    path.write_text(v4.writes(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})))


@pytest.fixture
def two_lessons(tmp_path, checkout, tiny_model):
    """(arguments, environment, where the lessons say what they do) of a command that executes two short lessons on one record."""
    from qlora_lib.study import arm_key

    values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text()) | {
        "arms": [{"name": "base", "label": "Base", "method": "base"}]
    }
    (tmp_path / "lessons.yaml").write_text(yaml.safe_dump(values))
    profile = load_profile(str(tmp_path / "lessons.yaml"))
    (arm,), record = profile.arms, example_records("smoke")["base"]
    record.profile, record.label, record.settings = (profile.name, arm.label, profile.settings(arm).model_dump(exclude={"seed"}))
    record.provenance.cache_key = arm_key(profile, arm, profile.settings(arm), None)
    record.write(tmp_path / "results" / profile.name / "base")
    for name, seconds in (("00_first", 0), ("01_second", 1)):
        lesson(checkout / "notebooks" / f"{name}.ipynb", tmp_path / "ran", seconds)
    environment = {
        "PYTHONPATH": str(checkout),
        "QLORA_RESULTS": str(tmp_path / "results"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "jupyter"),
    }
    return (["run", "--profile", tmp_path / "lessons.yaml"], environment, tmp_path / "ran")


def lessons_go_on(start, arguments: list, environment: dict, ran: Path, checkout: Path, killed: Command) -> None:
    """The same command again executes the second lesson alone, all of it, and both have whole pages."""
    (record,) = Path(environment["QLORA_RESULTS"]).glob("lessons/*/record.json")
    kept = record.read_bytes()
    killed.none_left()
    again = start(*arguments, **environment).ends_well()
    assert "notebook 00_first: up to date" in again.said and "taken from the cache" in again.said and record.read_bytes() == kept
    told = ran.read_text().splitlines()
    assert told.count("00_first begins") == told.count("00_first ends") == 1 and told[-2:] == ["01_second begins", "01_second ends"]
    pages = checkout / "report" / "lessons" / "notebooks"
    assert listing(pages) == sorted(
        f"{name}{end}" for name in ("00_first", "01_second") for end in (".html", ".ipynb", ".log", ".stamp.json")
    )
    for page in pages.glob("*.html"):
        assert page.read_text().rstrip().endswith("</html>")
    cells = json.loads((pages / "01_second.ipynb").read_text())["cells"]
    assert "".join(cells[3]["outputs"][0]["text"]).split() == [str(i) for i in range(50)]  # cell 1 holds the injected parameters


@pytest.mark.promise("killed-notebook")
@pytest.mark.parametrize(
    ("at", "which"),
    [(8, ALL), pytest.param(9, FIRST, marks=slow), pytest.param(Moment("os.rename", r"01_second\.ipynb$"), FIRST, marks=slow)],
    ids=["in a cell", "in a cell, its kernel not", "before its name"],
)
def test_a_notebook_that_was_killed_runs_again_and_no_other(start, two_lessons, checkout, at, which):
    arguments, environment, ran = two_lessons
    if isinstance(at, int):
        run = start(*arguments, **environment)
        run.until(lambda: ran.is_file() and "01_second begins" in ran.read_text(), delay(at, 0.9))
        assert run.started()  # its kernel
        run.kill_all() if which == ALL else run.kill_first()
    else:
        run = start(*arguments, at=at, **environment)
        run.killed()
    lessons_go_on(start, *two_lessons, checkout, run)


@pytest.mark.promise("killed-pages")
@pytest.mark.parametrize(
    "at",
    [Moment("os.rename", r"01_second\.html$"), pytest.param(Moment("os.rename", r"01_second\.stamp\.json$"), marks=slow)],
    ids=["before its name", "before its stamp"],
)
def test_a_notebooks_page_is_made_again(start, two_lessons, checkout, at):
    arguments, environment, _ = two_lessons
    run = start(*arguments, at=at, **environment)
    run.killed()
    lessons_go_on(start, *two_lessons, checkout, run)


OLD = b"a page of an earlier run"


@pytest.mark.promise("killed-pages")
@slow
@pytest.mark.parametrize(
    "at",
    [Moment("os.rename", r"figures/smoke/.*\.svg$", nth=3), Moment("os.rename", r"report/smoke\.pdf$"), 10],
    ids=["before a figure's name", "before the PDF's name", "at random"],
)
def test_each_page_is_the_old_or_the_new_one(start, tmp_path, checkout, at):
    profile, records = load_profile("smoke"), checkout / "report" / "records" / "smoke"
    examples = example_records("smoke")
    records.mkdir()
    for arm in (a for a in profile.arms if a.name in examples):
        examples[arm.name].settings = profile.settings(arm).model_dump(exclude={"seed"})
        (records / f"{arm.name}.json").write_text(examples[arm.name].to_json())
    kept = {p.name: p.read_bytes() for p in records.iterdir()}
    figures, pdf = checkout / "figures" / "smoke", checkout / "report" / "smoke.pdf"
    figures.mkdir(parents=True)
    for page in (pdf, figures / "loss-curves.svg", figures / "loss-curves.pdf", figures / "figure-1-comparison.svg"):
        page.write_bytes(OLD)
    arguments, environment = (["report", "--profile", "smoke", "--committed", "--no-notebooks"], {"PYTHONPATH": str(checkout)})

    def pages() -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in (pdf, *figures.rglob("*.*")) if not p.name.endswith(".part")}

    if isinstance(at, int):
        run = start(*arguments, **environment)
        run.until(lambda: len(list(figures.glob("*.svg"))) > 2, delay(at, 1.0))
        run.kill_all()
    else:
        run = start(*arguments, at=at, **environment)
        run.killed()
    after_kill = pages()
    start(*arguments, **environment).ends_well()
    new = pages()
    assert OLD not in new.values() and new["smoke.pdf"].startswith(b"%PDF-") and b"%%EOF" in new["smoke.pdf"][-10:]
    for name, data in after_kill.items():
        assert data in (OLD, new[name]), f"{name} is neither the old nor the new one"
    assert after_kill != new
    assert all(data.rstrip().endswith(b"</svg>") for name, data in new.items() if name.endswith(".svg"))
    assert not list(checkout.rglob("*.part")) and {p.name: p.read_bytes() for p in records.iterdir()} == kept
