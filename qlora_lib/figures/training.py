"""What happens during training: losses against tokens, and what fills the memory at its peak.

How it works: the raw training loss is drawn light, under a centred moving average. The memory bars
stack what was counted from the tensors; what remains of the peak of one step is activations and
temporaries. The mark beside a bar is what the process as a whole held at most.
"""

import numpy as np

from qlora_lib import style
from qlora_lib.figures import parts
from qlora_lib.figures.parts import NothingToDraw, Records, framed
from qlora_lib.records import RunRecord
from qlora_lib.style import FAINT, INK, SOFT

CURVES_CAPTION = (
    "Training loss (light: each step; heavy: moving average) and validation loss against the "
    "number of training tokens."
)
MEMORY_CAPTION = (
    "Memory at the peak of one training step, by component. Components are counted from the "
    "tensors; activations and temporaries are what remains of the measured peak."
)
COMPONENTS = (  # name, colour, hatch
    ("quantized weights", style.GREEN, None),
    ("quantization state", style.YELLOW, None),
    ("unquantized weights", style.BLUE, None),
    ("adapter", style.ORANGE, None),
    ("gradients", style.SKY, "/////"),
    ("optimizer states", style.PURPLE, "xxxxx"),
    ("activations and temporaries", FAINT, None),
)


def curve_arms(records: Records) -> list[str]:
    """Trained arms; those that ran under half as many steps as the longest were only timed."""
    trained = [a for a in style.in_order(records) if records[a].train and records[a].train.loss]
    if not trained:
        raise NothingToDraw("no arm recorded a training loss")
    longest = max(len(records[arm].train.loss) for arm in trained)
    return [arm for arm in trained if len(records[arm].train.loss) * 2 >= longest]


def moving_average(values, width: int) -> np.ndarray:
    """Centred mean over `width` steps (odd), over those that exist near the ends."""
    ones, values = np.ones(width), np.asarray(values, float)
    return np.convolve(values, ones, "same") / np.convolve(np.ones(len(values)), ones, "same")


def draw_loss_curves(records: Records) -> style.Figure:
    """Training loss and validation loss, each against tokens."""
    arms, styles = curve_arms(records), style.arm_styles(records)
    longest = max(len(records[arm].train.loss) for arm in arms)
    width = max(1, longest // 16) * 2 + 1
    width = min(width, max(1, (longest - 1) // 2 * 2 + 1))
    short = [a for a in records if records[a].train and records[a].train.loss and a not in arms]
    notes = [f"Left: light, the loss of each step; heavy, its centred mean over {width} steps."]
    if short:
        notes.append(f"Not shown, because run for a few steps only: {parts.named(records, short)}.")
    unit = style.count_unit([records[arm].train.tokens for arm in arms])
    with style.page_style():
        figure = framed("Loss during training", 8.0, records, arms, notes)
        left, right = figure.subplots(1, 2)
        train_ends, eval_ends = {}, {}
        for arm in arms:
            train, color, line = records[arm].train, styles[arm].color, styles[arm].line
            tokens = unit.of(train.tokens_per_step * np.arange(1, len(train.loss) + 1))
            smooth = moving_average(train.loss, width)
            left.plot(tokens, train.loss, color=color, lw=0.6, alpha=0.35)
            left.plot(tokens, smooth, color=color, ls=line)
            train_ends[arm] = (tokens[-1], smooth[-1])
            if train.eval_loss:
                at = unit.of(train.tokens_per_step * np.asarray(train.eval_steps))
                right.plot(at, train.eval_loss, ls=line, **styles[arm].point)
                eval_ends[arm] = (at[-1], train.eval_loss[-1])
        for axes, ends, what in ((left, train_ends, "training"), (right, eval_ends, "validation")):
            axes.set_title(f"{what.capitalize()} loss")
            axes.set_xlabel(f"training tokens, {unit.name}".rstrip(", "))
            axes.set_ylabel(f"{what} loss, nats a token")
            axes.yaxis.grid(True)
            if ends:
                _label_ends(axes, ends, records, styles)
            else:
                axes.text(
                    0.5, 0.5, parts.NOT_MEASURED, transform=axes.transAxes, ha="center",
                    style="italic", color=SOFT,
                )  # fmt: skip
                axes.set_xticks([])
                axes.set_yticks([])
    return figure


def _label_ends(axes, ends, records, styles):
    """Each curve's name to the right of its last point, with a thin leader."""
    bottom, top = axes.get_ylim()
    right = max(x for x, _ in ends.values())
    column = right * 1.07
    axes.set_xlim(-0.02 * right, right * 1.38)
    axes.set_ylim(bottom, top)
    labels = [parts.wrapped(records[arm].label, 13) for arm in ends]
    gap = 0.065 if max(label.count("\n") for label in labels) == 0 else 0.09
    heights = parts.spread([y for _, y in ends.values()], gap * (top - bottom))
    for (arm, (x, y)), label, at in zip(ends.items(), labels, heights, strict=True):
        axes.plot([x, column], [y, at], color=styles[arm].color, lw=0.5, clip_on=False)
        axes.text(
            column + 0.015 * right, at, label, va="center", size=6.5, color=INK, linespacing=0.95
        )  # fmt: skip


def tensor_peak(record: RunRecord) -> int | None:
    """Peak tensor bytes: metered on a CPU; on CUDA the allocator's peak is the same thing."""
    train = record.train
    if train.peak_tensor_bytes is None and record.provenance.device != "cpu":
        return train.peak_memory_bytes
    return train.peak_tensor_bytes


def memory_parts(record: RunRecord) -> list[int | None]:
    """Bytes of each of `COMPONENTS`; None where it was not measured."""
    size, train = record.size_bytes, record.train
    counted = [
        size.quantized_weights, size.quantization_state, size.unquantized, size.adapter,
        train.gradient_bytes, train.optimizer.state_bytes,
    ]  # fmt: skip
    peak = tensor_peak(record)
    rest = None if peak is None or None in counted else peak - sum(counted)
    return [*counted, rest]


def memory_arms(records: Records) -> list[str]:
    arms = [arm for arm in style.in_order(records) if records[arm].train is not None]
    if not arms:
        raise NothingToDraw("no arm was trained")
    return arms


def draw_memory_breakdown(records: Records) -> style.Figure:
    """Stacked bars of measured components, with the measured peak of all memory as a mark."""
    arms = memory_arms(records)
    table = {arm: memory_parts(records[arm]) for arm in arms}
    totals = {arm: sum(max(b or 0, 0) for b in table[arm]) for arm in arms}
    peaks = {arm: records[arm].train.peak_memory_bytes for arm in arms}
    # A process of hundreds of MiB would flatten bars of a few KiB: then it is written, not drawn.
    marked = max(peaks.values()) < 20 * max(totals.values())
    meter = ", ".join(dict.fromkeys(records[arm].train.peak_memory_meter for arm in arms))
    unit = style.bytes_unit(totals.values())
    notes = _memory_notes(records, table)
    if any(peaks[arm] != totals[arm] for arm in arms):
        notes.append(f"In all: {meter}{'' if marked else ', too far to the right to be drawn'}.")
    with style.page_style():
        figure = framed(
            "Memory at the peak of a training step", 4.6 + 0.8 * len(arms), records, arms, notes
        )
        axes = figure.subplots()
        for row, arm in enumerate(arms):
            end = _stack(axes, row, table[arm], unit)
            if table[arm][-1] is None:
                text = f"{_bytes(totals[arm], unit)} counted, activations {parts.NOT_MEASURED}"
            else:
                text = f"{_bytes(tensor_peak(records[arm]), unit)} of tensors"
            if peaks[arm] != totals[arm]:
                text += f",\n{_bytes(peaks[arm], unit if marked else None)} in all"
            if marked:
                mark = unit.of(peaks[arm])
                axes.plot(mark, row, marker="|", ms=14, mew=1.6, color=INK, ls="none", label=meter)
                end = max(end, mark)
            axes.annotate(
                text, (end, row), xytext=(6, 0), textcoords="offset points", va="center", size=6.5
            )
        axes.set_yticks(range(len(arms)), [parts.wrapped(records[a].label, 18) for a in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.2)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"memory, {unit.name}")
        handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        wanted = [name for name in (*(name for name, *_ in COMPONENTS), meter) if name in handles]
        axes.legend(
            [handles[name] for name in wanted], wanted, loc="lower left",
            bbox_to_anchor=(-0.01, 1.0), ncols=4, columnspacing=1.4, markerscale=0.5,
        )  # fmt: skip
    return figure


def _stack(axes, row: int, components, unit: style.Unit) -> float:
    """One stacked bar; returns where it ends."""
    end = 0.0
    for (name, color, hatch), part in zip(COMPONENTS, components, strict=True):
        if part and part > 0:
            axes.barh(
                row, unit.of(part), left=end, height=0.6, color=color, hatch=hatch,
                edgecolor="white", linewidth=0.4, label=name,
            )  # fmt: skip
            end += unit.of(part)
    return end


def _memory_notes(records, table) -> list[str]:
    notes = ["Of tensors: the peak of one step; activations and temporaries are what remains of it."]
    if over := [arm for arm, parts_ in table.items() if parts_[-1] is not None and parts_[-1] < 0]:
        notes.append(
            f"{parts.named(records, over)}: the parts exceed the measured peak, because they are "
            "not all held at once."
        )
    if blank := [arm for arm, parts_ in table.items() if None in parts_[:-1]]:
        notes.append(f"{parts.named(records, blank)}: gradients {parts.NOT_MEASURED}.")
    return notes


def curves_alt(records: Records) -> str:
    def one(arm):
        t = records[arm].train
        text = f"{records[arm].label}: training loss {t.loss[0]:.2f} to {t.loss[-1]:.2f}"
        if t.eval_loss:
            text += f", validation loss {t.eval_loss[0]:.2f} to {t.eval_loss[-1]:.2f}"
        return text

    return f"Loss against training tokens. {'; '.join(map(one, curve_arms(records)))}."


def memory_alt(records: Records) -> str:
    def one(arm):
        pieces = (
            f"{name} {parts.NOT_MEASURED if b is None else _bytes(b)}"
            for (name, *_), b in zip(COMPONENTS, memory_parts(records[arm]), strict=True)
            if b != 0
        )
        train = records[arm].train
        peak = f"{train.peak_memory_meter} {_bytes(train.peak_memory_bytes)}"
        return f"{records[arm].label}: {', '.join(pieces)}; {peak}"

    return f"Stacked bars of memory by component. {'. '.join(map(one, memory_arms(records)))}."


def _bytes(n: float, unit: style.Unit | None = None) -> str:
    unit = unit or style.bytes_unit([n])
    return f"{style.number(unit.of(n))} {unit.name}"
