"""What one case of the GPU check should take, from shapes and data sheets alone: no tensors.

How it works: a case becomes a `Workload` of qlora_lib.cost, with the settings of the check: the fast path, LoRA in all
seven modules, AdamW with 8-bit states, mixed precision. Bytes of weights, trained parameters and optimizer states
are exact; the peak is exact but for what the GPU's own kernels decide, and leaves out what no tensor accounts for. Times
are limits, not estimates: a step cannot be faster than its products at the device's peak, a token not faster than
the weights can be read once.
"""

from dataclasses import dataclass

from qlora_lib.cost import memory
from qlora_lib.cost.devices import find_gpu
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.memory import resident
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload


@dataclass(frozen=True)
class Work:
    """A training step: shape, method, sequences x tokens, LoRA's rank in all seven modules."""

    shape: ModelShape
    method: str  # full, lora or qlora
    batch: int
    length: int
    rank: int
    checkpointing: bool
    dtype: str  # of the products: fp32, fp16 or bf16
    on: str = "cuda"

    @property
    def workload(self) -> Workload:
        return Workload(
            self.shape, self.method, self.batch, self.length, rank=self.rank, dtype=self.dtype, optimizer="adamw_8bit",
            checkpointing=self.checkpointing, device=self.on, fast=True,
        )  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    weight_bytes: int  # adapters and quantization state included
    trainable_bytes: int
    optimizer_bytes: int  # AdamW with 8-bit states
    peak_bytes: int  # of a training step; estimated
    hardware_flops: int  # of a training step, recompute included
    step_seconds: float | None  # at least; None without a known peak
    bytes_per_token: int  # of weights that decoding reads
    decode_tokens_per_second: float | None  # at most; None without a known bandwidth


def predict(work: Work, peak: float | None, bandwidth: float | None) -> Prediction:
    """peak: FLOP/s of the device in `work.dtype`; bandwidth: bytes a second."""
    step = work.workload
    weights = resident(step).total
    flops = step_flops(
        work.shape, work.method, work.batch, work.length, work.rank, gradient_checkpointing=work.checkpointing
    ).hardware_flops
    looked_up = 0 if work.shape.tied_embeddings else work.shape.parameters.embedding * step.weight_width
    read = weights - looked_up
    return Prediction(
        weight_bytes=weights,
        trainable_bytes=sum(trained_tensors(work)) * memory.trained_width(step),
        optimizer_bytes=memory.optimizer_bytes(step)[0],
        peak_bytes=step_memory(step).peak_bytes,
        hardware_flops=flops,
        step_seconds=flops / peak if peak else None,
        bytes_per_token=read,
        decode_tokens_per_second=bandwidth / read if bandwidth else None,
    )


def weight_bytes(work: Work) -> int:
    """Resident weights with adapters, quantization state and the rotary frequencies."""
    return resident(work.workload).total


def trained_tensors(work: Work) -> list[int]:
    """Elements of each tensor that is trained."""
    return memory.trained_tensors(work.workload)


def bandwidth_of(device_name: str) -> float | None:
    """Bytes a second by the data sheet; None for a device that is not listed."""
    gpu = find_gpu(device_name)
    return gpu.bandwidth if gpu else None
