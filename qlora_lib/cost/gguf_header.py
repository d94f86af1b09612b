"""The widths of a model in a `.gguf` file, from its header alone: no weight is read, and nothing is imported for it.

How it works: a GGUF file begins with its version, a list of keys with values, and a list of tensors with their
dimensions (innermost first). Counts of heads and layers stand in the keys, all widths in the dimensions; whether there
are biases, norms of queries, or an output head of its own, in the tensors' names. Lists among the keys, such as the
vocabulary, are passed over.

Source: the GGUF specification, version 3 (ggml, docs/gguf.md), little-endian; versions 2 and 3 differ in nothing that is
read here.
"""

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

from qlora_lib.cost.shapes import WIDEST, ModelShape
from qlora_lib.errors import UsageError

MAGIC = b"GGUF"
VERSIONS = (2, 3)
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # by type number
STRING, LIST = 8, 9
ARCHITECTURES = ("llama", "qwen2", "qwen3")  # Mistral's files say llama
LONGEST_TEXT, MOST_DIMENSIONS = 2**26, 8  # bytes, and of a tensor; what claims to have more is a damaged file


@dataclass(frozen=True)
class Header:
    keys: Mapping[str, object]  # lists are left out
    tensors: Mapping[str, tuple[int, ...]]  # name -> dimensions, innermost first: (in, out) of a matrix


def gguf_shape(path: Path) -> ModelShape:
    """The widths. Raises UsageError for what is no GGUF file, is damaged, or holds another kind of model."""
    header = read_header(path)
    keys, tensors = header.keys, header.tensors
    architecture = keys.get("general.architecture")
    if architecture not in ARCHITECTURES or keys.get(f"{architecture}.expert_count"):
        experts = " with experts" if architecture in ARCHITECTURES else ""
        raise UsageError(
            f"{path.name} holds a model of type '{architecture}'{experts}, whose layers are not counted here",
            f"Choose from: {', '.join(ARCHITECTURES)}, without experts",
        )
    try:
        heads, layers = (int(keys[f"{architecture}.{key}"]) for key in ("attention.head_count", "block_count"))
        hidden, vocabulary = tensors["token_embd.weight"]
        query, key = tensors["blk.0.attn_q.weight"][1], tensors["blk.0.attn_k.weight"][1]
        head_dim = query // heads
        shape = ModelShape(
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=key // head_dim,
            head_dim=head_dim,
            intermediate_size=tensors["blk.0.ffn_up.weight"][1],
            vocab_size=vocabulary,
            tied_embeddings="output.weight" not in tensors,
            attention_bias="blk.0.attn_q.bias" in tensors,
            output_bias="blk.0.attn_output.bias" in tensors,
            mlp_bias="blk.0.ffn_up.bias" in tensors,
            qk_norm="blk.0.attn_q_norm.weight" in tensors,
        )
        for name, width in asdict(shape).items():
            if not isinstance(width, bool) and not 0 < width < WIDEST:
                raise ValueError(f"{name} is {width}")
        return shape
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError, OverflowError) as e:
        raise UsageError(f"{path.name} lacks what a {architecture} model's header says ({e!s:.60})", "Is it the whole model?") from None


def read_header(path: Path) -> Header:
    """Keys and tensors of a GGUF file, in the order of the file."""
    try:
        with open(path, "rb") as file:
            if file.read(4) != MAGIC:
                raise UsageError(f"{path} is not a GGUF file (it does not begin with 'GGUF')", "Pass a .gguf file, a folder or a config.json")
            version, tensors, keys = _unpack(file, "IQQ")
            if version not in VERSIONS:
                raise UsageError(f"{path.name} is GGUF version {version}; versions 2 and 3 are read here", "Convert it anew")
            values = {name: value for name, value in (_pair(file) for _ in range(keys)) if value is not None}
            return Header(values, dict(_tensor(file) for _ in range(tensors)))
    except (struct.error, EOFError, UnicodeDecodeError, RecursionError):
        raise UsageError(f"{path.name} ends or breaks off within its header", "Fetch it again") from None
    except OSError as e:
        raise UsageError(f"{path} cannot be read ({e.strerror})") from None


def _unpack(file: BinaryIO, form: str) -> tuple:
    layout = struct.Struct(f"<{form}")
    return layout.unpack(file.read(layout.size))


def _text(file: BinaryIO) -> str:
    (length,) = _unpack(file, "Q")
    if length > LONGEST_TEXT:
        raise EOFError
    data = file.read(length)
    if len(data) < length:
        raise EOFError
    return data.decode("utf-8")


def _pair(file: BinaryIO) -> tuple[str, object]:
    name = _text(file)
    (kind,) = _unpack(file, "I")
    return name, _value(file, kind)


def _value(file: BinaryIO, kind: int):
    """The value of a key; None for a list, which is passed over."""
    if kind in SCALARS:
        return _unpack(file, SCALARS[kind])[0]
    if kind == STRING:
        return _text(file)
    if kind != LIST:
        raise EOFError
    inner, length = _unpack(file, "IQ")
    if inner in SCALARS:
        _skip(file, length * struct.calcsize(f"<{SCALARS[inner]}"))
        return None
    for _ in range(length):
        if inner == STRING:
            (size,) = _unpack(file, "Q")
            _skip(file, size)
        else:
            _value(file, inner)
    return None


def _skip(file: BinaryIO, count: int) -> None:
    if count > LONGEST_TEXT:
        raise EOFError
    file.seek(count, 1)


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...]]:
    name = _text(file)
    (dimensions,) = _unpack(file, "I")
    if dimensions > MOST_DIMENSIONS:
        raise EOFError
    sizes = _unpack(file, f"{dimensions}Q")
    _unpack(file, "IQ")  # its type, and its place in the file
    return name, sizes
