"""Stream text from a model, its pieces as they come.

How it works: a decoder of qlora_lib.fast gives the logits of each next token, where it knows the model; the token is then
chosen as transformers chooses it, by its own top-k, top-p and temperature. All else is transformers' `generate`, in a
thread.
"""

import json
import sys
from pathlib import Path
from threading import Event, Thread
from typing import Callable, Iterator

import numpy as np

from qlora_lib.errors import QloraError, UsageError, one_line
from qlora_lib.fast.decoders import fast_decoder

Messages = list[dict[str, str]]  # of role and content
ROLES = ("system", "user", "assistant")
COLDEST = 1e-3  # temperature


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
    model,
    tokenizer,
    prompt: str | Messages,
    chat: bool = False,
    max_new_tokens: int = 100,
    temperature: float = 0.0,
    seed: int = 0,
) -> Iterator[str]:
    """The same for a model that is loaded already; `prompt` may also be the messages of a chat, which is answered.

    Raises: UsageError for a prompt that fills the context of the model; where only some of the new tokens have room, there
    are fewer of them.
    """
    import torch
    from transformers import TextIteratorStreamer

    if temperature and not COLDEST <= temperature:
        raise UsageError(f"temperature is {temperature:g}", f"Give 0, which is greedy, or at least {COLDEST:g}: divided by less the logits are no numbers")
    templated = chat or not isinstance(prompt, str)  # a template writes the beginning of the text itself
    if templated:
        prompt = chat_prompt(tokenizer, [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt)
    try:
        prompt.encode()
    except UnicodeEncodeError:  # no tokenizer takes it
        raise UsageError("the prompt holds half a character (a lone surrogate)", "Give text that is valid Unicode") from None
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not templated).to(model.device)
    length, context = inputs.input_ids.shape[1], getattr(model.config, "max_position_embeddings", None)
    if length == 0:
        raise UsageError("the prompt has no tokens", "Give some text")
    if context and length >= context:
        raise UsageError(f"the prompt has {length} tokens, and the context of this model is {context}", "Give a shorter prompt")
    if context and length + max_new_tokens > context:
        max_new_tokens = context - length
        print(f"note: after a prompt of {length} tokens the context of {context} has room for {max_new_tokens}", file=sys.stderr)
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


# --- chats -------------------------------------------------------------------------------------------


def chat_prompt(tokenizer, messages: Messages) -> str:
    """The text of a chat up to where the answer begins, as an adapter was trained on it: by the model's chat template, or
    for a model without one by the plain one of tasks.chat."""
    from qlora_lib.tasks.chat import Message, asked_with

    try:
        return asked_with([Message(m["role"], m["content"]) for m in messages], tokenizer)
    except Exception as e:  # a template may refuse roles, or an order of them, with any error of its own
        raise UsageError(f"the model's chat template refuses these messages: {one_line(e):.200}", "Change their roles or their order") from None


def read_chats(source: str) -> list[Messages]:
    """The chats of a JSON or JSONL file, or of standard input for `-`, each up to the message to be answered.

    A JSON list is one chat, and so are lines with a message each; lines with `messages` are a chat each. The last answer of
    a chat that ends with the assistant's is left out: it is what the model is asked for.
    """
    try:
        text = sys.stdin.read() if source == "-" else Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UsageError(f"the messages in {source} cannot be read: {getattr(e, 'strerror', None) or e}", "Give a JSON or JSONL file, or -") from None
    try:
        try:
            rows = json.loads(text)
            rows = rows if isinstance(rows, list) else [rows]
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as e:
        raise UsageError(f"the messages in {source} are no JSON: {e}", 'Write one {"role": "user", "content": "..."} a line') from None
    chats = [row["messages"] for row in rows if isinstance(row, dict) and "messages" in row] or [rows]
    if not rows or (len(chats) != len(rows) and chats != [rows]):
        raise UsageError(f"{source} holds no chat, or messages and chats mixed", 'Write one {"role": ..., "content": ...} or one {"messages": [...]} a line')
    return [_checked(chat, f"{source}, chat {i}" if len(chats) > 1 else source) for i, chat in enumerate(chats, 1)]


def _checked(chat, where: str) -> Messages:
    messages = []
    for i, message in enumerate(chat if isinstance(chat, list) else [chat], 1):
        good = isinstance(message, dict) and message.get("role") in ROLES and isinstance(message.get("content"), str)
        if not good:
            raise UsageError(f"message {i} of {where} is none", f'Write {{"role": one of {", ".join(ROLES)}, "content": text}}')
        messages.append({"role": message["role"], "content": message["content"]})
    if messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise UsageError(f"{where} does not end with a message of the user's that says something", "Add what is to be answered")
    return messages


def with_system(messages: Messages, system: str | None) -> Messages:
    """The chat with this system message in the place of its own, if any."""
    if system is None:
        return messages
    return [{"role": "system", "content": system}, *(m for m in messages if m["role"] != "system")]


# --- tokens ------------------------------------------------------------------------------------------

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
