"""Lesson 8: what a training holds, and whether it fits. Its second half, operations and time, is in rooflines.py."""

from statistics import fmean

from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.devices import GIB
from qlora_lib.cost.fitting import fit
from qlora_lib.cost.shapes import LLAMA_8B, TINYLLAMA
from qlora_lib.cost.workload import Workload
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.exercises import rooflines
from qlora_lib.course.planning import draw_held

TOTAL = TINYLLAMA.parameters.total


# --- 08.1 before the first token --------------------------------------------------------------------

BILLION = TOTAL / GIB  # GiB for each byte of a parameter

fixed = Number(
    key="08.1",
    title="Before the first token",
    unit="GiB",
    expected=lambda: 16 * BILLION,
    parts=lambda: {"weights": 4 * BILLION, "gradients": 4 * BILLION, "two averages": 8 * BILLION},
    explain="Sixteen bytes for each parameter, in mixed precision too: autocast makes 16-bit copies for its products, and what "
    "is trained stays in 32 bits. A T4 has less than that before it has seen a token.",
    mistakes=(
        Mistake(
            name="the optimizer's averages were forgotten",
            why="Adam keeps two for each weight that is trained, and they are half of all.",
            answer=lambda: 8 * BILLION,
        ),
        Mistake(
            name="twelve bytes were counted",
            why="Either one of the two averages is missing, or weights and gradients were taken in 16 bits: autocast casts "
            "copies, and what is trained stays in 32.",
            answer=lambda: 12 * BILLION,
        ),
        Mistake(
            name="the weights alone were counted",
            why="Training holds a gradient and two averages beside each.",
            answer=lambda: 4 * BILLION,
        ),
        Mistake(
            name="a copy in 16 bits was counted for good",
            why="Autocast's copies come and go with a forward and backward pass; they are activations, not parameters.",
            answer=lambda: 18 * BILLION,
        ),
        Mistake(
            name="a GiB is 2^30 bytes, and not 10^9",
            why="The bytes are right.",
            answer=lambda: 16 * TOTAL / 1e9,
        ),
    ),
)


# --- 08.2 what preparation costs --------------------------------------------------------------------

LARGE = LLAMA_8B.parameters
MATRICES = LARGE.embedding + LARGE.head  # that stay unquantized; norms are too few to count

preparation = Number(
    key="08.2",
    title="What preparation costs",
    unit="GiB",
    expected=lambda: 2 * MATRICES / GIB,
    parts=lambda: {"of the embedding": 2 * LARGE.embedding / GIB, "of the head": 2 * LARGE.head / GIB},
    explain="Two bytes more for each, on a card as well as on the CPU: a good part of what four bits had saved, and gone in one line.",
    mistakes=(
        Mistake(
            name="all their bytes were counted",
            why="In 16 bits they were there too; the question is what is added.",
            answer=lambda: 4 * MATRICES / GIB,
        ),
        Mistake(
            name="one of the two was counted",
            why="This model's head is not tied to the embedding: there are two matrices.",
            answer=lambda: LARGE.embedding * 2 / GIB,
        ),
        Mistake(
            name="every weight was cast",
            why="Quantized weights stay in four bits; only what is in 16 bits is cast.",
            answer=lambda: 2 * LARGE.total / GIB,
        ),
        Mistake(
            name="a GiB is 2^30 bytes, and not 10^9",
            why="The bytes are right.",
            answer=lambda: 2 * MATRICES / 1e9,
        ),
    ),
    tolerance=2e-3,
)


# --- 08.3 errors ------------------------------------------------------------------------------------


def errors(predicted: list[float], measured: list[float]) -> list[float]:
    off = [p / m - 1 for p, m in zip(predicted, measured)]
    return [fmean(map(abs, off)), max(off, key=abs)]


def _errors_by(one):
    """A wrong `errors`: each single error is another."""

    def wrong(predicted, measured):
        off = [one(p, m) for p, m in zip(predicted, measured)]
        return [fmean(map(abs, off)), max(off, key=abs)]

    return wrong


def _summed_up(summary):
    """A wrong `errors`: of the right single errors another summary."""
    return lambda predicted, measured: summary([p / m - 1 for p, m in zip(predicted, measured)])


two_numbers = Function(
    key="08.3",
    title="Two numbers for many errors",
    axis="as a fraction of what was measured",
    expected=errors,
    cases=lambda: [
        Case("four steps, one of them far too low", ([980.0, 1010.0, 2040.0, 700.0], [1000.0, 1000.0, 2000.0, 1000.0])),
        Case("two steps, both too high", ([110.0, 104.0], [100.0, 100.0])),
        Case("small and large together", ([5.0, 99.0, 30_300.0], [4.0, 100.0, 30_000.0])),
    ],
    tolerance=1e-9,
    explain="The mean of the sizes says what to expect, the worst with its sign what to fear: too low is what runs out of memory.",
    mistakes=(
        Mistake(
            name="errors of either sign were let cancel",
            why="The mean of signed errors may be near zero while every single one is large; take their sizes.",
            answer=_summed_up(lambda off: [fmean(off), max(off, key=abs)]),
        ),
        Mistake(
            name="the worst was taken by its sign",
            why="The largest number is not the largest error: one that is too low may be further off.",
            answer=_summed_up(lambda off: [fmean(map(abs, off)), max(off)]),
        ),
        Mistake(
            name="the worst lost its sign",
            why="Too high wastes a card, too low runs out of memory: the sign has to be kept.",
            answer=_summed_up(lambda off: [fmean(map(abs, off)), max(map(abs, off))]),
        ),
        Mistake(
            name="errors were divided by the prediction",
            why="What was measured is the yardstick; a prediction that is far too high would else look good.",
            answer=_errors_by(lambda p, m: 1 - m / p),
        ),
        Mistake(
            name="measured over predicted was taken",
            why="An error is predicted over measured, less one, so that too high is positive.",
            answer=_errors_by(lambda p, m: m / p - 1),
        ),
        Mistake(
            name="measured less predicted was taken",
            why="Too high is to be positive.",
            answer=_errors_by(lambda p, m: 1 - p / m),
        ),
        Mistake(
            name="per cent were returned",
            why="Fractions were asked for: 0.01 for one per cent.",
            answer=lambda p, m: [100 * e for e in errors(p, m)],
        ),
        Mistake(
            name="bytes were returned",
            why="A step of many bytes would outvote all others; divide by what was measured.",
            answer=_errors_by(lambda p, m: p - m),
        ),
        Mistake(
            name="the root of the mean square was taken",
            why="It lets the worst case into the mean; here that one is told beside it.",
            answer=_summed_up(lambda off: [fmean(e * e for e in off) ** 0.5, max(off, key=abs)]),
        ),
        Mistake(
            name="sums were compared",
            why="In the ratio of two sums the largest step decides, and errors of either sign cancel.",
            answer=lambda p, m: [abs(sum(p) / sum(m) - 1), errors(p, m)[1]],
        ),
    ),
)


# --- 08.4 the largest batch -------------------------------------------------------------------------


def largest_batch(usable: float, overhead: float, fixed: float, gradients: float, sequence: float) -> int:
    left = usable - overhead - fixed
    return 0 if gradients > left or sequence > left else int(left // sequence)


def _fits_where(needs):
    """A wrong `largest_batch`: the largest whole batch whose `needs(batch, ...)` is within the card."""

    def wrong(usable, overhead, fixed, gradients, sequence):
        batch = 0
        while batch < 10_000 and needs(batch + 1, overhead, fixed, gradients, sequence) <= usable:
            batch += 1
        return batch

    return wrong


batches = Function(
    key="08.4",
    title="The largest batch",
    axis="sequences",
    expected=largest_batch,
    cases=lambda: [
        Case("an adapter on a card of 24 GiB", (23.5, 1.0, 6.0, 0.2, 2.15)),
        Case("full fine-tuning with gradients as large as a few sequences", (23.5, 1.0, 12.0, 4.0, 1.3)),
        Case("gradients that find no place", (14.5, 1.0, 12.0, 4.0, 1.0)),
        Case("one sequence that finds no place", (7.75, 0.75, 6.0, 0.1, 2.0)),
        Case("an even fit", (10.0, 1.0, 3.0, 1.0, 1.0)),
    ],
    explain="Gradients and activations are not all there at once: each has to fit by itself, beside what is always there.",
    mistakes=(
        Mistake(
            name="gradients and activations were added up",
            why="Gradients grow while activations go: the peak is the higher of two moments, not their sum.",
            answer=_fits_where(lambda b, o, f, g, s: o + f + g + b * s),
        ),
        Mistake(
            name="the gradients were forgotten",
            why="At the end of the backward pass they are all there, and no smaller batch makes them less.",
            answer=_fits_where(lambda b, o, f, g, s: o + f + b * s),
        ),
        Mistake(
            name="what stands beside the tensors was forgotten",
            why="CUDA's context and the allocator's slack take from the card too.",
            answer=_fits_where(lambda b, o, f, g, s: f + max(g, b * s)),
        ),
        Mistake(
            name="the batch was rounded up or to the nearest",
            why="Half a sequence more than fits does not fit.",
            answer=lambda u, o, f, g, s: 0 if max(g, s) > u - o - f else round((u - o - f) / s),
        ),
        Mistake(
            name="the batch was rounded up or to the nearest",
            why="Half a sequence more than fits does not fit.",
            answer=lambda u, o, f, g, s: 0 if max(g, s) > u - o - f else -int(-(u - o - f) // s),
        ),
        Mistake(
            name="a batch of one was taken for granted",
            why="Where not even one sequence fits, the answer is 0: no batch helps.",
            answer=lambda *args: max(1, largest_batch(*args)),
        ),
        Mistake(
            name="the whole card was given to the batch",
            why="Weights, constants and states are there all the time.",
            answer=_fits_where(lambda b, o, f, g, s: o + max(g, b * s)),
        ),
        Mistake(
            name="a part of a sequence was returned",
            why="A batch is a whole number.",
            answer=lambda u, o, f, g, s: 0 if max(g, s) > u - o - f else (u - o - f) / s,
        ),
    ),
)


# --- 08.5 what to change ----------------------------------------------------------------------------

CARD = "RTX 3070"
AS_IT_IS = "as it is"


def steps() -> dict[str, Workload]:
    """The step of 08.5 and its changes."""

    def qlora(batch: int = 4, length: int = 512, **settings) -> Workload:
        return Workload(TINYLLAMA, "qlora", batch, length, dtype="bf16", device="cuda", **settings)

    return {
        AS_IT_IS: qlora(),
        "8-bit AdamW": qlora(optimizer="adamw_8bit"),
        "rank 4": qlora(rank=4),
        "256 tokens": qlora(length=256),
        "micro-batches of 2": qlora(batch=2, accumulation=2),
        "checkpointing": qlora(checkpointing=True),
    }


def draw_steps(answer: str):
    from qlora_lib.cost.advice import seconds_per_token

    card, known = gpu_card(CARD), steps()
    before = seconds_per_token(known[AS_IT_IS], card)
    found = {name: fit(work, card) for name, work in known.items()}
    named = {name: f"> {name}" if name == answer else name for name in known}
    return draw_held(
        {named[name]: f.memory.parts for name, f in found.items()},
        {named[name]: f.overhead for name, f in found.items()},
        {CARD: card.usable_bytes},
        {named[name]: f"{f.verdict}, time × {seconds_per_token(f.work, card) / before:.2f}" for name, f in found.items()},
    )


change = Choice(
    key="08.5",
    title="What to change on a card of 8 GB",
    right="micro-batches of 2",
    options={
        "8-bit AdamW": "an adapter's states are small in any width: it takes from one of the smallest parts, and the step still does not fit.",
        "rank 4": "it takes from adapter and states, the smallest parts, and a few numbers a token: the step still does not fit.",
        "256 tokens": "it fits, and is another training: what a token could look back on is cut in half.",
        "micro-batches of 2": (
            "the same four sequences are in every step, half of them at a time: activations and logits are halved, and "
            "all that is added is to read the weights twice."
        ),
        "checkpointing": "it fits with most room to spare, and pays nearly a second forward pass in every step for that.",
    },
    draw=draw_steps,
)


EXERCISES = [fixed, preparation, two_numbers, batches, change, *rooflines.EXERCISES]
