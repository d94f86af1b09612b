"""What a run measured, and where that came from: one `record.json` for each arm.

How it works: training and evaluation fill a `RunRecord`; figures, notebooks and the report read it;
nothing else passes between them. A quantity that was not measured is null, never 0 and never a
guess. Units stand in the names or here: sizes in bytes, times in seconds, rates per second,
losses in nats per token. Predicted and published figures are kept elsewhere.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from qlora_lib.errors import QloraError
from qlora_lib.paths import committed_records, results_dir, write_atomic

SCHEMA = 1
RECORD_NAME = "record.json"
SEAL = "seal"


class Part(BaseModel):
    # A NaN or infinity would not survive JSON: what could not be measured is None.
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=())


class ModelInfo(Part):
    name: str
    source: str  # "package index: ...", "hub: ...", "local: ...", "made on the spot"
    revision: str | None = None  # commit or SHA-256 of what was loaded
    license: str | None = None
    note: str | None = None  # what a reader must know about these weights
    parameters_total: int
    architecture: dict[str, int | bool | str] = Field(default_factory=dict)


class SplitStatistics(Part):
    documents: int
    characters: int
    tokens: int
    windows: int  # of the training length; a last partial window is left out


class DataInfo(Part):
    name: str
    source: str
    revision: str | None = None
    license: str | None = None
    attribution: str | None = None
    stand_in_for: str | None = None
    train_tokens: int | None  # in the whole training split
    eval_tokens: int | None  # in the whole test split
    vocabulary_size: int | None = None
    window_length: int | None = None  # of a task: the longest example that is kept, in tokens
    splits: dict[str, SplitStatistics] = Field(default_factory=dict)  # of a task: documents are examples
    task: str | None = None  # instructions, classification, qa, chat; null: language modelling
    left_out: dict[str, int] = Field(default_factory=dict)  # why -> examples that are in no split, or too long to learn


class Parameters(Part):
    total: int  # logical parameters of base and adapter; a packed 4-bit weight counts each of its values
    base: int
    trainable: int


class SizeBytes(Part):
    """Resident tensors, counted, not computed. `total` = `base` + `adapter`."""

    base: int  # weights, buffers and quantization state
    adapter: int
    total: int
    quantization_state: int  # part of `base`
    quantized_weights: int  # part of `base`
    unquantized: int  # part of `base`: embeddings, norms, head, buffers
    on_disk: int | None = None  # what is saved to deploy it: checkpoint or base files plus adapter
    footprint_reported: int | None = None  # transformers' get_memory_footprint()


class Optimizer(Part):
    requested: str
    ran: str
    why: str
    state_bytes: int


class Train(Part):
    steps: int
    tokens: int
    seconds: float  # wall clock of the training steps, without evaluation and saving
    seconds_per_step: float  # median, without the first step and the metered one
    seconds_per_step_quartiles: tuple[float, float] | None = None
    tokens_per_second: float  # tokens of a step / seconds_per_step; of a task, of all timed steps together; of all processes
    tokens_per_step: int
    timed_steps: int
    peak_memory_bytes: int  # CUDA: allocator's peak; CPU: peak resident set of the process
    peak_memory_meter: str
    peak_tensor_bytes: int | None  # CPU: resident tensors + allocator events of one step
    loss: list[float]  # one a step
    eval_loss: list[float]
    eval_steps: list[int]
    learning_rate: list[float]
    grad_norm: list[float]
    optimizer: Optimizer
    gradient_bytes: int | None = None  # all .grad tensors at their largest
    resumed_from_step: int | None = None
    response_tokens: int | None = None  # of a task: the tokens that were learned, of `tokens`
    fast_path: list[str] = Field(default_factory=list)  # what qlora_lib.fast replaced; empty: the stock stack


class Peak(Part):
    flops_per_second: float
    what: str  # which peak: measured GEMM or data sheet, device and dtype


class Perplexity(Part):
    before: float | None  # the loaded base (of `qlora`: the quantized base), same windows
    after: float | None  # null where nothing was trained
    protocol: str
    context: int
    stride: int
    tokens_scored: int
    window_nll_before: list[float] = Field(default_factory=list)  # mean nats a token, by window
    window_nll_after: list[float] = Field(default_factory=list)


class Metric(Part):
    """One metric on the same test examples before and after training.

    Intervals are of 95 %, by resampling examples (2,000 draws); the difference is after less before, paired.
    """

    unit: str  # "%" or "perplexity"
    higher_is_better: bool
    protocol: str | None = None  # where it is not the task's
    n: int | None = None  # where it is not the task's: examples
    before: float | None
    after: float | None
    before_interval: tuple[float, float] | None = None
    after_interval: tuple[float, float] | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    before_each: list[float] = Field(default_factory=list)  # by example; of a perplexity: mean nats a response token
    after_each: list[float] = Field(default_factory=list)
    weights: list[int] = Field(default_factory=list)  # of a perplexity: response tokens by example


class Sample(Part):
    """One test example with what the model wrote, word for word."""

    prompt: str
    expected: str
    before: str | None
    after: str | None


class TaskResult(Part):
    task: str  # classification, qa, instructions, chat
    protocol: str
    n: int  # test examples scored
    prompts_cut: int  # of these, prompts longer than the context, cut at their beginning
    # accuracy | exact_match, f1 | response_perplexity, and of the kept answers win_rate, length_controlled_win_rate:
    # answers after training against those before, so that there is no `before`
    metrics: dict[str, Metric]
    samples: list[Sample] = Field(default_factory=list)


class Generation(Part):
    tokens_per_second: float  # new tokens / latency
    latency_seconds: float  # median of repeats, prompt included
    first_token_seconds: float | None = None
    new_tokens: int
    prompt_tokens: int
    repeats: list[float]
    protocol: str
    sample: str | None = None  # what was generated
    engine: str = "transformers"  # what made the tokens after the first: transformers' generate, or "fast"


class Provenance(Part):
    cache_key: str
    finished: str  # ISO 8601, UTC
    device: str  # "cpu", or the GPU's name
    cpu: str
    threads: int  # of one process
    processes: int = 1  # that trained together; what is in bytes is of one of them
    memory_bytes: int
    platform: str
    dtype: str
    dtype_reason: str
    versions: dict[str, str]
    git_commit: str | None
    wall_seconds: float
    stage_seconds: dict[str, float] = Field(default_factory=dict)
    peak_resident_bytes: int  # of the whole process
    environment: dict[str, str] = Field(default_factory=dict)  # allocator settings, thread counts
    notes: list[str] = Field(default_factory=list)


class RunRecord(Part):
    schema_version: Literal[1] = Field(SCHEMA, alias="schema")
    status: Literal["complete", "stopped"]
    status_reason: str | None = None
    profile: str
    arm: str
    label: str
    method: Literal["base", "full", "lora", "qlora"]
    derived_from: str | None = None  # the arm whose weights this one starts from
    seed: int
    model: ModelInfo
    data: DataInfo
    settings: dict[str, Any]
    parameters: Parameters
    size_bytes: SizeBytes
    flops_per_step: int | None = None  # what the model needs: recompute left out
    hardware_flops_per_step: int | None = None  # with recompute
    train: Train | None = None
    mfu: float | None = None
    hfu: float | None = None
    peak: Peak | None = None
    perplexity: Perplexity | None = None
    task: TaskResult | None = None  # of an arm whose data are a task's; its `perplexity` is null
    generation: Generation | None = None
    provenance: Provenance
    files: dict[str, str] = Field(default_factory=dict)  # file beside the record -> SHA-256

    model_config = ConfigDict(
        extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=()
    )

    @model_validator(mode="before")
    @classmethod
    def _without_seal(cls, values: Any) -> Any:
        return {name: value for name, value in values.items() if name != SEAL} if isinstance(values, dict) else values

    def setting(self, key: str) -> Any:
        """Of `settings` by its dotted key, `quantization.format`; None where the record does not say it."""
        value: Any = self.settings
        for name in key.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        return value

    def document(self) -> dict[str, Any]:
        """What a file of it holds: all values, and a seal that tells when one of them was altered afterwards."""
        values = self.model_dump(by_alias=True, mode="json")
        return values | {SEAL: _seal(values)}

    def to_json(self) -> str:
        return json.dumps(self.document(), indent=1) + "\n"

    def write(self, folder: Path) -> Path:
        """Write `folder/record.json` atomically."""
        path = Path(folder) / RECORD_NAME
        write_atomic(path, self.to_json())
        return path


def _seal(values: dict[str, Any]) -> str:
    """SHA-256 of a record's other content, however it is laid out; no protection against whoever makes a seal of his own."""
    rest = {name: value for name, value in values.items() if name != SEAL}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_record(path: Path) -> RunRecord:
    """Read one record; a damaged, altered or foreign file is one clear line. One without a seal is taken as it stands."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        record = RunRecord.model_validate_json(text)
        values = json.loads(text)
        if values.get(SEAL) not in (None, _seal(values)):
            raise QloraError(f"{path} is not as it was written", "Put the written file back, or remove it and run the arm again")
        return record
    except FileNotFoundError:
        raise QloraError(f"no record at {path}", "Run the arm first: qlora train --help") from None
    except (ValidationError, UnicodeDecodeError, OSError) as e:
        what = e.errors()[0] if isinstance(e, ValidationError) else {"msg": str(e), "loc": ()}
        where = ".".join(map(str, what["loc"]))
        raise QloraError(
            f"{path} is not a readable record ({where}: {what['msg']})",
            "Remove that file and run the arm again",
        ) from None


def read_records(folder: Path) -> dict[str, RunRecord]:
    """All records under `folder`, by arm: `<arm>/record.json` of a results folder or `<arm>.json`."""
    folder = Path(folder)
    paths = sorted([*folder.glob(f"*/{RECORD_NAME}"), *folder.glob("*.json")])
    records = [read_record(p) for p in paths]
    return {r.arm: r for r in records}


Source = Literal["auto", "own", "committed"]


def records_of(profile: str, source: Source = "auto") -> tuple[dict[str, RunRecord], str]:
    """(records of the language-modelling arms by name, where they came from) of a profile.

    `auto` takes this machine's own results when there are any, else those that the repository
    carries. The second value is a sentence for the page that shows them. A profile of tasks alone has
    its task arms here too, so that pages can say what ran; what they did not measure is null.
    """
    records, where = _all_records_of(profile, source)
    return {name: r for name, r in records.items() if r.data.task is None} or records, where


def task_records_of(profile: str, source: Source = "auto") -> tuple[dict[str, RunRecord], str]:
    """The same of the arms whose data are a task's; there may be none."""
    records, where = _all_records_of(profile, source)
    return {name: r for name, r in records.items() if r.data.task is not None}, where


def _all_records_of(profile: str, source: Source) -> tuple[dict[str, RunRecord], str]:
    own, committed = results_dir(profile), committed_records(profile)
    if source in ("auto", "own") and (records := read_records(own)):
        return records, f"measured on this machine ({own.name} results)"
    if source in ("auto", "committed") and (records := read_records(committed)):
        return records, "the example records that the repository carries, measured elsewhere"
    raise QloraError(
        f"no records for profile '{profile}'", f"Make them with: qlora run --profile {profile}"
    )


def finite(value: float | None) -> float | None:
    """None for what JSON cannot hold."""
    return value if value is not None and math.isfinite(value) else None
