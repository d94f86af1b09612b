"""A plan as text: a table by component with a bar each, the cards, and what would make it fit.

How it works: it prints what `planner.plan` returned and computes nothing but sums and units. Bytes are in GiB (2^30) or
MiB, rates in decimal units, as data sheets have them. Bars are block characters where the terminal's encoding has them,
and `#` elsewhere.
"""

from collections.abc import Iterable

GIB, MIB = 2**30, 2**20
WIDTH = 30  # of the longest bar, in characters
BLOCKS = " ▏▎▍▌▋▊▉█"
DETAILED = 2  # cards that are told of at length; of more, a line each
NOTHING = "  nothing here makes it fit: no smaller batch, shorter length, lower rank, optimizer or method"
TERMS = {"adamw": "AdamW", "adamw_8bit": "8-bit AdamW", "paged_adamw": "paged AdamW", "paged_adamw_8bit": "paged 8-bit AdamW"}


def to_text(plan: dict, blocks: bool = True) -> str:
    """The whole answer. blocks: whether block characters can be shown."""
    return "\n".join([*_head(plan), "", *_memory(plan, blocks), "", *_cards(plan), *_details(plan)])


def bar(share: float, blocks: bool, width: int = WIDTH) -> str:
    """A bar of `share` (0 to 1) of the width."""
    eighths = round(max(0.0, min(share, 1.0)) * width * 8)
    if blocks:
        return "█" * (eighths // 8) + BLOCKS[eighths % 8].strip()
    return "#" * round(eighths / 8)


def size(count: float) -> str:
    if count >= 0.1 * GIB:
        return f"{count / GIB:.2f} GiB"
    return f"{count / MIB:.1f} MiB" if count >= 0.1 * MIB else f"{count / 1024:.1f} KiB" if count else "0"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"


def durations(low: float, high: float) -> str:
    """A range of seconds, in the unit of its high end."""
    unit = duration(high).partition(" ")[2]
    length = {"d": 86400, "h": 3600, "min": 60, "s": 1, "ms": 1e-3}[unit]
    return span(f"{low / length:.{2 if unit == 's' else 1}f} {unit}", duration(high))


def span(low: str, high: str) -> str:
    """One figure, or two with the unit once."""
    if low == high:
        return low
    (a, _, unit), (b, _, other) = low.partition(" "), high.partition(" ")
    return f"{a} to {b} {other}".rstrip() if unit == other else f"{low} to {high}"


def flops(count: float) -> str:
    for letter, factor in (("P", 1e15), ("T", 1e12), ("G", 1e9)):
        if count >= factor:
            return f"{count / factor:.2f} {letter}FLOP"
    return f"{count / 1e6:.2f} MFLOP"


# --- parts ----------------------------------------------------------------------------------------


def described(plan: dict) -> str:
    """Method and settings in words."""
    s = plan["settings"]
    words = [plan["method"], f"{s['batch']} x {s['length']} tokens" + (f", {s['accumulation']} times accumulated" if s["accumulation"] > 1 else "")]
    if "rank" in s:
        words.append(f"rank {s['rank']} on {'all linear layers' if len(s['targets']) == 7 else ', '.join(s['targets'])}")
    if s["quantization"] != "none":
        words.append(s["quantization"] + (" with double quantization" if s["double_quant"] and s["quantization"] != "int8" else ""))
    words += [TERMS[s["optimizer"]], s["dtype"]]
    words += ["checkpointing"] * s["checkpointing"] + ["eager attention"] * (s["attention"] == "eager")
    words += ["loss in pieces"] * (s["loss"] == "chunked" and not s["fast"])
    words.append("forwards of qlora_lib.fast" if s["fast"] else "stock forwards")
    return "; ".join(words)


def _head(plan: dict) -> list[str]:
    counts = plan["parameters"]
    trained = f"{counts['trainable']:,} trained ({100 * counts['trainable'] / (counts['total'] + counts['adapters']):.3g} %)"
    return [
        f"{plan['model']}: {described(plan)}",
        f"widths: {plan['widths']}; all figures are predicted, nothing was run",
        f"parameters: {counts['total']:,} in the base, {trained}",
    ]


def _memory(plan: dict, blocks: bool) -> list[str]:
    top = max(plan["bytes"].values())
    width = max(map(len, plan["bytes"]))
    lines = [f"memory at the highest moment of a step ({plan['moment']}), on {'this CPU' if plan['for'] == 'cpu' else plan['for']}:"]
    for name, count in plan["bytes"].items():
        full = plan["sizes"][name]
        other = f"({size(full)} at another moment)" if full > 1.05 * count and full > 0.01 * plan["peak_bytes"] else ""
        lines.append(f"  {name:<{width}}  {size(count):>10}  {' '.join(filter(None, (bar(count / top, blocks), other)))}".rstrip())
    lines.append(f"  {'peak of tensors':<{width}}  {size(plan['peak_bytes']):>10}")
    beside = plan["overhead_bytes"]
    if beside["high"]:
        low, high = size(beside["low"]), size(beside["high"])
        lines.append(f"  {'beside them':<{width}}  {low:>10} to {high}: CUDA's context, the allocator's slack")
    if plan["paged_bytes"]:
        lines.append(f"  {'paged':<{width}}  {size(plan['paged_bytes']):>10}  optimizer states that may lie in the host's memory")
    lines += [f"  estimated: {what}" for what in plan["estimated"]]
    f = plan["flops"]
    more = f", with what is computed again {flops(f['hardware'])}" if f["hardware"] > f["model"] else ""
    lines.append(f"a step of {plan['tokens_per_step']:,} tokens: {flops(f['model'])} of the model{more}")
    return lines


def _cards(plan: dict) -> list[str]:
    searched = all("largest" in card for card in plan["gpus"].values())
    priced = any(card["run"] and card["run"]["price"] for card in plan["gpus"].values())
    timed = any(card["run"] for card in plan["gpus"].values())
    header = ["card", "usable", "verdict", "needs", "a step: at least", "estimated", "decodes, tokens/s"]
    header += ["largest batch, length"] * searched + ["the run"] * timed + ["price"] * priced
    rows = [header]
    for name, card in plan["gpus"].items():
        step, decode = card["step"], card["decode"]
        low, high = (card["peak_bytes"] + card["overhead_bytes"][end] for end in ("low", "high"))
        estimate, spoken = step["estimate_seconds"], decode["estimate_tokens_per_second"]
        row = [
            "this CPU" if name == "cpu" else name,
            f"{card['usable_bytes'] / GIB:.1f} GiB",
            card["verdict"],
            span(size(low), size(high)),
            duration(step["limit_seconds"]) + (f" ({step['bound']})" if step["bound"] else ""),
            durations(estimate["low"], estimate["high"]) if estimate else "-",
            span(f"{spoken['low']:.0f}", f"{spoken['high']:.0f}") if spoken else "-",
        ]
        if searched:
            best = card["largest"]
            row.append(", ".join(_most(best, key) for key in ("batch_size", "seq_len")) if best["batch_size"] or best["seq_len"] else "-")
        row += [_hours(card["run"])] * timed + [_price(card["run"])] * priced
        rows.append(row)
    return table(rows)


def _most(best: dict, key: str) -> str:
    value = best[key]
    if value is None:
        return "-"
    return f"{value:,}" + ("+" if value == best["search_ends_at"][key] else "")


def _hours(run: dict | None) -> str:
    if not run or run["hours_at_least"] is None:
        return "-"
    estimate = run["hours_estimate"]
    if not estimate:
        return f"at least {duration(3600 * run['hours_at_least'])}"
    return durations(3600 * estimate["low"], 3600 * estimate["high"])


def _price(run: dict | None) -> str:
    price = run and run["price"]
    if not price or price["at_least"] is None:
        return "-"
    estimate = price["estimate"]
    return span(f"{estimate['low']:.2f}", f"{estimate['high']:.2f}") if estimate else f"at least {price['at_least']:.2f}"


def table(rows: list[list[str]]) -> list[str]:
    """Rows of cells as lines, in columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths)).rstrip() for row in rows]


def _details(plan: dict) -> Iterable[str]:
    at_length = len(plan["gpus"]) <= DETAILED
    if not at_length and any(not fits for fits in plan["fits"].values()):
        yield ""
    for name, card in plan["gpus"].items():
        name = "this CPU" if name == "cpu" else name
        if at_length:
            yield ""
            yield f"{name}: {card['verdict']}: {card['why']}"
            step, decode = card["step"], card["decode"]
            if step["limit_seconds"] is not None:
                yield f"  limit of a step: {duration(step['limit_seconds'])}, bound by {step['bound'] or 'compute, as far as is known'}; {step['peak']}; {step['bandwidth']}"
            share = step["share_of_peak"]
            reached = f"{span(*(f'{100 * share[end]:.0f} %' for end in ('low', 'high')))} of the peak, " if share else ""
            yield f"  estimate of a step: {reached}{step['share_from']}"
            if decode["limit_tokens_per_second"]:
                yield f"  decoding one text: at most {decode['limit_tokens_per_second']:.0f} tokens/s ({size(decode['bytes_per_token'])} a token); estimate: {decode['estimate_from']}"
            if run := card["run"]:
                least = f", at least {duration(3600 * run['hours_at_least'])}" if run["hours_at_least"] else ""
                yield f"  the run: {run['steps']:,} steps, {run['tokens']:,} tokens{least}"
        elif card["verdict"] != "fits":
            yield f"{name}: {card['why']}"
        yield from (f"  note: {note}" for note in card["notes"])
        if card["verdict"] != "fits" and "advice" in card:
            yield from _advice(card["advice"] if at_length else card["advice"][:1])


def _advice(ways: list[dict]) -> Iterable[str]:
    if not ways:
        yield NOTHING
    for way in ways:
        yield told(way)


def told(way: dict) -> str:
    """A way to make it fit, in one line."""
    needs = span(*(size(way["needs_bytes"][end]) for end in ("low", "high")))
    return f"  fits with {' + '.join(way['changes'])}: {needs}, time x {way['time_ratio']:.2f}, {way['result']}"
