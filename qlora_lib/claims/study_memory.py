"""The study on memory: tables 5 and 12, sections 4.1 and 6.2, and what its settings need on its card.

How it works: bytes are counted tensor by tensor (qlora_lib.cost.memory). The study's sizes are of stored weights;
training also holds gradients and optimizer states, which are counted exactly, and activations, which are predicted for
the study's settings (qlora_lib.cost.peak).
"""

import re

from qlora_lib.claims import experiments
from qlora_lib.claims.checks import GIB, MB, MIB, agree, cell, figure, figures, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, Claims, Finding, decide, finding
from qlora_lib.claims.study_lora import adapter_parameters, printed_rank
from qlora_lib.claims.study_quantization import bits, four_bit_base
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.memory import FLOAT, adapter_tensors, resident, state_bytes, weight_tensors
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.cost.workload import Workload
from qlora_lib.published import published

CLAIMS = Claims("study")
CARD = GPUS["T4"]


def full_training_bytes() -> int:
    """Weights and gradients in fp32 and AdamW's two averages: what mixed precision with FP16 products holds."""
    tensors = weight_tensors(tinyllama())
    return 2 * FLOAT * sum(tensors) + state_bytes(tensors)


def half_training_bytes() -> int:
    """The same with everything in 16 bits."""
    return 4 * 2 * tinyllama().parameters.total


def qlora_training_bytes(shape: ModelShape | None = None) -> int:
    """The 4-bit base as PEFT prepares it (what is not quantized in fp32), adapters and their gradients in fp32, 8-bit AdamW."""
    work = workload("qlora", shape=shape)
    tensors = adapter_tensors(work.shape, work.rank)
    return resident(work).total + FLOAT * sum(tensors) + state_bytes(tensors, bits=8)


def workload(method: str, weight_dtype: str | None = None, checkpointing: bool = False, shape: ModelShape | None = None) -> Workload:
    """A step with the study's settings on a GPU; `weight_dtype` of the weights that are not quantized."""
    column = "standard" if method == "full" else "qlora"
    return Workload(
        shape or tinyllama(), method, int(cell(3, "training batch size", column).value), int(cell(1, "max sequence length").value),
        int(cell(3, "gradient accumulation steps", column).value), printed_rank(), dropout=cell(4, "lora dropout").value,
        dtype="fp16", weight_dtype=weight_dtype, optimizer=published(3, "optimizer", column).text.lower(),
        checkpointing=checkpointing, device="cuda",
    )  # fmt: skip


def peak(method: str, **more) -> int:
    """Bytes at the highest moment of a step with the study's settings, predicted."""
    return step_memory(workload(method, **more)).peak_bytes


@CLAIMS.claim("study-memory-01", "4.1, table 5", "Standard Model (FP16) 2,098.18", "number")
def half_size(quote: str) -> Finding:
    size = 2 * tinyllama().parameters.total
    printed = figure(quote)
    return finding(
        decide(agree(printed, size / MB), assuming=agree(printed, size / MIB)),
        f"{size:,} bytes: {size / MIB:,.2f} MiB or {size / MB:,.2f} MB",
        {ASSUMED: f"Two bytes a parameter, if MB means MiB (2^20 bytes); in MB of 10^6 bytes it is {size / MB:,.2f}.",
         FAILS: f"Two bytes a parameter are {size / MIB:,.2f} MiB or {size / MB:,.2f} MB."},
        {"bytes": size, "MiB": size / MIB, "MB": size / MB},
    )  # fmt: skip


@CLAIMS.claim("study-memory-02", "4.1, table 5", "QLoRA Model Base 4-bit 524.54 MB", "number")
def base_size(quote: str) -> Finding:
    right = four_bit_base()
    total, linear = tinyllama().parameters.total, tinyllama().linear_weights
    quarter = total / 2 / MIB
    printed = figure(quote, 1)
    return finding(
        decide(agree(printed, right / MIB) or agree(printed, right / MB)),
        f"{right / MIB:.2f} MiB as bitsandbytes keeps it; half a byte for every parameter would be {quarter:.2f} MiB",
        {HOLDS: "Linear layers in NF4 with their constants, the rest in 16 bits.",
         FAILS: f"The print is half a byte times all {total:,} parameters. Only the {linear:,} of the linear layers are quantized, and "
                f"their constants take room too: {right / MIB:.2f} MiB ({right / MB:.2f} MB)."},
        {"bytes": right, "MiB": right / MIB, "MB": right / MB, "half a byte a parameter, MiB": quarter, "quantized parameters": linear},
    )  # fmt: skip


@CLAIMS.claim("study-memory-03", "4.1, table 5", "LoRA Adapters 24.06 MB", "number")
def adapter_size(quote: str) -> Finding:
    n = adapter_parameters()
    upcast = experiments.default_of("get_peft_model", "autocast_adapter_dtype")
    kept = n * (4 if upcast else 2)
    printed = figure(quote)
    return finding(
        decide(agree(printed, kept / MIB), assuming=agree(printed, 2 * n / MIB)),
        f"{2 * n / MIB:.2f} MiB in 16 bits, {4 * n / MIB:.2f} MiB in 32",
        {HOLDS: "As PEFT keeps adapters.",
         ASSUMED: f"Two bytes a parameter, and MiB. PEFT keeps adapters in 32 bits unless told otherwise, which FP16 training with a "
                  f"gradient scaler also needs: {kept / MIB:.2f} MiB.",
         FAILS: f"It is {2 * n / MIB:.2f} MiB in 16 bits and {4 * n / MIB:.2f} in 32."},
        {"parameters": n, "MiB in 16 bits": 2 * n / MIB, "MiB in 32 bits": 4 * n / MIB, "bytes a parameter printed": (printed * MIB / n).value},
    )  # fmt: skip


@CLAIMS.claim("study-memory-04", "4.1, table 5", "Base 4-bit 524.54 MB LoRA Adapters 24.06 MB Total 548.61 MB", "consistency")
def total_size(quote: str) -> Finding:
    _, base, adapters, total = figures(quote)
    right = (four_bit_base() + 2 * adapter_parameters()) / MIB
    return finding(
        decide(agree(total, base + adapters)),
        f"{(base + adapters).value:.2f} from the rounded parts",
        {HOLDS: "The parts add up, to rounding. What a loaded model takes, with 16-bit adapters, is another figure: "
                f"{right:.2f} MiB.",
         FAILS: "The parts do not add up."},
        {"sum": (base + adapters).value, "MiB of a loaded model": right},
    )  # fmt: skip


@CLAIMS.claim("study-memory-05", "4.1", "3.82x compression ratio, reducing memory requirements from 2,098.18 MB to 548.61 MB", "consistency")
def ratio(quote: str) -> Finding:
    ratio, before, after = figures(quote)
    return finding(
        decide(agree(ratio, before / after)), f"{(before / after).value:.3f}",
        {HOLDS: "The quotient of the two printed sizes.", FAILS: f"The quotient is {(before / after).value:.2f}."},
        {"ratio": (before / after).value},
    )  # fmt: skip


@CLAIMS.claim("study-memory-06", "abstract", "QLoRA achieves a 3.82x compression ratio", "meaning")
def true_ratio(quote: str) -> Finding:
    full, four = 2 * tinyllama().parameters.total, four_bit_base()
    adapters = 2 * adapter_parameters()
    right, base_alone = full / (four + adapters), full / four
    printed = figure(quote)
    return finding(
        decide(agree(printed, right) or agree(printed, base_alone)),
        f"{right:.2f} with the adapters in 16 bits, {base_alone:.2f} without adapters",
        {HOLDS: "Of the weights as they are kept.",
         FAILS: f"Of the weights as they are kept the ratio is {right:.2f}: embedding, head and norms stay in 16 bits, and constants "
                f"take {bits(True) - 4:.3f} bits a quantized parameter. A ratio of 3.82 needs every parameter in exactly four bits."},
        {"MiB in 16 bits": full / MIB, "MiB in 4 bits": four / MIB, "MiB of adapters": adapters / MIB, "ratio": right},
    )  # fmt: skip


@CLAIMS.claim("study-memory-07", "4.1", "from 2,098.18 MB to 548.61 MB—a 73.9% reduction", "percentage")
def reduction(quote: str) -> Finding:
    before, after, percent = figures(quote)
    right = 100 * (1 - after / before)
    return finding(
        decide(agree(percent, right)), f"{right.value:.2f} %",
        {HOLDS: "Right for the two printed sizes, the second of which is too small.", FAILS: f"It is {right.value:.1f} %."},
        {"reduction": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-memory-08", "4.4", "this trade-off is acceptable given the 73.9% memory savings achieved", "meaning")
def memory_of_training(quote: str) -> Finding:
    full, qlora = full_training_bytes(), qlora_training_bytes()
    training = 100 * (1 - qlora / full)
    stored = 100 * (1 - (four_bit_base() + 2 * adapter_parameters()) / (2 * tinyllama().parameters.total))
    peaks = [peak("full"), peak("qlora"), peak("qlora", checkpointing=True)]
    printed = figure(quote)
    return finding(
        decide(any(agree(printed, right) for right in (stored, training, 100 * (1 - peaks[1] / peaks[0])))),
        f"{stored:.1f} % of the stored weights, {training:.1f} % of what training holds besides activations",
        {HOLDS: "As counted.",
         FAILS: f"Of the stored weights QLoRA saves {stored:.1f} %. Of what training holds besides activations it saves more: "
                f"{training:.1f} %, {qlora / GIB:.2f} GiB against {full / GIB:.2f}, because gradients and AdamW's averages are the "
                f"adapters' alone. The study printed no memory of training; at its settings a peak of {peaks[0] / GIB:.1f} and {peaks[1] / GIB:.1f} GiB "
                f"is predicted, or {peaks[2] / GIB:.1f} with gradient checkpointing."},
        {"GiB, full": full / GIB, "GiB, QLoRA": qlora / GIB, "percent of training": training, "percent of weights": stored,
         "GiB at the peak, full, predicted": peaks[0] / GIB, "GiB at the peak, QLoRA, predicted": peaks[1] / GIB,
         "GiB at the peak, QLoRA with checkpointing, predicted": peaks[2] / GIB},
    )  # fmt: skip


@CLAIMS.claim(
    "study-memory-09", "3.3, table 3, with table 7", "Optimizer AdamW ... Precision FP16 ... (using T4 in Colab)", "consistency"
)
def fits_the_card(quote: str) -> Finding:
    name = re.search(r"\(using (.+?) in", quote)[1]
    memory = gpu_card(name).usable_bytes
    mixed, half = full_training_bytes(), half_training_bytes()
    peaks = {"mixed": peak("full"), "half": peak("full", weight_dtype="fp16")}
    adam = experiments.half_precision_adam()
    return finding(
        decide(peaks["mixed"] <= memory, assuming=peaks["half"] <= memory),
        f"{mixed / GIB:.2f} GiB in mixed precision and {half / GIB:.2f} GiB with everything in 16 bits, before activations; with them "
        f"{peaks['mixed'] / GIB:.1f} and {peaks['half'] / GIB:.1f} (predicted)",
        {HOLDS: f"Mixed precision needs {peaks['mixed'] / GIB:.1f} GiB with activations, which this card has.",
         ASSUMED: f"Full fine-tuning fits a {name} only if weights, gradients and both averages of AdamW are FP16: {half / GIB:.2f} GiB; "
                  f"usual mixed precision needs {mixed / GIB:.2f} of {memory / GIB:.1f} GiB, without activations. But in FP16 the second average of "
                  f"a gradient of 0.001 is 0: torch's default AdamW then leaves {100 * adam.finite:.0f} % of the weights finite after one "
                  "step, so what was trained is not what is printed, or not soundly.",
         FAILS: f"Neither {peaks['mixed'] / GIB:.1f} GiB nor {peaks['half'] / GIB:.1f} GiB fits."},
        {"GiB, mixed precision": mixed / GIB, "GiB, all FP16": half / GIB, "GiB of the card, as torch counts": memory / GIB,
         "GiB at the peak, mixed, predicted": peaks["mixed"] / GIB, "GiB at the peak, FP16, predicted": peaks["half"] / GIB,
         "finite weights after a step": adam.finite, "averages that are 0": adam.vanished, "fused update over fp32's": adam.fused_step},
    )  # fmt: skip


@CLAIMS.claim("study-memory-10", "6.2", "Adam states typically 2x parameter size", "number")
def adam_states(quote: str) -> Finding:
    tensors = weight_tensors(tinyllama())
    states = state_bytes(tensors)
    of_fp32, of_fp16 = states / (4 * sum(tensors)), states / (2 * sum(tensors))
    times = figure(quote)
    return finding(
        decide(agree(times, of_fp16, 1e-6) and agree(times, of_fp32, 1e-6), assuming=agree(times, of_fp32, 1e-6)),
        f"two values a parameter: {of_fp32:.2f} times fp32 weights, {of_fp16:.2f} times 16-bit weights",
        {ASSUMED: f"Two averages in the weights' own type. Against the 16-bit weights of table 5 averages in 32 bits are {of_fp16:.0f} times "
                  f"their size, {states / GIB:.1f} GiB; 8-bit ones are as large as the weights.",
         FAILS: f"There are two averages a parameter: {of_fp32:.2f} times the size of fp32 weights."},
        {"of fp32 weights": of_fp32, "of 16-bit weights": of_fp16, "GiB": states / GIB},
    )  # fmt: skip


@CLAIMS.claim("study-memory-11", "6.2", "This 98.85% reduction enables: ... Reduced memory for optimizer states", "mechanism")
def optimizer_memory(quote: str) -> Finding:
    full, adapters = state_bytes(weight_tensors(tinyllama())), state_bytes(adapter_tensors(tinyllama(), printed_rank()))
    eight = state_bytes(adapter_tensors(tinyllama(), printed_rank()), bits=8)
    right = 100 * (1 - adapters / full)
    return finding(
        decide(agree(figure(quote), right)),
        f"{full / GIB:.2f} GiB for all parameters, {adapters / MIB:.1f} MiB for the adapters ({eight / MIB:.1f} MiB in 8 bits)",
        {HOLDS: f"AdamW keeps states of trained parameters alone: {right:.2f} % less at equal precision, and 8 bits save as much again.",
         FAILS: f"The states shrink by {right:.2f} %."},
        {"GiB, full": full / GIB, "MiB, adapters": adapters / MIB, "MiB, adapters in 8 bits": eight / MIB, "reduction": right},
    )  # fmt: skip


@CLAIMS.claim("study-memory-12", "6.2", "LoRA adapters occupying only 24.06 MB despite billions of parameters", "meaning")
def billions(quote: str) -> Finding:
    base, adapters = tinyllama().parameters.total, adapter_parameters()
    return finding(
        decide("billions" not in quote or base >= 2e9 or adapters >= 1e9),
        f"{base / 1e9:.1f} billion parameters in the base, {adapters / 1e6:.1f} million in the adapters",
        {HOLDS: "So it is.",
         FAILS: f"The adapters have {adapters / 1e6:.1f} million parameters, which is why they are small; the base has "
                f"{base / 1e9:.1f} billion."},
        {"base": base, "adapters": adapters},
    )  # fmt: skip


@CLAIMS.claim("study-memory-13", "3.3, table 3", "Optimizer AdamW paged_adamw_8bit", "API call")
def paging(quote: str) -> Finding:
    tensors = adapter_tensors(tinyllama(), printed_rank())
    threshold = experiments.paging_threshold()
    paged = sum(n >= threshold for n in tensors)
    needed = -(-threshold // tinyllama().intermediate_size)
    return finding(
        decide(paged > 0 or "paged_" not in quote),
        f"{paged} of {len(tensors)} adapter tensors have the {threshold:,} elements from which bitsandbytes pages; the largest has {max(tensors):,}",
        {HOLDS: "The name is bitsandbytes', and it does what it says here.",
         FAILS: f"At rank {printed_rank()} nothing is paged: bitsandbytes pages states of {threshold:,} elements or more, and the largest "
                f"adapter tensor has {max(tensors):,} (rank {needed} would reach it). The optimizer is in effect adamw_8bit."},
        {"threshold": threshold, "largest tensor": max(tensors), "tensors paged": paged, "tensors": len(tensors)},
    )  # fmt: skip


@CLAIMS.claim("study-memory-14", "7.1", "Dramatic Memory Reduction: 3.82x compression enables fine-tuning on consumer GPUs", "mechanism")
def enables(quote: str) -> Finding:
    full, qlora = full_training_bytes(), qlora_training_bytes()
    weights_alone = full - FLOAT * tinyllama().parameters.total * (1 - 1 / figure(quote).value)
    small = GPUS["RTX 3070"].memory_bytes
    return finding(
        decide(weights_alone <= small, assuming=qlora <= small),
        f"compressing weights so and nothing else leaves {weights_alone / GIB:.1f} GiB of {full / GIB:.1f}; QLoRA needs {qlora / GIB:.2f}",
        {HOLDS: "Smaller weights suffice.",
         ASSUMED: f"Smaller weights alone would leave {weights_alone / GIB:.1f} GiB, more than a consumer card of 8 GB holds. What makes "
                  f"{qlora / GIB:.2f} GiB of it is the frozen base: gradients and optimizer states for the adapters alone, as in LoRA."},
        {"GiB, full": full / GIB, "GiB, weights compressed": weights_alone / GIB, "GiB, QLoRA": qlora / GIB, "GiB of an RTX 3070": small / GIB},
    )  # fmt: skip


@CLAIMS.claim("study-memory-15", "6.1, figure 1", "QLoRA achieves 73.9% reduction from 2,098 MB to 549 MB", "consistency")
def figure_sizes(quote: str) -> Finding:
    percent, before, after = figures(quote)
    table = [cell(5, "total", m) for m in ("standard", "qlora")]
    alike = all(round(t.value) == f.value for t, f in zip(table, (before, after), strict=True))
    right = 100 * (1 - table[1] / table[0])
    return finding(
        decide(alike and agree(percent, right)), f"table 5 rounds to {table[0].value:,.0f} and {table[1].value:,.0f}",
        {HOLDS: "The figure's caption agrees with table 5.", FAILS: "The caption departs from table 5."},
        {"standard": table[0].value, "qlora": table[1].value, "reduction": right.value},
    )  # fmt: skip


@CLAIMS.claim("study-memory-16", "4.5, table 12", "Compression Ratio 1.00x (baseline) 3.82x 3.82x savings", "meaning")
def savings(quote: str) -> Finding:
    _, ratio, saved = figures(quote)
    right = 1 - 1 / ratio
    return finding(
        decide(agree(saved, right), assuming=agree(saved, ratio)),
        f"a ratio of {ratio.value} saves {right.value:.2f} of the size",
        {HOLDS: "The share that is saved.",
         ASSUMED: f"The ratio, named as savings. Nothing can save more than once its size: what is saved is {right.value:.2f} of it, the 73.9 % of "
                  "the row above.",
         FAILS: "The two cells of the row differ."},
        {"saved": right.value},
    )  # fmt: skip
