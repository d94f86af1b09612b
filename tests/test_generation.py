"""Streaming: pieces add up to what `generate` says, and nothing is left running."""

import threading

import pytest
import torch

from qlora_lib import models
from qlora_lib.config import Quantization
from qlora_lib.errors import QloraError
from qlora_lib.generation import _pieces, chooser, stream_from


@pytest.fixture(scope="module")
def tiny(tiny_model, tiny_tokenizer):
    return models.load_base(tiny_model, Quantization(), torch.float32, "cpu"), tiny_tokenizer


@pytest.fixture(params=["fast", "transformers"])
def engine(request, monkeypatch):
    """What makes the tokens."""
    if request.param == "transformers":
        monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    return request.param


def test_the_pieces_are_what_generate_gives(tiny, engine):
    model, tokenizer = tiny
    inputs = tokenizer("The small", return_tensors="pt", add_special_tokens=False)
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)[0]
    expected = tokenizer.decode(whole[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "".join(stream_from(model, tokenizer, "The small", max_new_tokens=12)) == expected


def test_a_reader_who_leaves_early_leaves_no_thread(tiny, engine):
    before = threading.active_count()
    pieces = stream_from(*tiny, "The small", max_new_tokens=1500)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_a_failure_in_the_thread_is_told(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: 1 / 0)
    monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    before = threading.active_count()
    with pytest.raises(QloraError, match="generation failed: division by zero"):
        list(stream_from(model, tokenizer, "The small"))
    assert threading.active_count() == before


def test_the_same_seed_samples_the_same_text(tiny, engine):
    texts = ["".join(stream_from(*tiny, "A", max_new_tokens=10, temperature=1.0, seed=s)) for s in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.4, "top_k": 0}, {"min_p": 0.02}])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_sampled_as_generate_samples_them(tiny, monkeypatch, settings, temperature):
    model, tokenizer = tiny
    for key, value in settings.items():
        monkeypatch.setattr(model.generation_config, key, value)
    texts = []
    for _ in range(2):
        texts.append("".join(stream_from(model, tokenizer, "The", max_new_tokens=25, temperature=temperature, seed=1)))
        monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    assert texts[0] == texts[1]


def test_ways_of_sampling_that_are_not_ours_are_left_to_transformers(tiny, monkeypatch):
    monkeypatch.setattr(tiny[0].generation_config, "typical_p", 0.5)
    assert chooser(tiny[0].generation_config, 1.0, 0) is None
    assert chooser(tiny[0].generation_config, 0.0, 0) is not None


def test_letters_of_several_tokens_come_out_whole(tiny):
    """One token is one byte here: what is not yet a letter is held back."""
    tokenizer = tiny[1]
    ids = tokenizer("a\N{GREEK SMALL LETTER ALPHA}\N{SNOWMAN}b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7
    pieces = list(_pieces(tokenizer, iter(ids)))
    assert pieces == ["a", "\N{GREEK SMALL LETTER ALPHA}", "\N{SNOWMAN}", "b"]
    assert "".join(_pieces(tokenizer, iter(ids[:2]))) == "a\N{REPLACEMENT CHARACTER}"


def test_the_end_of_text_ends_it(tiny, engine):
    model, tokenizer = tiny
    first = "".join(stream_from(model, tokenizer, "The small", max_new_tokens=6))
    token = tokenizer(first, add_special_tokens=False)["input_ids"][3]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = token
    try:
        text = "".join(stream_from(model, tokenizer, "The small", max_new_tokens=6))
    finally:
        model.generation_config.eos_token_id = before
    assert first.startswith(text.rstrip(tokenizer.decode([token]))) and len(text) < len(first)
