"""Greedy decoding at batch 1, stock against ours and against llama.cpp: exactly `new_tokens` tokens after a prompt.

How it works: each arm is a function that makes n tokens, the prompt read anew each time and the end of text not
allowed to stop it. Stock is transformers' `generate`; ours is `fast.Decoder`; llama.cpp runs a .gguf file of the same
model, in that file's own 4-bit format, where its Python binding is installed. All use the same number of threads. A
short warm-up, in which ours is compiled, is left out.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from qlora_lib.bench.loading import InferenceModels
from qlora_lib.bench.record import Measurement
from qlora_lib.bench.rounds import in_turns
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.threads import use_threads
from qlora_lib.errors import one_line
from qlora_lib.fast.decoders import end_tokens, greedy
from qlora_lib.metrics.sizes import model_bytes
from qlora_lib.progress import say

WARM_UP = 3  # tokens


@dataclass(frozen=True)
class DecodeArm:
    name: str
    what: str
    run: Callable[[int], list[int]] | None  # n -> n tokens
    reason: str | None = None  # why there is nothing to run
    model_bytes: int | None = None


def measure_decoding(
    models: InferenceModels, ids: torch.Tensor, gguf: tuple[Path | None, str | None], settings: BenchSettings
) -> tuple[list[Measurement], dict[str, int | None]]:
    """(measurements, greedy tokens for which ours equals stock, by model).

    Args:
        ids: [1, T], the prompt.
        gguf: the file that llama.cpp reads, or None and the reason.
    """
    say(f"decoding, {settings.new_tokens} tokens after a prompt of {ids.shape[1]}")
    arms = [
        stock_arm("decode.fp32.stock", "fp32, transformers' generate", models.fp32, ids),
        fast_arm("decode.fp32.fast", "fp32, qlora_lib's decoder", models.fp32, ids),
        stock_arm("decode.nf4dq_adapter.stock", "NF4 + DQ with adapter, transformers' generate", models.stock_4bit, ids),
        fast_arm("decode.nf4dq_adapter.fast", "NF4 + DQ with adapter, qlora_lib's decoder", models.fast_4bit, ids),
        merged_arm("decode.nf4dq_merged.fast", models.fast_4bit, ids),
        llama_cpp_arm("decode.llama_cpp", *gguf, ids, settings.new_tokens),
    ]
    runs = {arm.name: arm.run for arm in arms if arm.run}
    for run in runs.values():
        run(WARM_UP)
    use_threads()  # numba has started its own
    made: dict[str, list[int]] = {}

    def make(name: str, _: int) -> None:
        made[name] = runs[name](settings.new_tokens)

    seconds = in_turns({name: partial(make, name) for name in runs}, settings.repeats)
    measurements = [
        Measurement.timed(a.name, a.what, settings.new_tokens, seconds[a.name], model_bytes=a.model_bytes)
        if a.run
        else Measurement.missing(a.name, a.what, settings.new_tokens, a.reason)
        for a in arms
    ]
    same = {m: _agree(made.get(f"decode.{m}.fast"), made.get(f"decode.{m}.stock")) for m in ("fp32", "nf4dq_adapter")}
    return measurements, same


def _agree(a: list[int] | None, b: list[int] | None) -> int | None:
    """Tokens before the first that differs; None where a side was not run."""
    if a is None or b is None:
        return None
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), len(a))


def stock_arm(name: str, what: str, model, ids: torch.Tensor) -> DecodeArm:
    ends = end_tokens(model)

    @torch.no_grad()
    def run(n: int) -> list[int]:
        out = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=n, max_new_tokens=n,
            use_cache=True, pad_token_id=ends[0] if ends else 0,
        )  # fmt: skip
        return out[0, ids.shape[1] :].tolist()

    return DecodeArm(name, what, run, model_bytes=model_bytes(model).total)


def compiled_decoder(model):
    """(decoder, None), or (None, why it does not apply)."""
    try:
        from qlora_lib.fast.decoder import Decoder
    except ImportError as e:
        return None, f"the compiled decoder needs {e.name}, which is not installed"
    except RuntimeError as e:  # numba has no folder where it may keep what it compiles
        return None, f"the compiled decoder cannot be made here: {one_line(str(e))}"
    decoder = Decoder.of(model)
    return decoder, None if decoder else "the compiled decoder does not know this model or this processor"


def fast_arm(name: str, what: str, model, ids: torch.Tensor) -> DecodeArm:
    decoder, reason = compiled_decoder(model)
    if decoder is None:
        return DecodeArm(name, what, None, reason)

    def run(n: int) -> list[int]:
        return greedy(decoder, decoder.start(ids, ids.shape[1] + n), n)

    return DecodeArm(name, what, run, model_bytes=model_bytes(model).total)


def merged_arm(name: str, model, ids: torch.Tensor) -> DecodeArm:
    """The 4-bit model with its adapter switched off: the work of one whose adapter was merged and quantized again."""
    what = "NF4 + DQ without its adapter, as after merging and quantizing again, qlora_lib's decoder"
    with model.disable_adapter():
        arm = fast_arm(name, what, model, ids)
    if arm.run is None:
        return arm

    def run(n: int) -> list[int]:
        with model.disable_adapter():
            return arm.run(n)

    return replace(arm, run=run, model_bytes=model_bytes(model).base)


def llama_cpp_arm(name: str, gguf: Path | None, reason: str | None, ids: torch.Tensor, new_tokens: int) -> DecodeArm:
    if gguf is None:
        return DecodeArm(name, "llama.cpp", None, reason)
    import llama_cpp

    threads, prompt = torch.get_num_threads(), ids[0].tolist()
    llm = llama_cpp.Llama(
        model_path=str(gguf), n_ctx=len(prompt) + new_tokens, n_threads=threads, n_threads_batch=threads, verbose=False
    )

    def run(n: int) -> list[int]:
        llm.reset()
        llm.eval(prompt)
        made = [llm.sample(temp=0.0)]
        while len(made) < n:
            llm.eval(made[-1:])
            made.append(llm.sample(temp=0.0))
        return made

    return DecodeArm(name, f"llama.cpp, {gguf.name}", run, model_bytes=gguf.stat().st_size)
