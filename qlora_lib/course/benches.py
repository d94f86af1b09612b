"""The repository's records of `qlora bench`, for lessons: times of a quiet machine, where a cell's own would not hold.

How it works: there is one record for each setting of the allocator. One that is absent is left out, so that a lesson
says "not measured" and goes on.
"""

from pathlib import Path

from qlora_lib.bench.record import BenchRecord, read_benches_in
from qlora_lib.paths import committed_records


def read_benches(folder: Path | None = None) -> dict[str, BenchRecord]:
    """Allocator -> record; the default one first. folder: of the records, those of the repository unless given."""
    return read_benches_in(committed_records("bench") if folder is None else folder)


def ratio(bench: BenchRecord | None, name: str) -> float | None:
    """A ratio of the record, or None where there is no record or it was not measured."""
    return bench.ratios.get(name) if bench else None


def operations_allow(bench: BenchRecord | None, shape: str) -> float | None:
    """How many times as fast as a full step a QLoRA step would be if only the operations of their products counted."""
    limits = bench.limits.training if bench else {}
    full, qlora = limits.get(f"{shape}.full"), limits.get(f"{shape}.qlora")
    return full.flops / qlora.flops if full and qlora else None
