"""Decoding after a filled cache: reading the text before it is no part of the time.

How it works: `fill` reads all but the last token of each sequence once, untimed; `ready` puts the cache back to that
state, untimed; `run` makes `new_tokens` tokens, each from one more token that is read. Stock is transformers' `generate`
with the filled cache given to it; ours is the compiled decoder, one sequence at a time. The end of text is not allowed
to stop either.
"""

import copy
from typing import Protocol

import torch

from qlora_lib.fast.decoders import end_tokens, greedy


class Continuation(Protocol):
    def fill(self) -> None: ...

    def ready(self) -> None: ...

    def run(self) -> list[int]:
        """New tokens of the first sequence."""


class StockContinuation:
    """By transformers; ids: [B, T + 1], of which T tokens fill the cache."""

    def __init__(self, model, ids: torch.Tensor, new_tokens: int):
        self.model, self.ids, self.new_tokens = model, ids, new_tokens
        self.ends = end_tokens(model)

    @torch.no_grad()
    def fill(self) -> None:
        from transformers import DynamicCache

        self.filled = DynamicCache()
        self.model(input_ids=self.ids[:, :-1], past_key_values=self.filled, use_cache=True, logits_to_keep=1)

    def ready(self) -> None:
        self.cache = copy.deepcopy(self.filled)  # generate adds to the one that it is given

    @torch.no_grad()
    def run(self) -> list[int]:
        n = self.new_tokens
        out = self.model.generate(
            input_ids=self.ids, attention_mask=torch.ones_like(self.ids), past_key_values=self.cache, do_sample=False,
            min_new_tokens=n, max_new_tokens=n, use_cache=True, pad_token_id=self.ends[0] if self.ends else 0,
        )  # fmt: skip
        return out[0, self.ids.shape[1] :].tolist()


class FastContinuation:
    """By the compiled decoder; ids: [1, T + 1]."""

    def __init__(self, decoder, ids: torch.Tensor, new_tokens: int):
        self.decoder, self.ids, self.new_tokens = decoder, ids, new_tokens

    def fill(self) -> None:
        self.decoder.start(self.ids[:, :-1], self.ids.shape[1] + self.new_tokens)

    def ready(self) -> None:
        self.decoder.position = self.ids.shape[1] - 1  # what lies behind it in the cache is written again

    def run(self) -> list[int]:
        return greedy(self.decoder, self.decoder.step(int(self.ids[0, -1])), self.new_tokens)
