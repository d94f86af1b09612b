"""What training costs, before it is run: the planner's chapter.

How it works: `all_sentences` says how far the planner is off, from the record of the validation; the tables are those of
cost_steps.py (against what was measured here), cost_published.py (against others' figures) and cost_cards.py (cards and their
limits). Predicted, published and measured numbers have columns of their own.
"""

from collections.abc import Iterable
from typing import Any

from qlora_lib.report import cost_cards, cost_published, cost_steps
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.phrases import join
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.values import Store
from qlora_lib.validation.errors import LIMIT
from qlora_lib.validation.published_gpu import GOAL
from qlora_lib.validation.summary import summarize

FIGURES = ("validation", "validation-published")
NOTHING = f"How far the memory model is off was {NOT_MEASURED}: there is no record of its validation."


def shown(s: Store, drawn: Iterable[str]) -> dict[str, Any]:
    return {
        "measured": measured(s),
        "arms": bool(cost_steps.own_arms(s)),
        "pictures": [name for name in FIGURES if name in set(drawn)],
        "published": cost_published.blocks(s),
        "too-large": cost_cards.too_large(s),
    }


def measured(s: Store) -> bool:
    return s.validation is not None and bool(s.validation.of())


def all_tables(s: Store) -> dict[str, Any]:
    made = [cost_steps.by_component(s), cost_published.groups(s), cost_cards.matrix(s), cost_cards.components(s), cost_cards.limits(s)]
    if measured(s):
        made += [cost_steps.errors(s), cost_steps.worst(s)]
    if own := cost_steps.own_arms(s):
        made.append(cost_steps.arms(s, own))
    return {t.name: t.as_json(s) for t in made}


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    slots = {
        "cost-errors": errors(s), "cost-misses": misses(s), "cost-arms": arms(s), "cost-published": published(s), "cost-limits": limits(s),
    }  # fmt: skip
    return {name: [("", text) for text in texts] for name, texts in slots.items()}


def errors(s: Store) -> list[str]:
    if not measured(s):
        return [NOTHING]
    found = summarize(s.validation)
    _put(s, "cases", found.all.cases, "count", "named")
    _put(s, "mean", found.all.mean_absolute, "percent")
    _put(s, "worst", found.all.worst, "percent_signed")
    _put(s, "worst-case", found.all.worst_case, "text")
    _put(s, "at-rest", found.at_rest, "count", "named")
    _put(s, "exact-at-rest", found.exact_at_rest, "count")
    _put(s, "exact-models", found.exact_models, "count")
    _put(s, "exact-optimizers", found.exact_optimizers, "count")
    first = (
        "{validation.cases} training steps were measured on the CPU, each with one thread and the stock stack: a step of transformers’ Trainer with PEFT and "
        "bitsandbytes, on random tokens. What is there before the step was counted tensor by tensor; what rises above it is the "
        "highest running sum of the allocator’s events. The mean absolute error of the predicted peak is {validation.mean}; the worst is "
        "{validation.worst} ({validation.worst-case})."
    )
    rest = (
        "Of {validation.at-rest} loaded models, in fp32, 8-bit, NF4 and FP4, with and without double quantization, the resident bytes of "
        "{validation.exact-at-rest} were predicted to the byte; so were the model’s bytes in {validation.exact-models} of the steps and the "
        "optimizer’s in {validation.exact-optimizers}."
        if found.at_rest else None
    )  # fmt: skip
    left = None
    if found.not_measured:
        _put(s, "missing", len(found.not_measured), "count", "named")
        _put(s, "missing-why", "; ".join(f"{name}: {why}" for name, why in found.not_measured.items()), "text", "measured")
        left = "Cases that were " + NOT_MEASURED + ": {validation.missing} ({validation.missing-why})."
    return join(first, rest, left)


def misses(s: Store) -> list[str]:
    if not measured(s):
        return []
    limit = _put(s, "limit", LIMIT, "percent0", "named")
    found = cost_steps.misses(s)
    if not found:
        return [f"No step is off by more than {{{limit}}}."]
    told = [f"Off by more than {{{limit}}}: {{step.{step.name}.name}} by {{step.{step.name}.error}}; {{{why}}}." for step, why in found]
    return ["Of these errors the part of the bytes that is predicted wrong is known, since each part was counted.", *told]


def arms(s: Store) -> list[str]:
    if cost_steps.own_arms(s):
        return [
            "The arms of this run give a second test, which nobody arranged for the purpose: their tensors were metered while they trained, on this "
            "library’s fast path where it was on."
        ]
    return [f"No arm of this run was metered tensor by tensor, or its model’s widths are not known to the planner: {NOT_MEASURED}."]


def published(s: Store) -> list[str]:
    found = cost_published.found_errors()

    def put(what: str, number, form: str = "count") -> str:
        return f"{{{s.put(f'gpu.errors.{what}', number, form, 'predicted', {'published': 'errors', 'path': what})}}}"

    limit, goal = put("limit", LIMIT, "percent0"), put("goal", GOAL, "percent0")
    within, beyond = put("within", len(found.within_goal)), put("beyond", len(found.beyond_goal))
    counted = put("counted-within", len(found.counted_within_goal))
    impossible = (
        f" Of the latter, {put('impossible', len(found.impossible))} are smaller than the weights, gradients and optimizer states of the stated settings, so "
        "they cannot be of these settings." if found.impossible else ""
    )  # fmt: skip
    return [
        f"Of published amounts whose source states its settings {within} are predicted within {goal} and {beyond} are not.{impossible} With what the "
        f"code of the program in question holds otherwise than the stock stack counted in, {counted} are within {goal}. Of "
        f"{put('bounds', found.bounds)} figures that say only more or less than, {put('bounds-hold', found.bounds_hold)} hold.",
        "The planner describes the stock stack: transformers, PEFT and bitsandbytes. Most of these figures are of other programs, and what is known to "
        "differ in them is counted where it can be and stands in columns of its own; the prediction itself was not adapted to any figure. "
        f"Each error of more than {limit} has what explains it beside it, in {{@table-cost-published}}.",
    ]


def limits(s: Store) -> list[str]:
    keys = cost_cards.shares(s)
    told = " and ".join(f"{{{key}}} of such a limit in {name}" for name, key in keys.items())
    return [
        "A limit is no forecast. It says what cannot be passed, since no product runs above the card’s peak and no byte comes faster than its memory; "
        f"speeds that others have published reach from {told}. qlora plan estimates between the two."
    ] if told else []  # fmt: skip


def captions(s: Store, drawn: Iterable[str]) -> dict[str, str]:
    text = {
        "validation": "Predicted against measured peak of a training step. Left: bytes, both axes logarithmic, with lines of equality and of errors "
        "around it. Right: the error of each step. Hollow: with gradient checkpointing. " + cost_steps.of_validation(s),
        "validation-published": "Memory on GPUs as others have published it: the error of what the planner says of their settings. Hollow: the source leaves settings "
        "open, and we assume them. Crosses: with what can be counted of that program’s differences. Nothing here was measured by us.",
    }
    return {name: text[name] for name in FIGURES if name in set(drawn)}


def _put(s: Store, what: str, number, form: str, kind: str = "predicted") -> str:
    return s.put(f"validation.{what}", number, form, kind, {"validation": what})
