"""One training step, measured: what autograd saves, how memory rises and falls, how long it takes.

How it works: the model is built by the same functions as an arm of the study, but always of the stock stack, on
the CPU and in 32 bits, where every byte can be accounted for; the lesson itself puts the fast path into it. Saved
tensors are seen by autograd's hooks and counted once by their storage; the course of memory comes from the events
of the allocator (`StepMeter`), which are kept here in place of their highest sum alone.
"""

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from qlora_lib import models
from qlora_lib.config import Settings
from qlora_lib.course.anatomy import Method
from qlora_lib.hardware import DType
from qlora_lib.metrics.memory import StepMeter, gradient_bytes, optimizer_bytes
from qlora_lib.metrics.sizes import ModelBytes, model_bytes
from qlora_lib.training import choose_optimizer

PHASES = ("forward", "backward", "optimizer")


def method_of(settings: Settings, name: str, fast: bool = False) -> Method:
    """The settings of an arm in the terms of `anatomy`, with the optimizer that runs on a CPU.

    fast: with the forwards of qlora_lib.fast in place of the stock stack's.
    """
    ran, _ = choose_optimizer(settings.train.optimizer, "cpu")
    adapters = {} if name == "full" else {"rank": settings.lora.rank, "dropout": settings.lora.dropout}
    return Method(
        name,
        four_bit=settings.quantization.format == "nf4",
        optimizer_bits=8 if "8bit" in ran else 32,
        checkpointing=settings.train.gradient_checkpointing,
        fast=fast,
        **adapters,
    )


def build(path, method: str, settings: Settings):
    """(model, optimizer) as an arm of this method has them with the stock stack; `path` is a transformers folder."""
    dtype = models.weight_dtype(method, DType("fp32", "every byte can be accounted for"))
    model = models.load_base(path, settings.quantization, dtype, "cpu")
    model = models.prepare_for_training(model, method, settings.train.gradient_checkpointing)
    if method != "full":
        model = models.attach_lora(model, settings.lora, settings.seed)
    return model.train(), make_optimizer(model, settings)


def make_optimizer(model, settings: Settings):
    ran, _ = choose_optimizer(settings.train.optimizer, "cpu")
    trained = [p for p in model.parameters() if p.requires_grad]
    if ran == "adamw_8bit":
        import bitsandbytes as bnb

        return bnb.optim.AdamW8bit(trained, lr=1e-6)
    return torch.optim.AdamW(trained, lr=1e-6)


class SavedTensors:
    """Counts what autograd saves inside a `with`: each storage once, parameters and buffers left out."""

    def __init__(self, model: torch.nn.Module):
        # Held too: bitsandbytes gives a bias other storage at its first use, and the old address must not come back.
        self._own = [t.detach() for t in (*model.parameters(), *model.buffers())]
        self._not_counted = {t.untyped_storage().data_ptr() for t in self._own}
        self._held: dict[int, torch.Tensor] = {}  # held, so that no address is given twice
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda tensor: tensor)

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exc) -> None:
        self._hooks.__exit__(*exc)

    def _note(self, tensor: torch.Tensor) -> torch.Tensor:
        address = tensor.untyped_storage().data_ptr()
        if address not in self._not_counted:
            self._held.setdefault(address, tensor.detach())
        return tensor

    @property
    def bytes(self) -> int:
        return sum(t.untyped_storage().nbytes() for t in self._held.values())

    def forget(self) -> None:
        self._held.clear()


@dataclass(frozen=True)
class Measured:
    model: ModelBytes
    states: int  # bytes
    gradients: int
    saved: int  # bytes that autograd saved, counted by hooks
    peak: int  # highest bytes above weights and states during a step
    seconds: float | None  # of a step that was not metered
    times: np.ndarray  # [points] seconds since the metered step began
    held: np.ndarray  # [points] bytes above weights and states
    begins: dict[str, float]  # phase -> seconds

    @property
    def total(self) -> int:
        return self.model.total + self.states + self.peak


def random_batch(vocabulary: int, batch: int, length: int, seed: int = 0) -> torch.Tensor:
    """Token ids [batch, length]; how much a step holds does not depend on the text."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(seed))


def measure(model, optimizer, ids: torch.Tensor, timed: bool = False) -> Measured:
    """Two steps on `ids`: one counts what is saved, one is metered; with `timed`, one between them is timed."""
    with SavedTensors(model) as saved:
        loss = model(input_ids=ids, labels=ids).loss
    counted = saved.bytes
    saved.forget()
    loss.backward()
    gradients = gradient_bytes(model)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    del loss
    seconds = None
    if timed:
        begin = time.perf_counter()
        step(model, optimizer, ids)
        seconds = time.perf_counter() - begin
    meter = Course()
    meter.start()
    step(model, optimizer, ids)
    peak = meter.stop()
    gc.collect()
    return Measured(
        model_bytes(model), optimizer_bytes(optimizer), gradients, counted, peak, seconds,
        meter.times, meter.held, meter.begins,
    )  # fmt: skip


def step(model, optimizer, ids: torch.Tensor) -> None:
    """A step as Trainer makes it: forward, backward, clipping, update, gradients dropped."""
    mark = torch.profiler.record_function
    with mark("forward"):
        loss = model(input_ids=ids, labels=ids).loss
    with mark("backward"):
        loss.backward()
    with mark("optimizer"):
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Course(StepMeter):
    """`StepMeter` that keeps the course of memory: `times`, `held` and when each phase began."""

    def stop(self) -> int:
        profiler = self._profiler
        peak = super().stop()
        events = profiler.profiler.kineto_results.events()
        changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
        begins = {e.name(): e.start_ns() for e in events if e.name() in PHASES}
        origin = min(begins.values())
        self.times = (np.array([t for t, _ in changes]) - origin) / 1e9
        self.held = np.cumsum([change for _, change in changes])
        self.begins = {name: (begins[name] - origin) / 1e9 for name in PHASES}
        return peak
