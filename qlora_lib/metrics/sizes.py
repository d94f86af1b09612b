"""Bytes and parameters of a loaded model, counted from its tensors.

How it works: every parameter and buffer is visited once, tied ones by their storage; 4-bit and
8-bit weights bring their scales and look-up tables along, which transformers'
`get_memory_footprint()` leaves out. Non-persistent buffers (rotary frequencies) count: they are
resident.
"""

from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class ModelBytes:
    quantized_weights: int  # packed codes
    quantization_state: int  # block scales, their own codes, look-up tables
    unquantized: int  # embeddings, norms, head, linear layers left in 16/32-bit, buffers
    adapter: int  # LoRA matrices

    @property
    def base(self) -> int:
        return self.quantized_weights + self.quantization_state + self.unquantized

    @property
    def total(self) -> int:
        return self.base + self.adapter


def tensor_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def is_adapter(name: str) -> bool:
    return "lora_" in name


def model_bytes(model) -> ModelBytes:
    """Resident bytes of a model's tensors by kind; shared storages count once."""
    sums = dict.fromkeys(("quantized_weights", "quantization_state", "unquantized", "adapter"), 0)
    seen: set[tuple] = set()

    def add(kind: str, tensor: torch.Tensor | None) -> None:
        if tensor is None or tensor.numel() == 0:
            return
        key = (tensor.device, tensor.data_ptr())
        if key not in seen:
            seen.add(key)
            sums[kind] += tensor_bytes(tensor)

    for prefix, module in model.named_modules():
        own = [*module.named_parameters(prefix, recurse=False), *module.named_buffers(prefix, recurse=False)]
        for name, tensor in own:
            if is_adapter(name):
                add("adapter", tensor)
            elif is_quantized(tensor):
                add("quantized_weights", tensor)
                for state in quantization_tensors(module, tensor):
                    add("quantization_state", state)
            else:
                add("unquantized", tensor)
    return ModelBytes(**sums)


def is_quantized(tensor: torch.Tensor) -> bool:
    return type(tensor).__name__ in ("Params4bit", "Int8Params")


def quantization_tensors(module, weight) -> list[torch.Tensor]:
    """What the bitsandbytes weight of `module` needs beside its codes to be read back."""
    if type(weight).__name__ == "Int8Params":  # the first forward moves its scales to the module
        scales = weight.SCB if weight.SCB is not None else module.state.SCB
        return [scales] if scales is not None else []
    state = getattr(weight, "quant_state", None)
    if state is None:  # not quantized yet
        return []
    tensors = [state.absmax, state.code]
    if state.nested:
        tensors += [state.offset, state.state2.absmax, state.state2.code]
    return [t for t in tensors if isinstance(t, torch.Tensor)]


def logical_numel(tensor: torch.Tensor) -> int:
    """Values that a parameter stands for: a packed byte holds two."""
    state = getattr(tensor, "quant_state", None)
    if type(tensor).__name__ == "Params4bit" and state is not None:
        return state.shape.numel()
    return tensor.numel()


def count_parameters(model) -> dict[str, int]:
    """`total`, `base` and `trainable` parameters; a tied head counts once."""
    total = base = trainable = 0
    for name, parameter in model.named_parameters():
        n = logical_numel(parameter)
        total += n
        base += 0 if is_adapter(name) else n
        trainable += n if parameter.requires_grad else 0
    return {"total": total, "base": base, "trainable": trainable}


def folder_bytes(folder: Path, pattern: str = "*.safetensors") -> int:
    return sum(p.stat().st_size for p in Path(folder).rglob(pattern))
