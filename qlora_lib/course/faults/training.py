"""One short training of the lab, as transformers' Trainer does it with its own defaults.

How it works: unlike the library's own loop, this one leaves Trainer's filter of NaN losses on, as most
people do. A subclass writes down what the filter hides, and how many tokens each example was scored on.
"""

import copy
from pathlib import Path
from statistics import fmean

from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from qlora_lib import models
from qlora_lib.config import Lora
from qlora_lib.course.faults.base import Base
from qlora_lib.course.faults.settings import LabSettings, Recipe
from qlora_lib.course.faults.symptoms import Curves
from qlora_lib.course.faults.task import AnswerCollator, Encoded, Splits


class Watched(Trainer):
    """Trainer that keeps the loss of every step, and the number of labels of every example."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.true_loss: list[float] = []
        self.scored: list[int] = []

    def training_step(self, model, inputs, num_items_in_batch=None):
        self.scored += (inputs["labels"] != -100).sum(1).tolist()
        loss = super().training_step(model, inputs, num_items_in_batch)
        self.true_loss.append(loss.item())
        return loss


def train(base: Base, recipe: Recipe, splits: Splits, scratch: Path):
    """(model with its trained adapter, what the training showed)."""
    s = base.settings
    model = with_adapter(base, recipe)
    own = _padding_with_eos(base.tokenizer) if recipe.pad_is_eos else base.tokenizer
    trainer = Watched(
        model=model,
        args=_arguments(s, recipe, base.on, scratch),
        train_dataset=Encoded(splits.train, own, recipe.template),
        eval_dataset=Encoded(splits.validation, own, recipe.template),
        data_collator=AnswerCollator(own, recipe.score_prompt),
    )
    for callback in (ProgressCallback, PrinterCallback):  # they print to standard output
        trainer.remove_callback(callback)
    trainer.train()
    logs = trainer.state.log_history
    evaluations = [entry for entry in logs if "eval_loss" in entry]
    answers = [len(row["input_ids"]) - row["prompt_length"] for row in trainer.train_dataset.rows]
    return model, Curves(
        logged_loss=[entry["loss"] for entry in logs if "loss" in entry],
        true_loss=trainer.true_loss,
        eval_steps=[entry["step"] for entry in evaluations],
        eval_loss=[entry["eval_loss"] for entry in evaluations],
        scored_tokens=fmean(trainer.scored),
        answer_tokens=fmean(answers),
    )


def with_adapter(base: Base, recipe: Recipe):
    """A fresh adapter on the 4-bit base; in fp16 where the recipe is careless, in fp32 as PEFT makes it elsewhere."""
    s = base.settings
    model = models.attach_lora(base.trainable, Lora(rank=s.rank, alpha=s.alpha, dropout=0.0), s.seed)
    if recipe.half_adapter:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.half()
    return model


def _padding_with_eos(tokenizer):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _arguments(s: LabSettings, recipe: Recipe, on: str, scratch: Path) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(scratch),
        max_steps=s.steps,
        per_device_train_batch_size=s.batch_size,
        per_device_eval_batch_size=s.held_out,
        learning_rate=s.learning_rate * recipe.learning_rate,
        warmup_steps=s.warmup_steps,
        lr_scheduler_type="linear",
        optim="adamw_torch",
        use_cpu=on == "cpu",
        seed=s.seed,
        train_sampling_strategy="sequential",  # the splits are shuffled already
        logging_steps=1,
        eval_strategy="steps",
        eval_steps=s.eval_every,
        eval_on_start=True,
        prediction_loss_only=True,
        save_strategy="no",
        report_to="none",
        dataloader_pin_memory=on == "cuda",
        remove_unused_columns=False,
        label_names=["labels"],
        disable_tqdm=True,
    )
