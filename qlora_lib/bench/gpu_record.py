"""What `qlora bench --gpu-check` found, as JSON that a user can share: no user, host or folder is in it.

How it works: a case is one model with one method. Each quantity stands twice, `predicted_` and `measured_`, and
neither is ever put in the other's place: what was not measured, or cannot be predicted for this device, is
null. Sizes in bytes, times in seconds. Contributed records lie in report/records/gpu, which this module
reads, and from which it makes the README's sentence.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field

from qlora_lib.bench.record import read_as
from qlora_lib.errors import QloraError
from qlora_lib.paths import report_dir, write_atomic
from qlora_lib.records import Part

# Names that both a prediction and a measurement of it have.
QUANTITIES = ("weight_bytes", "trainable_bytes", "optimizer_bytes", "peak_bytes", "step_seconds", "decode_tokens_per_second")


class GpuCase(Part):
    name: str  # tinyllama-1.1b.qlora
    model: str
    method: Literal["full", "lora", "qlora"]
    what: str  # in words
    parameters_total: int  # of the base, by its shape
    batch: int  # sequences in a step
    length: int  # tokens in each
    steps: int
    gradient_checkpointing: bool
    optimizer: str
    status: Literal["measured", "skipped", "out of memory", "failed"]
    reason: str | None = None  # why it, or a part of it, was not measured
    seconds: float | None = None  # that the case took in all

    predicted_weight_bytes: int
    predicted_trainable_bytes: int
    predicted_optimizer_bytes: int
    predicted_peak_bytes: int  # an estimate; what `skipped` goes by
    predicted_step_seconds: float | None  # at least: products at the device's peak
    predicted_decode_tokens_per_second: float | None  # at most: weights read once at the device's bandwidth
    predicted_flops_per_step: int  # of the hardware: recompute included
    predicted_bytes_per_token: int  # of weights, that decoding reads

    free_bytes_before: int  # of device memory, when the case began
    allocated_bytes_before: int | None = None  # by torch on the GPU, when the case began: freed memory shows as little here
    measured_weight_bytes: int | None = None  # counted from the tensors: adapters, quantization state included
    measured_trainable_bytes: int | None = None
    measured_allocated_bytes: int | None = None  # by torch on the GPU with the model built; null on a CPU
    measured_optimizer_bytes: int | None = None
    measured_peak_bytes: int | None = None  # CUDA: the allocator's peak in training; CPU: tensors of one step
    measured_step_seconds: float | None = None  # median; the first step is left out
    measured_step_seconds_quartiles: tuple[float, float] | None = None
    measured_timed_steps: int | None = None
    measured_tokens_per_second: float | None = None  # trained
    measured_decode_tokens_per_second: float | None = None  # greedy, batch 1
    measured_first_token_seconds: float | None = None
    decode_protocol: str | None = None
    decode_engine: str | None = None
    fast_path: list[str] = Field(default_factory=list)  # what qlora_lib.fast replaced in training
    losses: list[float] = Field(default_factory=list)  # one a step, always on the same batch
    loss_first: float | None = None
    loss_last: float | None = None
    falls: bool | None = None  # loss_last < loss_first


class GpuProvenance(Part):
    finished: str  # ISO 8601, UTC
    device: str  # "cpu", or the GPU's name
    capability: str | None  # 8.0
    memory_bytes: int
    driver: str | None
    cuda: str | None  # that torch was built for
    dtype: str
    dtype_reason: str
    peak_flops_per_second: float | None  # that `predicted_step_seconds` divides by
    peak: str  # which peak, or why there is none
    bandwidth_bytes_per_second: float | None  # of the data sheet
    platform: str
    versions: dict[str, str]
    git_commit: str | None
    budget_seconds: float
    wall_seconds: float


class GpuCheckRecord(Part):
    schema_version: Literal[1] = Field(1, alias="schema")
    kind: Literal["gpu-check"] = "gpu-check"
    tiny: bool  # shows that it runs; its numbers mean nothing
    seed: int
    cases: list[GpuCase]
    provenance: GpuProvenance

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=())

    def case(self, name: str) -> GpuCase:
        return next(c for c in self.cases if c.name == name)

    def to_dict(self) -> dict:
        return self.model_dump(by_alias=True, mode="json")

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @property
    def file_name(self) -> str:
        """Of this record among the contributed ones: device and day."""
        device = re.sub(r"[^a-z0-9]+", "-", self.provenance.device.lower()).strip("-")
        return f"{device}-{self.provenance.finished[:10]}.json"


def read_gpu_check(path: Path) -> GpuCheckRecord:
    """Read one record; a damaged or foreign file is one clear line."""
    return read_as(GpuCheckRecord, path, "qlora bench --gpu-check")


def contributed_folder() -> Path:
    return report_dir() / "records" / "gpu"


def read_contributed(folder: Path | None = None) -> list[GpuCheckRecord]:
    """All contributed records, by file name. QloraError for one that is not of a GPU, or of the tiny size."""
    records = []
    for path in sorted((folder or contributed_folder()).glob("*.json")):
        record = read_gpu_check(path)
        if record.tiny or record.provenance.device == "cpu":
            hint = "Contribute what `qlora bench --gpu-check` wrote, without --tiny"
            raise QloraError(f"{path.name} is not a measurement of a GPU", hint)
        records.append(record)
    return records


def contributed_sentence(records: Sequence[GpuCheckRecord]) -> str:
    """What the README says of them."""
    devices = sorted({r.provenance.device for r in records})
    if not devices:
        return "No GPU record has been contributed yet."
    return f"GPU records have been contributed for: {', '.join(devices)}."
