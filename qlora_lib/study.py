"""A profile's arms -> records, each arm once: cached by content, each in a process of its own.

How it works: an arm is skipped when its folder holds a complete record under its key (arm_keys.py) whose files
verify. Everything else is run again. An arm that fails does not stop the others; it is named at the end. Several processes
can share a folder of results: an arm that another one runs is left for the end, and its record then taken.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_lib import children
from qlora_lib.arm_keys import arm_key, cached_record
from qlora_lib.claimed import HOLDER_NAME, FolderBusy, claimed
from qlora_lib.config import ArmEntry, Profile, Settings
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.job import ADAPTER_DIR, OUT_OF_MEMORY, SCRATCH, MODEL_DIR, Job
from qlora_lib.paths import results_dir
from qlora_lib.processes import LOST
from qlora_lib.progress import say
from qlora_lib.records import RECORD_NAME, RunRecord, read_record

ASK_AGAIN = 2.0  # seconds, while another run has an arm


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
    study = _Study(profile, overrides, force)
    waiting = [(arm, f"({number}/{len(arms)}) {arm.label}") for number, arm in enumerate(arms, 1)]
    while waiting:
        busy = [(arm, title) for arm, title in waiting if not study.settle(arm, title)]
        if len(busy) == len(waiting):
            time.sleep(ASK_AGAIN)
        waiting = busy
    results = [study.results[a.name] for a in arms if a.name in study.results]
    if study.failed:
        failure = ArmFailed(
            f"{len(study.failed)} of {len(arms)} arms failed: {', '.join(study.failed)}",
            "The others are kept; mend the cause printed above and run again",
        )
        failure.results = results
        raise failure
    return results


class _Study:
    """What became of a profile's arms so far."""

    def __init__(self, profile: Profile, overrides: dict[str, Any] | None, force: bool) -> None:
        self.profile, self.overrides, self.force = profile, overrides, force
        self.results: dict[str, ArmResult] = {}
        self.failed: list[str] = []
        self.stopped: list[str] = []  # or not run, for one that stopped
        self.busy: set[str] = set()  # that another process had, which was said

    def settle(self, arm: ArmEntry, title: str) -> bool:
        """Run an arm, or take its record, or note why there is none; False while another process has it."""
        name, folder = arm.name, results_dir(self.profile.name) / arm.name
        asked_before = name in self.busy
        if not asked_before:
            say(title)
        for group, why in ((self.failed, "failed"), (self.stopped, "stopped early")):
            if arm.derived_from in group:
                group.append(name)
                (folder / RECORD_NAME).unlink(missing_ok=True)  # it would be of other weights
                say(f"  not run: '{arm.derived_from}', which it starts from, {why}")
                return True
        try:
            result = run_arm(self.profile, arm, folder, self.overrides, self.force and not asked_before)
        except FolderBusy as e:  # its record is theirs, unless they end without one
            if not asked_before:
                say(f"  left for later: {e.message}")
            self.busy.add(name)
            return False
        except UsageError:  # a slip in the settings, not this arm's trouble
            raise
        except QloraError as e:  # also what cannot be fetched: the other arms may have all they need
            self.failed.append(name)
            say(f"  error: {e}")
            return True
        if result.record.status == "stopped":
            self.stopped.append(name)
        self.results[name] = result
        again = f"{arm.label}: " if asked_before else ""
        say(f"  {again}" + ("taken from the cache" if result.cached else f"{result.seconds:.0f} s"))
        return True


def run_arm(
    profile: Profile,
    arm: ArmEntry,
    out: Path,
    overrides: dict[str, Any] | None = None,
    force: bool = False,
    same_machine: bool = True,
    spawn: Callable[[Job], None] | None = None,
) -> ArmResult:
    """Run one arm into `out`, unless the record there already says what it would.

    `same_machine=False` goes on with, or takes, what another processor or another version of the stack has left there:
    for a machine that was lost. The record says what the run ended on. `spawn` runs the job in place of processes of its own.
    The number of processes is among the settings: checkpoints of another number are not gone on with, since each process has
    a random state of its own.
    Raises FolderBusy where another process is running into `out`.
    """
    begun = time.perf_counter()
    settings = profile.settings(arm, overrides)
    out = Path(os.path.realpath(out))  # which a loop of links does not stop
    derived = None
    if arm.derived_from:
        derived = results_dir(profile.name) / arm.derived_from
        source = run_arm(profile, profile.arm(arm.derived_from), derived, overrides, spawn=spawn).record
        if not source.files:
            why = f"stopped early: {source.status_reason}" if source.status == "stopped" else "kept no weights"
            raise ArmFailed(
                f"arm '{arm.name}' starts from '{arm.derived_from}', which {why}",
                "Set train.keep_model=true and a learning rate at which it ends",
            )
    key = arm_key(profile, arm, settings, derived, same_machine)
    if not force and (record := cached_record(out, key)):
        _tidy(out)
        if record.label != arm.label:  # words only: no reason to run again
            record.label = arm.label
            record.write(out)
        return ArmResult(arm, record, True, time.perf_counter() - begun)
    with claimed(out):
        if not force and (record := cached_record(out, key)):  # another process has run it meanwhile
            return ArmResult(arm, record, True, time.perf_counter() - begun)
        _start_afresh(out, key)
        before = _same_base(profile, arm, settings, overrides)
        (spawn or _spawn)(Job(profile.name, arm, settings, out, key, derived, before))
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


def _start_afresh(out: Path, key: str) -> None:
    """Drop what an arm with other settings left; keep the checkpoints of this very arm to resume.

    Raises UsageError for a folder of the user's own with something in the places that are dropped.
    """
    import shutil

    marker = out / "checkpoints" / "key"
    if not (marker.is_file() or (out / RECORD_NAME).is_file()):
        for name in ("checkpoints", MODEL_DIR, ADAPTER_DIR):
            if (out / name).exists() and not _is_empty_folder(out / name):
                raise UsageError(f"{out} holds '{name}', which no run of qlora wrote", "Give another folder with --out")
    for scratch in out.glob(f"{SCRATCH}*"):  # of an arm that was killed
        shutil.rmtree(scratch, ignore_errors=True)
    # In this order: wherever a kill comes, the folder is still known as ours, and no other arm's checkpoint is taken for this one's.
    if not (marker.is_file() and marker.read_text() == key):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text("")
        for left in marker.parent.iterdir():
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left, ignore_errors=True)
            elif left != marker:
                left.unlink()
        marker.write_text(key)
    (out / RECORD_NAME).unlink(missing_ok=True)


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())


def _tidy(out: Path) -> None:
    """Remove what a run left that was killed right after its record; where another process has the folder, it does so itself."""
    import shutil

    if (out / "checkpoints").exists() or (out / HOLDER_NAME).exists():
        with suppress(QloraError), claimed(out):
            shutil.rmtree(out / "checkpoints", ignore_errors=True)


def _spawn(job: Job) -> None:
    """Run the job in a process of its own, or in as many as it asks for."""
    ended = children.run(job)
    raise_for(job, ended.code, f"process {ended.rank + 1} of {job.processes}: " if job.processes > 1 else "")


def raise_for(job: Job, code: int, whose: str = "") -> None:
    """Nothing for exit code 0; else the error, or the KeyboardInterrupt, that the code of an arm's process stands for."""
    if code in (-9, OUT_OF_MEMORY):
        from qlora_lib.less_memory import GENERAL, memory_advice

        advice = memory_advice(job.arm.method, job.settings)
        if job.processes > 1:  # the planner's step is that of one
            advice = f"{GENERAL}, or runtime.processes lower: each process holds the whole model, unless runtime.sharding=fsdp"
        if code == OUT_OF_MEMORY:
            raise ArmFailed(f"arm '{job.arm.name}' ran out of memory", advice)
        raise ArmFailed(f"arm '{job.arm.name}': {whose}the system ended it, most likely for want of memory", advice)
    if code < 0:
        raise ArmFailed(f"arm '{job.arm.name}': {whose}signal {-code} ended it", "Run again: it goes on from its last checkpoint")
    if code == LOST:
        raise ArmFailed(f"arm '{job.arm.name}' has lost a process that it trained with", "Run again: it goes on from its last checkpoint")
    if code == 130:
        raise KeyboardInterrupt
    if code == 143:
        raise ArmFailed(f"arm '{job.arm.name}' was asked to end by SIGTERM", "Run again: it goes on from its last checkpoint")
    if code:
        failure = ArmFailed(f"arm '{job.arm.name}' failed", "Its own message stands above")
        failure.exit_code, failure.told = (2 if code == 2 else 1), True
        raise failure
