"""What a table of the report is: columns under group heads, rows of value keys.

How it works: a column belongs to a group, "Published" or "Measured here", and never to both. A row is
a label and one cell a column; a cell is a value key, "=words", or "" for what does not apply. Labels,
titles and captions are templates (segments.py), so none of them can hold a typed figure.
"""

from dataclasses import dataclass, field
from typing import Any

from qlora_lib.report.segments import parse
from qlora_lib.report.values import Store

METHODS = ("full", "lora", "qlora")
NAMES = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}
PUBLISHED = "Published: TinyLlama-1.1B, WikiText-2, T4 GPU."
HERE = "Measured here: {any.model.name}, {any.data.name}, {hardware}."


@dataclass
class Table:
    name: str  # label in Typst: table-<name>
    caption: str
    columns: list[tuple[str, str]]  # (group, title); the group "" has no head
    rows: list[tuple[str, ...]] = field(default_factory=list)  # (label, cell, ...); (head,) alone
    note: str = ""
    label: str = "Metric"
    label_width: float = 4.6  # cm
    widths: tuple[float, ...] = ()  # of the columns, as parts of what the label leaves; equal if none

    def as_json(self, store: Store) -> dict[str, Any]:
        return {
            "caption": parse(self.caption, store),
            "note": parse(self.note, store),
            "label": self.label,
            "label_width": self.label_width,
            "widths": list(self.widths or [1] * len(self.columns)),
            "columns": [
                {"group": group, "title": parse(title, store), "published": group == "Published"}
                for group, title in self.columns
            ],
            "rows": [self._row(row, store) for row in self.rows],
        }

    def _row(self, row, store: Store) -> dict[str, Any]:
        label, *cells = row
        return {
            "label": parse(label, store),
            "head": not cells,
            "cells": [parse(c[1:] if c[:1] == "=" else f"{{{c}}}", store) if c else [] for c in cells],
        }  # fmt: skip


def beside(name: str, title: str, rows, note: str = "") -> Table:
    """A table in the common grid: the study's two columns, then our three methods."""
    columns = [("Published", "Standard"), ("Published", "QLoRA")]
    columns += [("Measured here", NAMES[m]) for m in METHODS]
    return Table(name, f"{title} {PUBLISHED} {HERE}", columns, rows, note)


def row(label: str, cell: str | None, field_path: str, form: str = "", arms=METHODS) -> tuple:
    """A row of the common grid: `cell` is "table.row" of the study, `field_path` a record's."""
    printed = [f"published.{cell}.{c}" for c in ("standard", "qlora")] if cell else ["", ""]
    suffix = f"@{form}" if form else ""
    return (label, *printed, *(f"{m}.{field_path}{suffix}" if m in arms else "" for m in METHODS))


def against_full(label: str, cell: str | None, name: str) -> tuple:
    """A row of changes against full fine-tuning; full is the baseline."""
    printed = [f"published.{cell}.{c}" for c in ("standard", "qlora")] if cell else ["", ""]
    return (label, *printed, "=baseline", f"{name}.lora.full", f"{name}.qlora.full")
