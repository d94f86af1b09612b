"""RMS norm and rotary position embedding with their backward written by hand: fewer passes, and less kept.

How it works: autograd follows transformers' formulas operation by operation; each makes a tensor as large as its input,
and most are kept. Both gradients are short closed forms of the input itself, so that is all that has to be kept, and of a
rotation nothing: its backward turns the other way.
"""

import torch


class RmsNorm(torch.autograd.Function):
    """x / sqrt(mean(x^2) + epsilon) * weight over the last dimension, [.., H]; kept: x and one number a row."""

    @staticmethod
    def forward(ctx, x, weight, epsilon: float):
        wide = x.float()
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        normed = (wide * scale).to(x.dtype)
        return normed.mul_(weight) if normed.dtype == weight.dtype else weight * normed

    @staticmethod
    def backward(ctx, grad):
        x, weight, scale = ctx.saved_tensors
        wide = x.float()
        grad_weight = None
        if ctx.needs_input_grad[1]:
            grad_weight = (grad * (wide * scale).to(grad.dtype)).flatten(0, -2).sum(0).to(weight.dtype)
        inner = (grad * weight).float()  # of the normed x
        along = (inner * wide).sum(-1, keepdim=True).mul_(scale**3).div_(x.shape[-1])  # [.., 1]
        return inner.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype), grad_weight, None


class Rotary(torch.autograd.Function):
    """Rotary position embedding of x [B, T, heads, d]; cosine, sine: [B or 1, T, d]. Pairs are d / 2 apart."""

    @staticmethod
    def forward(ctx, x, cosine, sine):
        ctx.save_for_backward(cosine, sine)
        (a, b), (cos_a, cos_b), (sin_a, sin_b) = _halves(x, cosine, sine)
        turned = torch.empty_like(x, memory_format=torch.contiguous_format)
        first, second = turned.chunk(2, -1)
        torch.mul(a, cos_a, out=first).addcmul_(b, sin_a, value=-1)
        torch.mul(b, cos_b, out=second).addcmul_(a, sin_b)
        return turned

    @staticmethod
    def backward(ctx, grad):
        (a, b), (cos_a, cos_b), (sin_a, sin_b) = _halves(grad, *ctx.saved_tensors)
        turned = torch.empty_like(grad, memory_format=torch.contiguous_format)
        first, second = turned.chunk(2, -1)
        torch.mul(a, cos_a, out=first).addcmul_(b, sin_b)
        torch.mul(b, cos_b, out=second).addcmul_(a, sin_a, value=-1)
        return turned, None, None


def _halves(x, cosine, sine):
    return (t.chunk(2, -1) for t in (x, cosine.unsqueeze(2), sine.unsqueeze(2)))
