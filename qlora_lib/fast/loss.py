"""Cross-entropy of a language model without its logits: made, used and dropped a few rows at a time.

How it works: the logits of 512 tokens over 49,152 words are 100 MB in fp32, and the stock path holds several
such tensors: logits, log-softmax, its gradient. But the gradient of the loss in the logits is just
softmax(logits) less a one at the target, so both loss and gradient of a chunk of rows can be made at once, turned
into the gradient of the hidden states, and forgotten. What is kept for the backward is [rows, hidden].

Source: the idea is that of Liger Kernel's and Apple's fused linear cross-entropy (Hsu et al. 2024; Wijmans et
al. 2024); here in plain PyTorch, for any device.
"""

import torch

ROWS_AT_ONCE = 128  # 128 x 49,152 fp32 logits are 24 MiB
IGNORED = -100


class LinearCrossEntropy(torch.autograd.Function):
    """sum over rows of -log softmax(hidden W^T)[target], rows with target -100 left out.

    hidden: [N, H]; weight: [V, H]; targets: int64 [N]. Returns fp32 []. Gradients: hidden, and weight where it
    requires one.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        needs_hidden, needs_weight = ctx.needs_input_grad[:2]
        grad_hidden = torch.zeros_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight) if needs_weight else None
        rows = (targets != IGNORED).nonzero().squeeze(1)
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        for at in rows.split(ROWS_AT_ONCE):
            some, wanted = hidden[at], targets[at].unsqueeze(1)  # [n, H], [n, 1]
            logits = (some @ weight.T).float()  # [n, V]
            highest = logits.amax(1, keepdim=True)  # [n, 1]
            at_target = logits.gather(1, wanted)
            slope = logits.sub_(highest).exp_()  # in place: softmax but for the sum
            sums = slope.sum(1, keepdim=True)
            total += (sums.log() + highest - at_target).sum()
            if needs_hidden or needs_weight:
                slope.scatter_add_(1, wanted, -sums)
                slope = slope.to(weight.dtype)
                if needs_hidden:
                    grad_hidden[at] = ((slope @ weight) / sums).to(hidden.dtype)  # autocast may have made it 16-bit
                if needs_weight:
                    grad_weight.addmm_(slope.T, some / sums.to(some.dtype))
            del logits, slope  # before the next rows' are made
        ctx.save_for_backward(grad_hidden, grad_weight)
        return total

    @staticmethod
    def backward(ctx, grad):
        grad_hidden, grad_weight = ctx.saved_tensors
        scaled = [None if g is None else g * grad.to(g.dtype) for g in (grad_hidden, grad_weight)]
        return *scaled, None


def linear_cross_entropy(hidden, weight, labels, items=None):
    """The mean loss of next-token prediction, as transformers' `ForCausalLMLoss` defines it.

    Args:
        hidden: [B, T, H], the decoder's output.
        weight: [V, H], the output head's.
        labels: int64 [B, T]; position t is predicted from t - 1; -100 is not scored.
        items: what to divide by, where gradients are accumulated; else the number of scored labels.
    """
    targets = torch.nn.functional.pad(labels, (0, 1), value=IGNORED)[:, 1:].reshape(-1)
    total = LinearCrossEntropy.apply(hidden.flatten(0, 1), weight, targets)
    if items is None:
        items = (targets != IGNORED).sum()
    return total / items
