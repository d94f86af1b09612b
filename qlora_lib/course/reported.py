"""A made-up report with planted faults, and a checker that recomputes each of its rows from the others.

How it works: a row is a printed figure and, where it follows from other rows, a function that recomputes it from what they
print. Figures carry the range that their rounding allows (claims.checks), so a row is a fault where its range and the
recomputed one do not meet: which rows these are is written down nowhere. Nothing here was measured by anyone.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

from qlora_lib import style
from qlora_lib.claims.checks import MIB, TERA, Figure, agree, exactly, figure
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.memory import nf4_bytes
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.course.answers import Exercise, Verdict
from qlora_lib.errors import one_line
from qlora_lib.notebooks.shown import Picture

SHAPE = ModelShape(2048, 24, 16, 4, 128, 5504, 32_000)  # what row a says
RANK, CARD, EXAMPLES = 16, "T4", 500


@dataclass(frozen=True)
class Row:
    key: str
    group: str  # of what the row speaks
    what: str
    printed: str
    recompute: Callable[[], Figure | float] | None = (
        None  # None: a setting, or measured and followed by no other row
    )

    @property
    def recomputed(self) -> Figure | None:
        return None if self.recompute is None else exactly(self.recompute())

    @property
    def fault(self) -> bool:
        return self.recompute is not None and not agree(
            figure(self.printed), self.recomputed
        )

    @property
    def apart(self) -> float:
        """Distance of the printed from the recomputed figure, in units of what their rounding allows."""
        a, b = figure(self.printed), self.recomputed
        return abs(a.value - b.value) / max(
            (a.high - a.low + b.high - b.low) / 2, 0.5 if a.high == a.low else 1e-12
        )


def _of(key: str) -> Figure:
    return figure(rows()[key].printed)


def _share_of_examples() -> float:
    """The share of whole examples that is nearest to the printed accuracy."""
    return 100 * round(_of("x").value * EXAMPLES / 100) / EXAMPLES


def _four_bit_base() -> int:
    linear = SHAPE.num_layers * sum(
        nf4_bytes(i * o) for i, o in SHAPE.linear_modules.values()
    )
    return linear + 2 * (SHAPE.parameters.total - SHAPE.linear_weights)


def _step_flops() -> float:
    products = SHAPE.linear_weights + SHAPE.parameters.head
    return (4 * products + 6 * SHAPE.lora_parameters(RANK)) * 8 * 512 / TERA


def _perplexity() -> Figure:
    loss = _of("q")
    return Figure(*(math.exp(x) for x in (loss.value, loss.low, loss.high)))


def _loss() -> Figure:
    after = _of("s")
    return Figure(*(math.log(x) for x in (after.value, after.low, after.high)))


def _interval() -> float:
    share = _of("x").value / 100
    return 196 * math.sqrt(share * (1 - share) / EXAMPLES)


@cache
def rows() -> dict[str, Row]:
    """The report's rows by their letters."""
    table = (
        Row("a", "the model", "Model", "hidden 2,048; 24 layers; 16 heads of 128, 4 of them for keys and values; MLP 5,504; vocabulary 32,000; a head of its own"),
        Row("b", "the training", "Training", "600 steps of 8 sequences of 512 tokens; rank 16 on all seven projections; T4, FP16"),
        Row("c", "the model", "Parameters", "1,194,428,416", lambda: SHAPE.parameters.total),
        Row("d", "the model", "Trained parameters", "13,811,712", lambda: SHAPE.lora_parameters(RANK)),
        Row("e", "the model", "Trained, of the base's, %", "1.16", lambda: 100 * _of("d") / _of("c")),
        Row("f", "sizes", "Model in 16 bits, MiB", "2,278.2", lambda: 2 * _of("c") / MIB),
        Row("g", "sizes", "Base as loaded (NF4, double quantization, the rest in 16 bits), MiB", "569.5", lambda: _four_bit_base() / MIB),
        Row("h", "sizes", "Model in 16 bits over base", "4.00", lambda: _of("f") / _of("g")),
        Row("i", "the training", "Tokens trained on, all sequences full", "2,457,600", lambda: 600 * 8 * 512),
        Row("j", "speed", "Seconds of a step", "2.41", lambda: _of("k") / 600),
        Row("k", "speed", "Seconds of the training", "1,447.9", lambda: 600 * _of("j")),
        Row("l", "speed", "Tokens a second", "1,697.4", lambda: _of("i") / _of("k")),
        Row("m", "speed", "TFLOP of a step, 4N + 6A for each token", "18.83", _step_flops),
        Row("n", "speed", "TFLOP/s", "7.81", lambda: _of("m") / _of("j")),
        Row("o", "speed", "MFU, %", "19.2", lambda: 100 * _of("n") * TERA / GPUS[CARD].fp16),
        Row("p", "quality", "Perplexity before", "15.93", lambda: _of("s") / (1 + _of("r") / 100)),
        Row("q", "quality", "Validation loss after, nats a token", "2.61", _loss),
        Row("r", "quality", "Change of the perplexity, %", "-24.2", lambda: 100 * (_of("s") / _of("p") - 1)),
        Row("s", "quality", "Perplexity after", "12.08", lambda: _of("p") * (1 + _of("r") / 100)),
        Row("t", "decoding", "Tokens a second, 16 bits", "40.2"),
        Row("u", "decoding", "Tokens a second, NF4", "16.1"),
        Row("v", "decoding", "Change of the tokens a second, %", "-149.7", lambda: 100 * (_of("u") / _of("t") - 1)),
        Row("w", "decoding", "Times the time of a token", "2.50", lambda: _of("t") / _of("u")),
        Row("x", "the task", "Accuracy on 500 questions, %", "86.3", _share_of_examples),
        Row("y", "the task", "Half of its 95 % interval, points", "3.0", _interval),
    )  # fmt: skip
    return {row.key: row for row in table}


def planted() -> frozenset[str]:
    """Letters of the rows that do not follow from the others."""
    return frozenset(key for key, row in rows().items() if row.fault)


def draw_rows(named: list[str]) -> tuple[style.Figure, str]:
    """How far the named rows are from what the other rows imply, in units of their rounding."""
    shown = [rows()[key] for key in named if rows()[key].recompute is not None]
    with style.page_style():
        page = style.new_figure(1.9 + 0.55 * max(1, len(shown)))
        axes = page.subplots()
        axes.axvspan(0.01, 1, color=style.FAINT, zorder=-1)
        axes.axvline(1, color=style.INK, linewidth=0.9, linestyle="--")
        for place, row in enumerate(shown):
            color, marker = (style.VERMILLION, "X") if row.fault else (style.BLUE, "o")
            axes.plot(max(row.apart, 0.02), place, marker, color=color, markersize=7)
        labels = [
            f"{row.key}: printed {row.printed}, recomputed {_told(row)}"
            for row in shown
        ]
        axes.set_yticks(range(len(shown)), labels)
        axes.set_ylim(max(1, len(shown)) - 0.4, -0.6)
        axes.set_xscale("log")
        axes.set_xlim(0.015, 1e4)
        axes.set_xticks([0.1, 1, 10, 100, 1000], ["0.1", "1", "10", "100", "1,000"])
        axes.minorticks_off()
        axes.set_xlabel("distance of both, times what rounding allows (grey)")
    told = "; ".join(
        f"row {r.key} printed {r.printed}, recomputed {_told(r)}" for r in shown
    )
    return page, f"Rows that were named: {told or 'none that others imply'}."


def _told(row: Row) -> str:
    places = len(row.printed.partition(".")[2])
    return f"{row.recomputed.value:,.{places + 1 if row.fault else places}f}"


@dataclass(frozen=True, kw_only=True)
class Faults(Exercise):
    """Rows of the made-up report to name; a mistake's `answer` is the letters of rows that are named without need."""

    def judge(self, answer) -> Verdict:
        named = _letters(answer)
        if named is None or not set(named) <= rows().keys():
            shown = one_line(repr(answer))[:60]
            return Verdict(
                False,
                f'{shown} are no letters of rows; a list such as ["c", "d"] was expected.',
            )
        wrong, faults = [key for key in named if key not in planted()], planted()
        picture = Picture(*draw_rows(named))
        for mistake in self.mistakes:
            if set(mistake.answer()) & set(wrong):
                return self._name(mistake, picture)
        if wrong:
            return Verdict(
                False,
                f"Row {wrong[0]} is a setting or a measurement: no other row says what it should be.",
                picture,
            )
        if left := faults - set(named):
            where = sorted({rows()[key].group for key in left})
            text = f"{len(named)} of {len(faults)} are found, and none was named without need. Look again at {' and at '.join(where)}."
            return Verdict(False, text, picture)
        return self._accept(picture)


def _letters(answer) -> list[str] | None:
    """Letters in the order in which they were named, each once; None where it is no list of texts."""
    if isinstance(answer, str):
        answer = re.findall(r"\w+", answer)
    if not isinstance(answer, Iterable):
        return None
    found = [a.strip().lower() if isinstance(a, str) else a for a in answer]
    return (
        list(dict.fromkeys(found)) if all(isinstance(a, str) for a in found) else None
    )
