"""What runs, what is taken from the cache, what fails and how; and the record of a whole arm.

Most arms run in this process, with `study._spawn` replaced: a process of its own costs seconds.
"""

import ast
import io
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml

from qlora_lib import arm as arm_module
from qlora_lib import arm_keys, hardware, models, study, training
from qlora_lib.job import OUT_OF_MEMORY, Job
from qlora_lib.config import PROFILES_DIR, load_profile
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import QloraError, UsageError, out_of_memory
from qlora_lib.metrics import perplexity
from qlora_lib.paths import results_dir
from qlora_lib.records import read_record
from qlora_lib.study import ArmFailed, run_arm, run_profile

ARMS = ["base", "base-nf4dq", "full", "lora", "qlora", "full-nf4dq", "lora-nf4dq"]
PEAK = 1e11  # FLOP/s: measuring it takes a second an arm


def in_process(jobs: list):
    def spawn(job: Job) -> None:
        jobs.append(job.arm.name)
        arm_module.run(Job.from_json(job.to_json()))

    return spawn


@pytest.fixture(scope="module", autouse=True)
def quick():
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hardware, "gemm_peak", lambda dtype: PEAK)
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def make_profile(tmp_path_factory):
    def make(name: str, arms=ARMS, **top):
        values = yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())
        values["arms"].append({
            "name": "lora-nf4dq", "label": "LoRA, then NF4 + DQ", "method": "base", "derived_from": "lora",
            "set": {"quantization.format": "nf4", "evaluation.new_tokens": 0},
        })  # fmt: skip
        values["arms"] = [a for a in values["arms"] if a["name"] in arms]
        path = tmp_path_factory.mktemp("profile") / f"{name}.yaml"
        path.write_text(yaml.safe_dump(values | top))
        return load_profile(str(path))

    return make


@pytest.fixture(scope="module")
def whole(make_profile):
    """(profile, {arm: record}) of a study that ran once."""
    profile, jobs = make_profile("whole"), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_spawn", in_process(jobs))
        results = run_profile(profile)
    assert jobs == ARMS and not any(r.cached for r in results)
    return profile, {r.arm.name: r.record for r in results}


@pytest.fixture
def jobs(monkeypatch):
    """Names of the arms that run during a test, in this process."""
    names = []
    monkeypatch.setattr(study, "_spawn", in_process(names))
    return names


@pytest.fixture
def own(make_profile, whole, request):
    """The finished study under another name, to be damaged."""
    profile, _ = whole
    name = "own-" + "".join(c if c.isalnum() else "-" for c in request.node.name)[:60].lower()
    mine = make_profile(name)
    shutil.copytree(results_dir(profile.name), results_dir(mine.name))
    for folder in results_dir(mine.name).iterdir():  # the profile's name is part of an arm's key
        record = read_record(folder / "record.json")
        entry = mine.arm(folder.name)
        derived = results_dir(mine.name) / entry.derived_from if entry.derived_from else None
        record.provenance.cache_key = arm_keys.arm_key(mine, entry, mine.settings(entry), derived)
        record.write(folder)
    return mine


# --- the records of a study


def test_every_arm_leaves_a_complete_record(whole):
    profile, records = whole
    for name, record in records.items():
        assert record == read_record(results_dir(profile.name) / name / "record.json")
        assert (record.status, record.arm, record.method, record.seed) == ("complete", name, profile.arm(name).method, 0)
        assert record.settings == profile.settings(profile.arm(name)).model_dump(exclude={"seed"})
        assert record.size_bytes.total == record.size_bytes.base + record.size_bytes.adapter
        assert (record.train is None) == (record.method == "base") == (record.mfu is None)
        assert not (results_dir(profile.name) / name / "checkpoints").exists()
        assert record.provenance.peak_resident_bytes > 100e6
    assert records["base"].files == {} and records["base"].perplexity.after is None
    assert set(records["full"].files) >= {"model/config.json", "model/model.safetensors"}
    assert set(records["lora"].files) >= {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
    assert records["full"].parameters.trainable == records["full"].parameters.total
    lora = records["lora"].parameters
    assert lora.total == lora.base + lora.trainable and records["qlora"].parameters == lora
    assert records["lora"].size_bytes.adapter == 4 * lora.trainable


def test_windows_are_paired_between_arms(whole):
    _, records = whole
    base = records["base"].perplexity
    assert len(base.window_nll_before) == 8 and base.tokens_scored == 8 * 63
    for name, record in records.items():
        p = record.perplexity
        assert (p.protocol, p.tokens_scored, p.context, p.stride) == (base.protocol, base.tokens_scored, 64, 64)
        assert len(p.window_nll_before) == 8 and len(p.window_nll_after) in (0, 8)
        assert math.exp(np.mean(p.window_nll_before)) == pytest.approx(p.before, rel=1e-12)
    assert records["full"].perplexity.window_nll_before == records["lora"].perplexity.window_nll_before == base.window_nll_before
    assert records["qlora"].perplexity.window_nll_before == records["base-nf4dq"].perplexity.window_nll_before
    assert records["qlora"].perplexity.before != base.before
    tokens = {r.train.tokens for r in records.values() if r.train}
    assert tokens == {6 * 4 * 32}


def scored(model) -> dict:
    return perplexity(model, tiny.data().tokens["test"][: 8 * 64], 64, 64, 2)


def test_perplexity_before_and_after_equal_a_direct_computation(whole):
    profile, records = whole
    nf4dq = tiny.FORMATS["nf4dq"]
    assert records["base"].perplexity.before == pytest.approx(scored(tiny.base())["perplexity"], rel=1e-6)
    assert records["base-nf4dq"].perplexity.before == pytest.approx(scored(tiny.base(nf4dq))["perplexity"], rel=1e-6)
    out = results_dir(profile.name)
    full = scored(models.load_base(out / "full" / "model", tiny.FORMATS["fp32"], torch.float32, "cpu"))
    assert records["full"].perplexity.after == pytest.approx(full["perplexity"], rel=1e-6)
    for name, base in (("lora", tiny.base()), ("qlora", tiny.base(nf4dq))):
        p, direct = records[name].perplexity, scored(models.load_adapter(base, out / name / "adapter"))
        assert p.after == pytest.approx(direct["perplexity"], rel=1e-6)
        assert p.window_nll_after == pytest.approx(direct["window_nll"], rel=1e-6)
        assert p.after < p.before


def test_a_base_that_a_base_arm_scored_is_not_scored_again(whole, jobs):
    """The same numbers, and a note that says whose; without that arm's record it is measured."""
    profile, records = whole
    assert any("arm 'base-nf4dq'" in note for note in records["qlora"].provenance.notes)
    assert not records["base"].provenance.notes
    alone = run_arm(profile, profile.arm("qlora"), results_dir("alone") / "qlora", {"evaluation.stride": 32, "evaluation.windows": 3})
    assert alone.record.provenance.notes == [] and alone.record.perplexity.tokens_scored == 63 + 2 * 32


def test_full_then_quantized_equals_a_direct_recomputation(whole, tmp_path):
    profile, records = whole
    trained = results_dir(profile.name) / "full" / "model"
    direct = scored(models.load_base(trained, tiny.FORMATS["nf4dq"], torch.float32, "cpu"))
    record = records["full-nf4dq"]
    assert record.perplexity.before == pytest.approx(direct["perplexity"], rel=1e-6)
    ours, base = record.size_bytes, records["base-nf4dq"].size_bytes
    assert record.derived_from == "full" and ours.model_copy(update={"on_disk": base.on_disk}) == base
    assert ours.total < ours.on_disk < 1.2 * ours.total  # codes, scales and tables, and a header that names them
    assert record.perplexity.before not in (records["base-nf4dq"].perplexity.before, records["full"].perplexity.after)


def test_lora_merged_then_quantized_equals_a_direct_recomputation(whole, tmp_path):
    """W + B A alpha / r by hand, written out, quantized, scored."""
    from safetensors.torch import load_file

    profile, records = whole
    adapter = load_file(results_dir(profile.name) / "lora" / "adapter" / "adapter_model.safetensors")
    model = tiny.base()
    for name, module in model.named_modules():
        if f"base_model.model.{name}.lora_A.weight" in adapter:
            a, b = (adapter[f"base_model.model.{name}.lora_{x}.weight"] for x in "AB")
            module.weight.data += (b.double() @ a.double() * (8 / 4)).float()
    model.save_pretrained(tmp_path)
    merged = scored(models.load_base(tmp_path, tiny.FORMATS["fp32"], torch.float32, "cpu"))
    assert records["lora"].perplexity.after == pytest.approx(merged["perplexity"], rel=1e-4)
    quantized = scored(models.load_base(tmp_path, tiny.FORMATS["nf4dq"], torch.float32, "cpu"))
    assert records["lora-nf4dq"].perplexity.before == pytest.approx(quantized["perplexity"], rel=1e-4)
    assert not list((results_dir(profile.name) / "lora-nf4dq").glob(f"{arm_module.SCRATCH}*"))


@pytest.mark.parametrize("name", ["full", "lora", "qlora"])
def test_flops_and_utilization_follow_from_the_records_own_fields(whole, name):
    _, records = whole
    r = records[name]
    t = r.settings["train"]
    flops = step_flops(
        ModelShape.read(tiny.folder()), r.method, t["batch_size"], r.settings["data"]["window_length"], r.settings["lora"]["rank"],
        r.settings["lora"]["target_modules"], t["gradient_checkpointing"], t["gradient_accumulation_steps"],
    )  # fmt: skip
    assert (r.flops_per_step, r.hardware_flops_per_step) == (flops.model_flops, flops.hardware_flops)
    assert r.peak.flops_per_second == PEAK and "measured fp32 matrix product" in r.peak.what
    assert r.mfu == pytest.approx(r.flops_per_step / r.train.seconds_per_step / r.peak.flops_per_second)
    assert r.hfu == pytest.approx(r.hardware_flops_per_step / r.train.seconds_per_step / r.peak.flops_per_second)


# --- the cache


def test_an_unchanged_study_runs_nothing(whole, jobs):
    profile, records = whole
    results = run_profile(profile)
    assert jobs == [] and all(r.cached for r in results)
    assert {r.arm.name: r.record for r in results} == records


def test_a_label_is_renewed_and_nothing_runs(own, jobs):
    own.arm("full").label = "All weights"
    results = run_profile(own)
    assert jobs == [] and results[2].record.label == "All weights"
    assert read_record(results_dir(own.name) / "full" / "record.json").label == "All weights"
    assert run_profile(own)[2].cached


def damage(folder: Path, what: str) -> None:
    weights, record = folder / "adapter" / "adapter_model.safetensors", folder / "record.json"
    if what == "a bit of the adapter":
        data = bytearray(weights.read_bytes())
        data[-1] ^= 1
        weights.write_bytes(data)
    elif what == "the adapter is gone":
        weights.unlink()
    elif what == "a truncated record":
        record.write_text(record.read_text()[:500])
    elif what == "no record":
        record.unlink()
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "key").write_text("another")  # as a run that was killed leaves it
    elif what == "a stopped run":
        record.write_text(record.read_text().replace('"complete"', '"stopped"'))
    else:
        record.write_text("[]")


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("what", ["a bit of the adapter", "the adapter is gone", "a truncated record", "no record", "a stopped run", "no object"])
def test_a_damaged_result_is_made_again_and_alone(own, jobs, what):
    before = read_record(results_dir(own.name) / "lora" / "record.json")
    damage(results_dir(own.name) / "lora", what)
    results = run_profile(own)
    assert jobs == ["lora"]  # what derives from it finds the same weights again
    after = next(r.record for r in results if r.arm.name == "lora")
    assert after.train.loss == before.train.loss and after.files == before.files


def test_a_forced_run_takes_nothing_from_the_cache(own, jobs):
    results = run_profile(own, only=["base"], force=True)
    assert jobs == ["base"] and [r.cached for r in results] == [False]


def key(profile, name="lora", overrides=None):
    entry = profile.arm(name)
    derived = results_dir(profile.name) / entry.derived_from if entry.derived_from else None
    return arm_keys.arm_key(profile, entry, profile.settings(entry, overrides), derived)


def test_what_changes_a_key_and_what_does_not(whole, monkeypatch, tmp_path):
    profile, _ = whole
    plain = key(profile)
    assert key(profile) == plain
    for setting in ({"train.learning_rate": 1e-3}, {"seed": 1}, {"evaluation.windows": 4}, {"lora.dropout": 0.0}):
        assert key(profile, overrides=setting) != plain, setting
    assert key(profile, "full") != plain
    package = shutil.copytree(arm_keys.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(arm_keys, "PACKAGE", package)
    assert key(profile) == plain
    for other in ("style.py", "figures/training.py", "report/tables.py", "cli/use.py"):
        (package / other).write_text("# changed\n")
    assert key(profile) == plain
    for name in arm_keys.RUN_WING:
        text = (package / name).read_bytes()
        (package / name).write_bytes(text + b"\n# changed\n")
        assert key(profile) != plain, name
        (package / name).write_bytes(text)
    monkeypatch.setattr(hardware, "versions", lambda: {"torch": "1.0"})
    assert key(profile) != plain


def test_another_gpu_is_another_key(whole, monkeypatch, tmp_path):
    profile, _ = whole
    plain = key(profile)
    monkeypatch.setattr(arm_keys, "GPU_NODES", (str(tmp_path),))
    keys = set()
    for gpu in ("Tesla T4", "NVIDIA A100"):
        monkeypatch.setattr(hardware, "device", lambda: "cuda")
        monkeypatch.setattr(hardware, "device_name", lambda on, gpu=gpu: gpu)
        keys.add(key(profile))
    assert len(keys | {plain}) == 3


def test_a_lost_machine_loses_nothing_where_that_was_asked_for(make_profile, jobs, tmp_path, monkeypatch):
    """Another processor and another version of the stack take what is there."""
    profile = make_profile("lost", arms=("base",))
    arm = profile.arm_of_method("base")
    first = study.run_arm(profile, arm, tmp_path / "run", same_machine=False)
    monkeypatch.setattr(arm_keys.hardware, "cpu_name", lambda: "another processor")
    monkeypatch.setattr(arm_keys.hardware, "versions", lambda: {"torch": "another"})
    assert study.run_arm(profile, arm, tmp_path / "run", same_machine=False).cached and not first.cached
    assert not study.run_arm(profile, arm, tmp_path / "run").cached


def test_changed_data_and_changed_source_weights_change_the_key(make_profile, own, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("one line\n" * 50)
    profile = make_profile("file", data={"name": str(text), "window_length": 8})
    first = key(profile)
    assert key(profile) == first
    text.write_text("one line\n" * 49 + "another line\n")
    assert key(profile) != first
    derived = key(own, "lora-nf4dq")
    folder = results_dir(own.name) / "lora"
    record = read_record(folder / "record.json")
    record.files["adapter/adapter_model.safetensors"] = "0" * 64
    record.write(folder)
    assert key(own, "lora-nf4dq") != derived


def test_a_changed_model_changes_the_key(make_profile, tmp_path):
    model = shutil.copytree(tiny.folder(), tmp_path / "model")
    (model / "manifest.json").unlink()
    profile = make_profile("folder", model={"name": str(model)})
    first = key(profile)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-5}))
    assert key(profile) != first


NO_NUMBERS = {  # reached from arm.py, and yet no part of a key
    "assets/__init__.py", "cost/__init__.py", "fast/__init__.py", "judges/__init__.py", "metrics/__init__.py", "tasks/__init__.py",  # names only
    "errors.py", "paths.py", "records.py",  # words, places, and the form of a record, which is checked when read
    "checking.py", "checkpoints.py", "claimed.py", "leaving.py",
    "evaluation.py", "judges/endpoint.py", "judges/local.py", "judges/transport.py", "trained_on.py",  # no arm asks such a judge
    "config.py",  # what it decides is in the settings, and they are in the key
    "assets/checks.py", "assets/hub.py", "assets/package_index.py", "assets/resolve.py", "assets/store.py",  # bytes, by hash
}  # fmt: skip


def imported_by(module: Path) -> set[str]:
    """Files of qlora_lib that a module imports, anywhere in it."""
    found = set()

    def add(dotted: str) -> bool:
        place = arm_keys.PACKAGE.joinpath(*dotted.split(".")[1:])
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        if dotted.split(".")[0] != "qlora_lib" or not file.is_file():
            return False
        found.add(file.relative_to(arm_keys.PACKAGE).as_posix())
        if file.parent != arm_keys.PACKAGE:
            found.add((file.parent / "__init__.py").relative_to(arm_keys.PACKAGE).as_posix())
        return True

    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            for name in node.names:
                add(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                add(f"{node.module}.{name.name}") or add(node.module)
    return found


def test_the_key_covers_every_module_that_decides_a_number():
    reached, todo = set(), {"arm.py"}
    while todo:
        name = todo.pop()
        reached.add(name)
        todo |= imported_by(arm_keys.PACKAGE / name) - reached
    assert reached - NO_NUMBERS == set(arm_keys.RUN_WING)
    assert NO_NUMBERS <= reached


# --- failures


def failing(jobs: list, name: str, error: Exception):
    run = in_process(jobs)

    def spawn(job: Job) -> None:
        if job.arm.name == name:
            jobs.append(name)
            raise error
        run(job)

    return spawn


def test_a_failing_arm_stops_no_other(own, monkeypatch, capfd):
    names = []
    monkeypatch.setattr(study, "_spawn", failing(names, "lora", ArmFailed("arm 'lora': signal 9 ended it", "Less")))
    with pytest.raises(ArmFailed, match="2 of 7 arms failed: lora, lora-nf4dq") as e:
        run_profile(own, {"evaluation.windows": 2, "evaluation.new_tokens": 0})
    assert names == [n for n in ARMS if n != "lora-nf4dq"] and e.value.exit_code == 1
    said = capfd.readouterr().err
    assert "error: arm 'lora': signal 9 ended it. Less" in said and "'lora', which it starts from, failed" in said
    assert not (results_dir(own.name) / "lora" / "record.json").exists()
    assert not (results_dir(own.name) / "lora-nf4dq" / "record.json").exists()  # it was of other weights


@pytest.fixture
def poisoned(monkeypatch):
    """Training ends at its second loss, which is no number."""
    real = training.train

    def train(model, *rest):
        steps = []

        def poison(module, args, output):
            steps.append(model.training)
            return output * torch.nan if sum(steps) == 2 and model.training else output

        handle = model.get_decoder().norm.register_forward_hook(poison)
        try:
            return real(model, *rest)
        finally:
            handle.remove()

    monkeypatch.setattr(training, "train", train)


@pytest.mark.promise("diverges")
def test_an_arm_that_stopped_is_recorded_and_nothing_starts_from_it(make_profile, poisoned, jobs, capfd):
    profile = make_profile("stops", ["full", "full-nf4dq"])
    (result,) = run_profile(profile)
    r = result.record
    assert (r.status, r.status_reason) == ("stopped", "loss was not a finite number at step 2")
    assert r.train.steps == 1 and r.perplexity.after is None and r.generation is None and r.files == {}
    assert "NaN" not in (results_dir("stops") / "full" / "record.json").read_text()
    assert jobs == ["full"] and "'full', which it starts from, stopped early" in capfd.readouterr().err
    with pytest.raises(ArmFailed, match="starts from 'full', which stopped early: loss was not"):
        run_arm(profile, profile.arm("full-nf4dq"), results_dir("stops") / "full-nf4dq")


def test_a_derived_arm_runs_its_source_when_it_is_missing_or_of_other_settings(make_profile, jobs):
    profile = make_profile("derived", ["full", "full-nf4dq"])
    few = {"train.max_steps": 2, "evaluation.windows": 2}
    run_profile(profile, few, only=["full-nf4dq"])
    assert jobs == ["full", "full-nf4dq"]
    run_profile(profile, few | {"train.learning_rate": 2e-3}, only=["full-nf4dq"])
    assert jobs == ["full", "full-nf4dq"] * 2
    assert read_record(results_dir("derived") / "full" / "record.json").settings["train"]["learning_rate"] == 2e-3


def test_a_source_that_kept_no_weights_is_told(make_profile, jobs):
    profile = make_profile("unkept", ["full", "full-nf4dq"])
    few = {"train.max_steps": 1, "evaluation.perplexity": False, "evaluation.new_tokens": 0, "train.keep_model": False}
    with pytest.raises(ArmFailed, match="1 of 2 arms failed: full-nf4dq"):
        run_profile(profile, few)
    assert "full-nf4dq" not in jobs


def test_only_names_arms_that_are_there_and_run(whole, make_profile):
    profile, _ = whole
    with pytest.raises(UsageError, match="no arm 'qlroa'.*'qlora'"):
        run_profile(profile, only=["base", "qlroa"])
    declared = make_profile("declared")
    declared.arm("full").runs, declared.arm("full").why = False, "Too large."
    with pytest.raises(UsageError, match="arm 'full' .* does not run: Too large"):
        run_profile(declared, only=["full"])


@pytest.mark.parametrize("script, code, said", [
    ("kill -9 $$", 1, "arm 'base': the system ended it, most likely for want of memory. It only loads and evaluates"),
    ("kill -15 $$", 1, "arm 'base': signal 15 ended it"),
    ("exit 1", 1, "arm 'base' failed. Its own message stands above"),
    ("exec <&-; exit 2", 2, "arm 'base' failed"),
])  # fmt: skip
def test_how_a_process_ended_is_one_line(whole, tmp_path, monkeypatch, script, code, said):
    fake = tmp_path / "python"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    profile, _ = whole
    with pytest.raises(ArmFailed, match=said) as e:
        run_arm(profile, profile.arm("base"), tmp_path / "out")
    assert e.value.exit_code == code and "\n" not in str(e.value)


def test_a_process_that_ended_well_without_a_record_is_told(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", shutil.which("true"))
    profile, _ = whole
    with pytest.raises(QloraError, match="no record at"):
        run_arm(profile, profile.arm("base"), tmp_path / "out")


@pytest.mark.parametrize("error, code, said", [
    (UsageError("the key is wrong", "Mend it"), 2, "error: the key is wrong. Mend it\n"),
    (QloraError("the work failed"), 1, "error: the work failed\n"),
    (MemoryError(), OUT_OF_MEMORY, "[base] ran out of memory: \n"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), OUT_OF_MEMORY, "[base] ran out of memory: CUDA out"),
    (RuntimeError("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory"), OUT_OF_MEMORY, "[base] ran out of memory: [enf"),
    (KeyboardInterrupt(), 130, ""),
])  # fmt: skip
def test_an_arms_process_says_what_went_wrong_in_one_line(whole, monkeypatch, capfd, error, code, said):
    def run(job):
        raise error

    profile, _ = whole
    entry = profile.arm("base")
    job = Job("p", entry, profile.settings(entry), Path("out"), "key", None)
    assert Job.from_json(job.to_json()) == job
    monkeypatch.setattr(arm_module, "run", run)
    monkeypatch.setattr(sys, "stdin", io.StringIO(job.to_json()))
    assert arm_module.main() == code
    out, err = capfd.readouterr()
    assert out == "" and err.startswith(said) and err.count("\n") <= 1


def test_a_real_lack_of_memory_is_known_as_one():
    with pytest.raises(RuntimeError) as e:
        torch.empty(2**50)
    assert out_of_memory(e.value) and not out_of_memory(RuntimeError("shapes differ"))


# --- folders, and resuming


def test_checkpoints_of_other_settings_are_dropped_and_its_own_kept(tmp_path):
    study._start_afresh(tmp_path, "one")
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir()
    (tmp_path / f"{arm_module.SCRATCH}x").mkdir()
    study._start_afresh(tmp_path, "one")
    assert (tmp_path / "checkpoints" / "checkpoint-2").is_dir() and not (tmp_path / f"{arm_module.SCRATCH}x").exists()
    study._start_afresh(tmp_path, "two")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["key"]


@pytest.mark.parametrize("name", ["model", "adapter", "checkpoints"])
def test_a_users_own_folder_is_left_alone(whole, jobs, tmp_path, name):
    profile, _ = whole
    mine = tmp_path / name / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(UsageError, match=f"holds '{name}', which no run of qlora wrote"):
        run_arm(profile, profile.arm("full"), tmp_path)
    assert mine.read_text() == "precious" and jobs == []


@pytest.mark.promise("read-only")
def test_a_folder_that_cannot_be_written_is_one_line(whole, tmp_path, jobs):
    profile, _ = whole
    (tmp_path / "file").write_text("")
    with pytest.raises(QloraError, match="cannot write to .*--out"):
        run_arm(profile, profile.arm("base"), tmp_path / "file")


@pytest.mark.promise("resumed")
def test_an_interrupted_arm_goes_on_and_its_record_is_whole(make_profile, jobs, monkeypatch):
    profile = make_profile("resumed", ["qlora"], train=yaml.safe_load((PROFILES_DIR / "smoke.yaml").read_text())["train"] | {"save_every": 2})
    out = results_dir("resumed") / "qlora"

    def end(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Progress, "on_step_begin", end, raising=False)
        with pytest.raises(KeyboardInterrupt):
            run_arm(profile, profile.arm("qlora"), out)
    assert not (out / "record.json").exists()
    record = run_arm(profile, profile.arm("qlora"), out).record
    again = run_arm(profile, profile.arm("qlora"), out, force=True).record
    assert record.train.resumed_from_step == 4 and again.train.resumed_from_step is None
    assert record.train.loss == again.train.loss and record.perplexity == again.perplexity and record.files == again.files


# --- one real process


def test_an_arm_in_a_process_of_its_own(whole, tmp_path, capfd):
    """The same numbers as in this process, nothing on standard output, its own peak and environment."""
    profile, records = whole
    few = {"evaluation.new_tokens": 0, "runtime.threads": 1}
    record = run_arm(profile, profile.arm("lora"), tmp_path / "lora", few).record
    assert record.train.loss == pytest.approx(records["lora"].train.loss, rel=1e-6)
    assert record.perplexity.after == pytest.approx(records["lora"].perplexity.after, rel=1e-6)
    assert record.provenance.threads == 1 and record.provenance.environment["OMP_NUM_THREADS"] == "1"
    if sys.platform.startswith("linux"):
        assert record.provenance.environment["MALLOC_MMAP_MAX_"] == "0"
    assert record.provenance.peak_resident_bytes >= record.train.peak_memory_bytes > 100e6
    captured = capfd.readouterr()
    assert captured.out == "" and "[lora] training (lora, fp32: as asked for)" in captured.err
    assert "Traceback" not in captured.err and "Warning" not in captured.err
