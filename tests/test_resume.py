"""One run, interrupted again and again, against the run that nobody interrupted: bit for bit."""

import dataclasses

import pytest
import tiny
import torch

from qlora_lib import training

one_thread = tiny.one_thread

BATCH, ACCUMULATED, STEPS, WINDOWS = 1, 4, 8, 14  # the text ends inside step 4 and with step 7, then begins again
RUNS = {
    "full": ("full", {}),
    "lora": ("lora", {}),
    "qlora": ("qlora", {}),
    "qlora, checkpointing, 8-bit AdamW": ("qlora", {"train__gradient_checkpointing": True, "train__optimizer": "adamw_8bit"}),
    "qlora, stock stack": ("qlora", {"runtime__fast": False}),
}
QUICK = ("full", "qlora")
# (the step that is running, the callback in which the run ends and which call of it in that step, the step it resumes from)
POINTS = [
    (1, ("on_substep_end", 2), 0),  # before the first checkpoint
    (2, ("on_pre_optimizer_step", 1), 1),  # all four gradients are there
    (4, ("on_substep_end", 2), 3),  # inside accumulation, where the text ends and begins again
    (5, ("on_step_end", 1), 4),  # the weights are new, the checkpoint is not written
    (6, ("on_prediction_step", 1), 5),  # in an evaluation
    (7, ("on_save", 1), 6),  # the checkpoint is written, its marker is not
    (8, ("on_step_begin", 1), 7),  # at the border of two epochs
]


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def short_text():
    data = tiny.data()
    return dataclasses.replace(data, tokens=data.tokens | {"train": data.tokens["train"][: WINDOWS * data.window_length]})


def run(out, data, name, end=None):
    """(outcome, model) of one go; `end`: (step, (callback, call)) at which it breaks off."""
    method, more = RUNS[name]
    settings = {"train__batch_size": BATCH, "train__gradient_accumulation_steps": ACCUMULATED, "train__max_steps": STEPS,
                "train__save_every": 1, "lora__dropout": 0.1, "evaluation__perplexity": False}  # fmt: skip
    _, s = tiny.arm(method, **settings | more)
    model, calls = tiny.trainable(method, s), 0

    def broken_off(self, args, state, control, **_):
        nonlocal calls
        step, (callback, call) = end
        done = state.global_step if callback in ("on_step_end", "on_prediction_step", "on_save") else state.global_step + 1
        calls += done == step
        if done == step and calls == call:
            raise Interruption

    with pytest.MonkeyPatch.context() as patch:
        if end:  # of the first of our callbacks, so that it comes before the marker is written
            original = getattr(training._Meter, end[1][0], None)

            def ending(self, *a, **k):
                broken_off(self, *a, **k)
                return original(self, *a, **k) if original else None

            patch.setattr(training._Meter, end[1][0], ending, raising=False)
        return training.train(model, data, s, tiny.FP32, "cpu", out), model


@pytest.mark.promise("resumed")
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.only_in_make_faults) for n in RUNS])
def test_a_run_broken_off_at_seven_points_is_the_whole_one_bit_for_bit(tmp_path, short_text, name, record_property):
    whole, expected = run(tmp_path / "whole", short_text, name)
    for step, where, resumes_from in POINTS:
        with pytest.raises(Interruption):
            run(tmp_path / "parts", short_text, name, (step, where))
        newest = training.newest_checkpoint(tmp_path / "parts")
        assert (training.step_of(newest) if newest else 0) == resumes_from, where
    last, model = run(tmp_path / "parts", short_text, name)
    assert whole.train.resumed_from_step is None and last.train.resumed_from_step == POINTS[-1][2]
    for key in ("steps", "tokens", "loss", "eval_loss", "eval_steps", "learning_rate", "grad_norm"):
        assert getattr(last.train, key) == getattr(whole.train, key), key
    assert len(whole.train.loss) == STEPS and len(set(whole.train.loss)) == STEPS
    assert any(not torch.equal(p, q) for p, q in zip(model.parameters(), tiny.trainable(*_start(name)).parameters()))
    for (parameter, p), q in zip(model.named_parameters(), expected.named_parameters()):
        assert torch.equal(p, q[1]), parameter
    record_property("caused", len(POINTS))


def _start(name):
    method, more = RUNS[name]
    return method, tiny.arm(method, **more)[1]
