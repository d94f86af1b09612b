"""Greedy decode: what is timed, and that it is greedy."""

import statistics

import pytest
import tiny
import torch

from qlora_lib import models
from qlora_lib.errors import UsageError
from qlora_lib.fast.decoders import fast_decoder
from qlora_lib.metrics import speed


one_thread = tiny.one_thread


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(tiny.folder())


def greedy(model, ids: list[int], count: int, eos: int) -> list[int]:
    """No cache: the whole text again for each token; the end of text is never chosen."""
    for _ in range(count):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        logits[eos] = -torch.inf
        ids = [*ids, int(logits.argmax())]
    return ids


@pytest.mark.parametrize("fast, engine", [(False, "transformers"), (True, "fast")])
def test_it_decodes_greedily_and_exactly_as_many_tokens(tokenizer, fast, engine):
    model = tiny.base()
    prompt = tokenizer("The model holds", add_special_tokens=False)["input_ids"]
    expected = greedy(model, prompt, 12, tokenizer.eos_token_id)[len(prompt) :]
    g = speed.decode_speed(model, tokenizer, "The model holds", 12, 3, fast)
    assert g.engine == engine
    assert g.sample == tokenizer.decode(expected, skip_special_tokens=True)
    assert (g.new_tokens, g.prompt_tokens, len(g.repeats)) == (12, len(prompt), 3)


def test_an_end_of_text_does_not_cut_it_short(tokenizer):
    model = tiny.base()
    with torch.no_grad():  # the end of text is by far the likeliest token
        model.model.embed_tokens.weight[tokenizer.eos_token_id] = 100 * model.model.norm.weight
    inputs = tokenizer("The", return_tensors="pt", add_special_tokens=False)
    tokens = speed._generate(model, tokenizer, inputs, 9)
    assert len(tokens) == 9 and tokenizer.eos_token_id not in tokens
    assert speed._decode(fast_decoder(model), inputs, 20, 9) == tokens


def test_the_figures_follow_from_the_repeats(tokenizer, monkeypatch):
    """A clock that says how long each generation took: warm-up, one token, then the repeats."""
    model = tiny.base()
    calls, now = [], [0.0]
    took = iter([9.0, 0.25, 3.0, 1.0, 2.0])

    def generate(model, tokenizer, inputs, new_tokens):
        calls.append(new_tokens)
        now[0] += next(took)
        return [0] * new_tokens

    monkeypatch.setattr(speed, "_generate", generate)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: now[0])
    g = speed.decode_speed(model, tokenizer, "The", 20, 3, fast=False)
    assert calls == [4, 1, 20, 20, 20]
    assert g.repeats == [3.0, 1.0, 2.0] and g.latency_seconds == statistics.median(g.repeats) == 2.0
    assert g.tokens_per_second == 10.0 and g.first_token_seconds == 0.25


def test_the_model_is_left_as_it_was(tokenizer, monkeypatch):
    model = tiny.base().train()
    model.config.use_cache = False
    seen = []
    real = speed._generate
    monkeypatch.setattr(speed, "_generate", lambda m, *a: seen.append((m.training, m.config.use_cache)) or real(m, *a))
    speed.decode_speed(model, tokenizer, "The", 2, 1, fast=False)
    assert set(seen) == {(False, True)}
    assert model.training and model.config.use_cache is False

    def broken(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(speed, "_generate", broken)
    with pytest.raises(RuntimeError):
        speed.decode_speed(model, tokenizer, "The", 2, 1, fast=False)
    assert model.training and model.config.use_cache is False


def test_an_empty_prompt_is_a_usage_error(tokenizer):
    with pytest.raises(UsageError, match="prompt holds no token"):
        speed.decode_speed(tiny.base(), tokenizer, "", 2, 1)
