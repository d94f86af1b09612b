"""What a training step holds, from the shapes alone: lesson 4's arithmetic, in bytes.

How it works: autograd keeps for the backward pass what a formula of a gradient names, and nothing else.
`layer_tensors` goes through one LLaMA block and lists these tensors; the rest is multiplication. A step
has three moments at which memory can be highest, and they do not hold the same things; `anatomy` fills
each and takes the largest. Numbers are 32-bit and the loss is transformers' own, as in the CPU profiles:
torch 2.13's fused attention, PEFT 0.21's adapters, bitsandbytes 0.50's 8-bit states and NF4 with double
quantization. In 16 bits norms and loss would keep 32-bit copies besides. With `fast` the same is asked of the
functions of qlora_lib.fast, which keep less.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt

from qlora_lib.cost.memory import FLOAT, adapter_tensors, nf4_bytes, state_bytes, weight_tensors
from qlora_lib.cost.shapes import ModelShape, resolve_targets
from qlora_lib.fast.loss import ROWS_AT_ONCE

INT64 = 8  # bytes
SMALLEST_PAGED = 100_000  # elements; bitsandbytes pages no smaller tensor
RNG_STATE = 5056  # bytes; checkpointing keeps the generator's, so that a mask is drawn again the same
MLP = ("gate_proj", "up_proj", "down_proj")
GROUPS = ("norms", "attention", "MLP", "adapters", "loss")
PARTS = ("weights", "optimizer states", "gradients", "activations", "logits")


@dataclass(frozen=True)
class Method:
    """How a model is trained. `rank` 0: every weight is trained."""

    name: str
    rank: int = 0
    dropout: float = 0.0  # in front of every adapter
    four_bit: bool = False  # the linear layers in NF4 with double quantization
    optimizer_bits: int = 32
    checkpointing: bool = False
    targets: str | tuple[str, ...] = "all-linear"
    fast: bool = False  # forwards and loss of qlora_lib.fast; where not, those of the stock stack

    @property
    def trains_all(self) -> bool:
        return self.rank == 0


@dataclass(frozen=True)
class Kept:
    """A tensor of one block that waits for the backward pass."""

    name: str
    group: str
    numbers: float  # of 32 bits, for every token; of what is drawn, the mean
    why: str


def layer_tensors(shape: ModelShape, method: Method, first: bool = False) -> list[Kept]:
    """The tensors that one block keeps, in the order in which they are made.

    first: the block behind a frozen embedding, whose input wants no gradient.
    """
    h, q, kv, m = shape.hidden_size, shape.query_width, shape.kv_width, shape.intermediate_size
    inputs = {name: width for name, (width, _) in shape.linear_modules.items()}
    adapted = () if method.trains_all else resolve_targets(method.targets)
    first = first and not method.trains_all
    remade = _remade(method)
    kept: list[Kept] = []

    def keep(name: str, group: str, numbers: float, why: str) -> None:
        kept.append(Kept(name, group, numbers, why))

    def norm(name: str, into: tuple[str, ...], no_gradient: bool) -> None:
        if not no_gradient:
            keep(f"{name}: input", "norms", h, "x / rms(x) is differentiated")
            keep(f"{name}: 1 / rms", "norms", 1, "one a token")
        if method.trains_all and not method.fast:
            keep(f"{name}: x / rms(x)", "norms", h, "gradient of its weight")
        linear_inputs(into, f"{name}: output", "norms", no_gradient)

    def linear_inputs(names: tuple[str, ...], what: str, group: str, no_gradient: bool = False) -> None:
        """The common input of some linear layers, and what their adapters keep."""
        here = [name for name in names if name in adapted]
        if method.fast and here == list(names) and (remade or names[0] not in MLP):
            together(names, what, group)
            return
        if what and (method.trains_all or (here and not method.dropout)):
            whose = ", ".join(names if method.trains_all else (f"A of {n}" for n in here))
            keep(what, group, inputs[names[0]], f"gradients of {whose}")
        for name in here:
            if method.dropout and not no_gradient:
                keep(f"{name}: dropout mask", "adapters", inputs[name], "32-bit on a CPU, a byte on a GPU")
            if method.dropout:
                keep(f"{name}: input after dropout", "adapters", inputs[name], "gradient of A")
            keep(f"{name}: output of A", "adapters", method.rank, "gradient of B")

    def together(names: tuple[str, ...], what: str, group: str) -> None:
        """The same where one function computes these layers: one input, one draw of dropped places."""
        if what and names != ("down_proj",):
            keep(what, group, inputs[names[0]], "gradients of all their A, once")
        whose = ", ".join(names)
        if method.dropout:
            width = inputs[names[0]] * method.dropout * INT64 / FLOAT
            keep(f"{whose}: dropped places", "adapters", width, "64-bit, and only of what was dropped")
        keep(f"{whose}: output of A", "adapters", method.rank * len(names), "gradients of B")

    norm("norm 1", ("q_proj", "k_proj", "v_proj"), first)
    keep("queries, rotated", "attention", q, "the scores are computed again from them")
    keep("keys, rotated", "attention", kv, "the same")
    keep("values", "attention", kv, "the same")
    keep("output of attention", "attention", q, "fused attention; also the input of o_proj")
    keep("log of the softmax's sum", "attention", shape.num_heads, "stands in for all scores")
    linear_inputs(("o_proj",), "", "attention")
    norm("norm 2", ("gate_proj", "up_proj"), False)
    keep("output of gate_proj", "MLP", m, "SiLU is differentiated")
    if not remade:
        keep("SiLU(gate)", "MLP", m, "gradient of its factor, up")
    keep("output of up_proj", "MLP", m, "gradient of its factor, SiLU(gate)")
    linear_inputs(("down_proj",), "SiLU(gate) * up", "MLP")
    return kept


def _remade(method: Method) -> bool:
    """Whether the input of `down_proj` is made again in the backward pass, from the outputs of gate and up."""
    return method.fast and not method.trains_all and set(MLP) <= set(resolve_targets(method.targets))


def saved_bytes(shape: ModelShape, method: Method, batch: int, length: int) -> dict[str, int]:
    """Bytes by `GROUPS` that the forward pass leaves for the backward pass; parameters are not counted."""
    tokens, layers, h = batch * length, shape.num_layers, shape.hidden_size
    sums = dict.fromkeys(GROUPS, 0)
    if method.checkpointing:  # a block's input; random state that will be wanted again
        sums["norms"] += layers * tokens * h * FLOAT
    else:
        for i in range(layers):
            for tensor in layer_tensors(shape, method, first=i == 0):
                sums[tensor.group] += round(tensor.numbers * tokens * FLOAT)
        sums["attention"] += 2 * length * shape.head_dim * FLOAT  # cosines and sines, for all blocks
    if method.fast:
        sums["norms"] += (h + 1) * tokens * FLOAT  # the last norm
        sums["loss"] += tokens * h * FLOAT + INT64  # gradient of what the head reads; number of labels
        if method.trains_all:
            sums["loss"] += shape.vocab_size * h * FLOAT + tokens * INT64  # gradient of the head; tokens
        return sums
    sums["norms"] += (h + 1 + 2 * h * method.trains_all) * tokens * FLOAT  # the last norm
    sums["loss"] += tokens * shape.vocab_size * FLOAT  # log-probabilities
    sums["loss"] += tokens * INT64 * (1 + method.trains_all) + FLOAT  # labels, tokens, number of labels
    return sums


# --- weights, gradients, states ------------------------------------------------------------------


def trained_tensors(shape: ModelShape, method: Method) -> list[int]:
    return weight_tensors(shape) if method.trains_all else adapter_tensors(shape, method.rank, method.targets)


def weight_bytes(shape: ModelShape, method: Method) -> int:
    """Resident weights, with adapters and quantization state; the rotary buffers are two short rows."""
    total = sum(weight_tensors(shape)) * FLOAT + 2 * shape.head_dim // 2 * FLOAT
    if method.four_bit:
        for i, o in shape.linear_modules.values():
            total += shape.num_layers * (nf4_bytes(i * o) - i * o * FLOAT)
    return total + (0 if method.trains_all else sum(trained_tensors(shape, method)) * FLOAT)


def paged(elements: int, on: str) -> bool:
    """Whether a paged optimizer of bitsandbytes 0.50 puts the states of such a tensor in paged memory."""
    return on == "cuda" and elements >= SMALLEST_PAGED


# --- the peak ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Anatomy:
    """A step's memory at its highest moment, by `PARTS`, and every moment's total."""

    parts: Mapping[str, int]
    moment: str
    moments: Mapping[str, int]  # bytes in all, weights and states included

    @property
    def total(self) -> int:
        return sum(self.parts.values())


def anatomy(shape: ModelShape, method: Method, batch: int, length: int) -> Anatomy:
    """What a step holds when it holds the most.

    `start of backward`: all that was saved, and the gradient of the loss by the logits, twice
    (log-softmax makes its own from the one it is given). `recomputed block` with checkpointing: the
    block's tensors, made again, two gradients as wide as the MLP, and those of two of its matrices
    and of the head where these are trained. `end of backward`: all gradients; a tied embedding gets one from
    either use, and their sum is a third. `optimizer`: all gradients, and the working copies of the
    largest tensor (two in torch's AdamW, five in the 8-bit one, which works in 32 bits).

    With `fast` no moment holds all logits. In its place come `loss, in pieces`: what the head reads and the
    gradient of that, and some rows of logits; and `backward of a block`: three tensors as wide as the MLP, and
    a matrix turned back from 4 bits.
    """
    saved = saved_bytes(shape, method, batch, length)
    trained = trained_tensors(shape, method)
    gradients, largest = sum(trained) * FLOAT, max(trained) * FLOAT
    embedding = shape.vocab_size * shape.hidden_size * FLOAT
    layers = sum(saved.values()) - saved["loss"]
    if method.checkpointing:
        layers += shape.num_layers * RNG_STATE + 2 * length * shape.head_dim * FLOAT
    logits = batch * length * shape.vocab_size * FLOAT
    one = round(sum(t.numbers for t in layer_tensors(shape, method)) * batch * length * FLOAT)
    tied = (1 if method.fast else 2) * embedding if method.trains_all and shape.tied_embeddings else 0
    copies = {32: 2, 8: 5}[method.optimizer_bits]
    held = {  # gradients, activations, logits
        "start of backward": (0, layers, saved["loss"] + 2 * logits),
        "end of backward": (gradients + tied, 0, 0),
        "optimizer": (gradients + copies * largest, 0, 0),
    }
    if method.checkpointing:
        wide = shape.intermediate_size * FLOAT
        made = embedding + 2 * shape.hidden_size * wide if method.trains_all else 0
        held["recomputed block"] = (made, layers + one + 2 * batch * length * wide, 0)
    if method.fast:
        wide, rows = batch * length * shape.intermediate_size * FLOAT, batch * (length - 1)
        matrix = method.four_bit * shape.hidden_size * shape.intermediate_size * FLOAT
        del held["start of backward"]
        made, besides = _a_piece_of_logits(rows, shape)
        held["loss, in pieces"] = (0, layers + saved["loss"] + batch * length * shape.hidden_size * FLOAT + besides, made)
        if _remade(method):
            made = 3 * wide + matrix
            held["backward of a block"] = (0, layers + method.checkpointing * one + made, 0)
    fixed = (weight_bytes(shape, method), state_bytes(trained, method.optimizer_bits))
    moments = {name: sum(fixed) + sum(step) for name, step in held.items()}
    highest = max(moments, key=moments.get)
    return Anatomy(dict(zip(PARTS, (*fixed, *held[highest]))), highest, moments)


def _a_piece_of_logits(rows: int, shape: ModelShape) -> tuple[int, int]:
    """Bytes of a piece of logits, and beside it of its hidden states and their gradient, twice while it is divided."""
    piece = min(ROWS_AT_ONCE, rows)
    return piece * shape.vocab_size * FLOAT, 3 * piece * shape.hidden_size * FLOAT


def places_spread(shape: ModelShape, method: Method, batch: int, length: int) -> float:
    """Standard deviation, in bytes, of what the fast path saves: how many places are dropped is drawn.

    One draw a group of layers with one input, each of its elements dropped by itself: binomial.
    """
    widths = [shape.linear_modules[name][0] for name in ("q_proj", "o_proj", "gate_proj", "down_proj")]
    elements = shape.num_layers * batch * length * sum(widths)
    return INT64 * sqrt(elements * method.dropout * (1 - method.dropout))
