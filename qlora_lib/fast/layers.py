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
        import bitsandbytes as bnb

        return bnb.functional.dequantize_4bit(parameter.data, state).to(dtype)


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

    def scale(self, linear: Linear, dropped: torch.Tensor | None) -> float:
        """s, and what makes up for the dropped elements."""
        return linear.scaling if dropped is None else linear.scaling / (1 - self.dropout)


def _forward(group: Group, x, dropped, a, b) -> tuple[list[torch.Tensor], torch.Tensor]:
    """x [N, in]; a: A [r, in] and b: B [out, r] of each module -> outputs [N, out] each, and h [N, all r]."""
    h = _keep(x, dropped) @ torch.cat(a).T
    outputs = []
    for linear, part, up in zip(group.linears, group.split(h, 1), b):
        bias, weight = linear.base.bias, linear.weight(x.dtype)
        y = x @ weight.T if bias is None else torch.addmm(bias.to(x.dtype), x, weight.T)
        del weight  # before the next is dequantized
        outputs.append(y.addmm_(part, up.T, alpha=group.scale(linear, dropped)))
    return outputs, h


def _backward(group: Group, x, dropped, h, a, b, grads, needs_input: bool):
    """Gradients of x [N, in] (None unless needed), of each A and of each B; grads: of the outputs, [N, out] each."""
    grad_b, grad_h = [], []
    for linear, part, up, grad in zip(group.linears, group.split(h, 1), b, grads):
        scale = group.scale(linear, dropped)
        grad_b.append((grad.T @ part).mul_(scale))
        grad_h.append((grad @ up).mul_(scale))
    grad_h = torch.cat(grad_h, 1)  # [N, all r]
    grad_a = group.split(grad_h.T @ _keep(x, dropped), 0)
    if not needs_input:
        return None, grad_a, grad_b
    grad_x = grad_h @ torch.cat(a)
    _zero_(grad_x, dropped)
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
        sigmoid = torch.sigmoid(gate)
        active = gate * sigmoid
        inner = active * up
        grad_inner, (grad_a,), (grad_b,) = _backward(ctx.group, inner, dropped, h, (a,), (b,), (grad,), True)
        # d silu / d gate = sigmoid + silu * (1 - sigmoid)
        slope = active.addcmul(active, sigmoid, value=-1).add_(sigmoid).mul_(up)
        return None, None, slope.mul_(grad_inner), active.mul_(grad_inner), grad_a, grad_b


class RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, [.., H]; kept: x and one number a row."""

    @staticmethod
    def forward(ctx, x, weight, epsilon: float):
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return weight * (wide * scale).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        normed = x.float() * scale  # [.., H]
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * normed).flatten(0, -2).sum(0).to(weight.dtype)
        grad_normed = (grad * weight).float()
        along = (grad_normed * normed).mean(-1, keepdim=True)
        return grad_normed.addcmul_(normed, along, value=-1).mul_(scale).to(x.dtype), grad_weight, None
