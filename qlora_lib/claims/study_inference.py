"""The study on inference: tables 11 and 12, sections 4.5, 6.2 and 7.

How it works: rates are recomputed from tokens and seconds; causes are held against the bytes that a decoded token reads,
against bitsandbytes' own figures on the study's card, and against this project's decoder.
"""

from qlora_lib.claims import measured
from qlora_lib.claims import study_sources as known
from qlora_lib.claims.checks import GB, TERA, agree, cell, change, figure, figures, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.sources import DECODING
from qlora_lib.claims.study_lora import adapter_parameters
from qlora_lib.claims.study_quantization import four_bit_base
from qlora_lib.cost.devices import GPUS

CLAIMS = Claims("study")
CARD = GPUS["T4"]
STOCK = "nf4dq_adapter.stock"


def bandwidth_used(column: str) -> float:
    """GB/s of weights that the printed decoding rate reads, each weight once a token."""
    size = 2 * tinyllama().parameters.total if column == "standard" else four_bit_base() + 2 * adapter_parameters()
    return size * cell(11, "tokens per second", column).value / GB


@CLAIMS.claim(
    "study-decode-01", "4.5, table 11: Inference Speed (50 tokens generated)", "Standard Fine-Tuning 1.51 33.12 ... QLoRA Fine-Tuning 4.71 10.62", "consistency"
)
def rates(quote: str) -> Finding:
    seconds, printed = figures(quote)[::2], figures(quote)[1::2]
    right = [50 / s for s in seconds]
    return finding(
        decide(all(agree(p, r) for p, r in zip(printed, right, strict=True))),
        f"{right[0].value:.2f} and {right[1].value:.2f} tokens a second from the rounded seconds",
        {HOLDS: "50 tokens over the printed seconds, to rounding.", FAILS: f"50 tokens in these times are {right[0].value:.2f} and {right[1].value:.2f} a second."},
        {"standard": right[0].value, "QLoRA": right[1].value},
    )  # fmt: skip


@CLAIMS.claim("study-decode-02", "4.5", "QLoRA inference is 3.1x slower than standard fine-tuning", "number")
def slower(quote: str) -> Finding:
    ratio = cell(11, "tokens per second", "standard") / cell(11, "tokens per second", "qlora")
    return finding(
        decide(agree(figure(quote), ratio)), f"{ratio.value:.2f} times the time",
        {HOLDS: f"It takes {ratio.value:.2f} times as long; said the other way, it has {100 / ratio.value:.0f} % of the speed.",
         FAILS: f"It takes {ratio.value:.2f} times as long."},
        {"ratio": ratio.value},
    )  # fmt: skip


@CLAIMS.claim("study-decode-03", "6.1, figure 1", "33.12 tokens/sec vs QLoRA's 10.62 (67.9% slower", "percentage")
def less_speed(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    right = -change(qlora, full)
    return finding(
        decide(agree(printed, right)), f"{right.value:.1f} % fewer tokens a second",
        {HOLDS: "Of the tokens a second.", FAILS: f"It is {right.value:.1f} %."}, {"percent": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-decode-04", "4.5, table 12: Improvement", "Inference Time (s) 1.51 4.71 -212.0%", "percentage")
def time_change(quote: str) -> Finding:
    full, qlora, printed = figures(quote)
    right = change(qlora, full)
    return finding(
        decide(agree(printed, right), assuming=agree(-printed, right)),
        f"{right.value:+.1f} % from the rounded seconds",
        {HOLDS: "A change in time.",
         ASSUMED: f"A minus means worse. Time rises by {right.value:.1f} % (to rounding of the seconds); nothing that is positive can change by "
                  "less than -100 %.",
         FAILS: f"It is {right.value:+.1f} %."},
        {"change": right.value, "least": right.low, "most": right.high},
    )  # fmt: skip


@CLAIMS.claim("study-decode-05", "4.5", "This is attributed to: ... Memory bandwidth limitations with 4-bit weights", "mechanism")
def bandwidth(quote: str) -> Finding:
    used = {c: bandwidth_used(c) for c in ("standard", "qlora")}
    share = {c: 100 * u * GB / CARD.bandwidth for c, u in used.items()}
    return finding(
        decide(used["qlora"] > used["standard"]),
        f"{used['qlora']:.1f} GB/s of weights in QLoRA, {used['standard']:.1f} in full precision; a T4 has {CARD.bandwidth / GB:.0f}",
        {HOLDS: "QLoRA reads more.",
         FAILS: f"At the printed rates 4-bit weights ask for {used['qlora']:.1f} GB/s, {share['qlora']:.1f} % of a T4's bandwidth, and 16-bit ones for "
                f"{used['standard']:.1f} ({share['standard']:.0f} %). Fewer bytes a token relieve the memory; the time goes elsewhere."},
        {"GB/s, QLoRA": used["qlora"], "GB/s, standard": used["standard"], "percent of a T4, QLoRA": share["qlora"], "percent of a T4, standard": share["standard"]},
    )  # fmt: skip


@CLAIMS.claim("study-decode-06", "6.2", "4-bit operations have poor memory efficiency on current hardware", "mechanism")
def efficiency(quote: str) -> Finding:
    ratios = {where: four / sixteen for where, (sixteen, four) in DECODING.items()}
    card = "8B on an RTX 4090"
    bytes_ratio = (four_bit_base() + 2 * adapter_parameters()) / (2 * tinyllama().parameters.total)
    return finding(
        decide(all(r < 1 for r in ratios.values())),
        "; ".join(f"{where}: {r:.2f} times the 16-bit speed" for where, r in ratios.items()),
        {HOLDS: "Slower everywhere.",
         FAILS: f"It depends on the card and the kernel. By bitsandbytes' own figures NF4 with double quantization decodes at {ratios[card]:.2f} times "
                f"the 16-bit speed on an RTX 4090, and at {ratios['3B on a T4']:.2f} on a T4. A token reads {100 * bytes_ratio:.0f} % of the bytes."},
        {**ratios, "bytes over 16-bit": bytes_ratio},
    )  # fmt: skip


@CLAIMS.claim("study-decode-07", "4.5", "This is attributed to: ... Additional matrix operations to apply LoRA adapters", "mechanism")
def adapters(quote: str) -> Finding:
    extra = 100 * adapter_parameters() / (tinyllama().linear_weights + tinyllama().hidden_size * tinyllama().vocab_size)
    total = 1 / known.decode_rate(STOCK)
    share = 100 * known.seconds_a_token(STOCK, "adapter products") / total
    return finding(
        decide(False, assuming=share > 5 and "Additional" in quote),
        f"{extra:.1f} % more operations; {share:.0f} % of the time of a token on {measured.MODEL}",
        {ASSUMED: f"If the adapters are not merged. They add {extra:.1f} % of operations but {2 * 7 * tinyllama().num_layers} small products a token, whose "
                  f"fixed cost is what counts: {share:.0f} % of a token's time with PEFT and bitsandbytes on {measured.MODEL} (CPU). Merged, they cost nothing.",
         FAILS: "They take no time worth naming."},
        {"percent of operations": extra, f"{measured.MODEL}, percent of time": share},
    )  # fmt: skip


@CLAIMS.claim("study-decode-08", "7.2", "Inference Latency: 3.1x slower inference due to dequantization overhead", "mechanism")
def dequantization(quote: str) -> Finding:
    printed = figure(quote)
    sixteen, four = DECODING["3B on a T4"]
    ratio = sixteen / four
    return finding(
        decide(ratio >= printed.low),
        f"bitsandbytes prints {ratio:.2f} for NF4 with double quantization against 16 bits on a T4 (a 3B model, no adapter)",
        {HOLDS: "Dequantization explains it.",
         FAILS: f"Not by dequantization alone: on the same card bitsandbytes (0.45) prints {ratio:.2f} times the time for a 3B model without adapters. The "
                f"remaining factor of {printed.value / ratio:.2f} is what unmerged adapters and a small model's fixed cost a layer would take; "
                "the study has no 16-bit model with adapters that would tell."},
        {"bitsandbytes on a T4": ratio, "remaining factor": printed.value / ratio},
    )  # fmt: skip


@CLAIMS.claim("study-decode-09", "7.3", "QLoRA is not recommended for: ... Real-time inference systems requiring low latency", "mechanism")
def real_time(quote: str) -> Finding:
    stock = known.decode_rate(STOCK) / known.decode_rate("fp32.stock")
    fast = known.decode_rate("nf4dq_adapter.fast") / known.decode_rate("fp32.fast")
    not_recommended = "not recommended" in quote
    return finding(
        decide((fast < 1) == (stock < 1) == not_recommended, assuming=(fast < 1) != (stock < 1)),
        f"on {measured.MODEL} a 4-bit model with its adapter decodes at {stock:.2f} times the fp32 speed with the stock libraries, at {fast:.2f} with a "
        "decoder that reads codes directly",
        {HOLDS: "With either implementation.",
         ASSUMED: f"With the stock libraries: {stock:.2f} times the fp32 speed on {measured.MODEL} (CPU). With kernels that multiply by the codes the same model "
                  f"is {fast:.2f} times as fast as fp32, so the finding is about an implementation, not about 4-bit weights.",
         FAILS: f"It decodes faster: {stock:.2f} and {fast:.2f} times the fp32 speed."},
        {f"{measured.MODEL}, stock": stock, f"{measured.MODEL}, fast": fast},
    )  # fmt: skip


@CLAIMS.claim("study-decode-10", "4.5, tables 11 and 12", "33.12 ... 2,098.18", "consistency")
def decode_fits_card(quote: str) -> Finding:
    rate, size = figures(quote)
    read = (rate * size * 2**20).value
    computed = 2 * (tinyllama().linear_weights + tinyllama().hidden_size * tinyllama().vocab_size) * rate.value
    return finding(
        decide(read <= CARD.bandwidth and computed <= CARD.fp16),
        f"{read / GB:.0f} GB/s of weights, {100 * read / CARD.bandwidth:.0f} % of a T4's bandwidth, and {computed / TERA:.2f} TFLOP/s",
        {HOLDS: f"Possible: {100 * read / CARD.bandwidth:.0f} % of a T4's bandwidth. The 16-bit model could decode about {CARD.bandwidth / size.value / 2**20:.0f} "
                "tokens a second if nothing but its weights took time, so both rates of the table show overhead.",
         FAILS: f"A T4 reads {CARD.bandwidth / GB:.0f} GB/s."},
        {"GB/s": read / GB, "percent of a T4": 100 * read / CARD.bandwidth, "limit, tokens a second": CARD.bandwidth / (size.value * 2**20)},
    )  # fmt: skip
