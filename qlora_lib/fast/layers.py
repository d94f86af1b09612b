"""Forward and backward of the linear layers of a block, written by hand: base and adapters together.

How it works: modules that read the same input (q, k, v; gate, up) are computed together. Of the input, PEFT makes
a dropped-out copy for each module; here one draw serves the group, its adapters' A are one product, and each
adapter's B is added into the base's output in place. The backward dequantizes the base once more and adds all
gradients of the input up in one buffer. Kept from the forward are the input itself, the places that were dropped
and the small h = A x; the input of `down` is made again from gate and up.

    x [N, in] --+------------------ W [out, in] (4-bit, or 16/32-bit) ------------------+--> y [N, out]
                |                                                                       |
                +-- dropout -- A [r, in], one product for the group - h [N, r] - s B ---+

The trained parameters stay PEFT's own, so checkpoints, merging and switching are PEFT's.
"""

import math
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Linear:
    """A frozen linear module with one adapter."""

    base: torch.nn.Module
    rank: int
    scaling: float

    def weight(self, dtype: torch.dtype) -> torch.Tensor:
        """W [out, in] as the products need it."""
        parameter = self.base.weight
        state = getattr(parameter, "quant_state", None)
        if state is None:
            return parameter.to(dtype)
        return _dequantize(parameter.data, state).to(dtype)


def _dequantize(codes: torch.Tensor, state) -> torch.Tensor:
    """bitsandbytes' `dequantize_4bit` without its checks, which cost as much as the work on a small matrix."""
    kernels = torch.ops.bitsandbytes
    absmax = state.absmax
    if state.nested:
        outer = state.state2
        absmax = kernels.dequantize_blockwise.default(absmax, outer.absmax, outer.code, outer.blocksize, torch.float32)
        absmax.add_(state.offset)
    return kernels.dequantize_4bit.default(codes, absmax, state.blocksize, state.quant_type, state.shape, state.dtype)


@dataclass(frozen=True)
class Group:
    """Modules that read one input, and the dropout that their adapters share."""

    linears: tuple[Linear, ...]
    dropout: float

    def split(self, stacked: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
        """What belongs to each module, of a tensor stacked by rank."""
        return stacked.split([linear.rank for linear in self.linears], dim)

    def draw(self, x: torch.Tensor) -> torch.Tensor | None:
        """Which elements of x the adapters do not see; None without dropout."""
        return None if self.dropout == 0 else drop(x, self.dropout)

    def scale_(self, stacked: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
        """[N, all r] times each module's s, and what makes up for the dropped elements; in place."""
        kept = 1 if dropped is None else 1 - self.dropout
        scales = {linear.scaling for linear in self.linears}
        if len(scales) == 1:
            return stacked.mul_(scales.pop() / kept)
        for linear, part in zip(self.linears, self.split(stacked, 1)):
            part.mul_(linear.scaling / kept)
        return stacked


def _forward(group: Group, x, dropped, a, b) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x [N, in]; a: A [r, in] and b: B [out, r] of each module -> outputs [N, out] each, and s h [N, all r]."""
    h = group.scale_(_keep(x, dropped) @ torch.cat(a).T, dropped)
    outputs = []
    for linear, part, up in zip(group.linears, group.split(h, 1), b):
        bias, weight = linear.base.bias, linear.weight(x.dtype)
        y = x @ weight.T if bias is None else torch.addmm(bias.to(x.dtype), x, weight.T)
        del weight  # before the next is dequantized
        outputs.append(y.addmm_(part, up.T))
    return outputs, h


def _backward(group: Group, x, dropped, h, a, b, grads, needs_input: bool):
    """Gradients of x [N, in] (None unless needed), of each A and of each B; grads: of the outputs, [N, out] each."""
    grad_b = [grad.T @ part for grad, part in zip(grads, group.split(h, 1))]
    grad_h = torch.empty_like(h)
    for grad, up, part in zip(grads, b, group.split(grad_h, 1)):
        torch.mm(grad, up, out=part)
    group.scale_(grad_h, dropped)
    grad_a = group.split(grad_h.T @ _keep(x, dropped), 0)
    if not needs_input:
        return None, grad_a, grad_b
    grad_x = _zero_(grad_h @ torch.cat(a), dropped)
    for linear, grad in zip(group.linears, grads):
        grad_x.addmm_(grad, linear.weight(grad.dtype))
    return grad_x, grad_a, grad_b


def drop(x: torch.Tensor, probability: float) -> torch.Tensor:
    """Each element of x with this probability: on a CPU their places, int64 [dropped], ascending; else a bool mask.

    On a CPU a random number for every element costs more than the products do. The gaps between dropped
    elements are geometric, so drawing the gaps needs one number for each dropped element alone.
    """
    if x.device.type != "cpu":
        return torch.rand(x.shape, device=x.device) < probability
    n, places = x.numel(), []
    last = -1.0
    while last < n:
        m = int(n * probability + 6 * math.sqrt(n * probability) + 16)  # nearly always enough at once
        gaps = torch.rand(m, dtype=torch.float64).neg_().log1p_().div_(math.log1p(-probability)).floor_().add_(1)
        places.append(gaps.cumsum_(0).add_(last))
        last = float(places[-1][-1])
    places = torch.cat(places) if len(places) > 1 else places[0]
    return places[: int(torch.searchsorted(places, float(n)))].to(torch.int64)


def _zero_(x: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    """x with the dropped elements set to 0, in place."""
    if dropped is None:
        return x
    if dropped.dtype == torch.bool:
        return x.masked_fill_(dropped, 0)
    x.view(-1).index_fill_(0, dropped, 0)
    return x


def _keep(x: torch.Tensor, dropped: torch.Tensor | None) -> torch.Tensor:
    return x if dropped is None else _zero_(x.clone(memory_format=torch.contiguous_format), dropped)


class Projections(torch.autograd.Function):
    """x [N, in] -> the outputs of a group's modules, [N, out] each. adapters: every A, then every B."""

    @staticmethod
    def forward(ctx, group: Group, dropped, x, *adapters):
        n = len(group.linears)
        outputs, h = _forward(group, x, dropped, adapters[:n], adapters[n:])
        ctx.group = group
        ctx.save_for_backward(x, dropped, h, *adapters)
        return tuple(outputs)

    @staticmethod
    def backward(ctx, *grads):
        x, dropped, h, *adapters = ctx.saved_tensors
        n = len(ctx.group.linears)
        grad_x, grad_a, grad_b = _backward(
            ctx.group, x, dropped, h, adapters[:n], adapters[n:], grads, ctx.needs_input_grad[2]
        )
        return None, None, grad_x, *grad_a, *grad_b


class GatedProjection(torch.autograd.Function):
    """down(silu(gate) * up): gate, up [N, inner] -> [N, hidden]; the product is made again in the backward."""

    @staticmethod
    def forward(ctx, group: Group, dropped, gate, up, a, b):
        inner = torch.nn.functional.silu(gate).mul_(up)
        (output,), h = _forward(group, inner, dropped, (a,), (b,))
        ctx.group = group
        ctx.save_for_backward(gate, up, dropped, h, a, b)
        return output

    @staticmethod
    def backward(ctx, grad):
        gate, up, dropped, h, a, b = ctx.saved_tensors
        active = torch.nn.functional.silu(gate)
        grad_inner, (grad_a,), (grad_b,) = _backward(ctx.group, active * up, dropped, h, (a,), (b,), (grad,), True)
        grad_up = active.mul_(grad_inner)
        grad_gate = torch.ops.aten.silu_backward(grad_inner.mul_(up), gate)
        return None, None, grad_gate, grad_up, grad_a, grad_b
