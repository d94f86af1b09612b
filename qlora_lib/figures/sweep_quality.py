"""What training with each setting reaches: validation loss as it falls, and perplexity against memory.

How it works: methods stand at their best learning rates, as sweeps.py chose them; the profile's own arms stand beside them,
apart, since they trained on more tokens. Times of sweeps are never drawn.
"""

from collections.abc import Sequence

from qlora_lib import style, sweeps
from qlora_lib.analysis import deployed
from qlora_lib.figures import parts
from qlora_lib.figures.parts import NothingToDraw, Records, framed, settled
from qlora_lib.figures.sweeps import LABELS, LOOKS, Look, rate_text
from qlora_lib.style import INK
from qlora_lib.sweeps import Point

CURVES_CAPTION = (
    "Validation loss during training at each method’s best learning rate: left the demo’s arms, right the sweep’s, one line a seed."
)
MEMORY_CAPTION = (
    "Perplexity on the test split against what training holds at its peak, and against what is deployed. Points are means over "
    "seeds; crosses are the demo’s arms, which trained on more tokens."
)


# --- curves -----------------------------------------------------------------------------------------


def curves_arms(found: Records, demo: Records) -> list[str]:
    best = {n: p for n, p in sweeps.at_best(found).items() if n in ("full", "lora", "qlora")}
    arms = [r.arm for p in best.values() for r in p.records]
    if len(best) < 2:
        raise NothingToDraw("fewer than two methods have a best learning rate")
    return arms


def draw_curves(found: Records, demo: Records) -> style.Figure:
    """Validation loss against tokens: QLoRA against full fine-tuning and LoRA."""
    arms = curves_arms(found, demo)
    best = {n: p for n, p in sweeps.at_best(found).items() if n in ("full", "lora", "qlora")}
    mine = [a for a in ("full", "lora", "qlora") if a in demo and demo[a].train and demo[a].train.eval_loss]
    rates = "; ".join(f"{LABELS[n]} {rate_text(p.value)}" for n, p in best.items())
    notes = [f"Learning rates, right: {rates}. QLoRA starts higher because its base is quantized."]
    groups = [("Sweep, one line a seed", [(n, list(p.records)) for n, p in best.items()])]
    if mine:
        groups.insert(0, ("Demo, one seed", [(a, [demo[a]]) for a in mine]))
    with style.page_style():
        figure = framed("Validation loss, each method at its best", 7.6, found, arms, notes)
        panels = figure.subplots(1, len(groups), sharey=True, squeeze=False)[0]
        longest = max(r.train.tokens for _, lines in groups for _, rs in lines for r in rs)
        unit = style.count_unit([longest])
        for axes, (title, lines) in zip(panels, groups, strict=True):
            for name, records in lines:
                look = LOOKS[name]
                for i, r in enumerate(records):
                    x = [unit.of(step * r.train.tokens_per_step) for step in r.train.eval_steps]
                    axes.plot(
                        x, r.train.eval_loss, color=look.color, ls="-" if i == 0 else (0, (4, 1.5)), marker=look.marker, ms=4,
                        mfc="white" if look.hollow else look.color, label=LABELS[name] if i == 0 else None,
                    )  # fmt: skip
            axes.set_title(title)
            axes.set_xlabel(f"training tokens, {unit.name}".rstrip(", "))
            axes.yaxis.grid(True)
        panels[0].set_ylabel("validation loss, nats a token")
        panels[-1].legend(loc="upper right")
        return settled(figure)


# --- quality against memory ---------------------------------------------------------------------------


def memory_points(found: Records) -> dict[str, tuple[Point, Look]]:
    """Label -> point: each method at its best, and the settings of QLoRA that change its bytes."""
    shown = {LABELS[n]: (p, LOOKS[n]) for n, p in sweeps.at_best(found).items()}
    axes = sweeps.setting_axes(found)
    if rank := axes.get("rank"):
        for p in (rank.points[0], rank.points[-1]):
            shown[f"QLoRA, rank {p.value:g}"] = (p, LOOKS["rank"])
    if best := axes["rank-attention"].best if "rank-attention" in axes else None:
        shown[f"QLoRA, attention only, rank {best.value:g}"] = (best, LOOKS["rank-attention"])
    if batch := axes.get("tokens-tuned"):
        for p in (batch.points[0], batch.points[-1]):
            shown[f"QLoRA, {p.value:g} tokens a step"] = (p, LOOKS["tokens-tuned"])
    known: dict[str, str] = {}
    for label, (point, _) in list(shown.items()):
        if point.failures or None in point.perplexities or point.name in known:
            del shown[label]
        else:
            known[point.name] = label
    return shown


def memory_arms(found: Records, _: Records) -> list[str]:
    points = memory_points(found)
    if len(points) < 2:
        raise NothingToDraw("fewer than two arms were scored on the test split")
    return [r.arm for p, _ in points.values() for r in p.records]


def draw_memory(found: Records, demo: Records) -> style.Figure:
    """Test perplexity against peak tensor bytes of a step, and against resident bytes."""
    arms, points = memory_arms(found, demo), memory_points(found)
    trained = [r for r in demo.values() if r.method != "base" and r.train and deployed(r)[0] is not None]
    measures = (
        ("Training: tensors at their peak", lambda r: r.train and r.train.peak_tensor_bytes),
        ("Deployed: resident weights and adapter", lambda r: r.size_bytes.total),
    )
    notes = ["Down and left is better; the vertical axis does not start at 0. Means over seeds."]
    if trained:
        notes[0] += " Small crosses: the demo’s arms, on more tokens."
    with style.page_style():
        figure = framed("Perplexity against memory", 9.6, found, arms, notes)
        panels = figure.subplots(1, 2, sharey=True)
        heights = [_mean(p.perplexities) for p, _ in points.values()] + [deployed(r)[0] for r in trained]
        low, high = min(heights), max(heights)
        for axes, (title, of) in zip(panels, measures, strict=True):
            unit = style.bytes_unit([of(p.records[0]) for p, _ in points.values()])
            spots = []
            for label, (point, look) in points.items():
                if (size := of(point.records[0])) is not None:
                    y = _mean(point.perplexities)
                    spots.append((unit.of(size), y, label, look.color))
                    axes.plot(
                        unit.of(size), y, marker=look.marker, mec=look.color, mew=1.3, ls="none", zorder=3,
                        mfc="white" if look.hollow else look.color,
                    )  # fmt: skip
            for record in trained:
                if size := of(record):
                    axes.plot(unit.of(size), deployed(record)[0], "+", color=style.METHOD_COLOR[record.method], ms=5, zorder=2)
            axes.set_title(title)
            axes.set_xlabel(f"{unit.name}")
            axes.grid(True)
            axes.set_xlim(0, 1.62 * max(x for x, *_ in spots))
            _name_spots(axes, spots, low, high)
        panels[0].set_ylabel("perplexity on the test split")
        return settled(figure)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _name_spots(axes, spots, low: float, high: float) -> None:
    """Names in columns to the right of each cluster of points, with leaders."""
    right = axes.get_xlim()[1]
    span = max(high - low, 0.02 * high)
    clusters: list[list[tuple]] = []
    for spot in sorted(spots):
        if clusters and spot[0] - clusters[-1][-1][0] < 0.42 * right:
            clusters[-1].append(spot)
        else:
            clusters.append([spot])
    axes.set_ylim(low - 0.12 * span, high + 0.12 * span)
    for cluster in clusters:
        column = max(x for x, *_ in cluster) + 0.04 * right
        heights = parts.spread([y for _, y, *_ in cluster], 0.058 * span)
        for (x, y, label, color), at in zip(cluster, heights, strict=True):
            axes.plot([x, column], [y, at], color=color, lw=0.5, zorder=1)
            axes.text(column, at, f" {label}", va="center", size=6, color=INK, zorder=4,
                      bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4})  # fmt: skip


# --- in words -----------------------------------------------------------------------------------------


def curves_alt(found: Records, _: Records) -> str:
    rows = (
        f"{LABELS[n]}: {p.records[0].train.eval_loss[0]:.2f} to {p.mean:.2f}"
        for n, p in sweeps.at_best(found).items() if n != "qlora-8bit"
    )  # fmt: skip
    return f"Validation loss during training. {'; '.join(rows)}."


def memory_alt(found: Records, _: Records) -> str:
    rows = (
        f"{label}: perplexity {_mean(p.perplexities):.2f}, "
        f"{style.number(p.records[0].size_bytes.total / 2**20)} MiB deployed" for label, (p, _) in memory_points(found).items()
    )  # fmt: skip
    return f"Perplexity against memory. {'; '.join(rows)}."
