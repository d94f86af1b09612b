"""A model folder as one GGUF file that llama.cpp, Ollama and LM Studio read.

How it works: the names of tensors and keys, the layout of the file and the 8-bit format are those of the `gguf` package,
llama.cpp's own. Three things are left to us:

  * The order of q's and k's rows. llama.cpp turns neighbouring pairs of a head's dimensions, transformers pairs that are
    half a head apart, so for its `llama` architecture (LLaMA, Mistral) rows 0, d/2, 1, d/2 + 1, ... of each head follow
    one another. Its `qwen2` and `qwen3` architectures turn as transformers does.
  * Types. Matrices are stored as asked; vectors (norms, biases) stay fp32, since they weigh nothing. A Q8_0 block is
    32 weights of a row, so a row that is not a multiple of 32 long is stored in fp16.
  * The vocabulary (vocabulary.py).

A tied output head is not stored twice: llama.cpp uses the embedding where there is no `output.weight`. The file is written
tensor by tensor, beside its place and then renamed.

Sources: GGUF specification (ggml-org/ggml, docs/gguf.md); llama.cpp's converter, for what its loader expects.
"""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Literal

import numpy as np

from qlora_lib.errors import QloraError, UsageError, nearest
from qlora_lib.export.vocabulary import Vocabulary, read_vocabulary
from qlora_lib.paths import part_of

Type = Literal["f32", "f16", "q8_0"]
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}  # model_type -> llama.cpp's
ROPE_KEYS = {"rope_theta", "rope_type", "type", "factor", "original_max_position_embeddings"}
ROPES = {  # rope_type -> keys that have a place in the file
    "default": {"rope_theta", "rope_type", "type"},
    "linear": ROPE_KEYS,
    "yarn": ROPE_KEYS | {"beta_fast", "beta_slow"},
    "llama3": ROPE_KEYS | {"low_freq_factor", "high_freq_factor"},
}
LARGEST_FP16 = 65504.0


@dataclass(frozen=True)
class Exported:
    path: Path
    bytes: int
    tensors: int
    type: str
    architecture: str
    pre_tokenizer: str


def export_gguf(folder: Path, out: Path, type: Type = "f16", name: str | None = None, force: bool = False) -> Exported:
    """Write the model of a transformers folder (config.json, safetensors, tokenizer.json) to the file `out`.

    Raises: UsageError for an architecture, a rotation, a vocabulary or a name that this does not know; QloraError for a
    folder that cannot be read and for weights that fp16 cannot hold.
    """
    out = Path(out)
    if out.suffix != ".gguf":
        raise UsageError(f"the file {out} does not end in .gguf", f"Give --out {out.with_suffix('.gguf')}")
    if out.exists() and not force:
        raise UsageError(f"{out} exists", "Give another --out, or --force to replace it")
    config = _read_config(folder)
    tensors = _Tensors(folder, config, type)
    vocabulary = read_vocabulary(folder, tensors.rows_of_embedding)
    need = sum(t.bytes for t in tensors.planned)
    out.parent.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(out.parent).free < need:
        raise QloraError(f"{out} takes {need / 1e6:.0f} MB, and its disk has less free", "Free some space, or use --type q8_0")
    part = part_of(out)
    try:
        _write(part, config, tensors, vocabulary, type, name or folder.name)
        os.replace(part, out)
    finally:
        part.unlink(missing_ok=True)
    return Exported(out, out.stat().st_size, len(tensors.planned), type, ARCHITECTURES[config.model_type], vocabulary.pre)


def _read_config(folder: Path):
    from transformers import AutoConfig

    try:
        raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as e:
        raise QloraError(f"the model in {folder} has no readable config.json: {e!s:.200}") from None
    if raw.get("quantization_config"):
        raise UsageError(f"the weights in {folder} are quantized", "Export the 16/32-bit model, or: qlora merge --onto dequantized")
    if config.model_type not in ARCHITECTURES:
        raise UsageError(f"cannot write a {config.model_type} model as GGUF", nearest(config.model_type, ARCHITECTURES))
    if config.hidden_act != "silu":
        raise UsageError(f"cannot write a model with the activation {config.hidden_act} as GGUF; silu was expected")
    rope = config.rope_parameters
    kind = rope.get("rope_type", "default")
    unknown = sorted(k for k, v in rope.items() if k not in ROPES.get(kind, ()) and v is not None)
    if unknown and not (unknown == ["partial_rotary_factor"] and rope["partial_rotary_factor"] == 1.0):
        raise UsageError(f"cannot write the rotation '{kind}' with {', '.join(unknown)} as GGUF", f"Known: {', '.join(ROPES)}")
    return config


def _head_dim(config) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


# --- tensors ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Planned:
    source: str  # name in the safetensors
    name: str  # name in the GGUF
    shape: tuple[int, ...]
    type: Type

    @property
    def bytes(self) -> int:
        n = int(np.prod(self.shape))
        return {"f32": 4 * n, "f16": 2 * n, "q8_0": n // 32 * 34}[self.type]


class _Tensors:
    """The tensors of a folder, planned from the files' headers and then read one by one."""

    def __init__(self, folder: Path, config, type: Type):
        import gguf

        self.folder, self.config, self.heads = folder, config, {}
        architecture = ARCHITECTURES[config.model_type]
        if architecture == "llama":
            self.heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        kind = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == architecture)
        names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
        self.files, self.planned, self.rows_of_embedding = {}, [], 0
        for file, source, shape in self._headers():
            if source.endswith("rotary_emb.inv_freq") or (source == "lm_head.weight" and config.tie_word_embeddings):
                continue
            name = names.get_name(source, try_suffixes=(".weight", ".bias"))
            if name is None:
                raise UsageError(f"cannot write the tensor {source} of {folder} as GGUF", f"{architecture} has no place for it")
            self.files[source] = file
            self.planned.append(_Planned(source, name, shape, _stored(shape, type)))
            if name == "token_embd.weight":
                self.rows_of_embedding = shape[0]
        present = {t.name for t in self.planned}
        for needed in ("token_embd.weight", "output_norm.weight", f"blk.{config.num_hidden_layers - 1}.ffn_down.weight"):
            if needed not in present:
                raise QloraError(f"the weights in {folder} are not whole: nothing becomes {needed}")

    def _headers(self) -> Iterator[tuple[Path, str, tuple[int, ...]]]:
        from safetensors import SafetensorError, safe_open

        files = sorted(self.folder.glob("*.safetensors"))
        if not files:
            raise QloraError(f"no safetensors in {self.folder}", "Give a folder that qlora merge or save_pretrained wrote")
        for file in files:
            try:
                with safe_open(file, "pt") as weights:
                    yield from ((file, name, tuple(weights.get_slice(name).get_shape())) for name in weights.keys())
            except (SafetensorError, OSError) as e:
                raise QloraError(f"{file} cannot be read: {e!s:.200}") from None

    def read(self, planned: _Planned) -> np.ndarray:
        """The values of one tensor as they are stored."""
        import gguf
        from safetensors import safe_open

        with safe_open(self.files[planned.source], "pt") as weights:
            values = weights.get_tensor(planned.source).float().numpy()
        heads = self.heads.get(planned.source.split(".")[-2])
        if heads:
            values = to_neighbours(values, heads)
        if planned.type == "f32":
            return values
        if not np.abs(values).max(initial=0) <= LARGEST_FP16:  # also catches NaN
            raise QloraError(f"{planned.source} holds values that 16 bits cannot", "Use --type f32")
        if planned.type == "f16":
            return values.astype(np.float16)
        return gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)


def to_neighbours(rows: np.ndarray, heads: int) -> np.ndarray:
    """[heads * d, ...]: pairs that are half a head apart become neighbours: 0, d/2, 1, d/2 + 1, ..."""
    halves = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _stored(shape: tuple[int, ...], wanted: Type) -> Type:
    if len(shape) < 2:
        return "f32"
    return "f16" if wanted == "q8_0" and shape[-1] % 32 else wanted


def _long_context_factors(config) -> np.ndarray | None:
    """fp32 [d / 2] of Llama 3.1: what each frequency is divided by, which the file stores as a tensor."""
    if config.rope_parameters.get("rope_type") != "llama3":
        return None
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    d = _head_dim(config)
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, d, 2, dtype=np.float64) / d)
    return (plain / scaled.double().numpy()).astype(np.float32)


# --- the file --------------------------------------------------------------------------------------


def _write(path: Path, config, tensors: _Tensors, vocabulary: Vocabulary, type: Type, name: str) -> None:
    import gguf

    types = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    file_types = {"f32": gguf.LlamaFileType.ALL_F32, "f16": gguf.LlamaFileType.MOSTLY_F16, "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0}
    writer = _writer()(path, ARCHITECTURES[config.model_type])
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(name)
    writer.add_file_type(file_types[type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config, tensors.rows_of_embedding)
    vocabulary.add_to(writer)
    factors = _long_context_factors(config)
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    for t in tensors.planned:
        shape, dtype = t.shape, {"f32": np.float32, "f16": np.float16, "q8_0": np.uint8}[t.type]
        if t.type == "q8_0":  # the writer wants the shape in bytes
            shape = gguf.quant_shape_to_byte_shape(shape, types["q8_0"])
        writer.add_tensor_info(t.name, shape, np.dtype(dtype), t.bytes, types[t.type])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        if factors is not None:
            writer.write_tensor_data(factors)
        for t in tensors.planned:
            writer.write_tensor_data(tensors.read(t))
        for file in writer.fout or []:
            file.flush()
            os.fsync(file.fileno())
    finally:
        writer.close()


def _writer():
    """gguf's writer, which can also write the empty list of merges that a vocabulary of single bytes has."""
    import gguf

    class Writer(gguf.GGUFWriter):
        def _pack_val(self, val, vtype, add_vtype, sub_type=None):
            if vtype == gguf.GGUFValueType.ARRAY and not len(val):
                return self._pack("I", vtype) + self._pack("I", sub_type) + self._pack("Q", 0)
            return super()._pack_val(val, vtype, add_vtype, sub_type)

    return Writer


def _add_shape(writer, config, rows: int) -> None:
    import gguf

    d, rope = _head_dim(config), config.rope_parameters
    writer.add_vocab_size(rows)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(d)
    writer.add_value_length(d)
    writer.add_rope_dimension_count(d)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if rope.get("rope_type") in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(float(rope["factor"]))
        if original := rope.get("original_max_position_embeddings"):
            writer.add_rope_scaling_orig_ctx_len(int(original))
