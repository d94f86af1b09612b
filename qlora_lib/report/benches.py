"""Records of `qlora bench` for the pages: where they are found, and how a value in one is named.

How it works: `read_benches` takes this machine's own record (results/bench.json) or those that the repository carries
(report/records/bench, one for each setting of the allocator), by the rule of `records.records_of`; a record of another
model, or of a quick run, says nothing of a profile and is left out. `flat` lays a record out as dotted paths, its
measurements, points, fits and causes under their own names: measurements.training.4x128.qlora.fast.tokens_per_second.
"""

from collections.abc import Iterable
from typing import Any, Literal

from qlora_lib.bench.record import (
    ALLOCATORS,
    BenchRecord,
    Cause,
    Fit,
    Measurement,
    Ratio,
    ScalingPoint,
    read_bench,
    read_benches_in,
)
from qlora_lib.errors import QloraError, nearest
from qlora_lib.paths import committed_records, results_dir

Benches = dict[str, BenchRecord]  # by setting of the allocator, in the order of ALLOCATORS

# Lists of a record and what names one of their members.
_NAMED = {
    "measurements": (Measurement, lambda m: m["name"]),
    "scaling": (ScalingPoint, lambda p: f"{p['series']}.{p['arm']}.{p['x']}"),
    "fits": (Fit, lambda f: f"{f['series']}.{f['arm']}.{f['quantity']}"),
    "causes": (Cause, lambda c: f"{c['arm']}.{c['cause']}"),
    "ratio_details": (Ratio, None),
}


def read_benches(model: str, source: Literal["auto", "own", "committed"] = "auto") -> Benches:
    """The bench records of `model`, by allocator; empty where there are none. Own ones come before committed ones."""
    own, committed = results_dir("bench.json"), committed_records("bench")
    if source in ("auto", "own") and own.is_file() and (found := _of(model, [read_bench(own)])):
        return found
    return _of(model, read_benches_in(committed).values()) if source in ("auto", "committed") else {}


def _of(model: str, found: Iterable[BenchRecord]) -> Benches:
    kept = {r.provenance.allocator: r for r in found if r.model.name == model and not r.settings.get("quick")}
    return {allocator: kept[allocator] for allocator in ALLOCATORS if allocator in kept}


def flat(record: BenchRecord) -> dict[str, Any]:
    """Dotted path -> plain value; lists of numbers stay whole, other lists are counted from 0."""
    found: dict[str, Any] = {}
    for section, value in record.to_dict().items():
        if section in _NAMED and (name := _NAMED[section][1]):
            value = {name(member): member for member in value}
        _walk(section, value, found)
    return found


def _walk(path: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, below in value.items():
            _walk(f"{path}.{key}", below, found)
    elif isinstance(value, list) and any(isinstance(v, str) for v in value):
        for i, below in enumerate(value):
            _walk(f"{path}.{i}", below, found)
    else:
        found[path] = value or None if isinstance(value, list) else value


def check_path(key: str, path: str) -> None:
    """Refuse a path that no record could have. A part that was not run, or a place that was not measured, is none."""
    section, last = path.split(".")[0], path.split(".")[-1]
    known = list(BenchRecord.model_fields)
    if section in _NAMED:
        section, known = last, list(_NAMED[section][0].model_fields)
    if section not in known:
        raise QloraError(f"no field '{section}' of a bench record (value '{key}')", nearest(section, known))


def spread(record: BenchRecord, ratio: str) -> tuple[float, float] | None:
    """What a ratio of speeds lies between: its quartiles, or the least and most of its pairs where they are too few."""
    details = record.ratio_details.get(ratio)
    if details is None or details.value is None:
        return None
    if details.quartiles or details.quantity != "tokens_per_second":
        return details.quartiles  # bytes are counted, and have no spread
    each = pairs(record, details.numerator, details.denominator)
    return (min(each), max(each)) if each else None


def pairs(record: BenchRecord, above: str, below: str) -> list[float]:
    """Tokens a second of one measurement over another's, repeat by repeat; none where a side was not measured."""
    a, b = record.measurement(above), record.measurement(below)
    if a is None or b is None:
        return []
    return [a.tokens / b.tokens * y / x for x, y in zip(a.seconds, b.seconds)]
