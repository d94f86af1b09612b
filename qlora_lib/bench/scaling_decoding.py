"""How decoding grows: with the tokens in the cache, with the sequences made at a time, and the time to the first token.

How it works: prompts are windows of the training text. After a cache filled with T tokens, `cached.py` times the tokens
that follow, so the cache holds T to T + `new_tokens` tokens meanwhile. The first token is timed from the prompt to the
choice, weights loaded and code compiled. Ours makes one sequence with the compiled decoder; several at a time are made by
transformers' `generate` on the forwards of the fast path, and the point says which it was.
"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch

from qlora_lib.bench.cached import Continuation, FastContinuation, StockContinuation
from qlora_lib.bench.decoding import compiled_decoder, fast_arm, stock_arm
from qlora_lib.bench.loading import InferenceModels
from qlora_lib.bench.record import ScalingPoint
from qlora_lib.bench.rounds import Work, in_turns_where_it_fits
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.threads import use_threads
from qlora_lib.data import pack
from qlora_lib.errors import QloraError
from qlora_lib.fast.install import install, uninstall
from qlora_lib.progress import say

FAST = "nf4dq_adapter.fast"
GENERATE, DECODER = "transformers' generate", "qlora_lib's compiled decoder"
PREFILL = "the prompt read by transformers' forward, as the compiled decoder begins"
BATCHED = "transformers' generate on forwards of the fast path: the compiled decoder makes one sequence at a time"


def prompts_of(tokens: np.ndarray, count: int, length: int) -> torch.Tensor:
    """ids [count, length]: windows of the text in its order; a short text comes round again."""
    windows = pack(tokens, length)
    if len(windows) == 0:
        raise QloraError(f"the training text has {len(tokens)} tokens, and one prompt of the scaling needs {length}")
    return torch.from_numpy(windows[np.arange(count) % len(windows)].astype(np.int64))


def measure_decoding_scaling(models: InferenceModels, tokens: np.ndarray, settings: BenchSettings) -> list[ScalingPoint]:
    """The series decode.context, decode.batch and first_token.prompt. tokens: [tokens], the training text."""
    grid, points = settings.grid, []
    for context in grid.contexts:
        points += _decoded(models, "decode.context", context, prompts_of(tokens, 1, context + 1), settings)
    install(models.fast_4bit)
    try:
        for count in grid.sequences:
            points += _decoded(models, "decode.batch", count, prompts_of(tokens, count, grid.contexts[0] + 1), settings)
    finally:
        uninstall(models.fast_4bit)
    for length in grid.prompts:
        points += _first_token(models, length, prompts_of(tokens, 1, length), settings)
    return points


def continuations(models: InferenceModels, ids: torch.Tensor, new_tokens: int) -> Iterator[tuple[str, str, Continuation | str]]:
    """(arm, what runs, how to run it or why it cannot) for ids [B, T + 1]."""
    yield "fp32.stock", GENERATE, StockContinuation(models.fp32, ids, new_tokens)
    yield "nf4dq_adapter.stock", GENERATE, StockContinuation(models.stock_4bit, ids, new_tokens)
    if len(ids) > 1:
        yield FAST, BATCHED, StockContinuation(models.fast_4bit, ids, new_tokens)
        return
    decoder, reason = compiled_decoder(models.fast_4bit)
    yield FAST, DECODER, FastContinuation(decoder, ids, new_tokens) if decoder else reason


def _decoded(models: InferenceModels, series: str, x: int, ids: torch.Tensor, settings: BenchSettings) -> list[ScalingPoint]:
    """One place of a series: new tokens after ids [B, T + 1]."""
    arms = list(continuations(models, ids, settings.grid.new_tokens))
    works = {name: _work(how) for name, _, how in arms if not isinstance(how, str)}
    impossible = {name: how for name, _, how in arms if isinstance(how, str)}
    words = {name: what for name, what, _ in arms}
    return _points(series, x, len(ids) * settings.grid.new_tokens, words, works, impossible, settings.scaling_repeats)


def _work(how: Continuation) -> Work:
    def prepare() -> None:
        how.fill()
        how.ready()
        how.run()

    return Work(prepare, lambda _: how.ready(), lambda _: how.run())


def _first_token(models: InferenceModels, length: int, ids: torch.Tensor, settings: BenchSettings) -> list[ScalingPoint]:
    """ids: [1, length]."""
    arms = [
        stock_arm("fp32.stock", GENERATE, models.fp32, ids),
        stock_arm("nf4dq_adapter.stock", GENERATE, models.stock_4bit, ids),
        fast_arm(FAST, PREFILL, models.fast_4bit, ids),
    ]
    works = {arm.name: Work(partial(arm.run, 1), lambda _: None, lambda _, run=arm.run: run(1)) for arm in arms if arm.run}
    impossible = {arm.name: arm.reason for arm in arms if not arm.run}
    words = {arm.name: arm.what for arm in arms}
    return _points("first_token.prompt", length, length, words, works, impossible, settings.scaling_repeats)


def _points(series, x: int, tokens: int, words: dict, works: dict, impossible: dict, repeats: int) -> list[ScalingPoint]:
    say(f"scaling, {series} {x}")
    use_threads()  # numba starts its own with the first decoder
    seconds, reasons = in_turns_where_it_fits(works, repeats)
    reasons |= impossible
    return [
        ScalingPoint.timed(seconds[arm], tokens, series=series, arm=arm, what=what, x=x)
        if arm in seconds
        else ScalingPoint(series=series, arm=arm, what=what, x=x, tokens=tokens, reason=reasons[arm])
        for arm, what in words.items()
    ]
