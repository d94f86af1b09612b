"""How much memory a run took: two meters on a CPU, the allocator's own on a GPU.

How it works, on a CPU: (1) the peak resident set, which the kernel keeps and can reset; it holds
the program, its libraries and what the allocator keeps too. (2) Peak tensor bytes of one training
step: the bytes of all tensors that exist before it (weights, quantization state, optimizer
states), plus the highest running sum of the allocator's events during it, as PyTorch's profiler
reports them. A meter that follows operators sees their outputs but not the buffers inside them.
"""

import os
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch

from qlora_lib.metrics.sizes import model_bytes, tensor_bytes

RSS_METER = "peak resident set of the process"
CUDA_METER = "CUDA allocator, peak bytes allocated"


def peak_resident_bytes() -> int:
    """Highest resident set since the process began or `reset_peak`, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak(on: str) -> None:
    """Forget earlier peaks, so that the next reading is of what follows."""
    if on == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: VmHWM back to the present value
    except OSError:
        pass


def peak_memory(on: str) -> tuple[int, str]:
    """(bytes, which meter)."""
    if on == "cuda":
        return torch.cuda.max_memory_allocated(), CUDA_METER
    return peak_resident_bytes(), RSS_METER


def resident_bytes() -> int:
    return psutil.Process(os.getpid()).memory_info().rss


class StepMeter:
    """Peak tensor bytes of what runs between `start` and `stop` (CPU allocator events).

    The profiler does not see a block from before `start` being freed. Nothing is in a training
    step: gradients are gone when one begins, weights and optimizer states stay.
    """

    def __init__(self) -> None:
        self._profiler = None

    def start(self) -> None:
        self._profiler = torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        )
        with _no_chatter():
            self._profiler.start()

    def stop(self) -> int:
        """Highest sum of bytes allocated less bytes freed since `start`."""
        with _no_chatter():
            self._profiler.stop()
        events = self._profiler.profiler.kineto_results.events()
        changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
        self._profiler = None
        running = peak = 0
        for _, change in sorted(changes, key=lambda c: c[0]):
            running += change
            peak = max(peak, running)
        return peak


@contextmanager
def _no_chatter():
    """The profiler's C++ side writes to the terminal whatever its log level says."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def optimizer_bytes(optimizer) -> int:
    """Bytes of an optimizer's states, look-up tables included, each storage once."""
    seen, total = set(), 0
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, torch.Tensor) and value.numel():
                key = value.untyped_storage().data_ptr()
                if key not in seen:
                    seen.add(key)
                    total += tensor_bytes(value)
    return total


def training_resident_bytes(model, optimizer) -> int:
    """Weights, quantization state, gradients and optimizer states that exist now."""
    return model_bytes(model).total + gradient_bytes(model) + optimizer_bytes(optimizer)


def gradient_bytes(model) -> int:
    return sum(tensor_bytes(p.grad) for p in model.parameters() if p.grad is not None)
