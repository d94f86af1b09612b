"""Streaming: pieces add up to what `generate` says, and nothing is left running."""

import threading

import pytest
import torch

from qlora_lib import models
from qlora_lib.config import Quantization
from qlora_lib.errors import QloraError
from qlora_lib.generation import stream_from


@pytest.fixture(scope="module")
def tiny(tiny_model, tiny_tokenizer):
    return models.load_base(tiny_model, Quantization(), torch.float32, "cpu"), tiny_tokenizer


def test_the_pieces_are_what_generate_gives(tiny):
    model, tokenizer = tiny
    inputs = tokenizer("The small", return_tensors="pt", add_special_tokens=False)
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)[0]
    expected = tokenizer.decode(whole[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "".join(stream_from(model, tokenizer, "The small", max_new_tokens=12)) == expected


def test_a_reader_who_leaves_early_leaves_no_thread(tiny):
    before = threading.active_count()
    pieces = stream_from(*tiny, "The small", max_new_tokens=1500)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_a_failure_in_the_thread_is_told(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: 1 / 0)
    before = threading.active_count()
    with pytest.raises(QloraError, match="generation failed: division by zero"):
        list(stream_from(model, tokenizer, "The small"))
    assert threading.active_count() == before


def test_the_same_seed_samples_the_same_text(tiny):
    texts = ["".join(stream_from(*tiny, "A", max_new_tokens=10, temperature=1.0, seed=s)) for s in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]
