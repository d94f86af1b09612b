"""Lesson 14: which claims hold."""

import math

from qlora_lib.claims.checks import agree, exactly, rounded
from qlora_lib.cost.devices import GPUS, TERA
from qlora_lib.cost.models import shape_of
from qlora_lib.course.answers import Case, Choice, Function, Mistake, Number
from qlora_lib.course.audit_drawing import draw_factors
from qlora_lib.course.reported import Faults

# --- 14.1 a print is a range -----------------------------------------------------------------------


def _places(printed: str) -> int:
    return len(printed.partition(".")[2])


def can_be(each: str, count: int, total: str) -> bool:
    return agree(
        count * rounded(float(each), _places(each)),
        rounded(float(total), _places(total)),
    )


def _within(each: str, count: int, total: str, digits: float) -> bool:
    return (
        abs(float(each) * count - float(total)) <= digits * 10 ** -_places(each) * count
    )


ranges = Function(
    key="14.1",
    title="A print is a range",
    axis="possible: 1",
    expected=can_be,
    cases=lambda: [
        Case("500 steps of 2.88 s in 1441.24 s", ("2.88", 500, "1441.24")),
        Case("500 steps of 2.88 s in 1442.60 s", ("2.88", 500, "1442.60")),
        Case("500 steps of 2.88 s in 1437.20 s", ("2.88", 500, "1437.20")),
        Case("12 epochs of 0.70 h in 8.5 h", ("0.70", 12, "8.5")),
        Case("3 folds of 12 s in 37.4 s", ("12", 3, "37.4")),
        Case("4 shards of 1.25 GB in 5.00 GB", ("1.25", 4, "5.00")),
        Case("3 parts of 1.23 GB in 3.7 GB", ("1.23", 3, "3.7")),
        Case("20 files of 4.9 MB in 100 MB", ("4.9", 20, "100")),
    ],
    explain="Each print allows a range, and the multiple of a range is as many times wider; both can be true where the ranges meet.",
    mistakes=(
        Mistake(
            name="the product had to be the total exactly",
            why="2.88 s is printed for everything from 2.875 to 2.885 s, and 500 of that is five seconds wide.",
            answer=lambda e, n, t: math.isclose(float(e) * n, float(t)),
        ),
        Mistake(
            name="the product was rounded as the total is",
            why="The rounding of one step comes first, and it is multiplied with the step.",
            answer=lambda e, n, t: round(float(e) * n, _places(t)) == float(t),
        ),
        Mistake(
            name="a total was taken as exact",
            why="It was rounded too: 8.5 h stands for everything from 8.45 to 8.55 h.",
            answer=lambda e, n, t: agree(
                n * rounded(float(e), _places(e)), exactly(float(t))
            ),
        ),
        Mistake(
            name="a whole last digit was allowed",
            why="Rounding moves a figure by at most half of its last digit to either side.",
            answer=lambda e, n, t: _within(e, n, t, 1),
        ),
        Mistake(
            name="a percent was allowed, whatever is printed",
            why="How far a figure may be off is printed with it: more digits allow less.",
            answer=lambda e, n, t: math.isclose(float(e) * n, float(t), rel_tol=0.01),
        ),
    ),
)


# --- 14.2 the peak behind a utilization ------------------------------------------------------------

PRODUCTS, ADAPTERS, RATE, UTILIZATION = (
    6.6e9,
    40e6,
    2356,
    0.38,
)  # weights, weights, tokens a second, share


def _peak(base: float = 4, adapters: float = 6, share: float = UTILIZATION) -> float:
    return (base * PRODUCTS + adapters * ADAPTERS) * RATE / share / TERA


peak = Number(
    key="14.2",
    title="The peak that is not printed",
    unit="TFLOP/s",
    expected=_peak,
    explain=f"An RTX 4090's dense FP16 peak, {GPUS['RTX 4090'].fp16 / TERA:g}: another card than the A100 that the report names.",
    mistakes=(
        Mistake(
            name="six operations were counted for a frozen weight",
            why="The base has no gradient of its own weights: two forward and two for the gradient of the input.",
            answer=lambda: _peak(6),
        ),
        Mistake(
            name="the adapter's operations were forgotten",
            why="They are few, but the peak is asked to a tenth of a TFLOP/s, and the adapter is trained: six operations a weight.",
            answer=lambda: _peak(adapters=0),
        ),
        Mistake(
            name="only the forward pass was counted",
            why="Training goes back through every layer too.",
            answer=lambda: _peak(2, 2),
        ),
        Mistake(
            name="the achieved rate was given",
            why="It is the share of the peak that is printed: divide by it.",
            answer=lambda: _peak(share=1),
        ),
        Mistake(
            name="the rate was multiplied by the share",
            why="The share is what was achieved over the peak, so the peak is larger than what was achieved.",
            answer=lambda: _peak(share=1 / UTILIZATION),
        ),
        Mistake(
            name="percent were taken for a share",
            why="38 % is 0.38.",
            answer=lambda: _peak(share=100 * UTILIZATION),
        ),
    ),
    tolerance=1e-3,
)


# --- 14.3 the rank that is not printed -------------------------------------------------------------

LLAMA_8B = shape_of("llama3.1-8b")[0]
TRAINED = 27.3e6
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def _rank(
    side=sum, targets=ATTENTION, layers: int = LLAMA_8B.num_layers, grouped: bool = True
) -> float:
    """Of TRAINED parameters; `side` picks the widths of a module's two matrices."""
    linear = LLAMA_8B.linear_modules | (
        {} if grouped else {"k_proj": (4096, 4096), "v_proj": (4096, 4096)}
    )
    return TRAINED / (layers * sum(side(linear[name]) for name in targets))


rank = Number(
    key="14.3",
    title="The rank that is not printed",
    unit="as rank",
    expected=lambda: round(_rank()),
    explain="So many parameters are 32 layers times the rank times the widths that the four projections join; two of them end in 1,024.",
    mistakes=(
        Mistake(
            name="keys and values were taken as wide as queries",
            why="8 key-value heads of 128 make k_proj and v_proj end in 1,024 features, not 4,096. A rank that comes out near 26 is no usual one: look again.",
            answer=lambda: round(_rank(grouped=False)),
        ),
        Mistake(
            name="all seven projections were adapted",
            why="The write-up adapts the attention's four.",
            answer=lambda: round(_rank(targets=tuple(LLAMA_8B.linear_modules))),
        ),
        Mistake(
            name="only the matrices A were counted",
            why="Each module also has B, from the rank to its output features.",
            answer=lambda: round(_rank(side=lambda ends: ends[0])),
        ),
        Mistake(
            name="only the matrices B were counted",
            why="Each module also has A, from its input features to the rank.",
            answer=lambda: round(_rank(side=lambda ends: ends[1])),
        ),
        Mistake(
            name="one layer was counted",
            why="Each of the 32 layers has adapters of its own.",
            answer=lambda: round(_rank(layers=1)),
        ),
    ),
    tolerance=4e-3,
)


# --- 14.4 right arithmetic, wrong meaning ----------------------------------------------------------


meaning = Choice(
    key="14.4",
    title="What a low utilization means",
    right="operations scaled by bytes",
    options={
        "bound by memory bandwidth": (
            "the study says so, but a ratio of two utilizations is a ratio of operations over one of seconds, and it is the printed "
            "operations that differ most."
        ),
        "the wrong peak": "it is wrong, and it cancels: both rows were divided by the same one, so their ratio does not know it.",
        "slower steps": "they account for the smaller of two factors: the seconds differ by far less than fivefold.",
        "operations scaled by bytes": (
            "the printed operations of QLoRA are full fine-tuning's times the ratio of the sizes, which makes the larger factor; "
            "counted, both factors together leave about two."
        ),
        "a smaller model": "both arms run the same products; the adapters add some.",
    },
    draw=draw_factors,
)


# --- 14.5 shares of whole examples -----------------------------------------------------------------


def possible(percent: str, n: int) -> bool:
    return any(
        agree(rounded(float(percent), _places(percent)), 100 * k / n)
        for k in range(n + 1)
    )


def _nearest(percent: str, n: int, count=round) -> float:
    return 100 * count(float(percent) * n / 100) / n


shares = Function(
    key="14.5",
    title="Can this accuracy be?",
    axis="possible: 1",
    expected=possible,
    cases=lambda: [
        Case("86.3 % of 500 examples", ("86.3", 500)),
        Case("86.4 % of 500 examples", ("86.4", 500)),
        Case("33.3 % of 3 examples", ("33.3", 3)),
        Case("48 % of 12 examples", ("48", 12)),
        Case("66.67 % of 9 examples", ("66.67", 9)),
        Case("66.72 % of 9 examples", ("66.72", 9)),
        Case("57.1 % of 28 examples", ("57.1", 28)),
        Case("91.23 % of 872 examples", ("91.23", 872)),
        Case("91.28 % of 872 examples", ("91.28", 872)),
    ],
    explain="Right answers are counted, so an accuracy is a whole number over n, rounded as it is printed (Brown and Heathers 2017: the GRIM test).",
    mistakes=(
        Mistake(
            name="the count had to come out whole",
            why="The accuracy was rounded: 33.3 % of 3 is 0.999, and one of three is printed as 33.3 %.",
            answer=lambda p, n: math.isclose(
                float(p) * n / 100, round(float(p) * n / 100)
            ),
        ),
        Mistake(
            name="the count was cut off and not rounded",
            why="33.3 % of 3 is 0.999: the nearest whole number is 1.",
            answer=lambda p, n: round(_nearest(p, n, int), _places(p)) == float(p),
        ),
        Mistake(
            name="half a percent was allowed, whatever is printed",
            why="The decimals say how far the print may be off: by half of the last one.",
            answer=lambda p, n: abs(_nearest(p, n) - float(p)) <= 0.5,
        ),
        Mistake(
            name="one decimal was compared, whatever is printed",
            why="66.72 has two, and 6 of 9 would be printed as 66.67.",
            answer=lambda p, n: round(_nearest(p, n), 1) == round(float(p), 1),
        ),
        Mistake(
            name="any share was allowed of many examples",
            why="With one decimal there are 1,001 prints from 0 to 100.0, and 500 examples have but 501 shares.",
            answer=lambda p, n: n >= 100 or possible(p, n),
        ),
    ),
)


# --- 14.6 a report ---------------------------------------------------------------------------------


report = Faults(
    key="14.6",
    title="Five faults in a report",
    explain="A base in which everything has four bits; another card's peak; a loss that is not the logarithm of its perplexity; a rate that "
    "falls by more than all of it; and a share that no count of examples has.",
    mistakes=(
        Mistake(
            name="what follows from a faulty row was named as well",
            why="The ratio in h is the quotient of f and g as they are printed: the fault lies in one of these.",
            answer=lambda: ["h"],
        ),
        Mistake(
            name="rounding was taken for a contradiction",
            why="2.41 s stand for 2.405 to 2.415 s: 600 of them, and the rates made with them, are ranges.",
            answer=lambda: list("jkln"),
        ),
        Mistake(
            name="a size in MiB was taken for one in MB",
            why="Two bytes a parameter, over 2²⁰: the unit stands beside it.",
            answer=lambda: ["f"],
        ),
        Mistake(
            name="a count of parameters was reckoned with other widths",
            why="Four key-value heads of 128 make k_proj and v_proj end in 512 features, and the head is a matrix of its own.",
            answer=lambda: list("cde"),
        ),
        Mistake(
            name="operations were counted in another way than the row says",
            why="A frozen weight takes four operations a token and an adapter's six; N is what takes part in products, so the head is in it and the embedding is not.",
            answer=lambda: ["m"],
        ),
        Mistake(
            name="the perplexity was named for the loss",
            why="Three rows speak of perplexity and agree with each other; where two sides differ, look which of them a third row confirms.",
            answer=lambda: list("prs"),
        ),
        Mistake(
            name="the interval was named for the accuracy",
            why="1.96 √(p (1 − p) / n) of what is printed is 3.0 points. Whether the share itself can be is another question.",
            answer=lambda: ["y"],
        ),
        Mistake(
            name="the same ratio was named twice",
            why="Times the time and times the speed are two ways to say it, and w is the quotient of t and u. Ask by how much a rate can fall at most.",
            answer=lambda: ["w"],
        ),
    ),
)

EXERCISES = [ranges, peak, rank, meaning, shares, report]
