"""Small experiments for claims of mechanism: a second of tensors each, seeded, made once.

How it works: weights are drawn from a normal distribution, the one that NF4 was made for; the quantizer is this
library's (bit-exact with bitsandbytes), the adapter PEFT's, the optimizer torch's. torch is loaded only here.
"""

import inspect
import re
from dataclasses import dataclass
from functools import cache

from qlora_lib.errors import QloraError

ELEMENTS = 2**18
BLOCK = 64


@cache
def normal_weights():
    """fp32 [512, 512], standard deviation 0.02 as TinyLlama's initializer has it."""
    import torch

    return 0.02 * torch.randn(512, 512, generator=torch.Generator().manual_seed(0))


def _mse(x, y) -> float:
    return float((x.double() - y.double()).square().mean())


@dataclass(frozen=True)
class Scheme:
    """A 4-bit data type on normal weights: mean squared error over the variance, and its values."""

    error: float
    equal_to_nf4: float  # share of dequantized values that are NF4's, to a millionth of the deviation


@cache
def schemes() -> dict[str, Scheme]:
    from qlora_lib.quantization import dequantize_4bit, quantize_4bit

    w = normal_weights()
    nf4 = dequantize_4bit(quantize_4bit(w, "nf4", BLOCK, double_quant=False))
    found = {}
    for name in ("nf4", "int4-affine"):
        y = dequantize_4bit(quantize_4bit(w, name, BLOCK, double_quant=False))
        found[name] = Scheme(_mse(w, y) / float(w.var()), float(((y - nf4).abs() < 1e-6 * w.std()).double().mean()))
    return found


@dataclass(frozen=True)
class CodeUse:
    entropy_bits: float  # 4 if all 16 codes are used equally often
    rarest: float  # shares of weights
    commonest: float
    error: float  # mean squared error over the variance
    best_error: float  # the same with 16 levels fitted to these weights


@cache
def code_use() -> CodeUse:
    """How often NF4's codes occur at blocks of 64, and what levels fitted to the same weights would do (Lloyd's method)."""
    import torch

    from qlora_lib.quantization import codebook, quantize_4bit, unpack_4bit

    w = normal_weights()
    q = quantize_4bit(w, "nf4", BLOCK, double_quant=False)
    share = torch.bincount(unpack_4bit(q.codes).long(), minlength=16).double() / ELEMENTS
    scaled = (w.view(-1, BLOCK) / q.absmax.unsqueeze(1)).double()
    weight = q.absmax.double().square().unsqueeze(1).expand_as(scaled)  # an error counts in units of the weight
    levels = codebook("nf4").double().clone()
    errors = []
    for _ in range(60):
        code = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2)
        errors.append(float((weight * (scaled - levels[code]).square()).mean()) / float(w.var()))
        flat, mass = code.view(-1), weight.reshape(-1)
        total = torch.zeros(16, dtype=torch.float64).index_add_(0, flat, mass)
        levels = torch.zeros(16, dtype=torch.float64).index_add_(0, flat, mass * scaled.reshape(-1)) / total
    entropy = float(-(share * share.log2()).sum())
    return CodeUse(entropy, float(share.min()), float(share.max()), errors[0], min(errors))


@dataclass(frozen=True)
class Scale:
    is_absmax: bool  # each block's stored scale is its largest magnitude
    best_factor: float  # times absmax: the scale that makes the error least
    error: float  # mean squared error over the variance, at absmax
    best_error: float


@cache
def scale() -> Scale:
    """NF4's scale, and whether another one would lose less."""
    import torch

    from qlora_lib.quantization import codebook, quantize_4bit

    blocks = normal_weights().view(-1, BLOCK)
    absmax = quantize_4bit(blocks, "nf4", BLOCK, double_quant=False).absmax
    levels = codebook("nf4")
    middle = (levels[1:] + levels[:-1]) / 2

    def error(factor: float) -> float:
        s = (factor * absmax).unsqueeze(1)
        return _mse(blocks, levels[torch.bucketize(blocks / s, middle)] * s) / float(blocks.var())

    errors = {f / 100: error(f / 100) for f in range(80, 101)}
    best = min(errors, key=errors.get)
    return Scale(bool((absmax == blocks.abs().amax(1)).all()), best, errors[1.0], errors[best])


@dataclass(frozen=True)
class HalfPrecisionAdam:
    finite: float  # share of weights that are finite after one step of torch's default loop
    vanished: float  # share of second averages that are 0
    fused_step: float  # the fused optimizer's update over that in fp32 after three steps, median of the weights


@cache
def half_precision_adam() -> HalfPrecisionAdam:
    """AdamW with weights, gradients and averages all in fp16, as `model.half()` would train: gradients of about 1e-3."""
    import torch

    random = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(1000, generator=random)
    gradients = 1e-3 * torch.randn(3, 1000, generator=random)

    def train(dtype, steps: int, fused: bool):
        p = torch.nn.Parameter(start.to(dtype, copy=True))
        optimizer = torch.optim.AdamW([p], lr=2e-5, weight_decay=0, fused=fused)
        for g in gradients[:steps]:
            p.grad = g.to(dtype)
            optimizer.step()
        return p.detach().float(), optimizer.state[p]["exp_avg_sq"]

    half, averages = train(torch.float16, 1, fused=False)
    moved = [(train(d, 3, fused=True)[0] - start.to(d).float()).abs().median() for d in (torch.float16, torch.float32)]
    return HalfPrecisionAdam(
        float(torch.isfinite(half).double().mean()), float((averages == 0).double().mean()), float(moved[0] / moved[1])
    )


@dataclass(frozen=True)
class Adapter:
    a: tuple[int, int]  # PEFT's shapes of a layer from 12 to 20 features, rank 4
    b: tuple[int, int]
    error: float  # largest |PEFT - formula| of the layer's output, relative


@cache
def adapter(alpha: int = 8, rank: int = 4) -> Adapter:
    """PEFT's LoRA layer against W0 x + (alpha / r) B A x."""
    import torch
    from peft import LoraConfig, get_peft_model

    state = torch.random.get_rng_state()  # PEFT draws from the global one
    try:
        torch.manual_seed(0)
        base = torch.nn.Linear(12, 20, bias=False)
        model = get_peft_model(
            torch.nn.Sequential(base), LoraConfig(r=rank, lora_alpha=alpha, target_modules=["0"], init_lora_weights=False)
        )
        layer = model.base_model.model[0]
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        x = torch.randn(5, 12)
        with torch.no_grad():
            out = layer.eval()(x)
            formula = x @ base.weight.T + alpha / rank * x @ a.T @ b.T
        error = float((out - formula).abs().max() / out.abs().max())
    finally:
        torch.random.set_rng_state(state)
    return Adapter(tuple(a.shape), tuple(b.shape), error)


@cache
def four_bits_on_a_cpu() -> tuple[bool, str]:
    """Whether bitsandbytes multiplies by a 4-bit weight on a CPU, and its version."""
    import bitsandbytes as bnb
    import torch

    w = normal_weights()[:64, :64]
    linear = bnb.nn.Linear4bit(64, 64, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    linear.load_state_dict({"weight": w})
    x = torch.eye(64, requires_grad=True)
    out = linear.to("cpu")(x)  # its transpose is what the weight stands for
    out.sum().backward()
    lost = (out.T - w).abs().max() / w.abs().max()
    same = torch.allclose(x.grad[0], out.detach().T.sum(0), atol=1e-4)
    return bool(lost < 0.2 and same and linear.weight.dtype == torch.uint8), bnb.__version__


@cache
def paging_threshold() -> int:
    """Elements below which bitsandbytes' paged optimizers do not page a state, read from its code."""
    from bitsandbytes.optim.optimizer import Optimizer8bit

    found = re.search(r"p\.numel\(\) < (\d+e\d+|\d+)", inspect.getsource(Optimizer8bit.get_state_buffer))
    if not found:
        raise QloraError("this version of bitsandbytes decides otherwise what it pages")
    return int(float(found[1]))


@cache
def default_of(function: str, parameter: str):
    """A default of a function of PEFT, e.g. ("get_peft_model", "autocast_adapter_dtype")."""
    import peft

    return inspect.signature(getattr(peft, function)).parameters[parameter].default
