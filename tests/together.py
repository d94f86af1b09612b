"""What two processes do together, for test_processes.py: it is started twice, and each process writes what it saw.

The trainings are `train` of this module with two processes; the test makes the same ones alone.
"""

import os
import signal
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import tiny
import torch

from qlora_lib import models

models.import_bitsandbytes()  # before `training` does it, in ten times the time

from qlora_lib import processes, sharding, training  # noqa: E402, I001
from qlora_lib.config import Quantization  # noqa: E402
from qlora_lib.errors import QloraError  # noqa: E402
from qlora_lib.leaving import Left  # noqa: E402
from qlora_lib.scoring import prepare_data  # noqa: E402

STILL = {"lora__dropout": 0.0, "train__max_steps": 4, "train__eval_windows": 5, "train__max_grad_norm": 0.1, "runtime__meter_tensors": False}
# (batch, accumulated): a step of four windows, of which two processes share the accumulated batches, or the batch itself
TRAININGS = {
    f"{method}{'' if fast else ', stock'}": (method, "tiny-text", {"runtime__fast": fast, "train__batch_size": batch, "train__gradient_accumulation_steps": 4 // batch})
    for fast in (True, False)
    for method, batch in (("full", 4), ("lora", 2), ("qlora", 2 if fast else 4))
}  # fmt: skip
TRAININGS["responses"] = "qlora", "tiny-instructions", {"data__window_length": 256}  # of unequal lengths


def train(out: Path, method: str, name: str = "tiny-text", model=None, **settings):
    """(outcome, model) of a short run of the `smoke` profile's arm, by all processes there are."""
    given = {"data__name": name, "runtime__processes": processes.current().world} | settings
    _, s = tiny.arm(method, **given)
    data = tiny.data() if name == "tiny-text" else prepare_data(s, models.load_tokenizer(tiny.folder()))
    model = model or tiny.trainable(method, s)
    return training.train(model, data, s, tiny.FP32, "cpu", out), model


def seen(outcome, model) -> dict:
    """All that does not depend on the clock."""
    t = outcome.train
    numbers = {k: getattr(t, k) for k in ("steps", "tokens", "loss", "eval_loss", "eval_steps", "learning_rate", "grad_norm", "response_tokens")}
    weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    return numbers | {"weights": weights, "stopped": outcome.stopped, "kept": outcome.kept, "resumed": t.resumed_from_step, "meter": t.peak_memory_meter}


@contextmanager
def at_step(step: int, act):
    """A context in which `act()` is called at the beginning of the step after `step`."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == step:
            act()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training._Leave, "on_step_begin", on_step_begin, raising=False)
        yield


def interrupted(out: Path, **settings) -> dict:
    """A run with dropout that every process breaks off in its sixth step, and the one that goes on; an uninterrupted one."""

    def end():
        raise KeyboardInterrupt

    settings = {"train__save_every": 2, "lora__dropout": 0.3, "runtime__meter_tensors": False} | settings
    with at_step(5, end), suppress(KeyboardInterrupt):
        train(out / "cut", "lora", **settings)
    states = [torch.load(out / "cut" / "checkpoints" / "checkpoint-4" / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in (0, 1)]
    return {
        "same states": torch.equal(*states),
        "resumed": seen(*train(out / "cut", "lora", **settings)),
        "whole": seen(*train(out / "whole", "lora", **settings)),
    }


def left(out: Path, rank: int) -> tuple:
    """How this process leaves when the second one alone is asked to."""
    with at_step(1, lambda: rank == 1 and os.kill(os.getpid(), signal.SIGTERM)):
        try:
            train(out, "lora", **STILL)
        except Left as e:
            return e.exit_code, e.step, sorted(p.name for p in (out / "checkpoints" / f"checkpoint-{e.step}").glob("rng*"))


def poisoned(out: Path, rank: int) -> dict:
    """A run in which the second process alone has a loss that is no number, in the third step."""
    _, s = tiny.arm("full")
    model, steps = tiny.trainable("full", s), []

    def spoil(module, args, output):
        if model.training:
            steps.append(1)
            return output * (torch.nan if rank == 1 and len(steps) == 3 else 1.0)

    model.model.norm.register_forward_hook(spoil)
    return seen(*train(out, "full", model=model, **STILL, train__save_every=1))


def other_number(out: Path) -> str:
    try:
        train(out, "lora", runtime__processes=3, train__batch_size=3)
    except QloraError as e:
        return str(e)


def flattened() -> dict:
    """FSDP over 4-bit weights that are stored as fp32: PEFT's policy, real flattening, and the loss of the whole model."""
    from peft.utils.other import fsdp_auto_wrap_policy
    from torch.distributed.fsdp import FullyShardedDataParallel

    _, s = tiny.arm("qlora", lora__dropout=0.0)
    ids, losses, gradients = tiny.ids(2, 24), [], []
    for shards in (False, True):
        base = models.load_base(tiny.folder(), Quantization(format="nf4"), torch.float32, "cpu", torch.float32)
        model = sharding.adapters_to(models.attach_lora(sharding.prepare_for_training(base, "qlora", False), s.lora, 0), torch.float32)
        whole = sum(p.numel() for p in model.parameters())
        if shards:
            model = FullyShardedDataParallel(
                model, auto_wrap_policy=fsdp_auto_wrap_policy(model), use_orig_params=False, device_id=torch.device("cpu")
            )
        mine = sum(p.numel() for p in model.parameters())
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        norm = model.clip_grad_norm_(1e9) if shards else torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
        losses.append(loss.item()), gradients.append(float(norm))
    return {"losses": losses, "gradients": gradients, "mine": mine, "whole": whole}


def main(out: Path) -> None:
    torch.set_num_threads(1)
    together = processes.join("cpu")
    rank = together.rank
    found = {
        "talk": (together.rank, together.highest(5 * rank), together.gather("ab"[rank]), together.from_first(lambda: f"from {rank}")),
        **{case: seen(*train(out / case, method, name, **STILL | settings)) for case, (method, name, settings) in TRAININGS.items()},
        "interrupted": interrupted(out / "interrupted"),
        "left": left(out / "left", rank),
        "poisoned": poisoned(out / "poisoned", rank),
        "other number": other_number(out / "other"),
        "flattened": flattened(),
        "speaks": (together.wait(), processes.speaks())[1],
    }
    torch.save(found, out / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
