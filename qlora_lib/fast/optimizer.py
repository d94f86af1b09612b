"""8-bit AdamW on a CPU with many small matrices: a few large updates instead of hundreds of small ones.

How it works: bitsandbytes keeps the states in blocks of 256 elements, each with its own absmax, so matrices whose
sizes are multiples of 256 can be laid end to end and updated as one: the blocks, and so all numbers, stay the
same. On a CPU its update is a dozen tensor operations, and an adapter has hundreds of matrices. A GPU has
one fused kernel a matrix and needs none of this.
"""

import bitsandbytes as bnb
import torch
from bitsandbytes import functional

BLOCK = 256  # elements that share an absmax (bitsandbytes' `optimizer_update_8bit_blockwise`)
AT_ONCE = 2**20  # elements, so that the temporary fp32 states stay small
FLAT = ("state1", "state2", "absmax1", "absmax2")


class GroupedAdamW8bit(bnb.optim.AdamW):
    """bitsandbytes' AdamW with 8-bit states; on a CPU matrices are updated together. States are stored as there."""

    @torch.no_grad()
    def step(self, closure=None):
        if any(p.device.type != "cpu" for group in self.param_groups for p in group["params"]):
            return super().step(closure)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if not self.initialized:
            self.check_overrides()
            self.initialized = True
        for at, group in enumerate(self.param_groups):
            together: list[torch.nn.Parameter] = []
            for i, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                if not self.state[p]:
                    self.init_state(group, p, at, i)
                state = self.state[p]
                if state["state1"].dtype != torch.uint8 or p.numel() % BLOCK or p.dtype != torch.float32:
                    self.update_step(group, p, at, i)
                    continue
                if together and (state["step"] != self.state[together[0]]["step"] or _size(together) + p.numel() > AT_ONCE):
                    self._update(group, together)
                    together = []
                together.append(p)
            if together:
                self._update(group, together)
        return loss

    def _update(self, group, parameters: list[torch.nn.Parameter]) -> None:
        states = [self.state[p] for p in parameters]
        for state in states:
            state["step"] += 1
        values = torch.cat([p.data.view(-1) for p in parameters])
        grads = torch.cat([p.grad.view(-1) for p in parameters])
        flat = {name: torch.cat([state[name].view(-1) for state in states]) for name in FLAT}
        functional.optimizer_update_8bit_blockwise(
            self.optimizer_name, grads, values, flat["state1"], flat["state2"], group["betas"][0], group["betas"][1],
            0.0, 0.0, group["eps"], states[0]["step"], group["lr"], states[0]["qmap1"], states[0]["qmap2"],
            flat["absmax1"], flat["absmax2"], group["weight_decay"], gnorm_scale=1.0, skip_zeros=self.args.skip_zeros,
        )  # fmt: skip
        _scatter(values, [p.data for p in parameters])
        for name in FLAT:
            _scatter(flat[name], [state[name] for state in states])


def _size(parameters) -> int:
    return sum(p.numel() for p in parameters)


def _scatter(flat: torch.Tensor, into: list[torch.Tensor]) -> None:
    pieces = flat.split([t.numel() for t in into])
    torch._foreach_copy_([t.view(-1) for t in into], list(pieces))
