"""The tables of the sweeps: each method at its best learning rate, and QLoRA's other settings."""

from typing import Any

from qlora_lib import sensitivity
from qlora_lib.report.grid import Table
from qlora_lib.report.sweep_values import (
    AXES,
    NAMES,
    key,
    rates_of,
    reference_point,
    settings_of,
)
from qlora_lib.report.values import Store
from qlora_lib.sweeps import Axis


def all_tables(s: Store) -> dict[str, Any]:
    return {t.name: t.as_json(s) for t in tables(s)}


def where(s: Store) -> str:
    """What a caption says of where the sweeps were made."""
    at = f"sweep.{next(iter(s.studies.sweeps))}"
    stand_in = f" (a stand-in for {{{at}.data.stand_in_for}})" if s.has(f"{at}.data.stand_in_for") else ""
    return f"Measured here: {{{at}.model.name}}, {{{at}.data.name}}{stand_in}, {{{at}.provenance.cpu}}."


def tables(s: Store) -> list[Table]:
    rates, axes = rates_of(s), settings_of(s)
    made = []
    if any(axis.best for axis in rates.values()):
        made.append(_methods(s, rates))
    if axes:
        made.append(_settings(s, axes))
    return made


def _methods(s: Store, rates: dict[str, Axis]) -> Table:
    rows = []
    for name, axis in rates.items():
        if (p := axis.best) is None:
            rows.append((NAMES[name], *["=failed at every rate"], *[""] * 6))
            continue
        rows.append((
            NAMES[name], f"sweep.{p.name}.settings.train.learning_rate@scientific", key(p, "loss"), key(p, "loss-seeds"),
            key(p, "perplexity"), key(p, "perplexity-seeds"), f"good-rates.{name}",
            f"={at_least(s, axis)}{{good-factor.{name}}}",
        ))  # fmt: skip
    titles = ("Best rate", "Validation loss", "Seeds", "Test perplexity", "Seeds", "Good rates", "Width (factor)")
    return Table(
        "sweep-methods", f"Each method at its best learning rate. {where(s)}", [("Measured here", t) for t in titles], rows,
        "The rate is chosen by the mean validation loss over the seeds; the test split chose nothing. Seeds: the least and the most. Good "
        "rates: those whose loss is within {sweep-tolerance} nats of the best; their width is the last over the first, and “at least” "
        "says that the grid ends before they do.",
        label="Method", label_width=2.5, widths=(0.9, 0.9, 1.25, 0.95, 1.25, 1.35, 0.95),
    )  # fmt: skip


def at_least(s: Store, axis: Axis) -> str:
    span = sensitivity.good_range(axis, s.number("sweep-tolerance"))
    return "at least " if span and span.is_open else ""


def _settings(s: Store, axes: dict[str, Axis]) -> Table:
    rows: list[tuple[str, ...]] = []
    for name, (words, path, form) in AXES.items():
        if name not in axes:
            continue
        reference = reference_point(s, axes[name]) if name != "rank-attention" else None
        rows.append((words,))
        for p in axes[name].points:
            label = f"{{sweep.{p.name}.{path}@{form}}}"
            if name == "tokens-tuned":
                label += f" (rate {{sweep.{p.name}.settings.train.learning_rate@scientific}})"
            if p.failures:
                change, rest = "=failed", ["=failed", ""]
            else:
                change = "=reference" if p is reference else f"loss-difference.{p.name}.{reference.name}" if reference else ""
                rest = [key(p, "loss"), key(p, "loss-seeds")]
            if name == "rank-attention" and (other := axes["rank"].at(p.value) if "rank" in axes else None) and not p.failures:
                change = f"loss-difference.{p.name}.{other.name}"
            rows.append((
                label, f"sweep.{p.name}.parameters.trainable", f"sweep.{p.name}.train.peak_tensor_bytes@mib", *rest, change,
                "" if p.failures else key(p, "perplexity"),
            ))  # fmt: skip
    titles = ("Trainable parameters", "Tensors’ peak (MiB)", "Validation loss", "Seeds", "Difference", "Test perplexity")
    return Table(
        "sweep-settings", f"QLoRA’s other settings, one changed at a time. {where(s)}", [("Measured here", t) for t in titles], rows,
        "Difference: of the mean validation loss, in nats, from the reference, and with attention only from all linear layers at that "
        "rank. Less than {sweep-tolerance} is no difference shown.",
        label="Setting", label_width=3.7, widths=(1.1, 1, 0.95, 1.3, 0.95, 1),
    )  # fmt: skip
