"""Stream text from a model: transformers' `generate` in a thread, its pieces as they come."""

from pathlib import Path
from threading import Event, Thread
from typing import Iterator

from qlora_lib.errors import QloraError, UsageError


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
