"""What autograd keeps of a forward pass for the backward pass, tensor by tensor, from the shapes alone.

How it works: autograd keeps what a formula of a gradient names, and nothing else. `layer_tensors` goes through one block
in the order it runs and lists these tensors; the rest is multiplication. A number is as wide as the stack makes it there:

    stream     embedding, norms' outputs, sums: as wide as the weights that are not quantized
    products   of torch's linear layers and attention: autocast's dtype; every cast input is a copy of its own
    4-bit      bitsandbytes multiplies in the dtype of the products and gives its result the width of its input back
    fp32       inside norms, softmax and log-softmax, always
    masks      of dropout: a byte on a GPU, as wide as the input on a CPU

Autocast copies of fp32 weights are kept too, for the gradient of the product's input; a frozen weight's as well.
Exact on the CPU for torch 2.13, transformers 5.23, PEFT 0.21 and bitsandbytes 0.50 (the tests catch every saved
tensor), with the functions of qlora_lib.fast too, but for the places that a draw drops: there the mean is given. On a GPU
the same formulas run; which attention kernel takes over there, and what it keeps, is an assumption: one that keeps
queries, keys, values, output and a number a row and head, as flash attention does. Sequences are not padded.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

from qlora_lib.cost.memory import FLOAT
from qlora_lib.cost.workload import ATTENTION_IN, ATTENTION_OUT, MLP, Workload

INT64 = 8  # bytes
RNG_STATE = 5056  # bytes; checkpointing keeps the CPU generator's, so that a mask is drawn again the same
ROWS_AT_ONCE = 128  # of logits, in the chunked loss: qlora_lib.fast.loss, which a test holds to it
GROUPS = ("norms", "attention", "MLP", "adapters", "loss", "weight copies")


@dataclass(frozen=True)
class Kept:
    """A tensor of one block that waits for the backward pass."""

    name: str
    group: str
    numbers: float  # for every token, of what is drawn the mean; of a weight's copy in all
    why: str
    width: int = FLOAT  # bytes of a number
    hooked: bool = True  # autograd's hooks see it; bitsandbytes' 8-bit product holds its input by itself

    def bytes(self, tokens: int) -> int:
        return round(self.numbers * self.width * (1 if self.group == "weight copies" else tokens))


@lru_cache(maxsize=64)
def layer_tensors(work: Workload, first: bool = False) -> tuple[Kept, ...]:
    """The tensors that one block keeps, in the order in which they are made.

    first: the block behind the embedding, whose input wants no gradient where the embedding is frozen.
    """
    return tuple(_Block(work, first and not work.trains_all).kept)


def layer_bytes(work: Workload, first: bool = False) -> int:
    """Bytes that one block keeps."""
    return sum(tensor.bytes(work.tokens) for tensor in layer_tensors(work, first))


def saved_bytes(work: Workload) -> dict[str, int]:
    """Bytes by `GROUPS` that the forward pass leaves for the backward pass; parameters are not counted."""
    shape, tokens = work.shape, work.tokens
    h, stream = shape.hidden_size, work.weight_width
    sums = dict.fromkeys(GROUPS, 0)
    if work.checkpointing:  # a block's input
        sums["norms"] += shape.num_layers * tokens * h * stream
        sums["MLP"] += sum(held_by_int8(work, first=i == 0) for i in range(shape.num_layers))
    else:
        for first, layers in ((True, 1), (False, shape.num_layers - 1)):
            for tensor in layer_tensors(work, first):
                sums[tensor.group] += layers * tensor.bytes(tokens)
        if shape.num_layers > 1 or work.trains_all or set(ATTENTION_IN[:2]) & set(work.adapted):
            sums["attention"] += rotation_bytes(work)
    norm = h * (stream if work.fast else FLOAT) + FLOAT  # the last one
    sums["norms"] += tokens * (norm + h * stream * (work.trains_all and not work.fast))
    if work.loss == "chunked":
        sums["loss"] += tokens * h * stream + INT64  # gradient of what the head reads; number of labels
        if work.trains_all:
            sums["loss"] += head_weights(work) * stream + tokens * INT64  # gradient of the head; tokens
        return sums
    sums["norms"] += tokens * h * products_width(work) * work.trains_all  # what the head reads
    sums["weight copies"] += head_weights(work) * work.width * casts(work, stream)
    sums["loss"] += tokens * shape.vocab_size * FLOAT  # log-probabilities
    sums["loss"] += tokens * INT64 * (1 + work.trains_all) + FLOAT  # labels, tokens, number of labels
    return sums


def held_by_int8(work: Workload, first: bool = False) -> int:
    """Inputs of one block's 8-bit layers. bitsandbytes keeps them by itself, so that checkpointing cannot drop them."""
    if work.quantization != "int8":
        return 0
    block = _Block(work, first)
    inner = block.output_width("gate_proj")
    shape, behind = (work.shape, block.product * any(block.gives(name, not first) for name in ATTENTION_IN))
    norms = shape.hidden_size * block.stream * (1 + (not first))
    return work.tokens * (norms + shape.query_width * behind + shape.intermediate_size * inner)


def mask_bytes(work: Workload) -> int:
    """The causal mask that eager attention adds to the scores, one for all blocks and heads."""
    return work.batch * work.length**2 * work.weight_width * (work.attention == "eager")


def rotation_bytes(work: Workload) -> int:
    """Cosines and sines of the rotary embedding, one pair for all blocks and sequences."""
    return 2 * work.length * work.shape.head_dim * work.weight_width


def head_weights(work: Workload) -> int:
    return work.shape.vocab_size * work.shape.hidden_size


def casts(work: Workload, width: int) -> bool:
    """Whether autocast makes a copy of a weight or an input so wide."""
    return work.autocast and width != work.width


def products_width(work: Workload) -> int:
    """Bytes of what a product of torch reads and gives."""
    return work.width if work.autocast else work.weight_width


def adapter_input(work: Workload, width: int) -> tuple[int, int]:
    """Bytes of what an adapter's dropout reads and of what its A reads, where the layer reads `width`.

    PEFT casts to the adapter's dtype first, but for quantized layers under a GPU's autocast.
    """
    left = work.quantization != "none" and work.device == "cuda" and work.autocast
    before = width if left else work.adapter_width
    return before, work.width if work.autocast else before


class _Block:
    """Lists one block's tensors; `x` in a name is a layer's input, in a method whether that wants a gradient."""

    def __init__(self, work: Workload, first: bool) -> None:
        self.work, self.kept = work, []
        shape = work.shape
        self.stream, self.product = work.weight_width, products_width(work)
        self.widths = {name: i for name, (i, _) in shape.linear_modules.items()}
        x = not first
        self.norm("norm 1", ATTENTION_IN, x)
        x = self.attention(x) or x
        self.norm("norm 2", MLP[:2], x)
        self.mlp(x)

    def output_width(self, name: str) -> int:
        """Bytes of what a layer behind a norm gives: a quantized one has the width of its input. On a CPU the 8-bit
        product is torch's, on dequantized weights."""
        work = self.work
        same = work.quantization in ("nf4", "fp4") or (work.quantization == "int8" and work.device == "cuda")
        return self.stream if same and not work.in_one_function(name) else self.product

    def keep(self, name: str, group: str, numbers: float, why: str, width: int | None = None, hooked: bool = True) -> None:
        self.kept.append(Kept(name, group, numbers, why, self.product if width is None else width, hooked))

    def gives(self, name: str, x: bool) -> bool:
        """Whether the output of a linear layer wants a gradient."""
        return x or self.work.trains_all or name in self.work.adapted

    # --- the parts of a block, in order ------------------------------------------------------------

    def norm(self, name: str, into: tuple[str, ...], x: bool) -> None:
        work, h = self.work, self.work.shape.hidden_size
        if x:
            self.keep(f"{name}: input", "norms", h, "x / rms(x) is differentiated", self.stream if work.fast else FLOAT)
            self.keep(f"{name}: 1 / rms", "norms", 1, "one a token", FLOAT)
        if work.trains_all and not work.fast:
            self.keep(f"{name}: x / rms(x)", "norms", h, "gradient of its weight", self.stream)
        self.linear(into, f"{name}: output", "norms", x, self.stream)

    def attention(self, x: bool) -> bool:
        shape, work = self.work.shape, self.work
        q, kv, heads = shape.query_width, shape.kv_width, shape.num_heads
        wants = {name: self.gives(name, x) for name in ATTENTION_IN}
        if shape.qk_norm:
            for what, width, n, name in (("queries", q, heads, "q_proj"), ("keys", kv, shape.num_kv_heads, "k_proj")):
                self.head_norm(what, width, n, wants[name], self.output_width(name))
        if not any(wants.values()):
            self.linear(ATTENTION_OUT, "output of attention", "attention", False, self.product)
            return self.gives("o_proj", False)
        if work.attention == "eager":
            self.eager(*wants.values())
            self.linear(ATTENTION_OUT, "output of attention", "attention", True, self.product)
            return True
        self.keep("queries, rotated", "attention", q, "the scores are computed again from them")
        self.keep("keys, rotated", "attention", kv, "the same")
        self.keep("values", "attention", kv, "the same")
        self.keep("output of attention", "attention", q, "fused attention; also the input of o_proj")
        self.keep("log of the softmax's sum", "attention", heads, "stands in for all scores", FLOAT)
        self.linear(ATTENTION_OUT, "", "attention", True, self.product)
        return True

    def head_norm(self, what: str, numbers: int, heads: int, wanted: bool, width: int) -> None:
        """Qwen3's norm of every head; its gradient asks for what that of the other norms does."""
        work = self.work
        if wanted:
            self.keep(f"norm of {what}: input", "attention", numbers, "x / rms(x) is differentiated",
                      width if work.fast else FLOAT)  # fmt: skip
            self.keep(f"norm of {what}: 1 / rms", "attention", heads, "one a token and head", FLOAT)
        if work.trains_all and not work.fast:
            self.keep(f"norm of {what}: x / rms(x)", "attention", numbers, "gradient of its weight", width)

    def eager(self, q: bool, k: bool, v: bool) -> None:
        """All scores in memory: heads x length numbers a token. Keys and values are repeated to all heads first."""
        shape = self.work.shape
        width, scores = shape.query_width, shape.num_heads * self.work.length
        if k:
            self.keep("queries, rotated", "attention", width, "gradient of the keys")
        if q:
            self.keep("keys, rotated", "attention", width, "gradient of the queries; repeated to all heads")
        if q or k:
            self.keep("softmax of the scores", "attention", scores, "softmax is differentiated, in fp32", FLOAT)
            self.keep("values", "attention", width, "gradient of the weights of attention; repeated to all heads")
        if v and (self.product != FLOAT or not (q or k)):
            self.keep("weights of attention", "attention", scores, "the same, in the dtype of the product")

    def mlp(self, x: bool) -> None:
        m, work = self.work.shape.intermediate_size, self.work
        gate, up = (self.gives(name, x) for name in MLP[:2])
        again = work.in_one_function("down_proj")  # down's input is made again, from the outputs of gate and up
        inner = self.output_width("gate_proj")
        if gate:
            self.keep("output of gate_proj", "MLP", m, "SiLU is differentiated", inner)
        if up and not again:
            self.keep("SiLU(gate)", "MLP", m, "gradient of its factor, up", inner)
        if gate:
            self.keep("output of up_proj", "MLP", m, "gradient of its factor, SiLU(gate)", inner)
        self.linear(MLP[2:], "SiLU(gate) * up", "MLP", gate or up, inner)

    # --- linear layers -----------------------------------------------------------------------------

    def linear(self, names: tuple[str, ...], what: str, group: str, x: bool, width: int) -> None:
        """The common input of some linear layers, `width` bytes a number, and what they and their adapters keep of it.

        what: the input's name, or nothing where it is kept anyway.
        """
        work, here = self.work, [name for name in names if name in self.work.adapted]
        if work.in_one_function(names[0]):
            self.together(names, what, group, width)
            return
        readers, own = ([], casts(work, width))  # own: each has a copy of its own, in another dtype
        if work.trains_all:
            readers = list(names)
        elif here and not work.dropout:
            readers = [f"A of {name}" for name in here]
            before, read = adapter_input(work, width)
            own = before != width or read != before
        if readers and own:
            for reader in readers:
                self.keep(f"{reader}: input, cast", group, self.widths[names[0]], "gradient of its weight")
        elif readers and what:
            self.keep(what, group, self.widths[names[0]], f"gradients of {', '.join(readers)}", width)
        if work.quantization == "int8" and x and what and (own or not readers):
            self.keep(what, group, self.widths[names[0]], "held by the 8-bit product", width, hooked=False)
        for name in names:
            self.weight_copies(name, x)
            if name in here:
                self.adapter(name, x, width)

    def adapter(self, name: str, x: bool, width: int) -> None:
        work, inputs = self.work, self.widths[name]
        before, read = adapter_input(work, width)
        if work.dropout and x:
            mask = 1 if work.device == "cuda" else before
            self.keep(f"{name}: dropout mask", "adapters", inputs, "32-bit on a CPU, a byte on a GPU", mask)
        if work.dropout:
            self.keep(f"{name}: input after dropout", "adapters", inputs, "gradient of A", read)
        self.keep(f"{name}: output of A", "adapters", work.rank, "gradient of B", read)

    def weight_copies(self, name: str, x: bool) -> None:
        """The autocast copies of a layer's weights, for the gradients of what they multiply."""
        work, (i, o) = self.work, self.work.shape.linear_modules[name]
        if work.quantization == "none" and casts(work, work.weight_width) and x:
            self.keep(f"{name}: weight, cast", "weight copies", i * o, "gradient of its input", work.width)
        if name in work.adapted and casts(work, work.adapter_width):
            if x:
                self.keep(f"{name}: A, cast", "weight copies", work.rank * i, "gradient of its input", work.width)
            self.keep(f"{name}: B, cast", "weight copies", work.rank * o, "gradient of its input", work.width)

    def together(self, names: tuple[str, ...], what: str, group: str, width: int) -> None:
        """The same where one function computes these layers: one input, one draw of dropped places."""
        work, read = self.work, self.product
        if names != MLP[2:] and (what or read != width):
            self.keep(what or f"{names[0]}: input, cast", group, self.widths[names[0]], "gradients of all their A, once", read)
        whose = ", ".join(names)
        if work.dropout and work.device == "cuda":
            self.keep(f"{whose}: dropped places", "adapters", self.widths[names[0]], "a byte for every place", 1)
        elif work.dropout:
            places = self.widths[names[0]] * work.dropout
            self.keep(f"{whose}: dropped places", "adapters", places, "64-bit, and only of what was dropped", INT64)
        self.keep(f"{whose}: output of A", "adapters", work.rank * len(names), "gradients of B", read)
        if casts(work, work.adapter_width):
            numbers = work.rank * sum(sum(work.shape.linear_modules[name]) for name in names)
            self.keep(f"{whose}: A and B, cast", "weight copies", numbers, "gradients of their inputs", work.width)


def places_spread(work: Workload) -> float:
    """Standard deviation, in bytes, of what the fast path saves on a CPU: how many places are dropped is drawn.

    One draw a group of layers with one input, each of its elements dropped by itself: binomial.
    """
    modules = work.shape.linear_modules
    widths = [modules[name][0] for name in ("q_proj", "o_proj", "gate_proj", "down_proj")]
    elements = work.shape.num_layers * work.tokens * sum(widths)
    return INT64 * sqrt(elements * work.dropout * (1 - work.dropout))
