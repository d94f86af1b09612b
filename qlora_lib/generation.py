"""Stream text from a model, its pieces as they come.

How it works: a decoder of qlora_lib.fast gives the logits of each next token, where it knows the model; the token is then
chosen as transformers chooses it, by its own top-k, top-p and temperature. All else is transformers' `generate`, in a
thread.
"""

from pathlib import Path
from threading import Event, Thread
from typing import Callable, Iterator

import numpy as np

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.fast.decoders import fast_decoder


def stream(
    model: str,
    prompt: str,
    adapter: Path | None = None,
    quantization: str = "none",
    double_quant: bool = True,
    chat: bool = False,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
    dtype: str = "auto",
) -> Iterator[str]:
    """Pieces of the continuation of `prompt` (with `chat`: of the answer to it)."""
    if not prompt.strip():
        raise UsageError("the prompt is empty", "Give some text with --prompt")
    from qlora_lib.evaluation import load_for_use

    loaded, tokenizer, _, _ = load_for_use(model, adapter, quantization, double_quant, dtype)
    yield from stream_from(loaded, tokenizer, prompt, chat, max_new_tokens, temperature, seed)


def stream_from(
    model, tokenizer, prompt: str, chat: bool = False, max_new_tokens: int = 100, temperature: float = 0.0, seed: int = 0
) -> Iterator[str]:
    """The same for a model that is loaded already."""
    import torch
    from transformers import TextIteratorStreamer

    if chat:
        if not tokenizer.chat_template:
            raise UsageError("this model has no chat template", "Leave --chat out")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(model.device)
    decoder = fast_decoder(model, max_new_tokens)
    choose = chooser(model.generation_config, temperature, seed) if decoder else None
    if choose is not None:
        yield from _pieces(tokenizer, _tokens(decoder, choose, inputs.input_ids, max_new_tokens))
        return
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    sampling = {"do_sample": True, "temperature": temperature} if temperature > 0 else {"do_sample": False}
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    failure: list[BaseException] = []
    unwanted = Event()  # set when the reader leaves before the end

    def leave(ids: torch.Tensor, scores: torch.Tensor, **_) -> torch.Tensor:
        return torch.full((len(ids),), unwanted.is_set(), device=ids.device)

    def work() -> None:
        try:
            torch.manual_seed(seed)
            with torch.no_grad():
                model.generate(
                    **inputs,
                    **sampling,
                    max_new_tokens=max_new_tokens,
                    streamer=streamer,
                    pad_token_id=pad,
                    stopping_criteria=[leave],
                )
        except BaseException as e:  # told to the reader of the stream, not lost with the thread
            failure.append(e)
            streamer.end()

    thread = Thread(target=work)
    thread.start()
    try:
        yield from streamer
    finally:  # an interpreter that ends while torch still works in a thread is aborted
        unwanted.set()
        thread.join()
    if failure:
        raise QloraError(f"generation failed: {failure[0]}", "Try a shorter prompt or another --dtype")


OTHER_SAMPLING = ("typical_p", "epsilon_cutoff", "eta_cutoff", "top_h", "watermarking_config")


def chooser(config, temperature: float, seed: int) -> Callable[[np.ndarray], int] | None:
    """logits [vocabulary] -> the next token, greedy or sampled, as `generate` does it under this generation config.

    None where the config asks for a way of sampling that is not among these.
    """
    if temperature == 0:
        return lambda logits: int(logits.argmax())
    if any(getattr(config, key, None) not in (None, 0.0, 1.0) for key in OTHER_SAMPLING):
        return None
    import torch
    from transformers import (
        MinPLogitsWarper,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    top_k = getattr(config, "top_k", None)
    warpers = [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    warpers += [TopKLogitsWarper(50 if top_k is None else top_k)] if top_k != 0 else []
    warpers += [TopPLogitsWarper(config.top_p)] if (getattr(config, "top_p", None) or 1.0) < 1 else []
    warpers += [MinPLogitsWarper(config.min_p)] if getattr(config, "min_p", None) else []
    torch.manual_seed(seed)

    def choose(logits: np.ndarray) -> int:
        scores = torch.from_numpy(logits.copy()).unsqueeze(0)
        for warp in warpers:
            scores = warp(None, scores)
        return int(torch.multinomial(scores.softmax(-1), 1))

    return choose


def _tokens(decoder, choose, ids, max_new_tokens: int) -> Iterator[int]:
    """New tokens one by one, until one that ends the text."""
    logits = decoder.start(ids, ids.shape[1] + max_new_tokens)
    for left in range(max_new_tokens, 0, -1):
        token = choose(logits)
        if token in decoder.ends:
            return
        yield token
        if left > 1:
            logits = decoder.step(token)


def _pieces(tokenizer, tokens: Iterator[int]) -> Iterator[str]:
    """Text as soon as its letters are whole: some take several tokens. Decoded from the start, since spaces depend on it."""
    ids: list[int] = []
    said = text = ""
    for token in tokens:
        ids.append(token)
        text = tokenizer.decode(ids, skip_special_tokens=True)
        if text.startswith(said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(said) :]
            said = text
    if text != said:
        yield text[len(said) :]
