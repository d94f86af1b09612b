"""Tiny models of every family, loaded as an arm trains them, and what a step of theirs really holds."""

import contextlib
import functools
import tempfile
from pathlib import Path

import bitsandbytes as bnb
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_lib import models
from qlora_lib.config import Lora, Quantization
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.course.stepping import SavedTensors, random_batch, step
from qlora_lib.fast.install import install
from qlora_lib.hardware import DType
from qlora_lib.metrics.memory import StepMeter, training_resident_bytes

TORCH = {"fp32": torch.float32, "bf16": torch.bfloat16}
WIDTHS = dict(
    vocab_size=131, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=512,
)  # fmt: skip


@functools.cache
def root() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory()  # gone when the process ends


@functools.cache
def folder(family: str, tied: bool, **widths) -> Path:
    """A random model of this family, in fp32."""
    name = "-".join([family, str(tied), *(f"{k}{v}" for k, v in widths.items())])
    path = Path(root().name) / name
    config = AutoConfig.for_model(family, **{**WIDTHS, **widths}, tie_word_embeddings=tied)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def shape_of(path: Path) -> ModelShape:
    return ModelShape.read(path)


def work_of(path: Path, method: str, **settings) -> Workload:
    return Workload(shape_of(path), method, **{"batch": 2, "length": 40, "rank": 5, "dropout": 0.1, **settings})


def training_model(path: Path, work: Workload):
    """The model as an arm with these settings trains it."""
    quantization = Quantization(format=work.quantization, double_quant=work.double_quant)
    dtype = DType(work.dtype, "test")
    stored = models.weight_dtype(work.method, dtype) if work.method != "full" else TORCH[work.weight_dtype]
    model = models.load_base(path, quantization, stored, "cpu")
    model.set_attn_implementation(work.attention)
    model = models.prepare_for_training(model, work.method, work.checkpointing)
    if work.method != "full":
        lora = Lora(rank=work.rank, dropout=work.dropout, target_modules=list(work.adapted))
        model = models.attach_lora(model, lora, 0)
    if work.fast:
        install(model)
    return model.train()


def autocast(work: Workload):
    return torch.autocast("cpu", TORCH[work.dtype]) if work.autocast else contextlib.nullcontext()


def saved(model, work: Workload) -> int:
    """Bytes that autograd saves in one forward pass."""
    ids = random_batch(work.shape.vocab_size, work.batch, work.length)
    with SavedTensors(model) as tensors, autocast(work):
        loss = model(input_ids=ids, labels=ids).loss
    del loss
    return tensors.bytes


def measured_peak(path: Path, work: Workload) -> tuple[int, int]:
    """(bytes of all tensors at the highest moment of a second step, those that there were before it)."""
    model = training_model(path, work)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = (bnb.optim.AdamW8bit if work.state_bits == 8 else torch.optim.AdamW)(trained, lr=1e-6)
    batches = [random_batch(work.shape.vocab_size, work.batch, work.length, seed) for seed in range(work.accumulation)]

    def run() -> None:
        for ids in batches[:-1]:
            with autocast(work):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            del loss
        with autocast(work):
            step(model, optimizer, batches[-1])

    run()
    before, meter = training_resident_bytes(model, optimizer), StepMeter()
    meter.start()
    run()
    return before + meter.stop(), before
