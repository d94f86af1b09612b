"""What a training step of LitGPT holds beside, or instead of, what the stock stack holds; counted in its code.

How it works: each function gives bytes from the settings alone, for a moment of a step or for all of them. They follow
from the code of the day on which a figure was published (`VERSIONS`): lora.py and model.py of LitGPT, `_FabricModule` and
`BitsandbytesPrecision` of Lightning, `MatMul4Bit` of bitsandbytes. `tests/litgpt_step.py` makes a model and a loop of the same
operations, without weights, whose live tensors are counted; these formulas give the same. Four things matter most:

    logits       the head runs on 128 tokens at a time, but all pieces live on; Fabric gives them back in fp32
    4-bit inputs bitsandbytes before 0.43.2 hangs the input of each product on its graph node, not on what autograd frees
    the step before   `logits` names that step's last tensors until the next forward pass is over, and with them its graph:
                 the 4-bit inputs of two micro-batches are there at once
    attention    one product makes queries, keys and values; attention gives its output heads first, so that it is copied

T tokens, V the vocabulary, h the width of the model: in the comments.
"""

from qlora_lib.cost.activations import FLOAT, INT64, saved_bytes
from qlora_lib.cost.memory import optimizer_bytes, quantized_bytes, resident, trained_tensors, trained_width
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.workload import ATTENTION_IN, Workload
from qlora_lib.validation.published_gpu import OTHERWISE, Counts, Difference

VERSIONS = {  # day of a table: LitGPT's commit that brought it, and what that table or commit names of Lightning and bitsandbytes
    "2023-10-27": ("0cc02afa", "2.1.0.rc0", "0.41.1"),
    "2024-04-24": ("43c44323", "2.3.0.dev20240328", "0.42.0"),
    "2024-09-27": ("00af8b0d", "2.4.0.dev20240728", "0.42.0"),  # of Llama 3.2
}
PIECE = 128  # tokens of each sequence that the head and the loss take at a time
HALF = 2  # bytes: its weights and what it computes have 16 bits

# Moments of its own; what waits then is what the blocks keep, and gradients of earlier micro-batches.
HEAD_AGAIN = "head of a forward pass"
TURNED = "logits turned to fp32"
LOSS = "loss"
HEAD = "gradient of the head"
FORWARD = (HEAD_AGAIN, TURNED)
STOCK_LOSS = ("loss, in pieces", "start of backward", HEAD)  # of the stock stack, which makes its loss in another way


def moments(work: Workload) -> dict[str, int]:
    """Bytes held at each moment of its step by what the stock stack has too; the differences come on top."""
    fixed = resident(work).total + optimizer_bytes(work)[0]
    earlier = sum(trained_tensors(work)) * trained_width(work) * (work.accumulation > 1)
    saved = saved_bytes(work)
    waits = fixed + earlier + sum(saved.values()) - saved["loss"]
    stock = {name: held for name, held in step_memory(work).moments.items() if name not in STOCK_LOSS}
    return stock | dict.fromkeys((HEAD_AGAIN, TURNED, LOSS, HEAD), waits)


# --- the blocks ---------------------------------------------------------------------------------------


def _of_all_blocks(work: Workload, numbers: int) -> int:
    return work.shape.num_layers * work.tokens * numbers * HALF


def one_dropout(work: Workload) -> int:
    """Adapters of queries, keys and values share a dropout; the stock stack has one for each. A mask has a byte a number,
    and none where the input wants no gradient: in the first block."""
    more = max(0, len(set(work.adapted) & set(ATTENTION_IN)) - 1)
    row, layers = work.tokens * work.shape.hidden_size, work.shape.num_layers
    return -more * row * (layers * HALF + layers - 1) * (work.dropout > 0)


def heads(work: Workload) -> int:
    """Values are a view of the product that makes queries, keys and values, which so stays whole; where queries share
    keys and values, these are copied out to all heads instead."""
    q, kv = work.shape.query_width, work.shape.kv_width
    return _of_all_blocks(work, q + kv if q == kv else 2 * (q - kv))


def padded(work: Workload) -> int:
    """Where not all of queries, keys and values are adapted, the adapter's output is copied into zeros by its columns'
    numbers; both it and they are kept."""
    here = set(work.adapted) & set(ATTENTION_IN)
    if not 0 < len(here) < len(ATTENTION_IN):
        return 0
    width = sum(work.shape.linear_modules[name][1] for name in here)
    return _of_all_blocks(work, width) + work.shape.num_layers * width * INT64


def inputs_of_full(work: Workload) -> int:
    """Attention's output, heads first, is copied for the next product, which keeps the copy; and the head its input."""
    return _of_all_blocks(work, work.shape.query_width) + work.tokens * work.shape.hidden_size * HALF


def inputs_of_4bit(work: Workload) -> int:
    """Of the products of each block: what makes queries, keys and values (in the first block its input wants no gradient), the
    copied output of attention, gate's (and up's), down's; and the head's. With dropout in front of the adapters, as it
    always is there, none of these is kept for an adapter."""
    s = work.shape
    first, head = -s.hidden_size, s.hidden_size
    return work.tokens * HALF * (s.num_layers * (2 * s.hidden_size + s.query_width + s.intermediate_size) + first + head)


# --- the head and the loss ----------------------------------------------------------------------------


def quantized_head(work: Workload) -> int:
    """`BitsandbytesPrecision` quantizes every linear layer, the head too."""
    elements = work.shape.vocab_size * work.shape.hidden_size
    return sum(quantized_bytes(elements, work.shape.vocab_size, work.quantization, work.double_quant)) - elements * HALF


def head_read_back(work: Workload) -> int:
    """Its weight in fp16, which is what it was quantized from, and turned to bf16: both are there for a moment."""
    return 2 * work.shape.vocab_size * work.shape.hidden_size * HALF


def head_adapter(work: Workload) -> int:
    """Parameters, their gradients, and AdamW's averages where these are not paged; what the adapter keeps of its input."""
    numbers = work.rank * (work.shape.hidden_size + work.shape.vocab_size)
    kept = work.tokens * (work.shape.hidden_size * (1 + HALF) + work.rank * HALF)
    return numbers * HALF * (2 if work.pages else 4) + kept


def _logits(work: Workload, width: int) -> int:
    return work.tokens * work.shape.vocab_size * width


def _piece(work: Workload, width: int, rows: int = PIECE) -> int:
    return work.batch * min(rows, work.length) * work.shape.vocab_size * width


LOGITS: Counts = {  # all pieces: 16 bits, then fp32, then log-probabilities besides; two gradients of a piece
    HEAD_AGAIN: lambda w: _logits(w, HALF) - _piece(w, HALF, (w.length - 1) % PIECE + 1),  # the last piece is being made
    TURNED: lambda w: _logits(w, HALF + FLOAT),
    LOSS: lambda w: _logits(w, 2 * FLOAT) + _piece(w, 2 * FLOAT),
    HEAD: lambda w: _logits(w, FLOAT + HALF),  # the gradient has 16 bits again
    OTHERWISE: lambda w: _logits(w, FLOAT),
}
LOGITS_OF_FULL: Counts = {  # the head runs on all tokens; without the last of each sequence they are copied
    TURNED: lambda w: _logits(w, HALF + FLOAT),
    LOSS: lambda w: _logits(w, 3 * FLOAT),
    HEAD: lambda w: _logits(w, FLOAT + HALF) + w.shape.vocab_size * w.shape.hidden_size * HALF,
    OTHERWISE: lambda w: _logits(w, FLOAT),
}


# --- the differences of a run -------------------------------------------------------------------------

_LOGITS = "the logits of all pieces stay, given back in fp32, and with them their log-probabilities"
_ATTENTION = (
    Difference("one dropout in front of the adapters of queries, keys and values", one_dropout, "blocks wait"),
    Difference("the adapter's output, padded to the width of queries, keys and values", padded, "blocks wait"),
)
_HEADS = Difference("the whole product of queries, keys and values is kept, or its parts copied to all heads", heads, "blocks wait")
_INPUTS_OF_FULL = Difference("a copy of attention's output and the head's input are kept", inputs_of_full, "blocks wait")


def differences(work: Workload, head_adapted: bool = False, steady: bool = True) -> tuple[Difference, ...]:
    """Of a run of LitGPT's finetune/full.py or finetune/lora.py on one GPU, in bf16-true.

    steady: long micro-batches follow each other; otherwise only the first one of the run is long, and nothing is left then
    from one before.
    """
    if work.trains_all:
        found = [_HEADS, _INPUTS_OF_FULL, Difference(f"{_LOGITS}; without each last one they are copied", LOGITS_OF_FULL)]
    else:
        found = [*_ATTENTION, _HEADS, Difference(_LOGITS, LOGITS)]
    if head_adapted:
        found.append(Difference("the adapter of the head, with gradients, states and what it keeps", head_adapter))
    if steady:
        found.append(_left("the logits of the micro-batch before still have a name", _logits_before))
    if work.quantization != "none":
        found += [
            Difference("the head is quantized too", quantized_head),
            Difference("and read back, in fp16 and then in bf16", {HEAD_AGAIN: head_read_back, HEAD: head_read_back}),
            Difference("bitsandbytes before 0.43.2 kept the input of each 4-bit product, which no gradient needs", inputs_of_4bit),
        ]
        if steady:
            found.append(_left("and those of the micro-batch before, for as long as its logits have a name", inputs_of_4bit))
    return tuple(found)


def _left(words: str, count) -> Difference:
    return Difference(words, dict.fromkeys(FORWARD, count))


def _logits_before(work: Workload) -> int:
    return _logits(work, FLOAT)
