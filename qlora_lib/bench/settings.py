"""What `qlora bench` measures: typed settings, and how shapes are written."""

import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import UsageError, nearest

NF4_DQ = Quantization(format="nf4", double_quant=True)
PARTS = ("training", "numerics", "decode", "perplexity", "scaling", "causes")


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
class Grid:
    """Where the scaling is measured; the arms of a series are the same at each of its places."""

    lengths: tuple[int, ...] = (128, 256, 512, 1024)  # tokens of one training sequence
    batches: tuple[int, ...] = (1, 2, 4, 8)  # training sequences of `batch_length` tokens
    batch_length: int = 128
    contexts: tuple[int, ...] = (64, 256, 512, 1024)  # tokens in the cache when decoding begins
    sequences: tuple[int, ...] = (1, 2, 4, 8)  # decoded at a time, after contexts[0] tokens each
    prompts: tuple[int, ...] = (16, 64, 256)  # tokens before the first one is made
    new_tokens: int = 16  # that are timed after a filled cache

    @property
    def longest(self) -> int:
        """Tokens of the longest piece of text that is needed in one go."""
        return max(*self.lengths, self.batch_length, *(c + 1 for c in self.contexts), *self.prompts)


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
    gguf: Path | None = None  # the same model for llama.cpp; the registered file where none is given
    parts: tuple[str, ...] = PARTS  # that are measured; the machine's limits always are
    scaling_repeats: int = 3  # timed rounds at each place of the scaling, and of the causes
    grid: Grid = field(default_factory=Grid)
    agreement_steps: int = 20  # of a training whose losses are compared
    agreement_shape: Shape = Shape(2, 128)  # sequences x tokens of each
    agreement_texts: int = 10  # that are decoded and compared
    agreement_tokens: int = 200  # in each
    seed: int = 0
    quick: bool = False  # shows that everything runs; its numbers mean nothing
    lora: Lora = field(default_factory=Lora)  # rank 16, alpha 32, dropout 0.05, all seven modules

    def __post_init__(self):
        if not self.shapes:
            raise UsageError("no shape to train at", "Give --shapes, e.g. 4x128,4x256")
        if not self.parts:
            raise UsageError("no part to measure", f"Give --parts, of {', '.join(PARTS)}")
        smallest = {"repeats": 1, "scaling_repeats": 1, "new_tokens": 2, "windows": 1, "context": 2, "score_batch": 1}
        for name, least in smallest.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; at least {least} was expected")
        if self.gguf is not None and not self.gguf.is_file():
            raise UsageError(f"there is no file {self.gguf}", "Give the .gguf file of this model")

    def wants(self, *parts: str) -> bool:
        """Whether one of these is measured."""
        return any(part in self.parts for part in parts)

    def plain(self) -> dict:
        """As JSON holds them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return values | {
            "shapes": [str(s) for s in self.shapes],
            "agreement_shape": str(self.agreement_shape),
            "gguf": str(self.gguf) if self.gguf else None,
            "parts": list(self.parts),
            "grid": {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self.grid).items()},
            "lora": self.lora.model_dump(),
        }


# For `--quick`: one round on a tiny random model, in seconds.
QUICK = {
    "profile": "smoke", "shapes": (Shape(2, 16),), "repeats": 1, "new_tokens": 4, "windows": 2, "context": 32,
    "limit_bytes": 2**20, "quick": True, "scaling_repeats": 1,
    "agreement_steps": 3, "agreement_shape": Shape(2, 16), "agreement_texts": 2, "agreement_tokens": 8,
    "grid": Grid(
        lengths=(8, 16, 32), batches=(1, 2), batch_length=16, contexts=(4, 8, 16), sequences=(1, 2), prompts=(4, 8, 16),
        new_tokens=2,
    ),
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


def parse_parts(text: str) -> tuple[str, ...]:
    """The parts that "decode, training" names, each once, in the order in which they are measured.

    Raises UsageError for a word that is no part.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in PARTS:
            raise UsageError(f"'{word}' is no part of the bench; expected {', '.join(PARTS)}", nearest(word, PARTS))
    return tuple(part for part in PARTS if part in words)
