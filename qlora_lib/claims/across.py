"""Claims of one document against another: precision, modules, speed, quality, memory and settings.

How it works: a quotation joins what two or more of them say, in the order that the section names them. It holds where all
can be true together, and under an assumption where they differ in something that they leave open.
"""

from qlora_lib.claims import libraries, measured, sources
from qlora_lib.claims.checks import GB, GIB, MIB, about, agree, cell, change, figure, figures
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.claims.demo import step
from qlora_lib.claims.guide_advice import SLIGHTLY
from qlora_lib.claims.guide_memory import ATTENTION, bits_a_parameter, shape
from qlora_lib.claims.guide_mechanism import WIDTHS
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.fitting import TOO_LARGE, fit
from qlora_lib.cost.memory import SMALLEST_PAGED, adapter_tensors
from qlora_lib.cost.workload import Workload
from qlora_lib.published import REFERENCES

CLAIMS = Claims("across")


@CLAIMS.claim(
    "across-01", "guide, Architectural Breakdown; guide, QLoRA vs. LoRA; Qwen project, Hardware & Configuration; study, table 5",
    "trained in full precision ... float16 adapters ... bfloat16 precision for LoRA adapters ... LoRA Adapters 24.06 MB", "consistency",
)  # fmt: skip
def adapters_precision(quote: str) -> Finding:
    parts = quote.split(" ... ")
    said = [next(dtype for words, dtype in sorted(WIDTHS.items(), key=lambda w: -len(w[0])) if words in part) for part in parts[:3]]
    width = figure(parts[3]) * MIB / cell(6, "trainable parameters", "qlora")
    said.append({2: "float16", 4: "float32"}.get(round(width.value), "neither"))
    made = libraries.adapter_dtype("float16")
    return finding(
        decide(len(set(said)) == 1),
        f"said: {', '.join(said[:3])}; the study's MB over its parameters are {width.value:.2f} bytes, {said[3]}; PEFT makes {made}",
        {
            "does not hold": f"Four statements, {len(set(said))} precisions. PEFT keeps what is trained in {made} whatever the base "
            f"is, unless it is told otherwise, and none of them says that it was."
        },
        {"said": ", ".join(said), "bytes a parameter": width.value, "made": made, "version": libraries.versions("peft")},
    )


@CLAIMS.claim(
    "across-02",
    "study, table 4; guide, Architectural Breakdown",
    "7 attention/FFN layers ... Inserted into attention modules",
    "consistency",
)
def modules(quote: str) -> Finding:
    counts = int(figure(quote).value), len(ATTENTION)
    small = shape("tinyllama-1.1b")
    parameters = small.lora_parameters(16), small.lora_parameters(16, ATTENTION)
    return finding(
        decide(counts[0] == counts[1]),
        f"{counts[0]} modules of a layer against {counts[1]}; at rank 16 on TinyLlama {parameters[0]:,} parameters against "
        f"{parameters[1]:,}",
        {
            "does not hold": f"Two QLoRAs, one with {parameters[0] / parameters[1]:.1f} times the adapters of the other; figures of "
            f"the one say little of the other. The QLoRA paper adapts all linear layers, "
            "as the study does.",
            "holds": "Both adapt the same modules.",
        },
        {"study_modules": counts[0], "guide_modules": counts[1], "all_parameters": parameters[0], "attention_parameters": parameters[1]},
    )


@CLAIMS.claim("across-03", "guide, QLoRA vs. LoRA; study, table 9", "Slightly slower (due to quant ops) ... -37.3%", "consistency")
def training_speed(quote: str) -> Finding:
    claimed = abs(figures(quote)[-1])
    from_times = change(cell(9, "total training time", "qlora"), cell(9, "total training time", "standard"))
    published = [100 * (r - 1) for r in sources.SLOWER.values()]
    lora = change(measured.arm("lora").train.seconds_per_step, measured.arm("full").train.seconds_per_step).value
    return finding(
        decide(claimed.value <= SLIGHTLY),
        f"the study's QLoRA took {from_times.value:.1f} % longer than its full fine-tuning; published, against LoRA: "
        f"{min(published):.0f} to {max(published):.0f} %",
        {
            "does not hold": f"More than {SLIGHTLY} % is not slight. The study compares with full fine-tuning and the guide with "
            f"LoRA, whose steps took {lora:+.0f} % of time against full fine-tuning's here: "
            "with the guide's comparison the study's QLoRA would be slower still.",
            "holds": f"Both are at most {SLIGHTLY} %.",
        },
        {
            "study_percent": claimed.value,
            "from_its_times": from_times.value,
            "lora_against_full_percent": lora,
            "slightly_percent": SLIGHTLY,
            "published_low": min(published),
            "published_high": max(published),
        },
    )


@CLAIMS.claim(
    "across-04", "guide, Key Advantages; study, table 10; Qwen project, Overview",
    "Only ~0.2–0.5% degradation ... +18.73% ... without sacrificing model performance", "consistency",
)  # fmt: skip
def quality(quote: str) -> Finding:
    low, high, study = figures(quote)
    ours, from_, to = measured.perplexity_above("qlora", "full")
    return finding(
        decide(agree(study, high) or study.value <= high.high),
        f"{low.value:g} to {high.value:g} %, {study.value:g} % and none at all; here {ours:+.1f} % ({from_:+.1f} to {to:+.1f}) of "
        f"perplexity against full fine-tuning, each at its best rate ({measured.MODEL})",
        {
            "does not hold": f"The only one of them that was measured is {study.value / high.value:.0f} times the largest that the "
            f"guide allows. The study's is perplexity, of which the guide may not speak; "
            "but it names no metric, and so promises it of all.",
            "holds": "All are within the guide's range.",
        },
        {"guide_low": low.value, "guide_high": high.value, "study": study.value, "here": ours, "here_low": from_, "here_high": to},
    )


@CLAIMS.claim("across-05", "guide, Key Advantages; study, table 5", "Train 65B+ models on <16GB GPUs ... Total 548.61 MB", "consistency")
def memory(quote: str) -> Finding:
    billions, limit, total = figures(quote)
    scaled = total * MIB / cell(6, "trainable parameters", "standard") * billions.value * 1e9 / GB
    return finding(
        decide(scaled.value < limit.value),
        f"the study's {total.value:g} MB for 1.1B, scaled to {billions.value:g}B, are {scaled.value:.1f} GB; NF4 with double "
        f"quantization is {billions.value * bits_a_parameter(True) / 8:.1f} GB",
        {
            "does not hold": f"Even by the study's figure, which leaves quantization constants out and counts embeddings as 4-bit, "
            f"weights and adapters alone are {scaled.value / limit.value:.1f} times {limit.value:g} GB.",
            "holds": "By the study's figure the weights and adapters fit; what training needs beside them is not in it.",
        },
        {"billions": billions.value, "limit_gb": limit.value, "study_mb": total.value, "scaled_gb": scaled.value},
    )


@CLAIMS.claim("across-06", "study, table 4; guide, Best Practices", "LoRA Alpha (α) 32 ... `alpha=16`", "consistency")
def alpha(quote: str) -> Finding:
    study, guide = (f.value for f in figures(quote))
    axis, rank = measured.setting("alpha"), float(REFERENCES["guide.rank"].text)
    losses = {value: measured.loss_above(axis, value) for value in (study, guide)}
    gap = losses[guide] - losses[study]
    return finding(
        decide(study == guide, assuming=abs(gap) <= measured.tolerance()),
        f"scales of the adapter {study / rank:g} and {guide / rank:g} at rank {rank:g}; loss {gap:+.3f} nats with the guide's, the "
        f"tolerance {measured.tolerance():.3f} ({measured.MODEL})",
        {
            "holds under an assumption": "They differ by a factor of two, which at one learning rate is no difference shown here; a "
            "higher alpha acts much like a higher learning rate.",
            "does not hold": "They differ, and not without a difference in loss.",
            "holds": "They are the same.",
        },
        {"study": study, "guide": guide, "nats": gap, "tolerance": measured.tolerance()},
    )


@CLAIMS.claim(
    "across-07",
    "study, table 3; demo, Key Tradeoffs",
    "Learning Rate 2×10^{-5} 2×10^{-4} ... increases sensitivity to learning rate",
    "consistency",
)
def learning_rates(quote: str) -> Finding:
    full, qlora = (f.value for f in figures(quote)[:2])
    rates = measured.rates()
    best = {name: rates[name].best.value for name in ("full", "lora", "qlora")}
    claimed, ours = qlora / full, best["qlora"] / best["full"]
    within = 0.5 <= claimed / ours <= 2  # a step of the grid
    return finding(
        decide(within and best["qlora"] == best["lora"]),
        f"the study's rates are {claimed:.0f} times apart; best here: "
        + ", ".join(f"{name} {rate:g}" for name, rate in best.items())
        + f", {ours:.0f} times ({measured.MODEL}, rates in factors of two)",
        {
            "holds": "Adapters want a higher rate than full fine-tuning, by ten times or more, with four bits or without: LoRA and "
            "QLoRA have one best rate here. So the factor is the adapters', and no "
            "sensitivity of four bits.",
            "does not hold": "The rates are not a step of the grid from the factor that did best here.",
        },
        {"claimed_factor": claimed, "factor_here": ours} | {f"best {name}": rate for name, rate in best.items()},
    )


@CLAIMS.claim(
    "across-08", "study, 4.5; demo, Key Tradeoffs", "3.1x slower ... introduces additional indirection at inference time", "consistency"
)
def decoding(quote: str) -> Finding:
    claimed = figure(quote)
    published = {on: sixteen / nf4 for on, (sixteen, nf4) in sources.DECODING.items()}
    here = {
        "NF4 for fp32": measured.arm("base").generation.tokens_per_second / measured.arm("base-nf4dq").generation.tokens_per_second,
        "an adapter beside NF4": measured.arm("base-nf4dq").generation.tokens_per_second
        / measured.arm("qlora").generation.tokens_per_second,
    }
    slower = {on: ratio for on, ratio in published.items() if ratio > 1}
    return finding(
        decide(all(agree(claimed, ratio) for ratio in published.values()), assuming=bool(slower) and claimed.value > 1),
        f"time a token, NF4 over 16 bits: {', '.join(f'{ratio:.2f} on {on}' for on, ratio in published.items())} (bitsandbytes); "
        f"{', '.join(f'{what} {ratio:.2f}' for what, ratio in here.items())} "
        f"({measured.MODEL}, this library's decoder)",
        {
            "holds under an assumption": "It is a matter of card and code: on a T4 four bits with double quantization cost less "
            "than a factor of two, on an RTX 4090 they are faster. What the demo "
            "names, the adapter beside the base, is the smaller part, and merging removes it.",
            "does not hold": "No published figure is slower.",
            "holds": "So it is on every card.",
        },
        {"claimed": claimed.value} | {f"on {on}": r for on, r in published.items()} | {what: r for what, r in here.items()},
    )


@CLAIMS.claim(
    "across-09", "guide, QLoRA vs. LoRA; Qwen project, Evaluation Metrics and Hardware",
    "Ample VRAM (24GB+) ... Validation loss curves comparing QLoRA vs. full fine-tuning ... RTX 3090 (24GB VRAM)", "consistency",
)  # fmt: skip
def full_on_one_card(quote: str) -> Finding:
    lora_needs, _, has = (f.value for f in figures(quote))
    need = {}
    for method in ("lora", "full"):
        work = Workload(shape("qwen3-8b"), method, 1, 512, dtype="bf16", device="cuda", checkpointing=True)
        need[method] = fit(work, gpu_card("RTX 3090")).needs[0] / GIB
    return finding(
        decide(need["full"] < has),
        f"8B at one sequence of 512 tokens, at least: LoRA {need['lora']:.1f} GiB, full fine-tuning {need['full']:.1f} GiB",
        {
            "does not hold": f"If {lora_needs:g} GB are what 16-bit LoRA wants, the same {has:g} GB cannot be enough for full "
            f"fine-tuning of such a model, which needs {need['full'] / need['lora']:.0f} times as much.",
            "holds": "The card is large enough for both.",
        },
        {"lora_card_gb": lora_needs, "card_gb": has} | {f"{method} GiB": size for method, size in need.items()},
    )


@CLAIMS.claim(
    "across-10", "study, table 3; guide, Architectural Breakdown; Qwen project, Hardware & Configuration",
    "paged_adamw_8bit ... Paged Optimizers ... Paged AdamW", "consistency",
)  # fmt: skip
def paged(quote: str) -> Finding:
    largest = {
        "the study's adapters (TinyLlama, r=16, all linear)": max(adapter_tensors(shape("tinyllama-1.1b"), 16)),
        "the guide's (Llama-3.1-8B, r=16, attention)": max(adapter_tensors(shape("llama3.1-8b"), 16, ATTENTION)),
        "the Qwen project's (Qwen3-8B, r=4 and 8, all linear)": max(adapter_tensors(shape("qwen3-8b"), 8)),
        "the Qwen project's (Qwen3-8B, r=16, all linear)": max(adapter_tensors(shape("qwen3-8b"), 16)),
    }
    pages = [whose for whose, n in largest.items() if n >= SMALLEST_PAGED]
    return finding(
        decide(len(pages) == len(largest), assuming=bool(pages)),
        "largest adapter matrix, elements: " + ", ".join(f"{n:,} in {whose}" for whose, n in largest.items()),
        {
            "holds under an assumption": f"All three name paging as a part of QLoRA's memory savings. bitsandbytes pages tensors "
            f"from {SMALLEST_PAGED:,} elements on, which only {' and '.join(pages)} have; "
            "in the others nothing is paged, and paged_adamw_8bit is adamw_8bit.",
            "does not hold": "In none of them is anything paged.",
            "holds": "In all of them something is paged.",
        },
        {whose: n for whose, n in largest.items()} | {"smallest_paged": SMALLEST_PAGED},
    )


@CLAIMS.claim(
    "across-11",
    "README of the study, Key Observations; demo, Overview",
    "GPUs with limited VRAM (e.g., RTX 3090/4090) ... single NVIDIA RTX 3070 (8GB VRAM)",
    "consistency",
)
def limited(quote: str) -> Finding:
    memory = figures(quote)[-1].value
    small, full = step("qlora", batch=4), step("full", card="RTX 3090")
    return finding(
        decide(small.needs[0] / GIB < memory and full.verdict == TOO_LARGE, assuming=small.needs[0] / GIB < memory),
        f"TinyLlama, at least: QLoRA, 4 sequences of 512 tokens, {small.needs[0] / GIB:.1f} GiB; full fine-tuning, one sequence, "
        f"{full.needs[0] / GIB:.1f} GiB of an RTX 3090's 24 ({full.verdict})",
        {
            "holds under an assumption": f"Of larger models than theirs: for TinyLlama a card of 24 GB is not the limit, since "
            f"{memory:g} GB are enough for QLoRA, as the demo says, and full fine-tuning fits "
            "24 GB.",
            "holds": "QLoRA fits the smaller card, and full fine-tuning not the larger.",
            "does not hold": "QLoRA does not fit the smaller card.",
        },
        {"card_gb": memory, "qlora_gib": small.needs[0] / GIB, "full_gib": full.needs[0] / GIB, "full_on_3090": full.verdict},
    )


@CLAIMS.claim(
    "across-12",
    "guide, Double Quantization; study, tables 4 and 5",
    "Saves 0.4%–3% additional memory ... Double Quantization Enabled ... 524.54 MB",
    "consistency",
)
def constants(quote: str) -> Finding:
    size = figures(quote)[-1]
    bits = 8 * size * MIB / cell(6, "trainable parameters", "standard")
    plain, double = bits_a_parameter(False), bits_a_parameter(True)
    return finding(
        decide(agree(bits, double, 0.005), assuming=agree(bits, plain, 0.005)),
        f"{bits.value:.3f} bits a parameter; NF4 takes {plain:.3f}, with double quantization {double:.3f}, and embeddings 16",
        {
            "does not hold": "The study's size is 4 bits for every parameter and none for their scales: in it there is nothing that "
            "double quantization could have saved.",
            "holds": "The study's size is that of double quantization.",
            "holds under an assumption": "The study's size is that of NF4 without double quantization.",
        },
        {"study_mb": size.value, "bits": bits.value, "nf4_bits": plain, "nf4_dq_bits": double},
    )


@CLAIMS.claim(
    "across-13",
    "study, table 6; guide, What is QLoRA?; demo, Configuration Summary",
    "12,615,680 ... you update a few million LoRA adapter weights ... LoRA adapters only",
    "consistency",
)
def trainable(quote: str) -> Finding:
    count = figure(quote).value
    ours = shape("tinyllama-1.1b").lora_parameters(16)
    own = shape("llama3.1-8b").lora_parameters(16, ATTENTION)
    totals = [shape(name).parameters.total for name in ("tinyllama-1.1b", "llama3.1-8b")]
    return finding(
        decide(count == ours and about(count, own, 1)),
        f"TinyLlama, r=16, all linear: {ours:,}; the guide's Llama-3.1-8B, r=16, attention: {own:,}",
        {
            "holds": f"Both train about ten million numbers, {100 * ours / totals[0]:.1f} % of TinyLlama's and "
            f"{100 * own / totals[1]:.1f} % of Llama-3.1-8B's: with attention only, a model "
            f"{totals[1] / totals[0]:.0f} times as large has as many.",
            "does not hold": "The count is not that of the adapters it names.",
        },
        {"study": count, "recomputed": ours, "guide": own},
    )
