"""Examples of their own lengths: order, padding, and losses that are means over what is learned."""

from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from qlora_lib import models, training
from qlora_lib.batches import make_batches, order_by_length, pad_right
from qlora_lib.metrics.scored import log_probabilities
from qlora_lib.task_data import prepare_task

one_thread = tiny.one_thread


def tokenizer():
    return models.load_tokenizer(tiny.folder())


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 150), st.integers(1, 8), st.integers(0, 5))
def test_each_epoch_holds_every_example_once(lengths, wanted, together, seed):
    order = order_by_length(lengths, wanted, together, seed)
    assert len(order) == wanted
    for start in range(0, wanted - len(lengths) + 1, len(lengths)):
        assert sorted(order[start : start + len(lengths)]) == list(range(len(lengths)))
    assert order.tolist() == order_by_length(lengths, wanted, together, seed).tolist()


def test_examples_of_a_batch_are_of_similar_length():
    lengths = np.random.default_rng(0).integers(10, 200, 640).tolist()
    order = order_by_length(lengths, 640, 4, 0).reshape(-1, 4)
    padded = sum(4 * max(lengths[i] for i in batch) for batch in order)
    assert padded < 1.1 * sum(lengths)
    assert order.tolist() != order_by_length(lengths, 640, 4, 1).reshape(-1, 4).tolist()


def direct(model, examples) -> tuple[float, int]:
    """(sum of nats, learned tokens), one example at a time, from transformers' own logits in fp64."""
    total, count = 0.0, 0
    for e in examples:
        ids, labels = torch.tensor([e.ids]), torch.tensor(e.labels)
        logp = model(input_ids=ids).logits[0].double().log_softmax(-1)
        for position in range(1, len(e.ids)):
            if labels[position] >= 0:
                total -= logp[position - 1, labels[position]].item()
                count += 1
    return total, count


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_of_padded_examples_is_the_mean_over_their_responses(tmp_path, fast, accumulation):
    """The first step's loss and the validation loss before it, against single unpadded examples; batches differ in length."""
    data = prepare_task("tiny-questions", 200, tokenizer())
    settings = {"train__max_steps": 2, "train__gradient_accumulation_steps": accumulation, "train__warmup_steps": 0}
    settings |= {"train__eval_windows": 7, "train__eval_batch_size": 3, "train__batch_size": 4, "runtime__fast": fast}
    _, s = tiny.arm("qlora", **settings)
    model = tiny.trainable("qlora", s)
    with torch.no_grad():
        batches = make_batches(data, 8 * accumulation, 4, 7, s.seed)
        total, count = direct(model.eval(), [data.encoded["train"][i] for i in batches.train.order[: 4 * accumulation]])
        held_out, learned = direct(model, data.encoded["validation"][:7])
    outcome = training.train(model, data, s, tiny.FP32, "cpu", tmp_path).train
    assert outcome.loss[0] == pytest.approx(total / count, rel=1e-5)
    assert outcome.eval_loss[0] == pytest.approx(held_out / learned, rel=1e-5)
    tokens = [len(data.encoded["train"][i].ids) for i in batches.train.order]
    assert outcome.tokens == sum(tokens)
    assert 0 < outcome.response_tokens < outcome.tokens
    assert outcome.peak_tensor_bytes


def test_the_longest_step_is_the_one_that_is_metered():
    data = prepare_task("tiny-questions", 200, tokenizer())
    batches = make_batches(data, 40, 4, 4, 0)
    lengths = [max(batches.train.tokens(i)[0] for i in range(step * 4, step * 4 + 4)) for step in range(10)]
    metered = batches.longest_step(4, first=2)
    assert metered >= 2 and lengths[metered - 1] == max(lengths[1:])


def test_padding_changes_no_log_probability():
    """Rows of very different lengths in one batch, against each alone by transformers."""
    model = tiny.base(tiny.FORMATS["nf4dq"])
    rows = [tiny.ids(n, seed=n).tolist() for n in (3, 40, 17, 1)]
    wanted = [[(len(r) - 1, 5), (0, 7)] for r in rows]
    found = log_probabilities(model, rows, wanted, batch_size=3)
    for row, places, values in zip(rows, wanted, found):
        logp = model(input_ids=torch.tensor([row])).logits[0].detach().double().log_softmax(-1)
        assert values == pytest.approx([logp[p, t].item() for p, t in places], abs=1e-5)


def test_padded_labels_are_never_learned():
    examples = [{"input_ids": torch.arange(n), "labels": torch.arange(n)} for n in (2, 5)]
    batch = pad_right(examples, padding=9)
    assert batch["input_ids"].tolist() == [[0, 1, 9, 9, 9], [0, 1, 2, 3, 4]]
    assert batch["labels"].tolist() == [[0, 1, -100, -100, -100], [0, 1, 2, 3, 4]]


def test_other_families_are_scored_from_their_logits():
    """A model whose logits are more than head(hidden): they are read off its own forward."""
    logits = torch.randn(1, 4, 10, generator=torch.Generator().manual_seed(0))

    class Other(torch.nn.Module):
        config = SimpleNamespace(model_type="other")

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids):
            return SimpleNamespace(logits=logits)

    found = log_probabilities(Other(), [[1, 2, 3, 4]], [[(2, 6)]], batch_size=1, fast=False)
    assert found[0] == pytest.approx([logits[0, 2].log_softmax(-1)[6].item()])
