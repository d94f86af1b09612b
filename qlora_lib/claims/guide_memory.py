"""The guide on memory: sizes of models and adapters, what double quantization saves, which card is enough.

How it works: bytes come from qlora_lib.cost by the models' widths. The guide's own setting is that of its two snippets:
Llama-3.1-8B, rank 16 on the attention's four projections, 2048 tokens.
"""

from functools import cache

from qlora_lib.claims import measured, sources
from qlora_lib.claims.checks import GB, GIB, figures
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.cost.memory import quantized_bytes, resident, state_bytes, trained_tensors
from qlora_lib.cost.models import shape_of
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.published import REFERENCES

CLAIMS = Claims("guide")
ADVANTAGES, TABLE = "Why Use QLoRA? Key Advantages", "QLoRA vs. LoRA: Which One to Choose?"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


def shape(name: str) -> ModelShape:
    return shape_of(name)[0]


def own_setting(method: str = "qlora", model: str = "llama3.1-8b", **more) -> Workload:
    """A step of the guide's snippets, one sequence at a time, in bf16 on a GPU."""
    settings = dict(
        batch=1, length=2048, rank=int(_reference("rank")), targets=ATTENTION, dropout=float(_reference("dropout")),
        dtype="bf16", device="cuda", checkpointing=True,
    )  # fmt: skip
    return Workload(shape(model), method, **settings | more)


def _reference(key: str) -> str:
    return REFERENCES[f"guide.{key}"].text


@cache
def bits_a_parameter(double_quant: bool) -> float:
    """Of a large NF4 matrix with its scales, look-up tables left out."""
    side = 2**14
    codes, beside = quantized_bytes(side * side, side, "nf4", double_quant)
    tables = (16 + (257 if double_quant else 0)) * 4
    return 8 * (codes + beside - tables) / side**2


def deployed_bytes(model: str, quantization: str, double_quant: bool = True) -> int:
    """Weights as they are loaded for use: what is not quantized in 16 bits, no adapters."""
    method = "lora" if quantization == "none" else "qlora"
    found = resident(
        Workload(shape(model), method, 1, 1, quantization=quantization, double_quant=double_quant, dtype="bf16", weight_dtype="bf16")
    )
    return found.weights + found.quantization_constants


@CLAIMS.claim("guide-memory-01", ADVANTAGES, "Train 65B+ models on <16GB GPUs", "number")
def largest(quote: str) -> Finding:
    billions, limit = (f.value for f in figures(quote))
    work = Workload(shape("llama-65b"), "qlora", 1, 512, rank=64, dtype="bf16", weight_dtype="bf16", optimizer="adamw_8bit")
    kept, trained = resident(work), trained_tensors(work)
    weights = kept.weights + kept.quantization_constants
    fixed = weights + kept.adapters + sum(trained) * 4 + state_bytes(trained, 8)  # gradients in fp32, 8-bit AdamW
    share = billions * 1e9 / work.shape.parameters.total
    return finding(
        decide(False, assuming=fixed * share <= limit * GIB),
        f"{weights * share / GB:.1f} GB of NF4 weights alone for {billions:g}B; {fixed * share / GB:.1f} GB with adapters of rank "
        f"64, their gradients and 8-bit AdamW",
        {
            "does not hold": f"The quantized weights alone are {weights * share / limit / GB:.1f} times {limit:g} GB, before any "
            f"activation. The QLoRA paper "
            f"itself claims less than {sources.PAPER_BELOW_GB[65]} GB for 65B.",
            "holds under an assumption": "Weights, adapters, gradients and optimizer states fit; the activations must too, which a "
            "short length and checkpointing decide.",
        },
        {
            "billions": billions,
            "limit_gb": limit,
            "weights_gb": weights * share / GB,
            "fixed_gb": fixed * share / GB,
            "paper_gb": sources.PAPER_BELOW_GB[65],
        },
    )


LAPTOP_GB = 16  # memory of a common laptop


@CLAIMS.claim("guide-memory-02", ADVANTAGES, "Enables training on consumer laptops", "meaning")
def laptops(quote: str) -> Finding:
    here = measured.arm("qlora").train.peak_memory_bytes / GB
    weights = {name: deployed_bytes(name, "nf4") / GB for name in ("smollm2-135m", "llama3.1-8b", "llama-65b")}
    fits = {name: size < LAPTOP_GB for name, size in weights.items()}
    return finding(
        decide(all(fits.values()), assuming=any(fits.values()) and here < LAPTOP_GB),
        "NF4 weights: "
        + ", ".join(f"{name} {size:.1f} GB" for name, size in weights.items())
        + f"; a QLoRA training of the first on a CPU peaked at {here:.1f} GB of process memory",
        f"It depends on the model, which is not said here: of {LAPTOP_GB} GB the weights of 8B leave most, those of 65B do not fit.",
        {"laptop_gb": LAPTOP_GB, "measured_peak_gb": here} | {f"{name}_gb": size for name, size in weights.items()},
    )


def _adapter_cases() -> dict[str, int]:
    """Parameters of adapters, the guide's own setting first."""
    small, large = shape("llama3.1-8b"), shape("llama-65b")
    return {
        "8B, r=16, attention": small.lora_parameters(16, ATTENTION),
        "8B, r=16, all linear": small.lora_parameters(16),
        "8B, r=64, all linear": small.lora_parameters(64),
        "65B, r=16, all linear": large.lora_parameters(16),
        "65B, r=64, all linear": large.lora_parameters(64),
    }


@CLAIMS.claim("guide-memory-03", ADVANTAGES, "Just ~1–2GB of adapter weights", "number")
def adapters(quote: str) -> Finding:
    low, high = (f.value for f in figures(quote))
    sizes = {f"{case}, {8 * width} bit": n * width / GB for case, n in _adapter_cases().items() for width in (2, 4)}
    inside = [case for case, size in sizes.items() if low <= size <= high]
    own = max(size for case, size in sizes.items() if case.startswith("8B, r=16, attention"))
    return finding(
        decide(low <= own <= high, assuming=bool(inside)),
        f"{1000 * own:.0f} MB at most for the guide's own adapters; in the range: {'; '.join(inside) or 'none'}",
        {
            "holds under an assumption": f"Only with {' or '.join(inside)}. The guide's own code makes adapters {low / own:.0f} to "
            f"{high / own:.0f} times smaller than it says.",
            "does not hold": f"No adapter of the cases tried, from 8B to 65B at ranks 16 and 64, has {low:g} to {high:g} GB; the "
            f"guide's own has {1000 * own:.0f} MB.",
        },
        {"low_gb": low, "high_gb": high} | {f"{case} GB": size for case, size in sizes.items()},
    )


@CLAIMS.claim("guide-memory-04", ADVANTAGES, "not hundreds of GBs", "number")
def whole_model(quote: str) -> Finding:
    least = {"hundreds": 100, "tens": 10}[quote.split()[1]]
    own = shape("llama3.1-8b").parameters.total * 2 / GB
    large = {f"65B, {8 * width} bit": shape("llama-65b").parameters.total * width / GB for width in (2, 4)}
    return finding(
        decide(own >= least, assuming=max(large.values()) >= least),
        f"{own:.1f} GB for Llama-3.1-8B in 16 bits; " + ", ".join(f"{size:.0f} GB for {case}" for case, size in large.items()),
        "True of models as large as 65B; a copy of the 8B model that the guide trains has a tenth of that."
        if own < least
        else "The model of the guide's own code is as large.",
        {"least_gb": least, "8B, 16 bit GB": own} | {f"{case} GB": size for case, size in large.items()},
    )


@CLAIMS.claim("guide-memory-05", TABLE, "Deployment Footprint ... 20–200GB ... 2–8GB", "consistency")
def footprint(quote: str) -> Finding:
    a, b, c, d = (f.value for f in figures(quote))
    bits = bits_a_parameter(True)
    lora, qlora = (a / 2, b / 2), (8 * c / bits, 8 * d / bits)  # billions of parameters
    low, high = max(lora[0], qlora[0]), min(lora[1], qlora[1])
    sizes = {
        f"{name} {kind}": deployed_bytes(model, kind) / GB
        for name, model in (("8B", "llama3.1-8b"), ("65B", "llama-65b"))
        for kind in ("none", "nf4")
    }
    ratio = 16 / bits
    return finding(
        decide(abs(a / c / ratio - 1) < 0.1 and abs(b / d / ratio - 1) < 0.1, assuming=low < high),
        f"16-bit weights are {ratio:.2f} times NF4's; the row says {a / c:.0f} and {b / d:.0f} times. 8B: {sizes['8B none']:.1f} "
        f"against {sizes['8B nf4']:.1f} GB, "
        f"65B: {sizes['65B none']:.1f} against {sizes['65B nf4']:.1f} GB",
        {
            "holds under an assumption": f"Both columns are true of the same model only from {low:.0f} to {high:.0f} billion "
            f"parameters. The guide's own 8B model is below "
            "the first range, and 65B above the second.",
            "does not hold": "No model is in both ranges.",
            "holds": "The ranges are those of the same models.",
        },
        {"ratio": ratio, "claimed_ratio_low": a / c, "claimed_ratio_high": b / d, "from_billions": low, "to_billions": high}
        | {f"{k} GB": v for k, v in sizes.items()},
    )


@CLAIMS.claim("guide-memory-06", TABLE, "Ample VRAM (24GB+) ... 8–16GB VRAM scenarios", "number")
def cards(quote: str) -> Finding:
    from qlora_lib.cost.peak import overhead, step_memory

    def gib(work: Workload) -> float:
        return (step_memory(work).peak_bytes + overhead(work)[0]) / GIB

    lora_card, low, high = (f.value for f in figures(quote))
    need = {
        "8B LoRA": gib(own_setting("lora")), "8B QLoRA": gib(own_setting("qlora")),
        "1.1B LoRA": gib(own_setting("lora", "tinyllama-1.1b")), "65B QLoRA": gib(own_setting("qlora", "llama-65b")),
    }  # fmt: skip
    own = need["8B LoRA"] < lora_card and need["8B LoRA"] > high and need["8B QLoRA"] < high
    always = own and need["1.1B LoRA"] > high and need["65B QLoRA"] < high and need["8B QLoRA"] < low
    return finding(
        decide(always, assuming=own),
        "predicted peak with the guide's settings: " + ", ".join(f"{name} {size:.1f} GiB" for name, size in need.items()),
        {
            "holds under an assumption": f"For 8B: 16-bit LoRA needs more than {high:g} GB and fits {lora_card:g}; QLoRA fits "
            f"{high:g} GB, {'and' if need['8B QLoRA'] < low else 'though not'} {low:g} GB "
            "at the guide's 2048 tokens. It is a matter of the model: "
            f"16-bit LoRA of 1.1B fits {low:g} GB, and QLoRA of 65B does not fit {lora_card:g}.",
            "does not hold": f"For the guide's own 8B model LoRA and QLoRA do not part between {high:g} and {lora_card:g} GB.",
        },
        {"lora_gb": lora_card, "low_gb": low, "high_gb": high} | {f"{name} GiB": size for name, size in need.items()},
    )


@CLAIMS.claim("guide-memory-07", "What is QLoRA?", "you update a few million LoRA adapter weights", "number")
def few_million(quote: str) -> Finding:
    most = {"a few million": 10e6, "millions": 100e6}[next(w for w in ("a few million", "millions") if w in quote)]
    cases = _adapter_cases() | {
        "1.1B, r=16, all linear": shape("tinyllama-1.1b").lora_parameters(16),
        "8B, r=4, attention": shape("llama3.1-8b").lora_parameters(4, ATTENTION),
    }
    own = cases["8B, r=16, attention"]
    return finding(
        decide(own < most, assuming=min(cases.values()) < most),
        "; ".join(f"{case}: {n / 1e6:.1f} M" for case, n in cases.items()),
        f"A few million is true of small ranks; the guide's own adapters have {own / 1e6:.1f} million, and rank 64 on 65B has "
        f"{cases['65B, r=64, all linear'] / 1e6:.0f} million."
        if own >= most
        else "As many as the guide's own adapters have.",
        {f"{case} parameters": n for case, n in cases.items()},
    )


# --- double quantization ------------------------------------------------------------------------------


@cache
def saved_shares() -> dict[str, float]:
    """What double quantization saves, in percent of what."""
    plain, double = bits_a_parameter(False), bits_a_parameter(True)
    sizes = [deployed_bytes("llama3.1-8b", "nf4", dq) for dq in (False, True)]
    before, after = sources.DOUBLE_QUANTIZED_GB
    return {
        "the 16-bit weights": 100 * (plain - double) / 16,
        "the NF4 weights and their scales": 100 * (plain - double) / plain,
        "Llama-3.1-8B in NF4, embeddings in 16 bits": 100 * (1 - sizes[1] / sizes[0]),
        "a training's peak as published by litgpt": 100 * (1 - after / before),
    }


@CLAIMS.claim("guide-memory-09", "Technical Insights, Double Quantization", "Saves 0.4%–3% additional memory", "percentage")
@CLAIMS.claim(
    "guide-memory-08", "Architectural Breakdown", "Compresses quantization constants for further reduction (~0.4–3%)", "percentage"
)
def double_quantization(quote: str) -> Finding:
    low, high = (f.value for f in figures(quote)[-2:])
    shares = saved_shares()
    inside = [of for of, share in shares.items() if low <= share <= high]
    saved = bits_a_parameter(False) - bits_a_parameter(True)
    return finding(
        decide(len(inside) == len(shares), assuming=bool(inside)),
        f"{saved:.3f} bit a parameter: " + ", ".join(f"{share:.1f} % of {of}" for of, share in shares.items()),
        {
            "holds under an assumption": f"Of what the share is taken is not said: it holds of {' and of '.join(inside)}. The "
            f"paper's own figures are {saved:.2f} bit a parameter, "
            f"{saved * 65 / 8:.1f} GB for 65B, and no percentages.",
            "does not hold": "It is so of none of the sizes that the share could be taken of.",
            "holds": "It is so of every size that the share could be taken of.",
        },
        {"low": low, "high": high, "bits_saved": saved, "gb_saved_of_65B": saved * 65 / 8}
        | {f"% of {of}": share for of, share in shares.items()},
    )
