"""The study on utilization and on what bounds a step: tables 8 and 12, section 4.2.2.

How it works: rates are the operations (study_flops.py) over the printed seconds, and peaks the data sheets'. What bounds a
step is asked of the bytes that its weights and adapters move, by count.
"""

import re

from qlora_lib.claims import study_sources as known
from qlora_lib.claims.checks import TERA, Figure, agree, cell, change, figure, figures, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.study_flops import COLUMN, seconds_a_step, step, tera, tokens_a_step
from qlora_lib.claims.study_lora import printed_rank
from qlora_lib.claims.study_quantization import bits
from qlora_lib.cost.devices import GPUS

CLAIMS = Claims("study")
CARD = GPUS["T4"]


@CLAIMS.claim("study-mfu-01", "4.2.2", "Mean FLOPS Utilization (MFU)", "name")
def mfu_name(quote: str) -> Finding:
    words = [re.sub(r"\W", "", w).casefold() for w in quote.split("(")[0].split()]
    true = [w.casefold() for w in known.MFU_MEANING.split()]
    return finding(
        decide(words == true), known.MFU_MEANING,
        {HOLDS: "As PaLM (Chowdhery et al.), appendix B, defines it.",
         FAILS: "The M stands for model: the operations that the model needs, whatever the hardware repeats, over what it could do at its "
                "peak (PaLM, appendix B). Nothing is averaged."},
        {"MFU": known.MFU_MEANING},
    )  # fmt: skip


@CLAIMS.claim("study-mfu-02", "4.2.2", r"\text{MFU} = \frac{\text{Achieved FLOPS}}{\text{Peak FLOPS}} \times 100\%", "formula")
def mfu_formula(quote: str) -> Finding:
    from qlora_lib.cost.flops import mfu

    achieved, seconds = 3 * TERA, 2.0
    ours = 100 * mfu(achieved * seconds, seconds, CARD.fp16)
    upside = re.search(r"\\frac\{\\text\{(\w+) FLOPS", quote)[1]
    stated = 100 * (achieved / CARD.fp16 if upside == "Achieved" else CARD.fp16 / achieved)
    return finding(
        decide(agree(ours, stated)), "the model's operations a second over the peak of that device and type",
        {HOLDS: "Right where the achieved operations are the model's, without recompute, and the peak is that of the device and "
                "type that ran.", FAILS: "It is the other way round."},
        {"example, percent": ours},
    )  # fmt: skip


@CLAIMS.claim("study-mfu-03", "4.2.2, table 8", "4.69 ... 0.89", "consistency")
def achieved(quote: str) -> Finding:
    printed = figures(quote)
    rates = [cell(7, "flops per step", c) / seconds_a_step(c) for c in ("standard", "qlora")]
    return finding(
        decide(all(agree(p, r) for p, r in zip(printed, rates, strict=True))),
        f"{rates[0].value:.3f} and {rates[1].value:.3f} TFLOP/s from tables 7 and 9",
        {HOLDS: "Table 7 over the seconds of a step, and as wrong as table 7: by the right counts the rates are "
                f"{tera('full') / seconds_a_step('standard').value:.2f} and {tera('qlora') / seconds_a_step('qlora').value:.2f}.",
         FAILS: "Table 7 over the seconds of a step is another figure."},
        {"standard": rates[0].value, "QLoRA": rates[1].value, "standard, right": tera("full") / seconds_a_step("standard").value,
         "QLoRA, right": tera("qlora") / seconds_a_step("qlora").value},
    )  # fmt: skip


@CLAIMS.claim("study-mfu-04", "4.2.2, table 8, with table 7", "(using T4 in Colab) ... 13.18% 4.69 ... 2.51% 0.89", "consistency")
def implied_peak(quote: str) -> Finding:
    full_mfu, full_rate, qlora_mfu, qlora_rate = figures(quote.split(") ... ")[1])
    peaks = [100 * full_rate / full_mfu, 100 * qlora_rate / qlora_mfu]
    low, high = max(p.low for p in peaks), min(p.high for p in peaks)
    implied = Figure(peaks[0].value, low, high)
    one_peak = low <= high
    fits = [f"{g.name} {d}" for g in GPUS.values() for d in ("fp32", "fp16", "bf16")
            if one_peak and getattr(g, d) and agree(implied, getattr(g, d) / TERA)]  # fmt: skip
    name = re.search(r"using (.+?) in", quote)[1]
    named = [f for f in fits if f.startswith(name)]
    own = agree(implied, known.RTX3090_FP32 / TERA)
    return finding(
        decide(bool(named)),
        f"both rows imply a peak of {low:.2f} to {high:.2f} TFLOP/s" if one_peak else "the two rows imply different peaks",
        {HOLDS: "The peak is this card's.",
         FAILS: f"A T4's peak is {CARD.fp16 / TERA:g} TFLOP/s in FP16 and {CARD.fp32 / TERA:g} in FP32; neither was used. "
                + (f"The implied {implied.value:.2f} is that of {' and '.join(fits)}"
                   + (f" ({known.RTX3090_FP32 / TERA:.2f}): another card, and a type that did not run." if own else ".")
                   if fits else "The implied peak is of no card known here.")},
        {"least": low, "most": high, "T4 fp16": CARD.fp16 / TERA, "T4 fp32": CARD.fp32 / TERA,
         "RTX 3090 fp32": known.RTX3090_FP32 / TERA, "cards with such a peak": ", ".join(fits) or "none"},
    )  # fmt: skip


def right_mfu(method: str) -> float:
    """Percent of a T4's FP16 peak, by the right operations and the printed seconds."""
    return 100 * tera(method) / seconds_a_step(COLUMN[method]).value / (CARD.fp16 / TERA)


@CLAIMS.claim("study-mfu-05", "4.2.2, table 8", "Standard Fine-Tuning 13.18% ... QLoRA Fine-Tuning 2.51%", "percentage")
def mfu_values(quote: str) -> Finding:
    printed = figures(quote)
    right = [right_mfu("full"), right_mfu("qlora")]
    ratio = (printed[1] / printed[0]).value
    return finding(
        decide(all(agree(p, r) for p, r in zip(printed, right, strict=True))),
        f"{right[0]:.1f} % and {right[1]:.1f} % of a T4's FP16 peak, if every sequence had 512 tokens",
        {HOLDS: "Of a T4's FP16 peak.",
         FAILS: f"With the operations counted rightly and a T4's {CARD.fp16 / TERA:g} TFLOP/s it is {right[0]:.1f} % and {right[1]:.1f} %. "
                f"QLoRA's utilization is {right[1] / right[0]:.2f} of full fine-tuning's, not {ratio:.2f}."},
        {"full": right[0], "QLoRA": right[1], "ratio": right[1] / right[0], "printed ratio": ratio},
    )  # fmt: skip


def weight_bytes(method: str) -> float:
    """Bytes moved a parameter and step for the weights of linear layers, as a least estimate.

    A micro-batch reads a 16-bit weight forward and backward; in full fine-tuning it writes its gradient and, from the
    second one on, also reads it; AdamW then reads weight, gradient and two averages and writes all but the gradient, all in
    16 bits. A 4-bit weight is read, written in 16 bits and read again, forward and backward.
    """
    micro = int(cell(3, "gradient accumulation steps", COLUMN[method]).value)
    if method == "full":
        return micro * (2 + 2 + 2) + (micro - 1) * 2 + 7 * 2
    return micro * 2 * (bits(True) / 8 + 2 + 2)


def intensity(method: str) -> float:
    """Operations for each byte that the weights move, in one optimizer step."""
    return step(method).model_flops / (weight_bytes(method) * tinyllama().linear_weights)


def adapter_seconds() -> float:
    """Seconds of a step that a T4's memory takes for the adapters' products, if each operand is moved in 16 bits.

    Forward, a module and token: dropout reads and writes the input, A reads it, B writes what is added to the output
    (two reads, two writes of that width at most); backward moves twice as much.
    """
    width = sum(3 * i + 2 * printed_rank() + 4 * o for i, o in tinyllama().linear_modules.values())
    return 3 * 2 * tokens_a_step("qlora") * tinyllama().num_layers * width / CARD.bandwidth


@CLAIMS.claim(
    "study-mfu-06", "4.2.2", "The lower MFU for QLoRA indicates higher memory bandwidth relative to compute-bound operations", "mechanism"
)
def bandwidth_bound(quote: str) -> Finding:
    ridge = CARD.fp16 / CARD.bandwidth
    per_byte = {m: intensity(m) for m in ("full", "qlora")}
    return finding(
        decide(per_byte["qlora"] < ridge and per_byte["qlora"] < per_byte["full"]),
        f"{per_byte['qlora']:,.0f} operations for each byte of weights moved; a T4 is limited by bandwidth below {ridge:.0f}",
        {HOLDS: "Fewer operations a byte than the card can feed.",
         FAILS: f"By count a step of QLoRA does {per_byte['qlora']:,.0f} operations for each byte its weights move, full fine-tuning "
                f"{per_byte['full']:,.0f}; a T4 is limited by bandwidth only below {ridge:.0f}. The adapters' thin products are, but they need some "
                f"{adapter_seconds():.1f} of a step's {seconds_a_step('qlora').value:.1f} s. Most of the printed gap in MFU comes from "
                f"operations scaled by bytes; what is left (a factor of {right_mfu('full') / right_mfu('qlora'):.1f}) may be recompute, dequantization and small kernels."},
        {"QLoRA, FLOP a byte": per_byte["qlora"], "full, FLOP a byte": per_byte["full"], "T4's ridge": ridge, "seconds of adapters' traffic": adapter_seconds(),
         "right MFU, full": right_mfu("full"), "right MFU, QLoRA": right_mfu("qlora")},
    )  # fmt: skip


@CLAIMS.claim("study-mfu-07", "4.5, table 12", "Mean FLOPS Utilization 13.18% 2.51% -10.67%", "percentage")
def mfu_change(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    points, relative = qlora - full, change(qlora, full)
    return finding(
        decide(agree(printed, relative), assuming=agree(printed, points)),
        f"{points.value:.2f} percentage points, {relative.value:.1f} %",
        {ASSUMED: f"The difference in percentage points. The other rows of the column are relative changes; as one it is {relative.value:.1f} %.",
         FAILS: f"It is {points.value:.2f} points or {relative.value:.1f} %."},
        {"points": points.value, "relative": relative.value},
    )  # fmt: skip


@CLAIMS.claim("study-mfu-08", "3.3, table 3, with tables 7 and 9", "Precision FP16 ... Time per Step (seconds) 2.88", "consistency")
def rate_fits_card(quote: str) -> Finding:
    seconds = figure(quote)
    rate = tera("full") / seconds.value
    return finding(
        decide(rate <= CARD.fp32 / TERA, assuming=rate <= CARD.fp16 / TERA),
        f"{rate:.2f} TFLOP/s by the right count; a T4 does {CARD.fp32 / TERA:g} in FP32 and {CARD.fp16 / TERA:g} in FP16",
        {HOLDS: "Within what a T4 does in either type.",
         ASSUMED: f"More than a T4 can do in FP32, {100 * rate * TERA / CARD.fp16:.0f} % of what it can in FP16: so the products were "
                  "FP16 ones, as stated, if sequences had the full 512 tokens.",
         FAILS: f"{rate:.1f} TFLOP/s is more than a T4 can do."},
        {"TFLOP/s": rate, "T4 fp32": CARD.fp32 / TERA, "T4 fp16": CARD.fp16 / TERA},
    )  # fmt: skip
