"""Do small differences stay small? Twenty steps of training, and long greedy texts, ours against the stock stack.

How it works: both train the same QLoRA model on the same batches with dropout 0 (with dropout each draws its own masks), and
each step's losses are compared. For texts, our decoder writes greedily, and the stock forward then reads what it wrote: a
token is equal when it is the stock forward's own first choice after the same tokens. Where it is not, the gap between the
stock forward's two best logits says whether the two choices were a tie but for rounding.
"""

from pathlib import Path

import numpy as np
import torch

from qlora_lib.bench.loading import training_model
from qlora_lib.bench.record import GreedyAgreement
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.bench.training import arms_of, batches_of
from qlora_lib.fast.decoders import fast_decoder, greedy
from qlora_lib.fast.install import uninstall
from qlora_lib.progress import say

PROMPT = 16  # tokens


def compare_losses(path: Path, tokens: np.ndarray, settings: BenchSettings) -> list[float]:
    """Relative difference of each step's loss, ours from stock's; tokens: [tokens], the training text."""
    say(f"numerics: losses of {settings.agreement_steps} steps, stock and ours")
    lora = settings.lora.model_copy(update={"dropout": 0.0})
    batches = batches_of(tokens, settings.agreement_shape, settings.agreement_steps, settings.seed)
    losses: list[list[float]] = []
    for whose in ("stock", "fast"):
        model = training_model(path, "qlora", lora, settings.seed)
        arm = next(a for a in arms_of(model, "qlora") if a.whose == whose)
        arm.enter()
        losses.append([arm.step(batch) for batch in batches])
        uninstall(model)
    return [abs(ours / stock - 1) for stock, ours in zip(*losses)]


def compare_texts(model, tokens: np.ndarray, settings: BenchSettings) -> GreedyAgreement | None:
    """Greedy texts of our decoder against the forward of the same model; None where no decoder applies.

    Args:
        model: NF4 with an adapter, dequantized before each product.
        tokens: [tokens], whose pieces are the prompts.
    """
    decoder = fast_decoder(model)
    if decoder is None:
        return None
    new = settings.agreement_tokens
    say(f"numerics: {settings.agreement_texts} greedy texts of {new} tokens, ours against the stock forward")
    uninstall(model)
    equal, gaps = 0, []
    for first in np.linspace(0, len(tokens) - PROMPT, settings.agreement_texts).astype(int):
        ids = torch.from_numpy(tokens[first : first + PROMPT].astype(np.int64)).unsqueeze(0)  # [1, T]
        made = greedy(decoder, decoder.start(ids, PROMPT + new), new)
        with torch.no_grad():
            whole = torch.cat([ids, torch.tensor([made])], 1)[:, :-1]
            logits = model(input_ids=whole, use_cache=False, logits_to_keep=new).logits[0]  # [new, V]
        logits[:, decoder.ends] = float("-inf")
        best, choice = logits.topk(2)
        for wanted, (high, low), token in zip(choice[:, 0].tolist(), best.tolist(), made):
            if wanted == token:
                equal += 1
            else:
                gaps.append(high - low)
    return GreedyAgreement(texts=settings.agreement_texts, tokens=settings.agreement_texts * new, equal=equal, gaps_where_not=gaps)
