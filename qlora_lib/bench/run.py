"""All parts of `qlora bench`, one after another in one process, into one record.

How it works: limits, training and its scaling, numerics, decoding, perplexity, decoding's scaling, causes, limits again.
Parts that are not asked for are left out, the limits never. Models are loaded for each group of parts and dropped after
it. Always fp32 on the CPU. glibc's allocator takes its settings from the environment of a process at its start, so the
environment is noted in the record, and the command line starts itself again to change it.
"""

import gc
import os
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from qlora_lib import hardware, models
from qlora_lib.assets import resolve_model
from qlora_lib.bench.agreement import compare_losses, compare_texts
from qlora_lib.bench.causes import Parts, measure_causes, taken_apart
from qlora_lib.bench.decoding import measure_decoding
from qlora_lib.bench.fits import fit_all
from qlora_lib.bench.gguf import gguf_for
from qlora_lib.bench.loading import bytes_per_token, check_model, load_for_inference
from qlora_lib.bench.machine import better, measure_limits, what_they_allow
from qlora_lib.bench.numerics import compare_numerics
from qlora_lib.bench.ratios import ratios
from qlora_lib.bench.record import (
    BenchProvenance,
    BenchRecord,
    Measurement,
    Numerics,
    ScalingPoint,
)
from qlora_lib.bench.scaling import measure_training_scaling
from qlora_lib.bench.scaling_decoding import measure_decoding_scaling
from qlora_lib.bench.scoring import measure_scoring
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.threads import use_threads
from qlora_lib.bench.training import batches_of, measure_training
from qlora_lib.config import load_profile
from qlora_lib.data import prepare
from qlora_lib.errors import QloraError, out_of_memory
from qlora_lib.metrics.memory import peak_resident_bytes
from qlora_lib.progress import say
from qlora_lib.records import ModelInfo

ENVIRONMENT = (*hardware.KEEP_FREED_MEMORY, "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")
FURTHER_VERSIONS = ("numba", "llama_cpp_python")


@dataclass
class Found:
    """What the parts that were run have found."""

    measurements: list[Measurement] = field(default_factory=list)
    numerics: Numerics = field(default_factory=Numerics)
    scaling: list[ScalingPoint] = field(default_factory=list)
    causes: list[Parts] = field(default_factory=list)
    bytes_per_token: dict[str, int] = field(default_factory=dict)  # of weights, by model

    def of_numerics(self, **more) -> None:
        self.numerics = self.numerics.model_copy(update=more)


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
    train, test = data.tokens["train"], data.tokens["test"]
    check_text(train, settings)
    say(f"qlora bench: {asset.name}, {data.info.name}, fp32 on the CPU, {threads} threads, allocator: {allocator()}")
    gguf = gguf_for(asset.name, settings.gguf) if settings.wants("decode") else (None, None)

    found = Found()
    with _stage(stages, "limits"):
        before = measure_limits(settings.limit_bytes)
    if settings.wants("training"):
        with _stage(stages, "training"):
            found.measurements += measure_training(asset.path, train, settings)
    if settings.wants("scaling"):
        with _stage(stages, "scaling"):
            found.scaling += measure_training_scaling(asset.path, train, settings)
    if settings.wants("numerics"):
        with _stage(stages, "numerics"):
            first = batches_of(train, settings.shapes[0], 1, settings.seed)[0]
            found.numerics = compare_numerics(asset.path, first, settings)
            found.of_numerics(loss_relative_differences=compare_losses(asset.path, train, settings))
    if settings.wants("numerics", "decode", "perplexity", "scaling", "causes"):
        _with_models_for_inference(found, stages, asset.path, ids, gguf, train, test, settings)
    with _stage(stages, "limits"):
        limits = better(before, measure_limits(settings.limit_bytes))

    limits = what_they_allow(limits, shape, settings.shapes, settings.lora, found.bytes_per_token)
    details = ratios(found.measurements, limits, [str(s) for s in settings.shapes])
    return BenchRecord(
        settings=settings.plain(),
        model=ModelInfo(
            name=asset.name, source=asset.source, revision=asset.revision, license=asset.license, note=asset.note,
            parameters_total=shape.parameters.total,
        ),
        data=data.info,
        ratios={name: ratio.value for name, ratio in details.items()},
        measurements=found.measurements,
        limits=limits,
        numerics=found.numerics,
        scaling=found.scaling,
        fits=fit_all(found.scaling),
        causes=[cause for parts in found.causes for cause in taken_apart(parts, limits.read_bytes_per_second)],
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


def check_text(train: np.ndarray, settings: BenchSettings) -> None:
    """Too little text is told before anything is timed. train: [tokens]."""
    if settings.wants("training", "numerics"):
        for wanted in settings.shapes:
            batches_of(train, wanted, 1, settings.seed)
    if settings.wants("scaling", "causes") and len(train) < settings.grid.longest:
        raise QloraError(
            f"the training text has {len(train)} tokens, and the parts scaling and causes need {settings.grid.longest}",
            "Leave them out with --parts, or give a --profile with more text",
        )


def _with_models_for_inference(found: Found, stages, path: Path, ids, gguf, train, test, settings: BenchSettings) -> None:
    """The parts that make no gradients, into `found`; their models are dropped with this call's end."""
    with _stage(stages, "load"):
        loaded = load_for_inference(path, settings.lora, settings.seed)
        found.bytes_per_token = {"fp32": bytes_per_token(loaded.fp32), "nf4dq_adapter": bytes_per_token(loaded.fast_4bit)}
    if settings.wants("numerics"):
        with _stage(stages, "numerics"):
            found.of_numerics(greedy=compare_texts(loaded.fast_4bit, test, settings))
    if settings.wants("decode"):
        with _stage(stages, "decode"):
            measured, equal_tokens = measure_decoding(loaded, ids, gguf, settings)
            found.measurements += measured
            found.of_numerics(equal_tokens=equal_tokens)
    if settings.wants("perplexity"):
        with _stage(stages, "perplexity"):
            measured, differences = measure_scoring(loaded, test, settings)
            found.measurements += measured
            found.of_numerics(perplexity_relative_difference=differences)
    if settings.wants("scaling"):
        with _stage(stages, "scaling"):
            found.scaling += measure_decoding_scaling(loaded, train, settings)
    if settings.wants("causes"):
        with _stage(stages, "causes"):
            found.causes += measure_causes(loaded, train, settings)


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
        raise QloraError(
            f"out of memory in the part '{name}'", "Give smaller --shapes, a smaller --model, or other --parts"
        ) from None
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


def default_out(quick: bool) -> Path:
    """A quick run is no measurement, so it does not overwrite one."""
    from qlora_lib.paths import results_dir

    return results_dir("bench-quick.json" if quick else "bench.json")
