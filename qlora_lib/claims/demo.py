"""The demo of TinyLlama on one RTX 3070: what its hardware allows, and the trade-offs that it says it observed.

How it works: it prints no measurements, and neither batch nor length. Memory is predicted by qlora_lib.cost at one
sequence of 512 tokens with checkpointing, a step that asks for little; sensitivities are read from this project's sweeps,
on another model and text.
"""

import re

from qlora_lib.claims import libraries, measured, sources
from qlora_lib.claims.checks import GIB, about, agree, cell, change, figure, figures
from qlora_lib.claims.claim import Claims, Finding, decide, finding
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.fitting import TOO_LARGE, Fit, fit
from qlora_lib.cost.models import MODELS, shape_of
from qlora_lib.cost.workload import Workload

CLAIMS = Claims("demo")
OVERVIEW, CONTEXT, SUMMARY, OBSERVED = "Overview", "System Context", "Configuration Summary", "Key Tradeoffs Observed"
CARD, MODEL = "RTX 3070", "tinyllama-1.1b"
BY_SIZE = ("tinyllama-1.1b", "llama3.2-1b", "qwen2.5-1.5b", "qwen2.5-3b", "qwen3-4b", "qwen2.5-7b", "llama3.1-8b")


def step(method: str, model: str = MODEL, card: str = CARD, **more) -> Fit:
    """A small step of a method on a card: one sequence of 512 tokens, checkpointing, fp32 states of AdamW."""
    on = gpu_card(card)
    settings = dict(batch=1, length=512, dtype=on.dtype, device=on.device, checkpointing=True)
    return fit(Workload(shape_of(model)[0], method, **settings | more), on)


def gib(found: Fit) -> float:
    """At least needed."""
    return found.needs[0] / GIB


@CLAIMS.claim("demo-01", OVERVIEW, "single NVIDIA RTX 3070 (8GB VRAM)", "number")
def card(quote: str) -> Finding:
    memory = figures(quote)[-1].value
    name = re.search(r"RTX \d+", quote)[0]
    gpu = GPUS.get(name)
    return finding(
        decide(gpu is not None and agree(memory, gpu.memory_bytes / GIB), known=gpu is not None),
        f"{name}: {gpu.memory_bytes / GIB:g} GiB by {gpu.source}" if gpu else f"{name} is not in the table of data sheets",
        {"holds": "As the data sheet says.", "does not hold": f"The data sheet says {gpu.memory_bytes / GIB:g} GiB." if gpu else ""},
        {"claimed_gb": memory, "data_sheet_gib": gpu.memory_bytes / GIB if gpu else 0},
    )


@CLAIMS.claim("demo-02", SUMMARY, "Base model: TinyLlama 1.1B", "name")
def model(quote: str) -> Finding:
    billions = figure(quote)
    total = MODELS[MODEL].shape.parameters.total
    return finding(
        decide(agree(billions, total / 1e9)),
        f"{total:,} parameters",
        {
            "holds": "By its config.json; which of TinyLlama's checkpoints, base or chat, is not said.",
            "does not hold": f"It has {total / 1e9:.2f} billion.",
        },
        {"claimed_billions": billions.value, "parameters": total},
    )


@CLAIMS.claim("demo-03", SUMMARY, "Dataset: Dolly-15K", "name")
def dolly(quote: str) -> Finding:
    claimed = 1000 * figure(quote.replace("-", " ").replace("K", "")).value
    return finding(
        decide(about(claimed, sources.DOLLY_ROWS)),
        f"{sources.DOLLY_ROWS:,} records in databricks-dolly-15k",
        {"holds": "By its data card.", "does not hold": "Its data card gives another number."},
        {"claimed": claimed, "records": sources.DOLLY_ROWS},
    )


@CLAIMS.claim("demo-04", SUMMARY, "Trainable parameters: LoRA adapters only", "mechanism")
def trainable(quote: str) -> Finding:
    names, share = libraries.trained_names(), 100 * shape_of(MODEL)[0].lora_parameters(16) / MODELS[MODEL].shape.parameters.total
    return finding(
        decide(all(name.startswith("lora_") for name in names)),
        f"two AdamW steps on a tiny LLaMA change {' and '.join(names)}; of TinyLlama's parameters that is {share:.2f} % at rank 16",
        {"holds": "So PEFT makes it; at which rank, and in which layers, is not said."},
        {"changed": ", ".join(names), "percent_at_rank_16": share},
    )


@CLAIMS.claim("demo-05", CONTEXT, "billion-parameter models to be adapted on hardware that would otherwise be insufficient", "meaning")
def otherwise(quote: str) -> Finding:
    steps = {method: step(method) for method in ("full", "lora", "qlora")}
    without = [method for method in ("full", "lora") if steps[method].verdict != TOO_LARGE]
    enough = steps["qlora"].verdict != TOO_LARGE
    decided = next((name for name in BY_SIZE if step("lora", name).verdict == TOO_LARGE and step("qlora", name).verdict != TOO_LARGE), "")
    return finding(
        decide(enough and not without, assuming=enough and "full" not in without),
        "predicted on 8 GB, at least: " + ", ".join(f"{method} {gib(found):.1f} GiB" for method, found in steps.items()),
        {
            "holds under an assumption": "Against full fine-tuning it is so. 16-bit LoRA, without quantization, fits too at this "
            "size: what the four bits add here is room for longer and "
            f"larger batches. The smallest model tried that they bring onto this card is {decided or 'none'}.",
            "does not hold": "The card is enough without it, or not enough with it.",
        },
        {f"{method} GiB": gib(found) for method, found in steps.items()}
        | {f"{method} on {CARD}": found.verdict for method, found in steps.items()}
        | {"first model that needs four bits": decided},
    )


@CLAIMS.claim("demo-06", CONTEXT, "often bottlenecked by GPU memory rather than compute", "meaning")
def bottleneck(quote: str) -> Finding:
    """Full fine-tuning on every card of the table; for the compute alone it would run on all."""
    verdicts = [step("full", name, card).verdict for name in BY_SIZE for card in GPUS]
    stopped = verdicts.count(TOO_LARGE)
    return finding(
        decide(2 * stopped > len(verdicts)),
        f"full fine-tuning with AdamW does not fit in {stopped} of {len(verdicts)} pairs of {len(BY_SIZE)} models (1.1B to 8B) and "
        f"{len(GPUS)} cards",
        {"holds": "Too little memory stops a training; too little compute only makes it longer."},
        {"pairs": len(verdicts), "too_large": stopped},
    )


@CLAIMS.claim("demo-07", OBSERVED, "4-bit quantization significantly reduces VRAM usage", "mechanism")
def less_memory(quote: str) -> Finding:
    predicted = {method: gib(step(method)) for method in ("full", "lora", "qlora")}
    peaks = {name: measured.arm(name).train.peak_tensor_bytes for name in ("full", "lora", "qlora")}
    reduced = {f"{measured.MODEL}, against {name}": change(peaks["qlora"], peaks[name]).value for name in ("full", "lora")}
    reduced |= {f"TinyLlama predicted, against {name}": 100 * (predicted["qlora"] / predicted[name] - 1) for name in ("full", "lora")}
    return finding(
        decide(max(reduced.values()) < -10, assuming=min(reduced.values()) < -10),
        "peak of a QLoRA step: " + ", ".join(f"{percent:.0f} % ({of})" for of, percent in reduced.items()),
        {
            "holds": "Against LoRA it is the weights that shrink; against full fine-tuning gradients and optimizer states are gone "
            "as well, which LoRA alone does.",
            "holds under an assumption": "Not against all of them by a tenth or more.",
        },
        {f"{of}, %": percent for of, percent in reduced.items()},
    )


@CLAIMS.claim("demo-08", OBSERVED, "increases sensitivity to learning rate", "mechanism")
def sensitivity(quote: str) -> Finding:
    from qlora_lib.sensitivity import RESOLUTION, good_range
    from qlora_lib.sensitivity import sensitivity as compare

    rates, within = measured.rates(), measured.tolerance()
    ways = {other: compare(rates["qlora"], rates[other], within) for other in ("lora", "full")}
    factors = {name: good_range(rates[name], within).factor for name in ("qlora", "lora", "full")}
    return finding(
        decide("increases" in quote and ways["lora"] == "narrower", known=ways["lora"] in ("narrower", "wider")),
        "factor between the ends of the range of good learning rates: "
        + ", ".join(f"{name} {factor:.1f}" for name, factor in factors.items())
        + f" ({measured.MODEL})",
        {
            "cannot be checked here": f"Measured, and not decided: at equal adapters QLoRA's range is not narrower than LoRA's in every seed by more than "
            f"the grid resolves, a factor of {RESOLUTION:.1f}. "
            "A smaller narrowing, or one on another model, is not excluded.",
            "does not hold": "QLoRA's range is wider than LoRA's in every seed.",
            "holds": "QLoRA's range is narrower than LoRA's in every seed.",
        },
        {f"{name} factor": factor for name, factor in factors.items()}
        | {f"against {o}": way or "" for o, way in ways.items()}
        | {"tolerance": within},
    )


@CLAIMS.claim("demo-09", OBSERVED, "increases sensitivity to ... optimizer settings", "mechanism")
def optimizer(quote: str) -> Finding:
    from qlora_lib.sensitivity import verdict

    rates, within = measured.rates(), measured.tolerance()
    pairs = [(p, q) for p in rates["qlora-8bit"].points if (q := rates["qlora"].at(p.value)) and p.mean is not None and q.mean is not None]
    ways = [verdict(p, q, within) for p, q in pairs]
    gaps = {p.value: p.mean - q.mean for p, q in pairs}
    return finding(
        decide(found := any(way != "no difference shown" for way in ways), known=found),  # nothing found refutes nothing
        "QLoRA's loss with 8-bit AdamW less that with 32-bit: "
        + ", ".join(f"{gap:+.4f} at {rate:g}" for rate, gap in gaps.items())
        + f" nats ({measured.MODEL})",
        {
            "cannot be checked here": f"Measured, and not decided: no difference beyond the tolerance of {within:.2f} nats at any learning rate. Other "
            f"optimizers than AdamW were not tried.",
            "holds": "The optimizer's states matter at some learning rates.",
        },
        {f"nats at {rate:g}": gap for rate, gap in gaps.items()} | {"tolerance": within},
    )


@CLAIMS.claim("demo-10", OBSERVED, "limits batch size", "mechanism")
def batch_size(quote: str) -> Finding:
    from qlora_lib.cost.fitting import largest

    wanted = int(cell(3, "training batch size", "qlora").value * cell(3, "gradient accumulation steps", "qlora").value)  # the study's step
    most = {length: largest(step("qlora", length=length).work, gpu_card(CARD), "batch") or 0 for length in (512, 2048)}
    return finding(
        decide(max(most.values()) < wanted, assuming=min(most.values()) < wanted),
        "largest batch of a QLoRA step of TinyLlama that fits 8 GB: "
        + ", ".join(f"{batch} of {length} tokens" for length, batch in most.items()),
        {
            "holds under an assumption": f"It depends on the length, which is not said: at some the {wanted} sequences of the "
            f"study's step fit at once. "
            "Gradient accumulation makes any batch of small ones, at the price of time.",
            "holds": f"The {wanted} sequences of the study's step do not fit at once; gradient accumulation makes any batch of small ones.",
            "does not hold": f"The {wanted} sequences of the study's step fit at once at every length tried.",
        },
        {"wanted": wanted} | {f"batch of {length} tokens": batch for length, batch in most.items()},
    )


@CLAIMS.claim("demo-11", OBSERVED, "slows convergence", "mechanism")
def convergence(quote: str) -> Finding:
    axis = measured.settings().get("tokens-tuned") or measured.setting("tokens")
    small, large = axis.points[0], axis.points[-1]
    gap = small.mean - large.mean
    return finding(
        decide(gap > measured.tolerance(), assuming=True),
        "validation loss after the same number of tokens, by tokens a step: "
        + ", ".join(f"{p.value:g}: {p.mean:.3f}" for p in axis.points if p.mean is not None)
        + f" nats ({measured.MODEL})",
        {
            "holds under an assumption": f"In hours it does, against several GPUs that share the batches. By tokens seen a small "
            f"batch is {'no' if gap > -measured.tolerance() else 'not only no'} slower here"
            f"{'' if gap > -measured.tolerance() else ' but faster: it makes more steps of them'}.",
            "holds": "A small batch converges more slowly here at equal tokens.",
        },
        {f"nats at {p.value:g}": p.mean for p in axis.points if p.mean is not None} | {"gap": gap, "tolerance": measured.tolerance()},
    )


@CLAIMS.claim("demo-12", OBSERVED, "LoRA reduces training cost", "mechanism")
def cost(quote: str) -> Finding:
    arms = {name: measured.arm(name).train for name in ("full", "lora")}
    time = change(arms["lora"].seconds_per_step, arms["full"].seconds_per_step).value
    memory = change(arms["lora"].peak_tensor_bytes, arms["full"].peak_tensor_bytes).value
    return finding(
        decide(time < 0 and memory < 0, assuming=time < 0 or memory < 0),
        f"a LoRA step against a full one: time {time:+.0f} %, peak tensor bytes {memory:+.0f} % ({measured.MODEL})",
        {
            "holds": "Frozen weights need no gradient of their own, four FLOPs a token in place of six, and no optimizer states.",
            "holds under an assumption": "One of time and memory, not both.",
        },
        {"time_percent": time, "memory_percent": memory},
    )


@CLAIMS.claim("demo-13", OBSERVED, "introduces additional indirection at inference time", "mechanism")
def indirection(quote: str) -> Finding:
    rates = {name: measured.arm(name).generation.tokens_per_second for name in ("base", "lora", "base-nf4dq", "qlora")}
    slower = {"16/32-bit": change(rates["lora"], rates["base"]).value, "NF4": change(rates["qlora"], rates["base-nf4dq"]).value}
    difference, left = libraries.merged_difference()
    return finding(
        decide(left > 0, assuming=max(slower.values()) < 0),
        "decoding with adapters beside the base: "
        + ", ".join(f"{percent:+.0f} % tokens a second ({of} base)" for of, percent in slower.items())
        + f"; merged, {left} adapter parameters are left and a tiny model's logits differ by {difference:.0e}",
        {
            "holds under an assumption": "As long as the adapter is kept beside the base. Merged into it, it costs nothing; a QLoRA "
            "adapter is to be merged into the dequantized base that it was trained on.",
            "does not hold": "It costs no time here.",
        },
        {f"{of}, %": percent for of, percent in slower.items()} | {"merged_difference": difference, "adapter_parameters_left": left},
    )


@CLAIMS.claim("demo-14", "Limitations", "Key Tradeoffs Observed ... No throughput or latency benchmarking", "consistency")
def observed(quote: str) -> Finding:
    numbers = [f.value for f in figures(quote)]
    return finding(
        decide(True, known=bool(numbers)),
        f"figures of speed, memory or loss in the document: {len(numbers)}",
        {
            "cannot be checked here": "It names trade-offs of throughput, memory and convergence as observed, prints no measurement "
            "of any, and says that speed was not measured. "
            "What it observed cannot be compared with anything.",
            "holds": "Figures of what was observed are printed.",
        },
        {"figures": len(numbers)},
    )
