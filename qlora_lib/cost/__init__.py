"""What training costs, by arithmetic alone: no tensors, no weights, no torch.

How it works: `shapes` reads a model's widths from its `config.json` and counts parameters; `flops`
turns a shape and a method into the matrix products of one optimizer step; `devices` holds the
data-sheet peaks that a utilization divides by.
"""

from qlora_lib.cost.devices import GPUS, Gpu, find_gpu
from qlora_lib.cost.flops import (
    METHODS,
    ProtocolFlops,
    StepFlops,
    mfu,
    protocol_flops,
    step_flops,
)
from qlora_lib.cost.shapes import ALL_LINEAR, ModelShape, ParameterCounts, resolve_targets

__all__ = [
    "ALL_LINEAR",
    "GPUS",
    "METHODS",
    "Gpu",
    "ModelShape",
    "ParameterCounts",
    "ProtocolFlops",
    "StepFlops",
    "find_gpu",
    "mfu",
    "protocol_flops",
    "resolve_targets",
    "step_flops",
]
