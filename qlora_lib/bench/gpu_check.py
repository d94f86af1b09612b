"""`qlora bench --gpu-check`: does this library do on a GPU what it predicts? Minutes, no download, one record.

Its authors had no GPU: this module has been run on CPUs only, at the tiny size, and what it measures on a GPU is
what it is there to find out.

How it works: each case builds a model with random weights in a known shape (gpu_models.py), and then calls the
functions that an arm of a study calls, in the same order: `prepare_for_training`, `attach_lora`,
`training.train` (Trainer in mixed precision, with the fast path wherever it applies) and `decode_speed`. The text is a
few random windows that come round in every step, so the loss must fall. Beside each number stands the
prediction (predict.py). A case whose predicted peak exceeds the free memory is skipped, one that runs out of memory
or fails is recorded so, and the next goes on in memory that was given back. After the time budget the rest
is not run.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from qlora_lib import config, hardware, models
from qlora_lib.bench.gpu_models import END_OF_TEXT, SHAPES, free_memory, random_model
from qlora_lib.bench.gpu_record import GpuCase, GpuCheckRecord, GpuProvenance
from qlora_lib.bench.predict import Work, bandwidth_of, predict
from qlora_lib.bench.settings import NF4_DQ
from qlora_lib.bench.threads import use_threads
from qlora_lib.data import LanguageData
from qlora_lib.errors import QloraError, UsageError, one_line, out_of_memory
from qlora_lib.metrics.sizes import model_bytes, tensor_bytes
from qlora_lib.metrics.speed import decode_speed
from qlora_lib.progress import say
from qlora_lib.records import DataInfo
from qlora_lib.training import train

BUDGET = 300.0  # seconds
STEPS = 20
SEED = 0
OPTIMIZER = "adamw_8bit"
# High, since 20 steps on one batch must show: nothing else is learnt from random weights.
LEARNING_RATE = {"full": 1e-4, "lora": 1e-3, "qlora": 1e-3}
OUT_OF_TIME = "not run: out of time"
GIB = 2**30
WORDS = {
    "full": "full fine-tuning, fp32 weights in mixed precision",
    "lora": "LoRA on a base in the dtype of the products",
    "qlora": "QLoRA, NF4 with double quantization",
}


@dataclass(frozen=True)
class Case:
    """One model with one method, and the size of its step."""

    model: str
    method: str
    batch: int
    length: int
    checkpointing: bool

    @property
    def name(self) -> str:
        return f"{self.model}.{self.method}"


# What tells most comes first: time may run out.
CASES = (
    Case("tinyllama-1.1b", "qlora", 2, 512, False),
    Case("tinyllama-1.1b", "lora", 2, 512, False),
    Case("llama-3.1-8b", "qlora", 1, 512, True),
    Case("tinyllama-1.1b", "full", 2, 512, False),
    Case("llama-3.1-8b", "lora", 1, 512, True),
)
TINY = (
    Case("tiny-2-layers", "qlora", 2, 32, False),
    Case("tiny-2-layers", "lora", 2, 32, False),
    Case("tiny-3-layers", "qlora", 1, 32, True),
    Case("tiny-2-layers", "full", 2, 32, False),
)
NEW_TOKENS, REPEATS, PROMPT_TOKENS = 50, 3, 16
TINY_NEW_TOKENS = 4
ORDINARY = END_OF_TEXT + 1  # the first token that is no begin or end of text


@dataclass(frozen=True)
class Device:
    """Where the cases run, and what is known of it beforehand."""

    on: str  # cpu or cuda
    dtype: hardware.DType
    peak: float | None  # FLOP/s in that dtype
    peak_words: str
    bandwidth: float | None  # bytes a second


def this_device() -> Device:
    on = hardware.device()
    dtype = hardware.choose_dtype(on=on)
    peak, words = hardware.peak_flops(dtype, on)
    return Device(on, dtype, peak, words, bandwidth_of(hardware.device_name(on)) if on == "cuda" else None)


def run_gpu_check(tiny: bool = False, budget: float = BUDGET, clock: Callable[[], float] = time.perf_counter) -> GpuCheckRecord:
    """All cases; progress on standard error. UsageError without a CUDA GPU, unless `tiny`."""
    if hardware.device() != "cuda" and not tiny:
        raise UsageError(
            "PyTorch sees no CUDA GPU here; --gpu-check measures one",
            "`qlora doctor` says what it sees; --tiny shows anywhere that the check runs, at a size whose numbers mean nothing",
        )
    begun = clock()
    use_threads()
    device = this_device()
    name = hardware.device_name(device.on)
    say(f"gpu check on {name}, {device.dtype.name}: {device.dtype.reason}")
    done = []
    for case in TINY if tiny else CASES:
        done.append(run_case(case, device, tiny, lambda: clock() - begun >= budget))
        say(f"  {case.name}: {done[-1].status}" + (f" ({done[-1].reason})" if done[-1].reason else ""))
    return GpuCheckRecord(tiny=tiny, seed=SEED, cases=done, provenance=_provenance(device, name, budget, clock() - begun))


# --- one case -------------------------------------------------------------------------------------


def work_of(case: Case, dtype: str, on: str = "cuda") -> Work:
    rank = config.Lora().rank
    return Work(SHAPES[case.model], case.method, case.batch, case.length, rank, case.checkpointing, dtype, on)


def run_case(case: Case, device: Device, tiny: bool, out_of_time: Callable[[], bool]) -> GpuCase:
    """Predict, then build, train and decode; whatever happens is in the result."""
    free = free_memory(device.on)
    predicted = predict(work_of(case, device.dtype.name, device.on), device.peak, device.bandwidth)
    found = GpuCase(
        name=case.name, model=case.model, method=case.method, what=WORDS[case.method],
        parameters_total=SHAPES[case.model].parameters.total, batch=case.batch, length=case.length, steps=STEPS,
        gradient_checkpointing=case.checkpointing, optimizer=OPTIMIZER, status="skipped",
        predicted_weight_bytes=predicted.weight_bytes,
        predicted_trainable_bytes=predicted.trainable_bytes,
        predicted_optimizer_bytes=predicted.optimizer_bytes,
        predicted_peak_bytes=predicted.peak_bytes,
        predicted_step_seconds=predicted.step_seconds,
        predicted_decode_tokens_per_second=predicted.decode_tokens_per_second,
        predicted_flops_per_step=predicted.hardware_flops,
        predicted_bytes_per_token=predicted.bytes_per_token,
        free_bytes_before=free,
        allocated_bytes_before=torch.cuda.memory_allocated() if device.on == "cuda" else None,
    )  # fmt: skip
    if out_of_time():
        found.reason = OUT_OF_TIME
        return found
    if predicted.peak_bytes > free:
        found.reason = f"does not fit: predicted peak {predicted.peak_bytes / GIB:.1f} GiB, free {free / GIB:.1f} GiB"
        return found
    say(f"{case.name}: {WORDS[case.method]}, {case.batch} x {case.length} tokens a step")
    start = time.perf_counter()
    found.status = "measured"
    try:
        _measure(case, device, found, TINY_NEW_TOKENS if tiny else NEW_TOKENS, out_of_time)
    except Exception as e:  # whatever it is, the other cases still tell something
        found.status, found.reason = _what_happened(e)
    found.seconds = time.perf_counter() - start
    return found


def _what_happened(e: Exception) -> tuple[str, str]:
    """(status, reason). Of an error that was not foreseen only its kind is recorded: its text may name a folder."""
    if out_of_memory(e):
        return "out of memory", "the device ran out of memory, although the prediction fits"
    if _debugging():
        raise e
    print(f"error: {type(e).__name__}: {one_line(str(e)):.300}", file=sys.stderr)
    return "failed", f"{type(e).__name__}, which was not foreseen"


def _debugging() -> bool:
    return bool(os.environ.get("QLORA_DEBUG"))


def _measure(case: Case, device: Device, found: GpuCase, new_tokens: int, out_of_time: Callable[[], bool]) -> None:
    """Fill `found` as far as it comes; the model is dropped on the way out, whichever way that is."""
    settings = settings_of(case)
    torch.manual_seed(SEED)
    shape, weights = SHAPES[case.model], models.weight_dtype(case.method, device.dtype)
    model = random_model(shape, case.method, weights, device.on, SEED)
    model = models.prepare_for_training(model, case.method, case.checkpointing)
    if case.method != "full":
        model = models.attach_lora(model, settings.lora, SEED)
    found.measured_weight_bytes = model_bytes(model).total
    found.measured_trainable_bytes = sum(tensor_bytes(p) for p in model.parameters() if p.requires_grad)
    if device.on == "cuda":
        torch.cuda.synchronize()
        found.measured_allocated_bytes = torch.cuda.memory_allocated()

    with tempfile.TemporaryDirectory() as out:  # nothing is saved; Trainer wants a folder
        outcome = train(model, random_data(case, shape.vocab_size), settings, device.dtype, device.on, Path(out))
    t = outcome.train
    found.measured_optimizer_bytes = t.optimizer.state_bytes
    found.measured_peak_bytes = t.peak_memory_bytes if device.on == "cuda" else t.peak_tensor_bytes
    found.measured_step_seconds = t.seconds_per_step
    found.measured_step_seconds_quartiles = t.seconds_per_step_quartiles
    found.measured_timed_steps = t.timed_steps
    found.measured_tokens_per_second = t.tokens_per_second
    found.fast_path = t.fast_path
    found.losses = t.loss
    if t.loss:
        found.loss_first, found.loss_last = t.loss[0], t.loss[-1]
        found.falls = t.loss[-1] < t.loss[0]
    if outcome.stopped:
        found.status, found.reason = "failed", outcome.stopped
        return

    if out_of_time():
        found.reason = f"decoding {OUT_OF_TIME}"
        return
    if case.checkpointing:
        model.gradient_checkpointing_disable()  # it excludes the key/value cache
    decoded = decode_speed(model, RandomPrompt(shape.vocab_size), "", new_tokens, REPEATS, settings.runtime.fast)
    found.measured_decode_tokens_per_second = decoded.tokens_per_second
    found.measured_first_token_seconds = decoded.first_token_seconds
    found.decode_protocol, found.decode_engine = decoded.protocol, decoded.engine


def settings_of(case: Case) -> config.Settings:
    """The settings of an arm that does this."""
    return config.Settings(
        seed=SEED,
        model=config.Model(name=case.model),
        data=config.Data(name="random tokens", window_length=case.length),
        quantization=NF4_DQ if case.method == "qlora" else config.Quantization(),
        train=config.Train(
            max_steps=STEPS, batch_size=case.batch, learning_rate=LEARNING_RATE[case.method], schedule="constant",
            optimizer=OPTIMIZER, gradient_checkpointing=case.checkpointing, eval_every=STEPS, eval_windows=1,
            eval_batch_size=1, keep_model=False,
        ),
        runtime=config.Runtime(fast=True),
    )  # fmt: skip


def random_data(case: Case, vocabulary: int) -> LanguageData:
    """As many windows as a step has sequences: each step sees them all, in some order."""
    tokens = np.random.default_rng(SEED).integers(ORDINARY, vocabulary, case.batch * case.length, dtype=np.int32)
    info = DataInfo(name="random tokens", source="made on the spot", train_tokens=len(tokens), eval_tokens=len(tokens))
    return LanguageData(dict.fromkeys(("train", "validation", "test"), tokens), case.length, info)


class RandomPrompt:
    """Stands in for a tokenizer where there is no text: whatever the prompt, the same random tokens."""

    pad_token_id = eos_token_id = END_OF_TEXT

    def __init__(self, vocabulary: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.ids = torch.randint(ORDINARY, vocabulary, (1, PROMPT_TOKENS), generator=generator)

    def __call__(self, prompt: str, **_):
        from transformers import BatchEncoding

        return BatchEncoding({"input_ids": self.ids, "attention_mask": torch.ones_like(self.ids)})

    def decode(self, ids, **_) -> str:
        return ""


# --- where it ran ---------------------------------------------------------------------------------


def _provenance(device: Device, name: str, budget: float, wall: float) -> GpuProvenance:
    gpu = torch.cuda.get_device_properties(0) if device.on == "cuda" else None
    return GpuProvenance(
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        device=name if gpu else "cpu",
        capability=f"{gpu.major}.{gpu.minor}" if gpu else None,
        memory_bytes=gpu.total_memory if gpu else hardware.total_memory(),
        driver=_driver() if gpu else None,
        cuda=torch.version.cuda,
        dtype=device.dtype.name,
        dtype_reason=device.dtype.reason,
        peak_flops_per_second=device.peak,
        peak=device.peak_words,
        bandwidth_bytes_per_second=device.bandwidth,
        platform=hardware.platform_name(),
        versions=hardware.versions(),
        git_commit=hardware.git_commit(),
        budget_seconds=budget,
        wall_seconds=wall,
    )


def _driver() -> str | None:
    """The driver's version, asked of its own tool; torch does not know it."""
    try:
        asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        out = subprocess.run(asked, check=False, capture_output=True, text=True, timeout=10)
        return out.stdout.split()[0] if out.returncode == 0 else None
    except (OSError, subprocess.TimeoutExpired, IndexError):
        return None


def default_out(tiny: bool) -> Path:
    """The tiny size is no measurement, so it does not overwrite one."""
    from qlora_lib.paths import results_dir

    return results_dir("gpu-check-tiny.json" if tiny else "gpu-check.json")


def failed(record: GpuCheckRecord) -> QloraError | None:
    """What a caller is told when the check itself went wrong; a lack of memory or time is a finding."""
    names = [c.name for c in record.cases if c.status == "failed"]
    stays = [c.name for c in record.cases if c.falls is False]
    if names:
        return QloraError(f"failed: {', '.join(names)}; the record has the rest", "`qlora --debug bench --gpu-check` shows where")
    if stays:
        what = f"the loss did not fall: {', '.join(stays)}; on one repeated batch it must"
        return QloraError(what, "The record has every step's loss")
    return None
