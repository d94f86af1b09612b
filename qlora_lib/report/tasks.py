"""Tasks: what each metric was before and after QLoRA, what it cost, the rank against the metric, and examples word for word.

How it works: a task's record holds each metric with its intervals over test examples; tables and sentences name them as
task.<arm>.task.metrics.<metric>.<field>. Whether a metric moved is decided by the interval of the paired difference. What
stands in for a published data set is named as a stand-in in every caption.
"""

from collections.abc import Iterable
from typing import Any

from qlora_lib import sweeps
from qlora_lib.records import Metric, RunRecord
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.grid import Table
from qlora_lib.report.phrases import join
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.values import Store
from qlora_lib.studies import METRIC_NAMES as NAMES
from qlora_lib.studies import WIN_RATES
from qlora_lib.studies import rank_axes

NOTHING = f"Tasks were {NOT_MEASURED}: this run has no arm that trains on one."
FIGURES = ("task-metrics", "task-rank", "throughput")
INSTRUCTIONS = ("instructions", "chat")
KINDS = {"classification": "Sentiment", "qa": "Question answering", "instructions": "Instructions", "chat": "Conversations"}


SHOWN = 5  # examples of an arm, the first of the test split; its record may keep more


def metrics(r: RunRecord) -> list[tuple[str, Metric]]:
    """Those that have a before and an after."""
    return [(name, m) for name, m in r.task.metrics.items() if name not in WIN_RATES] if r.task else []


def define(s: Store) -> None:
    for prefix, found in (("task", s.studies.tasks), ("swept", s.studies.swept_tasks)):
        for arm in found:
            s.derive(f"{prefix}.{arm}.share", "ratio", [f"{prefix}.{arm}.parameters.{x}" for x in ("trainable", "base")], "percent2")
    for metric, name, axis in _rank_axes(s):
        for p in axis.points:
            after = [f"swept.{r.arm}.task.metrics.{name}.after" for r in p.records]
            s.derive(f"rank-point.{metric}.{p.name}", "mean", after, "decimal1")
            s.derive(f"rank-point-seeds.{metric}.{p.name}", "extent", after, "decimal1_interval")


def _rank_axes(s: Store) -> list[tuple[str, str, sweeps.Axis]]:
    """(key, metric's field, axis) of each metric that ranks were swept for."""
    return [(f"{data}.{name}", name, axis) for (data, name), axis in rank_axes(s.studies.swept_tasks).items()]


def _name(metric: str) -> str:
    return NAMES.get(metric, metric.replace("_", " "))


# --- tables -----------------------------------------------------------------------------------------


def tables(s: Store) -> list[Table]:
    found = s.studies.tasks
    some = {a: r for a, r in found.items() if metrics(r)}
    instructions = {a: r for a, r in some.items() if r.data.task in INSTRUCTIONS}
    made = []
    if instructions:
        made.append(_moved(s, "instructions", "The instruction task before and after QLoRA.", instructions))
    if some:
        made.append(_moved(s, "tasks", "Each task before and after QLoRA.", some))
    if found:
        made.append(_costs(s))
    if _rank_axes(s):
        made.append(_ranks(s))
    return made


def where(s: Store, prefix: str, arms: Iterable[str]) -> str:
    arms = list(arms)
    named: dict[str, str] = {}
    for arm in arms:
        at = f"{prefix}.{arm}.data"
        stand_in = f" (a stand-in for {{{at}.stand_in_for}})" if s.has(f"{at}.stand_in_for") else ""
        named.setdefault(s.get(f"{at}.name").text, f"{{{at}.name}}{stand_in}")
    first = f"{prefix}.{arms[0]}"
    return f"Measured here: {{{first}.model.name}}, {', '.join(named.values())}, {{{first}.provenance.cpu}}."


def _form(metric: Metric) -> str:
    return "decimal1" if metric.unit == "%" else "decimal2"


def _moved(s: Store, name: str, title: str, arms: dict[str, RunRecord]) -> Table:
    rows = []
    for arm, r in arms.items():
        for field, m in metrics(r):
            at, form = f"task.{arm}.task.metrics.{field}", _form(m)
            rows.append((
                f"{{task.{arm}.data.name}}: {_name(field)}{', %' if m.unit == '%' else ''}",
                f"{at}.before@{form}", f"{at}.before_interval@{form}_interval", f"{at}.after@{form}", f"{at}.after_interval@{form}_interval",
                f"{at}.difference@{form.replace('decimal', 'signed')}", f"{at}.difference_interval@{form.replace('decimal', 'signed')}_interval",
                f"task.{arm}.task.n",
            ))  # fmt: skip
    titles = ("Before", "{confidence} interval", "After", "{confidence} interval", "Difference", "{confidence} interval", "Examples")
    return Table(
        f"task-{name}", f"{title} {where(s, 'task', arms)}", [("Measured here", t) for t in titles], rows,
        "Before: the quantized base without an adapter. Intervals are over test examples, by resampling; that of the difference "
        "pairs each example with itself. They say nothing of another seed.",
        label="Task: metric", label_width=3.4, widths=(0.75, 1.25, 0.75, 1.25, 0.95, 1.35, 0.9),
    )  # fmt: skip


def _costs(s: Store) -> Table:
    on_gpu = any(r.provenance.device != "cpu" for r in s.studies.tasks.values())
    rows = []
    for arm in s.studies.tasks:
        at = f"task.{arm}"
        peak = f"{at}.train.peak_memory_bytes@mib" if on_gpu else f"{at}.train.peak_tensor_bytes@mib"
        rows.append((
            f"{{{at}.data.name}}", f"{at}.parameters.trainable", f"{at}.share", f"{at}.size_bytes.total@mib", peak, f"{at}.train.tokens@count",
            f"{at}.train.response_tokens@count", f"{at}.train.tokens_per_second@rate",
        ))  # fmt: skip
    titles = ("Trainable parameters", "Share of the base", "Resident (MiB)", "GPU memory’s peak (MiB)" if on_gpu else "Tensors’ peak (MiB)",
              "Training tokens", "of them learned", "Training tokens/s")  # fmt: skip
    return Table(
        "task-costs", f"What training on each task took. {where(s, 'task', s.studies.tasks)}", [("Measured here", t) for t in titles], rows,
        "Learned tokens are those of the responses; prompts are read and not learned."
        + ("" if on_gpu else " On a CPU there is no GPU memory: the tensors’ peak in a training step stands in its place."),
        label="Task", label_width=2.9,
    )  # fmt: skip


def _ranks(s: Store) -> Table:
    axes = _rank_axes(s)
    rows: list[tuple[str, ...]] = []
    for metric, name, axis in axes:
        at = f"swept.{axis.points[0].name}.data"
        rows.append((f"{{{at}.name}}: {_name(name)}, %",))
        for p in axis.points:
            failed = p.mean is None
            rows.append((
                f"{{swept.{p.name}.settings.lora.rank}}", f"swept.{p.name}.parameters.trainable", f"swept.{p.name}.share",
                f"swept.{p.name}.train.peak_tensor_bytes@mib",
                "=failed" if failed else f"rank-point.{metric}.{p.name}", "" if failed else f"rank-point-seeds.{metric}.{p.name}",
            ))  # fmt: skip
    titles = ("Trainable parameters", "Share of the base", "Tensors’ peak (MiB)", "After training", "Seeds")
    return Table(
        "task-ranks", f"Rank against the tasks’ metrics. {where(s, 'swept', s.studies.swept_tasks)}",
        [("Measured here", t) for t in titles], rows,
        "After training: the mean over seeds; seeds: the least and the most. Times of these arms are not shown, because several shared the machine.",
        label="Rank", label_width=4.4,
    )  # fmt: skip


# --- sentences -----------------------------------------------------------------------------------------


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    slots = {"task-data": data, "task-moved": moved, "task-rank": rank, "instructions-data": instruction_data,
             "instructions-moved": instruction_moved}  # fmt: skip
    return {name: [("", text) for text in write(s)] for name, write in slots.items()}


def data(s: Store) -> list[str]:
    return _data(s, list(s.studies.tasks)) if s.studies.tasks else [NOTHING]


def instruction_data(s: Store) -> list[str]:
    arms = [a for a, r in s.studies.tasks.items() if r.data.task in INSTRUCTIONS]
    return _data(s, arms) if arms else join(f"Instruction tuning was {NOT_MEASURED}: this run has no arm that trains on instructions.")


def _data(s: Store, arms: list[str]) -> list[str]:
    told = []
    for arm in arms:
        at, r = f"task.{arm}", s.studies.tasks[arm]
        text = f"{KINDS.get(r.data.task, r.data.task)}: {{{at}.data.name}}"
        text += f", which stands in for {{{at}.data.stand_in_for}}" if s.has(f"{at}.data.stand_in_for") else ""
        if {"train", "test"} <= set(r.data.splits):
            text += f"; {{{at}.data.splits.train.documents}} examples to train on and {{{at}.data.splits.test.documents}} to test on"
        if r.task:
            text += f", of which {{{at}.task.n}} were scored"
        if r.data.left_out:
            text += f"; left out: {{{at}.data.left_out@reasons}}"
        if r.task and r.task.prompts_cut:
            text += f"; prompts cut at their beginning: {{{at}.task.prompts_cut}}"
        text += f". Scored by: {{{at}.task.protocol}}." if r.task else "."
        told.append(text)
    return told


def way(m: Metric) -> str | None:
    """Which way a metric moved: the interval of its paired difference decides."""
    if m.difference is None or m.difference_interval is None:
        return None
    low, high = m.difference_interval
    if low <= 0 <= high:
        return "same"
    return "better" if (low > 0) == m.higher_is_better else "worse"


def moved(s: Store) -> list[str]:
    if not any(metrics(r) for r in s.studies.tasks.values()):
        return join(f"No task’s metric was measured before and after: {NOT_MEASURED}." if s.studies.tasks else None)
    return join(*(sentence for arm in s.studies.tasks for sentence in _moves(s, arm)))


def instruction_moved(s: Store) -> list[str]:
    return join(*(x for a, r in s.studies.tasks.items() if r.data.task in INSTRUCTIONS for x in _moves(s, a)))


def _moves(s: Store, arm: str) -> list[str]:
    told = []
    for name, m in metrics(s.studies.tasks[arm]):
        at, form = f"task.{arm}.task.metrics.{name}", _form(m)
        direction, shown = way(m), _name(name)
        if direction is None:
            told.append(f"On {{task.{arm}.data.name}} the change of {shown} was {NOT_MEASURED}.")
            continue
        signed = form.replace("decimal", "signed")
        figures = f"{{{at}.before@{form}}} to {{{at}.after@{form}}}"
        difference = f"a difference of {{{at}.difference@{signed}}}, {{confidence}} interval {{{at}.difference_interval@{signed}_interval}}"
        stand_in = f", a stand-in for {{task.{arm}.data.stand_in_for}}," if s.has(f"task.{arm}.data.stand_in_for") else ""
        verb = {
            ("better", True): "rises", ("worse", True): "falls", ("better", False): "falls", ("worse", False): "rises",
        }.get((direction, m.higher_is_better))  # fmt: skip
        if verb is None:
            told.append(f"On {{task.{arm}.data.name}}{stand_in} no change of {shown} is shown: {figures}, {difference}.")
        else:
            bad = " Training made it worse." if direction == "worse" else ""
            told.append(f"On {{task.{arm}.data.name}}{stand_in} {shown} {verb} from {figures}, {difference}.{bad}")
    return told + _wins(s, arm)


def _wins(s: Store, arm: str) -> list[str]:
    """The answers after training against those before, by a judge that is named for what it is."""
    r = s.studies.tasks[arm]
    found = r.task.metrics if r.task else {}
    if "win_rate" not in found:
        return []
    at = f"task.{arm}.task.metrics.win_rate"
    interval = f", {{confidence}} interval {{{at}.after_interval@decimal1_interval}}" if found["win_rate"].after_interval else ""
    other = f"task.{arm}.task.metrics.length_controlled_win_rate"
    controlled = f"; with length controlled {{{other}.after@decimal1}} %" if s.has(f"{other}.after") else ""
    return [
        f"Of {{{at}.n}} answers, those after training win {{{at}.after@decimal1}} % against those before{interval}{controlled}. "
        f"By this protocol: {{{at}.protocol}}."
    ]


def rank(s: Store) -> list[str]:
    axes = _rank_axes(s)
    if not axes:
        return join(f"How rank and the tasks’ metrics go together was {NOT_MEASURED}.")
    return join(
        *(_rank(metric, name, axis, s) for metric, name, axis in axes),
        "Beside the spread of the seeds stands that of the test examples, which no choice of rank makes smaller.",
    )


def _rank(metric: str, name: str, axis: sweeps.Axis, s: Store) -> str | None:
    """A rank counts as better only beyond what the examples leave open: the half-width of the best's interval."""
    if axis.best is None:
        return None
    at = f"swept.{axis.best.name}"
    interval = axis.best.records[0].task.metrics[name].after_interval
    fit = [p for p in axis.points if p.mean is not None]
    half = (interval[1] - interval[0]) / 2 if interval else 0.0
    worse = [p for p in fit if axis.best.mean - p.mean > half]
    words = f"On {{{at}.data.name}} {_name(name)} is highest at rank {{{at}.settings.lora.rank}} ({{rank-point.{metric}.{axis.best.name}}})"
    if not worse:
        least = min(fit, key=lambda p: p.mean)
        return f"{words}, and no rank is shown to be worse: the lowest is {{rank-point.{metric}.{least.name}}}, inside the interval of the best."
    listed = ", ".join(f"{{swept.{p.name}.settings.lora.rank}} ({{rank-point.{metric}.{p.name}}})" for p in worse)
    return f"{words}; lower beyond the interval of the best: rank {listed}."


# --- examples ------------------------------------------------------------------------------------------


def samples(s: Store, only: tuple[str, ...] | None = None) -> list[dict[str, Any]]:
    """Rows of (data, prompt, expected, before, after), word for word: values, so that their text is never markup."""
    rows = []
    for arm, r in s.studies.tasks.items():
        if only and r.data.task not in only:
            continue
        for i in range(min(SHOWN, len(r.task.samples)) if r.task else 0):
            at = f"task.{arm}.task.samples.{i}"
            keys = [f"task.{arm}.data.name", *(f"{at}.{field}" for field in ("prompt", "expected", "before", "after"))]
            rows.append([s.use(k).key for k in keys])
    return [{"data": row[0], "cells": row[1:]} for row in rows]


def shown(s: Store, drawn: Iterable[str]) -> dict[str, Any]:
    drawn = set(drawn)
    return {
        "tables": [t.name for t in tables(s)],
        "pictures": [name for name in FIGURES if name in drawn],
        "samples": samples(s, ("classification", "qa")),
        "instructions": samples(s, INSTRUCTIONS),
    }


def all_tables(s: Store) -> dict[str, Any]:
    return {t.name: t.as_json(s) for t in tables(s)}


def captions(s: Store, drawn: Iterable[str]) -> dict[str, str]:
    drawn = set(drawn)
    text = {}
    if s.studies.tasks:
        text["task-metrics"] = (
            "Each task’s metric before (hollow) and after (filled) QLoRA. Whiskers: {confidence} intervals over test examples. "
            + where(s, "task", s.studies.tasks)
        )
    if s.studies.swept_tasks:
        text["task-rank"] = (
            "The tasks’ metric after training against rank. Small marks: one seed each; line: their mean; dashed: untrained. "
            + where(s, "swept", s.studies.swept_tasks)
        )
    text["throughput"] = (
        "Tokens per second in training and in generation. Whiskers: quartiles over steps; the repeats of a generation. Measured here: "
        "{any.model.name}, {any.data.name}, {hardware}."
    )
    return {name: words for name, words in text.items() if name in drawn}
