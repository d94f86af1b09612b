"""Measures cases of the grid: trains a step of each with the stock stack, or loads a model and counts it.

How it works: the model is loaded and prepared by the functions that an arm of a study calls, without this library's fast path;
Trainer makes the optimizer and takes the step, as in `bench.training`. A first step of a few tokens makes the
optimizer's states, whose size no batch changes; the second one is metered. As a program it measures the cases that
are named on its command line and prints one line of JSON for each, so that a caller can stop at any of them.
"""

import gc
import json
import os
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch
from transformers import Trainer, TrainingArguments

from qlora_lib import models
from qlora_lib.assets import resolve_model
from qlora_lib.assets.make import transformers_bars
from qlora_lib.bench.training import Arm
from qlora_lib.config import Lora, Quantization
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import QloraError
from qlora_lib.hardware import quiet_logs
from qlora_lib.metrics.memory import StepMeter, optimizer_bytes
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.validation.grid import REAL, SHAPES, Case, Format, cases, formats
from qlora_lib.validation.record import Bytes, MeasuredStep

SEED = 0
FIRST_TOKENS = 8  # of the step that makes the optimizer's states
ASSETS = {REAL: REAL}
TRAINERS_NAMES = {"adamw": "adamw_torch", "adamw_8bit": "adamw_8bit"}
# bitsandbytes takes codes of odd sizes through torch.compile, which costs seconds and changes no size.
ENVIRONMENT = {"TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1"}


def measure_step(case: Case) -> MeasuredStep:
    """Peak tensor bytes of one step of the stock stack."""
    torch.manual_seed(SEED)
    arm = _arm(case)
    ids = random_tokens(SHAPES[case.model].vocab_size, case.batch, case.length)
    arm.step(ids[:1, :FIRST_TOKENS])
    gc.collect()
    resident, states = model_bytes(arm.model).total, optimizer_bytes(arm.optimizer)
    meter = StepMeter()
    meter.start()
    try:
        arm.step(ids)
    finally:
        above = meter.stop()
    return MeasuredStep(
        model_bytes=resident, optimizer_bytes=states, above_bytes=above, peak_bytes=resident + states + above
    )


def measure_at_rest(form: Format) -> Bytes:
    """Bytes of a loaded model with an adapter on it, counted from its tensors."""
    model = _load(form.model, Quantization(format=form.quantization, double_quant=form.double_quant))
    model = models.prepare_for_training(model, form.workload().method, gradient_checkpointing=False)
    counted = model_bytes(models.attach_lora(model, Lora(), SEED))
    return Bytes(
        weights=counted.quantized_weights + counted.unquantized,
        quantization_constants=counted.quantization_state,
        adapters=counted.adapter,
    )


def random_tokens(vocabulary: int, batch: int, length: int) -> torch.Tensor:
    """Token ids [batch, length]; how much a step holds does not depend on the text."""
    return torch.randint(vocabulary, (batch, length), generator=torch.Generator().manual_seed(SEED))


def _arm(case: Case) -> Arm:
    _forget_overrides()
    quantization = Quantization(format="nf4") if case.method == "qlora" else Quantization()
    model = models.prepare_for_training(_load(case.model, quantization), case.method, case.checkpointing)
    if case.method != "full":
        targets = case.targets if isinstance(case.targets, str) else list(case.targets)
        model = models.attach_lora(model, Lora(rank=case.rank, dropout=case.dropout, target_modules=targets), SEED)
    model.train()
    with tempfile.TemporaryDirectory() as folder:  # Trainer makes its folder, and writes nothing there
        arguments = TrainingArguments(
            output_dir=folder, max_steps=1, use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
            disable_tqdm=True, label_names=["labels"], optim=TRAINERS_NAMES[case.optimizer], learning_rate=1e-6,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments)
        trainer.create_optimizer()
    return Arm(case.method, "stock", model, trainer, [p for p in model.parameters() if p.requires_grad], trainer.optimizer)


def _forget_overrides() -> None:
    """Trainer tells bitsandbytes to keep an embedding's states in 32 bits. bitsandbytes keeps that for the place that the
    tensor has among the parameters, and the next optimizer of this process would take it over for another tensor there."""
    models.import_bitsandbytes().optim.GlobalOptimManager.get_instance().initialize()


def _load(model: str, quantization: Quantization):
    return models.load_base(_folder(model), quantization, torch.float32, "cpu")


@cache
def _folder(model: str) -> Path:
    """Where the weights lie; those of a tiny model are drawn, and gone with the process."""
    if model in ASSETS:
        return resolve_model(ASSETS[model]).path
    folder = tempfile.TemporaryDirectory(prefix="qlora-validation-")
    _folders.append(folder)
    make_model(SHAPES[model], Path(folder.name))
    return Path(folder.name)


_folders: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def make_model(shape: ModelShape, folder: Path) -> None:
    """Save a model of this shape with random fp32 weights: a LLaMA, or a Qwen where the shape has what only that has."""
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

    widths = dict(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied_embeddings, max_position_embeddings=2048,
        bos_token_id=None, eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    if shape.qk_norm:
        config = Qwen3Config(attention_bias=shape.attention_bias, **widths)
    elif shape.attention_bias and not shape.output_bias:
        config = Qwen2Config(**widths)
    else:
        config = LlamaConfig(attention_bias=shape.attention_bias, mlp_bias=shape.mlp_bias, **widths)
    if ModelShape.read(config) != shape:
        raise QloraError(f"no transformers model has the shape {shape}")
    with torch.random.fork_rng(devices=[]), transformers_bars(progress=False):
        torch.manual_seed(SEED)
        AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(folder)


def main(names: list[str]) -> None:
    """Measure the named cases in turn; one line of JSON each, `{name: bytes}`, on standard output."""
    os.environ.update(ENVIRONMENT)
    quiet_logs()
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever else is printed is no answer
    known = {entry.name: entry for entry in (*cases(), *formats())}
    for name in names:
        entry = known[name]
        found = measure_step(entry) if isinstance(entry, Case) else measure_at_rest(entry)
        print(json.dumps({name: found.model_dump()}), file=answers, flush=True)
        gc.collect()


if __name__ == "__main__":
    main(sys.argv[1:])
