"""The study on quality: tables 10 and 12, sections 4.4, 6 and 7, and its abstract.

How it works: changes are recomputed from the printed perplexities, also in nats a token, where they can be compared with
other work; what the study would have had to print for a finding is looked for in its tables.
"""

import math

from qlora_lib.claims import measured
from qlora_lib.claims import study_sources as known
from qlora_lib.claims.checks import agree, cell, change, figure, figures, maybe
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, UNKNOWN, Claims, Finding, decide, finding
from qlora_lib.claims.sources import PAPER_PERPLEXITY
from qlora_lib.published import TABLES

CLAIMS = Claims("study")


def nats() -> float:
    """Of loss a token by which QLoRA's perplexity is above full fine-tuning's."""
    return math.log(cell(10, "perplexity", "qlora").value / cell(10, "perplexity", "standard").value)


@CLAIMS.claim("study-quality-01", "4.4, table 10", "Standard Fine-Tuning 18.42 ... QLoRA Fine-Tuning 21.87 +18.73%", "percentage")
def rise(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    right = change(qlora, full)
    return finding(
        decide(agree(printed, right)), f"{right.value:+.2f} %",
        {HOLDS: f"Right; it is {math.log((qlora / full).value):.3f} nats of loss a token.", FAILS: f"It is {right.value:+.2f} %."},
        {"percent": right.value, "nats": math.log((qlora / full).value)},
    )  # fmt: skip


@CLAIMS.claim("study-quality-02", "4.5, table 12: Improvement", "Perplexity 18.42 21.87 -18.73%", "consistency")
def sign(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    right = change(qlora, full)
    return finding(
        decide(agree(printed, right), assuming=agree(-printed, right)),
        f"{right.value:+.2f} %, which table 10 prints with a plus",
        {HOLDS: "As in table 10.",
         ASSUMED: "A minus means worse. Table 10 prints the same change with a plus, and as an improvement of a quantity that should be small, "
                  f"one rule (new over old, less one) gives {right.value:+.2f} %.",
         FAILS: f"The change is {right.value:+.2f} %."},
        {"change": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-quality-03", "4.4", r"\text{Perplexity} = e^{\text{cross-entropy loss}}", "formula")
def perplexity_formula(quote: str) -> Finding:
    losses, tokens = (2.0, 4.0), (100, 10)  # two batches: mean loss in nats, tokens
    over_tokens = sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)
    over_batches = sum(losses) / len(losses)
    natural = "= e^" in quote
    return finding(
        decide(False, assuming=natural),
        f"for losses {losses[0]:g} and {losses[1]:g} on {tokens[0]} and {tokens[1]} tokens: {math.exp(over_tokens):.1f} over tokens, "
        f"{math.exp(over_batches):.1f} over batches",
        {ASSUMED: "If the loss is in nats and its mean is over all scored tokens. A mean of batch means, which counts a short row as much as a "
                  f"long one, gives another figure ({math.exp(over_batches):.1f} for {math.exp(over_tokens):.1f} in a small example); the study does "
                  "not say which it took, nor its context and stride.",
         FAILS: "The loss is in nats, so its base is e."},
        {"over tokens": math.exp(over_tokens), "over batches": math.exp(over_batches)},
    )  # fmt: skip


@CLAIMS.claim("study-quality-04", "abstract, with 4.4", "maintaining comparable model quality ... +18.73% increase in perplexity", "consistency")
def comparable(quote: str) -> Finding:
    printed = figure(quote)
    types = {name: 100 * (PAPER_PERPLEXITY[name] / PAPER_PERPLEXITY["nf4"] - 1) for name in ("fp4", "int4")}
    ours = measured.perplexity_above("qlora", "full")
    return finding(
        decide(printed.value < types["fp4"]),
        f"in the QLoRA paper FP4's perplexity is {types['fp4']:.1f} % above NF4's, and Int4's {types['int4']:.1f} %",
        {HOLDS: "A smaller difference than between the data types of the QLoRA paper.",
         FAILS: f"{printed.value:g} % in perplexity ({nats():.2f} nats) is more than the {types['fp4']:.1f} % between FP4 and NF4 for which the QLoRA paper "
                "chooses NF4, and section 7.2 itself says that it rules out uses that ask for most quality. The paper's own finding is no loss against "
                f"16 bits; on {measured.MODEL}, each method at its best rate, QLoRA is {ours[0]:+.1f} % from full fine-tuning."},
        {"nats": nats(), "FP4 over NF4, percent": types["fp4"], "Int4 over NF4, percent": types["int4"],
         f"{measured.MODEL}, percent": ours[0], f"{measured.MODEL}, low": ours[1], f"{measured.MODEL}, high": ours[2]},
    )  # fmt: skip


@CLAIMS.claim("study-quality-05", "4.4, table 10", "Standard Fine-Tuning 18.42 Baseline", "meaning")
def baseline(quote: str) -> Finding:
    before = maybe(10, "perplexity", "untrained")
    others = " and ".join(f"{value:.2f} ({name})" for name, value in known.UNTRAINED_PERPLEXITY.items())
    return finding(
        decide(before is not None and figure(quote).value < before.value, known=before is not None),
        f"others print {others} for TinyLlama on WikiText-2 without any fine-tuning, by protocols of their own",
        {HOLDS: "Training lowered it.",
         FAILS: "Training raised it.",
         UNKNOWN: "The study prints no perplexity before training and no context or stride, so it cannot be said what training gained. "
                  "If the protocols were at all alike, both trainings would have made the model worse."},
        {name: value for name, value in known.UNTRAINED_PERPLEXITY.items()} | {"printed": figure(quote).value},
    )  # fmt: skip


@CLAIMS.claim("study-quality-06", "4.4", "indicating moderate quality degradation", "meaning")
def one_run(quote: str) -> Finding:
    least = maybe(10, "change, least", "qlora")  # of an interval
    ours = measured.perplexity_above("qlora", "full")
    width = (ours[2] - ours[1]) / 2
    return finding(
        decide(least is not None and least.value > 0, known=least is not None),
        f"one run a method, one rate a method, no interval; here the interval of such a difference is {ours[1]:+.1f} to {ours[2]:+.1f} %",
        {HOLDS: "More than chance.",
         FAILS: "The interval includes none.",
         UNKNOWN: "One run of each method at one rate, with no seed and no interval: how much of the difference is the method's cannot be said. On "
                  f"{measured.MODEL}, with each method at its best rate, it is {ours[0]:+.1f} % with an interval of {width:.1f} % to either side."},
        {f"{measured.MODEL}, percent": ours[0], f"{measured.MODEL}, low": ours[1], f"{measured.MODEL}, high": ours[2]},
    )  # fmt: skip


@CLAIMS.claim("study-quality-07", "6.3, figure 2", "Each axis represents a different metric normalized to 0-1 scale (higher is better)", "meaning")
def radar(quote: str) -> Finding:
    values = [maybe(12, row, "normalized") for row in TABLES[12].rows]
    printed = None not in values
    low, high = (f.value for f in figures(quote)[:2])
    return finding(
        decide(printed and all(low <= v.value <= high for v in values), known=printed),
        f"{sum(v is not None for v in values)} normalized values are printed",
        {HOLDS: "They are.",
         FAILS: "They are not.",
         UNKNOWN: "Neither the normalized values nor the rule that made them are printed. With two methods, scaling each axis to [0, 1] would put one "
                  "at 0 and the other at 1 on every axis, however small the difference."},
        {"normalized values printed": sum(v is not None for v in values)},
    )  # fmt: skip
