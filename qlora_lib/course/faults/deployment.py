"""What becomes of a trained adapter: merged, rightly or wrongly, and compared with what was trained.

How it works: the right way adds B A alpha / r to the dequantized weights that the adapter was trained on,
and keeps the sum in 16 or 32 bits. The wrong ways here are what PEFT does when it is asked to merge
into a 4-bit model, and what any loader does with a configuration that names another alpha.
"""

import json
import shutil
import warnings
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load_file

from qlora_lib import models
from qlora_lib.course.faults.base import Base, dequantized
from qlora_lib.course.faults.settings import Recipe
from qlora_lib.course.faults.symptoms import Arrived

SAMPLE = 400  # weights of the middle layer that the picture shows
WEIGHTS = "adapter_model.safetensors"


@contextmanager
def deployed(base: Base, adapter: Path, recipe: Recipe, scratch: Path):
    """The plain model that is handed over, and how much of the training is in it."""
    trained = trained_update(adapter)
    original = {name: base.plain.get_submodule(name).weight.detach().clone() for name in trained}
    if recipe.deployed_alpha != 1:
        adapter = with_alpha(adapter, recipe.deployed_alpha, scratch)
    try:
        with models.quiet():
            warnings.filterwarnings("ignore", message="Merge lora module to 4-bit")  # what this is about
            if recipe.merge_into_4bit:
                model = dequantized(models.merge_adapter(models.load_adapter(base.in_4bit(), adapter)))
            else:
                model = models.merge_adapter(models.load_adapter(base.plain, adapter))
        yield model, arrived(model, original, trained)
    finally:
        for name, weight in original.items():  # subtracting again would not bring back what became NaN
            base.plain.get_submodule(name).weight.data.copy_(weight)


def with_alpha(adapter: Path, factor: float, scratch: Path) -> Path:
    """A copy of the adapter whose configuration names another alpha; its weights are the same."""
    copy = scratch / "other-alpha"
    shutil.copytree(adapter, copy, dirs_exist_ok=True)
    config = json.loads((copy / "adapter_config.json").read_text())
    config["lora_alpha"] *= factor
    (copy / "adapter_config.json").write_text(json.dumps(config))
    return copy


def trained_update(adapter: Path) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Layer -> (B alpha / r [out, r], A [r, in]), from the files of the adapter."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    scale, stored = config["lora_alpha"] / config["r"], load_file(adapter / WEIGHTS)
    update = {}
    for key, b in stored.items():
        if key.endswith(".lora_B.weight"):
            name = key.removeprefix("base_model.model.").removesuffix(".lora_B.weight")
            update[name] = scale * b.float(), stored[key.replace(".lora_B.", ".lora_A.")].float()
    return update


def arrived(model, original: dict[str, torch.Tensor], trained: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> Arrived:
    """Compare what the weights changed by with what was trained, all layers as one vector."""
    products = torch.zeros(3, dtype=torch.float64)  # of trained with itself, of both, of deployed with itself
    middle, sample = list(trained)[len(trained) // 2], None
    for name, (b, a) in trained.items():
        wanted = (b @ a).flatten()
        change = (model.get_submodule(name).weight.detach() - original[name]).cpu().flatten()
        products += torch.stack([wanted @ wanted, wanted @ change, change @ change]).double()
        if name == middle:
            some = torch.linspace(0, len(wanted) - 1, min(SAMPLE, len(wanted))).long()
            sample = torch.stack([wanted[some], change[some]]).numpy()
    norm, both, other = products[0].sqrt().item(), products[1].item(), products[2].sqrt().item()
    return Arrived(norm=norm, size=other / norm, cosine=both / max(norm * other, 1e-30), sample=sample)
