"""The practical guide and the two smaller write-ups: what each claims or advises, beside what was measured here.

How it works: advice is a sentence with its evidence in it, chosen by sweeps.py's judgement and left out where nothing was
measured. A claim is a row of (what the document says, what was found here, its ids in the audit).
"""

from typing import Any

from qlora_lib import sensitivity as judge
from qlora_lib import sweeps
from qlora_lib.report import phrases, reading
from qlora_lib.report import sweeps as words
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.segments import parse
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.sweep_values import (
    AXES,
    attention_pairs,
    key,
    rates_of,
    settings_of,
)
from qlora_lib.report.values import Store


def define(s: Store) -> None:
    """Decoding with an adapter against the same base without one."""
    for path, name in (("generation.latency_seconds", "latency"), ("generation.tokens_per_second", "decode")):
        both = [f"qlora.{path}", f"base-nf4dq.{path}"]
        s.derive(f"{name}-ratio.qlora.base-nf4dq", "ratio", both, "times", ("qlora", "base-nf4dq", "decoding"))
    sizes = ("base-nf4dq.size_bytes.quantization_state", "base-nf4.size_bytes.quantization_state")
    s.derive("guide.saved-state", "difference", [sizes[1], sizes[0]], "mib")
    s.derive("guide.saved-share", "reduction", [f"{a}.size_bytes.total" for a in ("base-nf4dq", "base-nf4")], "percent")


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    found = advice(s)
    return {
        "guide-advice": found or [("", f"Guidance follows from sweeps, and they were {NOT_MEASURED} for this profile.")],
        "guide-back-ends": [("", back_ends(s))],
    }


def back_ends(s: Store) -> str:
    """Which of the two trained the arms that this report shows."""
    shown = [*s.records.values(), *s.studies.sweeps.values(), *s.studies.tasks.values(), *s.studies.swept_tasks.values()]
    used = {(r.settings.get("runtime") or {}).get("backend", "peft") for r in shown if r.train}
    if used == {"peft"}:
        return f"Every arm of this report was trained with PEFT and bitsandbytes. What Unsloth would change was {NOT_MEASURED}."
    if not used:
        return "No arm was trained."
    return "Arms of this report were trained with Unsloth." if used == {"unsloth"} else "Arms of this report were trained with both."


# --- advice --------------------------------------------------------------------------------------------


def advice(s: Store) -> list[Paragraph]:
    if not s.studies.sweeps or "sweep-tolerance" not in s.values:
        return []
    rates, axes = rates_of(s), settings_of(s)
    given = [
        ("Learning rate.", _rate(s, rates)),
        ("Rank.", _smallest(s, axes.get("rank"), "rank", "Take the smallest rank that is not shown to be worse")),
        ("Where adapters go.", _modules(s, axes)),
        ("Alpha.", _keep(s, axes, "alpha")),
        ("Dropout.", _keep(s, axes, "dropout")),
        ("Warm-up.", _keep(s, axes, "warmup")),
        ("Optimizer.", words.optimizer_verdict(s)),
        ("Effective batch.", _batch(s, axes)),
        ("Checkpointing.", checkpointing(s)),
        ("Storage.", phrases.format_cost(s, "base-nf4dq", "NF4 with double quantization") if "base-nf4dq" in s.records else None),
    ]
    return [(lead, text) for lead, text in given if text]


def _rate(s: Store, rates) -> str | None:
    axis = rates.get("qlora")
    if axis is None or axis.best is None or len(axis.points) < 2:
        return None
    text = f"Search it, in factors of two, on a validation split. QLoRA did best at {_value(s, axis.best, 'settings.train.learning_rate@scientific')}"
    if "rate-ratio.lora.full" in s.values:
        text += ", and LoRA’s best was {rate-ratio.lora.full} times that of full fine-tuning"
        if not 0.4 < s.number("rate-ratio.lora.full") < 2.5:  # over a step of the grid apart
            text += ", so a rate copied from full fine-tuning would mislead"
    costs = []
    for factor, name in ((0.5, "half"), (2.0, "twice")):
        if judge.cost_of_missing(axis, factor) is not None:
            p = next(p for p in axis.points if abs(p.value / (factor * axis.best.value) - 1) < 1e-6)
            if not p.failures:
                costs.append(f"{{loss-difference.{p.name}.{axis.best.name}}} nats at {name} of it")
                s.derive(f"loss-difference.{p.name}.{axis.best.name}", "difference", [key(p, "loss"), key(axis.best, "loss")], "signed3")
    return text + (f". Missing it cost {' and '.join(costs)}." if costs else ".")


def _value(s: Store, p: sweeps.Point, path: str) -> str:
    return f"{{sweep.{p.name}.{path}}}"


def _smallest(s: Store, axis, name: str, rule: str) -> str | None:
    if axis is None or axis.best is None:
        return None
    first = judge.optimum(axis, s.number("sweep-tolerance"))[0]
    path = AXES[name][1]
    text = f"{rule}: here {_value(s, first, path)}, with {{sweep.{first.name}.parameters.trainable}} parameters to train"
    if first is not axis.best:
        text += f"; the best, {_value(s, axis.best, path)}, has {{sweep.{axis.best.name}.parameters.trainable}} and is ahead by less than the tolerance"
    last = axis.points[-1]
    if last is not first and last.records[0].train.peak_tensor_bytes:
        text += f". A step’s tensors peak at {_value(s, first, 'train.peak_tensor_bytes@mib_unit')} against "
        text += f"{_value(s, last, 'train.peak_tensor_bytes@mib_unit')} at {_value(s, last, path)}"
    return text + "."


def _modules(s: Store, axes) -> str | None:
    verdict = words.modules_verdict(s)
    pairs = attention_pairs(axes)
    if verdict is None:
        return None
    ways = {judge.verdict(p, q, s.number("sweep-tolerance")) for p, q in pairs} - {None}
    rule = {
        frozenset(["worse"]): "Put them in all linear layers. ",
        frozenset(["no difference shown"]): "The attention alone suffices here. ",
        frozenset(["better"]): "Keep them to the attention. ",
    }.get(frozenset(ways), "")
    most = axes["rank-attention"].best
    least = axes["rank"].points[0]
    equal = ""
    if most and least.mean is not None and judge.verdict(most, least, s.number("sweep-tolerance")) == "worse":
        equal = (
            f" The best of the attention alone, rank {_value(s, most, 'settings.lora.rank')} with {{sweep.{most.name}.parameters.trainable}} parameters, is "
            f"worse than all linear layers at rank {_value(s, least, 'settings.lora.rank')} with {{sweep.{least.name}.parameters.trainable}}: which layers matters "
            "more than how many parameters."
        )
    return rule + verdict + equal


def _keep(s: Store, axes, name: str) -> str | None:
    """Not worth a search where no difference is shown."""
    axis = axes.get(name)
    if axis is None or axis.best is None:
        return None
    good = judge.optimum(axis, s.number("sweep-tolerance"))
    rule = "Not worth a search here. " if len(good) == len(axis.points) else "Worth choosing. "
    return rule + words.outcome(s, axis, name)


def _batch(s: Store, axes) -> str | None:
    axis = axes.get("tokens-tuned") or axes.get("tokens")
    if axis is None or axis.best is None:
        return None
    name = "tokens-tuned" if "tokens-tuned" in axes else "tokens"
    worse = [p for p in axis.points if p.value > axis.best.value and p not in judge.optimum(axis, s.number("sweep-tolerance"))]
    rule = "At equal tokens a large batch costs steps, and steps were what counted here. " if worse else ""
    return rule + words.outcome(s, axis, name)


def checkpointing(s: Store) -> str | None:
    """Gradient checkpointing, from the profile's own arms, which were timed."""
    change, time = "peak-tensors-change.qlora-checkpointing.qlora", "step-time-change.qlora-checkpointing.qlora"
    if not s.has(change):
        return None
    text = f"Recomputing activations changes the tensors’ peak of a QLoRA step by {{{change}}}"
    return text + (f", and its time by {{{time}}}." if s.has(time) else ".")


# --- claims of the three documents -------------------------------------------------------------------


def claims(s: Store) -> dict[str, list[list[Any]]]:
    """Rows of pieces, by document."""
    return {name: [[parse(cell, s) for cell in row] for row in rows(s)] for name, rows in
            (("guide", _of_guide), ("demo", _of_demo))}  # fmt: skip


def _or(text: str | None) -> str:
    return text or f"{NOT_MEASURED.capitalize()}."


def _join(*texts: str | None) -> str:
    return _or(" ".join(t for t in texts if t))


def _ids(*ids: str) -> str:
    return ", ".join(f"{{#{id}}}" for id in ids)


def _of_demo(s: Store) -> list[tuple[str, str, str]]:
    batch = words.batch(s) if s.studies.sweeps else []
    return [
        ("Memory: 4-bit quantization significantly reduces memory …", _join(_memory(s)), _ids("demo-07")),
        ("… but increases sensitivity to learning rate and optimizer settings.",
         _join(words.rate_verdict(s), words.optimizer_verdict(s)) if s.studies.sweeps else _or(None),
         _ids("demo-08", "demo-09")),
        ("Throughput: one device gives access but limits the batch and slows convergence.",
         _or(" ".join(batch) if batch and NOT_MEASURED not in batch[0] else None), _ids("demo-10", "demo-11")),
        ("LoRA reduces the cost of training …", _join(phrases.step_time(s, "lora", "full"), _cheaper(s)), _ids("demo-12")),
        ("… but its adapters are an indirection at inference.", _join(*(indirection(s, *pair) for pair in (("lora", "base"), ("qlora", "base-nf4dq")))), _ids("demo-13")),
    ]  # fmt: skip


def _memory(s: Store) -> str | None:
    name, path = phrases.training_peak(s)
    found = [
        f"{{{name}-change.qlora.{other}}} against {phrases.METHOD[other]}" for other in ("full", "lora") if s.has(f"{name}-change.qlora.{other}")
    ]
    if not found:
        return None
    return f"A QLoRA step peaks at {{qlora.{path}@mib_unit}} of {'tensors' if 'tensor' in path else 'memory'}: {', '.join(found)}."


def _cheaper(s: Store) -> str | None:
    return "It trains {lora.trainable-share} of the parameters." if s.has("lora.trainable-share") else None


def indirection(s: Store, adapted: str, base: str) -> str | None:
    """Decoding with an adapter beside it against the same base without."""
    way = reading.latency(s, adapted, base)
    if way is None:
        return None
    name = {"lora": "LoRA", "qlora": "QLoRA"}[adapted]
    rates = f"{{{adapted}.generation.tokens_per_second}} against {{{base}.generation.tokens_per_second}} tokens per second"
    if way == "same":
        return f"{name}’s generation is not shown to be slower than that of its base without an adapter ({rates}; the repeats overlap)."
    return f"{name} generates {'slower' if way == 'higher' else 'faster'} than its base without an adapter: {rates}."


def _of_guide(s: Store) -> list[tuple[str, str, str]]:
    axes = settings_of(s)

    def of(name: str) -> str:
        return _or(words.outcome(s, axes[name], name) if name in axes else None)

    return [
        ("Rank {reference.guide.rank}", of("rank"), _ids("guide-settings-01")),
        ("Alpha {reference.guide.alpha}", of("alpha"), _ids("guide-settings-02")),
        ("Dropout {reference.guide.dropout}", of("dropout"), _ids("guide-settings-03")),
        ("Adapters in the attention’s four projections only", _or(words.modules_verdict(s) if axes else None), _ids("guide-mechanism-06", "across-02")),
        ("NF4 …", _join(*(phrases.format_cost(s, arm, name) for arm, name in (("base-nf4", "NF4"), ("base-fp4", "FP4")) if arm in s.records)),
         _ids("guide-settings-04", "guide-nf4-03")),
        ("… with double quantization, which saves {reference.guide.double_quantization} of memory and no performance",
         _or(_double(s)), _ids("guide-memory-09", "guide-mechanism-02")),
        ("Gradient checkpointing to save memory", _or(checkpointing(s)), _ids("guide-settings-06")),
        ("Gradient accumulation to simulate large batches", of("tokens-tuned"), _ids("guide-settings-05")),
        ("LoRA trains slightly faster than QLoRA", _or(phrases.step_time(s, "qlora", "lora")), _ids("guide-quality-04")),
        ("QLoRA reaches {reference.guide.quality} of full fine-tuning’s quality, or loses {reference.guide.degradation}",
         _or(_quality(s)), _ids("guide-quality-01", "guide-quality-02")),
        ("Paged optimizers move state to the CPU",
         "Not measured: without a GPU there is nothing to page from. Where pages were asked for, a plain 8-bit optimizer ran."
         if all(r.provenance.device == "cpu" for r in s.records.values()) else _or(None),
         _ids("guide-mechanism-03", "guide-mechanism-04")),
    ]  # fmt: skip


def _double(s: Store) -> str | None:
    if not s.has("guide.saved-share"):
        return None
    return "It saves {guide.saved-state} MiB, {guide.saved-share} of the NF4 model’s resident bytes."


def _quality(s: Store) -> str | None:
    """Each at its best where sweeps tell; else the profile's own arms."""
    rates = {n: a for n, a in rates_of(s).items() if a.best}
    return words.difference_at_best(s, rates, "qlora", "full") or phrases.quality_against_full(s)
