"""Windows, their order and the token cache: every arm sees the same tokens in the same order."""

import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from qlora_lib.data import LanguageData, file_tokens, pack, prepare, tokenize, training_order
from qlora_lib.errors import QloraError
from qlora_lib.paths import cache_dir
from qlora_lib.texts import JOIN, SPLITS, load_texts


@given(st.integers(0, 400), st.integers(1, 70))
def test_windows_hold_the_tokens_of_the_stream_in_order(tokens, length):
    stream = np.arange(tokens, dtype=np.int32)
    windows = pack(stream, length)
    assert windows.shape == (tokens // length, length)
    assert windows.ravel().tolist() == list(range(tokens - tokens % length))


@given(st.integers(1, 50), st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_the_order_is_a_permutation_in_each_epoch_and_depends_on_the_seed_alone(windows, wanted, seed):
    order = training_order(windows, wanted, seed)
    assert len(order) == wanted
    for begin in range(0, wanted, windows):
        epoch = order[begin : begin + windows].tolist()
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(windows))
    assert training_order(windows, wanted, seed).tolist() == order.tolist()
    # A longer run begins as a shorter one: a search at fewer steps sees the same windows.
    assert training_order(windows, wanted + 7, seed)[:wanted].tolist() == order.tolist()


def test_other_seeds_and_other_epochs_have_other_orders():
    order = training_order(100, 200, seed=0)
    assert order.tolist() != training_order(100, 200, seed=1).tolist()
    assert order[:100].tolist() != order[100:].tolist() and order[:100].tolist() != list(range(100))


@settings(max_examples=30, deadline=None)
@given(text=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200))
def test_byte_level_tokens_give_the_text_back(tiny_tokenizer, text):
    tokens = tokenize(text, tiny_tokenizer)
    assert tokens.dtype == np.int32 and len(tokens) == len(text.encode())
    assert tiny_tokenizer.decode(tokens.tolist()) == text
    assert tokenize(text, tiny_tokenizer).tolist() == tokens.tolist()


class Counting:
    """A tokenizer that counts how often it is asked."""

    def __init__(self, tokenizer):
        self.tokenizer, self.calls = tokenizer, 0
        self.backend_tokenizer = tokenizer.backend_tokenizer

    def __call__(self, *args, **kwargs):
        self.calls += 1
        return self.tokenizer(*args, **kwargs)


@pytest.fixture
def cached(tiny_tokenizer, tmp_path, monkeypatch):
    """(a counting tokenizer, the tokens of "some text", the cache file that holds them)."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    tokenizer = Counting(tiny_tokenizer)
    tokens = tokenize("some text", tokenizer)
    (path,) = (tmp_path / "cache" / "tokens").iterdir()
    return tokenizer, tokens.tolist(), path


def test_tokens_are_made_once(cached):
    tokenizer, tokens, _ = cached
    assert tokenize("some text", tokenizer).tolist() == tokens and tokenizer.calls == 1
    assert tokenize("some other text", tokenizer).tolist() != tokens and tokenizer.calls == 2


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:-1],
        lambda data: data[:31],
        lambda data: data + b"\0\0\0\0",
        lambda data: bytes(len(data)),
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
        lambda data: b"PK\x03\x04" + data[4:],
    ],
    ids=["empty", "cut", "cut in its hash", "longer", "zeros", "one bit", "no such format"],
)
def test_a_damaged_cache_file_is_made_again(cached, damage):
    tokenizer, tokens, path = cached
    path.write_bytes(damage(path.read_bytes()))
    assert tokenize("some text", tokenizer).tolist() == tokens and tokenizer.calls == 2
    assert tokenize("some text", tokenizer).tolist() == tokens and tokenizer.calls == 2


def test_a_cache_that_cannot_be_written_only_costs_time(tiny_tokenizer, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file" / "cache"))
    tokenizer = Counting(tiny_tokenizer)
    assert tokenize("abc", tokenizer).tolist() == tokenize("abc", tokenizer).tolist() and tokenizer.calls == 2
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "fine"))
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    assert len(tokenize("abc", tokenizer)) == 3
    assert list((cache_dir() / "tokens").iterdir()) == []  # no half-written file stays


def test_another_tokenizer_has_tokens_of_its_own(cached, tiny_tokenizer):
    from tokenizers import Tokenizer

    tokenizer, tokens, path = cached
    other = Counting(tiny_tokenizer)
    other.backend_tokenizer = Tokenizer.from_str(tiny_tokenizer.backend_tokenizer.to_str().replace("<|pad|>", "<|fill|>"))
    tokenize("some text", other)
    assert other.calls == 1 and len(list(path.parent.iterdir())) == 2


@pytest.mark.parametrize("text", ["", "one\n\ntwo  three \t\u00e9\U0001f600\r\n", "<|im_end|> a special token's name </s>"])
def test_the_ids_are_those_of_the_tokenizers_own_call(tiny_tokenizer, tmp_path, monkeypatch, text):
    from tokenizers import Tokenizer, models as kinds, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setenv("QLORA_CACHE", str(tmp_path))
    backend = Tokenizer(kinds.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(["one two three\n\n"] * 9, trainers.BpeTrainer(initial_alphabet=alphabet, special_tokens=["<|im_end|>"], vocab_size=300))
    backend.enable_truncation(3)  # as the file of a tokenizer that was trained with may ask for
    backend.enable_padding(length=8)
    trained = PreTrainedTokenizerFast(tokenizer_object=backend)
    for tokenizer in (tiny_tokenizer, trained):
        made = tokenize(text, tokenizer).tolist()
        assert made == tokenizer(text, add_special_tokens=False)["input_ids"] and (text == "" or len(made) > 3)


def test_one_fingerprint_serves_all_splits(tiny_tokenizer, monkeypatch):
    from qlora_lib import data

    asked = []
    monkeypatch.setattr(data, "fingerprint", lambda tokenizer: asked.append(0) or b"known")
    prepare("tiny-text", "text", 32, tiny_tokenizer)
    assert len(asked) == 1


def test_the_statistics_are_those_of_a_direct_count(tiny_tokenizer):
    data, texts = prepare("tiny-text", "text", 32, tiny_tokenizer), load_texts("tiny-text")
    for split in SPLITS:
        documents, counted = texts.splits[split], data.info.splits[split]
        tokens = sum(len(d.encode()) for d in documents) + (len(documents) - 1) * len(JOIN)  # a token is a byte
        assert (counted.documents, counted.characters) == (len(documents), sum(len(d) for d in documents))
        assert (counted.tokens, counted.windows) == (tokens, tokens // 32) == (len(data.tokens[split]), len(data.windows(split)))
    assert (data.info.train_tokens, data.info.eval_tokens) == (len(data.tokens["train"]), len(data.tokens["test"]))
    assert (data.info.vocabulary_size, data.info.window_length) == (259, 32)
    assert (data.info.name, data.info.stand_in_for) == ("tiny-text", None)


def test_a_split_is_tokenized_as_one_text(tiny_tokenizer):
    data, texts = prepare("tiny-text", "text", 32, tiny_tokenizer), load_texts("tiny-text")
    assert tiny_tokenizer.decode(data.tokens["test"].tolist()) == "\n\n".join(texts.splits["test"])
    assert set(data.tokens["test"].tolist()) & set(tiny_tokenizer.all_special_ids) == set()


def test_too_little_text_for_one_window_is_one_line(tiny_tokenizer, tmp_path):
    (tmp_path / "a.txt").write_text("word " * 100)
    data = prepare(str(tmp_path / "a.txt"), "text", 128, tiny_tokenizer)
    assert len(data.windows("train")) == 3
    with pytest.raises(QloraError, match=r"the validation split of 'a\.txt' has \d+ tokens, and one window needs 128"):
        data.windows("validation")


def test_a_file_for_evaluation_is_taken_whole(tiny_tokenizer, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    tokens = file_tokens(tmp_path / "a.jsonl", "text", tiny_tokenizer)
    assert tiny_tokenizer.decode(tokens.tolist()) == "first\n\nsecond"


def test_fresh_and_cached_tokens_make_the_same_examples(tiny_tokenizer):
    from qlora_lib.batches import Windows

    for _ in range(2):  # fresh, then from the cache
        data: LanguageData = prepare("tiny-text", "text", 32, tiny_tokenizer)
        windows = data.windows("train")
        example = Windows(windows, np.array([1, 0]))[0]
        assert example["input_ids"].tolist() == data.tokens["train"][32:64].tolist()
        assert windows.flags.writeable  # torch warns of memory that it may not write
        example["input_ids"][:] = 0
        assert windows[1].any()  # a batch is a copy
