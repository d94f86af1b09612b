"""Pictures of an answer beside the expected one."""

from collections.abc import Mapping

import numpy as np

from qlora_lib import style

TOO_FAR = 30.0  # beyond this ratio bars are compared on a logarithmic axis
COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.SKY, style.PURPLE, style.YELLOW, style.GREY)
HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++")


def number(answer: float, expected: float, parts: Mapping[str, float], unit: str) -> tuple[style.Figure, str]:
    """Two bars: the answer, and what the expected number is made of."""
    with style.page_style():
        figure = style.new_figure(3.4)
        axes = figure.subplots()
        far = answer * expected > 0 and not 1 / TOO_FAR < answer / expected < TOO_FAR
        axes.barh([1], [answer], color=style.VERMILLION, height=0.6)
        if parts and not far:
            left = 0.0
            for i, (name, size) in enumerate(parts.items()):
                look = {"color": COLORS[i % len(COLORS)], "hatch": HATCHES[i % len(HATCHES)], "edgecolor": "white"}
                axes.barh([0], [size], left=left, height=0.6, linewidth=0, label=name, **look)
                left += size
            figure.legend(loc="outside right upper")
        else:
            axes.barh([0], [expected], color=style.BLUE, height=0.6)
        axes.axvline(expected, color=style.INK, linewidth=0.8, linestyle="--")
        axes.set_yticks([1, 0], ["your answer", "expected"])
        axes.set_ylim(-0.6, 1.6)
        if far:
            axes.set_xscale("symlog", linthresh=max(min(abs(answer), abs(expected)) / 10, 1e-12))
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
            axes.locator_params(axis="x", numticks=7)
        axes.set_xlabel(unit)
    made = ", ".join(f"{name} {size:g}" for name, size in parts.items())
    alt = f"Your answer, {answer:g} {unit}, beside the expected one" + (f", made of {made}." if made else ".")
    return figure, alt


def elements(
    answer: np.ndarray, expected: np.ndarray, label: str, axis: str, tolerance: float = 0.0
) -> tuple[style.Figure, str]:
    """Element by element: the expected values, the answer's, and below their difference."""
    same_shape = len(answer) == len(expected)
    few = max(len(answer), len(expected)) <= 100
    with style.page_style():
        figure = style.new_figure(5.6 if same_shape else 3.6)
        panels = figure.subplots(2, 1, sharex=True, height_ratios=[2, 1]) if same_shape else [figure.subplots()]
        top = panels[0]
        hollow = {"markerfacecolor": "white", "markeredgecolor": style.BLUE, "markersize": 6 if few else 2.5}
        top.plot(expected, "o", label="expected", linestyle="none", **hollow)
        top.plot(answer, "x", color=style.VERMILLION, label="yours", linestyle="none", markersize=5 if few else 2)
        top.margins(y=0.12)
        top.set_ylabel(axis)
        top.set_title(f"For {label}")
        figure.legend(*top.get_legend_handles_labels(), loc="outside upper right", ncols=2)
        if same_shape:
            difference = np.nan_to_num(answer - expected)
            panels[1].axhline(0, color=style.SOFT, linewidth=0.6)
            panels[1].vlines(np.arange(len(difference)), 0, difference, color=style.VERMILLION, linewidth=1.4)
            panels[1].set_ylabel("yours less\nexpected")
        panels[-1].set_xlabel("element")
        panels[-1].xaxis.get_major_locator().set_params(integer=True)
    close = np.isclose(answer, expected, rtol=0, atol=tolerance, equal_nan=True) if same_shape else np.zeros(0)
    wrong = int((~close).sum()) if same_shape else max(len(answer), len(expected))
    return figure, f"For {label}: {wrong} of {len(expected)} elements differ from the expected ones."
