"""Bytes that stay from step to step: weights, quantization constants, adapters, buffers, optimizer states.

How it works: the shape gives the elements of every tensor, the format how many bytes an element takes and what stands
beside it. Everything here is exact: the tests count the same on loaded models (transformers 5.23, PEFT 0.21,
bitsandbytes 0.50). Only linear layers of the blocks are quantized; embedding, head, norms, biases stay as they are.

    format      an element   beside a matrix of n elements, o rows, b = n / block_size blocks
    int8        1 byte       a scale a row (SCB): 4 o
    nf4, fp4    1/2 byte     a scale a block: 4 b, and a table of 16 codes
    with double quantization: b bytes, a scale for 256 of them, a table of 256 codes, the scales' mean
"""

from dataclasses import dataclass
from math import ceil

from qlora_lib.cost.shapes import ModelShape, resolve_targets
from qlora_lib.cost.workload import WIDTH, Workload

FLOAT = WIDTH["fp32"]
SMALLEST_8BIT = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits
STATE_BLOCK = 256  # elements of an 8-bit state that share a scale
SMALLEST_PAGED = 100_000  # elements; bitsandbytes pages no smaller tensor
CODES_4BIT, CODES_8BIT = 16, 256  # entries of a look-up table
SCALE_BLOCK = 256  # scales that share a second scale


# --- tensors ---------------------------------------------------------------------------------------


def weight_tensors(shape: ModelShape) -> list[int]:
    """Elements of each weight tensor of the base, in the order of transformers; a tied head is the embedding's."""
    layer = []
    for name, (i, o) in shape.linear_modules.items():
        layer += [i * o] + [o] * has_bias(shape, name)
        if name == "o_proj":
            layer += [shape.head_dim] * (2 * shape.qk_norm)
    layer += [shape.hidden_size] * 2
    embedding = shape.vocab_size * shape.hidden_size
    return [embedding, *layer * shape.num_layers, shape.hidden_size] + [embedding] * (not shape.tied_embeddings)


def has_bias(shape: ModelShape, module: str) -> bool:
    if module in ("q_proj", "k_proj", "v_proj"):
        return shape.attention_bias
    return shape.output_bias if module == "o_proj" else shape.mlp_bias


def adapter_tensors(shape: ModelShape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> list[int]:
    """Elements of each LoRA matrix: A (rank, in) and B (out, rank) for every target of every layer."""
    pairs = [shape.linear_modules[name] for name in resolve_targets(targets)]
    return [rank * width for pair in pairs for width in pair] * shape.num_layers


def trained_tensors(work: Workload) -> list[int]:
    """Elements of each tensor that is trained."""
    return weight_tensors(work.shape) if work.trains_all else adapter_tensors(work.shape, work.rank, work.targets)


def trained_width(work: Workload) -> int:
    """Bytes of a trained number; its gradient is as wide."""
    return work.weight_width if work.trains_all else work.adapter_width


# --- resident bytes --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Resident:
    """Bytes of a model's tensors, each storage once."""

    weights: int  # packed codes, and all that is not quantized
    quantization_constants: int  # scales, scales of scales, tables
    adapters: int
    buffers: int

    @property
    def total(self) -> int:
        return self.weights + self.quantization_constants + self.adapters + self.buffers


def resident(work: Workload) -> Resident:
    """What `metrics.sizes.model_bytes` counts on the model of this workload, exactly.

    In mixed precision after the first forward, in which bitsandbytes' layers turn their biases, in place, into another
    dtype.
    """
    shape, width = work.shape, work.weight_width
    weights, constants = shape.parameters.total * width, 0
    if work.quantization != "none":
        for i, o in shape.linear_modules.values():
            codes, beside = quantized_bytes(i * o, o, work.quantization, work.double_quant, work.block_size)
            weights += shape.num_layers * (codes - i * o * width)
            constants += shape.num_layers * beside
        for name, (_, o) in shape.linear_modules.items():
            if has_bias(shape, name) and not work.in_one_function(name):
                weights += shape.num_layers * o * (_bias_width(work, name) - width)
    adapters = 0 if work.trains_all else sum(trained_tensors(work)) * work.adapter_width
    return Resident(weights, constants, adapters, buffer_bytes(shape))


def _bias_width(work: Workload, module: str) -> int:
    """Of a quantized layer: as wide as its products in 4 bits, as its input in 8."""
    if work.quantization != "int8" or module == "o_proj":
        return work.width
    return work.width if module == "down_proj" and work.device == "cpu" else work.weight_width


def quantized_bytes(
    elements: int, rows: int, quantization: str, double_quant: bool = True, block_size: int = 64
) -> tuple[int, int]:
    """(codes, constants) of one matrix in bytes, as bitsandbytes 0.50 stores it."""
    if quantization == "int8":
        return elements, rows * FLOAT
    blocks = ceil(elements / block_size)
    scales = blocks * FLOAT
    if double_quant:
        scales = blocks + (ceil(blocks / SCALE_BLOCK) + CODES_8BIT + 1) * FLOAT
    return ceil(elements / 2), scales + CODES_4BIT * FLOAT


def nf4_bytes(elements: int) -> int:
    """A matrix in NF4 with double quantization: codes, 8-bit scales, their scales, two tables, a mean."""
    return sum(quantized_bytes(elements, 0, "nf4"))


def buffer_bytes(shape: ModelShape) -> int:
    """The rotary frequencies, which transformers keeps twice, in fp32 whatever the weights are."""
    return 2 * len(range(0, shape.head_dim, 2)) * FLOAT


# --- optimizer states ------------------------------------------------------------------------------


def state_bytes(tensors: list[int], bits: int = 32) -> int:
    """AdamW's two averages for tensors of so many elements, as torch or bitsandbytes keep them."""
    if bits == 32:
        return sum(2 * n * FLOAT + FLOAT for n in tensors)  # and the number of steps
    small = [n for n in tensors if n < SMALLEST_8BIT]
    large = [n for n in tensors if n >= SMALLEST_8BIT]
    scaled = sum(2 * (n + ceil(n / STATE_BLOCK) * FLOAT) for n in large)
    return scaled + sum(2 * n * FLOAT for n in small) + (2 * CODES_8BIT * FLOAT if large else 0)


def paged(elements: int, on: str) -> bool:
    """Whether a paged optimizer of bitsandbytes 0.50 puts the states of such a tensor in paged memory."""
    return on == "cuda" and elements >= SMALLEST_PAGED


def optimizer_bytes(work: Workload) -> tuple[int, int]:
    """Bytes of the optimizer's states: (on the device, in paged memory, which may lie on the host)."""
    tensors, bits = trained_tensors(work), work.state_bits
    if bits == 8:
        wide, narrow = (tensors[:1], tensors[1:]) if work.embedding_in_32 else ([], tensors)
        total = state_bytes(narrow, 8) + sum(2 * n * FLOAT for n in wide)
    else:
        wide, narrow = tensors, []
        total = state_bytes(tensors)
        if work.pages:
            total -= len(tensors) * FLOAT  # bitsandbytes counts its steps in Python
        elif trained_width(work) != FLOAT:
            total -= sum(2 * n * (FLOAT - trained_width(work)) for n in tensors)  # torch's have the weight's own dtype
    if not work.pages:
        return total, 0
    host = sum(2 * n * FLOAT for n in wide if paged(n, work.device))
    host += sum(2 * n for n in narrow if paged(n, work.device))  # the scales of 8-bit states stay
    return total - host, host
