"""Training steps, stock against ours: QLoRA and full fine-tuning, seconds and peak tensor bytes.

How it works: a step is a plain loop of forward with labels, backward, gradient clipping, optimizer and zero_grad.
That is what transformers' Trainer runs for one: its loss is the model's own (dividing by the number of scored labels,
which windows without padding all have), `accelerator.backward` and `clip_grad_norm_` are torch's in fp32, and
its `adamw_8bit` and `adamw_torch` are the optimizers used here (the tests hold the losses of both loops equal).
What Trainer adds, the data loader, call-backs and logging, is the same for both sides and left out of both.

Stock and ours share one model: `install` and `uninstall` exchange forwards only, between the timed steps. Each
arm first runs one step that makes its optimizer's states and one that is metered; neither is timed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch

from qlora_lib.bench.loading import training_model
from qlora_lib.bench.record import Measurement
from qlora_lib.bench.rounds import in_turns
from qlora_lib.bench.settings import BenchSettings, Shape
from qlora_lib.data import pack, training_order
from qlora_lib.errors import QloraError
from qlora_lib.fast.install import install, uninstall
from qlora_lib.fast.optimizer import GroupedAdamW8bit
from qlora_lib.metrics.memory import StepMeter, training_resident_bytes
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.study import say

LEARNING_RATE = {"qlora": 2e-4, "full": 1e-5}
MAX_GRAD_NORM = 1.0
UNTIMED = 2  # steps of an arm before its first timed one
WORDS = {
    "qlora": "QLoRA, NF4 with double quantization, 8-bit AdamW", "full": "full fine-tuning, AdamW",
    "stock": "transformers + PEFT + bitsandbytes", "fast": "qlora_lib",
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    method: str  # qlora or full
    whose: str  # stock or fast
    model: torch.nn.Module
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer

    @property
    def name(self) -> str:
        return f"{self.method}.{self.whose}"

    def enter(self) -> None:
        """Put the model's forwards into place."""
        uninstall(self.model)
        if self.whose == "fast":
            install(self.model)

    def step(self, ids: torch.Tensor) -> float:
        """One optimizer step on ids [B, T]; its loss."""
        loss = self.model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRAD_NORM)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def make_arms(path: Path, settings: BenchSettings) -> list[Arm]:
    """Stock and ours of QLoRA and of full fine-tuning, in the order of a round."""
    arms = []
    for method in ("qlora", "full"):
        model = training_model(path, method, settings.lora, settings.seed)
        parameters = [p for p in model.parameters() if p.requires_grad]
        rate = LEARNING_RATE[method]
        if method == "full":  # the same optimizer, so the same states
            stock = fast = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.0)
        else:
            stock = bnb.optim.AdamW(parameters, lr=rate, weight_decay=0.0, optim_bits=8)
            fast = GroupedAdamW8bit(parameters, lr=rate, weight_decay=0.0, optim_bits=8)
        arms += [Arm(method, "stock", model, parameters, stock), Arm(method, "fast", model, parameters, fast)]
    return arms


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
    peaks = {arm.name: _metered(arm, batches, settings.seed) for arm in arms}

    def run(arm: Arm, i: int) -> None:
        arm.step(batches[UNTIMED + i])

    def ready(arm: Arm, i: int) -> None:
        arm.enter()
        torch.manual_seed(settings.seed + i)  # every arm's dropout starts from there

    seconds = in_turns({a.name: partial(run, a) for a in arms}, settings.repeats, {a.name: partial(ready, a) for a in arms})
    for arm in arms:
        yield Measurement.timed(
            f"training.{shape}.{arm.name}", f"{WORDS[arm.method]}: {WORDS[arm.whose]}", shape.tokens, seconds[arm.name],
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


def _metered(arm: Arm, batches: list[torch.Tensor], seed: int) -> int:
    """Peak tensor bytes of an arm's second step."""
    arm.enter()
    torch.manual_seed(seed)
    arm.step(batches[0])
    resident = training_resident_bytes(arm.model, arm.optimizer)
    meter = StepMeter()
    meter.start()
    arm.step(batches[1])
    return resident + meter.stop()
