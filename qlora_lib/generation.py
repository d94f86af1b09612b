"""Stream text from a model, its pieces as they come.

How it works: on a CPU the compiled decoder of qlora_lib.fast makes greedy text, where it knows the model; all else is
transformers' `generate`, in a thread.
"""

from pathlib import Path
from threading import Event, Thread
from typing import Iterator

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.fast.install import fast_decoder


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
    decoder = fast_decoder(model) if temperature == 0 else None  # sampling has settings of its own: top-k, top-p
    if decoder is not None:
        yield from _pieces(tokenizer, _greedy(decoder, inputs.input_ids, max_new_tokens))
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


def _greedy(decoder, ids, max_new_tokens: int) -> Iterator[int]:
    """New tokens one by one, until one that ends the text."""
    logits = decoder.start(ids, ids.shape[1] + max_new_tokens)
    for left in range(max_new_tokens, 0, -1):
        token = int(logits.argmax())
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
