"""The study on operations: table 7, sections 4.2.1 and 6.2.

How it works: the operations of a step are counted product by product (qlora_lib.cost.flops) for the study's batches,
accumulation and length.
"""


from qlora_lib.claims.checks import TERA, Figure, agree, cell, figure, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.study_lora import adapter_parameters, printed_rank
from qlora_lib.cost.flops import StepFlops, step_flops

CLAIMS = Claims("study")
COLUMN = {"full": "standard", "lora": "qlora", "qlora": "qlora"}  # whose settings of table 3


def step(method: str, checkpointing: bool = False) -> StepFlops:
    """One optimizer step with the study's settings, every sequence of the full 512 tokens."""
    column = COLUMN[method]
    return step_flops(
        tinyllama(), method, int(cell(3, "training batch size", column).value), int(cell(1, "max sequence length").value),
        printed_rank(), accumulation=int(cell(3, "gradient accumulation steps", column).value), gradient_checkpointing=checkpointing,
    )  # fmt: skip


def tokens_a_step(column: str = "standard") -> int:
    """Tokens of an optimizer step, if every sequence has the full length."""
    sequences = cell(3, "training batch size", column) * cell(3, "gradient accumulation steps", column)
    return int((sequences * cell(1, "max sequence length")).value)


def tera(method: str) -> float:
    return step(method).model_flops / TERA


def seconds_a_step(column: str) -> Figure:
    return cell(9, "total training time", column) / cell(3, "maximum steps", column)


def implied_tokens(tflop: float) -> float:
    """Tokens that make so many operations at six a parameter."""
    return tflop * TERA / (6 * tinyllama().parameters.total)


@CLAIMS.claim("study-flops-01", "4.2.1", "FLOPS (Floating Point Operations per Second) per training step", "name")
def unit(quote: str) -> Finding:
    rate = cell(7, "flops per step", "standard") / cell(9, "time per step", "standard")
    is_count = agree(rate, cell(8, "achieved flops", "standard"))
    per_second = "per Second" in quote
    return finding(
        decide(per_second != is_count),
        f"table 7 over the seconds of a step is {rate.value:.2f}, table 8's rate",
        {HOLDS: "As table 8 uses it.",
         FAILS: "Operations of a step are a count (FLOP, here TFLOP), not a rate. Table 8 divides these figures by the seconds of a step "
                f"to get {rate.value:.2f} TFLOP/s, so table 7 prints counts under a rate's name."},
        {"table 7 over seconds": rate.value, "table 8": cell(8, "achieved flops", "standard").value},
    )  # fmt: skip


@CLAIMS.claim("study-flops-02", "4.2.1, table 7", "Standard Fine-Tuning 13.52", "number")
def full_flops(quote: str) -> Finding:
    printed, right = figure(quote), tera("full")
    implied, tokens = implied_tokens(printed.value), tokens_a_step()
    micro = (cell(3, "training batch size", "qlora") * cell(1, "max sequence length")).value
    is_micro = agree(printed, 6 * tinyllama().parameters.total * micro / TERA)
    return finding(
        decide(agree(printed, right)),
        f"{right:.2f} TFLOP a step of {tokens:,} tokens; 6 N at {implied:,.0f} tokens gives the printed figure",
        {HOLDS: "As counted product by product.",
         FAILS: f"A step takes {right:.2f} TFLOP. The print is six operations a parameter, embedding included, on {implied:,.0f} tokens; a "
                f"step of the study has {tokens:,}, if all are full."
                + (f" {micro:,.0f} is one micro-batch of the QLoRA run." if is_micro else "")},
        {"TFLOP": right, "tokens a step": tokens, "tokens that the print implies": implied},
    )  # fmt: skip


@CLAIMS.claim("study-flops-03", "4.2.1, table 7", "QLoRA Fine-Tuning 3.53", "number")
def qlora_flops(quote: str) -> Finding:
    printed, right = figure(quote), tera("qlora")
    scaled = cell(7, "flops per step", "standard") * cell(5, "total", "qlora") / cell(5, "total", "standard")
    return finding(
        decide(agree(printed, right)),
        f"{right:.2f} TFLOP; full fine-tuning's print times the ratio of the sizes in table 5 is {scaled.value:.3f}",
        {HOLDS: "As counted product by product.",
         FAILS: f"A step takes {right:.2f} TFLOP. "
                + ("The print is the other figure times the ratio of the sizes: operations were scaled by bytes. " if agree(printed, scaled) else "")
                + "Four-bit weights are dequantized before they are multiplied, so products are as many as in LoRA."},
        {"TFLOP": right, "scaled by bytes": scaled.value},
    )  # fmt: skip


@CLAIMS.claim("study-flops-04", "4.2.1", "QLoRA reduces computational demands by 73.9%", "percentage")
def flops_reduction(quote: str) -> Finding:
    printed = figure(quote)
    right = 100 * (1 - step("qlora").model_flops / step("full").model_flops)
    of_print = 100 * (1 - cell(7, "flops per step", "qlora") / cell(7, "flops per step", "standard"))
    return finding(
        decide(agree(printed, right)),
        f"{right:.1f} % fewer operations; the two prints differ by {of_print.value:.1f} %",
        {HOLDS: "As counted.",
         FAILS: f"QLoRA needs {right:.1f} % fewer operations: a frozen weight has no gradient of its own, which is two of six operations, "
                "and adapters add a little. LoRA on a 16-bit base saves exactly as much."},
        {"reduction": right, "of the prints": of_print.value, "TFLOP, full": tera("full"), "TFLOP, QLoRA": tera("qlora")},
    )  # fmt: skip


@CLAIMS.claim("study-flops-05", "4.2.1", "reduces computational demands ... through: ... Reduced precision (4-bit vs FP16)", "mechanism")
def flops_by_precision(quote: str) -> Finding:
    four, sixteen = step("qlora").model_flops, step("lora").model_flops
    return finding(
        decide(four < sixteen),
        f"{four / TERA:.2f} TFLOP with a 4-bit base and {sixteen / TERA:.2f} with a 16-bit one",
        {HOLDS: "Fewer operations.",
         FAILS: "Precision changes no count: the same adapters on a 16-bit base take the same operations. A 4-bit base adds "
                "dequantization, which is not in the count."},
        {"TFLOP, 4 bits": four / TERA, "TFLOP, 16 bits": sixteen / TERA},
    )  # fmt: skip


@CLAIMS.claim("study-flops-06", "4.2.1", "reduces computational demands ... through: ... Fewer trainable parameters", "mechanism")
def flops_by_frozen(quote: str) -> Finding:
    saved = 100 * (1 - tera("lora") / tera("full"))
    backward = 100 * (1 - step("lora").backward / step("full").backward)
    return finding(
        decide(saved > 0),
        f"{saved:.1f} % fewer operations of a step, {backward:.1f} % of the backward pass",
        {HOLDS: f"The one true cause of the three: without gradients of frozen weights a step has {saved:.1f} % fewer operations.",
         FAILS: "It saves none."},
        {"percent of a step": saved, "percent of the backward pass": backward},
    )  # fmt: skip


@CLAIMS.claim(
    "study-flops-07", "4.2.1", "reduces computational demands ... through: ... Efficient matrix operations on lower-rank adapters", "mechanism"
)
def flops_of_adapters(quote: str) -> Finding:
    added = 6 * adapter_parameters() * tokens_a_step("qlora")
    share = 100 * added / step("qlora").model_flops
    forward = 100 * (step("lora").forward / step("full").forward - 1)
    return finding(
        decide(forward < 0),
        f"adapters add {added / TERA:.2f} TFLOP a step",
        {HOLDS: "They reduce it.",
         FAILS: f"Adapters reduce nothing: they stand beside the full products and add {added / TERA:.2f} TFLOP, {share:.1f} % of a step, "
                f"and {forward:.1f} % to the forward pass."},
        {"TFLOP added": added / TERA, "percent of a step": share, "percent added to forward": forward},
    )  # fmt: skip


@CLAIMS.claim("study-flops-08", "6.2", "This 98.85% reduction enables: ... Faster gradient computations", "mechanism")
def faster_gradients(quote: str) -> Finding:
    full, qlora = step("full").backward / TERA, step("qlora").backward / TERA
    times = [cell(9, "time per step", c).value for c in ("standard", "qlora")]
    return finding(
        decide(times[1] < times[0] and qlora < full, assuming=qlora < full),
        f"backward {qlora:.2f} TFLOP instead of {full:.2f}; a step of the study takes {times[1]:.2f} s instead of {times[0]:.2f}",
        {HOLDS: "Fewer operations and less time.",
         ASSUMED: f"Counted in operations: {100 * (1 - qlora / full):.0f} % fewer in the backward pass, not 98.85 %, since gradients still pass "
                  "through every frozen weight. In time it was not so: the study's own steps are slower.",
         FAILS: "It saves no operations."},
        {"TFLOP backward, full": full, "TFLOP backward, QLoRA": qlora, "seconds, full": times[0], "seconds, QLoRA": times[1]},
    )  # fmt: skip
