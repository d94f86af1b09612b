"""A profile's arms -> records, each arm once: cached by content, each in a process of its own.

How it works: an arm's key is the hash of its settings, of the modules that produce numbers, of the
identity of its model and data, of the stack's versions and of the arm it derives from. An arm is
skipped when its folder holds a complete record with that key whose files verify. Everything else
is run again. An arm that fails does not stop the others; it is named at the end.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_lib import hardware
from qlora_lib.arm import Job
from qlora_lib.config import ArmEntry, Profile, Settings
from qlora_lib.errors import QloraError
from qlora_lib.paths import results_dir
from qlora_lib.records import RECORD_NAME, RunRecord, read_record

PACKAGE = Path(__file__).parent
# The modules whose code decides what a record says. The page wing is not among them: a figure's
# style trains nothing.
RUN_WING = (
    "arm.py",
    "assets/make.py",
    "assets/registry.py",
    "cost/flops.py",
    "cost/shapes.py",
    "data.py",
    "hardware.py",
    "metrics/memory.py",
    "metrics/perplexity.py",
    "metrics/sizes.py",
    "metrics/speed.py",
    "models.py",
    "texts.py",
    "training.py",
)


@dataclass(frozen=True)
class ArmResult:
    arm: ArmEntry
    record: RunRecord
    cached: bool
    seconds: float


class ArmFailed(QloraError):
    """An arm ended without a record; its own line has been printed already."""


def run_profile(
    profile: Profile, overrides: dict[str, Any] | None = None, only: list[str] | None = None, force: bool = False
) -> list[ArmResult]:
    """Run (or take from the cache) every arm of a profile, in order.

    Raises ArmFailed at the end when an arm failed; the others' records are kept.
    """
    arms = [a for a in profile.arms if a.runs and (only is None or a.name in only)]
    for name in only or []:
        profile.arm(name)  # an unknown one is told before hours of work
    results, failed = [], []
    for number, arm in enumerate(arms, 1):
        say(f"({number}/{len(arms)}) {arm.label}")
        if arm.derived_from in failed:
            failed.append(arm.name)
            say(f"  not run: '{arm.derived_from}', which it starts from, failed")
            continue
        try:
            result = run_arm(profile, arm, results_dir(profile.name) / arm.name, overrides, force)
        except ArmFailed:
            failed.append(arm.name)
            continue
        results.append(result)
        say("  " + ("taken from the cache" if result.cached else f"{result.seconds:.0f} s"))
    if failed:
        raise ArmFailed(
            f"{len(failed)} of {len(arms)} arms failed: {', '.join(failed)}",
            "The others are kept; mend the cause printed above and run again",
        )
    return results


def run_arm(
    profile: Profile, arm: ArmEntry, out: Path, overrides: dict[str, Any] | None = None, force: bool = False
) -> ArmResult:
    """Run one arm into `out`, unless the record there already says what it would."""
    begun = time.perf_counter()
    settings = profile.settings(arm, overrides)
    out = Path(out).resolve()
    derived = None
    if arm.derived_from:
        derived = results_dir(profile.name) / arm.derived_from
        if not (derived / RECORD_NAME).is_file():
            run_arm(profile, profile.arm(arm.derived_from), derived, overrides)
    key = arm_key(profile, arm, settings, derived)
    if not force and (record := cached_record(out, key)):
        return ArmResult(arm, record, True, time.perf_counter() - begun)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise QloraError(f"cannot write to {out}: {e.strerror}", "Give another folder with --out") from None
    _start_afresh(out, key)
    _spawn(Job(profile.name, arm, settings, out, key, derived))
    record = read_record(out / RECORD_NAME)
    return ArmResult(arm, record, False, time.perf_counter() - begun)


def arm_key(profile: Profile, arm: ArmEntry, settings: Settings, derived: Path | None) -> str:
    """SHA-256 over all that decides an arm's numbers."""
    parts = {
        "arm": [profile.name, arm.name, arm.method],
        "settings": settings.model_dump(mode="json"),
        "code": {name: _hash((PACKAGE / name).read_bytes()) for name in RUN_WING},
        "model": _model_identity(settings.model.name),
        "data": _data_identity(settings.data.name),
        "versions": hardware.versions(),
        "cpu": hardware.cpu_name(),
        "derived": read_record(derived / RECORD_NAME).provenance.cache_key if derived else None,
    }
    return _hash(json.dumps(parts, sort_keys=True).encode())


def _model_identity(name: str) -> str:
    from qlora_lib.assets import resolve_model

    asset = resolve_model(name)  # fetches when it must
    return f"{asset.source} {asset.revision}"


def _data_identity(name: str) -> str:
    from qlora_lib.assets import registered_data, resolve_data_files

    if name in {spec.name for spec in registered_data()}:
        asset = resolve_data_files(name)
        return f"{asset.source} {asset.revision}"
    path = Path(name).expanduser()
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
    """Drop what an arm with other settings left; keep the checkpoints of this very arm to resume."""
    import shutil

    (out / RECORD_NAME).unlink(missing_ok=True)
    marker = out / "checkpoints" / "key"
    if not (marker.is_file() and marker.read_text() == key):
        shutil.rmtree(out / "checkpoints", ignore_errors=True)
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(key)


def _spawn(job: Job) -> None:
    """Run the job in a process of its own; its lines go to standard error."""
    runtime = job.settings.runtime
    env = os.environ | hardware.threads_environment(runtime.threads, runtime.keep_freed_memory)
    command = [sys.executable, "-m", "qlora_lib.arm"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), env=env, text=True) as child:
        try:
            child.stdin.write(job.to_json())
            child.stdin.close()
            code = child.wait()
        except KeyboardInterrupt:
            child.wait()
            raise
    if code < 0:
        why = "the system ended it, most likely for want of memory" if code == -9 else f"signal {-code} ended it"
        raise ArmFailed(
            f"arm '{job.arm.name}': {why}",
            "Set train.batch_size or data.window_length lower, or train.gradient_checkpointing=true",
        )
    if code:
        failure = ArmFailed(f"arm '{job.arm.name}' failed", "Its own message stands above")
        failure.exit_code = 2 if code == 2 else 1
        raise failure


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
