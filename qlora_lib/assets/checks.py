"""Is this folder a model that can be loaded safely? Looks at names and headers, loads nothing.

Weights are read from safetensors only: a pickle can run code. For the same reason a configuration
that names code of its own (`auto_map`) is refused.
"""

import json
import struct
from pathlib import Path

from qlora_lib.assets.store import MANIFEST
from qlora_lib.errors import QloraError

# What a model needs, and all that is taken from the hub: no pickles, no Python files.
MODEL_FILES = ("*.safetensors", "*.json", "*.model", "*.txt", "*.jinja")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "*.model")


def check_model_dir(folder: Path, what: str) -> list[str]:
    """Names of the model's files in `folder`; raises a QloraError that says what it lacks."""

    def bad(why: str, hint: str) -> QloraError:
        return QloraError(f"{what} {why}", hint)

    config = _json(folder / "config.json", what)
    if config is None:
        if (folder / "adapter_config.json").is_file():
            hint = "Pass its base as the model, and it as --adapter"
            raise bad("is an adapter, not a model", hint)
        raise bad("has no config.json", "Pass a folder that save_pretrained wrote, or a .gguf file")
    if (folder / "adapter_config.json").is_file():  # transformers would follow it to another base
        raise bad("holds an adapter beside the model", "Copy one of them into a folder of its own")
    for name in ("config.json", "tokenizer_config.json"):
        if "auto_map" in (_json(folder / name, what) or {}):
            raise bad(
                f"asks for code of its own ('auto_map' in {name}), which is never run here",
                "If transformers knows the architecture, copy the folder and remove that key",
            )
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = any(p for pattern in PICKLES for p in folder.glob(pattern))
        why = "has its weights only as pickles, which can run code" if pickles else "has no weights"
        hint = "Save it with save_pretrained (safetensors), or choose another model"
        raise bad(f"{why}; expected safetensors", hint)
    index = _json(folder / "model.safetensors.index.json", what)
    placed = index.get("weight_map", {}) if index else {}
    if not isinstance(placed, dict) or not all(isinstance(n, str) and Path(n).name == n for n in placed.values()):
        raise bad("is damaged: model.safetensors.index.json names no files of this folder", "Fetch or copy it again")
    shards = {folder / name for name in placed.values()}
    if lacking := sorted(p.name for p in shards if not p.is_file()):
        raise bad(f"lacks {len(lacking)} of its files ({lacking[0]})", "Fetch or copy it again")
    for path in weights:
        if why := safetensors_damage(path):
            raise bad(f"is damaged: {path.name} {why}", "Fetch or copy it again")
    if not any(p for pattern in TOKENIZERS for p in folder.glob(pattern)):
        raise bad("has no tokenizer", "Copy tokenizer.json beside the weights")
    names = {p.name for pattern in MODEL_FILES for p in folder.glob(pattern) if p.is_file()}
    return sorted(names - {MANIFEST})  # ours, where the folder is an entry of the cache


def safetensors_header(path: Path) -> tuple[dict, int]:
    """(header, offset of the data in bytes) of a safetensors file; ValueError if there is none."""
    with open(path, "rb") as f:
        length = struct.unpack("<Q", f.read(8).ljust(8, b"\0"))[0]
        if not 0 < length <= 100_000_000:
            raise ValueError("has no safetensors header")
        return json.loads(f.read(length)), 8 + length


def safetensors_damage(path: Path) -> str | None:
    """What is wrong with the file's length or header; None when they agree."""
    with open(path, "rb") as f:
        if f.read(20).startswith(b"version https://git"):
            return "is a git-lfs pointer, not the file (run: git lfs pull)"
    try:
        header, start = safetensors_header(path)
        expected = start + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "has no safetensors header"
    size = path.stat().st_size
    return None if size == expected else f"has {size} bytes, expected {expected}"


def count_parameters(folder: Path) -> int:
    """Values stored in a folder's safetensors, from the headers; a tied tensor counts once."""
    total = 0
    for path in folder.glob("*.safetensors"):
        for name, tensor in safetensors_header(path)[0].items():
            if name != "__metadata__":
                count = 1
                for n in tensor["shape"]:
                    count *= n
                total += count
    return total


def _json(path: Path, what: str) -> dict | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise QloraError(f"{what} is damaged: {path.name} is not JSON", "Fetch or copy it again")
    return value
