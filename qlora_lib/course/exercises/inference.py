"""Lesson 6: what one token costs."""

from math import prod

from qlora_lib import style
from qlora_lib.cost.devices import GIB, GPUS
from qlora_lib.cost.memory import adapter_tensors
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.exercises.memory import LLAMA_8B, SMOLLM2

KIB = 2**10
CACHE = 2 * LLAMA_8B.num_layers * LLAMA_8B.num_kv_heads * LLAMA_8B.head_dim * 2  # bytes a token, 16 bits
WEIGHTS = LLAMA_8B.parameters.total
EMBEDDING = LLAMA_8B.parameters.embedding
CARD = GPUS["RTX 4090"]

# --- 06.1 the cache --------------------------------------------------------------------------------

cache = Number(
    key="06.1",
    title="The cache of one token",
    unit="KiB",
    expected=lambda: CACHE / KIB,
    parts=lambda: {"keys": CACHE / 2 / KIB, "values": CACHE / 2 / KIB},
    explain="Each of 32 layers keeps a key and a value for each of 8 heads; the 32 query heads share them in fours.",
    mistakes=(
        Mistake(
            name="the query heads were counted",
            why="Only keys and values are kept, and with grouped queries there are fewer of them.",
            answer=lambda: 4 * CACHE / KIB,
        ),
        Mistake(
            name="keys without values were counted", why="A later token needs both.", answer=lambda: CACHE / 2 / KIB
        ),
        Mistake(
            name="one layer was counted",
            why="Every layer has keys and values of its own.",
            answer=lambda: CACHE / 32 / KIB,
        ),
        Mistake(name="numbers of 32 bits were taken", why="The task asks for 16 bits.", answer=lambda: 2 * CACHE / KIB),
        Mistake(name="one head was counted", why="There are eight key/value heads.", answer=lambda: CACHE / 8 / KIB),
        Mistake(
            name="a KiB is 1,024 bytes, and not a thousand", why="The bytes are right.", answer=lambda: CACHE / 1e3
        ),
    ),
)


# --- 06.2 tokens that are computed -----------------------------------------------------------------


def computed(prompt: int, new: int) -> tuple[int, int]:
    return prompt + new - 1, sum(prompt + i for i in range(new))


passes = Function(
    key="06.2",
    title="Tokens through the model",
    axis="tokens computed",
    expected=lambda p, n: list(computed(p, n)),
    cases=lambda: [
        Case("a prompt of 128 and 50 new tokens", (128, 50)),
        Case("a prompt of 1 and 4 new tokens", (1, 4)),
        Case("one new token", (1000, 1)),
    ],
    explain="With the cache the work grows with the text, without it with its square.",
    mistakes=(
        Mistake(
            name="the last token was put through the model too",
            why="It is written, and nobody asks what comes after it.",
            answer=lambda p, n: [p + n, sum(p + i for i in range(n))],
        ),
        Mistake(
            name="without a cache every pass was given the whole text",
            why="The first pass reads the prompt only; the text grows by one token a pass.",
            answer=lambda p, n: [p + n - 1, n * (p + n)],
        ),
        Mistake(
            name="the text was not let grow",
            why="Without a cache a pass also reads again what the passes before it wrote.",
            answer=lambda p, n: [p + n - 1, n * p],
        ),
        Mistake(
            name="the prompt was forgotten with the cache",
            why="The prefill reads it once, and fills the cache with it.",
            answer=lambda p, n: [n, sum(p + i for i in range(n))],
        ),
        Mistake(
            name="the two were swapped",
            why="The first number is with the cache.",
            answer=lambda p, n: list(computed(p, n))[::-1],
        ),
    ),
)


# --- 06.3 the bound --------------------------------------------------------------------------------


def _bound(bytes_read: float) -> float:
    return CARD.bandwidth / bytes_read


bound = Number(
    key="06.3",
    title="The bound of a card",
    unit="tokens/s",
    expected=lambda: _bound(2 * (WEIGHTS - EMBEDDING)),
    explain="Every weight but the embedding's comes from memory once a token; of the embedding only a row does.",
    mistakes=(
        Mistake(
            name="the embedding was read whole",
            why="One row of it is looked up; the head, which is a matrix of its own here, is read whole.",
            answer=lambda: _bound(2 * WEIGHTS),
        ),
        Mistake(
            name="neither embedding nor head was read",
            why="The head scores every token of the vocabulary: it is read whole.",
            answer=lambda: _bound(2 * (WEIGHTS - 2 * EMBEDDING)),
        ),
        Mistake(
            name="numbers of 32 bits were taken",
            why="The task asks for 16 bits.",
            answer=lambda: _bound(4 * (WEIGHTS - EMBEDDING)),
        ),
        Mistake(
            name="bits were taken for bytes",
            why="The bandwidth of a data sheet is in bytes a second.",
            answer=lambda: _bound(16 * (WEIGHTS - EMBEDDING)),
        ),
        Mistake(
            name="the peak of the arithmetic was taken",
            why="A decode step is limited by memory long before it is by arithmetic.",
            answer=lambda: CARD.fp16 / (2 * (WEIGHTS - EMBEDDING)),
        ),
    ),
    tolerance=5e-3,
)


# --- 06.4 four bits --------------------------------------------------------------------------------


def draw_traffic(answer: str):
    bars = {
        "16 bits": (2.0, 0.0, 0.0),
        "NF4, fused product": (4.127 / 8, 0.0, 0.0),
        "NF4, turned back first": (4.127 / 8, 2.0, 2.0),
    }
    with style.page_style():
        figure = style.new_figure(4.2)
        axes = figure.subplots()
        left = [0.0] * len(bars)
        looks = (
            ("read", style.BLUE, ""),
            ("written out", style.VERMILLION, "xxxx"),
            ("read again", style.ORANGE, "////"),
        )
        for i, (part, color, hatch) in enumerate(looks):
            sizes = [b[i] for b in bars.values()]
            axes.barh(
                list(bars), sizes, left=left, height=0.55, color=color, hatch=hatch, edgecolor="white", label=part
            )
            left = [x + s for x, s in zip(left, sizes)]
        axes.invert_yaxis()
        axes.set_xlabel("memory traffic for one weight and token, bytes")
        figure.legend(loc="outside upper right", ncols=3)
    totals = ", ".join(f"{name} {sum(b):.2f}" for name, b in bars.items())
    return figure, f"Bytes of memory traffic for one weight and token: {totals}."


four_bit = Choice(
    key="06.4",
    title="Fewer bytes, and slower",
    right="weights are written out",
    options={
        "4-bit products are slow": "there are none: the product runs in 16 or 32 bits, whatever the storage.",
        "weights are written out": (
            "without a fused product the matrix is turned back, written to "
            "memory and read again: more traffic than before."
        ),
        "the cache grows": "it depends on length, batch and heads, not on the bits of the weights.",
        "double quantization reads more": "it reads less: scales of 8 bits in place of 32.",
    },
    draw=draw_traffic,
)


# --- 06.5 the longest text -------------------------------------------------------------------------

FREE = CARD.memory_bytes - 2 * WEIGHTS

longest = Number(
    key="06.5",
    title="The longest text",
    unit="tokens",
    expected=lambda: FREE / CACHE,
    explain="After the weights, the cache decides what fits: fewer key/value "
    "heads or 8-bit keys and values lengthen the text.",
    mistakes=(
        Mistake(
            name="the weights were forgotten",
            why="They lie in the same memory.",
            answer=lambda: CARD.memory_bytes / CACHE,
        ),
        Mistake(
            name="a GiB is 2^30 bytes, and not a billion",
            why="The rest of the way is right.",
            answer=lambda: (CARD.memory_bytes / GIB * 1e9 - 2 * WEIGHTS) / CACHE,
        ),
        Mistake(
            name="the query heads were counted",
            why="Only the key/value heads have a cache.",
            answer=lambda: FREE / (4 * CACHE),
        ),
        Mistake(
            name="keys without values were counted", why="A later token needs both.", answer=lambda: 2 * FREE / CACHE
        ),
        Mistake(
            name="weights of 8 bits were taken",
            why="The task asks for 16 bits.",
            answer=lambda: (CARD.memory_bytes - WEIGHTS) / CACHE,
        ),
    ),
    tolerance=5e-3,
)

# --- 06.6 the bound of a compiled token ------------------------------------------------------------

BANDWIDTH = 25e9  # bytes a second
LINEAR = SMOLLM2.num_layers * sum(i * o for i, o in SMOLLM2.linear_modules.values())  # weights
FETCHED = {  # bytes a token
    "codes": LINEAR / 2,
    "scales": LINEAR / 64 * 4,
    "adapter": 4 * sum(adapter_tensors(SMOLLM2, 16)),
    "head": 4 * SMOLLM2.vocab_size * SMOLLM2.hidden_size,
}


def _compiled(**other: float) -> float:
    return BANDWIDTH / sum((FETCHED | other).values())


compiled = Number(
    key="06.6",
    title="The bound of a compiled token",
    unit="tokens/s",
    expected=_compiled,
    explain="The bound is 2.8 times that of 32 bits, and not eight times: most of the bytes are the head's.",
    mistakes=(
        Mistake(
            name="the head was left out",
            why="It is the same matrix as the embedding, but as head it is read whole, for every token.",
            answer=lambda: _compiled(head=0),
        ),
        Mistake(
            name="the tied matrix was read twice",
            why="As embedding only one row of it is looked up; as head it is read once.",
            answer=lambda: _compiled(head=2 * FETCHED["head"]),
        ),
        Mistake(
            name="the head was taken in four bits",
            why="Only the linear layers of the blocks are quantized.",
            answer=lambda: _compiled(head=FETCHED["head"] / 8),
        ),
        Mistake(
            name="the scales were forgotten",
            why="Every block of 64 weights brings one of four bytes.",
            answer=lambda: _compiled(scales=0),
        ),
        Mistake(
            name="the scales were taken in 8 bits",
            why="So they are stored; here double quantization was undone when the decoder was made.",
            answer=lambda: _compiled(scales=FETCHED["scales"] / 4),
        ),
        Mistake(
            name="the adapter was forgotten",
            why="Beside its base, A and B are read for every token too.",
            answer=lambda: _compiled(adapter=0),
        ),
        Mistake(
            name="a code was given a whole byte",
            why="Two codes share one.",
            answer=lambda: _compiled(codes=LINEAR),
        ),
        Mistake(
            name="the weights were read in 32 bits",
            why="So it is where they are turned back before the product; here the product reads the codes.",
            answer=lambda: _compiled(codes=4 * LINEAR, scales=0),
        ),
    ),
    tolerance=2e-3,
)


# --- 06.7 what a remedy is worth -------------------------------------------------------------------


def overall(seconds: list[float], times: list[float]) -> float:
    return sum(seconds) / sum(s / t for s, t in zip(seconds, times))


remedy = Function(
    key="06.7",
    title="What a remedy is worth",
    axis="times as fast",
    expected=overall,
    cases=lambda: [
        Case("dequantization alone made ten times as fast", ([40.0, 5.0, 25.0, 50.0], [10.0, 1.0, 1.0, 1.0])),
        Case("all but the traffic made ten times as fast", ([40.0, 5.0, 25.0, 50.0], [10.0, 10.0, 1.0, 10.0])),
        Case("two parts, made twice and four times as fast", ([1.0, 3.0], [2.0, 4.0])),
        Case("every part made three times as fast", ([2.0, 1.0, 7.0], [3.0, 3.0, 3.0])),
    ],
    explain="Amdahl's law: what is not made faster soon is all that is left, so look at the largest part first.",
    mistakes=(
        Mistake(
            name="the factors were averaged",
            why="A part's factor counts by the time that the part takes, before and after.",
            answer=lambda s, t: sum(t) / len(t),
        ),
        Mistake(
            name="the factors were averaged by their shares of the old time",
            why="Times add up, factors do not: add up the new times, then divide.",
            answer=lambda s, t: sum(a * b for a, b in zip(s, t)) / sum(s),
        ),
        Mistake(
            name="the factors were multiplied",
            why="Each applies to its own part, and not to what another has left.",
            answer=lambda s, t: prod(t),
        ),
        Mistake(
            name="the largest factor was taken for the whole",
            why="The other parts take as long as they take.",
            answer=lambda s, t: max(t),
        ),
        Mistake(
            name="new time over old was returned",
            why="That is below 1 where it is faster: turn it over.",
            answer=lambda s, t: 1 / overall(s, t),
        ),
        Mistake(
            name="the new time was returned",
            why="The question is how many times shorter it is than the old one.",
            answer=lambda s, t: sum(a / b for a, b in zip(s, t)),
        ),
    ),
    tolerance=1e-6,
)

EXERCISES = [cache, passes, bound, four_bit, longest, compiled, remedy]
