"""Where models and texts come from: hub, local path, `.gguf`, or an artefact of the package index.

How it works: `registry` says what is known by name, `resolve` turns a name or path into verified
files, `package_index` and `hub` bring them, `make` converts or makes them, `checks` refuses what is
not safe to load, and `store` keeps the cache so that an entry is whole or absent.

Importing this loads nothing heavy; transformers and huggingface_hub are imported when needed.
"""

from qlora_lib.assets.checks import count_parameters
from qlora_lib.assets.registry import (
    DataAsset, DataSpec, ModelAsset, ModelSpec, registered_data, registered_models,
)  # fmt: skip
from qlora_lib.assets.resolve import fetch, is_cached, resolve_data_files, resolve_model

__all__ = [
    "DataAsset", "DataSpec", "ModelAsset", "ModelSpec", "count_parameters", "fetch", "is_cached",
    "registered_data", "registered_models", "resolve_data_files", "resolve_model",
]  # fmt: skip
