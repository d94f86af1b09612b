"""One figure of a bench record: stock against ours, and what the machine allows.

How it works: a row is one method at one shape, or one model that decodes; its bars are the stock stack and this
library, its dashed line is the limit that matrix products or reading the weights set. Whiskers are quartiles. A
part that was not run is drawn as not measured.
"""

import textwrap

from qlora_lib import style
from qlora_lib.bench.record import BenchRecord, Measurement
from qlora_lib.figures.parts import NOT_MEASURED, POINT
from qlora_lib.style import INK, SOFT

LOOKS = {  # whose -> bar
    "stock": {"facecolor": style.GREY, "hatch": "////", "edgecolor": "white", "linewidth": 0},
    "fast": {"facecolor": style.GREEN, "edgecolor": "white", "linewidth": 0},
}
LABELS = {"stock": "transformers + PEFT + bitsandbytes", "fast": "qlora_lib"}
METHODS = {"qlora": "QLoRA", "full": "full"}
DECODED = {"fp32": "fp32", "nf4dq_adapter": "NF4 + DQ,\nadapter", "nf4dq_merged": "NF4 + DQ,\nmerged", "llama_cpp": "llama.cpp"}
ONE_SIDED = ("nf4dq_merged", "llama_cpp")
LIMIT = {"color": style.VERMILLION, "linestyle": (0, (3, 1.5)), "linewidth": 1.2}
HALF = 0.19  # a bar's distance from the middle of its row

CAPTION = (
    "Training, peak memory of a training step, and decoding at batch 1: the stock stack and this library, measured in "
    "turns. “Merged” is without the adapter, as after merging and quantizing again. Dashed: what fp32 products, or reading the "
    "weights once, would take alone. Whiskers: quartiles."
)


def draw_bench(record: BenchRecord) -> style.Figure:
    """Tokens a second in training, peak bytes of a step, tokens a second in decoding."""
    by_name = {m.name: m for m in record.measurements}
    rows = [(shape, method) for shape in record.shapes for method in METHODS]
    trained = {f"{shape}.{method}": f"{shape.replace('x', ' × ')}\n{METHODS[method]}" for shape, method in rows}
    speed = lambda m: (m.tokens_per_second, _speeds(m))  # noqa: E731
    peak = style.bytes_unit([m.peak_tensor_bytes for m in record.measurements])
    with style.page_style():
        figure = framed(record, record.settings["repeats"], 2.9 + 0.95 * max(len(trained), len(DECODED)))
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.15, 1, 1.15))
        limits = {name: limit.tokens_per_second for name, limit in record.limits.training.items()}
        _rows(left, trained, {k: _sides(by_name, f"training.{k}") for k in trained}, speed, limits)
        left.set_title("(a) Training")
        left.set_xlabel("tokens/s\nmore is better")
        memory = lambda m: (m.peak_tensor_bytes and peak.of(m.peak_tensor_bytes), None)  # noqa: E731
        _rows(middle, trained, {k: _sides(by_name, f"training.{k}") for k in trained}, memory, {})
        middle.set_title("(b) Memory of a step")
        middle.set_xlabel(f"peak of all tensors, {peak.name}\nless is better")
        limits = {name: limit.tokens_per_second for name, limit in record.limits.decode.items()}
        sides = {k: _sides(by_name, f"decode.{k}") for k in DECODED if k not in ONE_SIDED}
        sides["nf4dq_merged"] = {"fast": by_name.get("decode.nf4dq_merged.fast")}
        sides["llama_cpp"] = {"alone": by_name.get("decode.llama_cpp")}
        _rows(right, DECODED, sides, speed, limits)
        right.set_title("(c) Decoding, batch 1")
        right.set_xlabel("new tokens/s\nmore is better")
        _legend(figure)
    return figure


def bench_alt(record: BenchRecord) -> str:
    """What the figure shows, with numbers, for who cannot see it."""

    def said(m: Measurement) -> str:
        if m.tokens_per_second is None:
            return f"{m.name} {NOT_MEASURED}"
        memory = f", peak {style.number(m.peak_tensor_bytes / 2**20)} MiB" if m.peak_tensor_bytes else ""
        return f"{m.name} {style.number(m.tokens_per_second)} tokens/s{memory}"

    shown = [said(m) for m in record.measurements if m.part != "perplexity"]
    shown += [
        f"{part} {NOT_MEASURED}" for part in ("training", "decode") if not any(m.part == part for m in record.measurements)
    ]
    return f"Three panels of bars, stock against qlora_lib: {'; '.join(shown)}."


def _sides(by_name: dict[str, Measurement], row: str) -> dict[str, Measurement | None]:
    return {whose: by_name.get(f"{row}.{whose}") for whose in LOOKS}


def _speeds(m: Measurement) -> tuple[float, float] | None:
    """Quartiles of the seconds, as tokens a second, low first."""
    return m.quartiles_seconds and (m.tokens / m.quartiles_seconds[1], m.tokens / m.quartiles_seconds[0])


def _rows(
    axes, labels: dict[str, str], sides: dict[str, dict[str, Measurement | None]], value_of, limits: dict[str, float]
) -> None:
    """Bars of each row, value beside them, and the row's limit."""
    for y, name in enumerate(labels):
        for whose, m in sides[name].items():
            value, spread = value_of(m) if m else (None, None)
            at = y + (0.0 if len(sides[name]) == 1 else {"stock": -HALF, "fast": HALF}[whose])
            if value is None:
                axes.annotate(
                    NOT_MEASURED, (0, at), xycoords=("axes fraction", "data"), xytext=(3, 0),
                    textcoords="offset points", va="center", size=6, style="italic", color=SOFT,
                )  # fmt: skip
                continue
            look = LOOKS.get(whose, {"facecolor": style.ORANGE, "edgecolor": "white", "linewidth": 0})
            axes.barh(at, value, height=1.8 * HALF, **look)
            if spread:
                axes.plot(spread, [at, at], color=INK, linewidth=1)
            end = max(value, spread[1] if spread else 0)
            axes.annotate(
                style.number(value), (end, at), xytext=(3, 0), textcoords="offset points", va="center", size=6,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4}, zorder=4,
            )  # fmt: skip
        if name in limits:
            axes.plot([limits[name]] * 2, [y - 0.45, y + 0.45], **LIMIT)
    axes.set_yticks(range(len(labels)), list(labels.values()))
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_xlim(0, 1.2 * axes.get_xlim()[1])  # room for the values
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=4)


def framed(record: BenchRecord, repeats: int, height: float) -> style.PageFigure:
    """An empty figure (height in cm) with a footer that names model, data and machine."""
    p = record.provenance
    foot = (
        f"Model: {record.model.name} · data: {record.data.name} · machine: {p.cpu}, {p.threads} threads · fp32 · "
        f"allocator: {p.allocator} · {repeats} alternating repeats, medians"
    )
    if record.settings["quick"]:
        foot += " · a quick run: its numbers mean nothing"
    lines = textwrap.wrap(foot, 140)
    figure = style.new_figure(height)
    inches = height * style.CM
    bottom = (8.2 * len(lines) + 5) * POINT / inches
    figure.text(0.004, 2 * POINT / inches, "\n".join(lines), size=5.6, color=SOFT, va="bottom", linespacing=1.25)
    figure.get_layout_engine().set(rect=(0, bottom, 1, 1 - bottom), w_pad=3 * POINT, h_pad=4 * POINT)
    return figure


def _legend(figure) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Patch(**LOOKS[whose], label=LABELS[whose]) for whose in LOOKS]
    handles.append(Line2D([], [], **LIMIT, label="what the machine allows"))
    figure.legend(handles=handles, loc="outside upper left", ncols=3)
