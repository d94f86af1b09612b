"""LoRA written out: a frozen linear layer, and beside it two thin matrices that learn.

How it works: fine-tuning would add some D [out, in] to a weight W [out, in]. LoRA keeps W as it is, in any
format, and learns D as a product of rank r at most, D = s B A. D itself is never formed while training:

    x [.., in] ──┬──────────────── W [out, in], frozen ───────────────┐
                 │                                                    + ── y [.., out]
                 └── dropout ── A [r, in] ──┬── B [out, r] ──── * s ──┘
                                            h [.., r]

    y = x W^T + s (dropout(x) A^T) B^T        s = alpha / r, or alpha / sqrt(r) when rank-stabilized
    r (in + out) numbers are trained instead of in * out

A starts random and B at zero: at first y is the base's own output, and yet B has a gradient. (A has none
until B has moved; with both at zero neither would ever move.)

`merge_lora` puts a plain layer with W + s B A in the place of each; `unmerge_lora` puts the old ones back.
Files are PEFT's own: what is saved here PEFT loads, and the other way round.

Source: Hu et al., "LoRA", 2021, section 4; Kalajdzievski, "A Rank Stabilization Scaling Factor for
Fine-Tuning with LoRA", 2023. Drawn, computed and merged as in PEFT 0.21.2, with which tests/test_lora.py
compares it. Where this module differs, on purpose:
  * a layer keeps its old base while it is merged, so `unmerge_lora` restores every bit; PEFT subtracts
    the product again, which leaves rounding errors behind. It costs the bytes of the merged weights;
  * a quantized base is merged into its *dequantized* weight, which the adapter was trained on, and becomes
    a 16/32-bit layer; PEFT quantizes the sum again, which rounds most of a small product away;
  * on a quantized base with 16-bit products both terms are summed in fp32 and rounded once, not twice;
  * dropout is off where the layer it wraps is in evaluation mode.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import nn

from qlora_lib.errors import QloraError, UsageError, nearest, one_line
from qlora_lib.models import check_adapter
from qlora_lib.paths import write_atomic

PREFIX = "base_model.model."  # PEFT's name for the model that an adapter's tensors lie in
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "init_lora_weights"}
WITHOUT_EFFECT = {"auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version",
                  "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"}  # fmt: skip
OFF = (None, False, "none", [], {})  # how an adapter's file says that a feature is not used


@dataclass(frozen=True)
class LoraSettings:
    rank: int
    alpha: float
    target_modules: tuple[str, ...] | str  # ends of layers' names, or "all-linear"
    dropout: float = 0.0
    rank_stabilized: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.rank, bool) or not isinstance(self.rank, int) or self.rank < 1:
            raise UsageError(f"rank = {self.rank}; a whole number of 1 or more was expected")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"alpha = {self.alpha}; a number above 0 was expected")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout = {self.dropout}; a share from 0 to below 1 was expected")

    @property
    def scaling(self) -> float:
        return self.alpha / math.sqrt(self.rank) if self.rank_stabilized else self.alpha / self.rank


class LoraLinear(nn.Module):
    """A linear layer [.., in] -> [.., out] with a product of rank r beside it."""

    def __init__(self, base: nn.Linear, settings: LoraSettings) -> None:
        super().__init__()
        rank = settings.rank
        self.base_layer = base
        self.settings = settings
        self.lora_dropout = nn.Dropout(settings.dropout) if settings.dropout else nn.Identity()
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)  # weight [r, in]
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)  # weight [out, r]
        # Both were just drawn as any nn.Linear is. PEFT draws A once more, from the same distribution; so does
        # this, and one seed gives one adapter in both. Uniform in +-1/sqrt(in): h is of x's size at any width.
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)
        products = getattr(base, "compute_dtype", None) or base.weight.dtype
        for part in (self.lora_A, self.lora_B):
            if products.is_floating_point:
                part.to(products)  # as PEFT rounds them; then back to fp32: in 16 bits AdamW's steps vanish
            part.to(base.weight.device, torch.promote_types(part.weight.dtype, torch.float32))
        self.train(base.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.base_layer(x)  # [.., out]
        h = self.lora_A(self.lora_dropout(x.to(self.lora_A.weight.dtype)))  # [.., r]
        return (y + self.lora_B(h) * self.settings.scaling).to(y.dtype)

    def product(self) -> torch.Tensor:
        """s B A [out, in], what the adapter adds to the weight."""
        return self.lora_B.weight @ self.lora_A.weight * self.settings.scaling

    @torch.no_grad()
    def merged(self, dtype: torch.dtype) -> nn.Linear:
        """A plain layer of weight W + s B A: summed in the wider dtype, rounded once."""
        base, weight = self.base_layer, (dequantized(self.base_layer) + self.product()).to(dtype)
        layer = nn.Linear(base.in_features, base.out_features, bias=base.bias is not None, device="meta")
        layer.weight = nn.Parameter(weight, requires_grad=False)
        if base.bias is not None:
            layer.bias = nn.Parameter(base.bias.to(dtype, copy=True), requires_grad=False)
        return layer.train(self.training)


def is_quantized(base: nn.Linear) -> bool:
    return not base.weight.is_floating_point()


def dequantized(base: nn.Linear) -> torch.Tensor:
    """The weight [out, in] that the layer multiplies with: its own, or what its 4- or 8-bit codes stand for."""
    if not is_quantized(base):
        return base.weight
    import bitsandbytes as bnb

    if isinstance(base, bnb.nn.Linear4bit):
        return bnb.functional.dequantize_4bit(base.weight.data, base.weight.quant_state)
    if isinstance(base, bnb.nn.Linear8bitLt):  # its scales, one a row, move into `state` with the first forward
        scales = base.weight.SCB if base.state.SCB is None else base.state.SCB
        return bnb.functional.int8_vectorwise_dequant(base.weight.data, scales.to(base.weight.device))
    raise UsageError(f"cannot dequantize a {type(base).__name__}; nn.Linear, Linear4bit or Linear8bitLt was expected")


# --- injection -----------------------------------------------------------------------------------


def inject_lora(
    model: nn.Module,
    rank: int = 16,
    alpha: float = 32,
    target_modules: Iterable[str] | str = ("q_proj",),
    dropout: float = 0.0,
    rank_stabilized: bool = False,
) -> nn.Module:
    """Freeze `model` and wrap its target layers, in place; afterwards only A and B are trainable.

    Args:
        model: of nn.Linear in 16 or 32 bits, or of bitsandbytes' Linear4bit or Linear8bitLt.
        rank: r, 1 or more.
        alpha: the numerator of the scaling, above 0.
        target_modules: ends of layers' names (`q_proj`, `self_attn.q_proj`), or "all-linear". The output
            head is never wrapped: it may share its weight with the embedding.
        dropout: of the adapter's input, in [0, 1).
        rank_stabilized: scale by alpha / sqrt(r) instead of alpha / r.

    Returns: `model`. A is drawn from torch's global generator, layer by layer in the model's order: after
    `torch.manual_seed(s)` the adapter is the one that PEFT's `get_peft_model` draws.
    Raises: UsageError for an unknown target or a setting out of range, or when LoRA is there already.
    """
    ends = target_modules if isinstance(target_modules, str) else tuple(target_modules)
    return _inject(model, LoraSettings(rank, alpha, ends, dropout, rank_stabilized))


def _inject(model: nn.Module, settings: LoraSettings) -> nn.Module:
    targets = find_targets(model, settings.target_modules)
    model.requires_grad_(False)
    for name, base in targets.items():
        _replace(model, name, LoraLinear(base, settings))
    return model


def find_targets(model: nn.Module, target_modules: Iterable[str] | str) -> dict[str, nn.Linear]:
    """{name: layer} of the linear layers whose names end so, in the model's order; UsageError if there is none."""
    if lora_layers(model):
        raise UsageError("the model has LoRA layers already", "Merge them first, or load the base anew")
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Linear) and m is not head}
    if not linear:
        raise UsageError("the model has no linear layer inside it besides its output head", "Give the whole model")
    if target_modules == "all-linear":
        return linear
    ends = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if not ends:
        raise UsageError("target_modules is empty", 'Name layers, such as "q_proj", or give "all-linear"')
    for end in ends:
        if not any(_ends_with(name, end) for name in linear):
            known = dict.fromkeys(name.rpartition(".")[2] for name in linear)
            at_head = any(_ends_with(name, end) for name, module in model.named_modules() if module is head)
            left_out = " besides the output head, which is left out" if at_head else ""
            raise UsageError(f"the model has no linear layer '{end}'{left_out}", nearest(end, known))
    return {name: layer for name, layer in linear.items() if any(_ends_with(name, end) for end in ends)}


def lora_layers(model: nn.Module) -> dict[str, LoraLinear]:
    """{name: layer} of the layers that LoRA is on."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def _ends_with(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, module)


# --- merging -------------------------------------------------------------------------------------


def merge_lora(model: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """Put a plain layer of weight W + s B A in the place of each LoRA layer, in place; returns `model`.

    Args:
        dtype: of the merged weights. None: on a 16/32-bit base its own; on a quantized base that of the
            model's unquantized parameters, so that the layer fits between its neighbours.

    W is what the base multiplied with while the adapter was trained: of a quantized base its dequantized
    weight, not the original, for which the adapter was never fitted. The state dict is then that of a plain
    model. The LoRA layer is kept aside, out of the state dict, for `unmerge_lora`.
    """
    layers = _some(lora_layers(model))
    others = (p.dtype for n, p in model.named_parameters() if p.is_floating_point() and ".lora_" not in f".{n}")
    between = next(others, torch.float32)
    for name, layer in layers.items():
        own = between if is_quantized(layer.base_layer) else layer.base_layer.weight.dtype
        merged = layer.merged(dtype or own)
        object.__setattr__(merged, "before_merging", layer)  # past nn.Module, which would register it
        _replace(model, name, merged)
    return model


def unmerge_lora(model: nn.Module) -> nn.Module:
    """Put the LoRA layers back, in place: the base's weights are those of before, bit for bit."""
    merged = {n: m for n, m in model.named_modules() if isinstance(getattr(m, "before_merging", None), LoraLinear)}
    if not merged:
        raise UsageError("the model has no merged LoRA layer", "Merge it with merge_lora first")
    for name, layer in merged.items():
        _replace(model, name, layer.before_merging.to(layer.weight.device).train(layer.training))
    return model


def _some(layers: dict[str, LoraLinear]) -> dict[str, LoraLinear]:
    if not layers:
        raise UsageError("the model has no LoRA layer", "Call inject_lora or load_lora first")
    return layers


# --- files ---------------------------------------------------------------------------------------


def save_lora(model: nn.Module, folder: Path | str) -> None:
    """Write A and B as PEFT does: adapter_model.safetensors and adapter_config.json, each whole or not at all."""
    layers = _some(lora_layers(model))
    settings = next(iter(layers.values())).settings
    ends = settings.target_modules
    if isinstance(ends, str):  # PEFT reads a text as a regular expression
        ends = sorted({name.rpartition(".")[2] for name in layers}) if ends == "all-linear" else [ends]
    tensors = {
        f"{PREFIX}{name}.{part}.weight": getattr(layer, part).weight.detach().cpu().contiguous()
        for name, layer in layers.items()
        for part in ("lora_A", "lora_B")
    }
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if hasattr(model, "prepare_inputs_for_generation") else None,
        "base_model_name_or_path": getattr(model, "name_or_path", None),
        "r": settings.rank,
        "lora_alpha": settings.alpha,
        "lora_dropout": settings.dropout,
        "use_rslora": settings.rank_stabilized,
        "target_modules": list(ends),
        "bias": "none",
        "inference_mode": True,
    }
    write_atomic(Path(folder) / "adapter_model.safetensors", safetensors.save(tensors, {"format": "pt"}))
    write_atomic(Path(folder) / "adapter_config.json", json.dumps(config, indent=2) + "\n")


def load_lora(model: nn.Module, folder: Path | str) -> nn.Module:
    """Inject the LoRA adapter of a folder that PEFT or `save_lora` wrote, in place; returns `model`.

    Raises: UsageError for a folder without an adapter or with one that this module does not know (DoRA,
    trained biases, ranks of their own, ...); QloraError for one of another model. The model is then untouched.
    """
    folder = check_adapter(Path(folder))
    settings = _read_settings(folder)
    try:
        tensors = safetensors.load_file(folder / "adapter_model.safetensors")
    except (SafetensorError, OSError) as e:
        raise QloraError(f"the adapter in {folder} cannot be read: {one_line(e)}", "Copy it anew") from None
    shapes = {}
    for name, base in find_targets(model, settings.target_modules).items():
        shapes[f"{PREFIX}{name}.lora_A.weight"] = (settings.rank, base.in_features)
        shapes[f"{PREFIX}{name}.lora_B.weight"] = (base.out_features, settings.rank)
    stored = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for name in sorted(shapes.keys() | stored.keys()):
        wanted, found = shapes.get(name, "nothing"), stored.get(name, "nothing")
        if wanted != found:
            message = f"the adapter in {folder} does not fit: {name} is {found} in the file and {wanted} in the model"
            raise QloraError(message, "Give the adapter of this very model")
    _inject(model, settings)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for part in ("lora_A", "lora_B"):
                getattr(layer, part).weight.copy_(tensors[f"{PREFIX}{name}.{part}.weight"])
    return model


def _read_settings(folder: Path) -> LoraSettings:
    """What adapter_config.json says; refused is what would change the arithmetic."""
    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        kind, ends = config["peft_type"], config["target_modules"]
        settings = LoraSettings(
            rank=config["r"],
            alpha=float(config["lora_alpha"]),
            target_modules=ends if isinstance(ends, str) else tuple(ends),
            dropout=float(config.get("lora_dropout") or 0),
            rank_stabilized=bool(config.get("use_rslora")),
        )
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UsageError(f"{folder / 'adapter_config.json'} is no LoRA adapter's: {one_line(repr(e))}") from None
    used = [key for key in sorted(config) if key not in READ | WITHOUT_EFFECT and config[key] not in OFF]
    if config.get("init_lora_weights", True) not in (True, False, "gaussian"):
        used.insert(0, "init_lora_weights")  # PiSSA and its like also change the base
    if kind != "LORA":
        used = ["peft_type"]
    if used:
        values = ", ".join(f"{key} = {json.dumps(config[key])}" for key in used)
        raise UsageError(f"the adapter in {folder} uses what plain LoRA does not have: {values}", "Load it with PEFT")
    return settings
