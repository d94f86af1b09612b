"""One sentence for each comparison: which way it went, or that no difference is shown.

How it works: reading.py gives the direction, and each function here has one sentence for each; None
where nothing was measured. Sentences are templates (segments.py).
"""

from qlora_lib.report import reading
from qlora_lib.report.values import Store

METHOD = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}


def join(*sentences: str | None) -> list[str]:
    """One paragraph of the sentences that could be said; no paragraph when none could."""
    said = [s for s in sentences if s]
    return [" ".join(said)] if said else []


def training_peak(s: Store) -> tuple[str, str]:
    """(comparison, field) of the memory that training takes at its peak.

    Of the tensors where every method has it: on a CPU the process's resident set also holds what the
    allocator kept of earlier stages. Else the meter of the record, on a GPU the allocator's.
    """
    trained = [arm for arm in METHOD if s.has(f"{arm}.train.peak_memory_bytes")]
    if trained and all(s.has(f"{arm}.train.peak_tensor_bytes") for arm in trained):
        return "peak-tensors", "train.peak_tensor_bytes"
    return "peak-memory", "train.peak_memory_bytes"


def step_time(s: Store, one: str, other: str) -> str | None:
    way = reading.step_time(s, one, other)
    if way is None:
        return None
    a, b = METHOD[one], METHOD[other]
    times = f"{{{one}.train.seconds_per_step@seconds_unit}} against {{{other}.train.seconds_per_step@seconds_unit}}"
    if way == "same":
        return (
            f"Between a training step of {a} and one of {b} no difference in time is shown ({times}; the "
            "quartiles overlap)."
        )
    word = "slower" if way == "higher" else "faster"
    return f"A training step of {a} is {word} than one of {b}: {times}, {{step-time-change.{one}.{other}}} in time."


def decoding(s: Store, one: str, other: str) -> str | None:
    way = reading.latency(s, one, other)
    if way is None:
        return None
    a, b = METHOD[one], METHOD[other]
    rates = f"{{{one}.generation.tokens_per_second}} against {{{other}.generation.tokens_per_second}} tokens per second"
    if way == "same":
        return f"In generation no difference between {a} and {b} is shown ({rates}; the repeats overlap)."
    if way == "higher":
        return f"In generation {a} is slower than {b}: {rates}, {{decode-ratio.{one}.{other}}} its speed."
    return f"In generation {a} is faster than {b}: {rates}, {{decode-ratio.{one}.{other}}} its speed."


def drift(s: Store) -> str | None:
    """How far the machine itself moved between the arms' processes, where it moved by over 5 %."""
    arms = [arm for arm in METHOD if s.has(f"{arm}.peak.flops_per_second")]
    peaks = [s.number(f"{arm}.peak.flops_per_second") for arm in arms]
    if len(peaks) < 2 or max(peaks) < 1.05 * min(peaks):
        return None
    rates = ", ".join(f"{{{arm}.peak.flops_per_second}} ({METHOD[arm]})" for arm in arms)
    return (
        "The peak was measured in the process of each arm, and the machine itself moved between them: "
        f"{rates}. Differences in time and in utilization between arms are known no better than that."
    )


def idle_difference(s: Store) -> str | None:
    """Two arms that do the same work in generation: what differs between them is the machine's."""
    if reading.latency(s, "full", "base") not in ("higher", "lower"):
        return None
    return (
        "The untrained base does the very work of the fully trained model, and ran at "
        "{base.generation.tokens_per_second} against {full.generation.tokens_per_second} tokens per second: so much "
        "can the machine alone change from one process to the next."
    )


def gain(s: Store, arm: str) -> str | None:
    way, name = reading.gained(s, arm), METHOD[arm]
    if way is None:
        return None
    name = name[:1].upper() + name[1:]
    figures = f"from {{{arm}.perplexity.before}} to {{{arm}.perplexity.after}}"
    if way == "same":
        return (
            f"{name} moved perplexity {figures}; no difference is shown, since the interval "
            f"{{gained-interval.{arm}}} includes zero."
        )
    word = "lowered" if way == "lower" else "raised"
    return f"{name} {word} perplexity {figures}."


def recovery(s: Store) -> str | None:
    if not s.has("recovered"):
        if reading.perplexity(s, "base-nf4dq", "base") == "same":
            return "No loss from quantizing this base is shown, so there is nothing for QLoRA to win back."
        return None
    share, (low, high) = s.number("recovered"), s.number("recovered_interval")
    interval = "{confidence} interval {recovered_interval}"
    if low <= 0 <= high:
        return (
            "That QLoRA’s training wins back any of what quantization cost is not shown "
            f"({{recovered}}, {interval})."
        )
    if share < 0:
        return (
            "QLoRA’s training does not win back what quantization cost; it adds to it "
            f"({{recovered}}, {interval})."
        )
    if low > 1:  # a share of several times the cost would say little
        return (
            "Quantizing the base costs perplexity, and QLoRA’s training makes up for more than that: it "
            f"ends at {{qlora.perplexity.after}}, and the unquantized base, untrained, stands at {{{s.deployed('base')}}}."
        )
    how = "all or nearly all" if high >= 1 else "a part"
    return (
        f"Quantizing the base costs perplexity, and QLoRA’s training wins back {how} of that cost: "
        f"{{recovered}} of it in log-perplexity ({interval})."
    )


def quality_against_full(s: Store) -> str | None:
    return quality(s, "qlora", "full")


def quality_against_lora(s: Store) -> str | None:
    return quality(s, "qlora", "lora")


def quality(s: Store, one: str, other: str) -> str | None:
    way = reading.perplexity(s, one, other)
    if way is None:
        return None
    a, b = METHOD[one], METHOD[other]
    figures = f"{{perplexity-change.{one}.{other}}}, {{confidence}} interval {{perplexity-interval.{one}.{other}}}"
    if way == "same":
        return f"Between the perplexities of {a} and {b} no difference is shown ({figures})."
    return f"After training, {a}’s perplexity is {way} than that of {b} ({figures})."


def format_cost(s: Store, arm: str, name: str) -> str | None:
    way = reading.perplexity(s, arm, "base")
    if way is None:
        return None
    figures = f"{{perplexity-change.{arm}.base}}, interval {{perplexity-interval.{arm}.base}}"
    if way == "same":
        return f"For {name} no change of perplexity is shown ({figures})."
    verb = "raises" if way == "higher" else "lowers"
    return f"{name} {verb} perplexity ({figures})."


def quantized_after(s: Store, arm: str, name: str) -> str | None:
    way = reading.perplexity(s, "qlora", arm)
    if way is None:
        return None
    figures = f"{{perplexity-change.qlora.{arm}}}, interval {{perplexity-interval.qlora.{arm}}}"
    if way == "same":
        return f"Between QLoRA and {name} no difference is shown ({figures})."
    verdict = "the better choice" if way == "lower" else "the worse choice"
    return f"Against {name}, QLoRA is {verdict} here: its perplexity is {way} ({figures})."
