"""Does ours compute the same? Loss and gradients of one QLoRA step at identical weights, dropout 0, and in fp64.

How it works: the same model makes the gradients three times: as the stock stack does, with the fast path installed,
and in fp64 with its 4-bit weights dequantized. The last says which of the first two is nearer to the truth. Norms
and loss are written out for it, since transformers computes both in fp32 whatever the model's dtype; torch's fp32
log-softmax over a large vocabulary is the largest error of the stock stack.
"""

from functools import partial
from pathlib import Path

import torch
from torch.nn import functional as F

from qlora_lib.bench.loading import fill_adapters, training_model
from qlora_lib.bench.record import Numerics
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.fast.install import install, uninstall
from qlora_lib.progress import say

SEQUENCES = 2  # in fp64 they take twice the memory

Gradients = dict[str, torch.Tensor]  # fp64, by parameter


def compare_numerics(path: Path, ids: torch.Tensor, settings: BenchSettings) -> Numerics:
    """ids: [B, T], of which the first sequences are used."""
    say("numerics: loss and gradients of one step; stock, ours and fp64")
    ids = ids[:SEQUENCES]
    lora = settings.lora.model_copy(update={"dropout": 0.0})
    model = training_model(path, "qlora", lora, settings.seed)
    fill_adapters(model, settings.seed)  # with B = 0 the gradients of A would be 0
    loss_stock, stock = _gradients(model, model(input_ids=ids, labels=ids).loss)
    install(model)
    loss_fast, fast = _gradients(model, model(input_ids=ids, labels=ids).loss)
    uninstall(model)
    to_fp64(model)
    logits = model(input_ids=ids).logits[:, :-1]
    loss_fp64, fp64 = _gradients(model, F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))
    apart = {name: _apart({name: fast[name]}, {name: g}) for name, g in stock.items() if g.norm() > 0}
    worst = max(apart, key=apart.get)
    return Numerics(
        loss_stock=loss_stock,
        loss_relative_difference=abs(loss_fast / loss_stock - 1),
        gradient_relative_difference=_apart(fast, stock),
        worst_gradient_relative_difference=apart[worst],
        worst_gradient=worst,
        loss_error={"stock": abs(loss_stock / loss_fp64 - 1), "fast": abs(loss_fast / loss_fp64 - 1)},
        gradient_error={"stock": _apart(stock, fp64), "fast": _apart(fast, fp64)},
    )


def _gradients(model, loss: torch.Tensor) -> tuple[float, Gradients]:
    model.zero_grad()
    loss.backward()
    return loss.item(), {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def _apart(a: Gradients, b: Gradients) -> float:
    """||a - b|| / ||b||, over all of them."""
    return (sum((a[n] - b[n]).square().sum() for n in b) / sum(g.square().sum() for g in b.values())).sqrt().item()


def to_fp64(model) -> None:
    """All weights and products of a QLoRA model in fp64, in place; rotary angles stay as they are."""
    import bitsandbytes as bnb

    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, bnb.nn.Linear4bit):
                setattr(module, name, _dequantized(child))
        if hasattr(module, "variance_epsilon"):
            module.forward = partial(_rms_norm, module)
    model.double()


def _dequantized(linear) -> torch.nn.Linear:
    import bitsandbytes as bnb

    plain = torch.nn.Linear(linear.in_features, linear.out_features, bias=False, device="meta")
    weight = bnb.functional.dequantize_4bit(linear.weight.data, linear.weight.quant_state)
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    plain.bias = linear.bias
    return plain


def _rms_norm(module, x: torch.Tensor) -> torch.Tensor:
    return module.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + module.variance_epsilon)
