"""The command line as people use and misuse it: exit codes, one line an error, one JSON document."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from qlora_lib.claimed import claimed
from qlora_lib.cli import main
from qlora_lib.errors import QloraError, UsageError, nearest

PACKAGE = Path(__file__).resolve().parent.parent / "qlora_lib"
TEXT = "The small model keeps a quantized weight matrix and trains a low-rank adapter.\n" * 60


@pytest.fixture
def call(capfd, monkeypatch):
    """Run `qlora ...` in this process: (exit code, standard output, standard error)."""

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["qlora", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        out, err = capfd.readouterr()
        return e.value.code, out, err

    return call


@pytest.fixture
def refused(call):
    """The one line that `qlora ...` is refused with, after its exit code."""

    def refused(code: int, *words: str) -> str:
        got, out, err = call(*words)
        (line,) = err.splitlines()
        assert (got, out) == (code, "") and line.startswith("error: "), (got, out, err)
        return line

    return refused


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "my text.txt"
    path.write_text(TEXT)
    return path


def qlora(*words, **kwargs) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "qlora_lib", *map(str, words)], capture_output=True, text=True, **kwargs)


# --- what can be asked ---------------------------------------------------------------------------


def test_help_loads_nothing_heavy():
    probe = (
        "import sys; sys.argv = ['qlora', '--help']\nfrom qlora_lib.cli import main\n"
        "try: main()\nexcept SystemExit as e: code = e.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'matplotlib', 'pydantic', 'yaml', 'psutil', 'tqdm', 'importlib.metadata'}\n"
        "heavy &= set(sys.modules)\n"
        "print(sorted(heavy), code, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert run.stderr.strip() == "[] 0"
    assert "qlora report --profile demo" in run.stdout


COMMANDS = ["doctor", "profiles", "fetch", "train", "eval", "generate", "search", "run", "report", "course", "bench", "sweep", "check"]


def test_every_command_is_listed_and_has_an_example(call):
    code, out, _ = call("--help")
    assert code == 0 and all(re.search(rf"^  {name}\b", out, re.M) for name in COMMANDS)
    assert call()[:2] == (0, out)  # `qlora` alone explains itself
    for name in COMMANDS:
        code, out, _ = call(name, "--help")
        assert code == 0 and f"qlora {name}" in out.split("Example")[1], name


def test_the_version(call):
    code, out, _ = call("--version")
    assert code == 0 and re.fullmatch(r"qlora, version \S+\n", out)


def test_profiles_say_what_they_need_and_whether_they_fit(call):
    code, out, _ = call("profiles", "--json")
    rows = {row["name"]: row for row in json.loads(out)["profiles"]}
    assert code == 0 and list(rows)[:2] == ["demo", "smoke"]
    t4 = rows["t4-tinyllama-wikitext2"]
    assert "full-as-published" in t4["declared_only"] and "full-as-published" not in t4["arms"]
    assert all(row["why"] and row["needs"]["memory_gib"] > 0 and isinstance(row["fits_here"], bool) for row in rows.values())
    code, text, _ = call("profiles")
    assert code == 0 and all(name in text for name in rows)


# --- bad usage -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words, said",
    [
        (["trian"], "no command 'trian'. Did you mean 'train'?"),
        (["zzz"], "Choose from: doctor"),
        (["profiles", "--jsno"], "--json"),
        (["profiles", "extra"], "unexpected extra argument"),
        (["train", "--method", "qlora"], "Missing option '--out'"),
        (["train", "--out", "{tmp}/x"], "give either --method or --arm"),
        (["train", "--method", "lora", "--arm", "lora", "--out", "{tmp}/x"], "give either --method or --arm"),
        (["train", "--method", "qlroa", "--out", "{tmp}/x"], "'qlora'"),
        (["train", "--profile", "smok", "--method", "lora", "--out", "{tmp}/x"], "Did you mean 'smoke'?"),
        (["train", "--profile", "smoke", "--arm", "qlroa", "--out", "{tmp}/x"], "Did you mean 'qlora'?"),
        (["train", "--profile", "smoke", "--method", "lora", "--out", "{tmp}/x", "--set", "train.max_step=3"], "Did you mean 'train.max_steps'?"),
        (["train", "--profile", "smoke", "--method", "lora", "--out", "{tmp}/x", "--set", "train.max_steps=x"], "'train.max_steps'"),
        (["train", "--profile", "smoke", "--method", "lora", "--out", "{tmp}/x", "--set", "data.name={tmp}/none.txt"], "no data set or file"),
        (["train", "--profile", "smoke", "--method", "lora", "--out", "{tmp}/file"], "is a file"),
        (["eval", "--model", "tiny-random", "--data", "{tmp}/none.txt"], "no data set or file"),
        (["eval", "--model", "tiny-random", "--data", ""], "no data set or file ''"),
        (["eval", "--model", "tiny-randm", "--data", "tiny-text"], "Did you mean 'tiny-random'?"),
        (["eval", "--model", "./none", "--data", "tiny-text"], "there is no file or folder ./none"),
        (["eval", "--model", "tiny-random", "--data", "tiny-text", "--stride", "9", "--context", "8"], "stride 9 exceeds context 8"),
        (["eval", "--model", "tiny-random", "--windows", "0"], "--windows"),
        (["eval", "--model", "tiny-random", "--task", "sst3"], "--task"),
        (["eval", "--data", "tiny-text"], "Missing option '--model'"),
        (["generate", "--model", "tiny-random", "--prompt", " "], "the prompt is empty"),
        (["generate", "--model", "tiny-random", "--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens"),
        (["fetch"], "name a profile or an asset"),
        (["fetch", "tiny-randm"], "Did you mean 'tiny-random'?"),
        (["search", "--profile", "smoke"], "names no learning rates to search"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(refused, tmp_path, words, said):
    (tmp_path / "file").touch()
    assert said in refused(2, *(w.replace("{tmp}", str(tmp_path)) for w in words))
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content, said", [(b"\x00\x01", "is a binary file"), (b"\xff\xfe", "not UTF-8"), (b"", "holds no text")])
def test_a_file_that_is_no_text_is_one_line_and_exit_1(refused, tmp_path, content, said):
    (tmp_path / "a.txt").write_bytes(content)
    assert said in refused(1, "eval", "--model", "tiny-random", "--data", tmp_path / "a.txt")
    assert said in refused(1, "train", "--profile", "smoke", "--method", "lora", "--set", f"data.name={tmp_path}/a.txt", "--out", tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.promise("read-only")
def test_a_place_that_cannot_be_written_is_one_line(refused, tmp_path, tiny_model):
    (tmp_path / "file").touch()
    line = refused(1, "train", "--profile", "smoke", "--method", "lora", "--out", tmp_path / "file" / "run")
    assert "cannot write to" in line and "--out" in line


@pytest.mark.parametrize("name", ["model/weights", "adapter/weights", "checkpoints/weights"])
def test_a_run_never_replaces_files_that_no_run_wrote(refused, tmp_path, tiny_model, name):
    kept = tmp_path / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text("precious")
    line = refused(2, "train", "--profile", "smoke", "--method", "full", "--out", tmp_path)
    assert f"holds '{name.split('/')[0]}', which no run" in line and kept.read_text() == "precious"


def test_a_folder_that_is_no_adapter(call, tmp_path, tiny_model):
    code, out, err = call("eval", "--model", "tiny-random", "--data", "tiny-text", "--adapter", tmp_path)
    assert (code, out) == (2, "") and "is no adapter: adapter_config.json is missing" in err.splitlines()[-1]


@pytest.mark.parametrize(
    "error, code, said",
    [
        (QloraError("it broke", "Mend it"), 1, "error: it broke. Mend it"),
        (UsageError("it was\nasked wrongly"), 2, "error: it was asked wrongly"),
        (KeyboardInterrupt(), 130, "error: interrupted; what was finished is kept"),
        (MemoryError(), 1, "error: out of memory."),
        (OSError(28, "No space left on device", "/a/file"), 1, "error: the disk that holds /a is full ("),
        (PermissionError(13, "Permission denied", "/a/file"), 1, "error: cannot read or write /a/file: Permission denied. Give"),
        (torch.OutOfMemoryError("CUDA out of memory."), 1, "error: out of memory. Use a smaller batch"),
        (RuntimeError("nobody\nforesaw this"), 1, "error: RuntimeError: nobody foresaw this."),
    ],
)
def test_whatever_goes_wrong_is_one_line_and_a_traceback_only_on_demand(call, monkeypatch, error, code, said):
    def fail():
        raise error

    monkeypatch.setattr("qlora_lib.config.profile_names", fail)
    got, out, err = call("profiles")
    (line,) = err.strip().splitlines()  # click writes an empty line for an interrupt
    assert (got, out) == (code, "") and line.startswith(said)
    for words in (["--debug", "profiles"], ["profiles", "--debug"]):
        got, out, err = call(*words)
        assert (got, out) == (code, "") and "Traceback" in err and err.splitlines()[-1].startswith(said)


def test_the_nearest_name_is_told_or_all_of_them():
    assert nearest("qlroa", ["lora", "qlora"]) == "Did you mean 'qlora'?"
    assert nearest("zzz", ["lora", "qlora"]) == "Choose from: lora, qlora"
    assert "\n" not in str(QloraError("one\ntwo", "three\nfour"))


# --- work ----------------------------------------------------------------------------------------


def test_fetch_brings_a_profile_with_data_of_ones_own(call, tmp_path, text_file, tiny_model):
    smoke = (PACKAGE / "profiles" / "smoke.yaml").read_text()
    (tmp_path / "mine.yaml").write_text(smoke.replace("name: tiny-text", f"name: {json.dumps(str(text_file))}"))
    code, out, _ = call("fetch", "--profile", tmp_path / "mine.yaml", "--json")
    assert code == 0 and [a["name"] for a in json.loads(out)["assets"]] == ["tiny-random"]


def test_eval_of_a_local_file_prints_its_protocol(call, text_file, tiny_model):
    words = ["eval", "--model", "tiny-random", "--task", "perplexity", "--data", text_file, "--context", "64"]
    code, out, err = call(*words)
    assert code == 0 and "disjoint windows of 64 tokens, no BOS" in out and str(text_file) in out
    shown = float(re.search(r"perplexity ([\d.]+)", out)[1])
    code, out, err = call(*words, "--json", "--batch-size", "3")
    result = json.loads(out)
    assert code == 0 and result["perplexity"] == pytest.approx(shown, rel=1e-3)
    windows = -(-len(TEXT) // 64)  # a byte is a token; the first of each window is not scored
    assert result["n"] == len(TEXT) - windows
    low, high = result["confidence_interval"]
    assert low < result["perplexity"] < high
    assert {"task", "model", "adapter", "data", "protocol"} <= set(result) and result["adapter"] is None
    assert "Traceback" not in err


def test_eval_of_registered_data_takes_the_test_split_and_few_windows(call, tiny_model):
    code, out, _ = call("eval", "--model", tiny_model, "--data", "tiny-text", "--context", "64", "--windows", "1",
                        "--quantization", "nf4", "--json")  # fmt: skip
    result = json.loads(out)
    assert code == 0 and (result["n"], result["confidence_interval"], result["quantization"]) == (63, None, "nf4+dq")
    assert result["data"] == "tiny-text, test split"


def test_generate_streams_the_same_text_each_time(call, tiny_model):
    words = ["generate", "--model", "tiny-random", "--prompt", "The model", "--max-new-tokens", "12"]
    code, text, _ = call(*words)
    assert code == 0 and len(text) > 1
    assert call(*words)[1] == text
    code, out, _ = call(*words, "--json")
    assert code == 0 and json.loads(out)["text"] == text[:-1]
    warm = [*words, "--temperature", "2", "--seed"]
    assert call(*warm, "1")[1] == call(*warm, "1")[1] != call(*warm, "2")[1]
    assert call(*words, "--chat")[0] == 0


def test_a_prompt_from_standard_input(tiny_model):
    run = qlora("generate", "--model", "tiny-random", "--prompt", "-", "--max-new-tokens", "2", "--json", input="From a pipe",
                env=os.environ | {"PYTHONIOENCODING": "ascii"})  # fmt: skip
    assert run.returncode == 0 and json.loads(run.stdout)["prompt"] == "From a pipe"


def train(text_file, out, *more):
    return ["train", "--profile", "smoke", "--method", "qlora", "--set", f"data.name={text_file}", "--set", "train.max_steps=3",
            "--set", "evaluation.context=32", "--set", "evaluation.stride=32", "--out", out, *more]  # fmt: skip


SECRETS = dict.fromkeys(("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY"), "hf_tHiSiSaSeCrEt0123456789")


def test_train_on_a_local_file_then_use_the_adapter(call, text_file, tmp_path, tiny_model, monkeypatch):
    out = tmp_path / "run"
    with monkeypatch.context() as here:
        for name, value in SECRETS.items():
            here.setenv(name, value)
        code, printed, err = call(*train(text_file, out, "--set", "train.save_every=1", "--json"))
    assert code == 0, err
    # Of the environment's secrets nothing stands in what is printed, the record, the adapter, or a checkpoint.
    written = [p.read_bytes() for p in out.rglob("*") if p.is_file()]
    assert len(written) > 3 and not any(secret.encode() in data for secret in SECRETS.values() for data in (*written, (printed + err).encode()))
    record = json.loads(printed)
    assert record == json.loads((out / "record.json").read_text())
    assert record["data"]["name"] == "my text.txt" and record["data"]["source"] == "local file"
    assert record["train"]["steps"] == len(record["train"]["loss"]) == 3
    assert record["perplexity"]["after"] is not None and "Traceback" not in err
    assert {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"} <= set(record["files"])
    # Again, unchanged: taken from the folder.
    code, printed, err = call(*train(text_file, out, "--set", "train.save_every=1"))
    assert code == 0 and "taken from" in printed and "3 steps" in printed
    # The adapter is of use to the other commands.
    code, printed, _ = call("eval", "--model", "tiny-random", "--quantization", "nf4", "--adapter", out / "adapter", "--json",
                            "--data", text_file, "--context", "32")  # fmt: skip
    assert code == 0 and json.loads(printed)["adapter"] == str(out / "adapter")
    assert call("generate", "--model", "tiny-random", "--adapter", out / "adapter", "--prompt", "x", "--max-new-tokens", "2")[0] == 0


@pytest.mark.promise("asked-to-leave")
@pytest.mark.parametrize("number, code", [
    pytest.param(signal.SIGINT, 130, id="Ctrl-C"),
    pytest.param(signal.SIGTERM, 143, id="SIGTERM", marks=pytest.mark.only_in_make_faults),
    pytest.param(signal.SIGHUP, -1, id="a closed terminal", marks=pytest.mark.only_in_make_faults),
    pytest.param(signal.SIGKILL, -9, id="SIGKILL"),
])  # fmt: skip
def test_an_interrupted_training_leaves_a_checkpoint_no_process_and_no_traceback(text_file, tmp_path, tiny_model, number, code):
    out = tmp_path / "run"
    command = [sys.executable, "-m", "qlora_lib", *map(str, train(text_file, out, "--set", "train.max_steps=100000"))]

    def listens():  # a shell's background job, and one under nohup, is started deaf to them
        for deaf in (signal.SIGINT, signal.SIGHUP):
            signal.signal(deaf, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=listens
    ) as run:
        said = []
        for line in run.stderr:
            said.append(line)
            if "training" in line:
                break
        time.sleep(1)
        os.kill(run.pid, number)  # the arm's own process hears of it from this one, or finds it gone
        try:
            printed, err = run.communicate(timeout=60)  # until the arm, too, has closed standard error
        finally:
            run.kill()  # the arm leaves with it
    err = "".join(said) + err
    assert (run.returncode, printed) == (code, ""), err
    assert "Traceback" not in err and "left after step" in err
    assert (err.splitlines()[-1] == "error: interrupted; what was finished is kept") == (number == signal.SIGINT)
    assert not (out / "record.json").exists()
    (marker,) = out.glob("checkpoints/checkpoint-*/complete.json")
    with claimed(out):  # nobody has it any more
        assert f"left after step {marker.parent.name.split('-')[1]}:" in err


def test_output_to_a_closed_pipe_is_quiet():
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run([sys.executable, "-m", "qlora_lib", "profiles", "--json"], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (run.returncode, run.stderr) == (1, "")


def test_course_lists_lessons_and_hands_out_a_copy(call, refused, tmp_path):
    code, out, _ = call("course")
    assert code == 0 and re.search(r"^06  Inference.*notebooks/06_inference.ipynb", out, re.MULTILINE)
    code, out, _ = call("course", "--student", tmp_path / "copy", "--json")
    assert code == 0 and len(json.loads(out)["written"]) == len(json.loads(out)["lessons"]) + 1
    assert "is there already" in refused(2, "course", "--student", tmp_path / "copy")
