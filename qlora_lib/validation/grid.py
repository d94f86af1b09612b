"""The cases that are measured: a model, a method, and the size of one step.

How it works: the real model meets steps as a reader would choose them; tiny models with random weights meet every method with and
without checkpointing, and the other settings go round, so that each value meets each method. They differ
in what the real one cannot vary: depth, width, heads that share keys or do not, a large vocabulary on a narrow model, tied and
untied heads, biases (Qwen2), norms of queries and keys (Qwen3). Everything is fp32 on the CPU, as in the CPU profiles.
"""

from dataclasses import dataclass

from qlora_lib.cost.shapes import SMOLLM2, ModelShape
from qlora_lib.cost.workload import Workload

REAL = "smollm2-135m"
SHAPES: dict[str, ModelShape] = {
    REAL: SMOLLM2,
    "narrow-tied": ModelShape(64, 2, 4, 2, 16, 192, 512, tied_embeddings=True),
    "wide-untied": ModelShape(256, 3, 4, 4, 64, 704, 1024),
    "deep-tied": ModelShape(128, 10, 4, 1, 32, 384, 640, tied_embeddings=True),
    "big-vocabulary-tied": ModelShape(128, 2, 2, 2, 64, 320, 16_384, tied_embeddings=True),
    "big-vocabulary-untied": ModelShape(192, 3, 6, 2, 32, 512, 8192),
    "qwen2-tied": ModelShape(128, 3, 4, 2, 32, 384, 2048, tied_embeddings=True, attention_bias=True),
    "qwen3-untied": ModelShape(128, 4, 4, 2, 64, 320, 2048, qk_norm=True),  # queries wider than the model
}
TINY = tuple(name for name in SHAPES if name != REAL)
FORMATS = (("none", True), ("int8", True), ("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True))
METHODS = ("full", "lora", "qlora")
OPTIMIZERS = ("adamw", "adamw_8bit")
SIZES = ((2, 96), (1, 256), (4, 64), (3, 160), (1, 40))  # sequences, tokens in each


@dataclass(frozen=True)
class Case:
    """One training step. QLoRA means NF4 with double quantization."""

    model: str
    method: str
    batch: int
    length: int
    checkpointing: bool = False
    optimizer: str = "adamw"
    rank: int = 16
    dropout: float = 0.05
    targets: str | tuple[str, ...] = "all-linear"

    @property
    def real(self) -> bool:
        return self.model == REAL

    @property
    def name(self) -> str:
        """All that tells it from the others; what is the default is left out."""
        parts = [self.model, self.method, f"{self.batch}x{self.length}"]
        parts += ["checkpointing"] * self.checkpointing + [self.optimizer] * (self.optimizer != "adamw")
        if self.method != "full":
            parts += [f"r{self.rank}"] * (self.rank != 16) + ["no-dropout"] * (not self.dropout)
            parts += ["+".join(self.targets)] * (self.targets != "all-linear")
        return ".".join(parts)

    def workload(self, shape: ModelShape | None = None) -> Workload:
        """In the terms of the memory model; `shape` of the loaded model where it is at hand."""
        adapters = {} if self.method == "full" else {"rank": self.rank, "dropout": self.dropout, "targets": self.targets}
        return Workload(
            shape or SHAPES[self.model], self.method, self.batch, self.length,
            optimizer=self.optimizer, checkpointing=self.checkpointing, **adapters,
        )  # fmt: skip


@dataclass(frozen=True)
class Format:
    """A model in one storage format, at rest."""

    model: str
    quantization: str
    double_quant: bool = True

    @property
    def name(self) -> str:
        return f"{self.model}.{self.quantization}" + "-dq" * (self.double_quant and self.quantization in ("nf4", "fp4"))

    def workload(self, shape: ModelShape | None = None) -> Workload:
        """With an adapter of the default settings on it."""
        method = "lora" if self.quantization == "none" else "qlora"
        return Workload(
            shape or SHAPES[self.model], method, 1, 1, quantization=self.quantization, double_quant=self.double_quant
        )


def _real() -> list[Case]:
    def case(method: str, size: str, **settings) -> Case:
        batch, length = map(int, size.split("x"))
        return Case(REAL, method, batch, length, **settings)

    again, small = {"checkpointing": True}, {"optimizer": "adamw_8bit"}
    return [
        case("full", "1x128"), case("full", "4x128"), case("full", "4x128", **again), case("full", "2x256", **small),
        case("full", "1x512"), case("full", "4x256", **again, **small), case("full", "1x64", **again),
        case("lora", "1x128"), case("lora", "4x128"), case("lora", "4x128", **again), case("lora", "2x256", dropout=0.0),
        case("lora", "1x512", **small), case("lora", "1x1024", **again), case("lora", "8x64", rank=64),
        case("qlora", "1x64"), case("qlora", "1x128"), case("qlora", "4x128"), case("qlora", "4x128", **again),
        case("qlora", "4x128", **small), case("qlora", "2x256", dropout=0.0), case("qlora", "1x512", **again, dropout=0.0),
        case("qlora", "4x256"), case("qlora", "4x256", **again, **small), case("qlora", "1x1024"),
        case("qlora", "2x256", targets=("q_proj", "v_proj")), case("qlora", "8x64", rank=64, **again),
    ]  # fmt: skip


def _tiny() -> list[Case]:
    cases = []
    for i, model in enumerate(TINY):
        for j, (method, checkpointing) in enumerate((m, c) for m in METHODS for c in (False, True)):
            batch, length = SIZES[(i + 2 * j) % len(SIZES)]
            adapters = {} if method == "full" else {"rank": (8, 16, 32)[(i + j) % 3], "dropout": (0.05, 0.0)[(i + j // 2) % 2]}
            optimizer = OPTIMIZERS[(i + j) % 2]
            cases.append(Case(model, method, batch, length, checkpointing, optimizer, **adapters))
    return cases


REAL_CASES = _real()
TINY_CASES = _tiny()
REAL_FORMATS = [Format(REAL, *of) for of in FORMATS]
TINY_FORMATS = [Format(model, *of) for model in TINY for of in FORMATS]


def cases(only: str | None = None) -> list[Case]:
    """Of the whole grid, or of `real` or `tiny` models only; those that take least time first."""
    return [*(TINY_CASES if only != "real" else []), *(REAL_CASES if only != "tiny" else [])]


def formats(only: str | None = None) -> list[Format]:
    return [*(TINY_FORMATS if only != "real" else []), *(REAL_FORMATS if only != "tiny" else [])]
