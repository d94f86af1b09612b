"""Lesson 10: what training on instructions learns from, and how its adapter is deployed."""

from collections.abc import Sequence

from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.instructing import draw_label_strips
from qlora_lib.quantization import codebook
from qlora_lib.tasks.chat import IGNORED

# --- 10.1 learned tokens ---------------------------------------------------------------------------

SYSTEM, ASKED, ANSWERED = 12, (20, 10), (15, 30)  # tokens of the messages' contents
OPENS, END, BREAK = 3, 1, 1  # of every turn: <|im_start|>, role, line break; <|im_end|>; a line break

learned = Number(
    key="10.1",
    title="How many tokens are learned",
    unit="tokens",
    expected=lambda: sum(ANSWERED) + 2 * END,
    parts=lambda: {"first answer": ANSWERED[0], "second answer": ANSWERED[1], "their ends": 2 * END},
    explain="The answers and the token that ends each of them: that is all that the model will have to write itself.",
    mistakes=(
        Mistake(
            name="the ends were forgotten",
            why="A model that never learned to end an answer never stops by itself.",
            answer=lambda: sum(ANSWERED),
        ),
        Mistake(
            name="only the last answer was counted",
            why="In a chat the model writes every assistant's turn, so each is learned.",
            answer=lambda: ANSWERED[1] + END,
        ),
        Mistake(
            name="the opening of the turn was counted too",
            why="Before the model is asked, the template has written that itself.",
            answer=lambda: sum(ANSWERED) + 2 * (END + OPENS),
        ),
        Mistake(
            name="the line break behind the end was counted too",
            why="Generation stops at the end's token, so what stands behind it is never written by the model.",
            answer=lambda: sum(ANSWERED) + 2 * (END + BREAK),
        ),
        Mistake(
            name="the questions were counted too",
            why="Users write them; the model only reads them.",
            answer=lambda: sum(ASKED) + sum(ANSWERED) + 2 * END,
        ),
        Mistake(
            name="every token of the chat was counted",
            why="That is training on text, as for the language model of the first lessons.",
            answer=lambda: SYSTEM + sum(ASKED) + sum(ANSWERED) + 5 * (OPENS + END + BREAK),
        ),
    ),
)

# --- 10.2 the label mask ---------------------------------------------------------------------------


def label_mask(ids: Sequence[int], starts: Sequence[int], end: int) -> list[int]:
    """Labels of a row: from each start through the first `end` behind it the token itself, else IGNORED."""
    labels = [IGNORED] * len(ids)
    for start in starts:
        stop = list(ids).index(end, start)
        labels[start : stop + 1] = ids[start : stop + 1]
    return labels


def _but(keep):
    """A wrong mask: every position that `keep(position, ids, starts, end)` allows."""
    return lambda ids, starts, end: [t if keep(i, list(ids), starts, end) else IGNORED for i, t in enumerate(ids)]


def _in_right(i, ids, starts, end) -> bool:
    return label_mask(ids, starts, end)[i] != IGNORED


mask = Function(
    key="10.2",
    title="The label mask",
    axis="label",
    expected=label_mask,
    cases=lambda: [
        Case("one turn, then two places of padding with the end's own token", ([1, 40, 41, 2, 1, 50, 60, 61, 62, 2, 2, 2], [6], 2)),
        Case("a chat of two turns", ([1, 40, 2, 1, 60, 61, 2, 1, 42, 43, 2, 1, 62, 2], [4, 12], 2)),
        Case("an answer of nothing but its end", ([1, 40, 2, 1, 2], [4], 2)),
    ],
    explain="Positions decide, not token ids: so the end is learned once, and padding of the same id is not.",
    mistakes=(
        Mistake(
            name="the end of the answer is not learned",
            why="Then the model never sees that an answer has an end.",
            answer=_but(lambda i, ids, s, e: _in_right(i, ids, s, e) and ids[i] != e),
        ),
        Mistake(
            name="padding is learned as well",
            why="Stop at the first end behind the start: the same token stands in the padding.",
            answer=_but(
                lambda i, ids, s, e: _in_right(i, ids, s, e) or (ids[i] == e and i > s[-1] and all(t == e for t in ids[i:]))
            ),
        ),
        Mistake(
            name="all that follows the first start is learned",
            why="In a chat the next question follows, and it is not the model's to write.",
            answer=_but(lambda i, ids, s, e: i >= s[0]),
        ),
        Mistake(
            name="every end is learned",
            why="The one behind a question is written by the template, not by the model.",
            answer=_but(lambda i, ids, s, e: _in_right(i, ids, s, e) or ids[i] == e),
        ),
        Mistake(
            name="only the last answer is learned",
            why="Every turn of the assistant's is one that the model has to write.",
            answer=lambda ids, s, e: label_mask(ids, s[-1:], e),
        ),
        Mistake(
            name="the labels are shifted by one",
            why="The model compares position t with label t + 1 itself: hand them over in place.",
            answer=lambda ids, s, e: [*label_mask(ids, s, e)[1:], IGNORED],
        ),
        Mistake(
            name="the mask is made of zeros",
            why="0 is a token like any other; the loss leaves out −100 alone.",
            answer=lambda ids, s, e: [0 if x == IGNORED else x for x in label_mask(ids, s, e)],
        ),
        Mistake(
            name="prompt and answer were swapped",
            why="What is learned is the answer.",
            answer=_but(lambda i, ids, s, e: not _in_right(i, ids, s, e)),
        ),
    ),
)

# --- 10.3 the model that does not stop -------------------------------------------------------------

STRIP = ("<user>", "Name", "a", "colour", "<end>", "<bot>", "Blue", ".", "<end>", "<end>", "<end>")


def draw_ends(answer: str):
    answers = [i in (6, 7) for i in range(len(STRIP))]
    return draw_label_strips(
        STRIP,
        {
            "by ids: not <end>, the pad": [t != "<end>" for t in STRIP],
            "by ids, answer only": answers,
            "by positions": [on or i == 8 for i, on in enumerate(answers)],
        },
    )


endless = Choice(
    key="10.3",
    title="The model that does not stop",
    right="padding is the end's token",
    options={
        "padding is the end's token": (
            "what makes labels by ids masks every token that equals the padding, and with it the one end that should be learned. Labels by position cure it, and so does a padding token of its own."
        ),
        "the rank is too small": "to put one token behind a finished answer needs no rank to speak of; and other ranks showed the same.",
        "too few steps": "the answers have become those of the data, so the training did arrive; only the end is missing.",
        "greedy decoding": "it takes the likeliest token, and a learned end is the likeliest where the answer ends.",
        "four bits": "the adapter was trained on the four bits, and learned everything else on them.",
        "the limit on new tokens is too high": "a lower one cuts the text somewhere, and hides that the model does not end it.",
    },
    draw=draw_ends,
)

# --- 10.4 cut or left out --------------------------------------------------------------------------


def cut(prompts: Sequence[int], responses: Sequence[int], limit: int) -> list[int]:
    """(rows that fit, rows whose response would break off, rows that would lose all of it)."""
    pairs = list(zip(prompts, responses))
    fits = sum(p + r <= limit for p, r in pairs)
    lost = sum(p >= limit for p, _ in pairs)
    return [fits, len(pairs) - fits - lost, lost]


truncated = Function(
    key="10.4",
    title="What cutting would have done",
    axis="examples",
    expected=cut,
    cases=lambda: [
        Case("a limit of 100", ([50, 60, 90, 99, 100, 140], [50, 41, 30, 5, 20, 10], 100)),
        Case("a limit of 8", ([3, 8, 7, 20], [2, 1, 1, 3], 8)),
        Case("a limit that all keep", ([3, 4], [5, 6], 512)),
    ],
    explain="Cutting on the right always costs the end of a response first, and the example teaches to break off.",
    mistakes=(
        Mistake(
            name="a row of exactly the limit was taken for too long",
            why="It fits: its last token is the last that is kept.",
            answer=lambda p, r, n: [
                sum(a + b < n for a, b in zip(p, r)),
                sum(a + b >= n and a < n for a, b in zip(p, r)),
                sum(a >= n for a in p),
            ],
        ),
        Mistake(
            name="lost rows were counted among the broken ones too",
            why="Of these nothing is left to break off.",
            answer=lambda p, r, n: [cut(p, r, n)[0], len(p) - cut(p, r, n)[0], cut(p, r, n)[2]],
        ),
        Mistake(
            name="a prompt that fills the limit was taken to leave some of its response",
            why="With a prompt of just the limit no token of the response is left.",
            answer=lambda p, r, n: [cut(p, r, n)[0], len(p) - cut(p, r, n)[0] - sum(a > n for a in p), sum(a > n for a in p)],
        ),
        Mistake(
            name="the prompt was not counted",
            why="Prompt and response share the limit.",
            answer=lambda p, r, n: [sum(b <= n for b in r), sum(b > n for b in r), 0],
        ),
        Mistake(
            name="the last two were swapped",
            why="First those that break off, then those that are lost whole.",
            answer=lambda p, r, n: [cut(p, r, n)[i] for i in (0, 2, 1)],
        ),
    ),
)

# --- 10.5 padding by hand --------------------------------------------------------------------------

LENGTHS = (40, 200, 60, 180, 50, 190, 70, 210)


def positions(lengths: Sequence[int], batch: int) -> int:
    return sum(len(b) * max(b) for b in (lengths[i : i + batch] for i in range(0, len(lengths), batch)))


AS_THEY_COME, ORDERED = positions(LENGTHS, 2), positions(sorted(LENGTHS), 2)

padding = Number(
    key="10.5",
    title="What order saves",
    unit="positions, unordered over ordered",
    expected=lambda: AS_THEY_COME / ORDERED,
    parts=lambda: {"tokens": sum(LENGTHS) / ORDERED, "padding in order": 1 - sum(LENGTHS) / ORDERED, "padding that order saves": AS_THEY_COME / ORDERED - 1},
    explain="A batch costs its size times its longest row, so rows of one length belong together.",
    mistakes=(
        Mistake(
            name="padding was compared, not positions",
            why="The tokens themselves are computed as well, in either order.",
            answer=lambda: (AS_THEY_COME - sum(LENGTHS)) / (ORDERED - sum(LENGTHS)),
        ),
        Mistake(
            name="the unordered rows were all padded to the longest of the set",
            why="Each batch is padded to its own longest row.",
            answer=lambda: len(LENGTHS) * max(LENGTHS) / ORDERED,
        ),
        Mistake(
            name="the ordered batches were taken to hold no padding",
            why="Rows of 190 and 210 still differ.",
            answer=lambda: AS_THEY_COME / sum(LENGTHS),
        ),
        Mistake(name="the two were swapped", why="Unordered over ordered is above 1.", answer=lambda: ORDERED / AS_THEY_COME),
        Mistake(
            name="the saved share was given",
            why="The question is how many times as many positions are computed.",
            answer=lambda: 1 - ORDERED / AS_THEY_COME,
        ),
        Mistake(name="order was thought to change nothing", why="Compare what each batch is padded to.", answer=lambda: 1.0),
    ),
)

# --- 10.6 what rounds away -------------------------------------------------------------------------

ABSMAX = 0.08
GAP = float(codebook("nf4")[8])  # from the level 0 to the next above it; the largest level is 1

survives = Number(
    key="10.6",
    title="What rounds away",
    unit="thousandths",
    expected=lambda: 1e3 * ABSMAX * GAP / 2,
    parts=lambda: {"half of the gap": 1e3 * ABSMAX * GAP / 2},
    explain="Whatever training added to this weight, if it is less than that, quantizing again takes all of it back.",
    mistakes=(
        Mistake(
            name="the whole gap was taken",
            why="A number is rounded to the nearest level, and past the middle that is the next one.",
            answer=lambda: 1e3 * ABSMAX * GAP,
        ),
        Mistake(
            name="the scale was forgotten",
            why="Levels are multiples of the block's absmax.",
            answer=lambda: 1e3 * GAP / 2,
        ),
        Mistake(
            name="levels at equal distances were taken",
            why="That is INT4 (seven steps from 0 to the largest); NF4's levels stand closer near 0.",
            answer=lambda: 1e3 * ABSMAX / 7 / 2,
        ),
        Mistake(
            name="sixteen equal parts of the range were taken",
            why="NF4's levels are not equally far apart.",
            answer=lambda: 1e3 * ABSMAX * 2 / 16 / 2,
        ),
        Mistake(
            name="the gap below 0 was taken",
            why="The product is positive; there is one more level above 0 than below it, so the gaps differ.",
            answer=lambda: 1e3 * ABSMAX * -float(codebook("nf4")[6]) / 2,
        ),
        Mistake(
            name="the gap was divided by the scale",
            why="A level is its number times the absmax.",
            answer=lambda: 1e3 * GAP / 2 / ABSMAX,
        ),
    ),
    tolerance=2e-3,
)

# --- 10.7 which way --------------------------------------------------------------------------------


def draw_ways(answer: str):
    from qlora_lib.course.deploying import draw_kept

    return draw_kept({})


way = Choice(
    key="10.7",
    title="Which way to deploy",
    right="adapter beside the 4-bit base",
    options={
        "adapter beside the 4-bit base": "it is what was trained, bit for bit. Its price is a second path at each layer: a little memory, and time for every token.",
        "onto the dequantized, quantized again": "the weights stand on the levels, a small product rounds away, and the base is back.",
        "onto the original, quantized again": (
            "it keeps most of the product on average, but every weight is rounded anew: a near function, not the trained one."
        ),
        "onto the dequantized, 16 bits": "the trained function but for rounding to 16 bits; four times as large in its linear layers, so it does not fit.",
        "onto the original, 16 bits": "another function than the trained one, sometimes a better one; and it does not fit.",
    },
    draw=draw_ways,
)

EXERCISES = [learned, mask, endless, truncated, padding, survives, way]
