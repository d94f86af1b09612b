"""The derived values that tables and text name, each defined once.

How it works: `define(store)` gives every comparison a key, whether or not its arms ran; where an
input is missing the value prints "not measured".
"""

from qlora_lib.analysis import Aspect
from qlora_lib.report.values import Store

TRAINED = ("full", "lora", "qlora")
QUANTIZED = ("base-int8", "base-nf4", "base-nf4dq", "base-fp4")
DEPLOYED = ("base", "base-nf4dq", "full", "lora", "qlora", "full-nf4dq", "lora-nf4dq")

_WIDTHS = ("hidden", "layers", "heads", "kv_heads", "intermediate", "vocabulary")
TINYLLAMA = tuple(f"reference.tinyllama.{w}" for w in _WIDTHS)


def define(store: Store) -> None:
    _of_the_run(store)
    _published_run(store)
    for arm in TRAINED:
        _of_a_trained_arm(store, arm)
    _between_arms(store)
    for arm in QUANTIZED:
        _perplexity_against(store, arm, "base")
        store.derive(f"{arm}.size-ratio", "ratio", ["base.size_bytes.total", f"{arm}.size_bytes.total"], "times")
    for arm in DEPLOYED:
        if arm != "qlora":
            _perplexity_against(store, "qlora", arm)
        if arm != "base":
            _perplexity_against(store, arm, "base")
    for arm in ("lora", "full-nf4dq"):
        _perplexity_against(store, arm, "full")
    _perplexity_against(store, "qlora", "base-nf4dq")
    _perplexity_against(store, "lora-nf4dq", "lora")
    for arm in TRAINED:
        _gained(store, arm)
    _recovery(store)


# Names of one thing in records of different origin: the library's own, then a model's configuration.
_ARCHITECTURE = {
    "hidden-size": ("hidden_size",),
    "layers": ("layers", "num_layers", "num_hidden_layers"),
    "heads": ("heads", "num_heads", "num_attention_heads"),
    "kv-heads": ("kv_heads", "num_kv_heads", "num_key_value_heads"),
    "intermediate-size": ("intermediate_size",),
    "vocabulary": ("vocabulary_size", "vocab_size"),
}


def _of_the_run(store: Store) -> None:
    """What captions and notes say once for all arms: the first arm that knows it speaks."""
    parts = [f"any.provenance.{x}" for x in ("device", "cpu", "threads", "dtype")]
    store.derive("confidence", "confidence", [], "percent0")
    store.derive("hardware", "hardware", parts, "text")
    for name, fields in _ARCHITECTURE.items():
        store.alias(name, [f"any.model.architecture.{f}" for f in fields])
    for name, path in {
        "any-peak": "peak.what",
        "any-meter": "train.peak_memory_meter",
        "any-protocol": "perplexity.protocol",
        "any-generation": "generation.protocol",
        "any-new-tokens": "generation.new_tokens",
        "any-tokens-scored": "perplexity.tokens_scored",
    }.items():
        store.alias(name, [f"{arm}.{path}" for arm in store.records])
    counted = [f"{arm}.perplexity.window_nll_before" for arm in store.records]
    known = next((k for k in counted if store.has(k)), counted[0])
    store.derive("any-windows", "count", [known], "count")


def _published_run(store: Store) -> None:
    """What the study's own figures imply, and what the protocol gives for its run."""
    d = store.derive
    reference, printed = "reference.dettmers2023qlora", "published"
    total, adapter = f"{printed}.2.total parameters", f"{printed}.6.trainable parameters.qlora"
    d("tinyllama.linear", "linear_parameters", TINYLLAMA, "count")
    d("tinyllama.lora", "lora_parameters", [f"{printed}.4.lora rank", *TINYLLAMA], "count")
    as_printed = ("hidden dimension", "layers", "attention heads", "intermediate dimension")
    widths = [f"{printed}.2.{row}" for row in as_printed]
    d("printed-widths.total", "total_parameters_plain", [*widths, f"{printed}.1.vocabulary size"], "count")
    d("tinyllama.codes", "codes_mib", [total], "decimal2")
    d("tinyllama.half", "half_mib", [total], "decimal2")
    d("adapter.half", "half_mib", [adapter], "decimal2")
    d("nf4.bits", "nf4_bits", [f"{reference}.block"], "decimal1")
    d("nf4.scale-bits", "scale_bits", ["nf4.bits"], "decimal1")
    d("nf4dq.bits", "nf4_double_bits", [f"{reference}.block", f"{reference}.second_block"], "decimal3")
    d("nf4dq.scale-bits", "scale_bits", ["nf4dq.bits"], "decimal3")
    d("tinyllama.qlora-size", "qlora_mib", [total, "tinyllama.linear", adapter, "nf4dq.bits"], "decimal1")
    d("tinyllama.size-ratio", "ratio", [f"{printed}.5.total.standard", "tinyllama.qlora-size"], "times")
    d("printed.size-share", "ratio", [f"{printed}.5.total.{m}" for m in ("qlora", "standard")], "percent")
    flops = [f"{printed}.7.flops per step.{m}" for m in ("qlora", "standard")]
    d("printed.flops-share", "ratio", flops, "percent")
    d("printed.flops-tokens", "tokens_behind", [flops[1], total], "count")
    d("printed.step-tokens", "product", [
        f"{printed}.3.training batch size.standard",
        f"{printed}.3.gradient accumulation steps.standard",
        f"{printed}.1.max sequence length",
    ], "count")  # fmt: skip
    d("printed.step-tokens.qlora", "product", [
        f"{printed}.3.training batch size.qlora",
        f"{printed}.3.gradient accumulation steps.qlora",
        f"{printed}.1.max sequence length",
    ], "count")  # fmt: skip
    for method, column, rank in (("full", "standard", ()), ("qlora", "qlora", (f"{printed}.4.lora rank",))):
        d(f"tinyllama.{method}-flops", f"{method}_flops", [
            f"{printed}.3.training batch size.{column}",
            f"{printed}.3.gradient accumulation steps.{column}",
            f"{printed}.1.max sequence length", *rank, *TINYLLAMA,
        ], "tflop")  # fmt: skip
    d("tinyllama.flops-reduction", "reduction", ["tinyllama.qlora-flops", "tinyllama.full-flops"], "percent0")
    d("printed.implied-peak", "implied_peak",
      [f"{printed}.8.achieved flops.standard", f"{printed}.8.mfu.standard"], "decimal1")  # fmt: skip
    d("tinyllama.adamw", "adamw_bytes", [total], "gib_unit")


def _of_a_trained_arm(store: Store, arm: str) -> None:
    d = store.derive
    d(f"{arm}.trainable-share", "ratio", [f"{arm}.parameters.trainable", f"{arm}.parameters.base"], "percent2")
    d(f"{arm}.achieved", "ratio", [f"{arm}.flops_per_step", f"{arm}.train.seconds_per_step"], "tflop")
    d(f"{arm}.first-eval", "first", [f"{arm}.train.eval_loss"], "decimal3")
    d(f"{arm}.last-eval", "last", [f"{arm}.train.eval_loss"], "decimal3")


# What two trained arms are compared in: name -> (field, aspect in which they must be comparable).
COMPARED: dict[str, tuple[str, Aspect]] = {
    "size": ("size_bytes.total", "size"),
    "base-size": ("size_bytes.base", "size"),
    "trainable": ("parameters.trainable", "size"),
    "optimizer-state": ("train.optimizer.state_bytes", "size"),
    "flops": ("flops_per_step", "training"),
    "step-time": ("train.seconds_per_step", "training"),
    "total-time": ("train.seconds", "training"),
    "throughput": ("train.tokens_per_second", "training"),
    "peak-memory": ("train.peak_memory_bytes", "training"),
    "peak-tensors": ("train.peak_tensor_bytes", "training"),
    "mfu": ("mfu", "training"),
    "latency": ("generation.latency_seconds", "decoding"),
    "decode": ("generation.tokens_per_second", "decoding"),
}
PAIRS = (("lora", "full"), ("qlora", "full"), ("qlora", "lora"), ("qlora-checkpointing", "qlora"))


def _between_arms(store: Store) -> None:
    """Every pair in every field: its change, its ratio, and the ratio the other way round."""
    for one, other in [*PAIRS, ("full", "base"), ("lora", "base"), ("qlora", "base"), ("base-nf4dq", "base")]:
        for name, (path, aspect) in COMPARED.items():
            if other == "base" and name not in ("size", "latency", "decode"):
                continue  # nothing was trained there
            both, comparing = [f"{one}.{path}", f"{other}.{path}"], (one, other, aspect)
            pair = f"{one}.{other}"
            store.derive(f"{name}-change.{pair}", "change", both, "percent_signed", comparing)
            store.derive(f"{name}-ratio.{pair}", "ratio", both, "times", comparing)
            store.derive(f"{name}-gain.{pair}", "ratio", both[::-1], "times", comparing)


def _perplexity_against(store: Store, one: str, other: str) -> None:
    """Change of perplexity of what `one` deploys against what `other` deploys, paired by window."""
    levels = [store.deployed(one), store.deployed(other)]
    paired = [store.windows(one), store.windows(other)]
    comparing = (one, other, "perplexity")
    store.derive(f"perplexity-change.{one}.{other}", "change", levels, "percent_signed", comparing)
    store.derive(
        f"perplexity-interval.{one}.{other}", "paired_change_interval", paired,
        "percent_interval", comparing,
    )  # fmt: skip


def _gained(store: Store, arm: str) -> None:
    """What training changed on the arm's own windows."""
    after, before = f"{arm}.perplexity.after", f"{arm}.perplexity.before"
    store.derive(f"gained.{arm}", "change", [after, before], "percent_signed")
    store.derive(f"gained-interval.{arm}", "paired_change_interval",
                 [f"{arm}.perplexity.window_nll_{x}" for x in ("after", "before")],
                 "percent_interval")  # fmt: skip


def _recovery(store: Store) -> None:
    windows = [f"qlora.perplexity.window_nll_{x}" for x in ("before", "after")]
    windows.append(store.windows("base"))
    for name, form in (("recovered", "percent0"), ("recovered_interval", "percent0_interval")):
        store.derive(name, name, windows, form, ("qlora", "base", "perplexity"))
