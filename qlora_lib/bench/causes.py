"""Where the time of a 4-bit token goes: dequantization, adapter products, memory traffic, and the rest.

How it works: the study that this project repeats ("QLoRA Fine-Tuning of LLaMA Models: A Comprehensive Performance
Analysis", Amine Idrissi and Zakaria Choukri, section 4.5) attributes QLoRA's slow decoding to three causes: the
dequantization of the base model, the additional matrix operations of the adapters, and memory bandwidth. It does not say
how much each takes. Here each is measured on the model's own modules at batch 1, in turns with the tokens that it
is a part of:

- dequantization: bitsandbytes' `dequantize_4bit` of every 4-bit module, one after another;
- adapter products: PEFT's `result.clone() + B(A(dropout(x))) * scaling` of every adapted module; of the compiled
  decoder the difference of its tokens with and without the adapter;
- memory traffic: the bytes of weights that the products of a token read, adapters left out (their reading is in the
  time of their products), at the read bandwidth that `limits` holds. Stock's products read the dequantized fp32 weights.
  Writing those, and reading the 4-bit ones, happens inside dequantization and is counted there alone;
- everything else: the time of a token less those. It holds attention, norms, the head's arithmetic and Python, and the
  error of taking apart what a processor overlaps, so it may be small or below zero; it is kept as it comes out.

Where bitsandbytes multiplies by 4-bit weights directly (CPUs with AVX512-BF16), nothing is dequantized apart from the
product. Stock is then measured as it is, with that part null, and once more with the fused product switched off.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from qlora_lib.bench.cached import Continuation, FastContinuation, StockContinuation
from qlora_lib.bench.decoding import compiled_decoder
from qlora_lib.bench.loading import InferenceModels, bytes_per_token
from qlora_lib.bench.record import Cause
from qlora_lib.bench.rounds import in_turns
from qlora_lib.bench.scaling_decoding import prompts_of
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.threads import use_threads
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.progress import say

STOCK, UNFUSED, FAST = "nf4dq_adapter.stock", "nf4dq_adapter.stock_unfused", "nf4dq_adapter.fast"
DEQUANTIZATION, ADAPTER, TRAFFIC, REST = "dequantization", "adapter products", "memory traffic", "everything else"


@dataclass(frozen=True)
class Parts:
    """What was measured of one arm, in seconds a token; None where the words say why."""

    arm: str
    what_token: str
    token: float | None
    dequantization: float | None
    what_dequantization: str
    adapter: float | None
    what_adapter: str
    bytes_read: int | None
    what_traffic: str


def taken_apart(parts: Parts, bytes_per_second: float) -> list[Cause]:
    """The four causes of one arm; those that are known add up to the time of a token."""
    traffic = parts.bytes_read / bytes_per_second if parts.bytes_read is not None else None
    known = [s for s in (parts.dequantization, parts.adapter, traffic) if s is not None]
    rest = parts.token - sum(known) if parts.token is not None else None
    words = parts.what_token
    if rest is not None:
        words = f"{words}, {parts.token:.4g} s, less the parts above"
        if parts.dequantization is None:
            words += "; dequantization is in it"
        if rest < 0:
            words += "; below zero, since the parts overlap in a token and were measured one by one"
    return [
        Cause(arm=parts.arm, cause=cause, seconds_per_token=seconds, what=what)
        for cause, seconds, what in (
            (DEQUANTIZATION, parts.dequantization, parts.what_dequantization),
            (ADAPTER, parts.adapter, parts.what_adapter),
            (TRAFFIC, traffic, parts.what_traffic),
            (REST, rest, words),
        )
    ]


def measure_causes(models: InferenceModels, tokens: np.ndarray, settings: BenchSettings) -> list[Parts]:
    """Stock, where its product is fused stock unfused, and ours. tokens: [tokens], the training text."""
    grid = settings.grid
    n, context = grid.new_tokens, grid.contexts[0]
    say(f"causes: {n} tokens at a time after {context}, and their parts")
    ids = prompts_of(tokens, 1, context + 1)
    fused = is_fused(models.stock_4bit)
    stock = {STOCK: models.stock_4bit} | ({UNFUSED: models.fast_4bit} if fused else {})  # the latter is never repacked
    tasks: dict[str, Callable] = {}
    ready: dict[str, Callable] = {}

    def add(name: str, run: Callable[[], object], before: Callable[[], object] = lambda: None) -> None:
        tasks[name], ready[name] = lambda _: run(), lambda _: before()

    def add_tokens(name: str, how: Continuation) -> None:
        how.fill()
        add(name, how.run, how.ready)

    for arm, model in stock.items():
        add_tokens(arm, StockContinuation(model, ids, n))
    weights = four_bit_weights(models.fast_4bit)
    add(DEQUANTIZATION, _times(n, lambda: dequantize_all(weights)))
    products = adapter_products(models.fast_4bit)
    add(ADAPTER, _times(n, products))
    with_adapter, reason = compiled_decoder(models.fast_4bit)
    if with_adapter is not None:
        add_tokens(FAST, FastContinuation(with_adapter, ids, n))
        with models.fast_4bit.disable_adapter():  # only while the decoder is made and reads the text
            add_tokens("without", FastContinuation(compiled_decoder(models.fast_4bit)[0], ids, n))
    use_threads()
    for name, run in tasks.items():  # warm-up
        ready[name](0)
        run(0)
    seconds = {name: [s / n for s in each] for name, each in in_turns(tasks, settings.scaling_repeats, ready).items()}
    median = {name: statistics.median(each) for name, each in seconds.items()}
    found = [_stock_parts(arm, median, fused and arm == STOCK, models) for arm in stock]
    return [*found, _fast_parts(seconds, reason, models)]


def is_fused(model) -> bool:
    """Whether bitsandbytes multiplies by this model's 4-bit weights without dequantizing them first."""
    return any(getattr(module, "support_avx512bf16_for_cpu", False) for module in model.modules())


def _stock_parts(arm: str, median: dict[str, float], fused: bool, models: InferenceModels) -> Parts:
    switched_off = ", bitsandbytes' fused product switched off" if arm == UNFUSED else ""
    return Parts(
        arm=arm,
        what_token=f"the time of a token of transformers' generate{switched_off}",
        token=median[arm],
        dequantization=None if fused else median[DEQUANTIZATION],
        what_dequantization=(
            "not measured: on this processor bitsandbytes multiplies by the 4-bit weights, and dequantizes inside the product"
            if fused
            else "bitsandbytes' dequantize_4bit of every 4-bit module of the model, one after another"
        ),
        adapter=median[ADAPTER],
        what_adapter="PEFT's clone of the output, product with A and B, scaling and sum, of every adapted module at batch 1",
        bytes_read=stored_bytes(models.stock_4bit) if fused else bytes_per_token(models.fp32),
        what_traffic=(
            "bytes of the 4-bit weights and of the fp32 head at the measured read bandwidth"
            if fused
            else "bytes of the dequantized fp32 weights and of the head, read once more by the products, at the measured read "
            "bandwidth; writing them is in the time of dequantization"
        ),
    )


def _fast_parts(seconds: dict[str, list[float]], reason: str | None, models: InferenceModels) -> Parts:
    """reason: why there is no compiled decoder."""
    adapter = token = traffic = None
    if reason is None:
        token = statistics.median(seconds[FAST])
        adapter = statistics.median(a - b for a, b in zip(seconds[FAST], seconds["without"]))
        traffic = looked_up_bytes(models.fast_4bit)
    missing = f"not measured: {reason}"
    return Parts(
        arm=FAST,
        what_token=missing if reason else "the time of a token of the compiled decoder",
        token=token,
        dequantization=None,
        what_dequantization=missing if reason else "not measured: weights are looked up in registers, inside the products",
        adapter=adapter,
        what_adapter=missing if reason else "a token of the compiled decoder with the adapter less one without, round by round",
        bytes_read=traffic,
        what_traffic=missing
        if reason
        else "bytes of the 4-bit weights, of their fp32 scales and of the fp32 head at the measured read bandwidth",
    )


def _times(n: int, run: Callable[[], object]) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(n):
            run()

    return repeated


def four_bit_weights(model) -> list:
    return [p for p in model.parameters() if getattr(p, "quant_state", None) is not None]


def stored_bytes(model) -> int:
    """Bytes of weights that a token reads where they are used as they are stored; adapters left out."""
    return bytes_per_token(model) - model_bytes(model).adapter


def looked_up_bytes(model) -> int:
    """The same of the compiled decoder, which holds the scales of the blocks in fp32."""
    scales = sum(4 * w.quant_state.absmax.numel() for w in four_bit_weights(model))
    return stored_bytes(model) - model_bytes(model).quantization_state + scales


@torch.no_grad()
def dequantize_all(weights: list) -> None:
    """Every 4-bit weight as fp32, each dropped before the next."""
    from bitsandbytes.functional import dequantize_4bit

    for weight in weights:
        dequantize_4bit(weight.data, weight.quant_state)


def adapter_products(model) -> Callable[[], None]:
    """A call that does what the adapters of all modules add to one token, as PEFT's `Linear4bit.forward` does it."""
    places = []
    for module in model.modules():
        if hasattr(module, "lora_A") and module.active_adapters:
            (name,) = module.active_adapters
            a, b, dropout = module.lora_A[name], module.lora_B[name], module.lora_dropout[name]
            x, y = torch.randn(1, 1, a.in_features), torch.randn(1, 1, b.out_features)  # [batch, tokens, width]
            places.append((a, b, dropout, module.scaling[name], x, y))

    @torch.no_grad()
    def run() -> None:
        for a, b, dropout, scaling, x, y in places:
            y.clone() + b(a(dropout(x))) * scaling

    return run
