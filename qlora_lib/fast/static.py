"""Decoding with a key/value cache of fixed size and a compiled step: the way for CUDA.

How it works: at batch 1 a GPU waits for Python, which starts hundreds of small kernels a token. With a cache whose
tensors never move, torch.compile records one step and CUDA replays it as a whole; the products stay bitsandbytes' own
4-bit kernels and PEFT's adapters. Compiling takes up to a minute, so it pays for long texts and for measurements. A step
that cannot be compiled runs as it is. It has the interface of `decoder.Decoder`.

Its logits are tested on a CPU; it has not been run on a GPU.

Source: Hugging Face, "Optimizing inference" (static cache and torch.compile); PyTorch's gpt-fast.
"""

import warnings

import numpy as np
import torch

from qlora_lib.fast.decoders import end_tokens
from qlora_lib.fast.install import installed, plain

STEP = 256  # capacities are multiples of it: another one is compiled anew


class StaticDecoder:
    """One model, ready to decode one sequence at a time on its own device."""

    def __init__(self, model, backend: str = "inductor"):
        self.model, self.base = model, plain(model)
        self.ends = end_tokens(model)
        self.cache = None
        options = {"mode": "reduce-overhead"} if backend == "inductor" else {"backend": backend}
        self._step = torch.compile(self._eager, **options)

    @torch.no_grad()
    def start(self, ids: torch.Tensor, capacity: int) -> np.ndarray:
        """Read the prompt ids [1, T]; logits [vocabulary] for the next token. `capacity`: tokens in all."""
        from transformers import StaticCache

        capacity = -(-capacity // STEP) * STEP
        if self.cache is None or self.cache.layers[0].max_cache_len != capacity:
            self.cache = StaticCache(config=self.base.config, max_cache_len=capacity)
        self.cache.reset()
        self.token = torch.zeros((1, 1), dtype=torch.long, device=ids.device)  # written in place: its address stays
        self.place = torch.zeros((1, 1), dtype=torch.long, device=ids.device)
        with installed(self.model):
            logits = self.base(input_ids=ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1).logits
        self.position = ids.shape[1]
        return _row(logits)

    @torch.no_grad()
    def step(self, token: int) -> np.ndarray:
        """Read one more token; logits [vocabulary] for the next."""
        self.token.fill_(token)
        self.place.fill_(self.position)
        try:
            torch.compiler.cudagraph_mark_step_begin()
            logits = self._step(self.token, self.place)
        except Exception as e:  # whatever a compiler of a user's machine may say
            if self._step == self._eager:
                raise
            warnings.warn(f"decoding goes on without torch.compile, which failed here: {str(e).splitlines()[0]}", stacklevel=2)
            self._step = self._eager
            for layer in self.cache.layers:  # the failed step may have counted its token
                layer.cumulative_length.fill_(self.position)
            logits = self._step(self.token, self.place)
        self.position += 1
        return _row(logits)

    def _eager(self, token, place):
        return self.base(input_ids=token, position_ids=place, past_key_values=self.cache, use_cache=True).logits


def _row(logits: torch.Tensor) -> np.ndarray:
    return logits[0, -1].float().cpu().numpy()
