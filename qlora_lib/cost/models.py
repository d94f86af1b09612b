"""Widths of the models that are known by name, and the ways to find another's: no network, no weights, no torch.

How it works: `MODELS` holds one row a model, by the published `config.json`; variants that share its widths (base and
instruct, first and third release) stand beside it as further hub ids. `shape_of` looks a name up there, then on this
disk: a folder or a `config.json`, the header of a `.gguf` file, and the hub's cache, where transformers or this library
left a `config.json`. What is not on the disk is not fetched: the message says what to give instead.

Sources: the `config.json` of each repository named here; Touvron et al. 2023a, table 2, for the first LLaMA, whose weights
were given out on request. Parameter totals of all but the first LLaMA's are printed on the repositories' pages.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.cost.shapes import LLAMA_8B, SMOLLM2, TINYLLAMA, ModelShape
from qlora_lib.errors import UsageError, nearest
from qlora_lib.paths import users_path

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w./-]+))?")
QWEN2, QWEN3 = dict(attention_bias=True), dict(qk_norm=True)  # biases on queries, keys and values; norms of queries and keys
TIED = dict(tied_embeddings=True)


@dataclass(frozen=True)
class KnownModel:
    """A model's widths under its short name, and the hub repositories that have them; the first is the source."""

    name: str
    shape: ModelShape
    hub_ids: tuple[str, ...] = ()


def _model(name: str, shape: ModelShape, *hub_ids: str) -> KnownModel:
    return KnownModel(name, shape, hub_ids)


# hidden, layers, heads, key-value heads, head width, MLP width, vocabulary
MODELS = {
    model.name: model
    for model in (
        _model("smollm2-135m", SMOLLM2, "HuggingFaceTB/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M"),
        _model("smollm2-360m", ModelShape(960, 32, 15, 5, 64, 2560, 49_152, **TIED), "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-360M-Instruct"),
        _model("smollm2-1.7b", ModelShape(2048, 24, 32, 32, 64, 8192, 49_152, **TIED), "HuggingFaceTB/SmolLM2-1.7B", "HuggingFaceTB/SmolLM2-1.7B-Instruct"),
        _model(
            "tinyllama-1.1b", TINYLLAMA, "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
        ),
        _model("llama-7b", ModelShape(4096, 32, 32, 32, 128, 11_008, 32_000)),
        _model("llama-13b", ModelShape(5120, 40, 40, 40, 128, 13_824, 32_000)),
        _model("llama-33b", ModelShape(6656, 60, 52, 52, 128, 17_920, 32_000)),
        _model("llama-65b", ModelShape(8192, 80, 64, 64, 128, 22_016, 32_000)),
        _model("llama2-7b", ModelShape(4096, 32, 32, 32, 128, 11_008, 32_000), "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"),
        _model("llama2-13b", ModelShape(5120, 40, 40, 40, 128, 13_824, 32_000), "meta-llama/Llama-2-13b-hf", "meta-llama/Llama-2-13b-chat-hf"),
        _model("llama2-70b", ModelShape(8192, 80, 64, 8, 128, 28_672, 32_000), "meta-llama/Llama-2-70b-hf", "meta-llama/Llama-2-70b-chat-hf"),
        _model("llama3-8b", LLAMA_8B, "meta-llama/Meta-Llama-3-8B", "meta-llama/Meta-Llama-3-8B-Instruct"),
        _model(
            "llama3.1-8b", LLAMA_8B, "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct",
            "meta-llama/Meta-Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B-Instruct",
        ),
        _model(
            "llama3.1-70b", ModelShape(8192, 80, 64, 8, 128, 28_672, 128_256), "meta-llama/Llama-3.1-70B",
            "meta-llama/Llama-3.1-70B-Instruct", "meta-llama/Meta-Llama-3.1-70B", "meta-llama/Meta-Llama-3.1-70B-Instruct",
            "meta-llama/Llama-3.3-70B-Instruct",
        ),
        _model("llama3.2-1b", ModelShape(2048, 16, 32, 8, 64, 8192, 128_256, **TIED), "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B-Instruct"),
        _model("llama3.2-3b", ModelShape(3072, 28, 24, 8, 128, 8192, 128_256, **TIED), "meta-llama/Llama-3.2-3B", "meta-llama/Llama-3.2-3B-Instruct"),
        _model("mistral-7b-v0.1", ModelShape(4096, 32, 32, 8, 128, 14_336, 32_000), "mistralai/Mistral-7B-v0.1", "mistralai/Mistral-7B-Instruct-v0.1", "mistralai/Mistral-7B-Instruct-v0.2"),
        _model("mistral-7b-v0.3", ModelShape(4096, 32, 32, 8, 128, 14_336, 32_768), "mistralai/Mistral-7B-v0.3", "mistralai/Mistral-7B-Instruct-v0.3"),
        _model("qwen2.5-0.5b", ModelShape(896, 24, 14, 2, 64, 4864, 151_936, **TIED, **QWEN2), "Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
        _model("qwen2.5-1.5b", ModelShape(1536, 28, 12, 2, 128, 8960, 151_936, **TIED, **QWEN2), "Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"),
        _model("qwen2.5-3b", ModelShape(2048, 36, 16, 2, 128, 11_008, 151_936, **TIED, **QWEN2), "Qwen/Qwen2.5-3B-Instruct", "Qwen/Qwen2.5-3B"),
        _model("qwen2.5-7b", ModelShape(3584, 28, 28, 4, 128, 18_944, 152_064, **QWEN2), "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-7B"),
        _model("qwen2.5-14b", ModelShape(5120, 48, 40, 8, 128, 13_824, 152_064, **QWEN2), "Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"),
        _model("qwen2.5-32b", ModelShape(5120, 64, 40, 8, 128, 27_648, 152_064, **QWEN2), "Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"),
        _model("qwen2.5-72b", ModelShape(8192, 80, 64, 8, 128, 29_568, 152_064, **QWEN2), "Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct"),
        _model("qwen3-0.6b", ModelShape(1024, 28, 16, 8, 128, 3072, 151_936, **TIED, **QWEN3), "Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B-Base"),
        _model("qwen3-1.7b", ModelShape(2048, 28, 16, 8, 128, 6144, 151_936, **TIED, **QWEN3), "Qwen/Qwen3-1.7B", "Qwen/Qwen3-1.7B-Base"),
        _model("qwen3-4b", ModelShape(2560, 36, 32, 8, 128, 9728, 151_936, **TIED, **QWEN3), "Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Base"),
        _model("qwen3-8b", ModelShape(4096, 36, 32, 8, 128, 12_288, 151_936, **QWEN3), "Qwen/Qwen3-8B", "Qwen/Qwen3-8B-Base"),
        _model("tiny-random", ModelShape(64, 2, 4, 2, 16, 128, 259, **TIED)),  # as assets.make writes it
        _model("tiny-2-layers", ModelShape(64, 2, 4, 2, 16, 192, 320)),  # as bench.gpu_models draws them
        _model("tiny-3-layers", ModelShape(128, 3, 4, 2, 32, 256, 512)),
    )
}  # fmt: skip


def shape_of(name: str) -> tuple[ModelShape, str]:
    """(widths, where they come from) of a name of `MODELS`, a hub id, a folder, a `config.json` or a `.gguf` file.

    Upper and lower case are one in the names, and a hyphen between family and version may stand or not
    ("Llama-2-7B", "llama2-7b"). Raises UsageError for what is neither known nor on this disk, and for a model whose
    layers are not counted here.
    """
    name = str(name).strip()
    match = HUB_ID.fullmatch(name)
    if known := _BY_NAME.get(_plain(match[1] if match else name)):
        return known.shape, f"{known.hub_ids[0]}, config.json" if known.hub_ids else "this library's table of widths"
    path = users_path(name)
    if name and path.is_dir():
        return ModelShape.read(path), f"{path / 'config.json'}"
    if name and path.is_file():
        return (_from_gguf(path) if path.suffix.lower() == ".gguf" else ModelShape.read(path)), str(path)
    if name.startswith((".", "~", "/", "\\")) or name.endswith((".gguf", ".json")) or name.count("/") > 1:
        raise UsageError(f"there is no file or folder {name}", "Check the path")
    if match:
        if config := cached_config(match[1], match[2]):
            return ModelShape.read(config), f"{match[1]}, config.json in the hub's cache"
        close = nearest(name, _hub_ids())
        raise UsageError(
            f"the widths of '{name}' are not known here, and the hub's cache has no config.json of it",
            close if close.startswith("Did") else "Give a folder, a config.json or a .gguf file in its place",
        )
    raise UsageError(
        f"unknown model '{name}'; expected a known name, a hub id org/name, a folder, a config.json or a .gguf file",
        nearest(name.lower(), MODELS),
    )


def cached_config(repo_id: str, revision: str | None = None) -> Path | None:
    """`config.json` of a hub repository in the hub's own cache: of a branch, tag or commit, else of `main`, else of the
    newest commit there. Nothing is asked of the network."""
    folder = hub_cache() / f"models--{repo_id.replace('/', '--')}"
    snapshots = folder / "snapshots"
    ref = folder / "refs" / (revision or "main")
    try:
        commits = [ref.read_text().strip()] if ref.is_file() else [revision] if revision else []
        if not commits and not revision:
            commits = [p.name for p in sorted(snapshots.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)]
    except (OSError, ValueError):  # of a revision that leads elsewhere, to what is no text
        return None
    return next((file for commit in commits if (file := snapshots / commit / "config.json").is_file()), None)


def hub_cache() -> Path:
    """Where huggingface_hub keeps repositories: its variables, in its order."""
    if direct := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(direct).expanduser()
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(home).expanduser() / "hub"


def _from_gguf(path: Path) -> ModelShape:
    from qlora_lib.cost.gguf_header import gguf_shape

    return gguf_shape(path)


def _plain(name: str) -> str:
    """A name without case, and without the hyphen in "llama-2": "meta-llama/..." stays apart from "llama"."""
    return re.sub(r"\b(llama|qwen|smollm)-(?=[123])", r"\1", name.lower())


def _hub_ids() -> list[str]:
    return [hub_id for model in MODELS.values() for hub_id in model.hub_ids]


_BY_NAME = {_plain(model.name): model for model in MODELS.values()}
for _known in MODELS.values():
    _BY_NAME |= {_plain(hub_id): _known for hub_id in _known.hub_ids}
