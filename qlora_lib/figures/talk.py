"""Figures worth keeping in a talk: of plain arrays, each readable from the back of a room.

How it works: a lesson computes the numbers and calls one of these; `Lesson.keep` shows the figure and
saves it. Nothing here reads a record or loads torch.
"""

import numpy as np

from qlora_lib import style


def draw_codebooks(scaled: np.ndarray, codebooks: dict[str, tuple[np.ndarray, np.ndarray]]) -> style.Figure:
    """Where the weights are, and where each data type has its levels.

    Args:
        scaled: weights divided by their block's absmax, [n] in [-1, 1].
        codebooks: data type -> (levels, [16]; the share of the weights that takes each, [16]).
    """
    colors = (style.GREEN, style.ORANGE, style.BLUE, style.PURPLE)
    with style.page_style():
        figure = style.new_figure(3.2 + 2.1 * len(codebooks))
        top, *rows = figure.subplots(1 + len(codebooks), 1, sharex=True, height_ratios=[1.5] + [1] * len(codebooks))
        bins = np.linspace(-1, 1, 162)
        top.hist(scaled, bins, density=True, color=style.FAINT, edgecolor=style.SOFT, linewidth=0.3)
        top.set_ylabel("density")
        top.set_title("Weights, each divided by the largest of its block")
        highest = max(100 * share.max() for _, share in codebooks.values())
        for axes, (name, (levels, share)), color in zip(rows, codebooks.items(), colors):
            axes.vlines(levels, 0, 100 * share, color=color, linewidth=3)
            axes.plot(levels, np.zeros_like(levels), "|", color=style.INK, markersize=7, clip_on=False)
            axes.axhline(100 / 16, color=style.SOFT, linewidth=0.8, linestyle="--")
            axes.set_ylim(0, 1.15 * highest)
            axes.set_ylabel("use, %")
            axes.set_title(name)
        rows[0].text(1.0, 100 / 16, "equal use", ha="right", va="bottom", fontsize=6.5, color=style.SOFT)
        rows[-1].set_xlabel("weight / absmax of its block")
    return figure


def draw_error_map(errors: dict[str, np.ndarray], unit: str) -> style.Figure:
    """The same piece of a matrix in several data types, side by side on one colour scale.

    errors: title -> |error| in `unit`, all of one shape [rows, columns].
    """
    # One format may be so bad that on its scale the others would look alike: it is cut off, which the bar shows.
    top = float(np.median([np.quantile(e, 0.995) for e in errors.values()])) or 1.0
    shape = next(iter(errors.values())).shape
    down = -(-len(errors) // 2)
    with style.page_style():
        figure = style.new_figure(1.4 + down * (1.0 + 9.0 * min(shape[0] / shape[1], 1)))
        panels = figure.subplots(down, 2, sharex=True, sharey=True, squeeze=False)
        for axes, (title, error) in zip(panels.flat, errors.items()):
            image = axes.imshow(error, vmin=0, vmax=top, cmap="cividis", interpolation="nearest", aspect="auto")
            axes.set_title(title)
        for axes in panels.flat[len(errors) :]:
            axes.set_visible(False)
        for axes in panels[-1]:
            axes.set_xlabel("column (input)")
        for axes in panels[:, 0]:
            axes.set_ylabel("row (output)")
        bar = figure.colorbar(image, ax=panels, shrink=0.9, extend="max")
        bar.set_label(f"error, {unit}")
    return figure


def draw_singular_values(curves: dict[str, dict[str, np.ndarray]], rank: int) -> style.Figure:
    """How fast the singular values of matrices fall, and the share of the squared norm that a rank keeps.

    Args:
        curves: kind of module -> what ("update", "weight", "noise") -> squared singular values as shares of
            their sum, [k], largest first.
        rank: marked in every panel.
    """
    looks = [(style.BLUE, "-", "o"), (style.ORANGE, "--", "s"), (style.GREY, ":", "^")]
    with style.page_style():
        figure = style.new_figure(9)
        panels = figure.subplots(2, len(curves), sharex="col", sharey="row", squeeze=False)
        for (top, bottom), (kind, found) in zip(panels.T, curves.items()):
            for (what, shares), (color, line, marker) in zip(found.items(), looks):
                index = np.arange(1, len(shares) + 1)
                marks = np.unique(np.geomspace(1, len(shares), 8).astype(int)) - 1
                look = {"color": color, "linestyle": line, "marker": marker, "markevery": list(marks), "markersize": 3.5}
                top.loglog(index, np.sqrt(np.maximum(shares, 1e-12) / shares[0]), **look)
                bottom.semilogx(index, 100 * np.cumsum(shares), label=what, **look)
                bottom.plot([rank], [100 * shares[:rank].sum()], "D", color=color, markersize=6, markeredgecolor=style.INK)
            ticks = [4**i for i in range(8) if 4**i <= len(index)]
            for axes in (top, bottom):
                axes.axvline(rank, color=style.SOFT, linewidth=0.8, linestyle=(0, (4, 2)))
                axes.minorticks_off()
                axes.set_xticks(ticks, [f"{t:,}" for t in ticks])
            top.set_title(kind)
            top.set_ylim(8e-3, 1.2)
            top.set_yticks([0.01, 0.03, 0.1, 0.3, 1], ["0.01", "0.03", "0.1", "0.3", "1"])
            top.text(rank / 1.1, 0.0095, f"rank {rank}", ha="right", fontsize=6.5, color=style.SOFT)
            bottom.set_ylim(0, 102)
            bottom.set_xlabel("singular value, largest first; rank")
        panels[0, 0].set_ylabel("singular value / the largest")
        panels[1, 0].set_ylabel("squared norm kept, %")
        panels[1, 0].legend(loc="upper left")
    return figure


MEMORY_LOOKS = {  # part -> colour, hatch
    "weights": (style.BLUE, ""),
    "optimizer states": (style.PURPLE, "xxxx"),
    "gradients": (style.SKY, "////"),
    "activations": (style.ORANGE, ""),
    "logits": (style.YELLOW, "...."),
    "step, metered": ("white", ""),
}


def draw_memory_anatomy(
    predicted: dict[str, dict[str, float]], measured: dict[str, dict[str, float]], limit: float | None = None
) -> style.Figure:
    """What a training step holds at its peak, computed from the shapes above what was measured.

    Args:
        predicted: method -> {part of `MEMORY_LOOKS`: bytes}.
        measured: the same, for those methods that were measured; may be empty.
        limit: bytes that there are, drawn as a line.
    """
    unit = style.bytes_unit([sum(parts.values()) for parts in predicted.values()])
    with style.page_style():
        figure = style.new_figure(1.9 + (1.25 if measured else 0.8) * len(predicted))
        axes = figure.subplots()
        for row, (method, parts) in enumerate(predicted.items()):
            if method in measured:
                _memory_bar(axes, row - 0.2, 0.36, parts, unit, "computed")
                _memory_bar(axes, row + 0.24, 0.28, measured[method], unit, "measured")
            else:
                _memory_bar(axes, row, 0.5, parts, unit, "")
        if limit is not None:
            axes.axvline(unit.of(limit), color=style.VERMILLION, linestyle="--", linewidth=1.2, label="there is")
        axes.set_yticks(range(len(predicted)), list(predicted))
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(predicted) - 0.45, -0.55)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.22)
        axes.set_xlabel(f"memory of the tensors at the peak of a step, {unit.name}")
        found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        names = [name for name in (*MEMORY_LOOKS, "there is") if name in found]
        figure.legend([found[n] for n in names], names, loc="outside upper left", ncols=7, columnspacing=1.2)
    return figure


def _memory_bar(axes, y: float, height: float, parts: dict[str, float], unit: style.Unit, note: str) -> None:
    end = 0.0
    for part, size in parts.items():
        if size > 0:
            color, hatch = MEMORY_LOOKS[part]
            edge = style.INK if color == "white" else "white"
            axes.barh(
                y, unit.of(size), left=unit.of(end), height=height, color=color, hatch=hatch, edgecolor=edge,
                linewidth=0.5, label=part,
            )  # fmt: skip
            end += size
    text = f"{style.number(unit.of(end))} {note}".strip()
    axes.annotate(
        text, (unit.of(end), y), xytext=(5, 0), textcoords="offset points", va="center", size=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6},
    )  # fmt: skip


def draw_resident_anatomy(
    models: dict[str, dict[str, float]], sixteen_bit: dict[str, float], counted: set[str]
) -> style.Figure:
    """What a 4-bit model is made of, as shares of the same model in 16 bits.

    Args:
        models: model -> component -> bytes; the same components in every model.
        sixteen_bit: model -> its bytes in 16 bits.
        counted: the models that were counted; the others are predicted, and drawn paler.
    """
    colors = (style.GREEN, style.SKY, style.ORANGE, style.PURPLE, style.GREY)
    hatches = ("", "xxxx", "////", "....", "")
    with style.page_style():
        figure = style.new_figure(2.4 + 1.05 * len(models))
        axes = figure.subplots()
        for y, (model, parts) in enumerate(models.items()):
            left = 0.0
            for (name, size), color, hatch in zip(parts.items(), colors, hatches):
                width = 100 * size / sixteen_bit[model]
                axes.barh(y, width, left=left, height=0.6, color=color, hatch=hatch, edgecolor="white", linewidth=0,
                          alpha=1.0 if model in counted else 0.7, label=name if y == 0 else None)  # fmt: skip
                left += width
            axes.text(left + 1, y, f"{left:.0f} %: {100 / left:.2f} times smaller", va="center")
        axes.axvline(25, color=style.INK, linewidth=0.8, linestyle="--")
        axes.text(25, -0.62, " 4 of 16 bits", va="bottom")
        axes.set_yticks(range(len(models)), [m + ("" if m in counted else "\n(predicted)") for m in models])
        axes.set_ylim(len(models) - 0.5, -0.7)
        axes.set_xlim(0, 1.45 * max(100 * sum(parts.values()) / sixteen_bit[model] for model, parts in models.items()))
        axes.set_xlabel("bytes, % of the model in 16 bits")
        figure.legend(loc="outside upper center", ncols=len(colors))
    return figure
