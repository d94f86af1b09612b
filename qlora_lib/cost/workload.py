"""One optimizer step of one method: everything that its bytes depend on, in one frozen record.

How it works: a `Workload` names a model's shape, a method, the size of the step and how numbers are stored; `memory`,
`activations` and `peak` turn it into bytes. What is left open takes the value with which this project's training would
run: `weight_dtype` follows `models.weight_dtype` and PEFT's preparation, `quantization` the method.

    dtype          of the products; where it is a 16-bit one they run in autocast, as Trainer has it
    weight_dtype   of the base's weights that are not quantized: full keeps fp32, LoRA the dtype of the products,
                   QLoRA fp32 again (`prepare_model_for_kbit_training` casts what is left in 16 bits)
    adapter_dtype  of LoRA's matrices; PEFT makes them fp32
"""

from collections.abc import Iterable
from dataclasses import dataclass

from qlora_lib.cost.flops import METHODS
from qlora_lib.cost.shapes import ALL_LINEAR, ModelShape, resolve_targets
from qlora_lib.errors import UsageError, nearest

WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}  # bytes
QUANTIZATIONS = ("none", "int8", "nf4", "fp4")
OPTIMIZERS = ("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit")
ATTENTIONS = ("sdpa", "eager")
DEVICES = ("cpu", "cuda")
LOSSES = ("whole", "chunked")
ATTENTION_IN, ATTENTION_OUT, MLP = ALL_LINEAR[:3], ALL_LINEAR[3:4], ALL_LINEAR[4:]
MOST = 10**9  # of sequences, tokens, micro-batches and ranks: far beyond any machine, and no product of them overflows
BLOCK_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)  # that bitsandbytes quantizes 4-bit weights in


@dataclass(frozen=True)
class Workload:
    """One training step. Lengths in tokens, `batch` in sequences of a micro-batch.

    What is left open is filled in at once: `dataclasses.replace` keeps it, unless it is given None again.

    Raises UsageError for an unknown word, a number out of range, a quantized base that is trained in full and
    QLoRA without quantization.
    """

    shape: ModelShape
    method: str  # full, lora or qlora
    batch: int
    length: int  # of each sequence
    accumulation: int = 1  # micro-batches whose gradients are added up
    rank: int = 16  # of the adapters; `full` has none
    targets: str | tuple[str, ...] = "all-linear"
    dropout: float = 0.05  # in front of every adapter
    quantization: str | None = None  # none, int8, nf4 or fp4; None: nf4 for QLoRA
    double_quant: bool = True  # of the scales of nf4 and fp4
    block_size: int = 64  # weights that share a scale in nf4 and fp4
    dtype: str = "fp32"  # fp32, fp16 or bf16
    weight_dtype: str | None = None
    adapter_dtype: str = "fp32"
    optimizer: str = "adamw"
    checkpointing: bool = False
    attention: str = "sdpa"
    device: str = "cpu"
    fast: bool = False  # forwards and loss of qlora_lib.fast; where not, those of the stock stack
    loss: str = "whole"  # all logits at once, or "chunked": some rows at a time. `fast` brings the second, but not in fp16
    fused_optimizer: bool | None = None  # 8-bit states in one pass over the CPU's cache; None: where `fast` has it
    trainer: bool = True  # transformers' Trainer runs the step: of 8-bit states it leaves the embedding's in 32 bits

    def __post_init__(self) -> None:
        put = lambda name, value: object.__setattr__(self, name, value)  # noqa: E731
        if self.quantization is None:
            put("quantization", "nf4" if self.method == "qlora" else "none")
        for name, allowed in _WORDS.items():
            if (value := getattr(self, name)) not in allowed:
                raise UsageError(f"unknown {name.replace('_', ' ')} '{value}'", nearest(str(value), allowed))
        if self.weight_dtype is None:
            put("weight_dtype", self.dtype if self.method == "lora" else "fp32")
        for name in ("weight_dtype", "adapter_dtype"):
            if (value := getattr(self, name)) not in (allowed := tuple(dict.fromkeys(("fp32", self.dtype)))):
                what = f"{name.replace('_', ' ')} is '{value}' and the products run in {self.dtype}"
                raise UsageError(what, f"Choose from: {', '.join(allowed)}; or another dtype of the products")
        for name in ("batch", "length", "accumulation", "rank"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST:
                raise UsageError(f"{name} is {value!r:.30}; a whole number of at least 1 and at most {MOST:.0e} was expected")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"dropout is {self.dropout!r}; a number from 0 up to, and without, 1 was expected")
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block size is {self.block_size!r}", f"bitsandbytes takes: {', '.join(map(str, BLOCK_SIZES))}")
        if self.method == "qlora" and self.quantization == "none":
            raise UsageError("QLoRA without quantization is LoRA", "Give the method lora, or a quantization")
        if self.method == "full" and self.quantization != "none":
            raise UsageError(f"weights in {self.quantization} cannot be trained", "Give the method qlora, or no quantization")
        if self.trains_all:
            put("targets", ())
        elif self.targets != "all-linear":
            put("targets", resolve_targets(self.targets))
        if self.fast and self.dtype != "fp16":  # a gradient made before the loss is scaled up would lose its small values
            put("loss", "chunked")

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.batch * self.length

    @property
    def trains_all(self) -> bool:
        return self.method == "full"

    @property
    def adapted(self) -> tuple[str, ...]:
        """Names of the linear modules that carry an adapter, in the order run."""
        return () if self.trains_all else resolve_targets(self.targets)

    @property
    def autocast(self) -> bool:
        """Whether the products run in mixed precision."""
        return self.dtype != "fp32"

    @property
    def width(self) -> int:
        """Bytes of a number in a product."""
        return WIDTH[self.dtype]

    @property
    def weight_width(self) -> int:
        """Bytes of a base weight that is not quantized; so wide is the residual stream too."""
        return WIDTH[self.weight_dtype]

    @property
    def adapter_width(self) -> int:
        return WIDTH[self.adapter_dtype]

    def in_one_function(self, module: str) -> bool:
        """Whether qlora_lib.fast computes this linear module, with those that belong to it; 8-bit ones it does not."""
        if not self.fast or self.quantization == "int8":
            return False
        group = next(g for g in (ATTENTION_IN, ATTENTION_OUT, MLP) if module in g)
        return set(group) <= set(self.adapted)

    @property
    def state_bits(self) -> int:
        return 8 if self.optimizer.endswith("8bit") else 32

    @property
    def fuses(self) -> bool:
        """Whether qlora_lib.fast.optimizer makes the update."""
        fused = self.fast if self.fused_optimizer is None else self.fused_optimizer
        return fused and self.state_bits == 8 and self.device == "cpu"

    @property
    def embedding_in_32(self) -> bool:
        """Whether the states of a trained embedding have 32 bits where others have 8 (Trainer 5.23, `create_optimizer`,
        which knows bitsandbytes' optimizers by name, and so leaves the fused one alone)."""
        return self.trainer and self.trains_all and self.state_bits == 8 and not self.fuses

    @property
    def pages(self) -> bool:
        """Whether the optimizer may put states into paged memory; without CUDA its unpaged twin runs."""
        return self.optimizer.startswith("paged") and self.device == "cuda"


_WORDS: dict[str, Iterable[str]] = {
    "method": METHODS,
    "quantization": QUANTIZATIONS,
    "dtype": tuple(WIDTH),
    "optimizer": OPTIMIZERS,
    "attention": ATTENTIONS,
    "device": DEVICES,
    "loss": LOSSES,
}
