"""Two processes against one: the same losses, one record, and what happens where one of them is asked to leave or dies.

`together.py` makes all trainings of two processes in one start of them; the same are made here by one process.
"""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import tiny
import together
import torch
from safetensors.torch import load_file

from qlora_lib import children, cli, launched, models, processes, sharding, study
from qlora_lib.checkpoints import COMPLETE
from qlora_lib.config import Quantization, load_profile, parse_overrides
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.hardware import DType
from qlora_lib.job import Job
from qlora_lib.records import read_record
from qlora_lib.study import ArmFailed, run_arm

one_thread = tiny.one_thread
HERE = Path(__file__).parent
ACCELERATE = (sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")


def assert_same(two: dict, one: dict) -> None:
    """Per-step losses within 1e-5, and all that follows from them."""
    for exact in ("steps", "tokens", "eval_steps", "learning_rate", "response_tokens"):
        assert two[exact] == one[exact], exact
    assert len(one["loss"]) == one["steps"] >= 4
    for close in ("loss", "eval_loss", "grad_norm"):
        assert two[close] == pytest.approx(one[close], abs=1e-5), close
    assert set(two["weights"]) == set(one["weights"])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=0, atol=2e-5)


# --- the same training


@pytest.fixture(scope="module")
def pair(tmp_path_factory, tiny_model) -> tuple[dict, dict]:
    """What each of two processes saw."""
    out = tmp_path_factory.mktemp("pair")
    ranks = [{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", processes.STORE: str(out / "store")} for rank in (0, 1)]
    command = [sys.executable, str(HERE / "together.py"), str(out)]
    runs = [subprocess.Popen(command, env=os.environ | rank, stderr=subprocess.PIPE, text=True) for rank in ranks]
    try:
        said = [run.communicate(timeout=300)[1] for run in runs]
    finally:
        for run in runs:
            run.kill()
    assert [run.returncode for run in runs] == [0, 0], "".join(said)[-4000:]
    return tuple(torch.load(out / f"{rank}.pt", weights_only=False) for rank in (0, 1))


@pytest.mark.parametrize("case", together.TRAININGS)
def test_two_processes_train_as_one_does(pair, tmp_path, case):
    """At the same global batch, without dropout, with clipping at work and an uneven number of validation windows."""
    method, name, settings = together.TRAININGS[case]
    one = together.seen(*together.train(tmp_path, method, name, **together.STILL | settings))
    assert max(one["grad_norm"]) > together.STILL["train__max_grad_norm"]
    assert_same(pair[0][case], one)
    first, second = (seen[case]["weights"] for seen in pair)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert pair[0][case]["meter"] == f"{one['meter']}, the largest of 2"


def test_they_talk(pair):
    assert [seen["talk"] for seen in pair] == [(0, 5, ["a", "b"], "from 0"), (1, 5, ["a", "b"], "from 0")]
    assert sorted(seen["speaks"] for seen in pair) == [False, True]  # of those that fail together, one says so


def test_a_resumed_run_of_two_is_the_uninterrupted_one_bit_for_bit(pair):
    for seen in pair:
        found = seen["interrupted"]
        assert not found["same states"]  # each has dropout of its own
        resumed, whole = found["resumed"], found["whole"]
        assert (resumed.pop("resumed"), whole.pop("resumed")) == (4, None)
        assert all(torch.equal(p, whole["weights"][key]) for key, p in resumed.pop("weights").items())
        assert resumed == {key: value for key, value in whole.items() if key != "weights"}


def test_where_one_is_asked_to_leave_both_do_after_the_same_step(pair):
    assert [seen["left"] for seen in pair] == [(143, 2, ["rng_state_0.pth", "rng_state_1.pth"])] * 2


def test_a_bad_loss_of_one_stops_both(pair):
    for seen in pair:
        assert seen["poisoned"]["stopped"] == "loss was not a finite number at step 3" and len(seen["poisoned"]["loss"]) == 2
    assert pair[0]["poisoned"]["kept"] == "kept of the run that stopped: checkpoints/checkpoint-1"


def test_another_number_of_processes_than_was_asked_for_is_told(pair, tmp_path):
    for seen in pair:
        assert seen["other number"].startswith("runtime.processes is 3, and 2 train here. On a CPU: torchrun")
    with pytest.raises(QloraError, match="runtime.processes is 2, and 1 train here. .*ACCELERATE_USE_CPU=true accelerate launch --multi_gpu"):
        together.train(tmp_path, "lora", runtime__processes=2)


def test_fsdp_flattens_the_4_bit_weights_and_computes_the_same(pair):
    for seen in pair:
        found = seen["flattened"]
        assert found["losses"][1] == pytest.approx(found["losses"][0], abs=1e-6)
        assert found["gradients"][1] == pytest.approx(found["gradients"][0], rel=1e-5)
        assert found["mine"] < 0.55 * found["whole"]


# --- the share of each


@pytest.mark.parametrize("batch, accumulation, n, expected", [
    (4, 2, 2, (4, 1)), (4, 1, 2, (2, 1)), (3, 4, 2, (3, 2)), (6, 3, 2, (3, 3)), (1, 8, 8, (1, 1)), (5, 7, 1, (5, 7)),
])  # fmt: skip
def test_a_step_is_shared(batch, accumulation, n, expected):
    mine = processes.share(batch, accumulation, n)
    assert mine == expected and mine[0] * mine[1] * n == batch * accumulation


@pytest.mark.parametrize("wanted, examples, n, size", [(4, 8, 2, 4), (4, 6, 2, 3), (4, 5, 2, 1), (4, 5, 1, 4), (2, 9, 3, 1), (8, 12, 3, 4)])
def test_validation_batches_are_equally_long_in_all_processes(wanted, examples, n, size):
    from qlora_lib.training import eval_batch

    assert eval_batch(wanted, examples, n) == size


def settings(*assignments: str, arm: str = "qlora"):
    profile = load_profile("smoke")
    return profile.settings(profile.arm(arm), parse_overrides(assignments))


FSDP = ["runtime.sharding=fsdp", "runtime.processes=2", "runtime.fast=false", "train.optimizer=adamw_torch", "evaluation.perplexity=false", "evaluation.new_tokens=0"]


@pytest.mark.parametrize("assignments, said", [
    (["runtime.processes=3"], "3 processes cannot share a step of train.batch_size 4 x train.gradient_accumulation_steps 1 in arm 'qlora'.*Make one of the two a multiple of 3"),
    (["runtime.processes=0"], "runtime.processes"),
    (["runtime.sharding=fsdp"], "runtime.sharding is 'fsdp' with one process.*Set runtime.processes"),
    (FSDP[:2], "runtime.fast is true"),
    (FSDP[:3], "train.optimizer paged_adamw_8bit.*adamw_torch"),
    (FSDP[:4], "evaluation needs the whole model.*qlora eval"),
    (["runtime.backend=unsloth", "runtime.fast=false", "runtime.processes=2"], "'unsloth' with 2 processes"),
])  # fmt: skip
def test_settings_that_cannot_run_are_told(assignments, said):
    with pytest.raises(UsageError, match=said):
        settings(*assignments)


def test_a_base_is_scored_by_one_process_whatever_the_setting(tmp_path):
    entry = load_profile("smoke").arm("base")
    job = Job("smoke", entry, settings("runtime.processes=3", arm="base"), tmp_path, "key", None)
    assert job.processes == 1


# --- FSDP, as far as a machine without GPUs goes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("quantization", [Quantization(format="nf4"), Quantization(format="fp4", double_quant=False)], ids=["nf4dq", "fp4"])
def test_4_bit_weights_are_stored_in_the_dtype_of_the_others_and_are_the_same(dtype, quantization):
    plain = models.load_base(tiny.folder(), quantization, dtype, "cpu")
    sharded = models.load_base(tiny.folder(), quantization, dtype, "cpu", dtype)
    assert {p.dtype for p in plain.parameters()} == {dtype, torch.uint8}
    assert {p.dtype for p in sharded.parameters()} == {dtype}
    packed = sharded.model.layers[0].self_attn.q_proj.weight
    assert packed.view(torch.uint8).flatten().equal(plain.model.layers[0].self_attn.q_proj.weight.flatten())
    ids = tiny.ids(2, 24)
    with torch.no_grad():
        assert torch.equal(sharded(ids).logits, plain(ids).logits)


def test_all_weights_of_a_unit_share_one_dtype_adapters_too():
    _, s = tiny.arm("qlora")
    for dtype in (torch.float32, torch.bfloat16):
        base = models.load_base(tiny.folder(), s.quantization, dtype, "cpu", dtype)
        model = sharding.adapters_to(models.attach_lora(sharding.prepare_for_training(base, "qlora", True), s.lora, 0), dtype)
        assert {p.dtype for p in model.parameters()} == {dtype} and model.is_gradient_checkpointing
        assert {name.split(".")[-3] for name, p in model.named_parameters() if p.requires_grad} == {"lora_A", "lora_B"}


def test_trainer_gets_the_arguments_that_peft_documents(tmp_path, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin

    from qlora_lib import training

    for name in ("FSDP_CPU_RAM_EFFICIENT_LOADING", "ACCELERATE_USE_FSDP"):
        monkeypatch.setenv(name, "")
    arguments = training._arguments(settings(*FSDP), "adamw_torch", DType("fp32", ""), "cpu", 4, tmp_path)
    given = arguments.fsdp_plugin_args
    assert given["cpu_ram_efficient_loading"] is given["sync_module_states"] is True
    assert (given["fsdp_version"], given["use_orig_params"]) == (1, False)
    given |= {"cpu_ram_efficient_loading": False, "sync_module_states": False}  # accelerate makes no such plugin without a GPU
    plugin = FullyShardedDataParallelPlugin(**given)
    assert plugin.sharding_strategy.name == "FULL_SHARD" and plugin.state_dict_type.name == "SHARDED_STATE_DICT"
    sharding.prepare_environment()
    assert (os.environ["ACCELERATE_USE_FSDP"], os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"]) == ("true", "true")
    assert training._arguments(settings(), "adamw_torch", DType("fp32", ""), "cpu", 4, tmp_path).fsdp_plugin_args is None


@pytest.mark.parametrize("on, dtype, said", [("cpu", "fp32", "needs CUDA GPUs.*none here"), ("cuda", "fp16", "in fp16")])
def test_where_fsdp_cannot_run_it_says_so(on, dtype, said):
    with pytest.raises(UsageError, match=said):
        sharding.check(on, DType(dtype, ""))
    sharding.check("cuda", DType("bf16", ""))


# --- a launcher


@pytest.fixture
def launcher(monkeypatch):
    """The environment of process `rank` of two; `main` runs the command line in it and returns its exit code."""

    def start(rank: int, *arguments: str) -> int:
        for key, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(key, str(value))
        monkeypatch.setattr(sys, "argv", ["qlora", *arguments])
        processes.speaks.cache_clear()
        with pytest.raises(SystemExit) as end:
            cli.main()
        return end.value.code

    yield start
    processes.speaks.cache_clear()


@pytest.mark.parametrize("arguments, said", [
    (["run", "--profile", "smoke"], "error: qlora run runs in one process, and a launcher has started 2. Start it without the launcher"),
    (["doctor"], "error: qlora doctor runs in one process"),
    (["train", "--profile", "smoke", "--method", "lora", "--out", "x", "--set", "runtime.processes=3"], "error: runtime.processes is 3, and the launcher has started 2"),
    (["train", "--profile", "smoke", "--method", "lora", "--out", "x", "--set", "train.batch_size=3"], "error: 2 processes cannot share a step"),
    (["train", "--profile", "smoke", "--method", "lora", "--out", "x", "--set", "train.sneps=3"], "error: unknown key"),
])  # fmt: skip
def test_under_a_launcher_an_error_is_told_once(launcher, capsys, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    codes = [launcher(rank, *arguments) for rank in (0, 1)]
    captured = capsys.readouterr()
    assert codes == [2, 2] and captured.out == ""
    assert captured.err.startswith(said) and captured.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_accelerate_that_starts_one_process_in_place_of_several_is_told(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    processes.check_launcher()  # one was asked for
    monkeypatch.setenv("MASTER_PORT", "29500")
    with pytest.raises(UsageError, match="accelerate was asked for several processes and has started one. .*--multi_gpu"):
        launched.as_launched(load_profile("smoke"), load_profile("smoke").arm("lora"), {})


def test_a_process_ends_with_its_launcher():
    code = "import time; from qlora_lib.processes import leave_with_parent; leave_with_parent(); print('up', flush=True); time.sleep(60)"
    middle = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {code!r}]); print(p.pid, flush=True); p.wait()"
    with subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True) as parent:
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        child = psutil.Process(int((lines - {"up"}).pop()))
        parent.kill()
        gone, _ = psutil.wait_procs([child], timeout=20)
        assert gone or child.status() == psutil.STATUS_ZOMBIE


# --- the processes that a study starts


@pytest.mark.parametrize("script, code, rank", [
    ('[ "$RANK" = 0 ] && exec sleep 60; exit 3', 3, 1),  # the other one would wait for ever
    ('[ "$RANK" = 0 ] && exit 75; sleep 0.3; kill -9 $$', -9, 1),  # 75: it has lost the other one
    ('[ "$RANK" = 1 ] && exec sleep 60; exit 0', 0, 0),
    ("exit 75", 75, 0),
    ("exit 143", 143, 0),
    ("read line; exit 0", 0, 0),
])  # fmt: skip
def test_of_processes_that_end_the_one_that_decides_is_named(tmp_path, monkeypatch, script, code, rank):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    monkeypatch.setattr(children, "OTHERS_SECONDS", 1.0)
    job = Job("smoke", load_profile("smoke").arm("lora"), settings("runtime.processes=2", arm="lora"), tmp_path, "key", None)
    begun = time.monotonic()
    ended = children.run(job)
    assert ended.code == code and (code in (75, 143) or ended.rank == rank)
    assert time.monotonic() - begun < 20 and [p.name for p in tmp_path.iterdir()] == ["python"]


def test_each_process_has_its_share_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(children.hardware, "usable_cpus", lambda: 6)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("MASTER_PORT", "1")  # of a launcher that this was started by
    arm = load_profile("smoke").arm("lora")
    jobs = [Job("smoke", arm, settings(f"runtime.processes={n}", arm="lora"), tmp_path, "key", None) for n in (1, 4)]
    alone, shared = map(children._environment, jobs)
    assert (alone["OMP_NUM_THREADS"], alone["CUDA_VISIBLE_DEVICES"]) == ("6", "0")
    assert (shared["OMP_NUM_THREADS"], shared["CUDA_VISIBLE_DEVICES"]) == ("1", "0,1,2,3")
    assert not {"RANK", "WORLD_SIZE", "MASTER_PORT"} & (alone.keys() | shared.keys())


LONG = {
    "lora.dropout": 0.0, "train.max_steps": 60, "train.eval_every": 60, "train.save_every": 10, "train.learning_rate": 1e-3,
    "evaluation.perplexity": False, "evaluation.new_tokens": 0, "runtime.meter_tensors": False, "runtime.threads": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tiny_model):
    """(folder, error) of an arm of two processes, one of which is killed after the first checkpoint."""
    out, profile = tmp_path_factory.mktemp("killed") / "run", load_profile("smoke")
    victim = []

    def kill():
        while not list(out.glob(f"checkpoints/*/{COMPLETE}")) and time.monotonic() < until:
            time.sleep(0.01)
        for child in psutil.Process().children():
            if "qlora_lib.arm" in child.cmdline() and child.environ().get("RANK") == "1":
                victim.append(child.pid)
                child.kill()

    until = time.monotonic() + 120
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(children, "OTHERS_SECONDS", 20)
        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(ArmFailed) as raised:
            run_arm(profile, profile.arm("lora"), out, LONG | {"runtime.processes": 2})
        thread.join()
    assert len(victim) == 1
    return out, raised.value


@pytest.mark.promise("process-dies")
@pytest.mark.only_in_make_faults
def test_a_killed_process_ends_the_arm_with_one_line(killed):
    out, error = killed
    assert str(error).startswith("arm 'lora': process 2 of 2: the system ended it, most likely for want of memory") and error.exit_code == 1
    assert not (out / "record.json").exists() and not list(out.glob(".scratch-*"))
    assert not [c for c in psutil.Process().children() if "qlora_lib.arm" in c.cmdline()]


@pytest.mark.promise("process-dies")
@pytest.mark.only_in_make_faults
def test_accelerate_launch_goes_on_from_there_and_writes_one_record(killed, tmp_path):
    """The launcher's processes find the folder free, its checkpoint theirs, and one of them prints."""
    out, _ = killed
    given = [f"--set={key}={json.dumps(value)}" for key, value in LONG.items()]
    command = [*ACCELERATE, "-m", "qlora_lib", "train", "--profile", "smoke", "--method", "lora", "--json", *given, "--out", str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=os.environ | {"ACCELERATE_USE_CPU": "true"})
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stderr.count("training (lora, fp32: as asked for, 2 processes)") == 1 and "Traceback" not in run.stderr
    record = read_record(out / "record.json")
    assert json.loads(run.stdout) == json.loads(record.to_json())  # one document, not two
    assert (record.status, record.provenance.processes, record.settings["runtime"]["processes"]) == ("complete", 2, 2)
    assert record.train.resumed_from_step >= 10 and record.train.steps == len(record.train.loss) == 60
    assert record.train.peak_memory_meter.endswith(", the largest of 2") and record.peak.what.endswith(", the sum of 2 processes")
    assert record.mfu == pytest.approx(record.flops_per_step / record.train.seconds_per_step / record.peak.flops_per_second)
    assert not (out / "checkpoints").exists()

    profile = load_profile("smoke")
    again = run_arm(profile, profile.arm("lora"), out, LONG | {"runtime.processes": 2})  # the same key, however it was started
    assert again.cached and again.record == record

    from qlora_lib import arm as arm_module

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setattr(study, "_spawn", lambda job: arm_module.run(job))
        one = run_arm(profile, profile.arm("lora"), tmp_path / "one", LONG).record
    assert record.train.loss == pytest.approx(one.train.loss, abs=1e-5)
    assert (record.train.tokens, record.flops_per_step) == (one.train.tokens, one.flops_per_step)
    assert (one.provenance.processes, one.provenance.cache_key != record.provenance.cache_key) == (1, True)
    weights = [load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (out, tmp_path / "one")]
    for name, weight in weights[1].items():
        torch.testing.assert_close(weights[0][name], weight, rtol=0, atol=5e-5)
