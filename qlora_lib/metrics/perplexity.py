"""Perplexity of a causal language model over one stream of tokens, with its protocol.

How it works: windows of `context` tokens start every `stride` tokens. The first scores all its
tokens but the first, which nothing predicts; a later one scores only tokens that no window before
it has scored. With `stride == context` the windows are disjoint and each loses its first token:
cheaper, and a higher number, since tokens early in a window have little to go by. Source of the
strided protocol: Hugging Face, "Perplexity of fixed-length models".
"""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch.nn import functional as F

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.fast.install import FAMILIES, installed
from qlora_lib.progress import bar

LOGITS_AT_ONCE = 256  # positions; 256 x 49,152 fp32 logits are 48 MiB


def perplexity(
    model, token_ids, context: int = 512, stride: int = 512, batch_size: int = 1, progress=False, fast: bool = True
) -> dict:
    """Perplexity of `token_ids` ([tokens], any integer sequence) under `model`; `fast`: on the forwards of qlora_lib.fast.

    Returns:
        perplexity: exp of the mean negative log-likelihood over the scored tokens.
        tokens_scored: how many that were.
        protocol: the above in words.
        window_nll: [windows] mean nats a scored token, for paired comparisons.
        window_tokens: [windows] tokens scored in each.

    Raises:
        UsageError: for an impossible context or stride, or fewer than two tokens.
        QloraError: when the model's loss is not finite.
    """
    if isinstance(token_ids, torch.Tensor):
        token_ids = token_ids.cpu()
    ids = torch.as_tensor(np.asarray(token_ids), dtype=torch.long).reshape(-1)
    if context < 2 or not 1 <= stride <= context:
        raise UsageError(f"context {context} and stride {stride} fit no window", "Need 2 <= context, 1 <= stride <= context")
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; a whole number of at least 1 was expected")
    if len(ids) < 2:
        raise UsageError(f"perplexity needs two tokens or more, got {len(ids)}", "Give a longer text")
    spans = window_spans(len(ids), context, stride)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    sums, counts = [], []
    was_training = model.training
    model.eval()
    try:
        with installed(model) if fast else nullcontext():
            for group in bar(list(_batches(spans, batch_size)), "perplexity", "batch", progress):
                batch = torch.stack([ids[begin:end] for begin, end, _ in group]).to(device)  # [B, T]
                nll = token_nll(model, batch).cpu()  # [B, T-1]
                for row, (begin, end, new) in zip(nll, group):
                    scored = row[max(new - begin - 1, 0) :]  # position t-1 of `row` scores token t
                    sums.append(scored.double().sum().item())
                    counts.append(len(scored))
    finally:
        model.train(was_training)
    mean = math.fsum(sums) / sum(counts)
    if not math.isfinite(mean):
        raise QloraError("the loss is not a finite number: perplexity has no value", "Use a wider dtype: --set train.precision=fp32")
    return {
        "perplexity": math.exp(min(mean, 700.0)),  # exp(709.8) is the largest double
        "tokens_scored": sum(counts),
        "protocol": describe_protocol(context, stride),
        "window_nll": [s / c for s, c in zip(sums, counts)],
        "window_tokens": counts,
    }


def describe_protocol(context: int, stride: int) -> str:
    if stride == context:
        return f"disjoint windows of {context} tokens, no BOS; the first token of each window is not scored"
    return f"windows of {context} tokens every {stride}, no BOS; each token after the first is scored once"


def window_spans(tokens: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """[(begin, end, first new token)] that cover `tokens`; a window with nothing to score is left out."""
    spans, scored = [], 0
    for begin in range(0, tokens, stride):
        end = min(begin + context, tokens)
        new = max(scored, begin)
        if end - max(new, begin + 1) >= 1:
            spans.append((begin, end, new))
        scored = end
        if end == tokens:
            break
    return spans


@torch.no_grad()
def token_nll(model, batch: torch.Tensor) -> torch.Tensor:
    """[B, T-1] fp32 negative log-likelihood of each token given those before it.

    The logits are made and reduced a few hundred positions at a time: [B, T, vocabulary] in fp32
    would be the largest tensor of an evaluation.
    """
    targets = batch[:, 1:]
    if getattr(getattr(model, "config", None), "model_type", None) not in FAMILIES:  # in these, logits are head(hidden), with nothing after it
        logits = model(input_ids=batch).logits[:, :-1].float()
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    hidden = decoder(input_ids=batch, use_cache=False).last_hidden_state[:, :-1]  # [B, T-1, H]
    parts = []
    step = max(1, LOGITS_AT_ONCE // len(batch))
    for start in range(0, hidden.shape[1], step):
        logits = head(hidden[:, start : start + step]).float()
        chunk = targets[:, start : start + step]
        parts.append(F.cross_entropy(logits.flatten(0, 1), chunk.flatten(), reduction="none").view(chunk.shape))
    return torch.cat(parts, dim=1)


def _batches(spans, batch_size: int):
    """Groups of equally long windows, in order."""
    group = []
    for span in spans:
        if group and (len(group) == batch_size or span[1] - span[0] != group[0][1] - group[0][0]):
            yield group
            group = []
        group.append(span)
    if group:
        yield group
