"""Lesson 13: a reader's own chats, from the file to the GGUF."""

import functools
from itertools import pairwise

import torch

from qlora_lib.course.answers import Case, Choice, Function, Mistake
from qlora_lib.course.own_way import BYTES, draw_ways
from qlora_lib.quantization import dequantize_4bit, quantize_4bit


def chat(*turns: str) -> list[dict]:
    """Messages from "user: words"."""
    return [dict(zip(("role", "content"), turn.split(": ", 1))) for turn in turns]


# --- 13.1 usable rows ------------------------------------------------------------------------------


def usable(messages: list[dict]) -> bool:
    """As tasks/own.py has it, of rows that are lists of a role and a text each."""
    return _known(messages) and _filled(messages) and _in_turn(messages) and messages[-1]["role"] == "assistant"


def _known(messages) -> bool:
    return all(m["role"] in ("system", "user", "assistant") for m in messages)


def _filled(messages) -> bool:
    return all(m["content"].strip() for m in messages)


def _in_turn(messages) -> bool:
    spoken = [m["role"] for m in messages]
    spoken = spoken[spoken[0] == "system" :]
    return spoken[:1] == ["user"] and "system" not in spoken and all(a != b for a, b in pairwise(spoken))


def _system_anywhere(messages) -> bool:
    return usable([m for m in messages if m["role"] != "system"])


def _assistant_may_begin(messages) -> bool:
    spoken = [m["role"] for m in messages]
    spoken = spoken[spoken[0] == "system" :]
    turns = "system" not in spoken and all(a != b for a, b in pairwise(spoken))
    return _known(messages) and _filled(messages) and turns and spoken[-1:] == ["assistant"]


rows = Function(
    key="13.1",
    title="Rows that can teach",
    axis="1: usable, 0: not",
    expected=usable,
    cases=lambda: [
        Case("a question and its answer", (chat("user: When are you open?", "assistant: From ten to six."),)),
        Case("a system message first", (chat("system: Be brief.", "user: Is there a lift?", "assistant: Yes."),)),
        Case("two exchanges", (chat("user: A tour?", "assistant: At two.", "user: In English?", "assistant: On Saturdays."),)),
        Case("a question without an answer", (chat("user: A tour?", "assistant: At two.", "user: In English?"),)),
        Case("an answer of blanks", (chat("user: May I bring my dog?", "assistant:    "),)),
        Case("a welcome first", (chat("assistant: Welcome!", "user: Where is the loom?", "assistant: In room four."),)),
        Case("two questions in a row", (chat("user: Hello?", "user: Anybody?", "assistant: Yes?"),)),
        Case("a role of another name", (chat("user: Lockers?", "bot: At the door.", "user: Free?", "assistant: Yes."),)),
        Case("a system message in the middle", (chat("user: A tour?", "system: Be brief.", "assistant: At two."),)),
        Case("a system message alone", (chat("system: Be brief.", "assistant: Yes."),)),
    ],
    explain="Known roles, no empty text, the system first if at all, user and assistant in turn, and the assistant last: then there is "
    "an answer to learn, and something that it answers.",
    mistakes=(
        Mistake(
            name="blanks passed for an answer",
            why="A text of white space is not empty to `if`, but it teaches the model to say nothing: strip it first.",
            answer=lambda m: _known(m) and all(x["content"] for x in m) and _in_turn(m) and m[-1]["role"] == "assistant",
        ),
        Mistake(
            name="a chat that ends with a question was accepted",
            why="Without an answer at the end there is nothing to score, and the last question is read in vain.",
            answer=lambda m: _known(m) and _filled(m) and _in_turn(m),
        ),
        Mistake(
            name="the turns were not checked",
            why="User and assistant take turns; most chat templates refuse two in a row, or write them in a way that no chat has.",
            answer=lambda m: _known(m) and _filled(m) and m[-1]["role"] == "assistant",
        ),
        Mistake(
            name="a system message in the middle was accepted",
            why="It may only be the first message: after that the model has never seen one.",
            answer=_system_anywhere,
        ),
        Mistake(
            name="the assistant was allowed to begin",
            why="Its first words answer nobody: after a system message, if there is one, the user speaks.",
            answer=_assistant_may_begin,
        ),
        Mistake(
            name="the system message was not allowed",
            why="It is optional, and before the first turn it belongs.",
            answer=lambda m: usable(m) and m[0]["role"] == "user",
        ),
        Mistake(
            name="roles of any name were accepted",
            why="A template knows system, user and assistant; another name is refused, or written where no model expects it.",
            answer=lambda m: _filled(m) and _in_turn(m) and m[-1]["role"] == "assistant",
        ),
    ),
)


# --- 13.2 what is learned --------------------------------------------------------------------------


def learned_messages(messages: list[dict]) -> int:
    return sum(m["role"] == "assistant" for m in messages)


turns = Function(
    key="13.2",
    title="The turns that are learned",
    axis="messages",
    expected=learned_messages,
    cases=lambda: [
        Case("one exchange", (chat("user: A tour?", "assistant: At two."),)),
        Case(
            "three exchanges behind a system message",
            (chat("system: Be brief.", "user: A tour?", "assistant: At two.", "user: Long?", "assistant: No.", "user: Ok.", "assistant: Bye."),),
        ),
        Case("two exchanges", (chat("user: A tour?", "assistant: At two.", "user: In English?", "assistant: On Saturdays."),)),
    ],
    explain="Each of the assistant's messages is learned, with the token that ends it; the rest is read and has the label -100. One "
    "pass over the chat teaches all of its answers.",
    mistakes=(
        Mistake(
            name="only the last answer was counted",
            why="The earlier answers stand in the chat anyway, and a causal model sees before each only what came before: they teach too.",
            answer=lambda m: 1,
        ),
        Mistake(
            name="the user's messages were counted too",
            why="The model shall learn to answer, not to ask: loss on the questions spends the adapter on them.",
            answer=lambda m: sum(x["role"] != "system" for x in m),
        ),
        Mistake(
            name="every message was counted",
            why="System and user messages are read only: their labels are -100.",
            answer=len,
        ),
        Mistake(
            name="the first answer was left out",
            why="It answers the first question: there is something before it to read.",
            answer=lambda m: learned_messages(m) - 1,
        ),
    ),
)


# --- 13.3 steps ------------------------------------------------------------------------------------


def epoch_steps(train: int, too_long: int, batch_size: int, accumulation: int) -> int:
    return (train - too_long) // (batch_size * accumulation)


steps = Function(
    key="13.3",
    title="Steps of an epoch",
    axis="optimizer steps",
    expected=epoch_steps,
    cases=lambda: [
        Case("152 chats in batches of 4", (152, 0, 4, 1)),
        Case("1,000 chats of which 40 are too long", (1000, 40, 8, 4)),
        Case("150 chats that do not come out even", (150, 3, 16, 1)),
        Case("batches of one, gathered to 16", (500, 20, 1, 16)),
    ],
    explain="What is left of the file, over the chats that one step sees. A rest that fills no step belongs to the next epoch.",
    mistakes=(
        Mistake(
            name="gradient accumulation was forgotten",
            why="An optimizer step comes after so many batches, and not after each.",
            answer=lambda n, long, b, a: (n - long) // b,
        ),
        Mistake(
            name="chats that are too long were counted",
            why="They are left out of training, so no step sees them.",
            answer=lambda n, long, b, a: n // (b * a),
        ),
        Mistake(
            name="it was rounded up",
            why="A rest of the epoch is too little for a whole step: the step that it begins ends in the next epoch.",
            answer=lambda n, long, b, a: -(-(n - long) // (b * a)),
        ),
        Mistake(
            name="a fraction of a step was returned",
            why="An optimizer steps or it does not.",
            answer=lambda n, long, b, a: (n - long) / (b * a),
        ),
        Mistake(
            name="the batch size was forgotten",
            why="A step sees batch size times accumulation chats.",
            answer=lambda n, long, b, a: (n - long) // a,
        ),
    ),
    tolerance=1e-9,
)


# --- 13.4 a machine that is lost -------------------------------------------------------------------


def lost_steps(k: int, save_every: int) -> int:
    return k % save_every if save_every else k


lost = Function(
    key="13.4",
    title="What a lost machine costs",
    axis="steps to be run again",
    expected=lost_steps,
    cases=lambda: [
        Case("a machine that dies after step 10 of checkpoints every 4", (10, 4)),
        Case("one that dies just after a checkpoint", (12, 4)),
        Case("one that dies before the first checkpoint", (3, 4)),
        Case("a run without checkpoints", (9, 0)),
        Case("a long run", (1999, 500)),
    ],
    explain="At most save_every - 1 finished steps and the one that was running; without checkpoints all of them.",
    mistakes=(
        Mistake(
            name="the steps up to the next checkpoint were returned",
            why="They had not been run yet. What is lost lies between the last checkpoint and the end of the machine.",
            answer=lambda k, s: -k % s if s else k,
        ),
        Mistake(
            name="the steps that are kept were returned",
            why="The last checkpoint holds these: the question is what came after it.",
            answer=lambda k, s: k - lost_steps(k, s),
        ),
        Mistake(
            name="all steps were taken for lost",
            why="The newest checkpoint holds the adapter, the optimizer's states and the place in the data: training goes on behind it.",
            answer=lambda k, s: k,
        ),
        Mistake(
            name="a run without checkpoints was taken to lose nothing",
            why="save_every = 0 keeps no checkpoint, so it begins anew.",
            answer=lambda k, s: k % s if s else 0,
        ),
        Mistake(
            name="the worst case was returned",
            why="It depends on where between two checkpoints the machine died.",
            answer=lambda k, s: s - 1 if s else k,
        ),
    ),
)


# --- 13.5 which base -------------------------------------------------------------------------------


@functools.cache
def deviations() -> dict[str, float]:
    """Of a layer's outputs from those in training, relative, by what the adapter is merged onto; a seeded layer [96, 128]."""
    draw = torch.Generator().manual_seed(13)
    weight = torch.randn(96, 128, generator=draw) * 0.05
    update = torch.randn(96, 8, generator=draw) @ torch.randn(8, 128, generator=draw) * 0.002
    inputs = torch.randn(128, 64, generator=draw)
    four_bit = lambda w: dequantize_4bit(quantize_4bit(w, "nf4", 64, True))
    trained = four_bit(weight) + update
    ways = {"dequantized": trained, "original": weight + update, "quantized again": four_bit(trained), "without adapter": four_bit(weight)}
    outputs = trained @ inputs
    return {name: float((w @ inputs - outputs).norm() / outputs.norm()) for name, w in ways.items()}


base = Choice(
    key="13.5",
    title="Onto which weights",
    right="dequantized",
    options={
        "dequantized": "the adapter was trained beside the weights that the 4-bit codes stand for. Added to those, in 16 or 32 bits, "
        "the layer computes what it computed in training.",
        "original": "these weights are better than the quantized ones, but the adapter never saw them: part of what it learned corrects "
        "the error of the codes, and here there is none. It may do well; it is not the model that was trained and tested.",
        "quantized again": "the dequantized weights lie on the levels of the codes, so an update of less than half the way to the next level "
        "is rounded away again. The smaller the update, the more of it is lost.",
        "without adapter": "then nothing of the training is left.",
    },
    draw=lambda answer, **_: draw_ways(deviations(), "deviation of a layer's outputs from those in training, relative"),
)


# --- 13.6 bytes ------------------------------------------------------------------------------------


def file_bytes(matrices: int, vectors: int, kind: str) -> float:
    return matrices * BYTES[kind] + 4 * vectors


SIZES = (134_479_872, 35_136)  # weights of SmolLM2-135M's matrices, its tied embedding among them, and of its norms

size = Function(
    key="13.6",
    title="The bytes of a GGUF",
    axis="bytes",
    expected=file_bytes,
    cases=lambda: [
        Case("SmolLM2-135M in f32", (*SIZES, "f32")),
        Case("SmolLM2-135M in f16", (*SIZES, "f16")),
        Case("SmolLM2-135M in q8_0", (*SIZES, "q8_0")),
        Case("one block and one vector in q8_0", (32, 64, "q8_0")),
    ],
    explain="A Q8_0 block is 32 codes of a byte and a scale of two bytes, 8.5 bits a weight. Vectors stay in 32 bits: they weigh nothing.",
    mistakes=(
        Mistake(
            name="the scales of q8_0 were forgotten",
            why="A code says nothing without its block's scale: 32 codes share one, of 16 bits.",
            answer=lambda m, v, kind: m * {"f32": 4, "f16": 2, "q8_0": 1}[kind] + 4 * v,
        ),
        Mistake(
            name="the scales were taken for 32 bits wide",
            why="Q8_0 keeps them in fp16, two bytes a block.",
            answer=lambda m, v, kind: m * {"f32": 4, "f16": 2, "q8_0": 36 / 32}[kind] + 4 * v,
        ),
        Mistake(
            name="the vectors were stored like the matrices",
            why="Norms stay in fp32: that costs next to nothing, and they are sensitive.",
            answer=lambda m, v, kind: (m + v) * BYTES[kind],
        ),
        Mistake(
            name="the vectors were forgotten",
            why="They weigh little, but the file has them: four bytes each.",
            answer=lambda m, v, kind: m * BYTES[kind],
        ),
        Mistake(
            name="bits were returned",
            why="A byte has eight of them.",
            answer=lambda m, v, kind: 8 * file_bytes(m, v, kind),
        ),
        Mistake(
            name="blocks of 64 weights were taken",
            why="That is NF4's block in bitsandbytes; Q8_0's has 32.",
            answer=lambda m, v, kind: m * {"f32": 4, "f16": 2, "q8_0": 66 / 64}[kind] + 4 * v,
        ),
    ),
    tolerance=0.5,
)

EXERCISES = [rows, turns, steps, lost, base, size]
