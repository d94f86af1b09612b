"""One look for every figure: sizes, colours, second cues, number formats, and byte-stable saving.

How it works: a figure is built and saved inside `page_style()`, which starts from matplotlib's own
defaults, so a reader's settings change nothing and the backend is left alone. The colour of an arm
says how it was trained and the hatch (in line plots, the hollow marker) how its weights are stored:
plain for 16/32-bit, hatched for 4- and 8-bit. Colours are those of Okabe and Ito (2008), which
people with colour-blindness tell apart. Text is drawn as outlines in SVG, because not every
renderer has a sans-serif font; identifiers are hashed with a fixed salt, and nothing is dated.
"""

import io
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import matplotlib
import matplotlib.style
from matplotlib.figure import Figure

from qlora_lib.records import RunRecord

CM = 1 / 2.54  # inches
WIDTH = 16.0  # cm, the text width of the A4 page
INK, SOFT, FAINT = "#1a1a1a", "#5f5f5f", "#d9d9d9"
BLUE, ORANGE, GREEN, SKY = "#0072B2", "#E69F00", "#009E73", "#56B4E9"
VERMILLION, PURPLE, YELLOW, GREY = "#D55E00", "#CC79A7", "#F0E442", "#4a4a4a"

METHOD_COLOR = {"base": GREY, "full": BLUE, "lora": ORANGE, "qlora": GREEN}
METHOD_MARKER = {"base": "o", "full": "s", "lora": "^", "qlora": "D"}
FURTHER_COLORS = (VERMILLION, PURPLE, SKY, YELLOW)  # a second, third, ... arm of one method
FURTHER_LINES = ("--", "-.", ":", (0, (6, 1.5)))
DPI = 200  # of PNG

RC = {
    "font.family": "DejaVu Sans", "font.size": 7, "text.color": INK, "text.parse_math": False,
    "axes.titlesize": 7.5, "axes.titleweight": "bold", "axes.titlelocation": "left",
    "axes.titlepad": 5, "axes.labelsize": 7, "axes.labelcolor": INK, "axes.edgecolor": SOFT,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "axes.grid": False, "axes.unicode_minus": True,
    "grid.color": FAINT, "grid.linewidth": 0.5,
    "xtick.labelsize": 6.5, "ytick.labelsize": 7, "xtick.color": SOFT, "ytick.color": SOFT,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "xtick.major.width": 0.6,
    "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "hatch.linewidth": 0.5,
    "legend.fontsize": 6.5, "legend.frameon": False, "legend.handlelength": 1.8,
    "figure.facecolor": "white", "savefig.facecolor": "white",
    "svg.fonttype": "path", "svg.hashsalt": "qlora_lib", "pdf.fonttype": 42,
}  # fmt: skip
METADATA = {
    "svg": {"Date": None, "Creator": "qlora_lib"},
    "pdf": {"CreationDate": None, "Creator": "qlora_lib", "Producer": None},
    "png": {"Software": None},
}


def page_style():
    """Context manager in which figures are built and saved."""
    return matplotlib.style.context(["default", RC])


class PageFigure(Figure):
    """A figure that a notebook shows by itself, with any backend or none."""

    def _repr_png_(self) -> bytes:
        return render(self, "png")


def new_figure(height: float) -> PageFigure:
    """An empty figure as wide as the page's text; `height` in cm. Call inside `page_style()`."""
    return PageFigure(figsize=(WIDTH * CM, height * CM), layout="constrained")


def render(figure: Figure, file_format: str) -> bytes:
    """The file's bytes: the same for the same picture, in any process, on any day."""
    out = io.BytesIO()
    with page_style():
        figure.savefig(out, format=file_format, dpi=DPI, metadata=METADATA[file_format])
    return _numbered(out.getvalue()) if file_format == "svg" else out.getvalue()


def _numbered(svg: bytes) -> bytes:
    """Names of markers, clips and hatches by their order: matplotlib hashes what may hold an address in memory."""
    names: dict[bytes, bytes] = {}

    def number(match: re.Match) -> bytes:
        return names.setdefault(match[0], match[1] + b"%d" % (len(names) + 1))

    return re.sub(rb"(?<=[\"#])([a-z])[0-9a-f]{10}(?=[\")])", number, svg)


@dataclass(frozen=True)
class ArmStyle:
    color: str
    hatch: str | None  # bars
    marker: str
    hollow: bool  # markers of quantized weights
    line: object  # matplotlib line style

    @property
    def bar(self) -> dict:
        return {"color": self.color, "hatch": self.hatch, "edgecolor": "white", "linewidth": 0}

    @property
    def point(self) -> dict:
        face = "white" if self.hollow else self.color
        return {"marker": self.marker, "markeredgecolor": self.color, "markerfacecolor": face,
                "markeredgewidth": 1.3, "color": self.color}  # fmt: skip


def arm_styles(records: dict[str, RunRecord]) -> dict[str, ArmStyle]:
    """A style for every arm. The first trained arm of a method has the method's own colour."""
    styles: dict[str, ArmStyle] = {}
    seen: dict[str, int] = {}
    for arm in in_order(records):
        record = records[arm]
        source = record.derived_from if record.derived_from in records else arm
        method = records[source].method
        quantized = record.size_bytes.quantized_weights > 0
        further = 0
        if record.method != "base":
            further = seen[method] = seen.get(method, -1) + 1
        i = (further - 1) % len(FURTHER_COLORS)
        styles[arm] = ArmStyle(
            color=FURTHER_COLORS[i] if further else METHOD_COLOR[method],
            hatch=("/////" if further == 0 else "xxxxx") if quantized else None,
            marker=METHOD_MARKER[method],
            hollow=quantized,
            line=FURTHER_LINES[i] if further else "-",
        )
    return styles


def in_order(records: dict[str, RunRecord]) -> list[str]:
    """Arms as pages list them: bases, full, LoRA, QLoRA, then what was quantized after training."""
    ranks = {"base": 0, "full": 1, "lora": 2, "qlora": 3}

    def key(arm):
        r = records[arm]
        name = (arm != r.method, arm)  # the arm that is named after its method comes first
        return (4 if r.derived_from else ranks[r.method], bool(r.size_bytes.quantized_weights), name)

    return sorted(records, key=key)


@dataclass(frozen=True)
class Unit:
    name: str
    factor: float  # how many of the plain unit make one of this

    def of(self, value: float) -> float:
        return value / self.factor


def _pick(units: list[Unit], values: Iterable[float | None], smallest: float) -> Unit:
    """The largest unit in which the largest value is at least `smallest`."""
    top = max((abs(v) for v in values if v is not None), default=0.0)
    return next((u for u in units if top >= smallest * u.factor), units[-1])


def bytes_unit(values) -> Unit:
    units = [Unit("GiB", 2**30), Unit("MiB", 2**20), Unit("KiB", 2**10), Unit("bytes", 1)]
    return _pick(units, values, 2)


def seconds_unit(values) -> Unit:
    return _pick([Unit("s", 1), Unit("ms", 1e-3), Unit("µs", 1e-6)], values, 0.5)


def count_unit(values) -> Unit:
    return _pick([Unit("millions", 1e6), Unit("thousands", 1e3), Unit("", 1)], values, 2)


def number(value: float, digits: int = 3) -> str:
    """`digits` significant digits with no exponent: 4.16, 513, 0.0362, 1,100."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    rounded = round(value, decimals)
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")


def count(value: float, short: bool = False) -> str:
    """135 M, 4.88 M, 90.6 k, 512; `short` without trailing zeros, for ticks: 10 M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= factor:
            text = f"{value / factor:.3g}" if short else number(value / factor, 3)
            return f"{text} {letter}"
    return f"{value:,.0f}"


def footer(records: dict[str, RunRecord], arms: Iterable[str]) -> list[str]:
    """Model, data and machine that the drawn records name, in pieces; what differs is listed."""
    used = [records[arm] for arm in arms]

    def each(of) -> str:
        return ", ".join(dict.fromkeys(of(r) for r in used))

    def data(r: RunRecord) -> str:
        stand_in = f" (stands in for {r.data.stand_in_for})" if r.data.stand_in_for else ""
        return r.data.name + stand_in

    def machine(r: RunRecord) -> str:
        p = r.provenance
        return f"{p.cpu}, {p.threads} threads" if p.device == "cpu" else p.device

    return [
        f"Model: {each(lambda r: r.model.name)}",
        f"data: {each(data)}",
        f"machine: {each(machine)}",
        f"{each(lambda r: r.provenance.dtype)}",
        f"profile {each(lambda r: r.profile)}, seed {each(lambda r: str(r.seed))}",
    ]  # fmt: skip
