"""The models that are compared, loaded once each."""

from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_lib.bench.settings import NF4_DQ
from qlora_lib.config import Lora, Quantization
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.models import attach_lora, load_base, prepare_for_training

ADAPTER_STD = 0.02  # of B: an adapter as training leaves it, not the zeros it begins with


@dataclass(frozen=True)
class InferenceModels:
    fp32: torch.nn.Module
    stock_4bit: torch.nn.Module  # NF4 with double quantization and an adapter
    fast_4bit: torch.nn.Module  # the same weights


def load_for_inference(path: Path, lora: Lora, seed: int) -> InferenceModels:
    return InferenceModels(
        fp32=load_base(path, Quantization(), torch.float32, "cpu"),
        stock_4bit=inference_model(path, lora, seed, as_shipped=True),
        fast_4bit=inference_model(path, lora, seed, as_shipped=False),
    )


def check_model(path: Path) -> ModelShape:
    """The shape of a causal language model's folder; UsageError for another kind of model."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise QloraError(f"the config of {path} cannot be read: {e}") from None
    if kinds := [name for name in config.architectures or [] if not name.endswith("ForCausalLM")]:
        raise UsageError(f"the model is a {kinds[0]}; a causal language model was expected", "Give one with --model")
    return ModelShape.read(config)


def training_model(path: Path, method: str, lora: Lora, seed: int):
    """A model as this method trains it, no checkpointing: `qlora` on NF4 with double quantization, or `full`."""
    base = load_base(path, NF4_DQ if method == "qlora" else Quantization(), torch.float32, "cpu")
    model = prepare_for_training(base, method, gradient_checkpointing=False)
    return (attach_lora(model, lora, seed) if method == "qlora" else model).train()


def fill_adapters(model, seed: int) -> None:
    """Random B in place of zeros, so that adapters change the output and A has a gradient."""
    torch.manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=ADAPTER_STD)


def inference_model(path: Path, lora: Lora, seed: int, as_shipped: bool):
    """NF4 with double quantization and an adapter, for inference.

    as_shipped: let bitsandbytes repack the weights for its fused product on CPUs with AVX512-BF16, as it does
    by itself. `load_base` forbids it, which the stock arm must not pay for.
    """
    import bitsandbytes as bnb

    model = attach_lora(load_base(path, NF4_DQ, torch.float32, "cpu"), lora, seed)
    fill_adapters(model, seed)
    if as_shipped:
        for module in model.modules():
            if isinstance(module, bnb.nn.Linear4bit):
                module.support_avx512bf16_for_cpu = bnb.functional.has_avx512bf16()
    return model.eval()


def bytes_per_token(model) -> int:
    """Bytes of weights that decoding one token reads: all of them, but of an embedding without a head only one row."""
    from qlora_lib.metrics.sizes import model_bytes, tensor_bytes

    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    looked_up = 0 if embedding.data_ptr() == head.data_ptr() else tensor_bytes(embedding)
    return model_bytes(model).total - looked_up
