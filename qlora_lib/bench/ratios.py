"""Which measurements are compared, and how.

How it works: `a_over_b` is a's tokens a second over b's (above 1: a is faster), under `memory.` a's peak bytes over
b's (below 1: a needs less). Times are divided repeat by repeat, since a machine that slows down slows both sides
of a pair; the median of those ratios is given. A limit has no repeats: there the medians are divided. Where a side
was not measured the ratio is null.
"""

import statistics
from collections.abc import Mapping, Sequence

from qlora_lib.bench.record import Limits, Measurement, Ratio, quartiles

SPEED, MEMORY = "tokens_per_second", "peak_tensor_bytes"


def pairs(shapes: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Ratio's name -> names of the two measurements."""
    found = {}
    for shape in shapes:
        for kind in ("training", "memory"):
            arm = f"training.{shape}"
            found |= {
                f"{kind}.{shape}.qlora.fast_over_stock": (f"{arm}.qlora.fast", f"{arm}.qlora.stock"),
                f"{kind}.{shape}.full.fast_over_stock": (f"{arm}.full.fast", f"{arm}.full.stock"),
                f"{kind}.{shape}.fast.qlora_over_full": (f"{arm}.qlora.fast", f"{arm}.full.fast"),
                f"{kind}.{shape}.stock.qlora_over_full": (f"{arm}.qlora.stock", f"{arm}.full.stock"),
            }
    return found | {
        "decode.nf4dq_adapter.fast_over_stock": ("decode.nf4dq_adapter.fast", "decode.nf4dq_adapter.stock"),
        "decode.nf4dq_adapter.fast_over_stock_fp32": ("decode.nf4dq_adapter.fast", "decode.fp32.stock"),
        "decode.nf4dq_adapter.stock_over_stock_fp32": ("decode.nf4dq_adapter.stock", "decode.fp32.stock"),
        "decode.nf4dq_adapter.fast_over_llama_cpp": ("decode.nf4dq_adapter.fast", "decode.llama_cpp"),
        "decode.nf4dq_merged.fast_over_stock_fp32": ("decode.nf4dq_merged.fast", "decode.fp32.stock"),
        "decode.fp32.fast_over_stock": ("decode.fp32.fast", "decode.fp32.stock"),
        "decode.llama_cpp_over_stock_fp32": ("decode.llama_cpp", "decode.fp32.stock"),
        "perplexity.fast_over_stock": ("perplexity.nf4dq_adapter.fast", "perplexity.nf4dq_adapter.stock"),
        "perplexity.fp32.fast_over_stock": ("perplexity.fp32.fast", "perplexity.fp32.stock"),
    }


def ratios(measurements: Sequence[Measurement], limits: Limits, shapes: Sequence[str]) -> dict[str, Ratio]:
    """Every ratio that a record holds, by name."""
    by_name = {m.name: m for m in measurements}
    found = {}
    for name, (above, below) in pairs(shapes).items():
        quantity = MEMORY if name.startswith("memory.") else SPEED
        each = _each(by_name.get(above), by_name.get(below), quantity)
        found[name] = Ratio(
            value=statistics.median(each) if each else None, quartiles=quartiles(each),
            quantity=quantity, numerator=above, denominator=below,
        )  # fmt: skip
    return found | _of_limits(by_name, limits, shapes)


def _each(above: Measurement | None, below: Measurement | None, quantity: str) -> list[float]:
    """One ratio for each pair of repeats; none where a side was not measured."""
    if above is None or below is None:
        return []
    if quantity == MEMORY:
        a, b = above.peak_tensor_bytes, below.peak_tensor_bytes
        return [a / b] if a and b else []
    scale = above.tokens / below.tokens
    return [scale * b / a for a, b in zip(above.seconds, below.seconds)]


def _of_limits(by_name: Mapping[str, Measurement], limits: Limits, shapes: Sequence[str]) -> dict[str, Ratio]:
    """Each speed as a share of what the machine's products or its memory allow."""
    where = [("training", limits.training, f"{shape}.{method}") for shape in shapes for method in ("qlora", "full")]
    where += [("decode", limits.decode, model) for model in ("fp32", "nf4dq_adapter")]
    found = {}
    for part, allowed, place in where:
        for whose in ("stock", "fast"):
            name, limit = f"{part}.{place}.{whose}", allowed.get(place)
            speed = by_name[name].tokens_per_second if name in by_name else None
            found[f"{name}_over_limit"] = Ratio(
                value=speed / limit.tokens_per_second if speed and limit else None,
                quantity=SPEED, numerator=name, denominator=f"limits.{part}.{place}",
            )  # fmt: skip
    return found
