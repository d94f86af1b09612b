"""Text with holes: literals that hold no figure, and values, references, claims and emphasis between them.

How it works: `parse` cuts "QLoRA needs {qlora.train.seconds@seconds_unit}, see {@table-training}" into
pieces that Typst prints one by one. A value comes from the store, so an unknown name fails here; a
literal that holds a digit fails too, unless the digit belongs to a name such as NF4 or WikiText-2.
"""

import re

from qlora_lib.errors import QloraError
from qlora_lib.report.values import Store

# Names whose digits say no amount that anyone measured. Anything else with a digit is a value.
NAMES = re.compile(
    r"""\b(?:
      NF4 | FP4 | Int4 | NormalFloat4 | AdamW8bit
    | (?:4|8|16|32)-bit | 16/32-bit | fp16 | fp32 | fp64 | FP16 | FP32 | bf16 | int8
    | WikiText-2 | TinyLlama[-\ ]1\.1B(?:-Chat-v1\.0)? | Llama-3\.1-8B | Qwen2\.5 | Qwen3
    | Dolly-15K | SST-2 | SQuAD\ v1\.1 | F1 | RTX\ 3070 | RTX\ 3090
    | T4 | AVX2 | AVX512 | CC\ BY(?:-SA)?\ 4\.0 | Apache-2\.0
    )\b""",
    re.VERBOSE,
)


def check_no_figure(text: str) -> None:
    """Raise QloraError where `text` holds a digit outside a name."""
    rest = NAMES.sub("", text)
    if any(c.isdigit() for c in rest):
        raise QloraError(f"a figure typed by hand in the report's text: {text!r}", "Name a value")


def parse(template: str, store: Store) -> list[dict[str, str]]:
    """Pieces of a template: {"text"}, {"value": key}, {"ref": label}, {"claim": id} or {"emph"} each.

    A sixth piece, {"raw"}, is made elsewhere: a name that the records use, such as an arm's.
    """
    pieces = []
    for i, part in enumerate(re.split(r"\{([^{}]+)\}", template)):
        if i % 2 == 0:
            for j, plain in enumerate(part.split("_")):
                check_no_figure(plain)
                if plain:
                    pieces.append({"emph" if j % 2 else "text": plain})
        elif part.startswith("@"):
            pieces.append({"ref": part[1:]})
        elif part.startswith("#"):
            pieces.append({"claim": part[1:]})
        else:
            store.use(part)
            pieces.append({"value": part})
    return pieces


def plain(pieces: list[dict[str, str]], store: Store) -> str:
    """The pieces as they will read, for tests and logs."""
    return "".join(
        store.get(p["value"]).text if "value" in p else p.get("text") or p.get("emph") or p.get("claim") or "…"
        for p in pieces
    )
