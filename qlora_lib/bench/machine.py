"""What the machine allows: matrix products and memory bandwidth, measured; and what follows for a step and a token.

How it works: a training step cannot be faster than its matrix products at the speed of a large fp32 product, and
a token at batch 1 not faster than its weights can be read once. The limits are measured before and after all else,
and the better of the two holds: whoever else worked on the machine can only have made one of them worse.
"""

import statistics

import torch

from qlora_lib.bench.record import DecodeLimit, Limits, TrainingLimit
from qlora_lib.bench.rounds import timed
from qlora_lib.bench.settings import Shape
from qlora_lib.config import Lora
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.hardware import gemm_peak

REPEATS = 9
COLUMNS = 4096  # of the matrix that is multiplied by a vector


def measure_limits(size: int) -> Limits:
    """Limits of products and memory alone. size: bytes of the block that is copied and read."""
    source = torch.ones(size // 4)
    target = torch.empty_like(source)
    copy = _fastest(lambda: target.copy_(source))
    matrix, vector = source[: size // 4 // COLUMNS * COLUMNS].view(-1, COLUMNS), torch.ones(COLUMNS)
    out = torch.empty(len(matrix))
    read = _fastest(lambda: torch.mv(matrix, vector, out=out))
    return Limits(
        gemm_flops_per_second=gemm_peak(torch.float32),
        copy_bytes_per_second=2 * size / copy,
        read_bytes_per_second=4 * matrix.numel() / read,
    )


def _fastest(run) -> float:
    """Median seconds of a few calls, the first left out: it touches new pages."""
    run()
    return statistics.median(timed(run) for _ in range(REPEATS))


def better(a: Limits, b: Limits) -> Limits:
    return Limits(
        gemm_flops_per_second=max(a.gemm_flops_per_second, b.gemm_flops_per_second),
        copy_bytes_per_second=max(a.copy_bytes_per_second, b.copy_bytes_per_second),
        read_bytes_per_second=max(a.read_bytes_per_second, b.read_bytes_per_second),
    )


def what_they_allow(
    limits: Limits, model: ModelShape, shapes: tuple[Shape, ...], lora: Lora, bytes_per_token: dict[str, int]
) -> Limits:
    """The same with the fastest step of each shape and method, and the fastest decoding of each model.

    bytes_per_token: of weights, by model.
    """
    training, bandwidth = {}, max(limits.read_bytes_per_second, limits.copy_bytes_per_second)
    for shape in shapes:
        for method in ("qlora", "full"):
            flops = step_flops(model, method, shape.batch, shape.length, lora.rank, lora.target_modules).hardware_flops
            seconds = flops / limits.gemm_flops_per_second
            training[f"{shape}.{method}"] = TrainingLimit(
                flops=flops, seconds_per_step=seconds, tokens_per_second=shape.tokens / seconds
            )
    decode = {
        name: DecodeLimit(bytes_per_token=size, tokens_per_second=bandwidth / size) for name, size in bytes_per_token.items()
    }
    return limits.model_copy(update={"training": training, "decode": decode})
