"""Training steps, stock against ours: QLoRA and full fine-tuning, seconds and peak tensor bytes.

How it works: a step is `transformers.Trainer.training_step` (the model's forward with its loss, divided by the number
of scored labels, and accelerate's backward), followed by what Trainer's loop does next: torch's gradient clipping, the
optimizer's step, and gradients dropped. Write-ups train so, and so does `qlora_lib.training`, which gives the same Trainer
a model with the fast path installed and another 8-bit optimizer. So both sides pay what their user pays. In fp32 Trainer
changes nothing about the model: accelerate converts outputs in mixed precision only. Left out of both sides alike are
Trainer's data loader, call-backs, schedule and logging; the tests hold the losses equal to those of the whole loop and
to those of a step written by hand.

Stock and ours share one model: `install` and `uninstall` exchange forwards only, between the timed steps. Each
arm first runs one step that makes its optimizer's states and one that is metered; neither is timed.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from qlora_lib.bench.loading import training_model
from qlora_lib.bench.record import Measurement
from qlora_lib.bench.rounds import in_turns
from qlora_lib.bench.settings import BenchSettings, Shape
from qlora_lib.data import pack, training_order
from qlora_lib.errors import QloraError
from qlora_lib.fast.install import install, uninstall
from qlora_lib.fast.optimizer import FusedAdamW8bit
from qlora_lib.metrics.memory import StepMeter, training_resident_bytes
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.progress import say

LEARNING_RATE = {"qlora": 2e-4, "full": 1e-5}
MAX_GRAD_NORM = 1.0
UNTIMED = 2  # steps of an arm before its first timed one
WORDS = {
    "qlora": "QLoRA, NF4 with double quantization, 8-bit AdamW", "full": "full fine-tuning, AdamW",
    "stock": "transformers' Trainer + PEFT + bitsandbytes", "fast": "qlora_lib",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    method: str  # qlora or full
    whose: str  # stock or fast
    model: torch.nn.Module
    trainer: Trainer
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def name(self) -> str:
        return f"{self.method}.{self.whose}"

    @property
    def what(self) -> str:
        return f"{WORDS[self.method]}: {WORDS[self.whose]}"

    def enter(self) -> None:
        """Put the model's forwards into place."""
        uninstall(self.model)
        if self.whose == "fast":
            install(self.model)

    def step(self, ids: torch.Tensor) -> float:
        """One optimizer step on ids [B, T]; its loss."""
        labels = ids.clone()
        labels[:, 0] = -100  # Trainer divides by the number of labels, the model scores all but the first
        try:
            items = (labels != -100).sum()
            loss = self.trainer.training_step(self.model, {"input_ids": ids, "labels": labels}, items)
            torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
            self.optimizer.step()
        finally:  # where memory ran out, too
            self.optimizer.zero_grad()
        return loss.item()


def make_trainer(model) -> Trainer:
    """A plain Trainer for fp32 on the CPU, of which single steps are used: no data, logs or checkpoints."""
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its folder, and writes nothing there
        arguments = TrainingArguments(
            output_dir=folder, max_steps=1, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, label_names=["labels"],
        )  # fmt: skip
        return Trainer(model=model, args=arguments)


def make_arms(path: Path, settings: BenchSettings) -> list[Arm]:
    """Stock and ours of QLoRA and of full fine-tuning, in the order of a round."""
    return [
        arm
        for method in ("qlora", "full")
        for arm in arms_of(training_model(path, method, settings.lora, settings.seed), method)
    ]


def arms_of(model, method: str) -> list[Arm]:
    """Stock and ours on one model."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    rate = LEARNING_RATE[method]
    if method == "full":  # the same optimizer, so the same states
        stock = fast = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
    else:
        stock = bnb.optim.AdamW(parameters, lr=rate, weight_decay=0.0, optim_bits=8)
        fast = FusedAdamW8bit(parameters, lr=rate, weight_decay=0.0, optim_bits=8)
    trainer = make_trainer(model)
    return [Arm(method, whose, model, trainer, parameters, o) for whose, o in (("stock", stock), ("fast", fast))]


def measure_training(path: Path, tokens: np.ndarray, settings: BenchSettings) -> list[Measurement]:
    """Every arm at every shape. tokens: [tokens], the training text."""
    arms = make_arms(path, settings)
    try:
        return [m for shape in settings.shapes for m in _at_shape(arms, tokens, shape, settings)]
    finally:
        for arm in arms:
            uninstall(arm.model)


def _at_shape(arms: list[Arm], tokens: np.ndarray, shape: Shape, settings: BenchSettings) -> Iterator[Measurement]:
    say(f"training, {shape.batch} x {shape.length} tokens a step: memory")
    batches = batches_of(tokens, shape, UNTIMED + settings.repeats, settings.seed)
    peaks = {}
    for arm in arms:
        resident, above = metered_step(arm, batches, settings.seed)
        peaks[arm.name] = resident + above

    def run(arm: Arm, i: int) -> None:
        arm.step(batches[UNTIMED + i])

    def ready(arm: Arm, i: int) -> None:
        arm.enter()
        torch.manual_seed(settings.seed + i)  # every arm's dropout starts from there

    seconds = in_turns({a.name: partial(run, a) for a in arms}, settings.repeats, {a.name: partial(ready, a) for a in arms})
    for arm in arms:
        yield Measurement.timed(
            f"training.{shape}.{arm.name}", arm.what, shape.tokens, seconds[arm.name],
            peak_tensor_bytes=peaks[arm.name], model_bytes=model_bytes(arm.model).total,
        )  # fmt: skip


def batches_of(tokens: np.ndarray, shape: Shape, count: int, seed: int) -> list[torch.Tensor]:
    """`count` batches [B, T] of windows in training order; short texts come round again."""
    windows = pack(tokens, shape.length)
    if len(windows) == 0:
        raise QloraError(
            f"the training text has {len(tokens)} tokens, and one window needs {shape.length}",
            "Give shorter windows, e.g. --shapes 4x64",
        )
    order = training_order(len(windows), count * shape.batch, seed).reshape(count, shape.batch)
    return [torch.from_numpy(windows[rows].astype(np.int64)) for rows in order]


def metered_step(arm: Arm, batches: list[torch.Tensor], seed: int) -> tuple[int, int]:
    """(bytes of weights and optimizer states, peak bytes of all other tensors) of a second step."""
    arm.enter()
    torch.manual_seed(seed)
    arm.step(batches[0])
    resident = training_resident_bytes(arm.model, arm.optimizer)
    meter = StepMeter()
    meter.start()
    try:
        arm.step(batches[1])
    finally:
        above = meter.stop()
    return resident, above
