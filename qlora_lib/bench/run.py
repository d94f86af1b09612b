"""All parts of `qlora bench`, one after another in one process, into one record.

How it works: limits, training, numerics, decoding, perplexity, limits again. Models are loaded for each part and
dropped after it. Always fp32 on the CPU. glibc's allocator takes its settings from the environment of a process
at its start, so the environment is noted in the record, and the command line starts itself again to change it.
"""

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from qlora_lib import hardware, models
from qlora_lib.arm import out_of_memory
from qlora_lib.assets import resolve_model
from qlora_lib.bench.decoding import measure_decoding
from qlora_lib.bench.loading import bytes_per_token, check_model, inference_model
from qlora_lib.bench.machine import better, measure_limits, what_they_allow
from qlora_lib.bench.numerics import compare_numerics
from qlora_lib.bench.ratios import ratios
from qlora_lib.bench.record import BenchProvenance, BenchRecord
from qlora_lib.bench.scoring import measure_scoring
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.threads import use_threads
from qlora_lib.bench.training import batches_of, measure_training
from qlora_lib.config import Quantization, load_profile
from qlora_lib.data import prepare
from qlora_lib.errors import QloraError
from qlora_lib.metrics.memory import peak_resident_bytes
from qlora_lib.records import ModelInfo
from qlora_lib.study import say

ENVIRONMENT = (*hardware.KEEP_FREED_MEMORY, "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
FURTHER_VERSIONS = ("numba", "llama_cpp_python")


@dataclass(frozen=True)
class InferenceModels:
    fp32: torch.nn.Module
    stock_4bit: torch.nn.Module  # NF4 with double quantization and an adapter
    fast_4bit: torch.nn.Module  # the same weights


def run_bench(settings: BenchSettings) -> BenchRecord:
    """Measure everything; progress on standard error."""
    begun, load = time.perf_counter(), _load_average()
    stages: dict[str, float] = {}
    profile = load_profile(settings.profile)
    asset = resolve_model(settings.model or profile.model.name)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all that is needed is here now
    shape = check_model(asset.path)
    threads = use_threads()
    tokenizer = models.load_tokenizer(asset.path)
    data = prepare(profile.data.name, profile.data.text_column, settings.shapes[0].length, tokenizer)
    ids = tokenizer(profile.evaluation.prompt, return_tensors="pt", add_special_tokens=False).input_ids
    for wanted in settings.shapes:  # too little text is told before anything is timed
        batches_of(data.tokens["train"], wanted, 1, settings.seed)
    say(f"qlora bench: {asset.name}, {data.info.name}, fp32 on the CPU, {threads} threads, allocator: {allocator()}")

    with _stage(stages, "limits"):
        before = measure_limits(settings.limit_bytes)
    with _stage(stages, "training"):
        measurements = measure_training(asset.path, data.tokens["train"], settings)
    with _stage(stages, "numerics"):
        first = batches_of(data.tokens["train"], settings.shapes[0], 1, settings.seed)[0]
        numerics = compare_numerics(asset.path, first, settings)
    with _stage(stages, "load"):
        loaded = InferenceModels(
            fp32=models.load_base(asset.path, Quantization(), torch.float32, "cpu"),
            stock_4bit=inference_model(asset.path, settings.lora, settings.seed, as_shipped=True),
            fast_4bit=inference_model(asset.path, settings.lora, settings.seed, as_shipped=False),
        )
        read = {"fp32": bytes_per_token(loaded.fp32), "nf4dq_adapter": bytes_per_token(loaded.fast_4bit)}
    with _stage(stages, "decode"):
        decoded, equal_tokens = measure_decoding(loaded, ids, settings)
    with _stage(stages, "perplexity"):
        scored, differences = measure_scoring(loaded, data.tokens["test"], settings)
    with _stage(stages, "limits"):
        limits = better(before, measure_limits(settings.limit_bytes))

    measurements += decoded + scored
    limits = what_they_allow(limits, shape, settings.shapes, settings.lora, read)
    details = ratios(measurements, limits, [str(s) for s in settings.shapes])
    return BenchRecord(
        settings=_plain(settings),
        model=ModelInfo(
            name=asset.name, source=asset.source, revision=asset.revision, license=asset.license, note=asset.note,
            parameters_total=shape.parameters.total,
        ),
        data=data.info,
        ratios={name: ratio.value for name, ratio in details.items()},
        measurements=measurements,
        limits=limits,
        numerics=numerics.model_copy(update={"perplexity_relative_difference": differences, "equal_tokens": equal_tokens}),
        ratio_details=details,
        provenance=BenchProvenance(
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            cpu=hardware.cpu_name(),
            threads=threads,
            memory_bytes=hardware.total_memory(),
            platform=hardware.platform_name(),
            versions=_versions(),
            git_commit=hardware.git_commit(),
            allocator=allocator(),
            environment={k: os.environ[k] for k in ENVIRONMENT if k in os.environ},
            load_average_before=load,
            wall_seconds=time.perf_counter() - begun,
            stage_seconds=stages,
            peak_resident_bytes=peak_resident_bytes(),
        ),
    )  # fmt: skip


@contextmanager
def _stage(stages: dict[str, float], name: str):
    """Times a stage; what the one before it left is freed first. Running out of memory is told in one line."""
    gc.collect()
    start = time.perf_counter()
    try:
        yield
    except (MemoryError, RuntimeError) as e:
        if not out_of_memory(e):
            raise
        raise QloraError(f"out of memory in the part '{name}'", "Give smaller --shapes, or a smaller --model") from None
    stages[name] = stages.get(name, 0.0) + time.perf_counter() - start


def allocator() -> str:
    """Whether this process was started with the settings that make glibc keep freed memory."""
    kept = all(os.environ.get(name) == value for name, value in hardware.KEEP_FREED_MEMORY.items())
    return "keep" if kept else "default"


def _load_average() -> float | None:
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _versions() -> dict[str, str]:
    found = hardware.versions()
    for name in FURTHER_VERSIONS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _plain(settings: BenchSettings) -> dict:
    """The settings as JSON holds them."""
    values = {f.name: getattr(settings, f.name) for f in fields(settings)}
    return values | {
        "shapes": [str(s) for s in settings.shapes],
        "gguf": str(settings.gguf) if settings.gguf else None,
        "lora": settings.lora.model_dump(),
    }


def default_out(quick: bool) -> Path:
    """A quick run is no measurement, so it does not overwrite one."""
    from qlora_lib.paths import results_dir

    return results_dir("bench-quick.json" if quick else "bench.json")
