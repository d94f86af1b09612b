"""What can be seen of one run: its curves, its scores on held-out people, and what it writes.

How it works: `score` measures any model the way it will be used: in the chat template, on the answer and
its end token, whatever the run itself scored. So it may disagree with the run's own curves, and where it
does, the run measured something else than it was meant to.
"""

from dataclasses import dataclass

import numpy as np
import torch

from qlora_lib.course.faults import task


@dataclass(frozen=True)
class Score:
    """Of one model on one set of people, in the chat template."""

    loss: float  # nats a token of the answer and its end token
    end_logprob: float  # of the end token after the right answer, nats; mean over the people


@dataclass(frozen=True)
class Curves:
    """What one training shows while it runs, and what it scored."""

    logged_loss: list[float]  # each step, as Trainer logs it by default
    true_loss: list[float]  # each step, as it was
    eval_steps: list[int]
    eval_loss: list[float]  # the run's own: its rendering, its labels, its validation set
    scored_tokens: float  # labels that count, a training example
    answer_tokens: float  # tokens of answer and end token, a training example


@dataclass(frozen=True)
class Arrived:
    """How much of the trained update B A alpha / r is found in the deployed weights."""

    norm: float  # of the trained update, all layers as one vector
    size: float  # norm of the deployed update over that of the trained one
    cosine: float  # of the angle between the two
    sample: np.ndarray  # [2, some weights] trained and deployed change of the same weights


@dataclass(frozen=True)
class Symptoms:
    name: str
    curves: Curves
    before: Score  # the base, on people that nobody looked at
    validation: Score  # after training, on the run's validation set
    unseen: Score  # after training, on people that nobody looked at
    deployed: Score  # the same people, by the model that was handed over
    update: Arrived
    questions: list[str]
    generations: list[str]  # by the deployed model, special tokens shown
    ended: float  # share of them that stop by themselves


@torch.no_grad()
def score(model, tokenizer, people: list[task.Example]) -> Score:
    """Loss of the right answers, all people in one batch."""
    batch = task.AnswerCollator(tokenizer)([task.encode(e, tokenizer) for e in people]).to(model.device)
    labels = batch.pop("labels")[:, 1:]
    log_probabilities = model.eval()(**batch).logits[:, :-1].float().log_softmax(-1)  # [people, T - 1, vocabulary]
    nll = -log_probabilities.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    counts = labels != -100
    end = counts & (labels == tokenizer.eos_token_id)
    return Score(nll[counts].mean().item(), -nll[end].mean().item())


@torch.no_grad()
def generate(model, tokenizer, people: list[task.Example], new_tokens: int) -> tuple[list[str], float]:
    """(greedy answers to the chat's questions, share that stop by themselves)."""
    prompts = [task.prompt_text(e.question, tokenizer) for e in people]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False)
    batch = {key: batch[key].to(model.device) for key in ("input_ids", "attention_mask")}
    model.eval()
    out = model.generate(
        **batch, max_new_tokens=new_tokens, do_sample=False, use_cache=True, pad_token_id=tokenizer.pad_token_id
    )
    texts, ended = [], 0
    for ids in out[:, batch["input_ids"].shape[1] :].tolist():
        if tokenizer.eos_token_id in ids:
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
            ended += 1
        texts.append(tokenizer.decode(ids))
    return texts, ended / len(people)
