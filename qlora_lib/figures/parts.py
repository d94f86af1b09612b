"""What several figures share: the frame with title and footer, labels that keep apart, measures.

A `Measure` names one quantity of a record once, with its unit and direction, so that the bars, the
radar and the alternative texts cannot disagree.
"""

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qlora_lib import style
from qlora_lib.analysis import deployed
from qlora_lib.errors import QloraError
from qlora_lib.records import RunRecord
from qlora_lib.style import INK, SOFT, Unit

Records = dict[str, RunRecord]
NOT_MEASURED = "not measured"
NOT_TRAINED = "not trained"
POINT = 1 / 72  # inch


class NothingToDraw(QloraError):
    """The records hold too little for this figure; the message is the reason."""


@dataclass(frozen=True)
class Measure:
    title: str
    quantity: str  # before the unit on the axis
    of: Callable[[RunRecord], float | None]
    unit_of: Callable[[Sequence[float | None]], Unit]
    lower_is_better: bool
    of_training: bool = False  # does not exist where nothing was trained
    digits: int = 3

    @property
    def direction(self) -> str:
        return "less is better" if self.lower_is_better else "more is better"

    def absent(self, record: RunRecord) -> str:
        return NOT_TRAINED if self.of_training and record.method == "base" else NOT_MEASURED

    def text(self, record: RunRecord) -> str:
        """Value with its unit, for alternative texts."""
        if (value := self.of(record)) is None:
            return self.absent(record)
        unit = self.unit_of([value])
        return f"{style.number(unit.of(value), self.digits)} {unit.name}".strip()


def _trainable(r: RunRecord) -> float | None:
    return r.parameters.trainable or None  # none to train is no point on a logarithmic axis


SIZE = Measure(
    "Model size", "resident, with adapter", lambda r: r.size_bytes.total,
    style.bytes_unit, True,
)  # fmt: skip
STEP_TIME = Measure(
    "Training time per step", "median step", lambda r: r.train and r.train.seconds_per_step,
    style.seconds_unit, True, of_training=True,
)  # fmt: skip
TRAINABLE = Measure(
    "Trainable parameters", "parameters", _trainable, lambda _: Unit("", 1), True,
    of_training=True,
)  # fmt: skip
PERPLEXITY = Measure(
    "Perplexity", "perplexity", lambda r: deployed(r)[0], lambda _: Unit("", 1), True, digits=4
)
MFU = Measure(
    "Model FLOPs utilization", "share of peak", lambda r: r.mfu, lambda _: Unit("%", 0.01), False,
    of_training=True,
)  # fmt: skip
DECODE = Measure(
    "Decoding speed", "new tokens", lambda r: r.generation and r.generation.tokens_per_second,
    lambda _: Unit("tokens/s", 1), False,
)  # fmt: skip
MEASURES = (SIZE, STEP_TIME, TRAINABLE, PERPLEXITY, MFU, DECODE)


def framed(title: str, height: float, records: Records, arms: Sequence[str], notes=()):
    """A figure with its title above, and notes and the records' footer below; `height` in cm."""
    figure = style.new_figure(height)
    lines = [line for note in notes for line in textwrap.wrap(note, 132)]
    foot = _lines(style.footer(records, arms), 140)
    inches, line = height * style.CM, 8.2 * POINT
    bottom = (len(lines) + len(foot)) * line + 5 * POINT
    figure.text(0.004, 1 - 3 * POINT / inches, title, size=9, weight="bold", va="top")
    figure.text(
        0.004, (len(foot) * line + 3 * POINT) / inches, "\n".join(lines),
        size=6, color=INK, va="bottom", linespacing=1.17,
    )  # fmt: skip
    figure.text(
        0.004, 2 * POINT / inches, "\n".join(foot),
        size=5.6, color=SOFT, va="bottom", linespacing=1.25,
    )  # fmt: skip
    top = 17 * POINT
    figure.get_layout_engine().set(
        rect=(0, bottom / inches, 1, 1 - (bottom + top) / inches), w_pad=3 * POINT, h_pad=4 * POINT
    )
    return figure


def settled(figure):
    """The figure with its layout done once and its axes placed to five decimals: the solver's last digits depend on where
    objects lie in memory, and would show in the file."""
    figure.draw_without_rendering()
    places = [(axes, axes.get_position()) for axes in figure.get_axes()]
    figure.set_layout_engine("none")
    for axes, box in places:
        axes.set_position([round(x, 5) for x in box.bounds])
    return figure


def _lines(pieces: Sequence[str], width: int) -> list[str]:
    """Pieces joined by dots into lines; a line breaks between pieces, inside one only if it must."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 3 + len(piece) <= width:
            lines[-1] += f" · {piece}"
        else:
            lines += textwrap.wrap(piece, width)
    return lines


def wrapped(label: str, width: int = 15) -> str:
    return "\n".join(textwrap.wrap(label, width, break_long_words=False))


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Positions at least `gap` apart, in the order wanted, as near as they can be (least squares).

    Minus i·gap, the i-th smallest must not decrease: isotonic regression by pooling neighbours.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[list[float]] = []  # [mean, how many]
    for rank, i in enumerate(order):
        pools.append([wanted[i] - rank * gap, 1])
        while len(pools) > 1 and pools[-2][0] >= pools[-1][0]:
            mean, n = pools.pop()
            last = pools[-1]
            last[0] = (last[0] * last[1] + mean * n) / (last[1] + n)
            last[1] += n
    flat = [mean for mean, n in pools for _ in range(n)]
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        placed[i] = flat[rank] + rank * gap
    return placed


def named(records: Records, arms: Sequence[str]) -> str:
    return ", ".join(records[arm].label for arm in arms)
