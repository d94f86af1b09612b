"""The moments of a training step at which memory can be highest, and what each of them holds.

How it works: weights, adapters and optimizer states are there all the time. What comes and goes beside them does so in a
fixed order, and only a handful of moments can be the highest. `moments` fills each of them from the shapes.

    forward of the last block   all that was saved before it, and the partial results that its Python still names
    loss, in pieces             the chunked loss: some rows of logits, and what the head reads with its gradient
    start of backward           all that was saved, and the gradient of the loss by the logits, twice: log-softmax makes
                                its own from the one it is given
    gradient of the head        where it is trained: as large as the embedding, made while all blocks wait
    backward of a block         of the last, while all others wait, or of the first, beside all others' gradients
    recomputed block            the same with checkpointing: the block's tensors are made again
    end of backward             all gradients; a tied embedding gets one from either use, and their sum is a third
    optimizer                   all gradients, and the update's working copies

With accumulation the earlier micro-batches' gradients are there at all of them. Trainer's order is meant: forward,
backward, clipping in place, update, gradients dropped. Followed event by event through the CPU allocator, with torch
2.13, transformers 5.23, PEFT 0.21 and bitsandbytes 0.50; the tests say how near each comes.
"""

from dataclasses import dataclass

from qlora_lib.cost.activations import (
    RNG_STATE,
    ROWS_AT_ONCE,
    adapter_input,
    casts,
    head_weights,
    layer_bytes,
    layer_tensors,
    mask_bytes,
    products_width,
    rotation_bytes,
    saved_bytes,
)
from qlora_lib.cost.memory import FLOAT, SMALLEST_8BIT, trained_tensors, trained_width
from qlora_lib.cost.workload import Workload


@dataclass(frozen=True)
class Held:
    """Bytes at one moment beside weights and states."""

    gradients: int = 0
    activations: int = 0
    loss: int = 0
    temporary: int = 0

    @property
    def total(self) -> int:
        return self.gradients + self.activations + self.loss + self.temporary


def moments(work: Workload) -> dict[str, Held]:
    """Every moment at which a step of this workload may hold the most."""
    saved = saved_bytes(work)
    before = gradient_bytes(work) * (work.accumulation > 1)  # of the earlier micro-batches
    layers = sum(saved.values()) - saved["loss"]
    if work.checkpointing:
        layers += work.shape.num_layers * _random_state(work) + rotation_bytes(work) + mask_bytes(work)
    logits = work.tokens * work.shape.vocab_size
    head = head_weights(work) * work.trains_all * work.weight_width  # gradient of the head
    held = {}
    if work.loss == "chunked":
        held["loss, in pieces"] = _loss_in_pieces(work, layers, saved["loss"], before)
        if work.trains_all:  # scaled by the gradient of the loss
            hidden = work.tokens * work.shape.hidden_size * work.weight_width
            held["gradient of the head"] = Held(before + head, layers, saved["loss"] + hidden)
    else:
        held["start of backward"] = Held(before, layers, saved["loss"] + 2 * logits * FLOAT)
        if work.trains_all:
            given = logits * products_width(work)
            made = head_weights(work) * products_width(work)
            if casts(work, work.weight_width):  # when the gradient is turned to fp32, the logits' is gone
                made += max(0, head - given)
            held["gradient of the head"] = Held(before + made, layers, saved["loss"] - logits * FLOAT + given)
    held |= _blocks(work, layers, before, head)
    held["end of backward"] = Held(gradient_bytes(work) + _last_gradients(work))
    held["optimizer"] = Held(gradient_bytes(work), temporary=_working_copies(work))
    return held


# --- the moments -----------------------------------------------------------------------------------


def _gradients(work: Workload) -> int:
    return sum(trained_tensors(work)) * trained_width(work)


def _random_state(work: Workload) -> int:
    """Of a checkpoint; that of a GPU's generator is 16 bytes, and the CPU's lies in the host's memory."""
    return RNG_STATE if work.device == "cpu" else 16


def _loss_in_pieces(work: Workload, layers: int, saved: int, before: int) -> Held:
    """Some rows of logits, and what the head reads, with its gradient, whole; three pieces of these while it is divided."""
    shape, stream = work.shape, work.weight_width
    rows = min(ROWS_AT_ONCE, work.batch * max(1, work.length - 1))
    cast = casts(work, stream)
    logits = rows * shape.vocab_size * (FLOAT + (work.width if products_width(work) < FLOAT else 0))
    hidden = work.tokens * shape.hidden_size * stream + 3 * rows * shape.hidden_size * FLOAT
    copies = head_weights(work) * work.width if cast else 0
    if work.trains_all and cast and work.checkpointing:  # autocast keeps its copies until the forward is over
        copies += shape.linear_weights * work.width
    return Held(before, layers, saved + hidden + logits, copies)


def _blocks(work: Workload, layers: int, before: int, head: int) -> dict[str, Held]:
    """The last block's backward, when all others wait, and the first one's, when all their gradients are there: what is
    between lies between. layers: bytes saved outside of the loss."""
    shape, tokens = work.shape, work.tokens
    h, stream = tokens * shape.hidden_size, work.weight_width
    layers -= h * (stream if work.fast else FLOAT) + tokens * FLOAT  # the last norm's backward is over
    if work.trains_all:
        layers -= h * (products_width(work) * (work.loss == "whole") + stream * (not work.fast))
    inside, gradient, temporary = _inside_a_block(work)
    made = 0 if work.accumulation > 1 else (shape.num_layers - 1) * _trained_in_a_block(work) * trained_width(work)
    if work.accumulation > 1 and not shape.tied_embeddings:
        head = 0  # it has been added to the earlier ones'
    one = layer_bytes(work)
    if work.checkpointing:
        one += _random_state(work) - h * FLOAT * (stream == FLOAT)  # the input is there
        first = layers - (shape.num_layers - 1) * (h * stream + _random_state(work))
        last, first = layers + one, first + one
        name = "recomputed block"
    else:
        last, first = layers, layer_bytes(work, first=True) + rotation_bytes(work)
        name = "backward of a block"
    ends = [Held(before + head + gradient + given, at + inside, 0, temporary) for given, at in ((0, last), (made, first))]
    held = {name: max(ends, key=lambda end: end.total)}
    if not work.checkpointing and not work.trains_all:
        held["forward of the last block"] = Held(before, layers + mask_bytes(work) + _forward_rest(work, sums=3))
    return held


def _inside_a_block(work: Workload) -> tuple[int, int, int]:
    """(activations, gradients, temporary buffers): the most that a block's backward holds beside what it had saved.

    Four places: the block is just made again; through `down_proj`, with a frozen matrix dequantized; through the product
    of gate and up, with three gradients as wide as the MLP; through eager attention's softmax, with two as large as all
    scores, when the MLP's tensors are gone.
    """
    shape, tokens = work.shape, work.tokens
    h = tokens * shape.hidden_size * work.weight_width
    matrix = shape.hidden_size * shape.intermediate_size
    kept = layer_tensors(work)
    if work.in_one_function("down_proj"):
        return (h + 3 * tokens * shape.intermediate_size * products_width(work), 0, _dequantized(work, matrix))
    wide = tokens * shape.intermediate_size * _inner_width(work)
    names = ("SiLU(gate) *", "A of down_proj", "down_proj: input", "down_proj: dropout")
    gone = sum(t.bytes(tokens) for t in kept if t.hooked and t.name.startswith(names))  # of what down and its adapter kept
    gradient = matrix * work.weight_width * work.trains_all
    if "down_proj" in work.adapted:
        gradient = work.rank * (shape.hidden_size + shape.intermediate_size) * work.adapter_width
    stays = gradient * (work.accumulation == 1)  # else it is added to the earlier ones' at once
    places = [
        (h + (wide if work.trains_all else 2 * wide - gone), gradient, _dequantized(work, matrix)),
        (h + 3 * wide - gone, stays, 0),
    ]
    if work.checkpointing and not work.trains_all:
        places.append((h + _forward_rest(work, sums=1), 0, 0))
    if work.attention == "eager":
        scores = tokens * work.length * shape.num_heads * FLOAT
        names = [t.name for t in kept]
        after = kept[names.index("values") + 1 :] if "values" in names else []
        places.append((2 * h + 2 * scores - sum(t.bytes(tokens) for t in after), 3 * stays, 0))
    return max(places, key=sum)


def _inner_width(work: Workload) -> int:
    return next((t.width for t in layer_tensors(work) if t.name == "output of gate_proj"), products_width(work))


def _forward_rest(work: Workload, sums: int) -> int:
    """What the end of a block's forward holds beside what it saves: input and `sums` partial results of `down_proj`, its
    output and that of the second norm. With dropout, or copies in another dtype, these inputs are not what is saved."""
    shape, tokens, stream = work.shape, work.tokens, work.weight_width
    names = {t.name for t in layer_tensors(work)}
    row = shape.hidden_size * stream
    inner, wide = _inner_width(work), shape.intermediate_size
    before, read = adapter_input(work, inner)
    rest = row * ("norm 2: output" not in names) + wide * inner * ("SiLU(gate) * up" not in names)
    rest += wide * before * (before != inner)  # cast for the adapter
    dropped = wide * before * (read != before and work.dropout > 0)  # which is cast again
    return tokens * (rest + row + max(sums * row, dropped + row))


def _dequantized(work: Workload, elements: int) -> int:
    """One quantized matrix turned back for a product, with its scales where these are quantized too; or its autocast copy."""
    if work.quantization == "none":
        return elements * work.width if casts(work, work.weight_width) and work.checkpointing else 0
    scales = elements // work.block_size * FLOAT if work.double_quant and work.quantization != "int8" else 0
    return elements * products_width(work) + scales


def gradient_bytes(work: Workload) -> int:
    """Of all that is trained."""
    return sum(trained_tensors(work)) * trained_width(work)


def _trained_in_a_block(work: Workload) -> int:
    counts = work.shape.parameters
    weights = counts.attention + counts.mlp + counts.norms - work.shape.hidden_size
    return (weights if work.trains_all else sum(trained_tensors(work))) // work.shape.num_layers


def _last_gradients(work: Workload) -> int:
    """What the end of the backward pass holds beside all gradients."""
    if not work.trains_all:
        return max(trained_tensors(work)) * trained_width(work) * (work.accumulation > 1)
    embedding = head_weights(work) * work.weight_width
    tied = (1 if work.loss == "chunked" else 2) * work.shape.tied_embeddings
    return (tied + (work.accumulation > 1)) * embedding


def _working_copies(work: Workload) -> int:
    """Of the optimizer's update: of the largest tensor on a CPU; torch's on a GPU takes the root of all second moments."""
    tensors = trained_tensors(work)
    if work.state_bits == 8:  # bitsandbytes: the gradient, a root and a quotient in fp32, and of 8-bit states both averages
        if work.fuses or work.device == "cuda":
            return 0
        wide = [work.embedding_in_32 * (i == 0) or n < SMALLEST_8BIT for i, n in enumerate(tensors)]
        return max((3 if w else 5) * n for w, n in zip(wide, tensors)) * FLOAT
    if work.device == "cuda":
        return 0 if work.pages else sum(tensors) * trained_width(work)
    if work.trainer and work.trains_all:  # which updates norms and biases after all matrices
        shape = work.shape
        tensors = [n for n in tensors if n > max(shape.hidden_size, shape.query_width, shape.intermediate_size)]
    previous = [0, *tensors]  # torch's loop still has the last tensor's root when it takes the next
    return max(2 * n + p for n, p in zip(tensors, previous)) * trained_width(work)
