"""What a training step holds: predicted by the memory model, beside what was measured.

How it works: two kinds of steps. Those of the validation's record were measured for this purpose, one process and one thread;
its predictions stand in the same record, and where there is no record they are made here and the other column says "not
measured". Those of the profile's own arms are predicted here from the settings in their records.
"""

import re
from collections.abc import Iterable

from pydantic import ValidationError

from qlora_lib.config import Settings
from qlora_lib.cost.cards import Card, gpu_card
from qlora_lib.cost.devices import find_gpu
from qlora_lib.cost.peak import StepMemory, step_memory
from qlora_lib.errors import UsageError
from qlora_lib.profile_plans import workload
from qlora_lib.records import RunRecord
from qlora_lib.report.grid import Table
from qlora_lib.report.values import Store
from qlora_lib.validation.grid import METHODS, REAL, SHAPES, Case
from qlora_lib.validation.record import Step
from qlora_lib.validation.summary import errors_of, explain, summarize

METHOD = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}
SHOWN = {  # columns, and which of the planner's components they are
    "Weights": ("weights", "quantization constants"),
    "Adapters, states": ("adapters", "optimizer states"),
    "Gradients": ("gradients",),
    "Activations": ("activations",),
    "Logits and loss": ("logits and loss",),
    "Temporary": ("temporary buffers",),
}
WIDTHS = dict(zip(SHOWN, (1, 1.05, 1.2, 1.3, 1, 1.25)))
ERROR = "Error: predicted over measured."
BATCH, LENGTH = 4, 128  # of the steps that are shown by component
WORST = 6
ANY_CPU = Card("cpu", "cpu", "fp32", 0, 0, "", {}, None, "")  # bytes do not depend on which


def named(method: str, checkpointing: bool) -> str:
    return METHOD[method] + ", checkpointing" * checkpointing


# --- by component -------------------------------------------------------------------------------------


def shown_steps(s: Store) -> list[Step]:
    """Each method with and without checkpointing on the real model, all else equal."""
    cases = [Case(REAL, method, BATCH, LENGTH, again) for method in METHODS for again in (False, True)]
    measured = {step.name: step for step in s.validation.steps} if s.validation else {}
    return [measured.get(case.name) or Step.of(case, SHAPES[REAL], None, "there is no record of it") for case in cases]


def by_component(s: Store) -> Table:
    rows, steps = [], shown_steps(s)
    filled = {title: names for title, names in SHOWN.items() if any(step.predicted.parts[name] for name in names for step in steps)}
    for step in steps:
        cells = [_part(s, step, title, names) for title, names in filled.items()]
        rows.append((
            f"{named(step.method, step.checkpointing)}: {step.predicted.moment}", *cells,
            _predicted(s, step), _measured(s, step), _error(s, step),
        ))  # fmt: skip
    columns = [("Predicted", title) for title in (*filled, "Peak")] + [("Measured here", "Peak"), ("", "Error")]
    return Table(
        "cost-parts", f"What a training step holds at its highest moment, in MiB. {of_validation(s)} Sequences and tokens of the step: "
        "{cost.batch}\u00a0×\u00a0{cost.length}.", columns, rows,
        f"Weights: as they are stored, with the constants of quantization and with buffers. States: AdamW’s, 32-bit. {ERROR}",
        label="Method, and the moment", label_width=3.7, widths=tuple(WIDTHS[title] for title in filled) + (1, 1.1, 0.85),
    )  # fmt: skip


def _part(s: Store, step: Step, title: str, names: tuple[str, ...]) -> str:
    total = sum(step.predicted.parts[name] for name in names)
    return s.put(f"step.{step.name}.{title}", total, "mib", "predicted", {"step": step.name, "path": "predicted.parts", "of": list(names)})


def _predicted(s: Store, step: Step) -> str:
    source = {"step": step.name, "path": "predicted.peak_bytes"}
    return s.put(f"step.{step.name}.predicted", step.predicted.peak_bytes, "mib", "predicted", source)


def _measured(s: Store, step: Step) -> str:
    source = {"step": step.name, "path": "measured.peak_bytes"}
    return s.put(f"step.{step.name}.measured", step.measured and step.measured.peak_bytes, "mib", "measured", source)


def _error(s: Store, step: Step) -> str:
    return s.put(f"step.{step.name}.error", step.error, "percent_signed", "predicted", {"step": step.name, "path": "error"})


# --- the whole grid -----------------------------------------------------------------------------------


def errors(s: Store) -> Table:
    """By method, model and checkpointing."""
    rows, steps = [], s.validation.of()
    for kind, title in (("real", f"{{{model_name(s)}}}"), ("tiny", "Tiny models with random weights")):
        if not (some := s.validation.of(kind)):
            continue
        rows.append((title,))
        for method in METHODS:
            for again in (False, True):
                if group := [x for x in some if (x.method, x.checkpointing) == (method, again)]:
                    rows.append(_group(s, f"{kind}.{method}.{again}".lower(), named(method, again), group))
    rows += [("All of them",), _group(s, "all", "Mean, and worst", steps)]
    columns = [("", "Steps"), ("Measured here", "Peaks (MiB)"), ("Predicted", "Peaks (MiB)")]
    columns += [("Predicted over measured", title) for title in ("Mean error", "Worst")]
    return Table(
        "cost-errors", f"How far the memory model is off, by model, method and checkpointing. {of_validation(s)}", columns, rows,
        "Peaks: from the least to the largest of the group. Mean error: of absolute values. Worst: the largest by size, with its sign.",
        label="Method", label_width=4.2, widths=(0.5, 1.3, 1.3, 0.8, 0.7),
    )  # fmt: skip


def _group(s: Store, name: str, label: str, steps: list[Step]) -> tuple[str, ...]:
    found, names = errors_of(steps), [step.name for step in steps]
    ends = {side: [getattr(step, side).peak_bytes for step in steps] for side in ("measured", "predicted")}

    def put(what: str, number, form: str, kind: str = "predicted") -> str:
        return s.put(f"steps.{name}.{what}", number, form, kind, {"steps": names, "what": what})

    return (
        label, put("cases", found.cases, "count", "named"),
        put("measured", (min(ends["measured"]), max(ends["measured"])), "mib_range", "measured"),
        put("predicted", (min(ends["predicted"]), max(ends["predicted"])), "mib_range"),
        put("mean_absolute", found.mean_absolute, "percent"), put("worst", found.worst, "percent_signed"),
    )  # fmt: skip


def worst(s: Store) -> Table:
    steps = sorted(s.validation.of(), key=lambda step: -abs(step.error))[:WORST]
    rows = [
        (f"{{{_words(s, step, 'name', step.name)}}}", _measured(s, step), _predicted(s, step), _error(s, step), f"={step.predicted.moment}")
        for step in steps
    ]
    columns = [("Measured here", "Peak (MiB)"), ("Predicted", "Peak (MiB)"), ("", "Error"), ("Predicted", "Highest at")]
    return Table(
        "cost-worst", f"The steps that are predicted worst. {of_validation(s)}", columns, rows,
        f"A step’s name: model, method, sequences and tokens, and what is not the default (rank, dropout, optimizer, checkpointing). {ERROR}",
        label="Step", label_width=6.4, widths=(1.1, 1, 0.7, 1.5),
    )  # fmt: skip


def misses(s: Store) -> list[tuple[Step, str]]:
    """(step, key of its explanation), largest first, of those that are off by more than validation's limit; names step.<name>.name and
    .error besides."""
    found = {m.name: m for m in summarize(s.validation).misses}
    steps = sorted((x for x in s.validation.of() if x.name in found), key=lambda step: -abs(step.error))
    for step in steps:
        _words(s, step, "name", step.name)
        _error(s, step)
    return [(step, _words(s, step, "explanation", re.sub(r"(?<!\w)-(?=\d)", "\u2212", explain(step)))) for step in steps]


def _words(s: Store, step: Step, what: str, text: str) -> str:
    return s.put(f"step.{step.name}.{what}", text, "text", "predicted", {"step": step.name, "path": what})


# --- the profile's own arms ---------------------------------------------------------------------------


def own_arms(s: Store) -> list[tuple[RunRecord, StepMemory]]:
    """The arms of this run that were metered tensor by tensor, with what the planner says of their settings."""
    found = []
    for record in s.records.values():
        if record.train and record.train.peak_tensor_bytes and (memory := predicted_of(record)):
            found.append((record, memory))
    return found


def predicted_of(record: RunRecord) -> StepMemory | None:
    """None for a model whose widths are not known, and for settings of another version."""
    gpu = find_gpu(record.provenance.device)
    try:
        settings = Settings.model_validate(record.settings)
        return step_memory(workload(record.method, settings, gpu_card(gpu.name) if gpu else ANY_CPU))
    except (ValidationError, UsageError):
        return None


def arms(s: Store, found: Iterable[tuple[RunRecord, StepMemory]]) -> Table:
    rows = []
    for record, memory in found:
        source = {"planned": record.arm}
        peak = s.put(f"planned.{record.arm}.peak", memory.peak_bytes, "mib", "predicted", source | {"path": "peak_bytes"})
        off = memory.peak_bytes / record.train.peak_tensor_bytes - 1
        error = s.put(f"planned.{record.arm}.error", off, "percent_signed", "predicted", source | {"path": "error"})
        rows.append((f"{{{record.arm}.label}}", f"{record.arm}.train.peak_tensor_bytes", peak, error, f"={memory.moment}"))
    columns = [("Measured here", "Peak (MiB)"), ("Predicted", "Peak (MiB)"), ("", "Error"), ("Predicted", "Highest at")]
    return Table(
        "cost-arms", "The arms of this run: the peak of a step’s tensors as it was measured while they trained, and as the planner has it from "
        "their settings. Measured here: {any.model.name}, {any.data.name}, {hardware}.", columns, rows, ERROR,
        label="Arm", label_width=5.2, widths=(1.1, 1, 0.7, 1.6),
    )  # fmt: skip


# --- words --------------------------------------------------------------------------------------------


def model_name(s: Store) -> str:
    return s.put("cost.model", REAL, "text", "named", {"model": "of the validation"})


def of_validation(s: Store) -> str:
    """What a caption says of where it was measured."""
    model_name(s)
    s.put("cost.batch", BATCH, "count", "named", {"step": "batch"})
    s.put("cost.length", LENGTH, "count", "named", {"step": "length"})
    if s.validation is None:
        return "Predicted: {cost.model}, fp32."
    p = s.validation.provenance
    s.put("cost.cpu", p.cpu, "text", "measured", {"validation": "provenance.cpu"})
    return "Measured here: random tokens, {cost.cpu}, fp32, the stock stack; the real model is {cost.model}."
