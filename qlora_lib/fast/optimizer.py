"""8-bit AdamW on a CPU in one compiled pass over all matrices of an adapter.

How it works: bitsandbytes keeps both averages in blocks of 256 codes with an absmax each. On a CPU its update is a
dozen tensor operations for each matrix, and an adapter has hundreds of matrices. Here one compiled call takes a block at a
time: turns its codes back, updates averages and weights, and quantizes again, all while the block is in the cache. States
are stored as bitsandbytes stores them, and its own look-up table says which code a number gets. A GPU has one fused
kernel a matrix and needs none of this.
"""

import math
from functools import cache, lru_cache

import bitsandbytes as bnb
import numpy as np
import torch

BLOCK = 256  # elements that share an absmax (bitsandbytes' `optimizer_update_8bit_blockwise`)
BINS = 65_536  # of [-1, 1], each with its code (bitsandbytes' quantization on a CPU)
ADDRESSES = ("state1", "state2", "absmax1", "absmax2")


class FusedAdamW8bit(bnb.optim.AdamW):
    """bitsandbytes' AdamW with 8-bit states; on a CPU with numba, all fp32 matrices are updated in one call."""

    @torch.no_grad()
    def step(self, closure=None):
        kernel = _kernel()
        if kernel is None or any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.initialized = True
        for at, group in enumerate(self.param_groups):
            together: dict[int, list[torch.nn.Parameter]] = {}  # by number of updates so far
            for i, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, at, i)
                state = self.state[p]
                if state["state1"].dtype != torch.uint8 or p.dtype != torch.float32 or not p.is_contiguous():
                    self.update_step(group, p, at, i)  # small tensors have 32-bit states
                else:
                    together.setdefault(state["step"], []).append(p)
            for parameters in together.values():
                self._update(kernel, group, parameters)
        return loss

    def _update(self, kernel, group, parameters: list[torch.nn.Parameter]) -> None:
        states = [self.state[p] for p in parameters]
        for state in states:
            state["step"] += 1
        grads = [p.grad.contiguous() for p in parameters]  # held until the call is over
        addresses = [
            [p.data_ptr(), g.data_ptr(), *(state[name].data_ptr() for name in ADDRESSES)]
            for p, g, state in zip(parameters, grads, states)
        ]
        (beta1, beta2), step = group["betas"], states[0]["step"]
        levels = [states[0][name] for name in ("qmap1", "qmap2")]
        kernel(
            np.array(addresses, np.int64), np.array([p.numel() for p in parameters]),
            *(level.numpy() for level in levels), *(_codes(tuple(level.tolist())) for level in levels),
            *np.array([
                beta1, 1 - beta1, beta2, 1 - beta2, math.sqrt(1 - beta2**step), group["eps"],
                -group["lr"] / (1 - beta1**step), 1 - group["lr"] * group["weight_decay"],
            ], np.float32),
        )  # fmt: skip


@cache
def _kernel():
    """The compiled update, or None where numba is not installed or cannot compile."""
    try:
        from qlora_lib.fast.kernels import adamw_8bit
        from qlora_lib.fast.threads import use_torchs_threads
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep what it compiles
        return None
    use_torchs_threads()
    return adamw_8bit


@lru_cache(maxsize=4)
def _codes(levels: tuple[float, ...]) -> np.ndarray:
    """uint8 [bins]: the code that bitsandbytes gives a number in each bin of [-1, 1]."""
    bins = torch.linspace(-1, 1, BINS, dtype=torch.float64).float()
    codes, _ = torch.ops.bitsandbytes.quantize_blockwise(bins, torch.tensor(levels), BINS)
    return codes.numpy()
