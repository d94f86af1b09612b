"""Typed settings: a profile is one YAML file, its arms are the runs that it compares.

How it works: a profile holds settings that all its arms share, and each arm overrides a few of
them by dotted keys (`train.learning_rate: 2.0e-4`). Everything is checked when it is read:
an unknown key, a wrong type or an impossible value is one line that names the key and the nearest
valid one. Precedence, lowest first: defaults here, the profile, the arm, `--set` on the command line.
"""

import fnmatch
import re
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from qlora_lib.checking import dotted_keys, parse_yaml, set_dotted, validate
from qlora_lib.errors import UsageError, nearest
from qlora_lib.processes import share

PROFILES_DIR = Path(__file__).parent / "profiles"
MOST_ARMS = 1000  # of a profile: a few lists of values multiply to more than can be looked at, let alone run

Method = Literal["base", "full", "lora", "qlora"]
Format = Literal["none", "int8", "nf4", "fp4"]
DType = Literal["auto", "fp32", "fp16", "bf16"]


class Section(BaseModel):
    # strict: "5" is not a number and 1 is not true; a typing slip is better told than guessed at
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())


class Model(Section):
    name: str = Field(min_length=1)  # registered name, hub id[@revision], local folder or .gguf file


class Data(Section):
    name: str = Field(min_length=1)  # registered text or task, or a local file or folder of one
    text_column: str = "text"  # of JSONL, CSV, TSV and Parquet
    window_length: int = Field(128, ge=8, le=131072)  # tokens in a training example; of a task: at most


class Quantization(Section):
    format: Format = "none"
    double_quant: bool = True  # 4-bit only: 8-bit codes for the block scales too


class Lora(Section):
    rank: int = Field(16, ge=1, le=4096)
    alpha: float = Field(32, gt=0)
    dropout: float = Field(0.05, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    use_rslora: bool = False  # scale by alpha / sqrt(rank) in place of alpha / rank

    @field_validator("target_modules", mode="before")
    @classmethod
    def _names_modules(cls, value):
        names = isinstance(value, list) and value and all(isinstance(name, str) for name in value)
        if not names and value != "all-linear":
            raise ValueError("expected 'all-linear' or a list of module names, e.g. [q_proj, v_proj]")
        return value


class Train(Section):
    max_steps: int = Field(32, ge=1, le=10_000_000)  # optimizer steps
    epochs: float | None = Field(None, gt=0)  # stops earlier when the data ends first
    batch_size: int = Field(4, ge=1)  # sequences a forward pass; times the next: a step's windows, over all processes
    gradient_accumulation_steps: int = Field(1, ge=1)
    learning_rate: float = Field(2e-4, gt=0, le=1)
    warmup_steps: int = Field(0, ge=0)
    schedule: Literal["linear", "cosine", "constant", "constant_with_warmup"] = "linear"
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    optimizer: Literal["adamw_torch", "adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit"] = (
        "adamw_torch"
    )
    precision: DType = "auto"  # of activations and products; auto: by device, with a reason
    gradient_checkpointing: bool = False
    eval_every: int = Field(8, ge=1)  # steps between validations
    eval_windows: int = Field(8, ge=1)  # of the validation split, of data.window_length; of a task: examples
    eval_batch_size: int = Field(4, ge=1)
    save_every: int = Field(0, ge=0)  # steps between checkpoints to resume from; 0: none
    keep_model: bool = True  # save the trained weights or adapter beside the record


class Evaluation(Section):
    split: Literal["validation", "test"] = "test"
    context: int = Field(256, ge=2, le=131072)
    stride: int = Field(256, ge=1)
    windows: int | None = Field(None, ge=1)  # the first so many; null: all; of a task: test examples
    batch_size: int = Field(2, ge=1)
    perplexity: bool = True  # of a task: its own metric
    answer_tokens: int = Field(48, ge=1)  # of a task: the longest answer that the model may give
    samples: int = Field(4, ge=0)  # of a task: test examples kept word for word, with the model's answers
    new_tokens: int = Field(50, ge=0)  # greedy decode that is timed; 0: none
    repeats: int = Field(3, ge=1)
    prompt: str = "The history of the city begins"

    @model_validator(mode="after")
    def _stride_fits(self):
        if self.stride > self.context:
            raise ValueError(f"stride ({self.stride}) exceeds context ({self.context})")
        return self


class Runtime(Section):
    backend: Literal["peft", "unsloth"] = "peft"  # who loads the base and attaches adapters; unsloth needs CUDA
    threads: int | None = Field(None, ge=1)  # null: one a physical core that this process may use
    keep_freed_memory: bool = True  # glibc: reuse large blocks in place of returning them
    meter_tensors: bool = True  # follow allocator events through one training step
    fast: bool = True  # forwards, loss, optimizer and decoder of qlora_lib.fast where they apply; false: the stock stack
    processes: int = Field(1, ge=1, le=1024)  # that train together, a GPU or a share of the CPU each; threads are of one of them
    sharding: Literal["none", "fsdp"] = "none"  # fsdp: each process holds a part of the weights; needs CUDA and processes > 1


class Needs(Section):
    """What the heaviest arm takes, for `qlora profiles` and `qlora doctor`."""

    memory_gib: float = Field(gt=0)
    disk_gib: float = Field(gt=0)
    download_mb: float = Field(ge=0)
    gpu_memory_gib: float | None = Field(None, gt=0)  # null: no GPU is needed


class Search(Section):
    """Learning rates to try for each method, compared on the validation split."""

    rates: Annotated[
        dict[Literal["full", "lora", "qlora"], Annotated[list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=1)]],
        Field(min_length=1),
    ]
    record: str = Field(pattern=r"^\w[\w.-]*\.json$")  # file name under report/records that holds the outcome


class ArmEntry(Section):
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    label: str
    method: Method
    derived_from: str | None = None  # start from this arm's trained weights
    runs: bool = True  # false: declared for the reader, with `why`
    why: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)


class Sweep(Section):
    """Arms that differ in a few settings: one for each combination of values, with each seed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")
    label: str
    method: Method
    set: dict[str, Any] = Field(default_factory=dict)  # what its arms share
    vary: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(min_length=1)
    seeds: list[int] = Field([0], min_length=1)

    def count(self) -> int:
        return prod(len(values) for values in self.vary.values()) * len(self.seeds)

    def arms(self) -> list[ArmEntry]:
        return [self._arm(values, seed) for values in product(*self.vary.values()) for seed in self.seeds]

    def _arm(self, values: tuple, seed: int) -> ArmEntry:
        shown = [f"{v:g}" if isinstance(v, float) else "-".join(map(str, v)) if isinstance(v, list) else str(v) for v in values]
        return ArmEntry(
            name=re.sub(r"[^a-z0-9._-]+", "-", f"{'-'.join([self.name, *shown])}-s{seed}".lower()),
            label=f"{self.label}, {', '.join(shown)}, seed {seed}",
            method=self.method,
            set=self.set | dict(zip(self.vary, values)) | {"seed": seed},
        )


class Settings(Section):
    """What one arm runs with."""

    seed: int = Field(0, ge=0, lt=2**32)
    model: Model
    data: Data
    quantization: Quantization = Field(default_factory=Quantization)
    lora: Lora = Field(default_factory=Lora)
    train: Train = Field(default_factory=Train)
    evaluation: Evaluation = Field(default_factory=Evaluation)
    runtime: Runtime = Field(default_factory=Runtime)


class Profile(Settings):
    name: str = Field(pattern=r"^[^./\\][^/\\]*$")  # of the folders that results and pages are written to
    title: str
    about: str
    hardware: str
    needs: Needs
    search: Search | None = None
    arms: list[ArmEntry] = Field(min_length=1)
    sweeps: list[Sweep] = Field(default_factory=list)

    @model_validator(mode="after")
    def _arms_fit(self):
        if len(self.arms) + sum(sweep.count() for sweep in self.sweeps) > MOST_ARMS:
            raise ValueError(f"its sweeps make more than {MOST_ARMS} arms")
        self.arms = self.arms + [arm for sweep in self.sweeps for arm in sweep.arms()]
        names = [a.name for a in self.arms]
        if len(set(names)) != len(names):
            raise ValueError("two arms have the same name")
        for arm in self.arms:
            if not arm.runs and not arm.why:
                raise ValueError(f"arm '{arm.name}' does not run: say why")
            if arm.derived_from and arm.derived_from not in names[: names.index(arm.name)]:
                raise ValueError(f"arm '{arm.name}' derives from '{arm.derived_from}', which is no earlier arm")
            source = arm.derived_from and self.arms[names.index(arm.derived_from)]
            if source and not (source.runs and source.method != "base"):
                raise ValueError(f"arm '{arm.name}' derives from '{source.name}', which trains nothing")
        return self

    def arm(self, name: str) -> ArmEntry:
        for arm in self.arms:
            if arm.name == name:
                return arm
        raise UsageError(
            f"profile '{self.name}' has no arm '{name}'", nearest(name, [a.name for a in self.arms])
        )

    def arms_like(self, patterns: list[str]) -> list[str]:
        """Names of the arms that run and match one of the shell patterns."""
        running = [arm.name for arm in self.arms if arm.runs]
        for pattern in patterns:
            if not fnmatch.filter(running, pattern):
                raise UsageError(f"profile '{self.name}' runs no arm like '{pattern}'", nearest(pattern, running))
        return [name for name in running if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]

    def assets(self) -> list[str]:
        """Names of every model and data set that its arms need, each once."""
        settings = [self.settings(arm) for arm in self.arms if arm.runs]
        return list(dict.fromkeys(name for s in settings for name in (s.model.name, s.data.name)))

    def arm_of_method(self, method: str) -> ArmEntry:
        """The first arm that runs this method."""
        for arm in self.arms:
            if arm.method == method and arm.runs:
                return arm
        raise UsageError(
            f"profile '{self.name}' runs no arm with method '{method}'",
            nearest(method, sorted({a.method for a in self.arms if a.runs})),
        )

    def settings(self, arm: ArmEntry, overrides: dict[str, Any] | None = None) -> Settings:
        """The settings of one arm: the profile's, then the arm's, then `overrides` (dotted keys)."""
        shared = {key: getattr(self, key).model_dump() for key in Settings.model_fields if key != "seed"}
        shared["seed"] = self.seed
        where = f"arm '{arm.name}' of profile '{self.name}'"
        for key, value in [*arm.set.items(), *(overrides or {}).items()]:
            set_dotted(Settings, shared, key, value, where)
        settings = validate(Settings, shared, where)
        if arm.method == "qlora" and settings.quantization.format not in ("nf4", "fp4"):
            raise UsageError(
                f"quantization.format is '{settings.quantization.format}' in {where}",
                "Method qlora trains on a 4-bit base: set it to nf4 or fp4",
            )
        if arm.method in ("full", "lora") and settings.quantization.format != "none":
            raise UsageError(
                f"quantization.format is '{settings.quantization.format}' in {where}",
                f"Method {arm.method} trains on 16/32-bit weights: set it to none, or use qlora",
            )
        if settings.runtime.backend == "unsloth":
            check_unsloth(settings, arm.method, where)
        if arm.method != "base":
            check_processes(settings, where)
        return settings


def check_unsloth(settings: Settings, method: str, where: str) -> None:
    """Unsloth's loader quantizes to NF4 with double quantization or not at all, and its layers are its own."""
    q = settings.quantization
    if method not in ("lora", "qlora"):
        raise UsageError(f"runtime.backend is 'unsloth' with method {method} in {where}", "It serves lora and qlora: set it to peft")
    if method == "qlora" and (q.format, q.double_quant) != ("nf4", True):
        raise UsageError(f"runtime.backend is 'unsloth' without NF4 and double quantization in {where}", "Set quantization.format to nf4 and quantization.double_quant to true, or the back end to peft")
    if settings.runtime.processes > 1:
        raise UsageError(f"runtime.backend is 'unsloth' with {settings.runtime.processes} processes in {where}", "Set runtime.processes to 1, or the back end to peft")
    if settings.runtime.fast:
        raise UsageError(f"runtime.backend is 'unsloth' and runtime.fast is true in {where}", "Both replace the model's forwards: set runtime.fast to false")


def check_processes(settings: Settings, where: str) -> None:
    """A step's windows must divide by the processes; what FSDP leaves no choice in is told."""
    t, r = settings.train, settings.runtime
    try:
        share(t.batch_size, t.gradient_accumulation_steps, r.processes)
    except ValueError:
        raise UsageError(
            f"{r.processes} processes cannot share a step of train.batch_size {t.batch_size} x "
            f"train.gradient_accumulation_steps {t.gradient_accumulation_steps} in {where}",
            f"Make one of the two a multiple of {r.processes}",
        ) from None
    if r.sharding == "none":
        return
    if r.processes == 1:
        raise UsageError(f"runtime.sharding is 'fsdp' with one process in {where}", "Set runtime.processes to the number of GPUs, or runtime.sharding to none")
    if r.fast:
        raise UsageError(f"runtime.sharding is 'fsdp' and runtime.fast is true in {where}", "The fast forwards read weights that FSDP has taken apart: set runtime.fast to false")
    if t.optimizer.startswith("paged"):
        raise UsageError(f"runtime.sharding is 'fsdp' with train.optimizer {t.optimizer} in {where}", "Its states cannot be saved in a checkpoint there: set it to adamw_torch")
    if settings.evaluation.perplexity or settings.evaluation.new_tokens:
        raise UsageError(f"runtime.sharding is 'fsdp', and evaluation needs the whole model in one process, in {where}", "Set evaluation.perplexity to false and evaluation.new_tokens to 0, and score the result with qlora eval")


# --- reading -----------------------------------------------------------------------------------


def profile_names() -> list[str]:
    order = ["demo", "smoke"]
    names = [p.stem for p in PROFILES_DIR.glob("*.yaml")]
    return sorted(names, key=lambda n: (order.index(n) if n in order else len(order), n))


def load_profile(name: str) -> Profile:
    """A profile by name, or from a YAML file of the user's own."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise UsageError(f"no profile file at {path}", "Give a YAML file that exists, or a name from: qlora profiles")
    else:
        path = PROFILES_DIR / f"{name}.yaml"
        if name not in profile_names():
            raise UsageError(f"unknown profile '{name}'", nearest(name, profile_names()))
    try:
        text = path.read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as e:
        raise UsageError(f"{path} cannot be read as text: {e}") from None
    values = parse_yaml(text, str(path.name))
    if not isinstance(values, dict):
        raise UsageError(f"{path.name} is not a profile: expected keys and values at the top level")
    values = {"name": path.stem, **values}
    where = f"profile '{path.stem}'"
    profile = validate(Profile, values, where)
    for arm in profile.arms:
        profile.settings(arm)  # an arm that cannot run is told now, not after the first hour
    return profile


def parse_overrides(assignments) -> dict[str, Any]:
    """`["train.max_steps=5", ...]` as `{dotted key: value}`.

    Values are YAML, except that a text setting takes what was written: a file may be called
    `2024` or `notes #1.txt`.
    """
    texts, overrides = dotted_keys(Settings, of_type=str), {}
    for text in assignments:
        key, sep, value = text.partition("=")
        if not sep or not key.strip():
            raise UsageError(f"--set {text!r} is no assignment", "Write --set key=value, e.g. --set train.max_steps=5")
        key, quoted = key.strip(), value.strip()[:1] in ("'", '"')
        overrides[key] = value.strip() if key in texts and not quoted else parse_yaml(value, f"--set {key}")
    return overrides


def parse_settings(kind: type[Section], assignments, values: dict[str, Any], where: str):
    """A settings section from `["key=value", ...]` on top of `values`."""
    for text in assignments:
        key, sep, value = text.partition("=")
        if not sep or not key.strip():
            raise UsageError(f"{where} {text!r} is no assignment", f"Write {where} key=value")
        key = key.strip()
        if key not in kind.model_fields:
            raise UsageError(f"unknown key '{key}' in {where}", nearest(key, kind.model_fields))
        values = values | {key: value.strip() if kind.model_fields[key].annotation is str else parse_yaml(value, f"{where} {key}")}
    return validate(kind, values, where)
