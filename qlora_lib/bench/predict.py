"""What one case of the GPU check should take, from shapes and data sheets alone: no tensors.

How it works: bytes of weights, trained parameters and optimizer states are exact, by the formats that the libraries
store (PEFT 0.21, bitsandbytes 0.50). The peak is an estimate: to the exact part it adds what autograd keeps of
the stock forwards in mixed precision, counted per token as Korthikanti et al. 2022 ("Reducing Activation
Recomputation in Large Transformer Models", section 4) do, for LLaMA's layer and with fused attention, and the
largest temporaries. Times are limits, not estimates: a step cannot be faster than its products at the
device's peak, a token not faster than the weights can be read once.

Mixed precision means: `full` keeps its weights in fp32 and QLoRA what is not quantized (PEFT's preparation casts it),
so their residual stream is fp32 too; LoRA's base and stream are in the 16-bit dtype. What is trained is fp32.
"""

from dataclasses import dataclass

from qlora_lib.cost.devices import find_gpu
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.memory import FLOAT as FP32
from qlora_lib.cost.memory import adapter_tensors, nf4_bytes, state_bytes, weight_tensors
from qlora_lib.cost.shapes import ModelShape

WIDTH = {"fp32": 4, "fp16": 2, "bf16": 2}
ROWS_AT_ONCE = 128  # of logits, in the chunked loss


@dataclass(frozen=True)
class Work:
    """A training step: shape, method, sequences x tokens, LoRA's rank in all seven modules."""

    shape: ModelShape
    method: str  # full, lora or qlora
    batch: int
    length: int
    rank: int
    checkpointing: bool
    dtype: str  # of the products: fp32, fp16 or bf16

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    @property
    def base_width(self) -> int:
        """Bytes of a base weight that is not quantized."""
        return WIDTH[self.dtype] if self.method == "lora" else FP32


@dataclass(frozen=True)
class Prediction:
    weight_bytes: int  # adapters and quantization state included
    trainable_bytes: int
    optimizer_bytes: int  # AdamW with 8-bit states
    peak_bytes: int  # of a training step; estimated
    hardware_flops: int  # of a training step, recompute included
    step_seconds: float | None  # at least; None without a known peak
    bytes_per_token: int  # of weights that decoding reads
    decode_tokens_per_second: float | None  # at most; None without a known bandwidth


def predict(work: Work, peak: float | None, bandwidth: float | None) -> Prediction:
    """peak: FLOP/s of the device in `work.dtype`; bandwidth: bytes a second."""
    trained = trained_tensors(work)
    weights = weight_bytes(work)
    fixed = weights + state_bytes(trained, bits=8)
    flops = step_flops(
        work.shape, work.method, work.batch, work.length, work.rank, gradient_checkpointing=work.checkpointing
    ).hardware_flops
    looked_up = 0 if work.shape.tied_embeddings else work.shape.parameters.embedding * work.base_width
    read = weights - looked_up
    return Prediction(
        weight_bytes=weights,
        trainable_bytes=sum(trained) * FP32,
        optimizer_bytes=state_bytes(trained, bits=8),
        # gradients grow while activations go, so the larger of the two is what is held
        peak_bytes=fixed + max(activation_bytes(work) + temporary_bytes(work), sum(trained) * FP32),
        hardware_flops=flops,
        step_seconds=flops / peak if peak else None,
        bytes_per_token=read,
        decode_tokens_per_second=bandwidth / read if bandwidth else None,
    )


def bandwidth_of(device_name: str) -> float | None:
    """Bytes a second by the data sheet; None for a device that is not listed."""
    gpu = find_gpu(device_name)
    return gpu.bandwidth if gpu else None


# --- exact ----------------------------------------------------------------------------------------


def weight_bytes(work: Work) -> int:
    """Resident weights with adapters, quantization state and the rotary frequencies (kept twice, fp32)."""
    shape = work.shape
    linear = shape.linear_weights
    total = (shape.parameters.total - linear) * work.base_width + 2 * shape.head_dim // 2 * FP32
    if work.method == "qlora":
        total += shape.num_layers * sum(nf4_bytes(i * o) for i, o in shape.linear_modules.values())
    else:
        total += linear * work.base_width
    return total + (0 if work.method == "full" else sum(trained_tensors(work)) * FP32)


def trained_tensors(work: Work) -> list[int]:
    """Elements of each tensor that is trained."""
    return weight_tensors(work.shape) if work.method == "full" else adapter_tensors(work.shape, work.rank)


# --- estimated ------------------------------------------------------------------------------------


def activation_bytes(work: Work) -> int:
    """What autograd keeps of the layers: of each its input and, without checkpointing, all that its backward needs."""
    stream = work.base_width
    if not work.checkpointing:
        return work.shape.num_layers * work.tokens * layer_bytes(work)
    inputs = work.shape.num_layers * work.tokens * work.shape.hidden_size * stream
    return inputs + work.tokens * layer_bytes(work)  # and one layer, made again


def layer_bytes(work: Work) -> int:
    """Bytes that one layer keeps for one token."""
    shape, width = work.shape, WIDTH[work.dtype]
    h, q, kv, m = shape.hidden_size, shape.query_width, shape.kv_width, shape.intermediate_size
    norms = 2 * 2 * h * FP32  # two norms, in fp32: x, and x over its length
    inputs = 2 * h * width  # of q, k, v and of gate, up
    attention = (2 * q + 2 * kv) * width  # queries, keys, values, output
    mlp = 4 * m * width  # gate, its SiLU, up, their product
    adapters = 0
    if work.method != "full":  # after dropout: the input of A, its mask (a byte; fp32 on a CPU), and what A makes
        mask = 1 if width < FP32 else FP32
        adapters = sum(i * (width + mask) + work.rank * width for i, _ in shape.linear_modules.values())
    return norms + inputs + attention + mlp + adapters


def temporary_bytes(work: Work) -> int:
    """The largest that comes and goes beside them: logits, cast or dequantized weights, gradients inside a layer."""
    shape, width = work.shape, WIDTH[work.dtype]
    head = shape.vocab_size * shape.hidden_size
    if work.dtype == "fp16":  # the loss is scaled, so transformers' own runs: logits, in fp32, log-softmax, gradient
        logits = work.tokens * shape.vocab_size * (width + 3 * FP32)
    else:
        rows = min(work.tokens, ROWS_AT_ONCE)
        logits = rows * shape.vocab_size * (width + 2 * FP32) + 2 * work.tokens * shape.hidden_size * FP32
    inside = 2 * work.tokens * shape.intermediate_size * width
    if work.method == "full":  # autocast keeps a 16-bit copy of each weight until the step's backward is over
        copies = (shape.linear_weights + head) * width if width < FP32 else 0
        return logits + inside + copies + head * FP32  # and the gradient of the head, which comes first
    cast = head * width if width < work.base_width else 0
    dequantized = max(i * o for i, o in shape.linear_modules.values()) * width if work.method == "qlora" else 0
    return logits + inside + max(cast, dequantized)
