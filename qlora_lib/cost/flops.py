"""Floating-point operations of one optimizer step, product by product, and model FLOPs utilization.

How it works: the layer is walked once in the order it runs. Each matrix product adds to `forward`;
whether its backward products run follows, as in autograd, from which of its inputs require a
gradient, so any choice of LoRA targets is exact. Conventions:

- A multiply-add is 2 FLOPs, and only matrix products count: norms, activations, softmax, rotary
  angles, dropout, the loss, the optimizer and 4-bit dequantization are left out, and the embedding
  is a look-up, not a product. The output head is a product, for every position, tied or not.
  So a QLoRA step counts the same as a LoRA step; its dequantization shows as time, hence as lower MFU.
- Attention is counted in full T x T, as eager attention and PaLM count it: the causal mask (and
  Mistral's sliding window) is not exploited. Forward, a sequence and a layer: 2 T T H Q each for the
  scores and the values, H heads of width Q.
- A product y = x W costs the same three times: y, the gradient of x, the gradient of W. A frozen W
  needs no gradient, hence 6 FLOPs a trained and 4 a frozen weight and token.
- Nothing before the first adapter requires a gradient: with a frozen embedding the first layer skips
  the gradient of its input, and with, say, only `v_proj` adapted, also that of its scores. `backward`
  counts what the parameters need. When `enable_input_require_grads` is on, that gradient is
  computed although nothing uses it: `input_gradient`, done by the hardware, not model work.
  transformers switches it on together with gradient checkpointing.
- Gradient checkpointing (`torch.utils.checkpoint`, use_reentrant=False, every layer) repeats each
  layer's forward during backward, but stops early, before the last product: it keeps only its
  *inputs* for backward, so once those are back nothing remains to be rebuilt. What is spared is
  `down_proj`, or the B of its adapter when it has one. `recompute` is work of the hardware, not the model.

Model FLOPs are forward + backward, so an arm's MFU does not rise because it recomputes; hardware
FLOPs add the other two. All are exact against `torch.utils.flop_counter` (the tests hold them equal).

Sources: PaLM (Chowdhery et al. 2022), appendix B: MFU, the 6N + 12 L H Q T estimate and recompute left
out of it; QLoRA (Dettmers et al. 2023) for the frozen base; torch 2.13 `flop_counter` and `checkpoint`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qlora_lib.cost.shapes import ModelShape, resolve_targets
from qlora_lib.errors import UsageError, nearest

METHODS = ("full", "lora", "qlora")


@dataclass(frozen=True)
class StepFlops:
    """FLOPs of one optimizer step (all its accumulated micro-batches)."""

    forward: int
    backward: int
    recompute: int  # repeated by gradient checkpointing
    input_gradient: int  # of the first layer, computed for no parameter

    @property
    def model_flops(self) -> int:
        return self.forward + self.backward

    @property
    def hardware_flops(self) -> int:
        return self.model_flops + self.recompute + self.input_gradient


@dataclass(frozen=True)
class ProtocolFlops:
    """The textbook estimate beside the exact model FLOPs of the same step."""

    estimate: int
    exact: int

    @property
    def relative_difference(self) -> float:
        """(estimate - exact) / exact."""
        return (self.estimate - self.exact) / self.exact


def step_flops(
    shape: ModelShape,
    method: str,
    batch: int,
    length: int,
    rank: int = 16,
    target_modules: str | Iterable[str] = "all-linear",
    gradient_checkpointing: bool = False,
    accumulation: int = 1,
    input_requires_grad: bool | None = None,
) -> StepFlops:
    """FLOPs of one optimizer step on `batch * accumulation` sequences of `length` tokens.

    `rank` and `target_modules` are ignored by "full". `input_requires_grad` says whether
    `enable_input_require_grads` is on; None is what transformers does: on with checkpointing.
    Raises UsageError for an unknown method or module, or a number below 1.
    """
    _check(method, batch=batch, length=length, rank=rank, accumulation=accumulation)
    full = method == "full"
    targets = () if full else resolve_targets(target_modules)
    if input_requires_grad is None:
        input_requires_grad = gradient_checkpointing

    def walk(input_grad: bool) -> _Tally:
        tally = _Tally(shape, batch, length, full, rank, targets)
        tally.layer(input_grad)
        return tally

    # Behind the first layer every hidden state requires a gradient; before it, only with a trained
    # embedding, as `full` has.
    later = walk(True)
    first = later if full else walk(False)
    head = 2 * batch * length * shape.hidden_size * shape.vocab_size
    layers = shape.num_layers
    return StepFlops(
        forward=accumulation * (layers * later.forward + head),
        backward=accumulation
        * (first.backward + (layers - 1) * later.backward + head * (2 if full else 1)),
        recompute=accumulation * layers * (later.forward - later.last_product)
        if gradient_checkpointing
        else 0,
        input_gradient=accumulation * (later.backward - first.backward) if input_requires_grad else 0,
    )


class _Tally:
    """Adds up one layer's products; methods take and return "requires a gradient"."""

    def __init__(self, shape: ModelShape, batch: int, length: int, full: bool, rank: int, targets):
        self.linear_modules = shape.linear_modules
        self.tokens = batch * length
        self.attention_product = 2 * batch * length * length * shape.query_width
        self.full, self.rank, self.targets = full, rank, targets
        self.forward = self.backward = self.last_product = 0

    def layer(self, x: bool) -> bool:
        q, k, v = (self.linear(name, x) for name in ("q_proj", "k_proj", "v_proj"))
        scores = self.matmul(q, k)
        values = self.matmul(scores, v)
        x = self.linear("o_proj", values) or x  # residual
        gate, up = self.linear("gate_proj", x), self.linear("up_proj", x)
        return self.linear("down_proj", gate or up) or x

    def matmul(self, left: bool, right: bool) -> bool:
        """(B, H, T, Q) @ (B, H, Q, T) or (B, H, T, T) @ (B, H, T, Q): keys and values are repeated
        to all H heads first, so grouped-query attention saves no product here."""
        self._add(self.attention_product, backward=left + right)
        return left or right

    def linear(self, name: str, x: bool) -> bool:
        """x W, and with an adapter + (x A) B: (tokens, in) @ (in, rank) @ (rank, out)."""
        inputs, outputs = self.linear_modules[name]
        self._add(2 * self.tokens * inputs * outputs, backward=x + self.full)
        if name in self.targets:
            self._add(2 * self.tokens * inputs * self.rank, backward=x + 1)
            self._add(2 * self.tokens * self.rank * outputs, backward=2)
        return x or self.full or name in self.targets

    def _add(self, flops: int, backward: int) -> None:
        """One product and the `backward` products of the same size that it asks for."""
        self.forward += flops
        self.backward += backward * flops
        self.last_product = flops


def protocol_flops(
    shape: ModelShape,
    method: str,
    batch: int,
    length: int,
    rank: int = 16,
    target_modules: str | Iterable[str] = "all-linear",
    accumulation: int = 1,
) -> ProtocolFlops:
    """The estimate by counting weights: 6 FLOPs a trained and 4 a frozen weight in a matrix product
    (layers and head; no embedding, bias or norm), and 12 L H Q T for attention, each a token.

    It takes the backward pass to be complete, so for LoRA it is too high by the first layer's
    unneeded gradients; for "full" it is exact.
    """
    exact = step_flops(
        shape, method, batch, length, rank, target_modules, accumulation=accumulation
    ).model_flops
    base = shape.linear_weights + shape.hidden_size * shape.vocab_size
    if method == "full":
        weights = 6 * base
    else:
        weights = 4 * base + 6 * shape.lora_parameters(rank, target_modules)
    attention = 12 * shape.num_layers * shape.query_width * length
    return ProtocolFlops(batch * length * accumulation * (weights + attention), exact)


def mfu(flops: float, seconds: float, peak: float) -> float:
    """Model FLOPs utilization, a fraction: `flops` done in `seconds` over `peak` FLOP/s.

    Give `StepFlops.model_flops`; with `hardware_flops` it is the hardware's (HFU).
    """
    if seconds <= 0 or peak <= 0:
        raise UsageError(f"seconds {seconds} and peak {peak} FLOP/s; both must be above 0")
    return flops / (seconds * peak)


def _check(method: str, **numbers: int) -> None:
    if method not in METHODS:
        raise UsageError(f"unknown method '{method}'", nearest(method, METHODS))
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UsageError(f"{name} is {value!r}; a whole number of at least 1 was expected")
