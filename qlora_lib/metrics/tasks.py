"""What a model scores on a task's test examples, before and after training, with intervals.

How it works: a classification is decided by the log-likelihoods of its choices, as lm-evaluation-harness does it; a
question is answered greedily and compared as SQuAD does it; for instructions and chats, whose answers have no key, it is
the perplexity of the response that is given. Scores are kept example by example, so that two models are compared on
the same examples: intervals come from resampling those.
"""

import math
from dataclasses import dataclass, field

import numpy as np

from qlora_lib.config import Evaluation
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.judges import JudgeSettings, evaluate_pairs
from qlora_lib.metrics.answers import greedy_answers
from qlora_lib.metrics.scored import learned, log_probabilities
from qlora_lib.metrics.squad import squad_em_f1
from qlora_lib.records import Metric, Sample, TaskResult
from qlora_lib.tasks.chat import choice_ids, encode, prompt_ids
from qlora_lib.tasks.examples import Example, Task

DRAWS = 2000  # of the bootstrap
NAMES = {
    "classification": ("accuracy",),
    "qa": ("exact_match", "f1"),
    "instructions": ("response_perplexity",),
    "chat": ("response_perplexity",),
}


@dataclass
class Scores:
    """Of one model on a list of examples."""

    each: dict[str, list[float]]  # metric -> by example; percent, or of a perplexity: mean nats a response token
    weights: list[int] | None  # response tokens by example, where examples count by them
    answers: list[str | None]  # what the model said, where it was asked
    prompts_cut: int = 0
    protocol: str = field(default="")


def score_task(
    model, tokenizer, task: Task, examples: list[Example], evaluation: Evaluation, progress: bool = False, fast: bool = True
) -> Scores:
    """Scores of `model` on `examples`, by the protocol of their task."""
    if not examples:
        raise QloraError("there is no test example to score", "Give more examples: a local file is split 90/5/5")
    work = {"classification": _classify, "qa": _answer}.get(task, _respond)
    return work(model, tokenizer, examples, evaluation, progress, fast)


def _classify(model, tokenizer, examples, e: Evaluation, progress, fast) -> Scores:
    rows, wanted, cut = [], [], 0
    encoded = [choice_ids(example, tokenizer) for example in examples]
    for example, choices in zip(examples, encoded):
        prompt = prompt_ids(example, tokenizer)
        room = room_for_prompt(e.context, max(map(len, choices)))
        cut += len(prompt) > room
        prompt = prompt[-room:]
        for choice in choices:
            row = [*prompt, *choice[:-1]]
            places = [(len(prompt) - 1 + k, token) for k, token in enumerate(choice)]
            if len(choice) == 1 and rows and len(rows[-1]) == len(prompt) and rows[-1] == prompt:
                wanted[-1] += places  # choices of one token are read off the same row
            else:
                rows.append(row)
                wanted.append(places)
    found = iter([p for row in _finite(log_probabilities(model, rows, wanted, e.batch_size, progress, fast)) for p in row])
    right, said = [], []
    for example, choices in zip(examples, encoded):
        likelihoods = [sum(next(found) for _ in choice) for choice in choices]
        chosen = example.choices[int(np.argmax(likelihoods))]
        right.append(100.0 * (chosen == example.response))
        said.append(chosen.strip())
    return Scores({"accuracy": right}, None, said, cut, "the choice of the higher log-likelihood, as lm-evaluation-harness has glue/sst2, no few-shot examples")


def _answer(model, tokenizer, examples, e: Evaluation, progress, fast) -> Scores:
    prompts, cut = _prompts(tokenizer, examples, e)
    answers = greedy_answers(model, tokenizer, prompts, e.answer_tokens, progress, fast)
    scored = [squad_em_f1(answer, example.answers or [example.response]) for answer, example in zip(answers, examples)]
    each = {"exact_match": [em for em, _ in scored], "f1": [f1 for _, f1 in scored]}
    return Scores(each, None, answers, cut, f"greedy answers of at most {e.answer_tokens} tokens, compared as SQuAD v1.1 has it")


def _respond(model, tokenizer, examples, e: Evaluation, progress, fast) -> Scores:
    rows, wanted, cut = [], [], 0
    for example in examples:
        encoded = encode(example, tokenizer)
        dropped = max(0, len(encoded.ids) - e.context)
        cut += dropped > 0
        row, places = learned(encoded.ids[dropped:], encoded.labels[dropped:])
        rows.append(row)
        wanted.append(places)
    found = _finite(log_probabilities(model, rows, wanted, e.batch_size, progress, fast))
    shown = examples[: e.samples]
    prompts = _prompts(tokenizer, shown, e)[0] if shown else []
    answers = greedy_answers(model, tokenizer, prompts, e.answer_tokens, progress, fast) if shown else []
    return Scores(
        {"response_perplexity": [-sum(row) / len(row) for row in found]},
        [len(row) for row in found],
        [*answers, *[None] * (len(examples) - len(shown))],
        cut,
        f"perplexity of the response's tokens and of the token that ends it, given the prompt, at most {e.context} tokens",
    )


def _finite(found: list[list[float]]) -> list[list[float]]:
    if not all(math.isfinite(p) for row in found for p in row):
        raise QloraError("the loss is not a finite number: there is no score", "Use a wider dtype: --dtype fp32, or --set train.precision=fp32")
    return found


def room_for_prompt(context: int, answer_tokens: int) -> int:
    """Tokens of a prompt that fit beside an answer."""
    if context <= answer_tokens:
        raise UsageError(f"answers of {answer_tokens} tokens leave no room for a prompt in {context}", "Give a larger context")
    return context - answer_tokens


def _prompts(tokenizer, examples, e: Evaluation) -> tuple[list[list[int]], int]:
    """Prompts as tokens, cut at their beginning where they and the answer exceed the context; how many were."""
    room = room_for_prompt(e.context, e.answer_tokens)
    prompts = [prompt_ids(example, tokenizer) for example in examples]
    return [p[-room:] for p in prompts], sum(len(p) > room for p in prompts)


# --- before and after -----------------------------------------------------------------------------


def task_result(task: Task, examples: list[Example], before: Scores | None, after: Scores | None, samples: int) -> TaskResult:
    """Both scores side by side, with intervals of 95 % and the first few examples word for word."""
    one = after or before
    metrics = {name: _metric(name, before, after) for name in one.each}
    if before and after and "response_perplexity" in metrics:
        metrics |= _win_rates(examples, before.answers, after.answers)
    return TaskResult(
        task=task,
        protocol=one.protocol,
        n=len(examples),
        prompts_cut=one.prompts_cut,
        metrics=metrics,
        samples=[
            Sample(
                prompt=example.prompt[-1].content,
                expected=example.response.strip(),
                before=before.answers[i] if before else None,
                after=after.answers[i] if after else None,
            )
            for i, example in enumerate(examples[:samples])
        ],
    )


def _win_rates(examples: list[Example], before: list[str | None], after: list[str | None]) -> dict[str, Metric]:
    """Answers after training against those before, by the judge that needs no model and no network."""
    kept = [i for i, (one, other) in enumerate(zip(before, after)) if one is not None and other is not None]
    if len(kept) < 2:
        return {}
    instructions, references = zip(*(("\n\n".join(m.content for m in examples[i].prompt), examples[i].response.strip()) for i in kept))
    found = evaluate_pairs(
        instructions, [after[i] for i in kept], [before[i] for i in kept], JudgeSettings(), references=references, progress=False
    )
    known = found["length_controlled"]["standard_error"] is not None  # else too few answers to tell length from quality
    controlled = found["length_controlled_win_rate"] if known else None
    made = {"win_rate": (found["win_rate"], found["confidence_interval"]), "length_controlled_win_rate": (controlled, None)}
    return {
        name: Metric(
            unit="%", higher_is_better=True, protocol=found["protocol"], n=found["n"], before=None, after=rate, after_interval=spread
        )
        for name, (rate, spread) in made.items()
        if rate is not None
    }


def _metric(name: str, before: Scores | None, after: Scores | None) -> Metric:
    perplexity = name == "response_perplexity"
    first, last = (s.each[name] if s else None for s in (before, after))
    weights = (after or before).weights
    metric = Metric(
        unit="perplexity" if perplexity else "%",
        higher_is_better=not perplexity,
        before=None,
        after=None,
        before_each=first or [],
        after_each=last or [],
        weights=weights or [],
    )
    metric.before, metric.before_interval = estimate(first, weights, perplexity)
    metric.after, metric.after_interval = estimate(last, weights, perplexity)
    if first is not None and last is not None:
        metric.difference = metric.after - metric.before
        draws = _means(last, weights, perplexity) - _means(first, weights, perplexity)  # the same draws: paired
        metric.difference_interval = _interval(draws)
    return metric


def estimate(each: list[float] | None, weights: list[int] | None, perplexity: bool) -> tuple[float | None, tuple[float, float] | None]:
    """(the mean over examples, or exp of it; its interval)."""
    if each is None:
        return None, None
    mean = float(np.average(each, weights=weights))
    return (math.exp(min(mean, 700.0)) if perplexity else mean), _interval(_means(each, weights, perplexity))


def _means(each: list[float], weights: list[int] | None, perplexity: bool) -> np.ndarray:
    """[DRAWS] of the estimate over examples drawn with replacement; the same draws for the same number of examples."""
    values = np.asarray(each, float)
    weight = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    means = (values * weight)[draws].sum(1) / weight[draws].sum(1)
    return np.exp(np.minimum(means, 700.0)) if perplexity else means


def _interval(draws: np.ndarray) -> tuple[float, float] | None:
    """None where nothing varies, which says nothing of the spread: e.g. a single example."""
    low, high = np.quantile(draws, [0.025, 0.975])
    return (float(low), float(high)) if high > low else None
