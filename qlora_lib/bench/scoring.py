"""Perplexity, stock against ours: the same windows, the same batches, the same protocol.

How it works: stock is what write-ups do, all logits of a batch and cross-entropy over them; ours is
`metrics.perplexity` on a model with the fast path installed. Both score every token of a window but its first.
"""

import math
from functools import partial

import numpy as np
import torch
from torch.nn import functional as F

from qlora_lib.bench.record import Measurement
from qlora_lib.bench.rounds import in_turns
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.data import pack
from qlora_lib.errors import QloraError
from qlora_lib.fast.install import install, uninstall
from qlora_lib.metrics.perplexity import perplexity
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.progress import say


@torch.no_grad()
def stock_perplexity(model, windows: np.ndarray, batch_size: int) -> float:
    """exp of the mean negative log-likelihood; windows: [W, T]."""
    total, scored = 0.0, 0
    for start in range(0, len(windows), batch_size):
        batch = torch.from_numpy(windows[start : start + batch_size].astype(np.int64))
        logits = model(input_ids=batch).logits[:, :-1].float()  # [B, T-1, V]
        targets = batch[:, 1:].flatten()
        total += F.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
        scored += len(targets)
    return math.exp(total / scored)


def fast_perplexity(model, windows: np.ndarray, batch_size: int) -> float:
    context = windows.shape[1]
    return perplexity(model, windows.reshape(-1), context, context, batch_size)["perplexity"]


def measure_scoring(models, tokens: np.ndarray, settings: BenchSettings) -> tuple[list[Measurement], dict[str, float]]:
    """(measurements, relative difference of ours from stock, by model). tokens: [tokens], the evaluation text."""
    windows = pack(tokens, settings.context)[: settings.windows]
    if len(windows) == 0:
        raise QloraError(f"the evaluation text has {len(tokens)} tokens, and one window needs {settings.context}")
    say(f"perplexity, {len(windows)} windows of {settings.context} tokens")
    arms = {
        "perplexity.fp32.stock": (models.fp32, stock_perplexity, "fp32, all logits at once"),
        "perplexity.fp32.fast": (models.fp32, fast_perplexity, "fp32, qlora_lib"),
        "perplexity.nf4dq_adapter.stock": (models.stock_4bit, stock_perplexity, "NF4 + DQ with adapter, all logits at once"),
        "perplexity.nf4dq_adapter.fast": (models.fast_4bit, fast_perplexity, "NF4 + DQ with adapter, qlora_lib"),
    }
    found: dict[str, float] = {}

    def ready(name: str, _: int) -> None:
        model = arms[name][0]
        uninstall(model)
        if name.endswith(".fast"):
            install(model)

    def score(name: str, _: int) -> None:
        model, way, _what = arms[name]
        found[name] = way(model, windows, settings.score_batch)

    for name, (model, way, _) in arms.items():  # warm-up
        ready(name, 0)
        way(model, windows[:1], 1)
    seconds = in_turns(
        {name: partial(score, name) for name in arms}, settings.repeats, {name: partial(ready, name) for name in arms}
    )
    for model in (models.fp32, models.fast_4bit):
        uninstall(model)
    scored = windows.size - len(windows)
    measurements = [
        Measurement.timed(name, what, scored, seconds[name], model_bytes=model_bytes(model).total)
        for name, (model, _, what) in arms.items()
    ]
    differences = {
        m: abs(found[f"perplexity.{m}.fast"] / found[f"perplexity.{m}.stock"] - 1) for m in ("fp32", "nf4dq_adapter")
    }
    return measurements, differences
