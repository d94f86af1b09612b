"""A bench record as plain text."""

from qlora_lib.bench.record import BenchRecord, Measurement

GIGA, MIB = 1e9, 2**20


def to_text(record: BenchRecord) -> str:
    p, n, limits = record.provenance, record.numerics, record.limits
    lines = [
        f"{record.model.name}, {record.data.name}; {p.cpu}, {p.threads} threads, allocator: {p.allocator}",
        f"{record.settings['repeats']} alternating repeats, medians",
        "",
        f"{'':<32}{'tokens/s':>10}{'seconds':>10}{'quartiles':>18}{'peak MiB':>10}",
        *(_row(m) for m in record.measurements),
        "",
        f"{'ratios':<46}{'median':>8}{'quartiles':>18}",
        *(_ratio(name, record) for name in record.ratios),
        "",
        f"limits: fp32 products {limits.gemm_flops_per_second / GIGA:.1f} GFLOP/s; memory: "
        f"copy {limits.copy_bytes_per_second / GIGA:.1f} GB/s, read {limits.read_bytes_per_second / GIGA:.1f} GB/s",
        *(
            f"  {part}.{name}: at most {limit.tokens_per_second:.4g} tokens/s"
            for part, allowed in (("training", limits.training), ("decode", limits.decode))
            for name, limit in allowed.items()
        ),
        f"numerics, ours against stock: loss {n.loss_relative_difference:.1e}, gradients {n.gradient_relative_difference:.1e} "
        f"(worst {n.worst_gradient_relative_difference:.1e})",
        *(f"  {who} against fp64: loss {n.loss_error[who]:.1e}, gradients {n.gradient_error[who]:.1e}" for who in n.loss_error),
        *(f"  perplexity.{name}: {value:.1e} apart" for name, value in n.perplexity_relative_difference.items()),
        *(f"  decode.{name}: {_equal(value, record)}" for name, value in n.equal_tokens.items()),
    ]
    return "\n".join(lines)


def _row(m: Measurement) -> str:
    if m.median_seconds is None:
        return f"{m.name:<32}not measured: {m.reason}"
    peak = f"{m.peak_tensor_bytes / MIB:.0f}" if m.peak_tensor_bytes else ""
    row = f"{m.name:<32}{m.tokens_per_second:>10.4g}{m.median_seconds:>10.3g}{_spread(m.quartiles_seconds):>18}{peak:>10}"
    return row.rstrip()


def _ratio(name: str, record: BenchRecord) -> str:
    value = record.ratios[name]
    shown = "not measured" if value is None else f"{value:>8.3f}{_spread(record.ratio_details[name].quartiles):>18}"
    return f"{name:<46}{shown}".rstrip()


def _spread(quartiles: tuple[float, float] | None) -> str:
    return f"{quartiles[0]:.3g} to {quartiles[1]:.3g}" if quartiles else ""


def _equal(tokens: int | None, record: BenchRecord) -> str:
    made = record.settings["new_tokens"]
    return "not compared" if tokens is None else f"{tokens} of {made} greedy tokens equal before the first that differs"
