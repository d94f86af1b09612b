"""The appendix: what every arm ran on and with, grouped where arms agree.

How it works: fields in which all arms agree make one row for all; where they differ, each distinct
value makes a row that names its arms. So every setting of every arm stands there once.
"""

from typing import Any

from qlora_lib.report.segments import parse
from qlora_lib.report.values import Store

MACHINE = (
    "device", "cpu", "threads", "memory_bytes", "platform", "dtype", "dtype_reason",
    "versions", "environment",
)  # fmt: skip


def appendix(store: Store) -> dict[str, Any]:
    records = store.records
    machine = [p for field in MACHINE for p in _leaves(store, f"provenance.{field}")]
    settings = ["seed", *_leaves(store, "settings")]
    return {
        "machine": _grouped(store, machine, "provenance."),
        "settings": _grouped(store, settings, "settings."),
        "arms": [
            {
                "arm": [{"raw": arm}],
                "label": parse(f"{{{arm}.label}}", store),
                "cells": [
                    parse(f"{{{arm}.provenance.{path}}}", store)
                    for path in ("finished", "wall_seconds", "git_commit", "cache_key")
                ],
                "notes": [
                    parse(f"{{{arm}.provenance.notes@list}}", store) if r.provenance.notes else []
                ],
            }
            for arm, r in records.items()
        ],
        "samples": [
            {"arm": [{"raw": arm}], "text": parse(f"{{{arm}.generation.sample}}", store)}
            for arm, r in records.items()
            if r.generation and (r.generation.sample or "").strip()
        ],
        "attribution": parse("{any.data.attribution}", store)
        if store.has("any.data.attribution") else [],
    }  # fmt: skip


def _leaves(store: Store, path: str) -> list[str]:
    """Dotted paths of the plain values below `path` in any record, in the order of the first."""
    found: dict[str, None] = {}
    for arm in store.records:
        fields: Any = store.fields(arm)
        for part in path.split("."):
            fields = fields.get(part)
        _walk(fields, path, found)
    return list(found)


def _walk(fields: Any, path: str, found: dict[str, None]) -> None:
    if isinstance(fields, dict):
        for key, value in fields.items():
            _walk(value, f"{path}.{key}", found)
    else:
        found[path] = None


def _grouped(store: Store, paths: list[str], prefix: str) -> list[dict[str, Any]]:
    """Rows of (field, value, arms); arms are left out where all agree."""
    rows = []
    for path in paths:
        by_text: dict[str, list[str]] = {}
        for arm in store.records:
            by_text.setdefault(store.get(f"{arm}.{path}").text, []).append(arm)
        for i, arms in enumerate(by_text.values()):
            agreed = len(by_text) == 1
            rows.append({
                "field": [{"raw": path.removeprefix(prefix)}] if i == 0 else [],
                "value": parse(f"{{{arms[0]}.{path}}}", store),
                "arms": [{"text": "all"}] if agreed else [{"raw": ", ".join(arms)}],
            })  # fmt: skip
    return rows
