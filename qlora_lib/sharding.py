"""FSDP: each process holds a part of every weight, and fetches the rest of a layer while that is computed (`runtime.sharding: fsdp`).

How it works: the settings that PEFT documents for FSDP with LoRA and QLoRA (PEFT 0.21, docs/source/accelerate/fsdp.md), given to
Trainer. FSDP joins the weights of a layer into one flat tensor, so they must share one dtype: 4-bit weights are stored as the bits
of numbers of the dtype that the other weights have (`bnb_4bit_quant_storage`), nothing is cast to fp32, and the adapters, which
PEFT's policy wraps by themselves because they alone are trained, have that dtype too. Each process reads the base into its host
memory first (transformers 5.23 does, whatever `cpu_ram_efficient_loading` says), so that it has the scales of the 4-bit codes, which
FSDP does not send; the weights themselves are those of the first process.

What has no whole model in one process cannot be scored there: such an arm trains and saves (config.check_processes).
Never run on GPUs so far. Tested on a CPU: the arguments, the dtypes, and that torch's FSDP with PEFT's policy flattens such a
model over two processes and computes the same loss and gradients; Trainer itself shards nothing there.
"""

import os
from pathlib import Path

import torch

from qlora_lib.errors import UsageError
from qlora_lib.hardware import DType
from qlora_lib.models import quiet

# `version` 1: with it the frozen and the trained weights are flattened apart, which PEFT's documentation rests on.
FSDP = {
    "version": 1,
    "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # Trainer puts PEFT's own in its place (update_fsdp_plugin_peft)
    "backward_prefetch": "BACKWARD_PRE",
    "cpu_ram_efficient_loading": True,
    "forward_prefetch": False,
    "cpu_offload": False,
    "reshard_after_forward": "full_shard",
    "state_dict_type": "SHARDED_STATE_DICT",
    "sync_module_states": True,
    "use_orig_params": False,
}


def check(on: str, dtype: DType) -> None:
    """Raise a UsageError where FSDP cannot run."""
    if on != "cuda":
        raise UsageError("runtime.sharding is 'fsdp', which needs CUDA GPUs, and PyTorch finds none here", "Set runtime.sharding to none")
    if dtype.name == "fp16":
        raise UsageError("runtime.sharding is 'fsdp' in fp16", "Set train.precision to bf16 or fp32")


def prepare_environment() -> None:
    """What transformers and accelerate look for when a model is loaded that is to be sharded."""
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}


def arguments() -> dict:
    """Of `TrainingArguments`."""
    return {"fsdp": True, "fsdp_config": dict(FSDP)}


def prepare_for_training(model, method: str, gradient_checkpointing: bool):
    """As `models.prepare_for_training`, but for casting to fp32: a layer's weights keep one dtype."""
    from qlora_lib.models import CHECKPOINTING

    model.config.use_cache = False
    if method == "qlora":
        model.requires_grad_(False)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=CHECKPOINTING)
    return model


def adapters_to(model, dtype: torch.dtype):
    """The model with its adapters in `dtype`, in place; PEFT makes them fp32 on a 16-bit base."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(dtype)
    return model


def save(trainer, folder: Path) -> None:
    """What was trained, whole, by the first process, in PEFT's or transformers' own format; every process must call this."""
    trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    with quiet():
        trainer.save_model(str(folder))
    if trainer.args.should_save:
        (folder / "training_args.bin").unlink(missing_ok=True)
