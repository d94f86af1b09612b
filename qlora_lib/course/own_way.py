"""Lesson 13: what training on one's own chats will take, and pictures of the way.

How it works: everything before training is predicted from the model's shape and the file's lengths: memory by lesson 4's
arithmetic (of a GPU by that of `qlora bench --gpu-check`), disk by the formats of the files. What was measured comes
from the arm's record.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from qlora_lib import style
from qlora_lib.bench.predict import Work, predict
from qlora_lib.config import Settings
from qlora_lib.cost.memory import FLOAT, adapter_tensors, nf4_bytes, state_bytes
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.course.anatomy import Method, anatomy
from qlora_lib.records import Metric, Train
from qlora_lib.tasks.own_report import Kind, Report

BYTES = {"f32": 4.0, "f16": 2.0, "q8_0": 34 / 32}  # a weight of a matrix; q8_0: 32 codes and a 16-bit scale a block
CHECKPOINTS = 2  # are kept at a time
NOTED = {  # how a note of tasks/own.py begins -> what became of the row, and why
    "byte order mark": ("mended", "the mark is no part of the text, and is skipped"),
    "Windows line ends": ("mended", "a carriage return behind a row is no part of it"),
    "blank line": ("mended", "it holds no row, and is skipped"),
    "converted from": ("converted", "another common form: its turns became messages"),
    "the same as an earlier row": ("kept", "it may be meant; it is learned once more"),
}


# --- the file --------------------------------------------------------------------------------------


def fate(kind: Kind) -> tuple[str, str]:
    """(what became of the rows with this problem, why)."""
    if kind.left_out:
        first = next((f"; the first: {at['detail']}" for at in kind.first if at["detail"]), "")
        return "left out", f"it cannot teach{first}"
    return next((told for start, told in NOTED.items() if kind.what.startswith(start)), ("kept", "it can teach as it is"))


def problem_rows(report: Report) -> list[list[str]]:
    """Rows (what, what the row is, why, times, rows) of what `qlora check` found; of the rows left out, why names the first."""
    return [
        [kind.what, *fate(kind), f"{kind.count}", ", ".join(f"{at['row']}" for at in kind.first if at["row"]) or "the whole file"]
        for kind in report.kinds
    ]


# --- before training -------------------------------------------------------------------------------


def predicted_peak(settings: Settings, shape: ModelShape, length: int, on: str = "cpu", dtype: str = "fp32") -> int:
    """Bytes of tensors that a QLoRA step holds at its highest moment, where all its chats are `length` tokens long.

    on, dtype: the device, and what the products run in there.
    """
    t, lora = settings.train, settings.lora
    if on == "cpu":
        method = Method(
            "qlora", rank=lora.rank, dropout=lora.dropout, four_bit=True, optimizer_bits=_state_bits(settings),
            checkpointing=t.gradient_checkpointing, targets=_targets(settings), fast=settings.runtime.fast,
        )  # fmt: skip
        return max(anatomy(shape, method, t.batch_size, length).moments.values())
    work = Work(shape, "qlora", t.batch_size, length, settings.lora.rank, t.gradient_checkpointing, dtype)
    return predict(work, None, None).peak_bytes


def merging_bytes(shape: ModelShape) -> int:
    """Weights that merging holds at its highest moment: the model in fp32, and its 4-bit copy with what that leaves in fp32."""
    plain = shape.parameters.total * FLOAT
    packed = shape.num_layers * sum(nf4_bytes(i * o) for i, o in shape.linear_modules.values())
    return plain + packed + plain - shape.linear_weights * FLOAT


def stored_width(folder: Path) -> int:
    """Bytes of a weight in a transformers folder, by its config.json."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    return {"float16": 2, "bfloat16": 2}.get(config.get("dtype") or config.get("torch_dtype"), FLOAT)


def gguf_bytes(shape: ModelShape, kind: str) -> int:
    """Of the tensors in a GGUF: matrices as asked for, vectors in fp32. Names, keys and vocabulary come to that."""
    counts = shape.parameters
    matrices = shape.linear_weights + counts.embedding + counts.head
    return round(matrices * BYTES[kind]) + (counts.total - matrices) * FLOAT


def disk_bytes(shape: ModelShape, settings: Settings, width: int = FLOAT) -> dict[str, int]:
    """What the whole way leaves on the disk, by kind; `width`: bytes of a weight in the merged checkpoint."""
    tensors = adapter_tensors(shape, settings.lora.rank, _targets(settings))
    adapter = sum(tensors) * FLOAT
    states = state_bytes(tensors, _state_bits(settings))
    return {
        "adapter": adapter,
        "checkpoints, while training": CHECKPOINTS * (adapter + states) if settings.train.save_every else 0,
        "merged checkpoint": shape.parameters.total * width,
        "GGUF, f16": gguf_bytes(shape, "f16"),
        "GGUF, q8_0": gguf_bytes(shape, "q8_0"),
    }


def _state_bits(settings: Settings) -> int:
    return 8 if "8bit" in settings.train.optimizer else 32


def _targets(settings: Settings) -> str | tuple[str, ...]:
    targets = settings.lora.target_modules
    return targets if isinstance(targets, str) else tuple(targets)


# --- pictures --------------------------------------------------------------------------------------


def draw_lengths(lengths: Sequence[int], learned: Sequence[int], max_length: int) -> tuple[style.Figure, str]:
    """A bar a chat, by length: the learned tokens below, all others above them, and the limit."""
    order = np.argsort(lengths, kind="stable")
    long, taught = np.asarray(lengths)[order], np.asarray(learned)[order]
    with style.page_style():
        figure = style.new_figure(4.6)
        axes = figure.subplots()
        axes.bar(range(len(long)), taught, width=1, color=style.GREEN, label="learned: the assistant's words")
        axes.bar(range(len(long)), long - taught, bottom=taught, width=1, color=style.FAINT, hatch="////", edgecolor="white",
                 linewidth=0, label="read only: all others")  # fmt: skip
        near = max_length <= 2.5 * long.max()
        if near:
            axes.axhline(max_length, color=style.VERMILLION, linestyle="--", linewidth=1)
            axes.annotate("longest that is kept", (0, max_length), (2, -8), textcoords="offset points", color=style.VERMILLION)
        axes.set_xlabel("chats, the shortest first")
        axes.set_ylabel("tokens")
        figure.legend(loc="outside upper right", ncols=2)
    left_out = int((long > max_length).sum())
    return figure, (
        f"A bar for each of {len(long)} chats, from {long[0]} to {long[-1]} tokens; the learned part is {taught.sum() / long.sum():.0%} "
        f"of all. {left_out} are longer than the limit of {max_length}."
    )


def draw_outcome(train: Train, metric: Metric) -> tuple[style.Figure, str]:
    """Loss by step, on training and on validation chats; and the loss of each test chat before and after."""
    with style.page_style():
        figure = style.new_figure(6)
        left, right = figure.subplots(1, 2)
        left.plot(range(1, len(train.loss) + 1), train.loss, ".", color=style.GREY, markersize=3, label="training, by step")
        left.plot(train.eval_steps, train.eval_loss, "-D", color=style.GREEN, label="validation")
        left.set_xlabel("optimizer steps")
        left.set_ylabel("nats a learned token")
        left.set_ylim(0, 1.1 * max(*train.loss, *train.eval_loss))
        left.legend(loc="lower left")
        before, after = metric.before_each, metric.after_each
        low, high = min(*before, *after), max(*before, *after)
        ends = low - 0.08 * (high - low) - 1e-3, high + 0.08 * (high - low) + 1e-3
        right.plot(ends, ends, color=style.SOFT, linewidth=0.8, linestyle="--", label="unchanged")
        right.plot(before, after, "D", color=style.GREEN, markersize=4, label="a test chat")
        right.set(xlim=ends, ylim=ends, aspect="equal")
        right.set_xlabel("nats a response token, before training")
        right.set_ylabel("after training")
        right.legend(loc="upper left")
    better = sum(a < b for a, b in zip(after, before))
    return figure, (
        f"Left, the losses over {len(train.loss)} steps: validation from {train.eval_loss[0]:.2f} to {train.eval_loss[-1]:.2f}. Right, the "
        f"loss of {len(before)} test chats after training against before: {better} lie below the diagonal."
    )


def draw_ways(losses: Mapping[str, float], axis: str) -> tuple[style.Figure, str]:
    """A bar for each way to deploy an adapter."""
    with style.page_style():
        figure = style.new_figure(1.2 + 0.75 * len(losses))
        axes = figure.subplots()
        names = list(losses)
        axes.barh(names, list(losses.values()), color=style.BLUE, height=0.55)
        for row, value in enumerate(losses.values()):
            axes.annotate(f"{value:.4g}", (value, row), (3, 0), textcoords="offset points", va="center")
        axes.invert_yaxis()
        axes.margins(x=0.12)
        axes.set_xlabel(axis)
    return figure, f"{axis[:1].upper()}{axis[1:]}: " + "; ".join(f"{name} {value:.4g}" for name, value in losses.items()) + "."
