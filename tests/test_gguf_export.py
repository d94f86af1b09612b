"""GGUF files: read back by transformers, by the gguf package, and by llama.cpp where it is installed."""

import importlib.util
import json
import shutil

import gguf
import numpy as np
import pytest
import tiny
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, normalizers
from tokenizers import models as tokenizer_models
from tokenizers.trainers import BpeTrainer
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers import Qwen3Config, Qwen3ForCausalLM

from qlora_lib.assets import make
from qlora_lib.cli import cli
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.export.gguf_file import export_gguf, to_neighbours
from qlora_lib.export.vocabulary import LLAMA3, WORDS, read_vocabulary, word_rule

one_thread = tiny.one_thread
SAMPLES = [make.PROBE, "  a 1234  5x\n\n\tŁódź, 東京 — don't I'M WE'LL 3.14 ½", "Hello there.", ""]
SHAPE = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}  # fmt: skip
FAMILIES = {
    "llama": (LlamaConfig, LlamaForCausalLM, {}),
    "llama, own head": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
    "llama, wide heads": (LlamaConfig, LlamaForCausalLM, {"head_dim": 32, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e4}}),
    "mistral": (MistralConfig, MistralForCausalLM, {"sliding_window": None}),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM, {"head_dim": 128}),  # transformers reads no other width of heads back
}


def copy(folder):
    shutil.copytree(tiny.folder(), folder, ignore=lambda *_: ["manifest.json"])
    return folder


def family(name: str, folder):
    """A model of this family in a folder, with the tiny tokenizer; every tensor random, biases too."""
    config, model, own = FAMILIES[name]
    copy(folder)
    torch.manual_seed(1)
    made = model(config(vocab_size=259, bos_token_id=None, eos_token_id=1, pad_token_id=2, **SHAPE, **own))
    with torch.no_grad():
        for p in made.parameters():
            p.normal_(0, 0.2)
    made.save_pretrained(folder)
    return folder


def read_back(file, into):
    """The folder that the library's own reader makes of a GGUF file."""
    into.mkdir()
    make.convert_gguf(file, into, progress=False)
    return into


def assert_same_tokens(a, b):
    a, b = (AutoTokenizer.from_pretrained(folder) for folder in (a, b))
    for text in SAMPLES:
        assert a(text, add_special_tokens=False).input_ids == b(text, add_special_tokens=False).input_ids, text
    assert (a.eos_token, a.pad_token, a.chat_template) == (b.eos_token, b.pad_token, b.chat_template)


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_read_back_is_the_same_model(tmp_path, name):
    folder = family(name, tmp_path / "model")
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    again = read_back(tmp_path / "m.gguf", tmp_path / "again")
    ids = tiny.ids(2, 20)
    with torch.no_grad():
        first, second = (AutoModelForCausalLM.from_pretrained(f)(ids).logits for f in (folder, again))
    if name == "mistral":  # read back as a LLaMA, which is the same arithmetic
        assert torch.allclose(first, second, atol=1e-6)
    elif name != "llama, wide heads":  # transformers does not read the scaling of positions back
        assert torch.equal(first, second)
    stored, got = (load_file(f / "model.safetensors") for f in (folder, again))
    assert stored.keys() == got.keys() and all(torch.equal(stored[n], got[n]) for n in stored)
    assert_same_tokens(folder, again)


def test_biases_are_reordered_as_their_rows(tmp_path, monkeypatch):
    """transformers does not read a LLaMA's biases back."""
    monkeypatch.setitem(FAMILIES, "biases", (LlamaConfig, LlamaForCausalLM, {"attention_bias": True, "mlp_bias": True}))
    folder = family("biases", tmp_path / "model")
    export_gguf(folder, tmp_path / "m.gguf", "q8_0")
    got = {t.name: t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    stored = {n: t.numpy() for n, t in load_file(folder / "model.safetensors").items()}
    layer = "model.layers.1."
    for part, name, heads in [("q_proj", "attn_q", 4), ("k_proj", "attn_k", 2)]:
        d = 16
        order = [h * d + half * d // 2 + i for h in range(heads) for i in range(d // 2) for half in (0, 1)]
        assert (got[f"blk.1.{name}.bias"] == stored[f"{layer}self_attn.{part}.bias"][order]).all()
    assert (got["blk.1.attn_v.bias"] == stored[f"{layer}self_attn.v_proj.bias"]).all()
    assert (got["blk.1.ffn_up.bias"] == stored[f"{layer}mlp.up_proj.bias"]).all()


def test_the_tiny_model_and_its_file(tmp_path):
    made = export_gguf(tiny.folder(), tmp_path / "m.gguf", "f32", name="tiny")
    assert (made.tensors, made.architecture, made.pre_tokenizer) == (20, "llama", "gpt-2")
    assert made.bytes == (tmp_path / "m.gguf").stat().st_size
    reader = gguf.GGUFReader(tmp_path / "m.gguf")
    field = lambda key: reader.fields[key].contents()  # noqa: E731
    assert field("general.architecture") == "llama" and field("general.name") == "tiny"
    assert (field("llama.block_count"), field("llama.attention.head_count_kv"), field("llama.rope.dimension_count")) == (2, 2, 16)
    assert field("llama.rope.freq_base") == 10000 and field("llama.attention.layer_norm_rms_epsilon") == pytest.approx(1e-6)
    assert (field("tokenizer.ggml.model"), field("tokenizer.ggml.pre"), field("tokenizer.ggml.eos_token_id")) == ("gpt2", "gpt-2", 1)
    assert field("tokenizer.ggml.add_bos_token") is False and "assistant: " in field("tokenizer.chat_template")
    assert field("tokenizer.ggml.token_type")[:4] == [3, 3, 3, 1]
    assert not any(t.name == "output.weight" for t in reader.tensors)  # tied
    assert [p.name for p in tmp_path.iterdir()] == ["m.gguf"]
    again = read_back(tmp_path / "m.gguf", tmp_path / "again")
    assert_same_tokens(tiny.folder(), again)


@pytest.mark.parametrize("kind", ["f16", "q8_0"])
def test_narrow_types(tmp_path, kind):
    """Matrices as the gguf package reads them again; vectors stay in 32 bits."""
    export_gguf(tiny.folder(), tmp_path / "m.gguf", kind)
    tensors = {t.name: t for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    stored = load_file(tiny.folder() / "model.safetensors")
    norm, matrix = tensors["blk.1.ffn_norm.weight"], tensors["blk.1.ffn_down.weight"]
    assert (norm.data == stored["model.layers.1.post_attention_layernorm.weight"].numpy()).all() and norm.data.dtype == np.float32
    got = torch.from_numpy(np.array(gguf.dequantize(matrix.data, matrix.tensor_type)))
    wanted = stored["model.layers.1.mlp.down_proj.weight"]
    if kind == "f16":
        assert torch.equal(got, wanted.half().float())
    else:  # the nearest of 255 levels of a block of 32, and a scale of 11 bits
        largest = wanted.view(-1, 32).abs().amax(1, keepdim=True)
        assert ((got - wanted).view(-1, 32).abs() <= largest * (0.5 / 127 + 2**-11)).all()
        assert matrix.n_bytes == wanted.numel() // 32 * 34
    assert torch.equal(got, wanted) is False


def test_rows_that_fit_no_block_are_stored_in_16_bits(tmp_path):
    folder = copy(tmp_path / "model")
    model = LlamaForCausalLM(LlamaConfig(**(SHAPE | {"intermediate_size": 72}), vocab_size=259))
    model.save_pretrained(folder)
    export_gguf(folder, tmp_path / "m.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert kinds["blk.0.ffn_down.weight"] == "F16" and kinds["blk.0.ffn_up.weight"] == "Q8_0" and kinds["output_norm.weight"] == "F32"


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_turning_neighbours_is_turning_halves(heads, half, columns):
    """The rotation of llama.cpp on reordered rows is that of transformers: angles of pairs follow the pairs."""
    d = 2 * half
    rows = np.arange(heads * d * columns, dtype=np.float32).reshape(heads * d, columns)
    moved = to_neighbours(rows, heads).reshape(heads, d, columns)
    plain = rows.reshape(heads, d, columns)
    for i in range(half):
        assert (moved[:, 2 * i] == plain[:, i]).all() and (moved[:, 2 * i + 1] == plain[:, i + half]).all()


def test_the_frequencies_of_llama_3_are_stored(tmp_path):
    folder = copy(tmp_path / "model")
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}  # fmt: skip
    LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=259, rope_parameters=rope)).save_pretrained(folder)
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    (factors,) = (t.data for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors if t.name == "rope_freqs.weight")
    inverse = AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.inv_freq.numpy()
    plain = 500000.0 ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, inverse, rtol=1e-5)
    assert factors[0] == 1 and factors[-1] == 8  # the fast ones stay, the slow ones are stretched in full


# --- vocabularies


def sentencepiece(folder):
    """A tokenizer like LLaMA 2's: spaces as a letter, single bytes for unknown letters, merges trained here."""
    special = ["<unk>", "<s>", "</s>"]
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    trained = Tokenizer(tokenizer_models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    text = ["the cat sat on the mat and the dog did not do that with the other cats in the hat " * 3, "Hello there. The first line, the second."]
    trained.train_from_iterator(text, BpeTrainer(vocab_size=60, special_tokens=special, show_progress=False))
    model = json.loads(trained.to_str())["model"]
    vocab = special + bytes_ + [t for t in sorted(model["vocab"], key=model["vocab"].get) if t not in special]
    made = Tokenizer(tokenizer_models.BPE(vocab={t: i for i, t in enumerate(vocab)}, merges=[tuple(m) for m in model["merges"]],
                                          unk_token="<unk>", byte_fallback=True, fuse_unk=True))  # fmt: skip
    made.normalizer = trained.normalizer
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    made.add_special_tokens(special)
    fast = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    LlamaForCausalLM(LlamaConfig(**SHAPE, vocab_size=len(vocab) + 5, bos_token_id=1, eos_token_id=2)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def test_a_sentencepiece_vocabulary(tmp_path):
    folder = sentencepiece(tmp_path / "model")
    vocabulary = read_vocabulary(folder, rows=400)
    assert (vocabulary.model, vocabulary.pre, vocabulary.add_space, vocabulary.merges) == ("llama", "default", True, None)
    assert vocabulary.types[:4] == [2, 3, 3, 6] and vocabulary.types[-1] == 5 and vocabulary.tokens[-1] == "[PAD399]"
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    again = read_back(tmp_path / "m.gguf", tmp_path / "again")
    first, second = (AutoTokenizer.from_pretrained(f) for f in (folder, again))
    for text in ("the cat sat on that hat", "Hello there. The other dog ðîd not", "them and then"):
        ids = first(text, add_special_tokens=False).input_ids
        assert ids == second(text, add_special_tokens=False).input_ids and len(ids) < len(text.encode()), text


def level(**settings):
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True} | settings


SPLIT = {"type": "Split", "pattern": {"Regex": LLAMA3}, "behavior": "Isolated", "invert": False}
QWEN = SPLIT | {"pattern": {"Regex": LLAMA3.replace("{1,3}", "")}}
DIGITS = {"type": "Digits", "individual_digits": True}


@pytest.mark.parametrize("steps, normalizer, name", [
    ([level()], None, "gpt-2"),
    ([DIGITS, level()], None, "smollm"),
    ([SPLIT, level(use_regex=False)], None, "llama-bpe"),
    ([QWEN, level(use_regex=False)], {"type": "NFC"}, "qwen2"),
    ([level(add_prefix_space=True)], None, None),
    ([SPLIT, level()], None, None),
    ([SPLIT | {"pattern": {"Regex": "x+"}}, level(use_regex=False)], None, None),
    ([DIGITS | {"individual_digits": False}, level()], None, None),
    ([level()], {"type": "Lowercase"}, None),
    ([], None, None),
])  # fmt: skip
def test_the_rule_for_words_is_known_or_refused(steps, normalizer, name):
    described = {"normalizer": normalizer, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps} if len(steps) > 1 else (steps or [None])[0]}
    if name:
        assert word_rule(described) == name
    else:
        with pytest.raises(UsageError, match="no known name"):
            word_rule(described)


def test_the_patterns_are_those_of_the_published_tokenizers():
    """transformers knows them by the same names, for reading."""
    mapping = pytest.importorskip("transformers.integrations.gguf.gguf_tokenizer_mapping")
    assert {name: mapping.GGUF_PRE_TOKENIZER_SPLITS[name] for name in WORDS.values()} == {name: regex for regex, name in WORDS.items()}


# --- refusals


@pytest.mark.parametrize("damage, error, said", [
    ("name", UsageError, "does not end in .gguf. Give --out .*m.gguf"),
    ("exists", UsageError, "exists. Give another --out, or --force"),
    ("architecture", UsageError, "cannot write a gpt2 model"),
    ("quantized", UsageError, "are quantized. Export the 16/32-bit model, or: qlora merge"),
    ("rotation", UsageError, "cannot write the rotation 'dynamic'"),
    ("no weights", QloraError, "no safetensors in"),
    ("truncated", QloraError, "cannot be read"),
    ("a layer is gone", QloraError, "not whole: nothing becomes blk.1.ffn_down.weight"),
    ("a tensor more", UsageError, "cannot write the tensor model.layers.0.extra.weight"),
    ("too large", QloraError, "values that 16 bits cannot. Use --type f32"),
    ("no tokenizer", QloraError, "no tokenizer.json can be read"),
    ("unigram", UsageError, "cannot write a Unigram tokenizer"),
    ("tokens", QloraError, "has token 258 and the embedding only 200 rows"),
])  # fmt: skip
def test_a_refusal_is_one_line_and_leaves_nothing(tmp_path, damage, error, said):
    folder, out = copy(tmp_path / "model"), tmp_path / "m.gguf"
    weights, tensors = folder / "model.safetensors", load_file(folder / "model.safetensors")
    config, tokenizer = json.loads((folder / "config.json").read_text()), json.loads((folder / "tokenizer.json").read_text())
    if damage == "name":
        out = tmp_path / "m.bin"
    elif damage == "exists":
        out.write_bytes(b"mine")
    elif damage == "architecture":
        config = {"model_type": "gpt2"}
    elif damage == "quantized":
        config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    elif damage == "rotation":
        config["rope_parameters"] = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    elif damage == "no weights":
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:3000])
    elif damage == "no tokenizer":
        tokenizer = None
    elif damage == "unigram":
        tokenizer["model"]["type"] = "Unigram"
    else:
        key = "model.layers.1.mlp.down_proj.weight"
        if damage == "a layer is gone":
            del tensors[key]
        elif damage == "a tensor more":
            tensors["model.layers.0.extra.weight"] = torch.zeros(2)
        elif damage == "too large":
            tensors[key][0, 0] = 1e6
        else:
            tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"][:200].clone()
        save_file(tensors, weights)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{" if tokenizer is None else json.dumps(tokenizer))
    with pytest.raises(error, match=said) as e:
        export_gguf(folder, out)
    assert "\n" not in str(e.value) and type(e.value) is error
    assert sorted(p.name for p in tmp_path.iterdir()) == (["m.gguf", "model"] if damage == "exists" else ["model"])


def test_the_command(tmp_path):
    args = ["export", "--model", "tiny-random", "--out", str(tmp_path / "m.gguf"), "--type", "q8_0"]
    result = CliRunner().invoke(cli, [*args, "--json"])
    shown = json.loads(result.stdout)
    assert shown["bytes"] == (tmp_path / "m.gguf").stat().st_size and (shown["type"], shown["pre_tokenizer"]) == ("q8_0", "gpt-2")
    assert gguf.GGUFReader(tmp_path / "m.gguf").fields["general.name"].contents() == "tiny-random"
    assert "--force" in str(CliRunner().invoke(cli, args).exception)
    assert "20 tensors in q8_0, llama" in CliRunner().invoke(cli, [*args, "--force"]).stdout


# --- llama.cpp itself

BINDINGS = ("llama_cpp", "xllamacpp")


def llama_cpp_says(file, prompt: str, new: int) -> str:
    """Greedy continuation by one of llama.cpp's Python bindings; the test is skipped without one."""
    if importlib.util.find_spec("llama_cpp"):
        import llama_cpp

        model = llama_cpp.Llama(str(file), n_ctx=256, verbose=False, n_threads=1)
        return model.create_completion(prompt, max_tokens=new, temperature=0, top_k=1)["choices"][0]["text"]
    xllamacpp = pytest.importorskip("xllamacpp", reason="no binding of llama.cpp is installed")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.n_ctx, settings.n_parallel, settings.warmup = str(file), 256, 1, False
    settings.cpuparams.n_threads = 1
    wanted = {"prompt": prompt, "max_tokens": new, "temperature": 0, "top_k": 1}
    return xllamacpp.Server(settings).handle_completions(wanted)["choices"][0]["text"]


def transformers_says(folder, prompt: str, new: int) -> str:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
    made = model.generate(**inputs, do_sample=False, max_new_tokens=new, pad_token_id=0)[0]
    return tokenizer.decode(made[inputs.input_ids.shape[1] :], skip_special_tokens=True)


def test_llama_cpp_reads_the_tiny_file(tmp_path):
    export_gguf(tiny.folder(), tmp_path / "m.gguf", "f32")
    assert llama_cpp_says(tmp_path / "m.gguf", "The small", 10) == transformers_says(tiny.folder(), "The small", 10)


@pytest.mark.demo
def test_the_default_model_there_and_back(tmp_path):
    from qlora_lib.assets import resolve_model

    folder = resolve_model("smollm2-135m", progress=False).path
    export_gguf(folder, tmp_path / "m.gguf", "f32")
    again = read_back(tmp_path / "m.gguf", tmp_path / "again")
    stored, got = (load_file(f / "model.safetensors") for f in (folder, again))
    assert stored.keys() == got.keys() and all(torch.equal(stored[n], got[n]) for n in stored)
    assert_same_tokens(folder, again)
    if any(map(importlib.util.find_spec, BINDINGS)):
        prompt = "The capital of France is"
        assert llama_cpp_says(tmp_path / "m.gguf", prompt, 30) == transformers_says(folder, prompt, 30)
