"""The base of the lab, in 4 bits for training and dequantized for what is deployed.

How it works: QLoRA trains an adapter on the *dequantized* 4-bit weights, so these are what it has to be
added to. The model that the smoke profile makes up is random: its embedding is too small for any
adapter to say anything, so it is trained in full for a moment on prose about the same people, which
stands in for pretraining and for learning to chat.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from qlora_lib import models
from qlora_lib.assets import resolve_model
from qlora_lib.config import Quantization
from qlora_lib.course.faults import task
from qlora_lib.course.faults.settings import LabSettings, settings_for

NF4 = Quantization(format="nf4")
PRETRAINING_RATE, PRETRAINING_BATCH = 1e-2, 12


@dataclass
class Base:
    """A model's folder, its tokenizer with a padding token of its own, and its dequantized weights."""

    path: Path
    tokenizer: object
    plain: torch.nn.Module  # NF4 weights turned back to 32 bits
    on: str
    settings: LabSettings

    def in_4bit(self):
        """The 4-bit base, loaded anew."""
        return models.load_base(self.path, NF4, torch.float32, self.on)

    @cached_property
    def trainable(self):
        """The 4-bit base as QLoRA prepares it: frozen, so all trainings share it."""
        return models.prepare_for_training(self.in_4bit(), "qlora", gradient_checkpointing=False)


def load(name: str, on: str, scratch: Path, settings: LabSettings | None = None) -> Base:
    """The base of a registered name, hub id or folder.

    Args:
        scratch: where a model that had to be pretrained is written.
        settings: of the runs; chosen by the model's size where not given.
    """
    path = resolve_model(name, progress=False).path
    tokenizer = load_tokenizer(path)
    plain = models.load_base(path, Quantization(), torch.float32, on)
    settings = settings or settings_for(plain.num_parameters())
    if settings.pretraining_steps:
        path = scratch / "pretrained"
        pretrain(plain, tokenizer, settings)
        plain.save_pretrained(path)
    return Base(path, tokenizer, dequantized(models.load_base(path, NF4, torch.float32, on)), on, settings)


def load_tokenizer(path: Path):
    """The model's tokenizer; where padding is the end-of-sequence token, it is made another one."""
    tokenizer = models.load_tokenizer(path)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.unk_token
    return tokenizer


def dequantized(model):
    """The same model with its 4-bit weights as plain 32-bit ones."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()  # it tells the dtype, which is asked for here
    try:
        return model.dequantize(dtype=torch.float32).eval()
    finally:
        logging.set_verbosity(level)


def pretrain(model, tokenizer, settings: LabSettings) -> None:
    """Train all weights, in place, on chats in prose ("Anna is 34, from Bern.") and on registers of cards."""
    people = task.people(settings.pretraining_steps * PRETRAINING_BATCH, settings.seed + 1)
    chats = [task.encode(task.in_prose(e), tokenizer)["input_ids"] for e in people]
    registers = [tokenizer(task.register(people[i : i + 3])).input_ids for i in range(0, len(people), 3)]
    collate = task.AnswerCollator(tokenizer, score_prompt=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PRETRAINING_RATE, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PRETRAINING_RATE, settings.pretraining_steps)
    model.train()
    each = PRETRAINING_BATCH // 2
    for step in range(settings.pretraining_steps):
        batch = chats[step * each : (step + 1) * each] + registers[step * each : (step + 1) * each]
        model(**collate([{"input_ids": ids, "prompt_length": 0} for ids in batch]).to(model.device)).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.eval()
