"""The picture of lesson 6: what the time of one token is made of, beside the time that its bytes alone would take."""

from collections.abc import Mapping

from qlora_lib import style

LOOKS = {  # cause -> colour, hatch
    "memory traffic": (style.BLUE, ""),
    "dequantization": (style.VERMILLION, "xxxx"),
    "adapter": (style.ORANGE, "////"),
    "the rest": (style.FAINT, ""),
    "one compiled call": (style.GREEN, "...."),
}
LEAST = "bytes over bandwidth"


def draw_token_time(ways: Mapping[str, Mapping[str, float]], least: Mapping[str, float]) -> tuple[style.Figure, str]:
    """(figure, the same in words).

    Args:
        ways: a way to decode -> {cause of `LOOKS`: seconds a token}.
        least: way -> seconds that fetching its bytes would take.
    """
    with style.page_style():
        figure = style.new_figure(2.0 + 1.1 * len(ways))
        axes = figure.subplots()
        for y, (way, causes) in enumerate(ways.items()):
            end = 0.0
            for cause, seconds in causes.items():
                color, hatch = LOOKS[cause]
                axes.barh(
                    y, seconds * 1e3, left=end, height=0.5, color=color, hatch=hatch, edgecolor="white", linewidth=0.5,
                    label=cause,
                )  # fmt: skip
                end += seconds * 1e3
            axes.plot(least[way] * 1e3, y, "D", color=style.INK, markeredgecolor="white", markersize=6, label=LEAST)
            right = max(end, least[way] * 1e3)
            axes.annotate(f"{style.number(end)} ms", (right, y), xytext=(7, 0), textcoords="offset points", va="center")
        axes.set_yticks(range(len(ways)), [way.replace(", ", ",\n", 1) for way in ways])
        axes.tick_params(axis="y", length=0)
        axes.set_ylim(len(ways) - 0.5, -0.5)
        axes.set_xlim(0, axes.get_xlim()[1] * 1.1)
        axes.set_xlabel("time of one token, ms")
        found = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        names = [name for name in (*LOOKS, LEAST) if name in found]
        figure.legend([found[n] for n in names], names, loc="outside upper left", ncols=6, columnspacing=1.2)
    words = "; ".join(
        f"{way} {style.number(sum(causes.values()) * 1e3)} ms, its bytes alone {style.number(least[way] * 1e3)} ms"
        for way, causes in ways.items()
    )
    return figure, f"Time of one token: {words}."
