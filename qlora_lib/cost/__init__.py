"""What training costs, by arithmetic alone: no tensors, no weights, no torch.

How it works: `shapes` reads a model's widths from its `config.json` and counts parameters; `flops`
turns a shape and a method into the matrix products of one optimizer step; `devices` holds the
data-sheet peaks that a utilization divides by. `models` knows shapes by name; a `Workload` is one step of one
method, `peak` its bytes by component, `roofline` its time, and `planner.plan` all of it, on every card.
"""

from importlib import import_module

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

# Loaded when asked for: the runs need none of these, and a record's key has what the runs need.
_LATER = {
    "MODELS": "models",
    "Card": "cards",
    "Run": "planner",
    "StepMemory": "peak",
    "Workload": "workload",
    "find_cards": "cards",
    "overhead": "peak",
    "plan": "planner",
    "shape_of": "models",
    "step_memory": "peak",
}


def __getattr__(name: str):
    if name not in _LATER:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


__all__ = [
    "ALL_LINEAR",
    "GPUS",
    "METHODS",
    "MODELS",
    "Card",
    "Gpu",
    "ModelShape",
    "ParameterCounts",
    "ProtocolFlops",
    "Run",
    "StepFlops",
    "StepMemory",
    "Workload",
    "find_cards",
    "find_gpu",
    "mfu",
    "overhead",
    "plan",
    "protocol_flops",
    "resolve_targets",
    "shape_of",
    "step_flops",
    "step_memory",
]
