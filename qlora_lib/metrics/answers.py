"""Greedy answers to prompts, one prompt at a time, up to the token that ends them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch

from qlora_lib.fast.decoders import end_tokens, fast_decoder
from qlora_lib.fast.install import installed
from qlora_lib.progress import bar
from qlora_lib.tasks.chat import end_of_turn

# A model's own settings may ask for a penalty on words that stand in the prompt already; an answer is copied from there.
PLAIN = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None}


def greedy_answers(
    model, tokenizer, prompts: Sequence[Sequence[int]], new_tokens: int, progress: bool = False, fast: bool = True
) -> list[str]:
    """The continuation of each prompt (token ids), at most `new_tokens` long, as text without special tokens.

    An answer that reaches its limit breaks off there. Greedy means the most likely token each time: penalties of repetition
    that the model's own settings name are left out.
    """
    with answering(model, tokenizer, new_tokens, fast) as answer:
        return [answer(prompt) for prompt in bar(prompts, "answers", "answer", progress)]


@contextmanager
def answering(model, tokenizer, new_tokens: int, fast: bool = True) -> Iterator[Callable[[Sequence[int]], str]]:
    """Inside the `with`: a function from a prompt (token ids) to its answer, as `greedy_answers` gives it."""
    was_training, use_cache = model.training, model.config.use_cache
    model.eval()
    model.config.use_cache = True
    try:
        decoder = fast_decoder(model, new_tokens, penalties=False) if fast else None
        work = _generate if decoder is None else _decode
        device = next(model.parameters()).device
        ends = {*end_tokens(model), end_of_turn(tokenizer)}
        with installed(model) if fast and decoder is None else nullcontext():

            def answer(prompt: Sequence[int]) -> str:
                ids = work(decoder or model, torch.tensor([prompt], device=device), new_tokens, ends)
                return tokenizer.decode(ids, skip_special_tokens=True).strip()

            yield answer
    finally:
        model.train(was_training)
        model.config.use_cache = use_cache


def _decode(decoder, ids: torch.Tensor, new_tokens: int, ends: set[int]) -> list[int]:
    logits, made = decoder.start(ids, ids.shape[1] + new_tokens), []
    while True:
        token = int(logits.argmax())
        if token in ends:
            return made
        made.append(token)
        if len(made) == new_tokens:
            return made
        logits = decoder.step(token)


@torch.no_grad()
def _generate(model, ids: torch.Tensor, new_tokens: int, ends: set[int]) -> list[int]:
    output = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, use_cache=True,
        eos_token_id=sorted(ends), pad_token_id=min(ends), **PLAIN,
    )  # fmt: skip
    return output[0, ids.shape[1] :].tolist()
