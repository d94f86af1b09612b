"""The README of the study, claim by claim, against the study itself and against a recount.

How it works: figures that the README repeats are held against the study's tables; what it says beyond them is recomputed
as in the modules of the study.
"""

from qlora_lib.claims.checks import GIB, Figure, agree, cell, change, figure, figures, rounded, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.sources import DECODING
from qlora_lib.claims.study_mfu import CARD as T4
from qlora_lib.claims.study_mfu import intensity, right_mfu
from qlora_lib.claims.study_memory import full_training_bytes, qlora_training_bytes, workload
from qlora_lib.claims.study_lora import adapter_parameters
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.memory import FLOAT, resident, state_bytes, weight_tensors
from qlora_lib.cost.shapes import ALL_LINEAR, LLAMA_8B

CLAIMS = Claims("readme")
KEY = "Key Results Summary"


def whole(f: Figure) -> Figure:
    """A whole number that a text rounded to."""
    return rounded(f.value, 0)


@CLAIMS.claim("readme-01", KEY, "Model Size 2,098 MB 548 MB -73.9% (Memory)", "consistency")
def sizes(quote: str) -> Finding:
    full, qlora, percent = figures(quote)
    table = {c: cell(5, "total", c) for c in ("standard", "qlora")}
    right = change(table["qlora"], table["standard"])
    return finding(
        decide(agree(whole(full), table["standard"]) and agree(whole(qlora), table["qlora"]) and agree(percent, right)),
        f"the study has {table['standard'].value:,.2f}, {table['qlora'].value:.2f} and {right.value:.1f} %",
        {HOLDS: "The study's figures, rounded.",
         FAILS: f"The study's {table['qlora'].value:.2f} rounds to {table['qlora'].value:.0f}, as its own figure 1 has it, not to {qlora.value:.0f}. The "
                "percentage is right for either."},
        {"standard": table["standard"].value, "QLoRA": table["qlora"].value, "percent": right.value},
    )  # fmt: skip


@CLAIMS.claim("readme-02", KEY, "Trainable Params 1.1 Billion (100%) 12.6 Million (1.15%) -98.85% (Params)", "consistency")
def parameters(quote: str) -> Finding:
    base, _, adapters, share, less = figures(quote)
    n = [cell(6, "trainable parameters", c) for c in ("standard", "qlora")]
    percent = 100 * n[1] / n[0]
    of_all = 100 * n[1] / (n[0] + n[1])
    same = agree(base, n[0] / 1e9) and agree(adapters, n[1] / 1e6)
    return finding(
        decide(same and agree(share, of_all), assuming=same and agree(share, percent) and agree(less, percent - 100)),
        f"{n[1].value / 1e6:.2f} of {n[0].value / 1e6:,.2f} million: {percent.value:.2f} %, {percent.value - 100:.2f} %",
        {ASSUMED: f"As the study has it: a share of the base. Of the model with its adapters it is {of_all.value:.2f} %.",
         FAILS: f"The study's figures make {percent.value:.2f} % and {percent.value - 100:.2f} %."},
        {"percent of the base": percent.value, "percent of all": of_all.value},
    )  # fmt: skip


@CLAIMS.claim("readme-03", KEY, "Inference Speed 33.12 tokens/sec 10.62 tokens/sec 3.1x Slower", "consistency")
def speed(quote: str) -> Finding:
    full, qlora, ratio = figures(quote)
    table = [cell(11, "tokens per second", c) for c in ("standard", "qlora")]
    same = agree(full, table[0]) and agree(qlora, table[1])
    return finding(
        decide(same and agree(ratio, full / qlora)), f"{(full / qlora).value:.2f} times the time",
        {HOLDS: "The study's figures and their quotient.", FAILS: f"The study has {table[0].value} and {table[1].value}."},
        {"ratio": (full / qlora).value},
    )  # fmt: skip


@CLAIMS.claim("readme-04", KEY, "Perplexity (Quality) 18.42 21.87 +18.73% (Degradation)", "consistency")
def perplexity(quote: str) -> Finding:
    full, qlora, percent = figures(quote)
    right = change(qlora, full)
    in_table = cell(12, "perplexity", "improvement")
    same = agree(full, cell(10, "perplexity", "standard")) and agree(qlora, cell(10, "perplexity", "qlora"))
    return finding(
        decide(same and agree(percent, right)),
        f"{right.value:+.2f} %",
        {HOLDS: f"As in table 10 of the study; its table 12 prints the same change as {in_table.value:g} %.", FAILS: f"It is {right.value:+.2f} %."},
        {"percent": right.value, "table 12": in_table.value},
    )  # fmt: skip


@CLAIMS.claim("readme-05", KEY, "QLoRA achieves a 3.82x memory compression ratio compared to standard fine-tuning", "meaning")
def compression(quote: str) -> Finding:
    full, qlora = full_training_bytes(), qlora_training_bytes()
    right = full / qlora
    weights = tinyllama().parameters.total
    lora = qlora + 2 * weights - resident(workload("qlora")).total + FLOAT * adapter_parameters()
    return finding(
        decide(agree(figure(quote), right)),
        f"{right:.1f} in what training holds besides activations",
        {HOLDS: "Of the memory of training.",
         FAILS: "The ratio is of two sizes of a stored model, and none of them was measured in training. Besides activations full fine-tuning holds "
                f"{full / GIB:.2f} GiB (fp32 weights, gradients, AdamW) and QLoRA {qlora / GIB:.2f}: a ratio of {right:.0f}. LoRA on a 16-bit base already has "
                f"{full / lora:.1f}: most of it comes from what is not trained."},
        {"GiB, full": full / GIB, "GiB, QLoRA": qlora / GIB, "GiB, LoRA": lora / GIB, "ratio": right, "ratio of LoRA": full / lora},
    )  # fmt: skip


@CLAIMS.claim("readme-06", "Experimental Setup", "LoRA Rank ($r$): 16 ... Target Modules: All attention & feed-forward layers", "consistency")
def targets(quote: str) -> Finding:
    rank = int(figure(quote).value)
    count = tinyllama().lora_parameters(rank, ALL_LINEAR)
    printed = cell(6, "trainable parameters", "qlora")
    return finding(
        decide(agree(printed, count)), f"{count:,} adapter parameters",
        {HOLDS: "Just these give the study's count of trainable parameters.", FAILS: f"These give {count:,}, the study has {printed.value:,.0f}."},
        {"adapters": count, "printed": printed.value},
    )  # fmt: skip


@CLAIMS.claim("readme-07", "Key Observations", "significant speed penalty (3x slower)", "number")
def penalty(quote: str) -> Finding:
    ratio = cell(11, "tokens per second", "standard") / cell(11, "tokens per second", "qlora")
    return finding(
        decide(agree(whole(figure(quote)), ratio)), f"{ratio.value:.2f} times the time",
        {HOLDS: "The 3.1 of the table above it, rounded.", FAILS: f"It is {ratio.value:.1f}."}, {"ratio": ratio.value},
    )  # fmt: skip


def full_training_bytes_8b() -> int:
    """Llama-3.1-8B besides activations: fp32 weights, gradients and AdamW's averages."""
    tensors = weight_tensors(LLAMA_8B)
    return 2 * FLOAT * sum(tensors) + state_bytes(tensors)


@CLAIMS.claim(
    "readme-08", "Key Observations", "QLoRA makes it possible to fine-tune billion-parameter models on GPUs with limited VRAM (e.g., RTX 3090/4090)", "meaning"
)
def consumer_cards(quote: str) -> Finding:
    memory = min(GPUS[name].memory_bytes for name in ("RTX 3090", "RTX 4090"))
    full, large = full_training_bytes(), {"full": full_training_bytes_8b(), "qlora": qlora_training_bytes(LLAMA_8B)}
    return finding(
        decide(full > memory, assuming=large["full"] > memory >= large["qlora"]),
        f"full fine-tuning of this model holds {full / GIB:.1f} GiB besides activations, of {memory / GIB:.0f} on those cards; of an 8B model "
        f"{large['full'] / GIB:.0f}, with QLoRA {large['qlora'] / GIB:.1f}",
        {HOLDS: "This model needs it there.",
         ASSUMED: f"For models of several billion parameters: of Llama-3.1-8B training holds {large['full'] / GIB:.0f} GiB in full and {large['qlora'] / GIB:.1f} "
                  f"with QLoRA. The study's own model holds {full / GIB:.1f} in full, besides activations, which those cards have; it was "
                  f"run on a T4 of {T4.memory_bytes / GIB:.0f}.",
         FAILS: "It makes no difference there."},
        {"GiB of the cards": memory / GIB, "GiB, TinyLlama in full": full / GIB, "GiB, 8B in full": large["full"] / GIB, "GiB, 8B with QLoRA": large["qlora"] / GIB},
    )  # fmt: skip


@CLAIMS.claim("readme-09", "Key Observations", "QLoRA is memory-bandwidth bound, resulting in lower Mean FLOPS Utilization (MFU)", "mechanism")
def bound(quote: str) -> Finding:
    ridge = T4.fp16 / T4.bandwidth
    at = intensity("qlora")
    ratio = right_mfu("qlora") / right_mfu("full")
    return finding(
        decide(at < ridge),
        f"{at:,.0f} operations for each byte of weights moved; a T4 is limited by bandwidth below {ridge:.0f}",
        {HOLDS: "Fewer operations a byte than the card can feed.",
         FAILS: f"By count a training step does {at:,.0f} operations for each byte that its weights move, far above the {ridge:.0f} at which a T4 turns from "
                f"bandwidth to compute. Utilization is lower, {ratio:.2f} of full fine-tuning's and not 0.19, but the study measured no bandwidth."},
        {"FLOP a byte": at, "T4's ridge": ridge, "right ratio of MFU": ratio},
    )  # fmt: skip


@CLAIMS.claim(
    "readme-10", "Conclusion", "for production deployments requiring real-time low latency ... standard fine-tuning or post-training quantization is preferred", "meaning"
)
def post_training(quote: str) -> Finding:
    sixteen, four = DECODING["3B on a T4"]
    ratio = four / sixteen
    advised = "post-training quantization" in quote
    return finding(
        decide(ratio >= 1 or not advised, assuming=any(f > s for s, f in DECODING.values())),
        f"without any adapter, NF4 with double quantization decodes at {ratio:.2f} times the 16-bit speed on a T4",
        {HOLDS: "As fast as 16 bits.",
         ASSUMED: "If the quantized format has a kernel that is fast on the card at hand. Weights quantized after training are dequantized as QLoRA's "
                  f"are: bitsandbytes prints {ratio:.2f} times the 16-bit speed for NF4 with double quantization on a T4. What post-training quantization avoids is the "
                  f"adapter, and merging avoids that too.",
         FAILS: "It has the same overhead."},
        {"NF4 on a T4": ratio, **{f"NF4, {where}": f / s for where, (s, f) in DECODING.items()}},
    )  # fmt: skip


@CLAIMS.claim("readme-11", "Key Results Summary, with section 4.1 of the study", "3.82x memory compression ratio ... -73.9% (Memory)", "consistency")
def ratio_and_percent(quote: str) -> Finding:
    ratio, percent = figures(quote)
    implied = 100 * (1 / ratio - 1)
    return finding(
        decide(agree(percent, implied)), f"{implied.value:.1f} % from a ratio of {ratio.value}",
        {HOLDS: "One is 1 - 1 / the other, to rounding.", FAILS: f"A ratio of {ratio.value} is {implied.value:.1f} %."},
        {"percent from the ratio": implied.value},
    )  # fmt: skip
