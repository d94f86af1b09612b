"""`qlora plan --calibrate`: what this machine's CPU does in a minute, kept for later plans.

How it works: the limits are measured as `qlora bench` measures them (a large fp32 product; copying and reading memory),
and then the default model's widths with random weights are trained for a few steps by each method, with the stock stack
and with `qlora_lib.fast`, in turns, and decoded from. What is kept is how long a step took and how many FLOPs it has, so
that a plan for another model or size can take the same share of the peak to be reached. Nothing is downloaded. Rounds
go on until the budget is spent; each arm runs at least once beside its first, untimed step, but where a slow or busy
machine has used up three budgets the methods that are left are left out. A GPU is not measured here: `qlora bench
--gpu-check` does that.
"""

import gc
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch

from qlora_lib import models
from qlora_lib.bench.gpu_check import RandomPrompt
from qlora_lib.bench.gpu_models import random_model
from qlora_lib.bench.loading import bytes_per_token
from qlora_lib.bench.machine import better, measure_limits
from qlora_lib.bench.rounds import timed
from qlora_lib.bench.threads import use_threads
from qlora_lib.bench.training import Arm, arms_of
from qlora_lib.config import Lora
from qlora_lib.cost.calibrated import Calibration, DecodeTimed, StepTimed, calibration_file, this_machine
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.models import MODELS
from qlora_lib.errors import QloraError
from qlora_lib.fast.install import uninstall
from qlora_lib.metrics.speed import decode_speed
from qlora_lib.paths import write_atomic
from qlora_lib.progress import say

SEED = 0
BUDGET = 40.0  # seconds of timed steps; what comes before and after takes about as long again
ORDER = ("qlora", "full", "lora")  # the last is the first to be left out: it is like QLoRA, but for dequantization


@dataclass(frozen=True)
class Size:
    """What is trained and decoded."""

    model: str = "smollm2-135m"
    batch: int = 2
    length: int = 128
    new_tokens: int = 12
    limit_bytes: int = 128 * 2**20  # of the block that is copied and read
    rounds: int = 3  # at most


def calibrate(size: Size = Size(), budget: float = BUDGET, file: Path | None = None) -> Calibration:
    """Measure, keep and return. Raises QloraError where the file cannot be written; told before the work."""
    file = file or calibration_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise QloraError(f"{file.parent} cannot be written ({e.strerror})", "Set QLORA_CACHE to a folder of yours") from None
    use_threads()
    if busy := busy_with():
        say(f"note: {busy}, and what it measures will be slower for it; calibrate when it is quiet")
    begun = time.perf_counter()
    say("calibrating: products and memory")
    before = measure_limits(size.limit_bytes)
    steps, decodes = [], []
    for method in ORDER:
        if steps and time.perf_counter() - begun > 3 * budget:
            say(f"calibrating: {method} is left out, since the others took so long")
            continue
        say(f"calibrating: {method}, {size.model} with random weights, {size.batch} x {size.length} tokens")
        found_steps, found_decodes = _measure(method, size, budget / len(ORDER))
        steps += found_steps
        decodes += found_decodes
        gc.collect()
    limits = better(before, measure_limits(size.limit_bytes))  # whoever else worked here can only have made one worse
    found = Calibration(
        machine=this_machine(),
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        gemm_flops_per_second=limits.gemm_flops_per_second,
        bytes_per_second=max(limits.copy_bytes_per_second, limits.read_bytes_per_second),
        steps=tuple(steps),
        decodes=tuple(decodes),
    )
    write_atomic(file, found.to_json())
    return found


def busy_with() -> str | None:
    """In words, that others work on this machine: more than half of its cores in the last minute. None where they do not."""
    with suppress(OSError, AttributeError):  # a system without load averages
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
        if load > 0.5 * cores:
            return f"this machine is busy (a load of {load:.1f} on {cores} processors)"
    return None


def described(found: Calibration) -> Iterator[str]:
    """What was measured, a line each."""
    yield f"{found.machine.cpu}, {found.machine.cores} cores: fp32 products {found.gemm_flops_per_second / 1e9:.0f} GFLOP/s, memory {found.bytes_per_second / 1e9:.1f} GB/s"
    for s in found.steps:
        whose = "qlora_lib.fast" if s.fast else "stock"
        share = 100 * s.share(found.gemm_flops_per_second)
        yield f"  {s.method}, {whose}: {s.seconds:.2f} s for {s.batch} x {s.length} tokens of {s.model}, {share:.0f} % of the products' speed"
    for d in found.decodes:
        whose = "qlora_lib.fast" if d.fast else "stock"
        yield f"  decoding {d.quantization}, {whose}: {d.tokens_per_second:.1f} tokens/s, {100 * d.share(found.bytes_per_second):.0f} % of the memory's speed"


def _measure(method: str, size: Size, budget: float) -> tuple[list[StepTimed], list[DecodeTimed]]:
    shape, lora = MODELS[size.model].shape, Lora()
    model = random_model(shape, method, torch.float32, "cpu", SEED)
    decodes = [] if method == "lora" else list(_decodes(model, "nf4" if method == "qlora" else "none", size))
    model = models.prepare_for_training(model, method, gradient_checkpointing=False)
    if method != "full":
        model = models.attach_lora(model, lora, SEED)
    flops = step_flops(shape, method, size.batch, size.length, lora.rank).hardware_flops
    arms = arms_of(model.train(), "full" if method == "full" else "qlora")  # LoRA with the optimizer of QLoRA
    try:
        seconds = _rounds(arms, size, shape.vocab_size, budget)
    finally:
        uninstall(model)
    steps = [
        StepTimed(method, arm.whose == "fast", size.model, size.batch, size.length, statistics.median(times), flops)
        for arm, times in zip(arms, seconds)
    ]
    return steps, decodes


def _rounds(arms: list[Arm], size: Size, vocabulary: int, budget: float) -> list[list[float]]:
    """Seconds of each arm's steps, in turns; the first of each, untimed, makes its optimizer's states."""
    generator = torch.Generator().manual_seed(SEED)
    ids = torch.randint(3, vocabulary, (size.batch, size.length), generator=generator)

    def step(arm: Arm) -> float:
        arm.enter()
        torch.manual_seed(SEED)
        return timed(partial(arm.step, ids))

    for arm in arms:
        step(arm)
    seconds: list[list[float]] = [[] for _ in arms]
    begun = time.perf_counter()
    for _ in range(size.rounds):
        for times, arm in zip(seconds, arms):
            times.append(step(arm))
        if time.perf_counter() - begun > budget:
            break
    return seconds


def _decodes(model, quantization: str, size: Size) -> Iterator[DecodeTimed]:
    bytes_read = bytes_per_token(model)
    for fast in (False, True):
        with suppress(ImportError):  # without numba nothing is compiled
            spoken = decode_speed(model, RandomPrompt(MODELS[size.model].shape.vocab_size), "", size.new_tokens, 1, fast)
            yield DecodeTimed(quantization, fast, size.model, spoken.tokens_per_second, bytes_read)


def tiny() -> Size:
    """For tests: its numbers mean nothing."""
    return replace(Size(), model="tiny-2-layers", batch=1, length=16, new_tokens=4, limit_bytes=2**22, rounds=1)
