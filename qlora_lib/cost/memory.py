"""Bytes of weights and of optimizer states, exactly, from a model's widths."""

from math import ceil

from qlora_lib.cost.shapes import ModelShape, resolve_targets

FLOAT = 4  # bytes
SMALLEST_8BIT = 4096  # elements; bitsandbytes keeps the states of smaller tensors in 32 bits
STATE_BLOCK = 256  # elements of an 8-bit state that share a scale


def weight_tensors(shape: ModelShape) -> list[int]:
    """Elements of each weight tensor of the base; a tied head is the embedding's."""
    layer = [i * o for i, o in shape.linear_modules.values()] + [shape.hidden_size] * 2
    embeddings = [shape.vocab_size * shape.hidden_size] * (1 if shape.tied_embeddings else 2)
    return [*embeddings, *layer * shape.num_layers, shape.hidden_size]


def adapter_tensors(shape: ModelShape, rank: int, targets: str | tuple[str, ...] = "all-linear") -> list[int]:
    """Elements of each LoRA matrix: A (rank, in) and B (out, rank) for every target of every layer."""
    pairs = [shape.linear_modules[name] for name in resolve_targets(targets)]
    return [rank * width for pair in pairs for width in pair] * shape.num_layers


def nf4_bytes(elements: int) -> int:
    """A matrix in NF4 with double quantization: codes, 8-bit scales, their scales, two tables, a mean."""
    blocks = ceil(elements / 64)
    return ceil(elements / 2) + blocks + ceil(blocks / 256) * FLOAT + (16 + 256 + 1) * FLOAT


def state_bytes(tensors: list[int], bits: int = 32) -> int:
    """AdamW's two averages for tensors of so many elements, as torch or bitsandbytes keep them."""
    if bits == 32:
        return sum(2 * n * FLOAT + FLOAT for n in tensors)  # and the number of steps
    small = [n for n in tensors if n < SMALLEST_8BIT]
    large = [n for n in tensors if n >= SMALLEST_8BIT]
    scaled = sum(2 * (n + ceil(n / STATE_BLOCK) * FLOAT) for n in large)
    return scaled + sum(2 * n * FLOAT for n in small) + (2 * 256 * FLOAT if large else 0)
