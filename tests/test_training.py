"""The loop against direct computations, and against itself after an interruption."""

import json
import math
import os
import pickle
import re
import signal
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from qlora_lib import training
from qlora_lib.checkpoints import COMPLETE, measured_until, newest_checkpoint, seal
from qlora_lib.data import training_order
from qlora_lib.errors import QloraError
from qlora_lib.hardware import DType
from qlora_lib.leaving import Left
from qlora_lib.metrics.perplexity import token_nll

one_thread = tiny.one_thread
METHODS = ("full", "lora", "qlora")


def train(out, method="lora", model=None, dtype=tiny.FP32, **settings):
    """(outcome, model) of a short run of the `smoke` profile's arm."""
    _, s = tiny.arm(method, **{"evaluation__perplexity": False} | settings)
    model = tiny.trainable(method, s) if model is None else model
    return training.train(model, tiny.data(), s, dtype, "cpu", out), model


def numbers(outcome) -> dict:
    """All of a record that does not depend on the clock."""
    t = outcome.train
    return {k: getattr(t, k) for k in ("steps", "loss", "eval_loss", "eval_steps", "learning_rate", "grad_norm", "tokens")}


def direct_loss(model, windows) -> float:
    """Mean over all predicted tokens of these windows, in fp64."""
    nll = token_nll(model.eval(), torch.from_numpy(windows.astype(np.int64)))
    return nll.double().mean().item()


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """{method: (outcome, trained model)} of six steps, uninterrupted, dropout on, checkpoints saved."""
    return {m: train(tmp_path_factory.mktemp(m), m, train__save_every=2) for m in METHODS}


# --- what reaches the model, and what comes back


def test_every_arm_sees_the_same_windows_in_the_order_of_the_seed(tmp_path):
    seen = {}
    for method in METHODS:
        _, s = tiny.arm(method, train__max_steps=5, train__warmup_steps=0, seed=7)
        model, got = tiny.trainable(method, s), []
        model.get_input_embeddings().register_forward_pre_hook(
            lambda module, args, got=got, model=model: got.append(args[0].clone()) if model.training else None
        )
        training.train(model, tiny.data(), s, tiny.FP32, "cpu", tmp_path / method)
        seen[method] = torch.cat(got)
    windows = tiny.data().windows("train")
    expected = torch.from_numpy(windows[training_order(len(windows), 20, 7)].astype(np.int64))
    for method in METHODS:
        assert torch.equal(seen[method], expected), method


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_is_the_mean_over_all_predicted_tokens(reference, method):
    """Before the first update, and the validation losses before and after all of them."""
    outcome, model = reference[method]
    _, s = tiny.arm(method)
    windows, validation = tiny.data().windows("train"), tiny.data().windows("validation")[:4]
    order = training_order(len(windows), 24, s.seed)
    start = tiny.trainable(method, s)
    assert outcome.train.loss[0] == pytest.approx(direct_loss(start, windows[order[:4]]), rel=1e-6)
    assert outcome.train.eval_steps == [0, 3, 6]
    assert outcome.train.eval_loss[0] == pytest.approx(direct_loss(start, validation), rel=1e-6)
    assert outcome.train.eval_loss[-1] == pytest.approx(direct_loss(model, validation), rel=1e-6)
    assert outcome.train.eval_loss[-1] < outcome.train.eval_loss[0]


def test_the_last_step_is_evaluated_whatever_the_interval(tmp_path):
    outcome, model = train(tmp_path, train__max_steps=3, train__eval_every=2)
    assert outcome.train.eval_steps == [0, 2, 3]
    outcome, model = train(tmp_path / "2", train__max_steps=2, train__eval_every=50)
    assert outcome.train.eval_steps == [0, 2]


def test_accumulated_steps_equal_one_large_batch(tmp_path):
    for method in ("full", "lora"):
        still = dict(train__max_steps=3, lora__dropout=0.0, train__warmup_steps=0)
        whole, a = train(tmp_path / f"{method}1", method, **still)
        parts, b = train(tmp_path / f"{method}2", method, **still, train__batch_size=2, train__gradient_accumulation_steps=2)
        assert parts.train.loss == pytest.approx(whole.train.loss, abs=1e-6)
        assert parts.train.tokens_per_step == whole.train.tokens_per_step == 4 * 32
        for p, q in zip(a.parameters(), b.parameters()):
            torch.testing.assert_close(p, q, rtol=0, atol=2e-5)  # AdamW's first steps are all sign


@pytest.mark.parametrize("method", METHODS)
def test_checkpointing_changes_no_loss(tmp_path, reference, method):
    outcome, model = train(tmp_path, method, train__gradient_checkpointing=True)
    assert model.is_gradient_checkpointing
    assert outcome.train.loss == pytest.approx(reference[method][0].train.loss, abs=1e-6)


def test_checkpointing_keeps_less(tmp_path):
    """Peak tensor bytes of a step of `full`, windows long enough that activations matter."""
    peaks = []
    for checkpointing in (False, True):
        _, s = tiny.arm("full", train__max_steps=2, train__gradient_checkpointing=checkpointing, train__batch_size=8)
        outcome = training.train(tiny.trainable("full", s), tiny.data(128), s, tiny.FP32, "cpu", tmp_path / str(checkpointing))
        peaks.append(outcome.train.peak_tensor_bytes)
    assert peaks[1] < 0.8 * peaks[0]


@pytest.mark.parametrize("method", METHODS)
def test_one_seed_gives_one_run_and_another_gives_another(tmp_path, reference, method):
    again, model = train(tmp_path / "a", method)  # no checkpoints this time: they change nothing
    assert numbers(again) == numbers(reference[method][0])
    for p, q in zip(model.parameters(), reference[method][1].parameters()):
        assert torch.equal(p, q)
    other, _ = train(tmp_path / "b", method, seed=1)
    assert other.train.loss != again.train.loss


def test_the_learning_rate_warms_up_and_falls(tmp_path, monkeypatch):
    used, step = [], torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: used.append(self.param_groups[0]["lr"]) or step(self, *a, **k))
    outcome, _ = train(tmp_path, train__max_steps=8, train__warmup_steps=3, train__learning_rate=6e-3)
    expected = [6e-3 * min(k / 3, (8 - k) / 5) for k in range(8)]
    assert used == pytest.approx(expected)
    assert outcome.train.learning_rate == pytest.approx(used)


# --- steps, optimizers, flags


@pytest.mark.parametrize("epochs, windows, batch, accumulation, max_steps, steps", [
    (None, 10, 4, 1, 50, 50), (1.0, 10, 4, 1, 50, 2), (1.0, 10, 2, 2, 50, 2), (3.0, 10, 4, 1, 50, 7),
    (3.0, 10, 4, 1, 5, 5), (0.57, 100, 1, 1, 99, 57), (0.5, 7, 1, 1, 99, 3),
])  # fmt: skip
def test_planned_steps(epochs, windows, batch, accumulation, max_steps, steps):
    _, s = tiny.arm("lora", train__epochs=epochs, train__batch_size=batch, train__max_steps=max_steps,
                    train__gradient_accumulation_steps=accumulation)  # fmt: skip
    assert training.planned_steps(s, windows) == steps


def test_epochs_that_hold_no_step_are_told(tmp_path):
    with pytest.raises(QloraError, match="hold no step of 4 windows"):
        train(tmp_path, train__epochs=0.001)


def test_without_a_gpu_the_paged_optimizers_twin_runs(tmp_path, reference):
    assert training.choose_optimizer("paged_adamw_8bit", "cuda") == ("paged_adamw_8bit", "as asked for")
    for paged, twin in (("paged_adamw_8bit", "adamw_8bit"), ("paged_adamw_32bit", "adamw_torch")):
        ran, why = training.choose_optimizer(paged, "cpu")
        assert ran == twin and paged in why and "unpaged" in why
    assert training.choose_optimizer("adamw_torch", "cpu") == ("adamw_torch", "as asked for")
    optimizer = reference["qlora"][0].train.optimizer
    assert (optimizer.requested, optimizer.ran) == ("paged_adamw_8bit", "adamw_8bit")


@pytest.mark.parametrize("name, fp16, bf16", [("fp32", False, False), ("fp16", True, False), ("bf16", False, True)])
@pytest.mark.parametrize("on", ["cpu", "cuda"])
def test_the_flags_follow_the_dtype(monkeypatch, tmp_path, name, fp16, bf16, on):
    monkeypatch.setattr(training, "TrainingArguments", lambda **k: SimpleNamespace(**k))
    _, s = tiny.arm("qlora", train__eval_every=100)
    a = training._arguments(s, "paged_adamw_8bit", DType(name, ""), on, 6, tmp_path)
    assert (a.fp16, a.bf16, a.use_cpu, a.optim) == (fp16, bf16, on == "cpu", "paged_adamw_8bit")
    assert a.dataloader_pin_memory is (on == "cuda")
    assert (a.max_steps, a.eval_steps, a.save_strategy, a.seed) == (6, 6, "no", s.seed)


@pytest.mark.parametrize("method", METHODS)
def test_bf16_products_leave_the_trained_weights_fp32_and_the_model_unwrapped(tmp_path, reference, method):
    _, s = tiny.arm(method)
    weights = torch.float32 if method == "full" else torch.bfloat16
    model = tiny.training_model(tiny.base(s.quantization, weights), method, s)
    outcome, model = train(tmp_path, method, model, DType("bf16", "test"))
    assert outcome.train.loss == pytest.approx(reference[method][0].train.loss, rel=0.02)
    assert outcome.train.loss != reference[method][0].train.loss
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    ids = tiny.ids(1, 20)  # mixed precision's wrapper would cast what is measured afterwards
    with torch.no_grad():
        hidden = model.eval().get_decoder()(input_ids=ids).last_hidden_state
        assert torch.equal(model(input_ids=ids).logits, model.get_output_embeddings()(hidden))


@pytest.mark.parametrize("method", METHODS)
def test_the_fast_path_trains_the_same(tmp_path, method):
    stock, _ = train(tmp_path / "stock", method, lora__dropout=0.0, runtime__fast=False)
    fast, _ = train(tmp_path / "fast", method, lora__dropout=0.0)
    assert stock.train.fast_path == [] and "loss" in fast.train.fast_path
    assert ("adapters" in fast.train.fast_path) == (method != "full")
    assert fast.train.loss == pytest.approx(stock.train.loss, rel=1e-4)
    assert fast.train.eval_loss == pytest.approx(stock.train.eval_loss, rel=1e-4)


@pytest.mark.promise("resumed")
@pytest.mark.only_in_make_faults
def test_the_stock_stack_resumes_bit_for_bit_too(tmp_path):
    settings = {"runtime__fast": False, "train__save_every": 2}
    whole, _ = train(tmp_path / "whole", "qlora", train__max_steps=4, **settings)
    train(tmp_path / "parts", "qlora", train__max_steps=4, **settings)
    checkpoints = tmp_path / "parts" / "checkpoints"
    assert (checkpoints / "checkpoint-2" / COMPLETE).is_file()
    again, _ = train(tmp_path / "parts", "qlora", train__max_steps=4, **settings)
    assert again.train.resumed_from_step == 2 and numbers(again) == numbers(whole)


# --- what is measured


def test_bytes_of_a_step(reference):
    outcome, model = reference["full"]
    t, n = outcome.train, sum(p.numel() for p in model.parameters())
    tensors = len(list(model.parameters()))
    assert t.gradient_bytes == 4 * n
    assert t.optimizer.state_bytes == 8 * n + 4 * tensors
    assert t.peak_tensor_bytes > 16 * n + 4 * tensors  # weights, gradients, two moments, activations
    outcome, model = reference["lora"]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert outcome.train.gradient_bytes == 4 * trained
    assert outcome.train.optimizer.state_bytes == 8 * trained + 4 * 28


def test_speed_leaves_out_the_first_and_the_metered_step(reference, tmp_path):
    t = reference["lora"][0].train
    assert (t.steps, t.timed_steps, t.tokens) == (6, 4, 6 * 128)
    assert t.tokens_per_second == pytest.approx(128 / t.seconds_per_step)
    low, high = t.seconds_per_step_quartiles
    assert 0 < low <= t.seconds_per_step <= high < t.seconds
    plain = train(tmp_path, train__max_steps=3, runtime__meter_tensors=False)[0].train
    assert plain.peak_tensor_bytes is None and plain.timed_steps == 2
    one = train(tmp_path / "one", train__max_steps=1)[0].train
    assert (one.timed_steps, one.peak_tensor_bytes, one.seconds_per_step_quartiles) == (1, None, None)


# --- a loss that is no number


@pytest.mark.promise("diverges")
def test_a_loss_that_is_no_number_stops_the_run(tmp_path):
    _, s = tiny.arm("full")
    model, forwards = tiny.trainable("full", s), []

    def poison(module, args, output):
        if model.training:
            forwards.append(1)
            return output * (torch.nan if len(forwards) == 3 else 1.0)

    model.model.norm.register_forward_hook(poison)
    outcome, _ = train(tmp_path, "full", model)
    assert outcome.stopped == "loss was not a finite number at step 3"
    t = outcome.train
    assert (t.steps, len(t.loss), len(t.learning_rate), t.tokens) == (2, 2, 2, 2 * 128)
    assert len(forwards) == 3 and "NaN" not in t.model_dump_json()


def test_poisoned_weights_stop_at_once(tmp_path):
    _, s = tiny.arm("lora")
    model = tiny.trainable("lora", s)
    with torch.no_grad():
        model.base_model.model.model.norm.weight.fill_(torch.nan)
    outcome, _ = train(tmp_path, "lora", model)
    assert outcome.stopped == "eval_loss was not a finite number at step 0"
    t = outcome.train
    assert (t.steps, t.loss, t.eval_loss, t.eval_steps) == (0, [], [], [])
    json.dumps(t.model_dump(), allow_nan=False)


def test_a_rate_that_is_far_too_high_does_not_crash(tmp_path):
    outcome, _ = train(tmp_path, "full", train__learning_rate=1.0, train__max_steps=4, train__warmup_steps=0, train__max_grad_norm=1e9)
    json.dumps(outcome.train.model_dump(), allow_nan=False)
    assert outcome.stopped or outcome.train.loss[-1] > outcome.train.loss[0]


def poisoned(out, bad_step: int, times: float, **settings):
    """A full fine-tuning whose loss is multiplied from `bad_step` on, with a checkpoint at every step."""
    _, s = tiny.arm("full")
    model, steps = tiny.trainable("full", s), []

    def spoil(module, args, output):
        if model.training:
            steps.append(1)
            return output * (times if len(steps) >= bad_step else 1.0)

    model.model.norm.register_forward_hook(spoil)
    return train(out, "full", model, train__save_every=1, train__eval_every=50, **settings)[0]


@pytest.mark.promise("diverges")
def test_the_last_checkpoint_before_a_bad_loss_is_kept(tmp_path):
    outcome = poisoned(tmp_path, bad_step=4, times=math.nan, train__max_steps=8)
    assert outcome.stopped == "loss was not a finite number at step 4"
    # Step 4 has the loss of what step 3 left, so 2 is the newest whose weights are known to be good.
    assert outcome.kept == "kept of the run that stopped: checkpoints/checkpoint-2"
    assert [p.name for p in (tmp_path / "checkpoints").glob("checkpoint-*")] == ["checkpoint-2"]
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"


@pytest.mark.promise("diverges")
def test_a_loss_that_diverges_stops_the_run_and_one_that_rises_does_not(tmp_path):
    far = poisoned(tmp_path / "far", bad_step=3, times=1e3, train__max_steps=30, train__learning_rate=1e-9)
    assert re.match("the loss has diverged: above 2 times that of the first step for 5 steps, at step 7$", far.stopped)
    assert "checkpoint-1" in far.kept or "no checkpoint" in far.kept
    near = poisoned(tmp_path / "near", bad_step=3, times=1.5, train__max_steps=12, train__learning_rate=1e-9)
    assert near.stopped is None and near.train.steps == 12


@pytest.mark.parametrize("losses, vocabulary, said", [
    ([2.0] + [9.0] * 5, 8, True), ([2.0] + [9.0] * 4, 8, False), ([2.0] + [9.0] * 4 + [3.0], 8, False),
    ([2.0] + [9.0] * 5, 50_000, False), ([2.0] + [22.0] * 5, 50_000, True), ([9.0] * 6, 8, False), ([], 8, False),
])  # fmt: skip
def test_diverged_is_far_above_the_start_and_above_knowing_nothing(losses, vocabulary, said):
    assert training.diverged(losses, vocabulary) is said


# --- interruption and resumption


@pytest.mark.promise("asked-to-leave")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_asked_to_leave_it_ends_the_step_with_a_checkpoint(tmp_path, reference, monkeypatch, number, code):
    before = signal.getsignal(number)

    def ask(self, args, state, control, **_):
        if state.global_step == 2:
            os.kill(os.getpid(), number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Progress, "on_step_begin", ask, raising=False)
        with pytest.raises(Left) as left:
            train(tmp_path, "qlora")  # which saves none by itself
    assert (left.value.exit_code, left.value.step) == (code, 3) and signal.getsignal(number) is before
    assert newest_checkpoint(tmp_path).name == "checkpoint-3"
    resumed, model = train(tmp_path, "qlora")
    whole, expected = reference["qlora"]
    assert resumed.train.resumed_from_step == 3 and numbers(resumed) == numbers(whole)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), expected.parameters()))


@pytest.mark.promise("asked-to-leave")
def test_asked_in_the_last_step_it_keeps_that_too(tmp_path, reference):
    def ask(self, args, state, control, **_):
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Progress, "on_step_begin", ask, raising=False)
        with pytest.raises(Left):
            train(tmp_path, "lora")
    resumed, _ = train(tmp_path, "lora")
    assert resumed.train.resumed_from_step == 6 and numbers(resumed) == numbers(reference["lora"][0])


def test_asked_twice_it_leaves_at_once(tmp_path):
    def ask(self, args, state, control, **_):
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Progress, "on_step_begin", ask, raising=False)
        with pytest.raises(KeyboardInterrupt) as left:
            train(tmp_path, "lora")
    assert not isinstance(left.value, Left) and newest_checkpoint(tmp_path) is None


def interrupted(out, method, after, **settings):
    """A run that ends by force in the middle of step `after + 1`."""

    def end(self, args, state, control, **_):
        if state.global_step == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Progress, "on_step_begin", end, raising=False)
        with pytest.raises(KeyboardInterrupt):
            train(out, method, train__save_every=2, **settings)


@pytest.mark.promise("resumed")
@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path, reference, method):
    interrupted(tmp_path, method, after=5)
    resumed, model = train(tmp_path, method, train__save_every=2)
    whole, expected = reference[method]
    assert resumed.train.resumed_from_step == 4 and whole.train.resumed_from_step is None
    assert numbers(resumed) == numbers(whole)
    for (name, p), q in zip(model.named_parameters(), expected.parameters()):
        assert torch.equal(p, q), name
    r, w = resumed.train, whole.train
    assert (r.gradient_bytes, r.optimizer.state_bytes) == (w.gradient_bytes, w.optimizer.state_bytes)
    assert r.peak_tensor_bytes == pytest.approx(w.peak_tensor_bytes, rel=0.2)  # measured before the interruption
    assert (r.steps, r.timed_steps) == (6, 3)  # and the first step after it is as disturbed as any first


@pytest.mark.promise("resumed")
@pytest.mark.only_in_make_faults
def test_resuming_inside_accumulated_and_checkpointed_steps(tmp_path):
    settings = dict(train__batch_size=2, train__gradient_accumulation_steps=2, train__gradient_checkpointing=True)
    whole, expected = train(tmp_path / "whole", "lora", **settings)
    interrupted(tmp_path / "cut", "lora", after=3, **settings)
    resumed, model = train(tmp_path / "cut", "lora", train__save_every=2, **settings)
    assert resumed.train.resumed_from_step == 2 and numbers(resumed) == numbers(whole)


@pytest.mark.promise("damaged-file")
def test_a_checkpoint_without_its_marker_is_ignored(tmp_path, reference):
    interrupted(tmp_path, "lora", after=5)
    newest = newest_checkpoint(tmp_path)
    assert newest.name == "checkpoint-4"
    (newest / COMPLETE).unlink()
    (tmp_path / "checkpoints" / "checkpoint-10").mkdir()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
    resumed, _ = train(tmp_path, "lora", train__save_every=2)
    assert resumed.train.resumed_from_step == 2 and numbers(resumed) == numbers(reference["lora"][0])
    assert newest_checkpoint(tmp_path / "nowhere") is None


def test_the_newest_checkpoint_is_by_number(tmp_path):
    for step in (8, 10, 9):
        folder = tmp_path / "checkpoints" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        seal(folder, {})
    seal_of_somebody = tmp_path / "checkpoints" / "checkpoint-best"
    seal_of_somebody.mkdir()
    seal(seal_of_somebody, {})
    assert newest_checkpoint(tmp_path).name == "checkpoint-10"


DAMAGE = {
    "truncated": lambda folder: os.truncate(folder / "optimizer.pt", 100),
    "altered": lambda folder: (folder / "adapter_model.safetensors").write_bytes((folder / "adapter_model.safetensors").read_bytes()[:-1] + b"?"),
    "removed": lambda folder: (folder / "rng_state.pth").unlink(),
    "no marker": lambda folder: (folder / COMPLETE).unlink(),
    "half a marker": lambda folder: os.truncate(folder / COMPLETE, 40),
    "another file's marker": lambda folder: (folder / COMPLETE).write_text("[]"),
}


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(tmp_path, reference, capfd, damage):
    interrupted(tmp_path, "lora", after=5)
    DAMAGE[damage](tmp_path / "checkpoints" / "checkpoint-4")
    capfd.readouterr()
    resumed, _ = train(tmp_path, "lora", train__save_every=2)
    assert resumed.train.resumed_from_step == 2 and numbers(resumed) == numbers(reference["lora"][0])
    assert ("checkpoint-4 is passed over: " in capfd.readouterr().err) == (damage != "no marker")


@pytest.mark.promise("hostile-file")
def test_a_checkpoint_that_runs_code_when_read_is_refused(tmp_path):
    """Its marker fits, as an attacker would write it; Trainer reads its states with `weights_only=True`."""
    interrupted(tmp_path, "lora", after=5)
    folder, witness = tmp_path / "checkpoints" / "checkpoint-4", tmp_path / "it ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(witness),)

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Attack(), folder / name)
    seal(folder, measured_until(folder))
    with pytest.raises(pickle.UnpicklingError):
        train(tmp_path, "lora", train__save_every=2)
    assert not witness.exists()


def test_nothing_is_printed_on_standard_output(tmp_path, capfd):
    train(tmp_path, train__max_steps=1)
    assert capfd.readouterr().out == ""
