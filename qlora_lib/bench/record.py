"""What one call of `qlora bench` found, as JSON; figures and tables read only this.

How it works: a measurement is one arm: seconds of each repeat, and the arms of a part were run in turns, so repeat
i of one stands beside repeat i of another. A ratio is the median over those pairs: both sides of a pair saw the
same machine. What was not measured is null, with the reason. Sizes in bytes, times in seconds.
"""

import json
import statistics
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qlora_lib.errors import QloraError, one_line
from qlora_lib.paths import write_atomic
from qlora_lib.records import DataInfo, ModelInfo, Part

ALLOCATORS = ("default", "keep")
Record = TypeVar("Record", bound=BaseModel)


class Measurement(Part):
    name: str  # part.where.arm, e.g. training.4x128.qlora.fast
    part: Literal["training", "decode", "perplexity"]
    what: str  # in words
    tokens: int  # in one repeat: trained, made or scored
    seconds: list[float] = Field(default_factory=list)  # of each repeat, in order
    median_seconds: float | None = None
    quartiles_seconds: tuple[float, float] | None = None  # of four repeats or more
    tokens_per_second: float | None = None  # at the median
    peak_tensor_bytes: int | None = None  # of one training step, weights and optimizer states included
    model_bytes: int | None = None  # weights, quantization state, adapters
    reason: str | None = None  # why it was not measured

    @classmethod
    def timed(cls, name: str, what: str, tokens: int, seconds: list[float], **more) -> "Measurement":
        median = statistics.median(seconds)
        return cls(
            name=name, part=name.partition(".")[0], what=what, tokens=tokens, seconds=seconds, median_seconds=median,
            quartiles_seconds=quartiles(seconds), tokens_per_second=tokens / median, **more,
        )  # fmt: skip

    @classmethod
    def missing(cls, name: str, what: str, tokens: int, reason: str) -> "Measurement":
        return cls(name=name, part=name.partition(".")[0], what=what, tokens=tokens, reason=reason)


class ScalingPoint(Part):
    """One arm at one place of a series."""

    series: Literal["training.length", "training.batch", "decode.context", "decode.batch", "first_token.prompt"]
    arm: str  # qlora.stock, qlora.fast, full.fast; fp32.stock, nf4dq_adapter.stock, nf4dq_adapter.fast
    what: str  # in words: what runs there
    x: int  # tokens in a sequence | sequences in a batch | tokens in the cache | sequences | tokens in the prompt
    tokens: int  # in one repeat: trained, made or read
    seconds: list[float] = Field(default_factory=list)
    median_seconds: float | None = None
    quartiles_seconds: tuple[float, float] | None = None
    tokens_per_second: float | None = None
    peak_tensor_bytes: int | None = None  # of one training step
    above_resident_bytes: int | None = None  # the same less weights and optimizer states
    reason: str | None = None  # why it was not measured

    @classmethod
    def timed(cls, seconds: list[float], tokens: int, **more) -> "ScalingPoint":
        median = statistics.median(seconds)
        return cls(
            tokens=tokens, seconds=seconds, median_seconds=median, quartiles_seconds=quartiles(seconds),
            tokens_per_second=tokens / median, **more,
        )  # fmt: skip


class Fit(Part):
    """quantity = c * x ** exponent, by least squares of the logarithms over the points that were measured."""

    series: str
    arm: str
    quantity: Literal["seconds", "peak_tensor_bytes", "above_resident_bytes"]
    exponent: float | None  # null of fewer than three points
    points: int
    worst_relative_residual: float | None  # of one point: |measured / fitted - 1|


class Cause(Part):
    """A part of the time of one token, decoded at batch 1 by a 4-bit model with an adapter.

    The parts of an arm that are known add up to its measured time, since "everything else" is the rest.
    """

    arm: str  # nf4dq_adapter.stock, nf4dq_adapter.fast; nf4dq_adapter.stock_unfused where stock's product is fused
    cause: Literal["dequantization", "adapter products", "memory traffic", "everything else"]
    seconds_per_token: float | None
    what: str  # how it was measured, or why not


class Ratio(Part):
    value: float | None  # median; null where a side was not measured
    quartiles: tuple[float, float] | None = None
    quantity: Literal["tokens_per_second", "peak_tensor_bytes"]
    numerator: str  # a measurement's name
    denominator: str  # a measurement's name, or a limit's: limits.training.4x128.qlora


class TrainingLimit(Part):
    flops: int  # of the matrix products of one step
    seconds_per_step: float  # if nothing else took time
    tokens_per_second: float


class DecodeLimit(Part):
    bytes_per_token: int  # of weights, each read once
    tokens_per_second: float  # if nothing else were read


class Limits(Part):
    gemm_flops_per_second: float
    copy_bytes_per_second: float  # read and written
    read_bytes_per_second: float  # matrix times vector
    training: dict[str, TrainingLimit] = Field(default_factory=dict)  # 4x128.qlora
    decode: dict[str, DecodeLimit] = Field(default_factory=dict)  # fp32, nf4dq_adapter


class GreedyAgreement(Part):
    """Our decoder's tokens against the first choice of the stock forward after the same tokens."""

    texts: int
    tokens: int  # in all texts
    equal: int
    gaps_where_not: list[float]  # between the stock forward's two best logits


class Numerics(Part):
    """Ours against the stock stack at identical weights; null or empty where that part was not run."""

    loss_stock: float | None = None
    loss_relative_difference: float | None = None  # of one step, dropout 0
    gradient_relative_difference: float | None = None  # ||ours - stock|| / ||stock||, over all adapters
    worst_gradient_relative_difference: float | None = None  # of one matrix
    worst_gradient: str | None = None  # its name
    loss_error: dict[str, float] = Field(default_factory=dict)  # stock, fast: relative, against fp64
    gradient_error: dict[str, float] = Field(default_factory=dict)  # stock, fast: ||g - fp64|| / ||fp64||
    perplexity_relative_difference: dict[str, float] = Field(default_factory=dict)  # of the part perplexity
    loss_relative_differences: list[float] = Field(default_factory=list)  # of each step of a training with dropout 0
    greedy: GreedyAgreement | None = None
    equal_tokens: dict[str, int | None] = Field(default_factory=dict)  # decode: greedy ones until the first that differs


class BenchProvenance(Part):
    finished: str  # ISO 8601, UTC
    cpu: str
    threads: int
    memory_bytes: int
    platform: str
    versions: dict[str, str]
    git_commit: str | None
    allocator: Literal["default", "keep"]  # keep: hardware.KEEP_FREED_MEMORY
    environment: dict[str, str]  # of the allocator and of threads
    load_average_before: float | None  # of the last minute: others' work makes times worth less
    wall_seconds: float
    stage_seconds: dict[str, float]
    peak_resident_bytes: int


class BenchRecord(Part):
    schema_version: Literal[1] = Field(1, alias="schema")
    settings: dict[str, Any]
    model: ModelInfo
    data: DataInfo
    ratios: dict[str, float | None]
    measurements: list[Measurement]
    limits: Limits
    numerics: Numerics
    scaling: list[ScalingPoint] = Field(default_factory=list)
    fits: list[Fit] = Field(default_factory=list)
    causes: list[Cause] = Field(default_factory=list)
    ratio_details: dict[str, Ratio]
    provenance: BenchProvenance

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=())

    def measurement(self, name: str) -> Measurement | None:
        """None of a part that was not run."""
        return next((m for m in self.measurements if m.name == name), None)

    @property
    def shapes(self) -> list[str]:
        return self.settings["shapes"]

    def to_dict(self) -> dict:
        return self.model_dump(by_alias=True, mode="json")

    def write(self, path: Path) -> None:
        write_atomic(path, json.dumps(self.to_dict(), indent=1) + "\n")


def read_bench(path: Path) -> BenchRecord:
    """Read one record; a damaged or foreign file is one clear line."""
    return read_as(BenchRecord, path, "qlora bench")


def read_benches_in(folder: Path) -> dict[str, BenchRecord]:
    """The records of a folder by setting of the allocator, the default one first; what is absent is left out."""
    paths = {name: Path(folder) / f"{name}.json" for name in ALLOCATORS}
    return {name: read_bench(path) for name, path in paths.items() if path.is_file()}


def read_as(kind: type[Record], path: Path, command: str) -> Record:
    """A record of this kind, which `command` writes; QloraError in one line for a file that is none."""
    try:
        return kind.model_validate_json(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise QloraError(f"no record at {path}", f"Make one with: {command}") from None
    except (ValidationError, UnicodeDecodeError, OSError) as e:
        what = f"{path} is no record of {command} ({one_line(str(e).splitlines()[0])})"
        raise QloraError(what, f"Make it again with: {command}") from None


def quartiles(values: list[float]) -> tuple[float, float] | None:
    if len(values) < 4:
        return None
    low, _, high = statistics.quantiles(values, n=4)
    return low, high
