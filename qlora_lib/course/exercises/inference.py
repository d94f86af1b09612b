"""Lesson 6: what one token costs."""

from qlora_lib import style
from qlora_lib.cost.devices import GIB, GPUS
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.exercises.memory import LLAMA_8B

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

EXERCISES = [cache, passes, bound, four_bit, longest]
