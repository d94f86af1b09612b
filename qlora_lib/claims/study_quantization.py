"""The study on 4-bit weights: section 2.2 and the hardware that they need.

How it works: bits are counted with the quantization constants (qlora_lib.quantization); what a formula or a scale does is
tried on normal weights (experiments.py).
"""

from qlora_lib.claims import experiments
from qlora_lib.claims.checks import MIB, about, agree, cell, figure, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.cost.memory import nf4_bytes

CLAIMS = Claims("study")


def bits(double_quant: bool) -> float:
    """Bits of an NF4 parameter with its constants."""
    from qlora_lib.quantization import bits_per_parameter

    return bits_per_parameter("nf4", experiments.BLOCK, double_quant)


def four_bit_base() -> int:
    """Bytes of TinyLlama as bitsandbytes keeps it: linear layers in NF4 with double quantization, the rest in 16 bits."""
    shape = tinyllama()
    linear = shape.num_layers * sum(nf4_bytes(i * o) for i, o in shape.linear_modules.values())
    return linear + 2 * (shape.parameters.total - shape.linear_weights)


@CLAIMS.claim("study-nf4-01", "2.2.1", "Standard Precision (FP16): 2 bytes per parameter", "number")
def half(quote: str) -> Finding:
    import torch

    right = torch.finfo(torch.float16).bits / 8
    return finding(
        decide(agree(figure(quote), right)), f"{right:g} bytes", {HOLDS: "16 bits.", FAILS: f"It is {right:g}."}, {"bytes": right}
    )


@CLAIMS.claim("study-nf4-02", "2.2.1", "4-bit Quantization: 0.5 bytes per parameter", "number")
def codes(quote: str) -> Finding:
    printed = figure(quote, 1).value
    plain, doubled = bits(False) / 8, bits(True) / 8
    return finding(
        decide(printed in (plain, doubled), assuming=printed == 4 / 8),
        f"{doubled:.4f} bytes with double quantization, {plain:.4f} without",
        {ASSUMED: f"The code alone. Every block of {experiments.BLOCK} also stores its scale: {8 * doubled:.3f} bits a parameter with "
                  f"double quantization, {8 * plain:.1f} without.",
         FAILS: f"It is {doubled:.4f} with double quantization and {plain:.4f} without."},
        {"bits, double quantization": 8 * doubled, "bits, one level": 8 * plain},
    )  # fmt: skip


@CLAIMS.claim("study-nf4-03", "2.2.1", r"Memory Reduction: $\sim 75\%$ reduction in base model size", "percentage")
def reduction(quote: str) -> Finding:
    printed = figure(quote).value
    full, four = 2 * tinyllama().parameters.total, four_bit_base()
    whole = 100 * (1 - four / full)
    linear = 100 * (1 - bits(True) / 16)
    return finding(
        decide(about(printed, whole)),
        f"{whole:.1f} % for TinyLlama's base, {linear:.1f} % for its linear layers alone",
        {HOLDS: "Linear layers and the rest together.",
         FAILS: f"It is {whole:.1f} % of this base: {100 * (1 - tinyllama().linear_weights / tinyllama().parameters.total):.0f} % of its "
                f"parameters (embedding, head, norms) stay in 16 bits. The linear layers alone shrink by {linear:.1f} %, constants "
                "included."},
        {"whole base": whole, "linear layers": linear, "MiB in 16 bits": full / MIB, "MiB in 4 bits": four / MIB},
    )  # fmt: skip


@CLAIMS.claim(
    "study-nf4-04", "2.2.1", r"\text{quantized_weight} = \text{round} \left(\frac{\text{weight} - \min}{\text{scale}} \right)", "formula"
)
def formula(quote: str) -> Finding:
    found = experiments.schemes()
    scheme = found["int4-affine" if r"\min" in quote else "nf4"]
    affine = found["int4-affine"]
    return finding(
        decide(scheme.equal_to_nf4 == 1),
        f"on normal weights the formula gives NF4's value for {100 * affine.equal_to_nf4:.1f} % of them",
        {HOLDS: "The nearest of NF4's levels.",
         FAILS: "This is affine INT4: sixteen even steps between a block's minimum and maximum. NF4 divides a block by its largest "
                "magnitude and takes the nearest of sixteen uneven levels, the quantiles of a normal distribution."},
        {"share of equal values": affine.equal_to_nf4, "squared error of affine INT4 over the variance": affine.error,
         "squared error of NF4 over the variance": found["nf4"].error},
    )  # fmt: skip


@CLAIMS.claim("study-nf4-05", "2.2.1", "scale is computed from the distribution of weights to minimize information loss", "mechanism")
def scale(quote: str) -> Finding:
    found = experiments.scale()
    less = 100 * (1 - found.best_error / found.error)
    least = found.best_factor == 1
    return finding(
        decide(found.is_absmax and least if "minimize" in quote else found.is_absmax),
        f"the scale is a block's largest magnitude; {found.best_factor:.2f} times that has {less:.1f} % less squared error",
        {HOLDS: "The scale is the largest magnitude of its block.",
         FAILS: "The scale is the largest magnitude in its block of 64, and nothing is minimized: it keeps the largest weight from "
                f"being clipped. On normal weights {found.best_factor:.2f} times it has {less:.1f} % less squared error."},
        {"best factor": found.best_factor, "error at absmax": found.error, "least error": found.best_error},
    )  # fmt: skip


@CLAIMS.claim("study-nf4-06", "2.2.1", "NormalFloat4, an information-theoretically optimal 4-bit data type", "mechanism")
def optimal(quote: str) -> Finding:
    use = experiments.code_use()
    less = 100 * (1 - use.best_error / use.error)
    return finding(
        decide(use.entropy_bits > 3.999 and less < 0.1),
        f"{use.entropy_bits:.3f} of 4 bits used on normal weights in blocks of {experiments.BLOCK}; fitted levels have "
        f"{less:.1f} % less squared error",
        {FAILS: "The QLoRA paper says so, meaning that all sixteen codes occur equally often. They do not: on normal weights in blocks of "
                f"{experiments.BLOCK} a code takes {100 * use.rarest:.1f} to {100 * use.commonest:.1f} %, since the largest of a block "
                f"is always 1 or -1. Nor is the error least: levels fitted to such blocks have {less:.1f} % less. (Yoshida 2023: \"NF4 Isn't "
                "Information Theoretically Optimal\".)"},
        {"entropy, bits": use.entropy_bits, "rarest code": use.rarest, "commonest code": use.commonest, "error": use.error,
         "error of fitted levels": use.best_error},
    )  # fmt: skip


@CLAIMS.claim(
    "study-nf4-07", "2.2.2", "Quantize the quantization constants themselves ... This approach further reduces memory overhead", "mechanism"
)
def double_quantization(quote: str) -> Finding:
    before, after = bits(False) - 4, bits(True) - 4
    saved = (before - after) / 8 * tinyllama().linear_weights / MIB
    return finding(
        decide(after < before and "reduces" in quote),
        f"constants take {after:.3f} bits a parameter instead of {before:.3f}",
        {HOLDS: f"It saves {before - after:.3f} bits a parameter: {saved:.0f} MiB of TinyLlama, "
                f"{100 * (1 - (4 + after) / (4 + before)):.1f} % of its 4-bit weights."},
        {"bits before": before, "bits after": after, "MiB saved": saved},
    )  # fmt: skip


@CLAIMS.claim("study-nf4-08", "3.3.1, table 4, with table 7", "Compute Dtype FP16", "consistency")
def compute_dtype(quote: str) -> Finding:
    from qlora_lib.cost.devices import GPUS

    name = quote.split()[-1].lower()
    card = GPUS["T4"]
    peak = getattr(card, name, None)
    return finding(
        decide(peak is not None and peak > card.fp32),
        f"a T4 multiplies {name} at {(peak or 0) / 1e12:g} TFLOP/s; it has no bf16 units",
        {HOLDS: "The only 16-bit type whose products a T4's tensor cores know; it has no bf16.",
         FAILS: f"A T4 has no fast products in {name}."},
        {"fp16 TFLOP/s": card.fp16 / 1e12, "fp32 TFLOP/s": card.fp32 / 1e12},
    )  # fmt: skip


@CLAIMS.claim(
    "study-nf4-09", "7.2", "Hardware Support: Requires GPU support for 4-bit quantization (NVIDIA preferred)", "mechanism"
)
def hardware(quote: str) -> Finding:
    works, version = experiments.four_bits_on_a_cpu()
    return finding(
        decide(not works if "Requires" in quote else works),
        f"bitsandbytes {version} multiplies by an NF4 weight on this CPU" if works else "it does not work on this CPU",
        {HOLDS: "4-bit layers need a GPU with this version of bitsandbytes.",
         FAILS: f"bitsandbytes {version} runs 4-bit layers on a CPU, forward and backward. On a GPU no special units are needed "
                "either: weights are dequantized, and the products are 16-bit ones."},
        {"bitsandbytes": version, "works on a CPU": str(works)},
    )  # fmt: skip


@CLAIMS.claim("study-nf4-10", "3.3.1, table 4, with table 5", "Double Quantization Enabled", "consistency")
def constants_counted(quote: str) -> Finding:
    base = cell(5, "base", "qlora") * MIB * 8 / tinyllama().parameters.total
    wanted = bits("Enabled" in quote)
    return finding(
        decide(agree(base, wanted)),
        f"table 5's 4-bit base has {base.value:.3f} bits for each parameter; with double quantization a quantized one takes {wanted:.3f}",
        {FAILS: f"Table 5 leaves no byte for quantization constants, of either kind: {base.value:.3f} bits a parameter. So its sizes "
                f"were not measured on a loaded model, where a quantized parameter takes {wanted:.3f} bits."},
        {"bits a parameter in table 5": base.value, "bits of a quantized parameter": wanted},
    )  # fmt: skip
