"""Perplexity against closed forms and against the slowest possible loop."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.metrics import perplexity
from qlora_lib.metrics.perplexity import token_nll, window_spans


one_thread = tiny.one_thread


class Known(torch.nn.Module):
    """Logits that depend on the last token alone: a Markov chain with the table `log_p` [V, V]."""

    def __init__(self, log_p):
        super().__init__()
        self.log_p = torch.nn.Parameter(log_p)

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.log_p[input_ids])


@pytest.fixture(scope="module")
def model():
    return tiny.base()


@pytest.fixture(scope="module")
def tokens():
    return tiny.data().tokens["test"][:153]


def slow(model, tokens, context, stride):
    """Each token after the first, one forward a token: (mean nats, tokens).

    Token t is scored in the first window that holds it and a token before it.
    """
    nll, scored = 0.0, 0
    for t in range(1, len(tokens)):
        begin = next((b for b in range(0, t, stride) if t < b + context), None)
        if begin is None:  # the first token of a disjoint window
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor(tokens[begin:t].astype(np.int64))[None]).logits[0, -1]
        nll -= torch.log_softmax(logits.double(), -1)[int(tokens[t])].item()
        scored += 1
    return nll / scored, scored


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    result = perplexity(Known(torch.zeros(17, 17)), list(range(17)) * 5, context=8, stride=3)
    assert result["perplexity"] == pytest.approx(17, rel=1e-6)
    assert result["tokens_scored"] == 84


def test_a_markov_chain_has_the_perplexity_of_its_transitions():
    """p(next = same) = 1/2, each of the three others 1/6: the number follows by counting."""
    p = torch.full((4, 4), 1 / 6, dtype=torch.float64).fill_diagonal_(1 / 2)
    text = [0, 0, 1, 1, 1, 2, 3, 3, 0, 2, 2]
    same = sum(a == b for a, b in zip(text, text[1:]))
    expected = math.exp(-(same * math.log(1 / 2) + (10 - same) * math.log(1 / 6)) / 10)
    for context, stride in ((11, 11), (4, 2), (3, 1), (11, 5), (2, 1), (100, 100)):
        result = perplexity(Known(p.log()), text, context=context, stride=stride)
        assert result["tokens_scored"] == 10, (context, stride)
        assert result["perplexity"] == pytest.approx(expected, rel=1e-6), (context, stride)
    disjoint = perplexity(Known(p.log()), text, context=4, stride=4)  # 0011 | 1233 | 022
    assert disjoint["window_tokens"] == [3, 3, 2]
    nats = [np.log([2, 6, 2]).mean(), np.log([6, 6, 2]).mean(), np.log([6, 2]).mean()]
    assert disjoint["window_nll"] == pytest.approx(nats, rel=1e-6)
    assert disjoint["perplexity"] == pytest.approx(math.exp(np.average(nats, weights=[3, 3, 2])), rel=1e-6)


def test_a_certain_model_has_perplexity_one():
    log_p = torch.full((3, 3), -torch.inf).index_put_((torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0])), torch.tensor(0.0))
    assert perplexity(Known(log_p), [0, 1, 2] * 4, context=5, stride=5)["perplexity"] == 1.0


@pytest.mark.parametrize("context, stride", [(64, 64), (64, 17), (16, 1), (2, 1), (2, 2), (153, 153), (300, 128)])
def test_it_equals_the_direct_loop(model, tokens, context, stride):
    part = tokens[:60] if stride == 1 else tokens
    mean, scored = slow(model, part, context, stride)
    for batch_size in (1, 4):
        result = perplexity(model, part, context, stride, batch_size)
        assert result["tokens_scored"] == scored
        assert math.log(result["perplexity"]) == pytest.approx(mean, rel=2e-6)


@pytest.mark.parametrize("length", [2, 3, 8, 9, 10, 16, 17])
def test_short_texts_and_partial_last_windows(model, tokens, length):
    for context, stride in ((8, 8), (8, 3), (8, 7)):
        mean, scored = slow(model, tokens[:length], context, stride)
        result = perplexity(model, tokens[:length], context, stride, batch_size=3)
        assert (result["tokens_scored"], sum(result["window_tokens"])) == (scored, scored)
        assert math.log(result["perplexity"]) == pytest.approx(mean, rel=2e-6)


def test_any_integer_sequence_will_do(model, tokens):
    expected = perplexity(model, tokens, 64, 64)
    for same in (tokens.tolist(), torch.tensor(tokens), torch.tensor(tokens)[None], tokens.astype(np.uint16)):
        assert perplexity(model, same, 64, 64) == expected


@given(tokens=st.integers(2, 400), context=st.integers(2, 60), data=st.data())
@settings(max_examples=300, deadline=None)
def test_windows_score_each_token_once(tokens, context, data):
    stride = data.draw(st.integers(1, context))
    scored = []
    for begin, end, new in window_spans(tokens, context, stride):
        assert 0 <= begin < end <= tokens and end - begin <= context
        scored += range(max(new, begin + 1), end)
    firsts = range(0, tokens, context) if stride == context else [0]
    assert scored == [t for t in range(tokens) if t not in firsts]


def test_the_head_in_pieces_equals_all_logits_at_once(model):
    """The path for known architectures against the one that any model takes, across piece borders."""
    batch = tiny.ids(3, 200)
    in_pieces = token_nll(model, batch)
    kind, model.config.model_type = model.config.model_type, "unknown"
    try:
        at_once = token_nll(model, batch)
    finally:
        model.config.model_type = kind
    assert in_pieces.shape == (3, 199)
    torch.testing.assert_close(in_pieces, at_once, rtol=1e-6, atol=1e-6)


def test_an_adapter_counts_in_both_paths():
    entry, s = tiny.arm("lora")
    model = tiny.trainable("lora", s).eval()
    batch = tiny.ids(1, 40)
    before = token_nll(model, batch)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(1))
    after = token_nll(model, batch)
    assert (after - before).abs().max() > 1e-3
    logits = model(input_ids=batch).logits[:, :-1]
    direct = torch.nn.functional.cross_entropy(logits[0].float(), batch[0, 1:], reduction="none")
    torch.testing.assert_close(after[0], direct.detach(), rtol=1e-6, atol=1e-6)


def test_the_mode_is_restored_and_dropout_is_off(tokens):
    entry, s = tiny.arm("lora", lora__dropout=0.5)
    model = tiny.trainable("lora", s)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.ones_(parameter)
    model.train()
    assert perplexity(model, tokens, 32, 32) == perplexity(model, tokens, 32, 32)
    assert model.training and model.base_model.training
    model.eval()
    perplexity(model, tokens, 32, 32)
    assert not model.training


def test_a_loss_that_is_no_number_is_one_clear_error(tokens):
    model = tiny.base().train()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.nan
    with pytest.raises(QloraError, match="not a finite number.*precision=fp32") as e:
        perplexity(model, tokens, 32, 32)
    assert e.value.exit_code == 1 and "\n" not in str(e.value)
    assert model.training  # restored on the way out too
    impossible = torch.full((3, 3), -torch.inf).fill_diagonal_(0.0)
    with pytest.raises(QloraError, match="not a finite number"):
        perplexity(Known(impossible), [0, 0, 1], 8, 8)


def test_a_very_bad_model_does_not_overflow():
    log_p = torch.zeros(2, 2)
    log_p[:, 0] = -5000.0
    result = perplexity(Known(log_p), [1, 0, 0], 3, 3)
    assert math.isfinite(result["perplexity"]) and result["window_nll"] == [5000.0]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(context=1, stride=1), "context 1"),
        (dict(context=8, stride=0), "stride 0"),
        (dict(context=8, stride=9), "stride 9"),
        (dict(context=8, stride=8, batch_size=0), "batch_size is 0"),
    ],
)
def test_impossible_arguments_are_usage_errors(model, arguments, said):
    with pytest.raises(UsageError, match=said):
        perplexity(model, [5, 6, 7], **arguments)
    for too_short in ([], [5]):
        with pytest.raises(UsageError, match=f"two tokens or more, got {len(too_short)}"):
            perplexity(model, too_short)


def test_the_protocol_says_what_was_done(model, tokens):
    assert "disjoint windows of 64" in perplexity(model, tokens, 64, 64)["protocol"]
    assert "every 16" in perplexity(model, tokens, 64, 16)["protocol"]
