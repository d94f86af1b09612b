"""Log-probabilities of chosen tokens at chosen places, and nothing else of the logits."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from qlora_lib.fast.install import FAMILIES, installed

Wanted = Sequence[tuple[int, int]]  # (position in the row, token that may follow it)


@torch.no_grad()
def log_probabilities(
    model, rows: Sequence[Sequence[int]], wanted: Sequence[Wanted], batch_size: int, progress: bool = False, fast: bool = True
) -> list[list[float]]:
    """log p(token | row[: position + 1]), in nats, for every (position, token) wanted of every row.

    Rows of a batch are of similar length and padded on the right, which causal attention never sees. Logits are made at
    the wanted positions alone.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))  # the longest first: too large a batch is told at once
    found: list[list[float]] = [[] for _ in rows]
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with installed(model) if fast else nullcontext():
            for start in _progress(range(0, len(order), batch_size), progress):
                some = order[start : start + batch_size]
                longest = len(rows[some[0]])
                ids = torch.tensor([[*rows[i], *[0] * (longest - len(rows[i]))] for i in some], device=device)  # [B, T]
                at = [(row, position) for row, i in enumerate(some) for position, _ in wanted[i]]
                tokens = torch.tensor([token for i in some for _, token in wanted[i]], device=device)  # [N]
                logits = _logits(model, ids, *torch.tensor(at, device=device).T)  # [N, vocabulary]
                values = iter(logits.float().log_softmax(-1).gather(1, tokens.unsqueeze(1)).squeeze(1).tolist())
                for i in some:
                    found[i] = [next(values) for _ in wanted[i]]
    finally:
        model.train(was_training)
    return found


def _logits(model, ids, rows, positions):
    """[N, vocabulary] at N places of ids [B, T]."""
    if getattr(getattr(model, "config", None), "model_type", None) not in FAMILIES:  # in these, logits are head(hidden)
        return model(input_ids=ids).logits[rows, positions]
    hidden = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state  # [B, T, H]
    return model.get_output_embeddings()(hidden[rows, positions])


def _progress(steps, show: bool):
    if not show:
        return steps
    from tqdm.auto import tqdm

    return tqdm(steps, desc="scoring", unit="batch", mininterval=1.0)
