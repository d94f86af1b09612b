"""The ways to deploy an adapter of QLoRA, measured on one model in memory, and why quantizing again may undo it.

How it works: for each adapted layer there are the original weight W, what its 4-bit codes stand for, W~ = Q(W), and the
product P = s B A. `deployments` puts W + P, Q(W + P), W~ + P and Q(W~ + P) into one plain model in turn, so that each can be
scored on the same examples; Q is what bitsandbytes does on loading, and back. What a way keeps of the product is told by
weights alone: the share k = <W' - W~, P> / <P, P> for a quantized W', which is 1 if on average all of P is there.

`qlora merge --check` measures the same ways with files (qlora_lib.merging).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.ticker import NullFormatter

from qlora_lib import style
from qlora_lib.config import Quantization
from qlora_lib.errors import QloraError
from qlora_lib.lora import dequantized
from qlora_lib.metrics.scored import learned, log_probabilities
from qlora_lib.models import import_bitsandbytes
from qlora_lib.paths import results_dir
from qlora_lib.quantization import dequantize_4bit, quantize_4bit
from qlora_lib.records import RECORD_NAME, RunRecord, read_record
from qlora_lib.tasks.chat import Encoded

LOOKS = {"onto the dequantized": (style.VERMILLION, "s"), "onto the original": (style.BLUE, "o")}


def trained_adapter(profile: str, record: RunRecord | None) -> Path | None:
    """The folder of the adapter that this record is of, if this machine has it: committed records come without."""
    folder = results_dir(profile) / record.arm if record else None
    if folder is None or not (folder / "adapter" / "adapter_model.safetensors").is_file():
        return None
    try:
        own = read_record(folder / RECORD_NAME)
    except QloraError:
        return None
    return folder / "adapter" if own.provenance.cache_key == record.provenance.cache_key else None


def response_loss(model, examples: Sequence[Encoded], batch_size: int = 4) -> float:
    """Mean nats a learned token."""
    rows, wanted = zip(*(learned(e.ids, e.labels) for e in examples))
    found = [p for row in log_probabilities(model, rows, wanted, batch_size) for p in row]
    return -sum(found) / len(found)


def through_four_bits(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """Quantized as on loading, and dequantized: Q."""
    functional = import_bitsandbytes().functional
    codes, state = functional.quantize_4bit(
        weight.contiguous(), blocksize=64, quant_type=quantization.format, compress_statistics=quantization.double_quant
    )
    return functional.dequantize_4bit(codes, state).to(weight.dtype)


@dataclass(frozen=True)
class Deployed:
    """One way. `kept`: by layer, (size of P over that of W, the share of P that is there), where it was quantized again."""

    onto: str
    again: bool
    model: torch.nn.Module
    kept: tuple[tuple[float, float], ...] = ()

    @property
    def name(self) -> str:
        return f"merged {self.onto}" + (", quantized again" if self.again else "")


@torch.no_grad()
def deployments(adapted, plain, quantization: Quantization) -> Iterator[Deployed]:
    """Each way in turn, in the weights of `plain`: score it before you ask for the next.

    adapted: a PEFT model on a 4-bit base; plain: the same model in 32 bits, with its original weights; it is changed.
    """
    if quantization.format not in ("nf4", "fp4"):
        raise QloraError(f"the base is in '{quantization.format}'", "These ways are those of a 4-bit base: nf4 or fp4")
    layers = {
        name.removeprefix("base_model.model."): module for name, module in adapted.named_modules() if hasattr(module, "get_delta_weight")
    }
    active = adapted.active_adapters[0]
    for onto in ("onto the original", "onto the dequantized"):
        for name, layer in layers.items():
            weight = plain.get_submodule(name).weight  # [out, in]
            if onto == "onto the dequantized":
                weight.copy_(dequantized(layer.get_base_layer()))
            weight += layer.get_delta_weight(active)
        yield Deployed(onto, False, plain)
        kept = []
        for name, layer in layers.items():
            weight, product = plain.get_submodule(name).weight, layer.get_delta_weight(active)
            weight.copy_(through_four_bits(weight, quantization))
            stood = dequantized(layer.get_base_layer()).to(weight.dtype)
            share = ((weight - stood) * product).sum() / product.square().sum().clamp_min(1e-30)
            kept.append((float(product.norm() / stood.norm()), float(share)))
        yield Deployed(onto, True, plain, tuple(kept))


# --- the reason, without a model -------------------------------------------------------------------


def kept_share(size: float, on_levels: bool, seed: int = 0) -> float:
    """Share of a random product that NF4 keeps, `size` times as large as weights drawn from a normal distribution.

    on_levels: the weights stood on NF4's levels already before the product came.
    """
    g = torch.Generator().manual_seed(seed)
    weight, product = torch.randn(256, 512, generator=g), size * torch.randn(256, 512, generator=g)

    def through(x: torch.Tensor) -> torch.Tensor:
        return dequantize_4bit(quantize_4bit(x, "nf4", double_quant=False))

    stood = through(weight)
    new = through((stood if on_levels else weight) + product)
    return float(((new - stood) * product).sum() / product.square().sum())


def draw_kept(measured: dict[str, Sequence[tuple[float, float]]]) -> tuple[style.Figure, str]:
    """What quantizing again keeps of a product, against its size: random weights as lines, a model's layers as marks."""
    top = max([0.5, *(size for points in measured.values() for size, _ in points)])
    low = min([0.005, *(size for points in measured.values() for size, _ in points if size > 0)])
    sizes = np.geomspace(low, top, 21).tolist()
    lines = {onto: [kept_share(s, onto == "onto the dequantized") for s in sizes] for onto in LOOKS}
    words = []
    with style.page_style():
        figure = style.new_figure(5.6)
        axes = figure.subplots()
        for onto, (color, marker) in LOOKS.items():
            points = [(size, share) for size, share in measured.get(onto, ()) if size > 0]
            axes.plot(sizes, lines[onto], color=color, linestyle="--" if marker == "s" else "-", label=f"{onto}, random weights")
            if points:
                look = {"marker": marker, "markeredgecolor": color, "markerfacecolor": "white", "markersize": 3.2, "linestyle": "none"}
                axes.plot(*zip(*points), label=f"{onto}, this model’s layers", zorder=3, **look)
                shares = sorted(share for _, share in points)
                words.append(f"{onto} the layers of this model keep {shares[0]:.0%} to {shares[-1]:.0%}")
        axes.axhline(1, color=style.SOFT, linewidth=0.7)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda x, _: f"{100 * x:g} %")
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_ylim(min(-0.1, axes.get_ylim()[0]), None)
        axes.set_xlabel("size of the product, % of that of the weights (root mean square)")
        axes.set_ylabel("share that is kept")
        figure.legend(loc="outside upper right", ncols=2)
    ends = "; ".join(f"{onto} from {line[0]:.0%} to {line[-1]:.0%}" for onto, line in lines.items())
    alt = f"Share of the product that is there after quantizing again, against its size from {low:.2g} to {top:.2g} of the weights: {ends}."
    return figure, " ".join([alt, *([". ".join(w[:1].upper() + w[1:] for w in words) + "."] if words else [])])
