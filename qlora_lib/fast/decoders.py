"""Which decoder applies to a loaded model: the compiled one, the one with a static cache, or none."""

import numpy as np

from qlora_lib.fast.install import FAMILIES, plain

CHANGES_LOGITS = (
    "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens", "sequence_bias", "min_length",
    "min_new_tokens", "forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty", "guidance_scale",
)  # fmt: skip
WORTH_COMPILING = 500  # tokens: torch.compile takes up to a minute on a GPU


def fast_decoder(model, new_tokens: int | None = None, penalties: bool = True):
    """A decoder for this model, or None, where transformers' `generate` is to be used.

    On a CPU it is the compiled one (decoder.py), on CUDA, for many tokens or an unknown number, the one with a static
    cache (static.py). None where neither applies, where numba is not installed, or where the model's own settings change
    logits before a token is chosen (a penalty of repetitions, forbidden words), unless `penalties` is false.
    """
    config = getattr(model, "generation_config", None)
    penalty = getattr(config, "repetition_penalty", None)
    if penalties and (penalty not in (None, 1.0) or any(getattr(config, key, None) for key in CHANGES_LOGITS)):
        return None
    device = next((p.device.type for p in model.parameters()), "cpu")
    if device == "cuda":
        if getattr(plain(model).config, "model_type", None) not in FAMILIES or (new_tokens or WORTH_COMPILING) < WORTH_COMPILING:
            return None
        from qlora_lib.fast.static import StaticDecoder

        return StaticDecoder(model)
    try:
        from qlora_lib.fast.decoder import Decoder
    except (ImportError, RuntimeError):  # no numba, or no folder where it may keep what it compiles
        return None
    return Decoder.of(model)


def greedy(decoder, logits: np.ndarray, new_tokens: int) -> list[int]:
    """Exactly so many tokens, from the first's logits on. The end of text is not among the choices, as `generate`'s
    `min_new_tokens` has it."""
    made: list[int] = []
    while True:
        logits[decoder.ends] = -np.inf
        made.append(int(logits.argmax()))
        if len(made) == new_tokens:
            return made
        logits = decoder.step(made[-1])


def end_tokens(model) -> list[int]:
    """Ids of the tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
