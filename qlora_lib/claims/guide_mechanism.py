"""The guide on how QLoRA works: NF4, double quantization, paging, where adapters go and what the layer computes.

How it works: what a library does is asked of the library (libraries.py); what a setting is worth, of this project's
records (measured.py).
"""

from statistics import NormalDist

from qlora_lib.claims import libraries, measured, sources
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.claims.guide_memory import ATTENTION, shape
from qlora_lib.published import REFERENCES

CLAIMS = Claims("guide")
BREAKDOWN, FORWARD = "How QLoRA Works, Architectural Breakdown", "How QLoRA Works, Forward Pass"
NF4, PAGED = "Technical Insights, NormalFloat (NF4)", "Technical Insights, Paged Optimizers & Attention"


# --- NF4 -------------------------------------------------------------------------------------------


@CLAIMS.claim("guide-nf4-01", NF4, "4-bit floating-point format", "meaning")
def floating_point(quote: str) -> Finding:
    """A float has a sign bit, so its levels are symmetric; and mantissa bits, so that a step repeats within a power of two."""
    nf4, fp4 = libraries.levels("nf4"), libraries.levels("fp4")

    def symmetric(levels) -> bool:
        return all(abs(a + b) < 1e-6 for a, b in zip(levels, reversed(levels), strict=True))

    def steps(levels) -> int:
        """Different steps between neighbours above zero; a float of four bits repeats some."""
        positive = [x for x in levels if x > 0]
        return len({round(b - a, 4) for a, b in zip(positive, positive[1:], strict=False)})

    floating = symmetric(nf4) and steps(nf4) < sum(x > 0 for x in nf4) - 1
    return finding(
        decide(floating),
        f"NF4 has {sum(x < 0 for x in nf4)} levels below and {sum(x > 0 for x in nf4)} above zero and {steps(nf4)} different "
        f"steps above it; "
        f"FP4, a float, has {sum(x < 0 for x in fp4)} and {sum(x > 0 for x in fp4)} and repeats its steps",
        {
            "does not hold": "NF4 is a table of 16 levels, quantiles of a normal distribution: no sign, exponent or mantissa bits, "
            "and not symmetric. "
            "Floating-point, 4-bit, is FP4, which bitsandbytes has too."
        },
        {
            "nf4_below_zero": sum(x < 0 for x in nf4),
            "nf4_above_zero": sum(x > 0 for x in nf4),
            "nf4_steps": steps(nf4),
            "fp4_steps": steps(fp4),
            "fp4_symmetric": int(symmetric(fp4)),
        },
    )


@CLAIMS.claim("guide-nf4-02", NF4, "inspired by weight distribution patterns in LLMs", "mechanism")
def quantiles(quote: str) -> Finding:
    outermost = 1 - (1 / (2 * 15) + 1 / (2 * 16)) / 2  # half a step short of probability 1, the mean for 15 and 16 levels

    def made(count: int) -> list[float]:  # at even steps of probability, from the outermost to 1/2
        return [NormalDist().inv_cdf(outermost + (0.5 - outermost) * i / count) for i in range(count)]

    levels = sorted([-z for z in made(7)] + [0.0] + made(8))
    levels = [x / max(levels) for x in levels]
    off = max(abs(a - b) for a, b in zip(levels, libraries.levels("nf4"), strict=True))
    return finding(
        decide(off < 1e-4),
        f"quantiles of a normal distribution, scaled to 1, are bitsandbytes' levels within {off:.0e}",
        {"holds": "The pattern is a normal distribution; each block of 64 weights is scaled so that its largest has magnitude 1."},
        {"largest_difference": off},
    )


@CLAIMS.claim("guide-nf4-03", NF4, "Offers higher granularity near zero (where most weights lie)", "mechanism")
def granularity(quote: str) -> Finding:
    levels = libraries.levels("nf4")
    gaps = [b - a for a, b in zip(levels, levels[1:], strict=False)]
    zero = levels.index(0.0)
    grow = all(a <= b for side in (gaps[zero:], gaps[:zero][::-1]) for a, b in zip(side, side[1:], strict=False))
    x = libraries.normal(4096, 64)
    inner = float((x.abs() < 0.5 * x.abs().amax(1, keepdim=True)).double().mean())
    near, wide = ("near zero" in quote), max(gaps[0], gaps[-1])
    finer = min(gaps) == gaps[zero] and grow
    return finding(
        decide(near == finer and inner > 0.5),
        f"steps grow from {min(gaps):.3f} beside zero to {wide:.3f} at the ends; {100 * inner:.0f} % of normal weights lie within "
        f"half of their block's largest",
        {"holds": "Both halves are so, for weights that are normally distributed in each block of 64."},
        {"smallest_step": min(gaps), "largest_step": wide, "share_within_half": inner},
    )


@CLAIMS.claim("guide-nf4-04", NF4, "Outperforms uniform INT4 quantization in empirical tests", "mechanism")
def against_int4(quote: str) -> Finding:
    nf4, even, affine = (libraries.quantization_error(t) for t in ("nf4", "int4", "int4-affine"))
    paper = sources.PAPER_PERPLEXITY
    published, equal, more = paper["nf4"] < paper["int4"], nf4[0] < even[0], nf4[0] < affine[0]
    return finding(
        decide(published and equal and more, assuming=published and equal),
        f"mean squared error on normal weights: NF4 {nf4[0]:.4f}, even levels about zero {even[0]:.4f} (both {nf4[1]:.1f} bits a weight), "
        f"even levels from minimum to maximum {affine[0]:.4f} ({affine[1]:.1f} bits); QLoRA paper, mean perplexity {paper['nf4']} "
        f"against {paper['int4']}",
        {
            "holds under an assumption": "At equal bits, as in the paper's table 2, it is so. Uniform levels between each block's "
            "own minimum and maximum store a second "
            "number a block, and are ahead of NF4 on normal weights.",
            "holds": "So it is in both kinds of uniform levels.",
        },
        {"nf4_error": nf4[0], "int4_error": even[0], "int4_affine_error": affine[0], "nf4_bits": nf4[1], "int4_affine_bits": affine[1]}
        | {f"paper_{k}": v for k, v in paper.items()},
    )


# --- double quantization ------------------------------------------------------------------------------


@CLAIMS.claim(
    "guide-mechanism-01",
    "Technical Insights, Double Quantization",
    "Compresses the quantization lookup table (scaling constants)",
    "mechanism",
)
def lookup_table(quote: str) -> Finding:
    saved = libraries.compressed_parts()
    named = [part for part in saved if part in quote]
    return finding(
        decide(bool(named) and all(saved[part] > 0 for part in named), assuming=any(saved[part] > 0 for part in named)),
        "bytes that it takes off, on a matrix of 256 x 256: " + ", ".join(f"{part} {n:,}" for part, n in saved.items()),
        {
            "holds under an assumption": "Read as its parenthesis: the scaling constants, one a block, go from 32 to 8 bits. The "
            "look-up table is another thing, 16 fixed levels that "
            "no quantization changes.",
            "does not hold": "The look-up table is 16 fixed levels; what is compressed are the scaling constants, one a block.",
            "holds": "The constants, one a block, go from 32 to 8 bits.",
        },
        {f"{part} bytes saved": n for part, n in saved.items()},
    )


@CLAIMS.claim("guide-mechanism-02", "Technical Insights, Double Quantization", "without performance loss", "mechanism")
def without_loss(quote: str) -> Finding:
    from qlora_lib.analysis import paired_interval
    from qlora_lib.sensitivity import FLOOR

    plain, double = (measured.arm(name).perplexity for name in ("base-nf4", "base-nf4dq"))
    found = paired_interval(double.window_nll_before, plain.window_nll_before)
    return finding(
        decide(found.low <= 0, assuming=found.high < FLOOR),
        f"perplexity {plain.before:.2f} without and {double.before:.2f} with it ({100 * (double.before / plain.before - 1):+.2f} %, "
        f"{measured.MODEL}, "
        f"{found.low:+.4f} to {found.high:+.4f} nats)",
        {
            "holds": "No loss is shown on this model; the QLoRA paper says the same of its own.",
            "holds under an assumption": f"Without a loss that matters: below {FLOOR} nats, though not zero.",
        },
        {"perplexity_nf4": plain.before, "perplexity_nf4_dq": double.before, "nats": found.value, "low": found.low, "high": found.high},
    )


# --- paging ----------------------------------------------------------------------------------------


@CLAIMS.claim("guide-mechanism-04", PAGED, "Paged optimizers offload gradients and optimizer states to CPU RAM", "mechanism")
@CLAIMS.claim("guide-mechanism-03", BREAKDOWN, "Offload optimizer states to CPU or disk to free GPU memory", "mechanism")
def paged(quote: str) -> Finding:
    found = libraries.paging()
    what = {w: bool(found[w]) for w in ("optimizer states", "gradients") if w in quote}
    to = {w: bool(found[w]) for w in ("CPU", "disk") if w in quote}
    wrong = [w for w, yes in (what | to).items() if not yes]
    return finding(
        decide(not wrong),
        f"bitsandbytes puts {found['paged']}, AdamW's two averages, in CUDA's managed memory, from "
        f"{found['smallest tensor']:,} elements on",
        {
            "does not hold": f"Not {' and not '.join({'gradients': 'gradients', 'disk': 'to the disk'}.get(w, w) for w in wrong)}. "
            f"Managed memory's pages move between "
            "the GPU and the CPU's memory, by themselves, when the GPU is full.",
            "holds": "Pages of these states move to the CPU's memory by themselves when the GPU is full, and back when they are used.",
        },
        {k: v for k, v in found.items()} | {"bitsandbytes": libraries.versions("bitsandbytes")},
    )


@CLAIMS.claim("guide-mechanism-05", PAGED, "Paged attention prevents memory blow-up from large sequence activations", "mechanism")
def paged_attention(quote: str) -> Finding:
    error = libraries.paged_attention_error().partition(". ")[0]
    return finding(
        decide(not error),
        f"a training step with transformers' paged attention: {error or 'runs'}",
        {
            "does not hold": "Paged attention keeps the keys and values of past tokens in pages while a model serves requests. "
            "Training keeps no such cache, and "
            "transformers refuses it there; activations shrink by gradient checkpointing, shorter sequences or smaller batches."
        },
        {"error": error, "version": libraries.versions("transformers")},
    )


# --- adapters --------------------------------------------------------------------------------------


@CLAIMS.claim("guide-mechanism-06", BREAKDOWN, "Inserted into attention modules", "mechanism")
def modules(quote: str) -> Finding:
    from qlora_lib.sensitivity import verdict

    everywhere, attention = measured.setting("rank"), measured.setting("rank-attention")
    pairs = [(p, q) for p in attention.points if (q := everywhere.at(p.value)) and p.mean is not None and q.mean is not None]
    ways = [verdict(p, q, measured.tolerance()) for p, q in pairs]
    costs = {int(p.value): p.mean - q.mean for p, q in pairs}
    small = shape("llama3.1-8b")
    share = small.lora_parameters(16, ATTENTION) / small.lora_parameters(16)
    return finding(
        decide("worse" not in ways, assuming=True),
        "attention only against all linear layers, nats of validation loss: "
        + ", ".join(f"{cost:+.3f} at rank {rank}" for rank, cost in costs.items())
        + f" ({measured.MODEL})",
        {
            "holds under an assumption": "So the guide's snippets do. QLoRA as published adapts all linear layers, and its paper "
            "finds that this is what matches full fine-tuning; "
            f"here the attention alone was worse at {ways.count('worse')} of {len(ways)} ranks.",
            "holds": "Here the attention alone was not shown to be worse; QLoRA as published adapts all linear layers.",
        },
        {f"nats_rank_{rank}": cost for rank, cost in costs.items()}
        | {"tolerance": measured.tolerance(), "share_of_all_linear_parameters": share},
    )


WIDTHS = {"full precision": "float32", "float16": "float16", "bfloat16": "bfloat16"}


@CLAIMS.claim("guide-mechanism-08", "QLoRA vs. LoRA: Which One to Choose?", "NF4 (4-bit) + float16 adapters", "mechanism")
@CLAIMS.claim("guide-mechanism-07", BREAKDOWN, "trained in full precision", "mechanism")
def precision(quote: str) -> Finding:
    said = next(dtype for words, dtype in WIDTHS.items() if words in quote)
    made = {base: libraries.adapter_dtype(base) for base in ("float16", "bfloat16")}
    switched = libraries.adapter_dtype("float16", False), libraries.adapter_dtype("bfloat16", False)
    return finding(
        decide(set(made.values()) == {said}),
        f"get_peft_model as the guide calls it makes adapters of {' and '.join(sorted(set(made.values())))} on 16-bit bases",
        {
            "holds": "PEFT casts adapters to fp32 whatever the base is, unless autocast_adapter_dtype is switched off; products may "
            "still run in 16 bits.",
            "does not hold": f"Adapters in {said} need autocast_adapter_dtype=False, which the guide's snippet does not pass; and "
            f"its own section on the architecture says full precision.",
        },
        {"said": said, "switched_off": ", ".join(switched), "version": libraries.versions("peft")}
        | {f"on {k}": v for k, v in made.items()},
    )


@CLAIMS.claim("guide-mechanism-09", FORWARD, "x → Quantized W (frozen) + BA (LoRA adapters) → y", "formula")
def forward(quote: str) -> Finding:
    rank, alpha = (int(REFERENCES[f"guide.{k}"].text) for k in ("rank", "alpha"))
    said = next((n for n in ("α/r", "alpha/r") if n in quote), "")
    scales = {f"alpha {a}, rank {r}": libraries.adapter_scale(r, a) for r, a in ((rank, alpha), (16, 32), (8, 16))}
    own = scales[f"alpha {alpha}, rank {rank}"]
    return finding(
        decide(bool(said), assuming=abs(own - 1) < 1e-4),
        "PEFT adds BAx times " + ", ".join(f"{scale:.2f} at {case}" for case, scale in scales.items()),
        {
            "holds under an assumption": "The scale alpha / r is left out: it is 1 at the guide's own alpha and rank, and 2 at the "
            "study's. W is dequantized before it is multiplied, "
            "and in training x passes a dropout before A.",
            "holds": "With the scale it is what the layer computes, on the dequantized W.",
            "does not hold": "The scale alpha / r is missing, and it is not 1 at the guide's own settings.",
        },
        {f"scale at {case}": scale for case, scale in scales.items()},
    )


@CLAIMS.claim("guide-mechanism-10", FORWARD, "Only `BA` is updated during fine-tuning", "mechanism")
def updated(quote: str) -> Finding:
    names = libraries.trained_names()
    return finding(
        decide(set(names) == {"lora_A", "lora_B"}),
        f"two AdamW steps change {' and '.join(names)}",
        {
            "holds": "And so it is with PEFT: of a tiny model nothing else changed. B and A are what is updated; their product is "
            "never formed in training."
        },
        {"changed": ", ".join(names)},
    )


@CLAIMS.claim("guide-mechanism-11", "What is QLoRA?", "the core model is compressed and frozen", "mechanism")
def compressed(quote: str) -> Finding:
    shares = {name: shape(name).linear_weights / shape(name).parameters.total for name in ("llama3.1-8b", "tinyllama-1.1b", "smollm2-135m")}
    return finding(
        decide(min(shares.values()) > 0.999, assuming=min(shares.values()) > 0.5),
        "share of parameters in 4 bits: " + ", ".join(f"{name} {100 * share:.1f} %" for name, share in shares.items()),
        "Frozen is all of it; compressed are the linear layers alone. Embeddings, head and norms stay in 16 or 32 bits, which "
        "weighs more the smaller the model is.",
        {name: share for name, share in shares.items()},
    )


@CLAIMS.claim(
    "guide-mechanism-12", "Why Use QLoRA? Key Advantages", "Swap in task-specific adapters without touching the base model", "mechanism"
)
def swap(quote: str) -> Finding:
    found = libraries.swapped()
    return finding(
        decide(all(found.values())),
        "one tiny base with two adapters of PEFT: " + ", ".join(f"{what}: {'yes' if so else 'no'}" for what, so in found.items()),
        {
            "holds": "As long as adapters are not merged. One trained on a 4-bit base belongs to that base: on the 16-bit one it "
            "loses a part of what it learned."
        },
        {what: int(so) for what, so in found.items()} | {"version": libraries.versions("peft")},
    )
