"""What a validation has measured, and what was predicted for it, as JSON; figures and tables read only this.

How it works: a step and a model at rest each have one part that was measured and one that was predicted, and neither ever
stands in the other's place; an error is computed from the two where it is wanted, and is in no file. Sums are checked
when a record is read. Sizes in bytes.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from qlora_lib.bench.record import read_as
from qlora_lib.cost.memory import optimizer_bytes, resident
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.paths import report_dir, write_atomic
from qlora_lib.records import Part
from qlora_lib.validation.grid import REAL, SHAPES, Case, Format

COMMAND = "python -m qlora_lib.validation"
PROTOCOL = (
    "One training step of transformers' Trainer with PEFT and bitsandbytes, fp32 on the CPU, on random tokens: "
    "forward, backward, gradient clipping, Trainer's own optimizer, gradients dropped. A short step before it has "
    "made the optimizer's states. Measured peak: bytes of all tensors that exist before the step (weights, "
    "quantization constants, adapters, buffers, optimizer states), counted, and the highest running sum of the "
    "allocator's events during it."
)
DEPENDS_ON = ("torch", "transformers", "peft", "bitsandbytes")  # what is measured is measured of these


class MeasuredStep(Part):
    model_bytes: int  # weights, quantization constants, adapters, buffers: counted
    optimizer_bytes: int  # its states: counted
    above_bytes: int  # highest sum of all else: the allocator's events
    peak_bytes: int

    @model_validator(mode="after")
    def _adds_up(self):
        if self.peak_bytes != self.model_bytes + self.optimizer_bytes + self.above_bytes:
            raise ValueError("the measured parts do not add up to the peak")
        return self


class PredictedStep(Part):
    model_bytes: int
    optimizer_bytes: int
    peak_bytes: int
    moment: str  # at which it is highest
    parts: dict[str, int]  # that are held then

    @model_validator(mode="after")
    def _adds_up(self):
        if self.peak_bytes != sum(self.parts.values()):
            raise ValueError("the predicted parts do not add up to the peak")
        return self

    @classmethod
    def of(cls, case: Case, shape: ModelShape) -> "PredictedStep":
        work = case.workload(shape)
        memory = step_memory(work)
        return cls(
            model_bytes=resident(work).total, optimizer_bytes=sum(optimizer_bytes(work)), peak_bytes=memory.peak_bytes,
            moment=memory.moment, parts=dict(memory.parts),
        )  # fmt: skip


class Step(Part):
    name: str
    model: str
    method: Literal["full", "lora", "qlora"]
    batch: int
    length: int
    checkpointing: bool
    optimizer: str
    rank: int
    dropout: float
    targets: str | tuple[str, ...]
    measured: MeasuredStep | None = None
    reason: str | None = None  # why it was not measured
    predicted: PredictedStep

    @classmethod
    def of(cls, case: Case, shape: ModelShape, measured: MeasuredStep | None, reason: str | None = None) -> "Step":
        return cls(name=case.name, measured=measured, reason=reason, predicted=PredictedStep.of(case, shape), **asdict(case))

    @property
    def case(self) -> Case:
        return Case(**{name: getattr(self, name) for name in Case.__dataclass_fields__})

    @property
    def error(self) -> float | None:
        """Predicted peak over the measured one, less one."""
        return self.measured and self.predicted.peak_bytes / self.measured.peak_bytes - 1


class Bytes(Part):
    """Of a model at rest, with an adapter on it."""

    weights: int  # packed codes, what is not quantized, buffers
    quantization_constants: int
    adapters: int

    @property
    def total(self) -> int:
        return self.weights + self.quantization_constants + self.adapters


class AtRest(Part):
    name: str
    model: str
    quantization: Literal["none", "int8", "nf4", "fp4"]
    double_quant: bool
    measured: Bytes | None = None
    reason: str | None = None
    predicted: Bytes

    @classmethod
    def of(cls, form: Format, shape: ModelShape, measured: Bytes | None, reason: str | None = None) -> "AtRest":
        r = resident(form.workload(shape))
        predicted = Bytes(
            weights=r.weights + r.buffers, quantization_constants=r.quantization_constants, adapters=r.adapters
        )
        return cls(name=form.name, measured=measured, reason=reason, predicted=predicted, **asdict(form))

    @property
    def form(self) -> Format:
        return Format(self.model, self.quantization, self.double_quant)


class Provenance(Part):
    finished: str  # ISO 8601, UTC
    cpu: str
    threads: int  # of the processes that measured
    platform: str
    versions: dict[str, str]
    git_commit: str | None
    seconds: float  # that measuring took, all calls together


class ValidationRecord(Part):
    schema_version: Literal[1] = Field(1, alias="schema")
    protocol: str
    shapes: dict[str, dict[str, int | bool]]  # widths of each model
    steps: list[Step]
    at_rest: list[AtRest]
    provenance: Provenance

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=())

    @model_validator(mode="after")
    def _is_whole(self):
        for entries, part in ((self.steps, "case"), (self.at_rest, "form")):
            names = [e.name for e in entries]
            if len(set(names)) < len(names):
                raise ValueError("a case stands there twice")
            for e in entries:
                if e.name != getattr(e, part).name:
                    raise ValueError(f"the settings of {e.name} are not those of its name")
                if e.model not in self.shapes:
                    raise ValueError(f"no shape of the model of {e.name}")
                if (e.measured is None) == (e.reason is None):
                    raise ValueError(f"{e.name} is neither measured nor has it a reason why not, or it has both")
        return self

    def shape(self, model: str) -> ModelShape:
        return ModelShape(**self.shapes[model])

    def of(self, kind: Literal["real", "tiny"] | None = None) -> list[Step]:
        """Measured steps, of all models or of one kind."""
        return [s for s in self.steps if s.measured and (kind is None or (kind == "real") == (s.model == REAL))]

    def to_json(self) -> str:
        return json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1) + "\n"

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_json())


def shapes_of(names) -> dict[str, dict[str, int | bool]]:
    return {name: asdict(SHAPES[name]) for name in dict.fromkeys(names) if name in SHAPES}


def read_validation(path: Path) -> ValidationRecord:
    """Read one record; a damaged or foreign file is one clear line."""
    return read_as(ValidationRecord, path, COMMAND)


def committed_validation() -> Path:
    """The record that the repository carries."""
    return report_dir() / "records" / "validation.json"
