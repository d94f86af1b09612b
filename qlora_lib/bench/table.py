"""A bench record as plain text; of a part that was not run nothing is shown but its ratios, as not measured."""

from collections.abc import Iterator

from qlora_lib.bench.record import BenchRecord, Cause, Fit, Measurement, ScalingPoint

GIGA, MIB, MILLI = 1e9, 2**20, 1e-3


def to_text(record: BenchRecord) -> str:
    parts = (_head, _measured, _ratios, _scaling, _fits, _causes, _limits, _numerics)
    return "\n\n".join(text for part in parts if (text := "\n".join(part(record))))


def _head(record: BenchRecord) -> Iterator[str]:
    p = record.provenance
    yield f"{record.model.name}, {record.data.name}; {p.cpu}, {p.threads} threads, allocator: {p.allocator}"
    yield f"{record.settings['repeats']} alternating repeats, medians"


def _measured(record: BenchRecord) -> Iterator[str]:
    if record.measurements:
        yield f"{'':<32}{'tokens/s':>10}{'seconds':>10}{'quartiles':>18}{'peak MiB':>10}"
        yield from (_row(m.name, m, 32) for m in record.measurements)


def _row(name: str, m: Measurement | ScalingPoint, width: int) -> str:
    if m.median_seconds is None:
        return f"{name:<{width}}not measured: {m.reason}"
    peak = f"{m.peak_tensor_bytes / MIB:.0f}" if m.peak_tensor_bytes else ""
    times = f"{m.tokens_per_second:>10.4g}{m.median_seconds:>10.3g}{_spread(m.quartiles_seconds):>18}"
    return f"{name:<{width}}{times}{peak:>10}".rstrip()


def _ratios(record: BenchRecord) -> Iterator[str]:
    yield f"{'ratios':<46}{'median':>8}{'quartiles':>18}"
    for name, value in record.ratios.items():
        shown = "not measured" if value is None else f"{value:>8.3f}{_spread(record.ratio_details[name].quartiles):>18}"
        yield f"{name:<46}{shown}".rstrip()


def _scaling(record: BenchRecord) -> Iterator[str]:
    if record.scaling:
        repeats = record.settings["scaling_repeats"]
        yield f"{f'scaling, {repeats} alternating repeats':<46}{'tokens/s':>10}{'seconds':>10}{'quartiles':>18}{'peak MiB':>10}"
        yield from (_row(f"{p.series} {p.x:>5} {p.arm}", p, 46) for p in record.scaling)


def _fits(record: BenchRecord) -> Iterator[str]:
    if record.fits:
        yield f"{'fitted exponents':<64}{'exponent':>10}{'points':>8}{'worst residual':>16}"
        yield from map(_fit, record.fits)


def _fit(f: Fit) -> str:
    name = f"{f.series} {f.arm} {f.quantity}"
    if f.exponent is None:
        return f"{name:<64}{'too few':>10}{f.points:>8}"
    return f"{name:<64}{f.exponent:>10.3f}{f.points:>8}{f.worst_relative_residual:>16.1%}"


def _causes(record: BenchRecord) -> Iterator[str]:
    for i, arm in enumerate(dict.fromkeys(c.arm for c in record.causes)):
        own = [c for c in record.causes if c.arm == arm]
        known = [c.seconds_per_token for c in own if c.seconds_per_token is not None]
        whole = f"{sum(known) / MILLI:.4g} ms" if known else "not measured"
        yield from [""] * (i > 0)
        yield f"a token of {arm}: {whole}"
        yield from map(_cause, own)


def _cause(c: Cause) -> str:
    value = "not told apart" if c.seconds_per_token is None else f"{c.seconds_per_token / MILLI:.4g} ms"
    return f"  {c.cause:<18}{value:>14}  {c.what}"


def _limits(record: BenchRecord) -> Iterator[str]:
    limits = record.limits
    yield (
        f"limits: fp32 products {limits.gemm_flops_per_second / GIGA:.1f} GFLOP/s; memory: "
        f"copy {limits.copy_bytes_per_second / GIGA:.1f} GB/s, read {limits.read_bytes_per_second / GIGA:.1f} GB/s"
    )
    for part, allowed in (("training", limits.training), ("decode", limits.decode)):
        for name, limit in allowed.items():
            yield f"  {part}.{name}: at most {limit.tokens_per_second:.4g} tokens/s"


def _numerics(record: BenchRecord) -> Iterator[str]:
    n = record.numerics
    if n.loss_relative_difference is not None:
        yield (
            f"numerics, ours against stock: loss {n.loss_relative_difference:.1e}, gradients "
            f"{n.gradient_relative_difference:.1e} (worst {n.worst_gradient_relative_difference:.1e})"
        )
    for who in n.loss_error:
        yield f"  {who} against fp64: loss {n.loss_error[who]:.1e}, gradients {n.gradient_error[who]:.1e}"
    if n.loss_relative_differences:
        steps = len(n.loss_relative_differences)
        yield f"  losses of {steps} steps, dropout 0: at most {max(n.loss_relative_differences):.1e} apart"
    if n.greedy is not None:
        g = n.greedy
        gaps = f", the largest gap of their two best logits {max(g.gaps_where_not):.1e}" if g.gaps_where_not else ""
        yield f"  greedy, {g.texts} texts: {g.equal} of {g.tokens} tokens are the stock forward's choice; {g.tokens - g.equal} not{gaps}"
    for name, value in n.perplexity_relative_difference.items():
        yield f"  perplexity.{name}: {value:.1e} apart"
    for name, tokens in n.equal_tokens.items():
        made = record.settings["new_tokens"]
        equal = "not compared" if tokens is None else f"{tokens} of {made} greedy tokens equal before the first that differs"
        yield f"  decode.{name}: {equal}"


def _spread(quartiles: tuple[float, float] | None) -> str:
    return f"{quartiles[0]:.3g} to {quartiles[1]:.3g}" if quartiles else ""
