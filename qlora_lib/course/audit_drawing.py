"""The pictures of lesson 14 and of its exercises.

How it works: each takes plain numbers or the audit's findings (qlora_lib.claims), and returns a figure and the words for it.
"""

from collections.abc import Mapping

import numpy as np

from qlora_lib import style
from qlora_lib.claims import Audited
from qlora_lib.claims.checks import Figure, cell, tinyllama
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, UNKNOWN
from qlora_lib.cost.devices import GPUS, TERA
from qlora_lib.cost.flops import step_flops
from qlora_lib.course.auditing import counts_by

LOOKS = {
    HOLDS: (style.BLUE, ""),
    ASSUMED: (style.SKY, "////"),
    FAILS: (style.VERMILLION, "xxxx"),
    UNKNOWN: (style.YELLOW, "...."),
}
PARTS = {  # of a model's bytes
    "linear layers": (style.BLUE, ""),
    "their quantization constants": (style.ORANGE, "////"),
    "embedding, head, norms": (style.GREEN, "...."),
    "adapters": (style.PURPLE, "xxxx"),
}


def draw_counts(audited: list[Audited]) -> tuple[style.Figure, str]:
    """Claims by verdict, for each document and for each kind of claim."""
    panels = {by: counts_by(audited, by) for by in ("document", "kind")}
    told = []
    with style.page_style():
        figure = style.new_figure(8.2)
        for axes, (by, found) in zip(figure.subplots(1, 2), panels.items()):
            left = np.zeros(len(found))
            for verdict, (color, hatch) in LOOKS.items():
                sizes = np.array([of[verdict] for of in found.values()])
                axes.barh(
                    list(found),
                    sizes,
                    left=left,
                    height=0.66,
                    color=color,
                    hatch=hatch,
                    edgecolor="white",
                    linewidth=0,
                    label=verdict,
                )
                left += sizes
            for place, total in enumerate(left):
                axes.annotate(
                    f"{total:.0f}",
                    (total, place),
                    xytext=(3, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=6.5,
                )
            axes.set_xlim(0, left.max() * 1.12)
            axes.set_ylim(len(found) - 0.4, -0.6)
            axes.set_xlabel("claims")
            axes.set_title(f"by {by}")
            told += [
                f"{g}: " + ", ".join(f"{n} {v}" for v, n in of.items() if n)
                for g, of in found.items()
            ]
        figure.legend(
            *axes.get_legend_handles_labels(), loc="outside upper center", ncols=4
        )
    return figure, f"Verdicts on {len(audited)} claims. {'; '.join(told)}."


def draw_peaks(implied: Mapping[str, Figure], named: str) -> tuple[style.Figure, str]:
    """The peaks that printed utilizations imply, as lines, and the data sheets' peaks; `named` is the card that is named."""
    kinds = (("fp32", style.BLUE, "o"), ("fp16", style.ORANGE, "s"))
    with style.page_style():
        figure = style.new_figure(5.4)
        axes = figure.subplots()
        lines = ((style.VERMILLION, "-", 2.4), (style.INK, ":", 1.2))
        for (name, peak), (color, line, width) in zip(implied.items(), lines):
            axes.axvline(
                peak.value,
                color=color,
                linestyle=line,
                linewidth=width,
                label=f"implied, {name}",
            )
        for kind, color, marker in kinds:
            rates = [getattr(gpu, kind) / TERA for gpu in GPUS.values()]
            axes.plot(
                rates, range(len(GPUS)), marker, color=color, markersize=6, label=kind
            )
        axes.set_yticks(
            range(len(GPUS)),
            [f"{name} (named)" if name == named else name for name in GPUS],
        )
        axes.set_ylim(len(GPUS) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.set_xticks(
            [10, 20, 50, 100, 200, 500, 1000],
            ["10", "20", "50", "100", "200", "500", "1,000"],
        )
        axes.minorticks_off()
        axes.grid(axis="y")
        axes.set_xlabel("dense peak by the data sheet, TFLOP/s")
        figure.legend(loc="outside upper right", ncols=4)
    bands = "; ".join(
        f"{name} {p.low:.2f} to {p.high:.2f}" for name, p in implied.items()
    )
    peaks = ", ".join(
        f"{g.name} {g.fp32 / TERA:g} and {g.fp16 / TERA:g}" for g in GPUS.values()
    )
    return (
        figure,
        f"Implied peaks in TFLOP/s: {bands}. Data sheets, fp32 and fp16: {peaks}.",
    )


def draw_sizes(sizes: Mapping[str, Mapping[str, float]]) -> tuple[style.Figure, str]:
    """Stacked bars of MiB: a label -> bytes by part (PARTS), in MiB."""
    with style.page_style():
        figure = style.new_figure(1.8 + 0.8 * len(sizes))
        axes = figure.subplots()
        left = np.zeros(len(sizes))
        for part, (color, hatch) in PARTS.items():
            found = np.array([of.get(part, 0.0) for of in sizes.values()])
            look = {
                "color": color,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0,
            }
            axes.barh(list(sizes), found, left=left, height=0.6, label=part, **look)
            left += found
        for place, total in enumerate(left):
            axes.annotate(
                f"{total:,.0f}",
                (total, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        axes.set_xlim(0, left.max() * 1.1)
        axes.invert_yaxis()
        axes.set_xlabel("MiB")
        figure.legend(loc="outside upper right", ncols=4)
    told = "; ".join(
        f"{name}: " + ", ".join(f"{p} {m:,.1f}" for p, m in of.items())
        for name, of in sizes.items()
    )
    return figure, f"MiB by part. {told}."


def draw_levels(
    block: np.ndarray, schemes: Mapping[str, np.ndarray]
) -> tuple[style.Figure, str]:
    """A block of weights between the values that two schemes give them: a label -> value by weight."""
    (above, below), looks = (
        schemes.items(),
        ((0, style.BLUE, "o"), (2, style.VERMILLION, "x")),
    )
    with style.page_style():
        figure = style.new_figure(4.2)
        axes = figure.subplots()
        for (_, values), (place, color, marker) in zip((above, below), looks):
            axes.plot(
                np.stack([block, values]),
                [[1], [place]] * np.ones(len(block)),
                color=style.FAINT,
                linewidth=0.6,
                zorder=1,
            )
            axes.plot(
                values,
                np.full(len(values), place),
                marker,
                color=color,
                markersize=6,
                markerfacecolor="white",
                linestyle="none",
                zorder=2,
            )
        axes.plot(
            block, np.ones(len(block)), "|", color=style.INK, markersize=9, zorder=2
        )
        axes.set_yticks([0, 1, 2], [above[0], f"{len(block)} weights", below[0]])
        axes.set_ylim(2.4, -0.4)
        axes.set_xlabel("weight, and the value that stands for it")
    told = ", ".join(
        f"{name} {len(np.unique(values))} different values"
        for name, values in schemes.items()
    )
    return figure, f"A block of {len(block)} weights and what stands for them: {told}."


def draw_losses(
    losses: Mapping[str, tuple[str, float, float]],
) -> tuple[style.Figure, str]:
    """What QLoRA is said to lose: a label -> (how it is known, low, high), percent."""
    kinds = list(dict.fromkeys(how for how, _, _ in losses.values()))
    looks = dict(
        zip(kinds, ((style.VERMILLION, "^"), (style.BLUE, "s"), (style.GREEN, "o")))
    )
    named = set()
    with style.page_style():
        figure = style.new_figure(1.8 + 0.6 * len(losses))
        axes = figure.subplots()
        for place, (how, low, high) in enumerate(losses.values()):
            color, marker = looks[how]
            middle = (low + high) / 2
            axes.errorbar(
                [middle], [place], xerr=[[middle - low], [high - middle]], fmt=marker, color=color, capsize=3, markersize=6,
                label=None if how in named else how,
            )  # fmt: skip
            named.add(how)
        axes.axvline(0, color=style.INK, linewidth=0.8, linestyle="--")
        axes.set_xscale("symlog", linthresh=1)
        axes.set_xticks(
            [-1, 0, 1, 2, 5, 10, 20], ["−1", "0", "1", "2", "5", "10", "20"]
        )
        axes.set_xlim(-1.5, 30)
        axes.minorticks_off()
        axes.set_yticks(range(len(losses)), list(losses))
        axes.set_ylim(len(losses) - 0.5, -0.5)
        axes.grid(axis="y")
        axes.set_xlabel(
            "QLoRA worse by, % of the figure it is compared with (linear between −1 and 1)"
        )
        figure.legend(loc="outside upper right", ncols=3)
    told = "; ".join(
        f"{name} {low:.2f} to {high:.2f}" if high > low else f"{name} {low:.2f}"
        for name, (_, low, high) in losses.items()
    )
    return figure, f"What QLoRA is said to lose, percent: {told}."


def utilization_factors() -> dict[str, dict[str, float]]:
    """What full fine-tuning's MFU over QLoRA's is made of: as the study prints it, and with operations as they are counted."""
    seconds = (
        cell(9, "total training time", "qlora")
        / cell(9, "total training time", "standard")
    ).value
    prints = (
        cell(7, "flops per step", "standard") / cell(7, "flops per step", "qlora")
    ).value
    batches = {
        m: [
            int(cell(3, row, c).value)
            for row in ("training batch size", "gradient accumulation steps")
        ]
        for m, c in (("full", "standard"), ("qlora", "qlora"))
    }
    full, qlora = (
        step_flops(tinyllama(), m, b, 512, 16, accumulation=a).model_flops
        for m, (b, a) in batches.items()
    )
    return {
        "as printed": {"operations": prints, "seconds": seconds},
        "counted": {"operations": full / qlora, "seconds": seconds},
    }


def draw_factors(answer: str):
    found = utilization_factors()
    with style.page_style():
        page = style.new_figure(3.6)
        axes = page.subplots()
        left = [1.0, 1.0]
        for part, color, hatch in (
            ("seconds", style.BLUE, ""),
            ("operations", style.VERMILLION, "////"),
        ):
            ends = [x * of[part] for x, of in zip(left, found.values())]
            look = {
                "color": color,
                "hatch": hatch,
                "edgecolor": "white",
                "linewidth": 0,
            }
            axes.barh(
                list(found),
                [e - x for e, x in zip(ends, left)],
                left=left,
                height=0.6,
                label=f"by its {part}",
                **look,
            )
            left = ends
        for place, end in enumerate(left):
            axes.annotate(
                f"{end:.2f}×",
                (end, place),
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                fontsize=6.5,
            )
        axes.set_xscale("log")
        axes.set_xlim(1, 7)
        axes.set_xticks([1, 2, 3, 4, 5, 6], ["1", "2", "3", "4", "5", "6"])
        axes.minorticks_off()
        axes.invert_yaxis()
        axes.set_xlabel("MFU of full fine-tuning over QLoRA's, times (logarithmic)")
        page.legend(loc="outside upper right", ncols=2)
    told = "; ".join(
        f"{name} {of['operations']:.2f} by operations and {of['seconds']:.2f} by seconds"
        for name, of in found.items()
    )
    return page, f"What the ratio of both utilizations is made of: {told}."
