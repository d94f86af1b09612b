"""A profile's arms -> records, each arm once: cached by content, each in a process of its own.

How it works: an arm's key is the hash of its settings, of the modules that produce numbers, of the
identity of its model and data, of the stack's versions and of the arm it derives from. An arm is
skipped when its folder holds a complete record with that key whose files verify. Everything else
is run again. An arm that fails does not stop the others; it is named at the end. Several processes can
share a folder of results: an arm that another one runs is left for the end, and its record then taken.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_lib import hardware
from qlora_lib.claimed import FolderBusy, claimed
from qlora_lib.config import ArmEntry, Profile, Settings
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.job import ADAPTER_DIR, SCRATCH, MODEL_DIR, Job
from qlora_lib.paths import results_dir, users_path
from qlora_lib.records import RECORD_NAME, RunRecord, read_record

PACKAGE = Path(__file__).parent
STDERR = 2
ASK_AGAIN = 2.0  # seconds, while another run has an arm
LEAVE_SECONDS = 120  # for an arm to end its step and write a checkpoint
# The modules whose code decides what a record says. The page wing is not among them: a figure's
# style trains nothing.
RUN_WING = (
    "arm.py",
    "assets/make.py",
    "assets/registry.py",
    "batches.py",
    "cost/devices.py",
    "cost/flops.py",
    "cost/shapes.py",
    "data.py",
    "fast/decoder.py",
    "fast/decoders.py",
    "fast/elementwise.py",
    "fast/install.py",
    "fast/kernels.py",
    "fast/layers.py",
    "fast/loss.py",
    "fast/optimizer.py",
    "fast/quantize.py",
    "fast/simd.py",
    "fast/static.py",
    "fast/threads.py",
    "hardware.py",
    "job.py",
    "judges/alpaca_eval.py",
    "judges/annotations.py",
    "judges/base.py",
    "judges/judged.py",
    "judges/offline.py",
    "judges/run.py",
    "judges/settings.py",
    "metrics/answers.py",
    "metrics/length_controlled.py",
    "metrics/memory.py",
    "metrics/perplexity.py",
    "metrics/scored.py",
    "metrics/sizes.py",
    "metrics/speed.py",
    "metrics/squad.py",
    "metrics/tasks.py",
    "metrics/win_rate.py",
    "models.py",
    "progress.py",
    "scoring.py",
    "task_data.py",
    "tasks/articles.py",
    "tasks/chat.py",
    "tasks/examples.py",
    "tasks/kept.py",
    "tasks/load.py",
    "tasks/made.py",
    "tasks/own.py",
    "tasks/published.py",
    "tasks/question_events.py",
    "tasks/question_forms.py",
    "tasks/question_grammar.py",
    "tasks/questions.py",
    "tasks/reviews.py",
    "tasks/splits.py",
    "tasks/stand_ins.py",
    "tasks/wiki_instructions.py",
    "texts.py",
    "training.py",
    "unsloth.py",
)


GPU_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, WSL, AMD


@dataclass(frozen=True)
class ArmResult:
    arm: ArmEntry
    record: RunRecord
    cached: bool
    seconds: float


class ArmFailed(QloraError):
    """An arm ended without a record."""

    told = False  # whether the arm's own process has printed why
    results: Sequence["ArmResult"] = ()  # of the arms that did not fail


def run_profile(
    profile: Profile, overrides: dict[str, Any] | None = None, only: list[str] | None = None, force: bool = False
) -> list[ArmResult]:
    """Run (or take from the cache) every arm of a profile, in order.

    Raises ArmFailed at the end when an arm failed; the others' records are kept. An arm that stopped
    early has a record that says so and did not fail; one that would start from it is left out. While another process runs
    an arm, the others come first; then its record is awaited, and the arm run here if that process ends without one.
    """
    for name in only or []:  # an unknown one is told before hours of work
        if not (arm := profile.arm(name)).runs:
            raise UsageError(f"arm '{name}' of profile '{profile.name}' is declared but does not run: {arm.why}")
    arms = [a for a in profile.arms if a.runs and (only is None or a.name in only)]
    results, failed, stopped = {}, [], []
    waiting = [(number, arm) for number, arm in enumerate(arms, 1)]
    told: set[str] = set()  # arms of which it was said that another run has them
    while waiting:
        busy = []
        for number, arm in waiting:
            if arm.name not in told:
                say(f"({number}/{len(arms)}) {arm.label}")
            folder = results_dir(profile.name) / arm.name
            if arm.derived_from in failed + stopped:
                source, group = (("failed", failed) if arm.derived_from in failed else ("stopped early", stopped))
                group.append(arm.name)
                (folder / RECORD_NAME).unlink(missing_ok=True)  # it would be of other weights
                say(f"  not run: '{arm.derived_from}', which it starts from, {source}")
                continue
            try:
                result = run_arm(profile, arm, folder, overrides, force and arm.name not in told)
            except FolderBusy as e:  # its record is theirs, unless they end without one
                if arm.name not in told:
                    say(f"  left for later: {e.message}")
                told.add(arm.name)
                busy.append((number, arm))
                continue
            except UsageError:  # a slip in the settings, not this arm's trouble
                raise
            except QloraError as e:  # also what cannot be fetched: the other arms may have all they need
                failed.append(arm.name)
                say(f"  error: {e}")
                continue
            if result.record.status == "stopped":
                stopped.append(arm.name)
            results[arm.name] = result
            again = f"{arm.label}: " if arm.name in told else ""
            say(f"  {again}" + ("taken from the cache" if result.cached else f"{result.seconds:.0f} s"))
        if busy and len(busy) == len(waiting):
            time.sleep(ASK_AGAIN)
        waiting = busy
    results = [results[a.name] for a in arms if a.name in results]
    if failed:
        failure = ArmFailed(
            f"{len(failed)} of {len(arms)} arms failed: {', '.join(failed)}",
            "The others are kept; mend the cause printed above and run again",
        )
        failure.results = results
        raise failure
    return results


def run_arm(
    profile: Profile,
    arm: ArmEntry,
    out: Path,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    same_machine: bool = True,
) -> ArmResult:
    """Run one arm into `out`, unless the record there already says what it would.

    `same_machine=False` goes on with, or takes, what another processor or another version of the stack has left there:
    for a machine that was lost. The record says what the run ended on.
    Raises FolderBusy where another process is running into `out`.
    """
    begun = time.perf_counter()
    settings = profile.settings(arm, overrides)
    out = Path(os.path.realpath(out))  # which a loop of links does not stop
    derived = None
    if arm.derived_from:
        derived = results_dir(profile.name) / arm.derived_from
        source = run_arm(profile, profile.arm(arm.derived_from), derived, overrides).record
        if not source.files:
            why = f"stopped early: {source.status_reason}" if source.status == "stopped" else "kept no weights"
            raise ArmFailed(
                f"arm '{arm.name}' starts from '{arm.derived_from}', which {why}",
                "Set train.keep_model=true and a learning rate at which it ends",
            )
    key = arm_key(profile, arm, settings, derived, same_machine)
    if not force and (record := cached_record(out, key)):
        if record.label != arm.label:  # words only: no reason to run again
            record.label = arm.label
            record.write(out)
        return ArmResult(arm, record, True, time.perf_counter() - begun)
    with claimed(out):
        if not force and (record := cached_record(out, key)):  # another process has run it meanwhile
            return ArmResult(arm, record, True, time.perf_counter() - begun)
        _start_afresh(out, key)
        before = _same_base(profile, arm, settings, overrides)
        _spawn(Job(profile.name, arm, settings, out, key, derived, before))
    record = read_record(out / RECORD_NAME)
    return ArmResult(arm, record, False, time.perf_counter() - begun)


def _same_base(profile: Profile, arm: ArmEntry, settings: Settings, overrides) -> Path | None:
    """The folder of a base arm that has scored the base this arm trains, on the same windows."""

    def scored(s: Settings) -> tuple:
        windows = s.evaluation.model_dump(exclude={"new_tokens", "repeats", "prompt"})
        return s.model, s.data, s.quantization, s.train.precision, s.runtime.threads, windows

    if arm.method == "base" or not settings.evaluation.perplexity:
        return None
    for other in profile.arms:
        if other.method == "base" and other.runs and other.derived_from is None:
            theirs = profile.settings(other, overrides)
            folder = results_dir(profile.name) / other.name
            if scored(theirs) == scored(settings) and cached_record(folder, arm_key(profile, other, theirs, None)):
                return folder
    return None


def arm_key(profile: Profile, arm: ArmEntry, settings: Settings, derived: Path | None, same_machine: bool = True) -> str:
    """SHA-256 over all that decides an arm's numbers; without `same_machine` not over the processor and the versions."""
    parts = {
        "arm": [profile.name, arm.name, arm.method],
        "settings": settings.model_dump(mode="json"),
        "code": {name: _hash((PACKAGE / name).read_bytes()) for name in RUN_WING},
        "model": _model_identity(settings.model.name),
        "data": _data_identity(settings.data.name),
        "versions": hardware.versions() if same_machine else None,
        "device": _device_identity() if same_machine else None,
        "derived": read_record(derived / RECORD_NAME).files if derived else None,
    }
    return _hash(json.dumps(parts, sort_keys=True).encode())


def _device_identity() -> list[str]:
    """The processor, and the GPU where there may be one: only then is it worth seconds to import torch."""
    names = [hardware.cpu_name()]
    if any(Path(node).exists() for node in GPU_NODES):
        names.append(hardware.device_name(hardware.device()))
    return names


def _model_identity(name: str) -> str:
    from qlora_lib.assets import resolve_model

    asset = resolve_model(name)  # fetches when it must
    return f"{asset.source} {asset.revision}"


def _data_identity(name: str) -> str:
    from qlora_lib.assets import registered_data, resolve_data_files

    if name in {spec.name for spec in registered_data()}:
        asset = resolve_data_files(name)
        return f"{asset.source} {asset.revision}"
    path = users_path(name)
    if path.exists():
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return _hash("".join(f"{p.name} {_hash(p.read_bytes())} " for p in files).encode())
    return name


def cached_record(out: Path, key: str) -> RunRecord | None:
    """The complete record in `out` for `key` whose files are all there and whole, or None."""
    from qlora_lib.assets.store import sha256_of

    try:
        record = read_record(out / RECORD_NAME)
    except QloraError:
        return None
    if record.status != "complete" or record.provenance.cache_key != key:
        return None
    for name, digest in record.files.items():
        path = out / name
        if not path.is_file() or sha256_of(path) != digest:
            return None
    return record


def _start_afresh(out: Path, key: str) -> None:
    """Drop what an arm with other settings left; keep the checkpoints of this very arm to resume.

    Raises UsageError for a folder of the user's own with something in the places that are dropped.
    """
    import shutil

    marker = out / "checkpoints" / "key"
    if not (marker.is_file() or (out / RECORD_NAME).is_file()):
        for name in ("checkpoints", MODEL_DIR, ADAPTER_DIR):
            if (out / name).exists():
                raise UsageError(f"{out} holds '{name}', which no run of qlora wrote", "Give another folder with --out")
    for scratch in out.glob(f"{SCRATCH}*"):  # of an arm that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    (out / RECORD_NAME).unlink(missing_ok=True)
    if not (marker.is_file() and marker.read_text() == key):
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(key)


def _spawn(job: Job) -> None:
    """Run the job in a process of its own; its lines go to standard error."""
    runtime = job.settings.runtime
    env = os.environ | hardware.threads_environment(runtime.threads, runtime.keep_freed_memory)
    env.setdefault("CUDA_VISIBLE_DEVICES", "0")  # with several, Trainer would multiply the batch by them
    command = [sys.executable, "-m", "qlora_lib.arm"]
    # Not sys.stderr: a notebook or a test may have put an object there that is no file. A group of its own, so that Ctrl-C
    # comes to it from here, once. Its input stays open: the arm leaves when that ends.
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=STDERR, env=env, text=True, process_group=0) as child:
        try:
            _tell(child, job)
            child.wait()
        except BaseException:  # Ctrl-C, or SIGTERM's SystemExit
            child.terminate()
            try:
                child.wait(timeout=LEAVE_SECONDS)
            except BaseException:  # the second Ctrl-C, or too long a step
                child.kill()
            raise
    code = child.returncode
    if code < 0:
        why = "the system ended it, most likely for want of memory" if code == -9 else f"signal {-code} ended it"
        raise ArmFailed(
            f"arm '{job.arm.name}': {why}",
            "Set train.batch_size or data.window_length lower, or train.gradient_checkpointing=true",
        )
    if code == 130:
        raise KeyboardInterrupt
    if code == 143:
        raise ArmFailed(f"arm '{job.arm.name}' was asked to end by SIGTERM", "Run again: it goes on from its last checkpoint")
    if code:
        failure = ArmFailed(f"arm '{job.arm.name}' failed", "Its own message stands above")
        failure.exit_code, failure.told = (2 if code == 2 else 1), True
        raise failure


def _tell(child: subprocess.Popen, job: Job) -> None:
    try:
        child.stdin.write(job.to_json() + "\n")
        child.stdin.flush()
    except BrokenPipeError:  # it ended at once; its exit code says more
        with suppress(BrokenPipeError):  # of what is still to be written
            child.stdin.close()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
