"""Lesson 8, second half: operations, utilization, the ridge between memory and arithmetic, and the price of a run."""

from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.shapes import TINYLLAMA
from qlora_lib.course.answers import Case, Function, Mistake, Number

# --- 08.6 model and hardware ------------------------------------------------------------------------


def utilizations(base: float, adapter: float, tokens: float, seconds: float, peak: float, checkpointing: bool) -> list[float]:
    per_token = 4 * base + 6 * adapter if adapter else 6 * base
    again = 2 * (base + adapter) * checkpointing
    return [tokens * per_token / (seconds * peak), tokens * (per_token + again) / (seconds * peak)]


def _utilized(per_token, again=lambda base, adapter: 2 * (base + adapter)):
    """A wrong `utilizations`: other operations for a token, of the model or of what is computed again."""

    def wrong(base, adapter, tokens, seconds, peak, checkpointing):
        model, more = per_token(base, adapter), again(base, adapter) * checkpointing
        return [tokens * model / (seconds * peak), tokens * (model + more) / (seconds * peak)]

    return wrong


def _model(base: float, adapter: float) -> float:
    return 4 * base + 6 * adapter if adapter else 6 * base


utilization = Function(
    key="08.6",
    title="Model and hardware utilization",
    axis="share of the peak",
    expected=utilizations,
    cases=lambda: [
        Case("all of 1.0e9 weights trained", (1.0e9, 0, 4096, 2.0, 65e12, False)),
        Case("a frozen base and an adapter", (1.0e9, 1.25e7, 4096, 1.5, 65e12, False)),
        Case("the same with checkpointing", (1.0e9, 1.25e7, 4096, 2.1, 65e12, True)),
        Case("all trained, with checkpointing", (7.5e9, 0, 8192, 4.0, 312e12, True)),
    ],
    tolerance=1e-9,
    explain="MFU counts what the model needs, HFU what the hardware does. A frozen weight needs four operations, a trained one six, and "
    "a forward pass that is run again is the hardware's alone.",
    mistakes=(
        Mistake(
            name="six operations were counted for a frozen weight",
            why="It gets no gradient of its own: the product for it is never run.",
            answer=_utilized(lambda base, adapter: 6 * (base + adapter)),
        ),
        Mistake(
            name="the adapter was forgotten",
            why="Its two matrices are multiplied like others, and they are trained.",
            answer=_utilized(lambda base, adapter: 4 * base if adapter else 6 * base, lambda base, adapter: 2 * base),
        ),
        Mistake(
            name="the adapter was counted as frozen",
            why="A and B get gradients of their own.",
            answer=_utilized(lambda base, adapter: 4 * (base + adapter) if adapter else 6 * base),
        ),
        Mistake(
            name="only what is trained was counted",
            why="Every token goes through the whole base, forward and back.",
            answer=_utilized(lambda base, adapter: 6 * (adapter or base)),
        ),
        Mistake(
            name="what is computed again was counted as the model's",
            why="The model needs its forward pass once; whoever recomputes must not look better by that.",
            answer=lambda *args: [utilizations(*args)[1]] * 2,
        ),
        Mistake(
            name="what is computed again was left out of the hardware's",
            why="The hardware does it: checkpointing runs the forward pass a second time.",
            answer=lambda *args: [utilizations(*args)[0]] * 2,
        ),
        Mistake(
            name="the whole step was counted again",
            why="Checkpointing repeats the forward pass, two operations a weight and token.",
            answer=_utilized(_model, _model),
        ),
        Mistake(
            name="the adapter was left out of the second forward pass",
            why="It lies inside the blocks that are run again.",
            answer=_utilized(_model, lambda base, adapter: 2 * base),
        ),
        Mistake(
            name="the two were swapped",
            why="First the model's, then the hardware's.",
            answer=lambda *args: utilizations(*args)[::-1],
        ),
        Mistake(
            name="per cent were returned",
            why="A share between 0 and 1 was asked for.",
            answer=lambda *args: [100 * u for u in utilizations(*args)],
        ),
        Mistake(
            name="the tokens were forgotten",
            why="So many operations are those of one token.",
            answer=lambda base, adapter, tokens, *rest: utilizations(base, adapter, 1, *rest),
        ),
    ),
)


# --- 08.7 the ridge ---------------------------------------------------------------------------------

T4 = GPUS["T4"]
RIDGE = T4.fp16 / T4.bandwidth  # FLOP a byte; 16-bit weights: two operations for each two bytes, so as many sequences

ridge = Number(
    key="08.7",
    title="When decoding no longer waits for memory",
    unit="sequences",
    expected=lambda: RIDGE,
    explain="A weight of two bytes is read once for the whole batch and gives two operations to each sequence: a batch of B has B "
    "operations a byte, and the ridge is where the card has as many.",
    mistakes=(
        Mistake(
            name="a weight was given one operation",
            why="It is multiplied and added: two.",
            answer=lambda: 2 * RIDGE,
        ),
        Mistake(
            name="a weight was given six operations",
            why="That is training; decoding is a forward pass.",
            answer=lambda: RIDGE / 3,
        ),
        Mistake(
            name="the fp32 peak was taken",
            why="The products run in 16 bits, on tensor cores.",
            answer=lambda: T4.fp32 / T4.bandwidth,
        ),
        Mistake(
            name="a weight was given one byte",
            why="Sixteen bits are two.",
            answer=lambda: RIDGE / 2,
        ),
        Mistake(
            name="bits were taken for bytes",
            why="The bandwidth is in bytes.",
            answer=lambda: 8 * RIDGE,
        ),
        Mistake(
            name="the embedding's parameters were counted",
            why="Bytes and operations grow alike with the parameters, so their number cancels.",
            answer=lambda: RIDGE * TINYLLAMA.parameters.total,
        ),
        Mistake(
            name="bandwidth over peak was taken",
            why="The batch must give operations enough for each byte: peak over bandwidth.",
            answer=lambda: 1 / RIDGE,
        ),
    ),
    tolerance=0.01,
)


# --- 08.8 what a run costs --------------------------------------------------------------------------

TOKENS, EPOCHS, BATCH, ACCUMULATION, LENGTH, SECONDS, PRICE = 4_000_000, 3, 4, 8, 512, 6.0, 0.50


def price_of(tokens=TOKENS, epochs=EPOCHS, sequences=BATCH * ACCUMULATION, length=LENGTH, an_hour=3600) -> float:
    steps = tokens * epochs / (sequences * length)
    return steps * SECONDS / an_hour * PRICE


price = Number(
    key="08.8",
    title="What a run costs",
    unit="of the currency",
    expected=price_of,
    parts=lambda: {f"epoch {i + 1}": price_of(epochs=1) for i in range(EPOCHS)},
    explain="Tokens over the tokens of a step are the steps; these times seconds, in hours, times the price of one.",
    mistakes=(
        Mistake(
            name="accumulation was forgotten",
            why="An optimizer step sees all its micro-batches: its tokens are batch times accumulation times length, and the six "
            "seconds are of all of them.",
            answer=lambda: price_of(sequences=BATCH),
        ),
        Mistake(
            name="the micro-batch was forgotten",
            why="Each of the accumulated micro-batches has several sequences.",
            answer=lambda: price_of(sequences=ACCUMULATION),
        ),
        Mistake(name="one epoch was counted", why="The data is gone through three times.", answer=lambda: price_of(epochs=1)),
        Mistake(
            name="the length was forgotten",
            why="The data is counted in tokens, a batch in sequences.",
            answer=lambda: price_of(length=1),
        ),
        Mistake(name="the price was paid by the minute", why="It is that of an hour.", answer=lambda: price_of(an_hour=60)),
        Mistake(
            name="hours were returned",
            why="They are right; times the price of one.",
            answer=lambda: price_of() / PRICE,
        ),
    ),
    tolerance=2e-3,  # whole steps or not
)

EXERCISES = [utilization, ridge, price]
