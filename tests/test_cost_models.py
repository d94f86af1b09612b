"""The table of widths against the published totals and transformers' own modules; names, folders, caches, GGUF headers."""

import functools
import json
import struct
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lib.assets.registry import MODELS as REGISTERED
from qlora_lib.assets.registry import HubRepo
from qlora_lib.cost.gguf_header import read_header
from qlora_lib.cost.models import MODELS, cached_config, hub_cache, shape_of
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.errors import UsageError

# Parameters as each repository's page prints them, from its safetensors index (tied heads counted once); of the first
# LLaMA the sizes of Touvron et al. 2023a, table 2, in billions.
PUBLISHED = {
    "smollm2-135m": 134_515_008, "smollm2-360m": 361_821_120, "smollm2-1.7b": 1_711_376_384,
    "tinyllama-1.1b": 1_100_048_384, "llama2-7b": 6_738_415_616, "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192, "llama3-8b": 8_030_261_248, "llama3.1-8b": 8_030_261_248,
    "llama3.1-70b": 70_553_706_496, "llama3.2-1b": 1_235_814_400, "llama3.2-3b": 3_212_749_824,
    "mistral-7b-v0.1": 7_241_732_096, "mistral-7b-v0.3": 7_248_023_552, "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304, "qwen2.5-3b": 3_085_938_688, "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664, "qwen2.5-32b": 32_763_876_352, "qwen2.5-72b": 72_706_203_648,
    "qwen3-4b": 4_022_468_096, "qwen3-8b": 8_190_735_360,
}  # fmt: skip
PAPER = {"llama-7b": 6.7, "llama-13b": 13.0, "llama-33b": 32.5, "llama-65b": 65.2}


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name):
    assert MODELS[name].shape.parameters.total == PUBLISHED[name]


def test_totals_of_the_first_llama_agree_with_its_paper():
    for name, billions in PAPER.items():
        assert MODELS[name].shape.parameters.total == pytest.approx(billions * 1e9, abs=1e8), name


@pytest.mark.parametrize(
    "name, kind",
    [("smollm2-360m", "Llama"), ("llama3.2-1b", "Llama"), ("mistral-7b-v0.3", "Mistral"), ("qwen2.5-0.5b", "Qwen2"), ("qwen3-0.6b", "Qwen3")],
)
def test_totals_are_those_of_transformers_modules(name, kind):
    import torch
    import transformers

    shape = MODELS[name].shape
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=shape.hidden_size, num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, head_dim=shape.head_dim, intermediate_size=shape.intermediate_size,
        vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied_embeddings,
    )  # fmt: skip
    with torch.device("meta"):
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
        model.tie_weights()
    assert sum(p.numel() for p in model.parameters()) == shape.parameters.total
    assert ModelShape.read(config) == shape


def test_every_registered_model_is_known_by_its_name_and_its_hub_id():
    for spec in REGISTERED.values():
        by_name = shape_of(spec.name)[0]
        for repo in (spec.source, spec.published):
            if isinstance(repo, HubRepo):
                assert shape_of(repo.repo_id) == shape_of(f"{repo.repo_id}@{repo.revision}") == shape_of(spec.name)
                assert by_name == MODELS[spec.name].shape


def test_tiny_models_are_those_that_are_made():
    from tiny import folder

    from qlora_lib.bench.gpu_models import SHAPES

    assert ModelShape.read(folder()) == MODELS["tiny-random"].shape
    for name, shape in SHAPES.items():
        assert shape_of(name)[0] == shape, name


@pytest.mark.parametrize(
    "written, meant",
    [("Llama-2-7B", "llama2-7b"), ("META-LLAMA/llama-2-7b-hf", "llama2-7b"), ("llama-3.1-8b", "llama3.1-8b"),
     ("Qwen-2.5-7B", "qwen2.5-7b"), (" tinyllama-1.1b ", "tinyllama-1.1b"), ("meta-llama/Meta-Llama-3.1-8B", "llama3.1-8b")],
)  # fmt: skip
def test_names_may_be_written_in_several_ways(written, meant):
    assert shape_of(written)[0] is MODELS[meant].shape


@pytest.mark.parametrize(
    "name, told",
    [("tinylama", "Did you mean 'tinyllama-1.1b'?"), ("Qwen/Qwen2.5-4B", "Did you mean 'Qwen/Qwen2.5-14B'?"),
     ("someone/something", "Give a folder"), ("./nothing", "no file or folder"), ("nothing.gguf", "no file or folder"), ("", "unknown model")],
)  # fmt: skip
def test_an_unknown_name_is_one_line_with_the_nearest(name, told, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UsageError, match="^[^\n]*$") as e:
        shape_of(name)
    assert told in str(e.value) and len(str(e.value)) < 800


def test_a_folder_and_a_config_are_read(tmp_path):
    config = {"model_type": "qwen3", "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
              "head_dim": 32, "intermediate_size": 96, "vocab_size": 500, "tie_word_embeddings": True}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected = ModelShape(64, 3, 4, 2, 32, 96, 500, tied_embeddings=True, qk_norm=True)
    assert shape_of(tmp_path) == (expected, str(tmp_path / "config.json"))
    assert shape_of(tmp_path / "config.json")[0] == expected


def test_the_hubs_cache_is_read_where_the_hub_has_it(tmp_path, monkeypatch):
    from huggingface_hub import try_to_load_from_cache

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--someone--something"
    snapshot = place / "snapshots" / ("a" * 40)
    (place / "refs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    (place / "refs" / "main").write_text("a" * 40)
    config = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": 500}
    (snapshot / "config.json").write_text(json.dumps(config))
    assert str(cached_config("someone/something")) == try_to_load_from_cache("someone/something", "config.json", cache_dir=tmp_path)
    shape, where = shape_of("someone/something")
    assert shape == ModelShape(64, 2, 4, 4, 16, 96, 500) and "cache" in where
    assert shape_of(f"someone/something@{'a' * 40}")[0] == shape
    assert cached_config("someone/something", "b" * 40) is None
    (place / "refs" / "main").unlink()  # fetched by its commit
    assert cached_config("someone/something") == snapshot / "config.json"


def test_the_hubs_cache_lies_where_its_variables_say(monkeypatch, tmp_path):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert hub_cache() == tmp_path / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    assert hub_cache() == tmp_path / "home" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert hub_cache() == tmp_path / "hub"


# --- GGUF headers, as the gguf package writes them ---------------------------------------------------


def write_gguf(path, architecture: str, shape: ModelShape, experts: int = 0) -> None:
    """A whole GGUF file of this shape; the weights are zeros."""
    import numpy as np
    from gguf import GGUFWriter

    writer = GGUFWriter(path, architecture)
    writer.add_block_count(shape.num_layers)
    writer.add_head_count(shape.num_heads)
    writer.add_head_count_kv(shape.num_kv_heads)
    if experts:
        writer.add_expert_count(experts)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"token {i}" for i in range(shape.vocab_size)])
    writer.add_token_scores([0.0] * shape.vocab_size)
    names = dict(zip(shape.linear_modules, ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")))
    tensor = lambda name, *sizes: writer.add_tensor(name, np.zeros(sizes, dtype=np.float16))  # noqa: E731
    tensor("token_embd.weight", shape.vocab_size, shape.hidden_size)
    if not shape.tied_embeddings:
        tensor("output.weight", shape.vocab_size, shape.hidden_size)
    for i in range(shape.num_layers):
        for module, (wide, out) in shape.linear_modules.items():
            tensor(f"blk.{i}.{names[module]}.weight", out, wide)
        if shape.attention_bias:
            for module in ("q_proj", "k_proj", "v_proj"):
                tensor(f"blk.{i}.{names[module]}.bias", shape.linear_modules[module][1])
        if shape.qk_norm:
            tensor(f"blk.{i}.attn_q_norm.weight", shape.head_dim)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize(
    "architecture, shape",
    [("llama", ModelShape(64, 2, 4, 2, 16, 96, 300)), ("llama", ModelShape(64, 3, 4, 4, 16, 96, 300, tied_embeddings=True)),
     ("qwen2", ModelShape(64, 2, 4, 2, 16, 96, 300, attention_bias=True)),
     ("qwen3", ModelShape(64, 2, 4, 2, 32, 96, 300, tied_embeddings=True, qk_norm=True))],
)  # fmt: skip
def test_a_gguf_header_gives_the_widths(architecture, shape, tmp_path):
    write_gguf(tmp_path / "m.gguf", architecture, shape)
    assert shape_of(tmp_path / "m.gguf") == (shape, str(tmp_path / "m.gguf"))


def test_a_gguf_of_experts_or_of_another_kind_is_refused(tmp_path):
    write_gguf(tmp_path / "e.gguf", "llama", MODELS["tiny-random"].shape, experts=8)
    with pytest.raises(UsageError, match="with experts"):
        shape_of(tmp_path / "e.gguf")
    write_gguf(tmp_path / "g.gguf", "gemma", MODELS["tiny-random"].shape)
    with pytest.raises(UsageError, match="gemma"):
        shape_of(tmp_path / "g.gguf")


@functools.cache
def whole() -> bytes:
    """A header, up to within its last tensor's name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        write_gguf(path, "llama", ModelShape(64, 2, 4, 2, 16, 96, 30))
        data = path.read_bytes()
    return data[: data.rindex(b"ffn_down") + 8]


@settings(max_examples=300)
@given(st.integers(4, len(whole()) - 9), st.booleans(), st.integers(0, 2**64 - 1))
def test_a_damaged_gguf_is_one_line(tmp_path_factory, at, cut, number):
    """Cut off anywhere in the header, or with eight bytes of it overwritten: a UsageError or a header, nothing else."""
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    if cut:
        path.write_bytes(whole()[:at])
        with pytest.raises(UsageError, match="^[^\n]*$"):
            shape_of(path)
        return
    path.write_bytes(whole()[:at] + struct.pack("<Q", number) + whole()[at + 8 :])
    try:
        read_header(path)
    except UsageError as e:
        assert "\n" not in str(e)
