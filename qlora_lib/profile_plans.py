"""A plan for every arm of a profile, on the cards that it was made for.

How it works: an arm's settings become a `Workload`; arms whose step is the same (seeds, learning rates, lengths of
evaluation) are one row. Cards are those that were asked for, else those that the profile's `hardware` names, or
whose sizes it names ("24 GB"), this machine for a CPU profile, and all GPUs where it names none. An arm that trains nothing has weights and no step. An arm
that the profile declares and does not run is planned like the others, so that its reason can be looked at.

The length is `data.window_length`: of a task the longest example that is kept, so its plan is the worst case.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from qlora_lib.config import ArmEntry, Profile, Settings
from qlora_lib.cost.advice import advise
from qlora_lib.cost.cards import CPU, Card, cards_named_in, every_card
from qlora_lib.cost.devices import GIB
from qlora_lib.cost.fitting import TOO_LARGE, Fit, fit
from qlora_lib.cost.memory import resident
from qlora_lib.cost.models import shape_of
from qlora_lib.cost.plan_table import NOTHING, duration, durations, size, span, table, told
from qlora_lib.cost.planner import Run, advice_of, cards_of, notes, run_of, settings_of, why
from qlora_lib.cost.roofline import step_time
from qlora_lib.cost.workload import Workload

OPTIMIZERS = {
    "adamw_torch": "adamw", "adamw_8bit": "adamw_8bit", "paged_adamw_8bit": "paged_adamw_8bit", "paged_adamw_32bit": "paged_adamw",
}  # fmt: skip


@dataclass
class Row:
    """Arms with one and the same step."""

    names: list[str]
    arm: ArmEntry
    settings: Settings


def plan_profile(profile: Profile, gpus: Iterable[str] | None = None, run: Run | None = None) -> dict:
    """`arms`: for each the method, settings, weights' bytes, and by card the verdict, why, needs, step time, advice.

    Without a length in `run`, a profile's own `train.max_steps` is taken (an epoch may end earlier).
    """
    run = run or Run()
    cards = cards_of(gpus) if gpus else cards_for(profile.hardware)
    rows: dict[tuple, Row] = {}
    for arm in profile.arms:
        settings = profile.settings(arm)
        key = (arm.method, arm.runs, settings.runtime.backend, *(workload(arm.method, settings, card) for card in cards), settings.train.max_steps)
        rows.setdefault(key, Row([], arm, settings)).names.append(arm.name)
    return {
        "predicted": "from the model's widths, the libraries' code and data sheets; nothing was measured, loaded or run",
        "profile": profile.name,
        "hardware": profile.hardware,
        "asks_for_gib": {"gpu_memory": profile.needs.gpu_memory_gib, "memory": profile.needs.memory_gib},
        "cards": [card.name for card in cards],
        "steps_from_profile": not (run.steps or run.tokens),
        "arms": [_arm(row, cards, run) for row in rows.values()],
    }


def cards_for(hardware: str) -> tuple[Card, ...]:
    """The cards that a profile's `hardware` names, or those of the sizes it names; this machine for "any CPU"; else all GPUs."""
    if named := cards_named_in(hardware):
        return named
    cards = every_card()
    if "CPU" in hardware:
        return cards[-1:]
    gpus = tuple(card for card in cards if card.name != CPU)
    sizes = {int(gb) * GIB for gb in re.findall(r"\b(\d+) GB", hardware)}
    return tuple(card for card in gpus if card.memory_bytes in sizes) or gpus


def workload(method: str, settings: Settings, card: Card) -> Workload:
    """The training step of these settings on a card; of `base`, which has none, the base as LoRA would hold it."""
    train, lora, stored = settings.train, settings.lora, settings.quantization
    targets = lora.target_modules if lora.target_modules == "all-linear" else tuple(lora.target_modules)
    return Workload(
        shape_of(settings.model.name)[0],
        "lora" if method == "base" else method,
        train.batch_size,
        settings.data.window_length,
        accumulation=train.gradient_accumulation_steps,
        rank=lora.rank,
        targets=targets,
        dropout=lora.dropout,
        quantization=stored.format,
        double_quant=stored.double_quant,
        dtype=card.dtype if train.precision == "auto" or card.device == "cpu" else train.precision,
        optimizer=OPTIMIZERS[train.optimizer],
        checkpointing=train.gradient_checkpointing,
        device=card.device,
        fast=settings.runtime.fast,
    )


def _arm(row: Row, cards: tuple[Card, ...], run: Run) -> dict:
    works = {card: workload(row.arm.method, row.settings, card) for card in cards}
    first = works[cards[0]]
    held = resident(first)
    trains = row.arm.method != "base"
    answer = {
        "names": row.names, "method": row.arm.method, "model": row.settings.model.name, "runs": row.arm.runs, "trains": trains,
        "weights_bytes": held.total - (0 if trains else held.adapters),
    }  # fmt: skip
    if not trains:
        return answer | {"quantization": first.quantization}
    length = run if run.steps or run.tokens else Run(steps=row.settings.train.max_steps, price=run.price)
    return answer | {
        "declared_why": row.arm.why,
        "settings": settings_of(first),
        "fits": {card.name: fit(work, card).fits for card, work in works.items()},
        "notes": ["the step of PEFT's back end; what Unsloth's kernels and its loader keep is not followed"] * (row.settings.runtime.backend == "unsloth"),
        "gpus": {card.name: _on_card(fit(work, card), length) for card, work in works.items()},
    }


def _on_card(found: Fit, run: Run) -> dict:
    step = step_time(found.work, found.card, found.paging_bytes)
    estimate = step.estimate and {"low": step.estimate[0], "high": step.estimate[1]}
    return {
        "verdict": found.verdict, "why": why(found), "notes": notes(found), "peak_bytes": found.memory.peak_bytes, "moment": found.memory.moment,
        "needs_bytes": {"low": found.needs[0], "high": found.needs[1]},
        "step": {"limit_seconds": step.limit_seconds, "bound": step.bound, "estimate_seconds": estimate,
                 "peak": step.peak, "share_from": step.share_words},
        "run": None if found.verdict == TOO_LARGE else run_of(run, found.work, step),
        "advice": [advice_of(way) for way in advise(found.work, found.card)],
    }  # fmt: skip


def to_text(plan: dict) -> str:
    """One row an arm, and below why each that does not fit does not, with the cheapest change that makes it fit."""
    lines = [f"{plan['profile']}: for {plan['hardware']}; all figures are predicted, nothing was run", ""]
    rows = [["arm", "model", "weights", "card", "verdict", "needs", "a step: at least", "estimated", "the run"]]
    for arm in plan["arms"]:
        name = _names(arm)
        if not arm["trains"]:
            rows.append([name, arm["model"], size(arm["weights_bytes"]), "", "trains nothing"] + [""] * 4)
            continue
        for card, there in arm["gpus"].items():
            step, needs, run = there["step"], there["needs_bytes"], there["run"]
            estimate, hours = step["estimate_seconds"], run and run["hours_estimate"]
            rows.append([
                name, arm["model"], size(arm["weights_bytes"]), "this CPU" if card == CPU else card, there["verdict"],
                span(size(needs["low"]), size(needs["high"])),
                duration(step["limit_seconds"]),
                durations(estimate["low"], estimate["high"]) if estimate else "-",
                durations(3600 * hours["low"], 3600 * hours["high"]) if hours else "-",
            ])  # fmt: skip
            name = ""
    lines += table(rows)
    for arm in plan["arms"]:
        for card, there in arm.get("gpus", {}).items():
            if there["verdict"] == "fits":
                continue
            lines += ["", f"{_names(arm)} on {'this CPU' if card == CPU else card}: {there['verdict']}: {there['why']}"]
            lines += [told(there["advice"][0]) if there["advice"] else NOTHING]
    remarks = [f"{_names(arm)}: {note}" for arm in plan["arms"] for note in _notes(arm)]
    lines += ["", *(f"note: {remark}" for remark in remarks)] if remarks else []
    lines += ["", "the run: the steps of the profile; an epoch of the data may end it earlier"] if plan["steps_from_profile"] else []
    return "\n".join(lines)


def _notes(arm: dict) -> list[str]:
    """Of an arm and of its cards, each once."""
    return list(dict.fromkeys([*arm.get("notes", ()), *(note for there in arm.get("gpus", {}).values() for note in there["notes"])]))


def _names(arm: dict) -> str:
    first, *more = arm["names"]
    shown = first + (f" and {len(more)} more" if more else "")
    return shown if arm["runs"] else f"{shown} (declared, not run)"
