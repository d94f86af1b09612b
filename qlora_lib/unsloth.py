"""The Unsloth back end: its loader and its adapters in place of those of transformers and PEFT.

How it works: Unsloth replaces forwards, rotary embedding and Trainer's loop of the models that it knows when it is
imported, so that it must be imported first, in a process of its own, and only when it was asked for
(`runtime.backend: unsloth`). It needs a CUDA GPU. It reads the folder that `assets` has verified: never a name that it
would map to a repository of its own, never remote code, no statistics to the hub.

What it leaves no choice in: 4-bit is NF4 with double quantization and 64 weights a block; products are in `dtype`, which
is the dtype of the weights that stay 16-bit and has nothing to do with how the 4-bit ones are stored. A dropout other
than 0 is honoured, without its fused LoRA kernels. Its adapters are PEFT's own, saved and loaded as any other.

Arguments as in Unsloth 2026.8.19 (`unsloth/models/loader.py`, `unsloth/models/llama.py`).
"""

import importlib
import importlib.util
import os
from pathlib import Path

from qlora_lib.config import Lora, Settings
from qlora_lib.cost.shapes import resolve_targets
from qlora_lib.errors import QloraError, one_line
from qlora_lib.hardware import DType

VERSION = "2026.8.19"
INSTALL = (
    f"Install it in an environment of its own, `pip install unsloth=={VERSION}` (it holds transformers at 5.5 or "
    "earlier), or set runtime.backend to peft"
)


def require() -> None:
    """Import Unsloth, before anything else of the stack; a QloraError where it cannot run. Nothing is downloaded."""
    import torch

    if not torch.cuda.is_available():
        raise QloraError(
            "runtime.backend is 'unsloth', which needs a CUDA GPU, and PyTorch finds none here",
            "Set runtime.backend to peft, or run on a machine with an NVIDIA GPU",
        )
    if importlib.util.find_spec("unsloth") is None:
        raise QloraError("runtime.backend is 'unsloth', and the package unsloth is not installed", INSTALL)
    os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")  # else each load asks the hub for a file that counts it
    try:
        importlib.import_module("unsloth")
    except Exception as e:  # it checks the versions of a dozen packages on import, each in its own way
        raise QloraError(f"Unsloth does not start: {one_line(e):.200}", INSTALL) from None


def load(folder: Path, settings: Settings, method: str, dtype: DType):
    """The base of a local folder, as Unsloth loads it: 4-bit for `qlora`, 16-bit for `lora`."""
    from unsloth import FastLanguageModel

    try:
        model, _ = FastLanguageModel.from_pretrained(**load_arguments(folder, settings, method, dtype))
    except (OSError, ValueError, RuntimeError, NotImplementedError) as e:
        if type(e).__name__ == "OutOfMemoryError":
            raise
        raise QloraError(f"Unsloth cannot load the model in {folder}: {one_line(e):.200}", "Set runtime.backend to peft") from None
    return model


def attach(model, settings: Settings):
    """`model` with fresh adapters on it, ready to train: it prepares gradients and checkpointing itself."""
    from unsloth import FastLanguageModel

    return FastLanguageModel.get_peft_model(model, **adapter_arguments(settings))


# --- arguments ---------------------------------------------------------------------------------


def load_arguments(folder: Path, settings: Settings, method: str, dtype: DType) -> dict:
    """Of `FastLanguageModel.from_pretrained`; `local_files_only` is the one that it reads from its **kwargs."""
    return {
        "model_name": str(Path(folder).resolve()),
        "use_exact_model_name": True,  # else a known name becomes a repository of theirs
        "local_files_only": True,
        "trust_remote_code": False,
        "max_seq_length": settings.data.window_length,
        "dtype": dtype.torch,
        "load_in_4bit": method == "qlora",
        "load_in_8bit": False,
        "full_finetuning": False,
        "use_gradient_checkpointing": checkpointing(settings),
        "random_state": settings.seed,
        "max_lora_rank": settings.lora.rank,
    }


def adapter_arguments(settings: Settings) -> dict:
    """Of `FastLanguageModel.get_peft_model`, the model left out."""
    lora: Lora = settings.lora
    return {
        "r": lora.rank,
        "target_modules": list(resolve_targets(lora.target_modules)),
        "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
        "lora_dropout": lora.dropout,
        "bias": "none",
        "use_gradient_checkpointing": checkpointing(settings),
        "random_state": settings.seed,
        "use_rslora": lora.use_rslora,
    }


def checkpointing(settings: Settings) -> bool | str:
    """Its own kind, which moves the kept activations to host memory (plain below 512 tokens), or none."""
    return "unsloth" if settings.train.gradient_checkpointing else False
