"""The widths of a decoder-only model, and the parameters that they imply.

How it works: LLaMA, Mistral, Qwen2 (and 2.5) and Qwen3 share one layer; they differ in which
projections carry a bias, in whether queries and keys are normalized, and in the keys that their
`config.json` may leave out. `ModelShape.read` turns such a file, its dictionary or a loaded
`transformers` config into one frozen record; every count follows from that record exactly.

    hidden h ─ norm ─┬─ q_proj ─ scores ─ values ─ o_proj ─ + ─ norm ─┬─ gate_proj ─ * ─ down_proj ─ +
                     ├─ k_proj ────┘        │                         └─ up_proj ────┘
                     └─ v_proj ─────────────┘

Architecture and defaults: `transformers` 5.23, `models/{llama,mistral,qwen2,qwen3}`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

from qlora_lib.errors import UsageError, nearest

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")

WIDEST = 2**31  # what no width and no count of layers reaches

# Only these classes derive the value from others when the file leaves it out; the others would fall
# back on the width of one particular model, so there the key must be present.
_KV_HEADS_OPTIONAL = ("llama",)
_HEAD_DIM_OPTIONAL = ("llama", "mistral", "qwen2")


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters by component, each weight counted once (a tied head is part of the embedding)."""

    embedding: int
    attention: int  # q, k, v, o with their biases, all layers
    mlp: int  # gate, up, down with their biases, all layers
    norms: int
    head: int  # 0 when tied

    @property
    def total(self) -> int:
        return self.embedding + self.attention + self.mlp + self.norms + self.head


@dataclass(frozen=True)
class ModelShape:
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool = False
    attention_bias: bool = False  # on q_proj, k_proj, v_proj
    output_bias: bool = False  # on o_proj
    mlp_bias: bool = False  # on gate_proj, up_proj, down_proj
    qk_norm: bool = False  # one norm of head_dim each for queries and keys (Qwen3)

    @classmethod
    def read(cls, source: "ModelShape | Mapping | str | PathLike | object") -> "ModelShape":
        """The shape of a `config.json` (path, or the folder that holds it), its dictionary, or any
        object with the same attributes, such as a `transformers` config.

        Raises UsageError for an unreadable file, a missing key or an unknown `model_type`.
        """
        if isinstance(source, cls):
            return source
        if isinstance(source, str | PathLike):
            source = _load_json(source)
        return _from_config(_Config(source))

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.num_kv_heads * self.head_dim

    @property
    def linear_modules(self) -> dict[str, tuple[int, int]]:
        """Name -> (in features, out features) of one layer's seven linear modules, in the order run."""
        h, m = self.hidden_size, self.intermediate_size
        return {
            "q_proj": (h, self.query_width),
            "k_proj": (h, self.kv_width),
            "v_proj": (h, self.kv_width),
            "o_proj": (self.query_width, h),
            "gate_proj": (h, m),
            "up_proj": (h, m),
            "down_proj": (m, h),
        }

    @property
    def linear_weights(self) -> int:
        """Weights of the seven linear modules of all layers, biases left out: what 4-bit quantizes."""
        return self.num_layers * sum(i * o for i, o in self.linear_modules.values())

    @property
    def parameters(self) -> ParameterCounts:
        h, m = self.hidden_size, self.intermediate_size
        linear = self.linear_modules
        weights = {name: i * o for name, (i, o) in linear.items()}
        attention = sum(weights[name] for name in ALL_LINEAR[:4])
        attention += self.attention_bias * (self.query_width + 2 * self.kv_width)
        attention += self.output_bias * h
        mlp = sum(weights[name] for name in ALL_LINEAR[4:]) + self.mlp_bias * (2 * m + h)
        norms = 2 * h + self.qk_norm * 2 * self.head_dim
        return ParameterCounts(
            embedding=self.vocab_size * h,
            attention=self.num_layers * attention,
            mlp=self.num_layers * mlp,
            norms=self.num_layers * norms + h,  # and the last norm, before the head
            head=0 if self.tied_embeddings else self.vocab_size * h,
        )

    def lora_parameters(self, rank: int, target_modules: str | Iterable[str] = "all-linear") -> int:
        """Adapter parameters: A is (rank, in) and B is (out, rank) for each target of each layer."""
        if rank < 1:
            raise UsageError(f"rank is {rank}; a whole number of at least 1 was expected")
        linear = self.linear_modules
        width = sum(sum(linear[name]) for name in resolve_targets(target_modules))
        return self.num_layers * rank * width


def resolve_targets(target_modules: str | Iterable[str]) -> tuple[str, ...]:
    """Names of the adapted modules in the order run; "all-linear" stands for the seven.

    Raises UsageError for an unknown name and for none at all.
    """
    if target_modules == "all-linear":
        return ALL_LINEAR
    names = {target_modules} if isinstance(target_modules, str) else set(target_modules)
    for name in sorted(names - set(ALL_LINEAR)):
        raise UsageError(f"unknown target module '{name}'", nearest(name, (*ALL_LINEAR, "all-linear")))
    if not names:
        raise UsageError(
            "no target modules; LoRA needs at least one", f"Choose from: {', '.join(ALL_LINEAR)}"
        )
    return tuple(name for name in ALL_LINEAR if name in names)


class _Config:
    """One way to ask a dictionary or an object for a key; null counts as left out."""

    def __init__(self, source: object):
        self.source = source

    def get(self, key: str, default=None):
        source = self.source
        value = source.get(key) if isinstance(source, Mapping) else getattr(source, key, None)
        return default if value is None else value

    def has(self, key: str) -> bool:
        source = self.source
        return key in source if isinstance(source, Mapping) else hasattr(source, key)

    def width(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if value is None:
            raise UsageError(
                f"the model config has no '{key}'", "Give the config.json that lies beside the weights."
            )
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < WIDEST:
            raise UsageError(f"the model config has {key} = {value!r:.30}; a whole number above 0 and below {WIDEST} was expected")
        return value


def _from_config(config: _Config) -> ModelShape:
    model_type = config.get("model_type")
    if model_type is None:
        raise UsageError(
            "the model config has no 'model_type'", "Give the config.json that lies beside the weights."
        )
    if model_type not in MODEL_TYPES:
        raise UsageError(
            f"model type '{model_type}' is not one whose layers are counted here",
            f"Choose from: {', '.join(MODEL_TYPES)}.",
        )
    hidden, heads = config.width("hidden_size"), config.width("num_attention_heads")
    # A null means "as many as heads" (or hidden / heads) in every class; a missing key only in some.
    kv_default = heads if model_type in _KV_HEADS_OPTIONAL or config.has("num_key_value_heads") else None
    dim_default = hidden // heads if model_type in _HEAD_DIM_OPTIONAL else None
    bias = bool(config.get("attention_bias", False)) and model_type in ("llama", "qwen3")
    shape = ModelShape(
        hidden_size=hidden,
        num_layers=config.width("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=config.width("num_key_value_heads", kv_default),
        head_dim=config.width("head_dim", dim_default),
        intermediate_size=config.width("intermediate_size"),
        vocab_size=config.width("vocab_size"),
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        attention_bias=bias or model_type == "qwen2",  # Qwen2 always has them, and none on o_proj
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)) and model_type == "llama",
        qk_norm=model_type == "qwen3",
    )
    if heads % shape.num_kv_heads:
        raise UsageError(
            f"the model config has {heads} heads on {shape.num_kv_heads} key-value heads; "
            "the first must be a multiple of the second"
        )
    return shape


def _load_json(path: str | PathLike) -> dict:
    # Here, and not above: most imports of this package read no file.
    import json
    from pathlib import Path

    path = Path(path)
    file = path / "config.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"no model config at {file}", "Give a config.json or the folder with it.") from None
    except (OSError, ValueError, RecursionError) as e:
        raise UsageError(f"{file} is not a readable JSON config ({e})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{file} holds no JSON object", "Give a model's config.json.")
    return content


# Widths by the published `config.json` of each.
SMOLLM2 = ModelShape(576, 30, 9, 3, 64, 1536, 49_152, tied_embeddings=True)
TINYLLAMA = ModelShape(2048, 22, 32, 4, 64, 5632, 32_000)
LLAMA_8B = ModelShape(4096, 32, 32, 8, 128, 14_336, 128_256)
