"""The guide on quality, speed and best practice: what it promises of QLoRA against LoRA, and the settings it advises.

How it works: promises without a metric or a machine are held against every figure there is, published and measured, and
hold as they stand only if all agree. Advice holds where this project's sweeps do not show another setting to be better.
"""

from qlora_lib.claims import libraries, measured, sources
from qlora_lib.claims.checks import GB, cell, change, figure, figures
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.claims.guide_memory import own_setting
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.memory import state_bytes, trained_tensors

CLAIMS = Claims("guide")
ADVANTAGES, TABLE = "Why Use QLoRA? Key Advantages", "QLoRA vs. LoRA: Which One to Choose?"
CONFIGURATION, TRAINING, MONITORING = (f"Best Practices, {part}" for part in ("Configuration", "Optimizing Training", "Monitoring"))
SLIGHTLY = 15  # percent; at most so much is "slightly"


def losses_of_quality() -> dict[str, float]:
    """What QLoRA is worse by, in percent of the figure it is compared with, by metric and source."""
    mmlu = sources.PAPER_MMLU
    return {
        "MMLU accuracy, QLoRA paper, against 16-bit LoRA": -change(mmlu["nf4"], mmlu["bf16"]).value,
        "perplexity, the study, against full fine-tuning": change(
            cell(10, "perplexity", "qlora"), cell(10, "perplexity", "standard")
        ).value,
        f"perplexity, {measured.MODEL}, each at its best rate, against full fine-tuning": measured.perplexity_above("qlora", "full")[0],
    }


def _told(losses: dict[str, float]) -> str:
    return "; ".join(f"{loss:+.1f} % ({of})" for of, loss in losses.items())


@CLAIMS.claim("guide-quality-02", TABLE, "~98% of full fine-tuning quality", "percentage")
@CLAIMS.claim("guide-quality-01", ADVANTAGES, "Only ~0.2–0.5% degradation compared to full fine-tuning", "percentage")
def quality(quote: str) -> Finding:
    claimed = figures(quote)
    # A share that is kept, or a range of what is lost; the printed figures are rounded.
    printed, most = (100 - claimed[0].value, 100 - claimed[0].low) if len(claimed) == 1 else (claimed[1].value, claimed[1].high)
    losses = losses_of_quality()
    within = [of for of, loss in losses.items() if loss <= most]
    return finding(
        decide(len(within) == len(losses), assuming=bool(within)),
        f"loss of QLoRA: {_told(losses)}",
        {
            "holds under an assumption": f"No metric, model or task is named. Of the figures there are, {len(within)} of "
            f"{len(losses)} stay within {printed:g} %: {'; '.join(within)}. "
            "In perplexity small models lose more.",
            "does not hold": f"No metric, model or task is named, and no figure that there is stays within {printed:g} %.",
            "holds": f"No metric is named; every figure that there is stays within {printed:g} %.",
        },
        {"most_percent": printed} | {f"{of}, %": loss for of, loss in losses.items()},
    )


@CLAIMS.claim("guide-quality-03", TABLE, "~98% of full fine-tuning quality ... Only ~0.2–0.5% degradation", "consistency")
def two_qualities(quote: str) -> Finding:
    kept, low, high = figures(quote)
    lost = 100 - kept.value
    return finding(
        decide(low.low <= lost <= high.high),
        f"98 % of the quality is a loss of {lost:g} %".replace("98", f"{kept.value:g}"),
        {
            "does not hold": f"The same document says {lost:g} % in one table and {low.value:g} to {high.value:g} % in another: "
            f"{lost / high.value:.0f} to {lost / low.value:.0f} times as much. Neither names a metric.",
            "holds": "Both figures are the same loss.",
        },
        {"kept_percent": kept.value, "lost_percent": lost, "low": low.value, "high": high.value},
    )


@CLAIMS.claim("guide-quality-04", TABLE, "Slightly slower (due to quant ops)", "percentage")
def speed(quote: str) -> Finding:
    here = change(measured.arm("qlora").train.seconds_per_step, measured.arm("lora").train.seconds_per_step).value
    slower = {of: 100 * (ratio - 1) for of, ratio in sources.SLOWER.items()} | {f"{measured.MODEL}, on a CPU": here}
    slight = [of for of, percent in slower.items() if 0 < percent <= SLIGHTLY]
    return finding(
        decide(len(slight) == len(slower) if "Slightly" in quote else all(p > 0 for p in slower.values()), assuming=bool(slight)),
        "longer than LoRA for the same work: " + ", ".join(f"{percent:.0f} % ({of})" for of, percent in slower.items()),
        {
            "holds under an assumption": f"Slower it is everywhere. Slightly, by at most {SLIGHTLY} %, it is for "
            f"{'; '.join(slight)}; on GPUs the published figures are 28 to 62 %.".replace(
                "28 to 62",
                f"{min(100 * (r - 1) for r in sources.SLOWER.values()):.0f} to {max(100 * (r - 1) for r in sources.SLOWER.values()):.0f}",
            ),
            "does not hold": f"Slower it is, but by more than {SLIGHTLY} % in every figure that there is.",
            "holds": "Slower it is, in every figure that there is.",
        },
        {f"{of}, %": percent for of, percent in slower.items()} | {"slightly_percent": SLIGHTLY},
    )


@CLAIMS.claim("guide-quality-05", TABLE, "LoRA (Full Precision) ... float16 / bfloat16", "consistency")
def full_precision(quote: str) -> Finding:
    import torch

    bits = {name: torch.finfo(getattr(torch, name)).bits for name in ("float16", "bfloat16", "float32") if f" {name}" in quote}
    full = torch.finfo(torch.float32).bits
    return finding(
        decide(all(n == full for n in bits.values())),
        ", ".join(f"{name} has {n} bits" for name, n in bits.items()) + f"; full precision, float32, has {full}",
        {
            "does not hold": "The column's title says full precision and its first row half of it. 16-bit is what is meant: the "
            "same document's “Near-FP32” compares with full fine-tuning.",
            "holds": "The column's title and its first row say the same.",
        },
        {f"{name} bits": n for name, n in bits.items()} | {"full precision bits": full},
    )


# --- settings --------------------------------------------------------------------------------------


@CLAIMS.claim("guide-settings-03", CONFIGURATION, "`dropout=0.05`", "number")
@CLAIMS.claim("guide-settings-02", CONFIGURATION, "`alpha=16`", "number")
@CLAIMS.claim("guide-settings-01", CONFIGURATION, "Set `r=16`", "number")
def setting(quote: str) -> Finding:
    from qlora_lib.sensitivity import optimum

    name, words = next(
        (n, w) for k, n, w in (("r=", "rank", "rank"), ("alpha=", "alpha", "alpha"), ("dropout=", "dropout", "dropout")) if f"`{k}" in quote
    )
    value = figure(quote).value
    axis = measured.setting(name)
    above = measured.loss_above(axis, value)
    good = [p.value for p in optimum(axis, measured.tolerance())]
    tried = ", ".join(f"{p.value:g}: {p.mean:.3f}" for p in axis.points)
    same = len(good) == len(axis.points)
    rival = axis.best.value
    return finding(
        decide(value in good),
        f"validation loss by {words}, {tried} nats; {value:g} is {above:.3f} above the best, the tolerance "
        f"{measured.tolerance():.3f} ({measured.MODEL})",
        {
            "holds": f"Not shown to be worse than any "
            f"tried{', and nor is any other: it is not worth a search here' if same else ''}. All linear layers were adapted, and "
            f"the learning rate was kept.",
            "does not hold": f"{rival:g} does better at the same learning rate. Alpha over rank scales the adapter's output, so "
            f"that a higher learning rate may do as well; the guide names none.",
        },
        {"value": value, "nats_above_best": above, "tolerance": measured.tolerance(), "best": rival}
        | {f"loss at {p.value:g}": p.mean for p in axis.points},
    )


@CLAIMS.claim("guide-settings-04", CONFIGURATION, "Use `nf4` with `double_quant=True`", "mechanism")
def storage(quote: str) -> Finding:
    arms = {name: measured.arm(name) for name in ("base-nf4", "base-nf4dq", "base-fp4")}
    perplexity = {name: r.perplexity.before for name, r in arms.items()}
    size = {name: r.size_bytes.total / 2**20 for name, r in arms.items()}
    used = "base-nf4dq" if "double_quant=True" in quote else "base-nf4"
    best = perplexity[used] < perplexity["base-fp4"] and size[used] == min(size.values())
    return finding(
        decide(best),
        "perplexity and MiB before training: "
        + ", ".join(f"{name.removeprefix('base-')} {perplexity[name]:.2f}, {size[name]:.1f}" for name in arms)
        + f" ({measured.MODEL})",
        {
            "holds": "Of the 4-bit formats NF4 loses least, and with double quantization it is the smallest.",
            "does not hold": "Without double quantization it is not the smallest.",
        },
        {f"{name} perplexity": p for name, p in perplexity.items()} | {f"{name} MiB": s for name, s in size.items()},
    )


@CLAIMS.claim("guide-settings-05", TRAINING, "Leverage gradient accumulation to simulate large batches", "mechanism")
def accumulation(quote: str) -> Finding:
    off = libraries.accumulated_difference()
    axis = measured.settings().get("tokens-tuned") or measured.settings().get("tokens")
    here = (
        f"; by tokens a step, {', '.join(f'{p.value:g}: {p.mean:.3f}' for p in axis.points if p.mean is not None)} nats at equal "
        f"tokens in all ({measured.MODEL})"
        if axis
        else ""
    )
    return finding(
        decide(off < 1e-5),
        f"two micro-batches of unequal length give the gradient of the whole batch within {off:.0e}{here}",
        {
            "holds": "The gradient is the same, because transformers divides by the tokens of all micro-batches. Whether a large "
            "batch is worth simulating is another matter: "
            "at equal tokens it means fewer steps."
        },
        {"relative_difference": off, "version": libraries.versions("transformers")}
        | ({f"nats at {p.value:g}": p.mean for p in axis.points if p.mean is not None} if axis else {}),
    )


@CLAIMS.claim("guide-settings-06", TRAINING, "Use gradient checkpointing to save VRAM", "mechanism")
def checkpointing(quote: str) -> Finding:
    plain, saving = measured.arm("qlora").train, measured.arm("qlora-checkpointing").train
    memory = change(saving.peak_tensor_bytes, plain.peak_tensor_bytes).value
    time = change(saving.seconds_per_step, plain.seconds_per_step).value
    return finding(
        decide(memory < 0),
        f"peak tensor bytes {memory:+.0f} %, time a step {time:+.0f} % ({measured.MODEL})",
        {"holds": "It recomputes activations in the backward pass in place of keeping them, so what it saves in memory it costs in time."},
        {"memory_percent": memory, "time_percent": time, "bytes": plain.peak_tensor_bytes, "bytes_checkpointing": saving.peak_tensor_bytes},
    )


@CLAIMS.claim("guide-settings-07", TRAINING, "Offload optimizer state if training on <16GB GPU", "mechanism")
def offload(quote: str) -> Finding:
    limit = figures(quote)[0].value
    tensors, smallest = trained_tensors(own_setting()), libraries.paging()["smallest tensor"]
    states = {bits: state_bytes(tensors, bits) for bits in (32, 8)}
    large = [n for n in tensors if n >= smallest]
    share = 100 * states[32] / (limit * GB)
    return finding(
        decide(bool(large) and share >= 1, assuming=bool(large)),
        f"AdamW's states of the guide's adapters: {states[32] / 1e6:.0f} MB in 32 bits, {states[8] / 1e6:.0f} MB in 8; largest "
        f"matrix {max(tensors):,} elements",
        {
            "does not hold": f"There is next to nothing to offload: the states are {share:.1f} % of {limit:g} GB, and bitsandbytes "
            f"pages no tensor below {smallest:,} elements, "
            "so that of these adapters it pages none. Activations are what fills a small card."
        },
        {
            "limit_gb": limit,
            "state_bytes_32": states[32],
            "state_bytes_8": states[8],
            "smallest_paged": smallest,
            "largest_matrix": max(tensors),
            "share_percent": share,
        },
    )


def bf16_cards() -> dict[str, bool]:
    """Card -> whether its matrix units take bf16."""
    return {name: gpu.bf16 is not None for name, gpu in GPUS.items()}


@CLAIMS.claim("guide-settings-08", CONFIGURATION, "Use `bfloat16` for compute (or fallback to `float16` on older GPUs)", "mechanism")
def fallback(quote: str) -> Finding:
    have = bf16_cards()
    lacking = [name for name, yes in have.items() if not yes]
    return finding(
        decide(bool(lacking) and all(GPUS[name].fp16 for name in lacking)),
        f"of the cards known here {', '.join(lacking) or 'none'} lacks bf16 matrix units; all have fp16",
        {"holds": "The T4 that the study was run on is one. In fp16 the loss must be scaled, and not every model is stable there."},
        {"cards": len(have), "without_bf16": ", ".join(lacking)},
    )


# --- monitoring ------------------------------------------------------------------------------------


@CLAIMS.claim("guide-settings-09", MONITORING, "QLoRA training should behave like LoRA", "mechanism")
def loss_curve(quote: str) -> Finding:
    from statistics import fmean, pstdev

    lora, qlora = measured.rates()["lora"], measured.rates()["qlora"]
    rate = lora.best.value
    pairs = [(q, r) for q in qlora.at(rate).records for r in lora.at(rate).records if q.seed == r.seed]
    gaps = [a - b for q, r in pairs for a, b in zip(q.train.loss, r.train.loss, strict=True)]
    end, scatter = qlora.at(rate).mean - lora.at(rate).mean, pstdev(gaps)
    first = fmean(q.train.loss[0] - r.train.loss[0] for q, r in pairs)
    return finding(
        decide(abs(end) <= measured.tolerance(), assuming=qlora.best.value == rate and abs(end) < abs(first)),
        f"at the learning rate {rate:g}, best for {'both' if qlora.best.value == rate else 'LoRA'}, QLoRA's loss is {first:+.3f} "
        f"nats above LoRA's at the first step and {end:+.3f} at the end "
        f"(standard deviation of the gap over steps {scatter:.3f}; {measured.MODEL})",
        {
            "holds under an assumption": "The curves have one shape and one best learning rate, not one level: QLoRA starts higher "
            "by what 4 bits lose, and training closes a part of it.",
            "holds": "Shape and level are the same within the tolerance.",
            "does not hold": "The gap at the end is no smaller than at the beginning, or the best learning rates differ.",
        },
        {"first_gap": first, "last_gap": end, "gap_deviation": scatter, "learning_rate": rate, "tolerance": measured.tolerance()},
    )


@CLAIMS.claim("guide-settings-10", MONITORING, "Use `nvidia-smi` to profile usage", "mechanism")
def nvidia_smi(quote: str) -> Finding:
    return finding(
        decide(False, known=False),
        "not recomputed: it takes a GPU, and the audit runs without one",
        "nvidia-smi shows what the process has reserved, CUDA context and freed blocks that PyTorch keeps included; what the "
        "tensors need, torch.cuda.max_memory_allocated says.",
        {},
    )
