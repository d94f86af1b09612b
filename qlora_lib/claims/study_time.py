"""The study on training time, settings and cost: tables 3, 9 and 12, sections 4.3, 6.2 and 7.

How it works: seconds and steps are printed, so their quotients are checked against each other; causes are held against
what a library does by default and against counts of operations and bytes.
"""

from qlora_lib.claims import experiments, measured
from qlora_lib.claims import study_sources as known
from qlora_lib.claims.checks import agree, cell, change, figure, figures, maybe
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, UNKNOWN, Claims, Finding, decide, finding
from qlora_lib.claims.study_flops import seconds_a_step, step, tokens_a_step
from qlora_lib.claims.study_mfu import intensity, weight_bytes
from qlora_lib.published import BOTH, TABLES

CLAIMS = Claims("study")


def sequences_a_step(column: str) -> int:
    return int((cell(3, "training batch size", column) * cell(3, "gradient accumulation steps", column)).value)


def time_change():
    """Percent by which QLoRA's training takes longer."""
    return change(cell(9, "total training time", "qlora"), cell(9, "total training time", "standard"))


@CLAIMS.claim("study-time-01", "4.3, table 9", "Total Training Time (seconds) 1,441.24 1,979.42 ... Time per Step (seconds) 2.88 3.96", "consistency")
def seconds(quote: str) -> Finding:
    full, qlora, *each = figures(quote)
    steps = [cell(3, "maximum steps", c) for c in BOTH]
    right = [total / n for total, n in zip((full, qlora), steps, strict=True)]
    rate = [tokens_a_step(c) / r.value for c, r in zip(BOTH, right, strict=True)]
    return finding(
        decide(all(agree(a, b) for a, b in zip(each, right, strict=True))),
        f"{right[0].value:.3f} and {right[1].value:.3f} s over {steps[0].value:.0f} steps",
        {HOLDS: f"The totals over table 3's steps: at most {rate[0]:,.0f} and {rate[1]:,.0f} tokens a second, if every sequence is full.",
         FAILS: f"The totals over the steps are {right[0].value:.2f} and {right[1].value:.2f} s."},
        {"seconds a step, standard": right[0].value, "seconds a step, QLoRA": right[1].value,
         "tokens a second, standard": rate[0], "tokens a second, QLoRA": rate[1]},
    )  # fmt: skip


@CLAIMS.claim("study-time-02", "4.3, table 9", "Relative Performance Baseline -37.3%", "percentage")
def relative_performance(quote: str) -> Finding:
    longer = time_change()
    speed = change(cell(9, "total training time", "standard"), cell(9, "total training time", "qlora"))
    printed = figure(quote)
    return finding(
        decide(agree(printed, speed), assuming=agree(printed, longer)),
        f"time {longer.value:+.1f} %, speed {speed.value:+.1f} %",
        {HOLDS: "Steps a second.",
         FAILS: f"Time rises by {longer.value:.1f} %; performance, that is steps a second, falls by {-speed.value:.1f} %. The print is the "
                "rise of one with the sign of the other.",
         ASSUMED: f"It is the change in time. As performance it is {speed.value:.1f} %."},
        {"time": longer.value, "speed": speed.value},
    )  # fmt: skip


@CLAIMS.claim("study-time-03", "6.1, figure 1", "QLoRA requires 37.3% more wall-clock time", "percentage")
def longer(quote: str) -> Finding:
    right = time_change()
    return finding(
        decide(agree(figure(quote), right)), f"{right.value:.2f} % more",
        {HOLDS: "1,979.42 against 1,441.24 s.", FAILS: f"It is {right.value:.1f} %."}, {"percent": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-time-04", "4.5, table 12: Improvement", "Training Time (seconds) 1,441.24 1,979.42 -37.3%", "percentage")
def time_sign(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    right = change(qlora, full)
    return finding(
        decide(agree(printed, right), assuming=agree(-printed, right)),
        f"{right.value:+.1f} %",
        {HOLDS: "A change in time.",
         ASSUMED: f"A minus means worse. The change of the figures beside it is {right.value:+.1f} %, and in the rows above less is better "
                  "too but printed without a sign.",
         FAILS: f"The change is {right.value:+.1f} %."},
        {"change": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-time-05", "3.3, table 3", "Training Batch Size 2 4 ... Gradient Accumulation Steps 4 2", "consistency")
def batches(quote: str) -> Finding:
    batch, accumulation = figures(quote)[:2], figures(quote)[2:]
    sequences = [int((b * a).value) for b, a in zip(batch, accumulation, strict=True)]
    same_batch = batch[0].value == batch[1].value
    return finding(
        decide(sequences[0] == sequences[1] and same_batch, assuming=sequences[0] == sequences[1]),
        f"{sequences[0]} and {sequences[1]} sequences a step",
        {HOLDS: "The same work in both arms.",
         ASSUMED: f"A step sees {sequences[0]} sequences in both arms, so quality is compared at equal data. Time and memory are not compared at "
                  f"equal settings: QLoRA ran micro-batches of {batch[1].value:.0f}, full fine-tuning of {batch[0].value:.0f}, which favours "
                  "QLoRA's time and not its memory.",
         FAILS: "The arms see different amounts of text."},
        {"sequences, standard": sequences[0], "sequences, QLoRA": sequences[1], "tokens a step": sequences[0] * int(cell(1, "max sequence length").value)},
    )  # fmt: skip


@CLAIMS.claim("study-time-06", "3.3, table 3, with table 1", "Number of Epochs 1 1 ... Maximum Steps 500 500", "consistency")
def epochs(quote: str) -> Finding:
    epochs, _, steps, _ = figures(quote)
    seen = steps * sequences_a_step("standard")
    share = seen / cell(1, "training samples")
    filled = seen.value / known.WIKITEXT2_FILLED["Training"]
    needed = cell(1, "training samples") / sequences_a_step("standard")
    return finding(
        decide(agree(share, epochs, 0.01)),
        f"{seen.value:,.0f} sequences, {share.value:.2f} of an epoch of table 1's samples",
        {HOLDS: "The steps make up the epochs.",
         FAILS: f"{steps.value:.0f} steps see {seen.value:,.0f} of the {cell(1, 'training samples').value:,.0f} samples, {100 * share.value:.0f} % "
                f"({100 * filled:.0f} % of the rows with text); one epoch would be {needed.value:,.0f} steps. In Trainer the maximum number of steps "
                "overrides that of epochs."},
        {"sequences": seen.value, "share": share.value, "share of rows with text": filled, "steps of an epoch": needed.value},
    )  # fmt: skip


@CLAIMS.claim("study-time-07", "3.3, table 3", "Learning Rate 2×10^{-5} 2×10^{-4}", "consistency")
def rates(quote: str) -> Finding:
    full, qlora = figures(quote)
    ratio = (qlora / full).value
    best = measured.rates()
    ours = best["qlora"].best.value / best["full"].best.value
    return finding(
        decide(agree(ratio, known.RATE_OF_LORA, 0.01)),
        f"{ratio:g} times; LoRA Without Regret finds about {known.RATE_OF_LORA}, the best rates of the sweeps here are {ours:g} times apart",
        {HOLDS: f"The usual factor of about {known.RATE_OF_LORA}. It was one rate for each method and no search; in the sweeps here the best rates "
                f"are {ours:g} times apart, so the two perplexities compare two choices as well as two methods.",
         FAILS: f"LoRA's best rate is about {known.RATE_OF_LORA} times that of full fine-tuning; here it is {ratio:g}."},
        {"ratio": ratio, "of the literature": known.RATE_OF_LORA, f"{measured.MODEL}, of the best rates": ours},
    )  # fmt: skip


@CLAIMS.claim("study-time-08", "4.3", "QLoRA takes more wall-clock time due to quantization overhead", "mechanism")
def overhead(quote: str) -> Finding:
    default = experiments.default_of("prepare_model_for_kbit_training", "use_gradient_checkpointing")
    recompute = step("qlora", True).hardware_flops / step("qlora").hardware_flops
    against_full = step("qlora", True).hardware_flops / step("full").hardware_flops
    here = measured.arm("qlora-checkpointing").train.seconds_per_step / measured.arm("qlora").train.seconds_per_step
    lora = maybe(9, "time per step", "lora")  # a 16-bit one would tell quantization from the rest
    return finding(
        decide(lora is not None and lora.value < cell(9, "time per step", "qlora").value, known=lora is not None),
        f"gradient checkpointing alone, PEFT's default for 4-bit models, adds {100 * (recompute - 1):.0f} % of operations",
        {HOLDS: "LoRA on a 16-bit base is faster.",
         FAILS: "LoRA on a 16-bit base is no faster.",
         UNKNOWN: "The study ran no 16-bit LoRA and does not say whether QLoRA recomputed activations. PEFT's preparation of 4-bit models "
                  f"switches that on{'' if default else ' no longer'} by default, which alone adds {100 * (recompute - 1):.0f} % of operations; on "
                  f"{measured.MODEL} it took {100 * (here - 1):.0f} % longer. So dequantization cannot be told apart from it."},
        {"operations with recompute over without": recompute, "over full fine-tuning": against_full,
         f"{measured.MODEL}, time with over without": here, "switched on by default": str(default)},
    )  # fmt: skip


@CLAIMS.claim("study-time-09", "4.3", "with significantly reduced memory bandwidth requirements", "mechanism")
def traffic(quote: str) -> Finding:
    full, qlora = weight_bytes("full"), weight_bytes("qlora")
    alike = qlora * cell(3, "gradient accumulation steps", "standard").value / cell(3, "gradient accumulation steps", "qlora").value
    printed = any("bandwidth" in row for t in TABLES.values() for row in t.rows)
    return finding(
        decide(qlora < full and printed, assuming=qlora < full and "reduced" in quote),
        f"at least {qlora:.0f} bytes a weight and step for QLoRA, {full:.0f} for full fine-tuning",
        {ASSUMED: f"No table has a bandwidth. By count the weights move {qlora:.0f} bytes a parameter and step instead of {full:.0f}, mostly "
                  f"because QLoRA ran half as many micro-batches: at as many it would be {alike:.0f}, since a 4-bit weight is also written and read in "
                  "16 bits.",
         FAILS: "By count it moves more."},
        {"bytes a weight and step, full": full, "bytes a weight and step, QLoRA": qlora, "QLoRA at as many micro-batches": alike},
    )  # fmt: skip


@CLAIMS.claim(
    "study-time-10", "4.2.2 and 4.3",
    "indicates higher memory bandwidth relative to compute-bound operations ... significantly reduced memory bandwidth requirements", "consistency",
)  # fmt: skip
def bandwidth_twice(quote: str) -> Finding:
    higher, reduced = "higher memory bandwidth" in quote, "reduced memory bandwidth" in quote
    less_traffic = weight_bytes("qlora") < weight_bytes("full")
    less_a_flop = intensity("qlora") > intensity("full")
    both = (not higher or not less_a_flop) and (not reduced or less_traffic)
    return finding(
        decide(both),
        f"traffic of weights {weight_bytes('qlora') / weight_bytes('full'):.2f} of full fine-tuning's, for each operation "
        f"{intensity('full') / intensity('qlora'):.2f}",
        {HOLDS: "The statements agree with the count and with each other.",
         FAILS: "QLoRA is said to be bound by memory bandwidth in one section and to need little of it in the next. By count it moves less for its "
                f"weights, {weight_bytes('qlora') / weight_bytes('full'):.2f} of full fine-tuning's a step and "
                f"{intensity('full') / intensity('qlora'):.2f} for each operation, so the first of the two fails."},
        {"traffic ratio": weight_bytes("qlora") / weight_bytes("full"), "ratio for each operation": intensity("full") / intensity("qlora")},
    )  # fmt: skip


@CLAIMS.claim("study-time-11", "7.1", "Cost Efficiency: Significantly reduced cloud GPU costs for fine-tuning", "meaning")
def cost(quote: str) -> Finding:
    ratio = cell(9, "total training time", "qlora") / cell(9, "total training time", "standard")
    return finding(
        decide(ratio.high < 1, assuming="reduced" in quote),
        f"on one card the same training costs {ratio.value:.2f} times as much",
        {HOLDS: "Less time on the same card.",
         ASSUMED: f"Only where full fine-tuning needs a dearer card. Both arms ran on one, and there QLoRA's hours cost {ratio.value:.2f} times as "
                  f"much; it saves if its card's hourly price is below {100 / ratio.value:.0f} % of the other's, at equal speed."},
        {"cost on the same card": ratio.value, "break-even price, percent": 100 / ratio.value},
    )  # fmt: skip


@CLAIMS.claim("study-time-12", "6.2", "While QLoRA's wall-clock training time is 37.3% longer, this is offset by significantly reduced computational demands", "meaning")
def offset(quote: str) -> Finding:
    slower = time_change().value
    fewer = 100 * (1 - step("qlora").model_flops / step("full").model_flops)
    rate = (step("qlora").model_flops / seconds_a_step("qlora").value) / (step("full").model_flops / seconds_a_step("standard").value)
    return finding(
        decide(slower < 0),
        f"{fewer:.0f} % fewer operations in {slower:.0f} % more time: {rate:.2f} of the rate",
        {HOLDS: "It is not slower.",
         FAILS: f"Fewer operations cannot offset the time that they took: the seconds are what is paid. {fewer:.0f} % fewer operations in {slower:.0f} % "
                f"more time means that the card worked at {rate:.2f} of its rate in full fine-tuning."},
        {"percent fewer operations": fewer, "percent more time": slower, "rate": rate},
    )  # fmt: skip
