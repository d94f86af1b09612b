"""One loop for full fine-tuning, LoRA and QLoRA, on transformers' Trainer; it emits data only.

How it works: Trainer runs the steps; a callback times each one (evaluation, logging and saving
left out), follows the allocator through one of them, and stops at a loss that is not finite or has diverged.
Every arm gets the same windows in the same order, and each window scores the same tokens.
Checkpoints are resumed only when the marker that is written last is there; it also holds what was
measured so far, so that the record of a resumed run is of all its steps. Asked to leave (Ctrl-C, SIGTERM), the
run ends its step, writes a checkpoint and raises `Left`.

Several processes (processes.py) take a share of each step's windows: a step, its mean over all learned tokens, the norm that
gradients are clipped to and the order of the windows are those of one process. Each has dropout of its own, and its random
state in every checkpoint, which is sealed when all have written. They leave after the same step, whichever was asked to.
"""

import math
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from qlora_lib import sharding
from qlora_lib.batches import make_batches, training_examples
from qlora_lib.checkpoints import FOLDER, keep_good_checkpoint, measured_until, newest_checkpoint, seal, step_of
from qlora_lib.config import Settings
from qlora_lib.data import LanguageData
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.fast.install import install
from qlora_lib.fast.loss import IGNORED
from qlora_lib.fast.optimizer import FusedAdamW8bit
from qlora_lib.hardware import DType
from qlora_lib.job import ADAPTER_DIR, MODEL_DIR
from qlora_lib.leaving import Leaving, Left
from qlora_lib.metrics.memory import (
    StepMeter,
    gradient_bytes,
    optimizer_bytes,
    peak_memory,
    reset_peak,
    training_resident_bytes,
)
from qlora_lib.processes import Together, check_number, current, share
from qlora_lib.records import Optimizer, Train
from qlora_lib.task_data import TaskTokens

METERED_STEP = 2  # or the first longer one after it: optimizer states exist, nothing is new any more
DIVERGED_STEPS, DIVERGED_TIMES = 5, 2  # so many steps in a row above so many times the loss of the first, or of knowing nothing

# Paged optimizers move states between GPU and host memory; without CUDA there is nowhere to page to.
UNPAGED = {"paged_adamw_8bit": "adamw_8bit", "paged_adamw_32bit": "adamw_torch"}


@dataclass(frozen=True)
class Outcome:
    train: Train
    stopped: str | None  # why it ended early
    kept: str = ""  # which checkpoint is left of a run that ended early


def choose_optimizer(wanted: str, on: str) -> tuple[str, str]:
    """(the optimizer that runs here, why)."""
    if on == "cpu" and wanted in UNPAGED:
        return UNPAGED[wanted], f"{wanted} pages between GPU and host memory; on a CPU its unpaged twin runs"
    return wanted, "as asked for"


class _Trainer(Trainer):
    """Trainer, whose validation loss is the mean over learned tokens where examples differ in length.

    Its own gives each example the mean of its batch, which is the same only where all have as many tokens.
    """

    labels_per_example: float | None = None  # of the validation set, on average; None: as Trainer has it

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        across, self.args.average_tokens_across_devices = self.args.average_tokens_across_devices, False
        try:  # this process's examples by themselves: divided by all processes' tokens, they could not be weighed below
            loss, logits, labels = super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        finally:
            self.args.average_tokens_across_devices = across
        if self.labels_per_example is not None:
            learned = (inputs["labels"] != IGNORED).sum()
            loss = loss * learned / (len(inputs["labels"]) * self.labels_per_example)
        return loss, logits, labels


def planned_steps(settings: Settings, windows: int) -> int:
    """Optimizer steps: max_steps, or fewer when the epochs end first."""
    t = settings.train
    per_step = t.batch_size * t.gradient_accumulation_steps
    # 0.57 * 100 is 56.99...: the last bits of a product must not cost a window
    steps = t.max_steps if t.epochs is None else min(t.max_steps, int(t.epochs * windows + 1e-9) // per_step)
    if steps < 1:
        raise QloraError(
            f"{t.epochs} epochs of {windows} windows hold no step of {per_step} windows",
            "Give more text, or set train.batch_size or train.gradient_accumulation_steps lower",
        )
    return steps


def train(model, data: LanguageData | TaskTokens, settings: Settings, dtype: DType, on: str, out: Path) -> Outcome:
    """Train `model` in place and return what was measured.

    Raises QloraError where another number of processes runs than `runtime.processes` says.
    """
    t, together = settings.train, current()
    check_number(settings.runtime.processes, together.world)
    per_step = t.batch_size * t.gradient_accumulation_steps
    steps = planned_steps(settings, training_examples(data))
    batches = make_batches(data, steps * per_step, t.batch_size, t.eval_windows, settings.seed)
    optimizer, why = choose_optimizer(t.optimizer, on)
    checkpoint = together.from_first(lambda: newest_checkpoint(out))
    fast = install(model) if settings.runtime.fast else []
    meters = settings.runtime.meter_tensors and steps >= METERED_STEP and together.leads
    meter = _Meter(on, meters, batches.longest_step(per_step, METERED_STEP), together.world > 1)
    if checkpoint:
        meter.restore(measured_until(checkpoint))
    arguments = _arguments(settings, optimizer, dtype, on, steps, out, checkpoint is not None, len(batches.validation))
    kind_of_optimizer = None  # as the arguments say
    if fast and on == "cpu" and optimizer == "adamw_8bit":
        kind_of_optimizer = FusedAdamW8bit, Trainer.get_optimizer_cls_and_kwargs(arguments)[1]
        fast.append("optimizer")
    trainer = _Trainer(
        model=model,
        args=arguments,
        optimizer_cls_and_kwargs=kind_of_optimizer,
        train_dataset=batches.train,
        eval_dataset=batches.validation,
        data_collator=batches.collate,
        callbacks=[meter, _MarkComplete(meter, together), _Leave(leaving := Leaving(together.leads), together), _Dropout(together)],
    )
    check_number(together.world, trainer.accelerator.num_processes, "are known to accelerate")
    if trainer.is_fsdp_enabled != (settings.runtime.sharding == "fsdp"):
        raise UsageError("the launcher asks for FSDP, and runtime.sharding does not", "Set runtime.sharding=fsdp, or leave --use_fsdp out")
    if together.leads:
        trainer.add_callback(_Progress(steps))
    for callback in (ProgressCallback, PrinterCallback):  # they print to standard output
        trainer.remove_callback(callback)
    if data.info.task is not None:
        trainer.labels_per_example = batches.learned_per_example()
    meter.optimizer = lambda: trainer.optimizer
    reset_peak(on)
    with leaving:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if leaving.asked is not None:
        raise Left(leaving.asked, trainer.state.global_step)
    if settings.runtime.sharding == "fsdp" and t.keep_model and not meter.stopped:
        sharding.save(trainer, out / (ADAPTER_DIR if hasattr(model, "peft_config") else MODEL_DIR))
    peak, which = max(together.gather(meter.peak_memory()))
    if together.world > 1:
        which = f"{which}, the largest of {together.world}"
    # Mixed precision wraps `forward` in place; what is measured next is the model as it is deployed.
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)

    logs = trainer.state.log_history
    timed = meter.timed()
    seconds_per_step = statistics.median(timed)
    tokens, learned = zip(*batches.tokens_by_step(per_step))
    column = lambda key: [float(entry[key]) for entry in logs if key in entry]  # noqa: E731
    stopped, kept = meter.stopped, ""
    if stopped and together.leads:
        good = keep_good_checkpoint(out, meter.bad_from)
        kept = f"kept of the run that stopped: {good.relative_to(out)}" if good else "no checkpoint was written before the run went wrong"
    losses = [x for x in column("loss") if math.isfinite(x)]
    result = Train(
        steps=len(losses),
        tokens=sum(tokens[: len(losses)]),
        tokens_per_step=round(statistics.fmean(tokens)),
        seconds=sum(meter.seconds),
        seconds_per_step=seconds_per_step,
        seconds_per_step_quartiles=_quartiles(timed),
        tokens_per_second=_tokens_per_second(tokens, meter.timed_steps(), meter.seconds),
        timed_steps=len(timed),
        peak_memory_bytes=peak,
        peak_memory_meter=which,
        peak_tensor_bytes=meter.peak_tensor_bytes,
        loss=losses,
        eval_loss=[x for x in column("eval_loss") if math.isfinite(x)],
        eval_steps=[entry["step"] for entry in logs if math.isfinite(entry.get("eval_loss", math.nan))],
        learning_rate=column("learning_rate")[: len(losses)],
        grad_norm=[x for x in column("grad_norm") if math.isfinite(x)][: len(losses)],
        optimizer=Optimizer(requested=t.optimizer, ran=optimizer, why=why, state_bytes=optimizer_bytes(trainer.optimizer.optimizer)),
        gradient_bytes=meter.gradient_bytes,
        resumed_from_step=step_of(checkpoint) if checkpoint else None,
        response_tokens=sum(learned[: len(losses)]) if data.info.task is not None else None,
        fast_path=fast,
    )
    return Outcome(result, stopped, kept)


def _arguments(
    settings: Settings, optimizer: str, dtype: DType, on: str, steps: int, out: Path, resumes: bool = False, validation: int = 1
):
    t, processes = settings.train, settings.runtime.processes
    batch_size, accumulation = share(t.batch_size, t.gradient_accumulation_steps, processes)
    return TrainingArguments(
        output_dir=str(Path(out) / FOLDER),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=eval_batch(t.eval_batch_size, validation, processes),
        gradient_accumulation_steps=accumulation,
        learning_rate=t.learning_rate,
        warmup_steps=t.warmup_steps,
        lr_scheduler_type=t.schedule,
        weight_decay=t.weight_decay,
        max_grad_norm=t.max_grad_norm,
        optim=optimizer,
        fp16=dtype.name == "fp16",
        bf16=dtype.name == "bf16",
        use_cpu=on == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        train_sampling_strategy="sequential",  # `training_order` has shuffled already
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="steps",
        eval_steps=min(t.eval_every, steps),
        eval_on_start=not resumes,  # the checkpoint's log has that evaluation
        prediction_loss_only=True,
        save_strategy="steps" if t.save_every else "no",
        save_steps=t.save_every or steps,
        save_total_limit=2,
        report_to="none",
        dataloader_pin_memory=on == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        ddp_find_unused_parameters=False,  # every trained parameter is used in every step
        **(sharding.arguments() if settings.runtime.sharding == "fsdp" else {}),
    )


def eval_batch(wanted: int, examples: int, processes: int) -> int:
    """The largest batch up to `wanted` that leaves no process a shorter one, or 1.

    Trainer fills up a last, shorter round with examples from the beginning, and takes the mean over batches.
    """
    if processes == 1:
        return wanted
    return next((size for size in range(wanted, 1, -1) if examples % (size * processes) == 0), 1)


class _Meter(TrainerCallback):
    """Times every step, follows the allocator through one, and stops at a loss that is not finite or has diverged."""

    def __init__(self, on: str, meter_tensors: bool, metered_step: int = METERED_STEP, buckets: bool = False) -> None:
        self.on, self.metered_step = on, metered_step
        self.buckets = buckets  # DDP holds every gradient a second time, to be sent
        self.step_meter = StepMeter() if meter_tensors and on == "cpu" else None
        self.seconds: list[float] = []  # a step
        self.disturbed: set[int] = set()  # steps that tell nothing of speed: a first one, the metered one
        self.peak_before = 0  # of a run that this one resumes
        self.peak_tensor_bytes: int | None = None
        self.gradient_bytes: int | None = None
        self.stopped: str | None = None
        self.bad_from = 0  # the first step after which the weights may be bad, of a run that stopped
        self.optimizer = None  # set once there is one

    def on_train_begin(self, args, state, control, **_):
        self.disturbed.add(len(self.seconds))

    def on_step_begin(self, args, state, control, model=None, **_):
        if self.step_meter and len(self.seconds) == self.metered_step - 1:
            self._resident = training_resident_bytes(model, self.optimizer().optimizer)
            self._resident += self.buckets * sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
            self.step_meter.start()
        self._start = self._now()

    def on_pre_optimizer_step(self, args, state, control, model=None, **_):
        if self.gradient_bytes is None:
            self.gradient_bytes = gradient_bytes(model)

    def on_step_end(self, args, state, control, **_):
        self.seconds.append(self._now() - self._start)
        if self.step_meter and len(self.seconds) == self.metered_step:
            self.peak_tensor_bytes = self._resident + self.step_meter.stop()
            self.disturbed.add(len(self.seconds) - 1)

    def on_log(self, args, state, control, logs=None, model=None, **_):
        for name in ("loss", "eval_loss"):
            if not math.isfinite((logs or {}).get(name, 0.0)):
                self._stop(f"{name} was not a finite number at step {state.global_step}", state.global_step - 1, control)
        losses = [entry["loss"] for entry in state.log_history if "loss" in entry]
        if diverged(losses, getattr(model.config, "vocab_size", 1)):
            text = f"the loss has diverged: above {DIVERGED_TIMES} times that of the first step for {DIVERGED_STEPS} steps, at step"
            self._stop(f"{text} {state.global_step}", state.global_step - DIVERGED_STEPS, control)

    def _stop(self, why: str, bad_from: int, control) -> None:
        if not self.stopped:
            self.stopped, self.bad_from = why, bad_from
        control.should_training_stop, control.should_save = True, False

    def _now(self) -> float:
        if self.on == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self) -> list[float]:
        """Seconds of the steps that ran undisturbed: no first one, not the metered one."""
        return [self.seconds[i] for i in self.timed_steps()]

    def timed_steps(self) -> list[int]:
        """Their numbers, from 0; all of them where none was undisturbed."""
        steps = [i for i in range(len(self.seconds)) if i not in self.disturbed]
        return steps or list(range(len(self.seconds)))

    def peak_memory(self) -> tuple[int, str]:
        """(bytes, which meter), of the resumed run too."""
        peak, which = peak_memory(self.on)
        return max(peak, self.peak_before), which

    def saved(self) -> dict:
        """What was measured so far, for the marker of a checkpoint."""
        return {
            "seconds": self.seconds,
            "disturbed": sorted(self.disturbed),
            "peak_before": self.peak_memory()[0],
            "peak_tensor_bytes": self.peak_tensor_bytes,
            "gradient_bytes": self.gradient_bytes,
        }

    def restore(self, saved: dict) -> None:
        for name, value in saved.items():
            setattr(self, name, set(value) if name == "disturbed" else value)


class _MarkComplete(TrainerCallback):
    def __init__(self, meter: _Meter, together: Together) -> None:
        self.meter, self.together = meter, together

    def on_step_end(self, args, state, control, **_):
        if state.global_step >= state.max_steps:
            control.should_save = False  # nothing is left to resume; the result itself is saved next

    def on_save(self, args, state, control, **_):
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.together.wait()  # until each has written its random state
        if folder.is_dir() and self.together.leads:
            seal(folder, self.meter.saved())


class _Leave(TrainerCallback):
    """Ends training after the step in which a process was asked to leave, with a checkpoint; all of them, or none could."""

    def __init__(self, leaving: Leaving, together: Together) -> None:
        self.leaving, self.together = leaving, together

    def on_step_end(self, args, state, control, **_):
        if asked := self.together.highest(self.leaving.asked or 0):
            self.leaving.asked = asked
            control.should_save = control.should_training_stop = True


class _Dropout(TrainerCallback):
    """Gives each process but the first random numbers of its own: Trainer has seeded all alike. A checkpoint has them later."""

    def __init__(self, together: Together) -> None:
        self.together = together

    def on_train_begin(self, args, state, control, **_):
        if not self.together.leads:
            torch.manual_seed(args.seed + self.together.rank)


def diverged(losses: list[float], vocabulary: int) -> bool:
    """Whether the last steps are all far above the first one, and above knowing nothing (ln of the vocabulary)."""
    last = losses[-DIVERGED_STEPS:]
    return len(losses) > DIVERGED_STEPS and min(last) > DIVERGED_TIMES * max(losses[0], math.log(vocabulary))


class _Progress(TrainerCallback):
    """A bar on a terminal, a line every tenth of the way elsewhere; always on standard error."""

    def __init__(self, steps: int) -> None:
        self.steps, self.bar, self.loss = steps, None, None

    def on_train_begin(self, args, state, control, **_):
        if sys.stderr.isatty():
            from tqdm.auto import tqdm

            self.bar = tqdm(total=self.steps, initial=state.global_step, desc="training", unit="step")

    def on_log(self, args, state, control, logs=None, **_):
        logs = logs or {}
        self.loss = logs.get("loss", self.loss)
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{self.loss:.3f}" if self.loss is not None else "")
        elif "loss" in logs and (state.global_step % max(1, self.steps // 8) == 0 or state.global_step == self.steps):
            print(f"  step {state.global_step}/{self.steps}, loss {logs['loss']:.3f}", file=sys.stderr, flush=True)

    def on_step_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.update()

    def on_train_end(self, args, state, control, **_):
        if self.bar is not None:
            self.bar.close()


def _tokens_per_second(tokens: list[int], steps: list[int], seconds: list[float]) -> float:
    """Of the median step where all are equally long, else of all timed steps together."""
    if len(set(tokens)) == 1:
        return tokens[0] / statistics.median(seconds[i] for i in steps)
    return sum(tokens[i] for i in steps) / sum(seconds[i] for i in steps)


def _quartiles(values: list[float]) -> tuple[float, float] | None:
    if len(values) < 4:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
