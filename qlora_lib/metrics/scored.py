"""Log-probabilities of chosen tokens at chosen places, and nothing else of the logits."""

from collections.abc import Sequence
from contextlib import nullcontext

import torch

from qlora_lib.fast.install import FAMILIES, installed
from qlora_lib.progress import bar

AT_ONCE = 256  # places; 256 x 49,152 fp32 logits are 48 MiB
Wanted = Sequence[tuple[int, int]]  # (position in the row, token that may follow it)


def learned(ids: Sequence[int], labels: Sequence[int]) -> tuple[list[int], list[tuple[int, int]]]:
    """(row, what is wanted of it) for the labels of an encoded example that are learned."""
    return list(ids[:-1]), [(place - 1, label) for place, label in enumerate(labels) if place and label >= 0]


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
            for start in bar(range(0, len(order), batch_size), "scoring", "batch", progress):
                some = order[start : start + batch_size]
                longest = len(rows[some[0]])
                ids = torch.tensor([[*rows[i], *[0] * (longest - len(rows[i]))] for i in some], device=device)  # [B, T]
                at = [(row, position) for row, i in enumerate(some) for position, _ in wanted[i]]
                tokens = torch.tensor([token for i in some for _, token in wanted[i]], device=device)  # [N]
                values = iter(_at(model, ids, *torch.tensor(at, device=device).T, tokens))
                for i in some:
                    found[i] = [next(values) for _ in wanted[i]]
    finally:
        model.train(was_training)
    return found


def _at(model, ids, rows, positions, tokens) -> list[float]:
    """log p of N tokens at N places of ids [B, T]; logits are made a few hundred places at a time."""
    if getattr(getattr(model, "config", None), "model_type", None) in FAMILIES:  # in these, logits are head(hidden)
        chosen = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state[rows, positions]  # [N, H]
        head = model.get_output_embeddings()
    else:
        chosen, head = model(input_ids=ids).logits[rows, positions], lambda logits: logits
    values = []
    for some, wanted in zip(chosen.split(AT_ONCE), tokens.split(AT_ONCE)):
        logits = head(some).float()  # [n, vocabulary]
        values += (logits.gather(1, wanted.unsqueeze(1)).squeeze(1) - logits.logsumexp(-1)).tolist()
    return values
