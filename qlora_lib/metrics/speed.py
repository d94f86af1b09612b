"""Greedy decode speed: new tokens a second and the latency of a whole answer.

Protocol: one prompt, batch 1, key/value cache, greedy, exactly `new_tokens` tokens (the end of
text is not allowed to stop it); a short warm-up is left out; the median of the repeats is given.
The latency includes reading the prompt.
"""

import statistics
import time
from functools import partial

import torch

from qlora_lib.errors import UsageError
from qlora_lib.fast.decoders import fast_decoder, greedy
from qlora_lib.records import Generation


def decode_speed(model, tokenizer, prompt: str, new_tokens: int, repeats: int, fast: bool = True) -> Generation:
    """Time greedy decoding on one prompt by a decoder of qlora_lib.fast where one applies, or else by `model.generate`."""
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    prompt_tokens = inputs["input_ids"].shape[1]
    if prompt_tokens == 0:
        raise UsageError("the prompt holds no token", "Give some text: evaluation.prompt")
    was_training, use_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        decoder = fast_decoder(model) if fast else None
        if decoder is None:
            work = partial(_generate, model, tokenizer, inputs)
        else:
            work = partial(_decode, decoder, inputs, prompt_tokens + new_tokens)
        work(min(4, new_tokens))  # warm-up; what is compiled is compiled here
        first = _timed(model, work, 1)[0]
        runs = [_timed(model, work, new_tokens) for _ in range(repeats)]
    finally:
        model.train(was_training)
        model.config.use_cache = use_cache
    latency = statistics.median(seconds for seconds, _ in runs)
    return Generation(
        tokens_per_second=new_tokens / latency,
        latency_seconds=latency,
        first_token_seconds=first,
        new_tokens=new_tokens,
        prompt_tokens=prompt_tokens,
        repeats=[seconds for seconds, _ in runs],
        protocol=(
            f"greedy, batch 1, {new_tokens} new tokens after a prompt of {prompt_tokens}, key/value cache, "
            f"median of {repeats}, warm-up left out"
        ),
        sample=tokenizer.decode(runs[0][1], skip_special_tokens=True),
        engine="transformers" if decoder is None else "fast",
    )


def _timed(model, work, new_tokens: int) -> tuple[float, list[int]]:
    _wait(model)
    start = time.perf_counter()
    output = work(new_tokens)
    _wait(model)
    return time.perf_counter() - start, output


def _wait(model) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize()


@torch.no_grad()
def _generate(model, tokenizer, inputs, new_tokens: int) -> list[int]:
    """The new tokens, by transformers."""
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    output = model.generate(
        **inputs, do_sample=False, min_new_tokens=new_tokens, max_new_tokens=new_tokens, use_cache=True, pad_token_id=pad
    )
    return output[0, inputs["input_ids"].shape[1] :].tolist()


def _decode(decoder, inputs, capacity: int, new_tokens: int) -> list[int]:
    """The same by the decoder, whose cache holds `capacity` tokens."""
    return greedy(decoder, decoder.start(inputs["input_ids"], capacity), new_tokens)
