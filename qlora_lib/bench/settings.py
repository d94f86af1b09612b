"""What `qlora bench` measures: typed settings, and how shapes are written."""

import re
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import UsageError

NF4_DQ = Quantization(format="nf4", double_quant=True)


@dataclass(frozen=True)
class Shape:
    """Sequences in a step, and tokens in each; written 4x128."""

    batch: int
    length: int

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def __str__(self) -> str:
        return f"{self.batch}x{self.length}"


@dataclass(frozen=True)
class BenchSettings:
    """One call of `qlora bench`."""

    profile: str = "demo"  # gives the text, the prompt, and the model unless one is named
    model: str | None = None
    shapes: tuple[Shape, ...] = (Shape(4, 128), Shape(4, 256))
    repeats: int = 5  # timed rounds; in each, every arm runs once
    new_tokens: int = 50
    windows: int = 4  # that perplexity is taken over
    context: int = 256  # tokens in such a window
    score_batch: int = 2  # windows scored at a time
    limit_bytes: int = 256 * 2**20  # that bandwidth is measured on; far more than any cache
    gguf: Path | None = None  # the same model for llama.cpp
    seed: int = 0
    quick: bool = False  # shows that everything runs; its numbers mean nothing
    lora: Lora = field(default_factory=Lora)  # rank 16, alpha 32, dropout 0.05, all seven modules

    def __post_init__(self):
        if not self.shapes:
            raise UsageError("no shape to train at", "Give --shapes, e.g. 4x128,4x256")
        smallest = {"repeats": 1, "new_tokens": 2, "windows": 1, "context": 2, "score_batch": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; at least {least} was expected")
        if self.gguf is not None and not self.gguf.is_file():
            raise UsageError(f"there is no file {self.gguf}", "Give the .gguf file of this model")


# For `--quick`: one round on a tiny random model, in seconds.
QUICK = {
    "profile": "smoke", "shapes": (Shape(2, 16),), "repeats": 1, "new_tokens": 4, "windows": 2, "context": 32,
    "limit_bytes": 2**20, "quick": True,
}  # fmt: skip


def parse_shapes(text: str) -> tuple[Shape, ...]:
    """"4x128,4x256" -> shapes, in that order, each once.

    Raises UsageError for text that is none.
    """
    shapes = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*([1-9]\d{0,3})x([1-9]\d{0,5})\s*", part)
        if not match or int(match[2]) < 2:
            hint = "Write sequences x tokens (2 or more), e.g. --shapes 4x128,4x256"
            raise UsageError(f"'{part.strip()}' is no shape", hint)
        shapes[Shape(int(match[1]), int(match[2]))] = None
    return tuple(shapes)
