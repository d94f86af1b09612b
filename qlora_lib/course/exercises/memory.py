"""Lesson 4: what training holds in memory."""

from math import ceil, sqrt

from qlora_lib.cost.memory import FLOAT, STATE_BLOCK, adapter_tensors, weight_tensors
from qlora_lib.cost.shapes import LLAMA_8B, SMOLLM2, TINYLLAMA
from qlora_lib.course.anatomy import Method, anatomy, layer_tensors, paged, saved_bytes
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.figures.talk import draw_memory_anatomy

MIB = 2**20
FULL = Method("full")
QLORA = Method("qlora", rank=16, dropout=0.05, four_bit=True, optimizer_bits=8)


# --- 04.1 Adam's averages --------------------------------------------------------------------------

ADAPTER = sum(adapter_tensors(SMOLLM2, 16))
ONLY_A = sum(adapter_tensors(SMOLLM2, 16)[::2])

states = Number(
    key="04.1",
    title="Adam's averages for an adapter",
    unit="MiB",
    expected=lambda: 2 * ADAPTER * FLOAT / MIB,
    parts=lambda: {"average of the gradient": ADAPTER * FLOAT / MIB, "average of its square": ADAPTER * FLOAT / MIB},
    explain="Two 32-bit averages for each of the 4,884,480 weights of A and B, and none for the frozen base.",
    mistakes=(
        Mistake(
            name="one average was counted",
            why="Adam keeps the mean of the gradient and the mean of its square.",
            answer=lambda: ADAPTER * FLOAT / MIB,
        ),
        Mistake(
            name="the averages of the frozen weights were counted",
            why="A weight that gets no gradient has nothing to average.",
            answer=lambda: 2 * sum(weight_tensors(SMOLLM2)) * FLOAT / MIB,
        ),
        Mistake(
            name="both matrices were given the width of the hidden state",
            why="A is (r, in) and B is (out, r): the MLP is wider and keys "
            "and values are narrower than the hidden state.",
            answer=lambda: 2 * 30 * 7 * 2 * 16 * 576 * FLOAT / MIB,
        ),
        Mistake(name="B was forgotten", why="Both factors are trained.", answer=lambda: 2 * ONLY_A * FLOAT / MIB),
        Mistake(
            name="gradients were counted too",
            why="They take as much again as one average, but they are no optimizer state.",
            answer=lambda: 3 * ADAPTER * FLOAT / MIB,
        ),
        Mistake(
            name="a MiB is 2^20 bytes, and not a million",
            why="The bytes are right.",
            answer=lambda: 2 * ADAPTER * FLOAT / 1e6,
        ),
    ),
    tolerance=2e-3,
)


# --- 04.2 what a linear layer saves ----------------------------------------------------------------


def linear_saves(tokens: int, inputs: int, outputs: int, trained: bool, rank: int, dropout: bool) -> list[int]:
    if trained:
        return [FLOAT * tokens * inputs, 0, 0]
    if not rank:
        return [0, 0, 0]
    return [0, FLOAT * tokens * inputs * (2 if dropout else 1), FLOAT * tokens * rank]


def _linear_cases() -> list[Case]:
    return [
        Case("a trained layer of 576 to 1,536 at 256 tokens", (256, 576, 1536, True, 0, False)),
        Case("a frozen layer", (256, 576, 1536, False, 0, False)),
        Case("a frozen layer with an adapter of rank 16", (256, 576, 1536, False, 16, False)),
        Case("the same behind a dropout", (256, 576, 1536, False, 16, True)),
        Case("a narrow layer, rank 4, dropout", (32, 1536, 576, False, 4, True)),
    ]


def _changed(of_layer=None, of_a=None, of_b=None):
    """A wrong `linear_saves`: some of its three numbers are other functions of the arguments."""

    def wrong(*args):
        found = linear_saves(*args)
        return [f if other is None else other(*args) for f, other in zip(found, (of_layer, of_a, of_b))]

    return wrong


saves = Function(
    key="04.2",
    title="What a linear layer saves",
    axis="bytes",
    expected=linear_saves,
    cases=_linear_cases,
    explain="The gradient of a weight needs the layer's input; that of the "
    "input needs the weight, which is there anyway.",
    mistakes=(
        Mistake(
            name="a frozen layer keeps its input here",
            why="Its input is wanted for the gradient of its weight alone, and that is not computed.",
            answer=_changed(of_layer=lambda t, i, o, trained, r, d: FLOAT * t * i),
        ),
        Mistake(
            name="the output was kept in place of the input",
            why="A product is differentiated without its result.",
            answer=_changed(of_layer=lambda t, i, o, trained, r, d: FLOAT * t * o * trained),
        ),
        Mistake(
            name="the adapter was forgotten",
            why="A and B are trained: A needs its input, B needs what A gave.",
            answer=_changed(of_a=lambda *_: 0, of_b=lambda *_: 0),
        ),
        Mistake(
            name="the output of A was forgotten",
            why="It is the input of B, and B is trained.",
            answer=_changed(of_b=lambda *_: 0),
        ),
        Mistake(
            name="B was given its own output, and not its input",
            why="A product is differentiated without its result; B's input is what A gave, `rank` numbers a token.",
            answer=_changed(of_b=lambda t, i, o, trained, r, d: FLOAT * t * o * (r > 0)),
        ),
        Mistake(
            name="the dropout was forgotten",
            why="It keeps its mask, 32 bits an element on a CPU, beside the input that it changed for A.",
            answer=lambda t, i, o, trained, r, d: linear_saves(t, i, o, trained, r, False),
        ),
        Mistake(
            name="the mask was counted as one byte an element",
            why="So it is on a GPU; on a CPU the mask is a 32-bit factor, 0 or 1 / (1 - p).",
            answer=_changed(of_a=lambda t, i, o, trained, r, d: t * i * (5 if d else 4) * (r > 0)),
        ),
        Mistake(
            name="numbers were counted, and not bytes",
            why="A 32-bit number has four.",
            answer=lambda *a: [n / FLOAT for n in linear_saves(*a)],
        ),
    ),
)


# --- 04.3 logits -----------------------------------------------------------------------------------

LOGITS = 8 * 256 * 49_152 * FLOAT / MIB  # one tensor

logits = Number(
    key="04.3",
    title="The vocabulary's share",
    unit="MiB",
    expected=lambda: 3 * LOGITS,
    parts=lambda: {"log-probabilities": LOGITS, "their gradient": LOGITS, "gradient of the logits": LOGITS},
    explain="Three tensors of batch x length x vocabulary, and no setting of QLoRA makes one of them smaller.",
    mistakes=(
        Mistake(
            name="one tensor was counted",
            why="When the backward pass begins, two gradients as large join the log-probabilities.",
            answer=lambda: LOGITS,
        ),
        Mistake(
            name="two tensors were counted",
            why="Log-softmax holds its result, the gradient that it is given and the one that it makes.",
            answer=lambda: 2 * LOGITS,
        ),
        Mistake(
            name="one sequence was counted",
            why="Every sequence of the batch has logits for every token.",
            answer=lambda: 3 * LOGITS / 8,
        ),
        Mistake(
            name="numbers of 16 bits were taken",
            why="The loss is computed in 32 bits, also where the model is not.",
            answer=lambda: 1.5 * LOGITS,
        ),
        Mistake(
            name="the width of the hidden state was taken for the vocabulary",
            why="A logit is a score for each token that could come next.",
            answer=lambda: 3 * LOGITS * 576 / 49_152,
        ),
        Mistake(
            name="numbers were counted, and not bytes",
            why="A 32-bit number has four.",
            answer=lambda: 3 * LOGITS / FLOAT,
        ),
    ),
)


# --- 04.4 where the peak moves ---------------------------------------------------------------------

EMBEDDING = SMOLLM2.vocab_size * SMOLLM2.hidden_size * FLOAT
GRADIENTS = sum(weight_tensors(SMOLLM2)) * FLOAT
LOGIT = SMOLLM2.vocab_size * FLOAT  # of one token


def _saved_a_token(method: Method) -> float:
    return (
        sum(saved_bytes(SMOLLM2, method, 1, 2048).values()) - sum(saved_bytes(SMOLLM2, method, 1, 1024).values())
    ) / 1024


moment = Number(
    key="04.4",
    title="Where the peak moves",
    unit="tokens",
    expected=lambda: (GRADIENTS + 2 * EMBEDDING) / (_saved_a_token(FULL) + 2 * LOGIT),
    parts=lambda: {
        "for the gradients": GRADIENTS / (_saved_a_token(FULL) + 2 * LOGIT),
        "for the embedding's two more": 2 * EMBEDDING / (_saved_a_token(FULL) + 2 * LOGIT),
    },
    explain="With fewer tokens the peak is at the end, where all gradients are "
    "there; with more, at the start, where all activations are.",
    mistakes=(
        Mistake(
            name="the tied embedding's two further gradients were forgotten",
            why="It is used twice, so it gets two gradients, and their sum is made before they go.",
            answer=lambda: GRADIENTS / (_saved_a_token(FULL) + 2 * LOGIT),
        ),
        Mistake(
            name="the two gradients of the logits were forgotten",
            why="They are made while everything saved is still there.",
            answer=lambda: (GRADIENTS + 2 * EMBEDDING) / _saved_a_token(FULL),
        ),
        Mistake(
            name="weights and states were set against the activations",
            why="They are there at both moments, so they cancel.",
            answer=lambda: (4 * GRADIENTS) / (_saved_a_token(FULL) + 2 * LOGIT),
        ),
        Mistake(
            name="LoRA's activations were taken",
            why="Full fine-tuning saves other tensors: no masks, but each norm's output before its weight.",
            answer=lambda: (GRADIENTS + 2 * EMBEDDING) / (_saved_a_token(QLORA) + 2 * LOGIT),
        ),
    ),
    tolerance=0.01,
)


# --- 04.5 checkpointing ----------------------------------------------------------------------------

INPUT = 4 * 512 * TINYLLAMA.hidden_size * FLOAT / MIB  # of one block

checkpoints = Number(
    key="04.5",
    title="What checkpointing keeps",
    unit="MiB",
    expected=lambda: TINYLLAMA.num_layers * INPUT,
    parts=lambda: {"the first block's input": INPUT, "the 21 others'": 21 * INPUT},
    explain="The input of every block: from it the block is computed again when its turn in the backward pass comes.",
    mistakes=(
        Mistake(
            name="the input of one block was counted",
            why="Each block starts again from its own; keeping the first alone "
            "would mean to compute the whole model anew for each.",
            answer=lambda: INPUT,
        ),
        Mistake(
            name="the square root of the number of blocks was kept",
            why="That is the best spacing of checkpoints in a long chain "
            "(Chen and others); transformers keeps one a block.",
            answer=lambda: sqrt(TINYLLAMA.num_layers) * INPUT,
        ),
        Mistake(
            name="everything that a block saves was counted",
            why="Of a block's tensors only its input remains.",
            answer=lambda: (
                TINYLLAMA.num_layers * sum(t.numbers for t in layer_tensors(TINYLLAMA, FULL)) * 4 * 512 * FLOAT / MIB
            ),
        ),
        Mistake(
            name="one sequence was counted", why="The batch has four.", answer=lambda: TINYLLAMA.num_layers * INPUT / 4
        ),
        Mistake(
            name="numbers of 16 bits were taken",
            why="The task asks for 32 bits.",
            answer=lambda: TINYLLAMA.num_layers * INPUT / 2,
        ),
    ),
)


# --- 04.6 paging -----------------------------------------------------------------------------------


def paged_bytes(sizes: list[int], on: str) -> list[int]:
    return [2 * n if paged(n, on) else 0 for n in sizes]


def _paging_cases() -> list[Case]:
    tiny = sorted(set(adapter_tensors(TINYLLAMA, 16)))
    large = sorted(set(adapter_tensors(LLAMA_8B, 16)))
    return [
        Case("one adapter matrix of each size, TinyLlama, rank 16, on a GPU", (tiny, "cuda")),
        Case("the same for Llama-3.1-8B", (large, "cuda")),
        Case("two small matrices", ([32_768, 32_768], "cuda")),
        Case("tensors around the limit", ([99_999, 100_000, 100_001], "cuda")),
        Case("Llama-3.1-8B on a CPU", (large, "cpu")),
    ]


paging = Function(
    key="04.6",
    title="What a paged optimizer pages",
    axis="bytes",
    expected=paged_bytes,
    cases=_paging_cases,
    explain="TinyLlama's adapter of rank 16 has no matrix of 100,000 elements: its paged optimizer pages nothing.",
    mistakes=(
        Mistake(
            name="the limit was held against all tensors together",
            why="Each tensor is judged by itself.",
            answer=lambda sizes, on: [2 * n if paged(sum(sizes), on) else 0 for n in sizes],
        ),
        Mistake(
            name="every tensor was paged",
            why="bitsandbytes leaves those under 100,000 elements where they are.",
            answer=lambda sizes, on: [2 * n if on == "cuda" else 0 for n in sizes],
        ),
        Mistake(
            name="a CPU pages here",
            why="There is no second memory to page to, so the unpaged twin runs.",
            answer=lambda sizes, on: paged_bytes(sizes, "cuda"),
        ),
        Mistake(
            name="states of 32 bits were counted",
            why="The paged optimizer of the question keeps two averages of 8 bits.",
            answer=lambda sizes, on: [4 * n for n in paged_bytes(sizes, on)],
        ),
        Mistake(
            name="one average was counted",
            why="Adam has two, and each is paged.",
            answer=lambda sizes, on: [n / 2 for n in paged_bytes(sizes, on)],
        ),
        Mistake(
            name="the limit was held against bytes",
            why="The source compares the number of elements of the "
            "parameter; two 8-bit averages have as many bytes again.",
            answer=lambda sizes, on: [2 * n if paged(2 * n, on) else 0 for n in sizes],
        ),
        Mistake(
            name="the block scales were paged",
            why="They are made as ordinary tensors; only the 8-bit averages are asked of the paged memory.",
            answer=lambda sizes, on: [2 * (n + ceil(n / STATE_BLOCK) * FLOAT) if paged(n, on) else 0 for n in sizes],
        ),
        Mistake(
            name="a tensor of exactly 100,000 elements was left out",
            why="The source asks for fewer than 1e5, so that 1e5 itself is paged.",
            answer=lambda sizes, on: [2 * n if paged(n - 1, on) else 0 for n in sizes],
        ),
    ),
)


# --- 04.7 the cheapest change ----------------------------------------------------------------------

LIMIT = 2100 * MIB
CHANGES = {
    "as it is": QLORA,
    "rank 4": Method("qlora", rank=4, dropout=0.05, four_bit=True, optimizer_bits=8),
    "paged optimizer": QLORA,
    "no LoRA dropout": Method("qlora", rank=16, four_bit=True, optimizer_bits=8),
    "gradient checkpointing": Method("qlora", 16, 0.05, four_bit=True, optimizer_bits=8, checkpointing=True),
}


def draw_changes(answer: str):
    bars = {
        (f"> {name}" if name == answer else name): dict(anatomy(SMOLLM2, method, 4, 256).parts)
        for name, method in CHANGES.items()
    }
    totals = ", ".join(f"{name} {sum(parts.values()) / MIB:,.0f} MiB" for name, parts in bars.items())
    return draw_memory_anatomy(bars, {}, limit=LIMIT), f"Peak of a step against a limit of 2,100 MiB: {totals}."


change = Choice(
    key="04.7",
    title="The cheapest change that makes it fit",
    right="no LoRA dropout",
    options={
        "rank 4": "it takes from the smallest parts: adapter, states, and 12 numbers a token and matrix.",
        "paged optimizer": "the states are a few MiB, and no matrix of this adapter is large enough to be paged.",
        "no LoRA dropout": (
            "seven masks and seven changed inputs a block are gone, what is left fits, and a step gets shorter."
        ),
        "gradient checkpointing": "it fits with room to spare, but every step pays a second forward pass for it.",
    },
    draw=draw_changes,
)

EXERCISES = [states, saves, logits, moment, checkpoints, paging, change]
