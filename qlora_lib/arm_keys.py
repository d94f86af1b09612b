"""What decides an arm's numbers, as one hash; and the record that was written under it.

How it works: an arm's key is the SHA-256 of its settings, of the modules that produce numbers, of the identity of its
model and data, of the stack's versions and of the weights that it derives from. A record is taken again only where it is
complete, has that key, and its files are whole.
"""

import hashlib
import json
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.config import ArmEntry, Profile, Settings
from qlora_lib.errors import QloraError
from qlora_lib.paths import users_path
from qlora_lib.records import RECORD_NAME, RunRecord, read_record

PACKAGE = Path(__file__).parent
GPU_NODES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # NVIDIA, WSL, AMD
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
    "processes.py",
    "progress.py",
    "scoring.py",
    "sharding.py",
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


def arm_key(profile: Profile, arm: ArmEntry, settings: Settings, derived: Path | None, same_machine: bool = True) -> str:
    """SHA-256 over all that decides an arm's numbers; without `same_machine` not over the processor and the versions."""
    parts = {
        "arm": [profile.name, arm.name, arm.method],
        "settings": settings.model_dump(mode="json"),
        "code": {name: hashed((PACKAGE / name).read_bytes()) for name in RUN_WING},
        "model": _model_identity(settings.model.name),
        "data": _data_identity(settings.data.name),
        "versions": hardware.versions() if same_machine else None,
        "device": _device_identity() if same_machine else None,
        "derived": read_record(derived / RECORD_NAME).files if derived else None,
    }
    return hashed(json.dumps(parts, sort_keys=True).encode())


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
        return hashed("".join(f"{p.name} {hashed(p.read_bytes())} " for p in files).encode())
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


def hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
