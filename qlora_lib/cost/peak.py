"""What a training step holds at its highest moment, by component, and what a GPU needs besides.

How it works: `memory` gives what stays, `moments` what comes and goes; `step_memory` takes the highest moment apart into
components. On a CPU in fp32 all of it follows from the code that runs; `StepMemory.estimated` says in words what does not.
`overhead` is what no tensor accounts for on a GPU: a range, never part of the peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from qlora_lib.cost.memory import optimizer_bytes, resident
from qlora_lib.cost.moments import gradient_bytes, moments
from qlora_lib.cost.workload import Workload

PARTS = (
    "weights",
    "quantization constants",
    "adapters",
    "optimizer states",
    "gradients",
    "activations",
    "logits and loss",
    "temporary buffers",
)
MIB = 2**20

# Bytes of GPU memory that a process holds before its first large tensor. PyTorch 1.13 was measured with CUDA's lazy
# loading of kernels, since then its default, and without; later drivers and larger kernel libraries lie between.
CONTEXT = (287_047_680, 666_632_192)
# cuBLAS' work space in PyTorch: 2 x 4 MiB and 8 x 16 KiB, on Hopper 32 MiB (torch 2.13, CUDAContextLight).
WORKSPACE = (2 * 4 * MIB + 8 * 16 * 1024, 32 * MIB)
# Share of what comes and goes that the caching allocator holds in blocks too small or cut wrong: none at best, and 15 %,
# the mean over eight language models in GMLake (Guo et al. 2024); single ones had 33 %.
SLACK = (0.0, 0.15)


@dataclass(frozen=True)
class StepMemory:
    """Bytes. `parts` are what is held at the highest moment; `sizes` each component's full size, held then or not."""

    parts: Mapping[str, int]  # by PARTS; buffers are among the weights
    moment: str
    moments: Mapping[str, int]  # every moment's total, weights and states included
    sizes: Mapping[str, int]  # by PARTS
    host_bytes: int = 0  # of optimizer states in paged memory: they may leave the GPU, and are no part of the peak
    estimated: tuple[str, ...] = ()  # which of it is an estimate, in words; empty: all of it follows from the code

    @property
    def peak_bytes(self) -> int:
        return sum(self.parts.values())


@lru_cache(maxsize=8192)  # a search asks about the same step again and again
def step_memory(work: Workload) -> StepMemory:
    """What a step holds when it holds the most; bytes by `PARTS`."""
    model, (states, host) = resident(work), optimizer_bytes(work)
    fixed = (model.weights + model.buffers, model.quantization_constants, model.adapters, states)
    held = moments(work)
    highest = max(held, key=lambda name: held[name].total)
    h = held[highest]
    return StepMemory(
        parts=dict(zip(PARTS, (*fixed, h.gradients, h.activations, h.loss, h.temporary))),
        moment=highest,
        moments={name: sum(fixed) + h.total for name, h in held.items()},
        sizes=dict(zip(PARTS, (
            *fixed,
            gradient_bytes(work),
            max(h.activations for h in held.values()),
            max(h.loss for h in held.values()),
            max(h.temporary for h in held.values()),
        ))),
        host_bytes=host,
        estimated=_estimated(work, highest),
    )  # fmt: skip


INSIDE = ("forward of the last block", "backward of a block", "recomputed block")


def _estimated(work: Workload, moment: str) -> tuple[str, ...]:
    """What of the peak is assumed or rounded, and not followed from the code."""
    said = []
    if work.device == "cuda":
        said.append("which attention kernel runs on the GPU and what it keeps; buffers inside of kernels")
    if work.autocast and moment in INSIDE:
        said.append("casts that autocast makes and drops inside a block")
    if work.quantization == "int8":
        said.append("buffers inside of the 8-bit products")
    if work.fast and work.dropout and not work.trains_all and work.device == "cpu" and not work.checkpointing:
        said.append("how many elements dropout drops: the mean")
    if work.attention == "sdpa" and moment in INSIDE:
        said.append("buffers inside of attention")
    return tuple(said)


def overhead(work: Workload) -> tuple[int, int]:
    """(low, high) bytes of a GPU that no tensor accounts for: context, cuBLAS' work space, slack of the allocator.

    (0, 0) on a CPU. The constants above name their sources; none was measured by this project.
    """
    if work.device == "cpu":
        return 0, 0
    comes_and_goes = sum(list(step_memory(work).parts.values())[4:])
    return tuple(c + w + round(s * comes_and_goes) for c, w, s in zip(CONTEXT, WORKSPACE, SLACK))
