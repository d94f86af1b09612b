"""Lesson 13's exercises: right answers from independent ways, and what students write instead."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lib.config import load_profile
from qlora_lib.course.answers import check
from qlora_lib.course.exercises import own_data
from qlora_lib.course.exercises.own_data import deviations, usable
from qlora_lib.errors import QloraError
from qlora_lib.tasks.own import read_messages


def wrong(key, answer, said):
    verdict = check(key, answer)
    assert not verdict.correct and verdict.message.startswith(said), verdict.message
    assert verdict.picture is not None


def right(key, answer):
    verdict = check(key, answer)
    assert verdict.correct and verdict.picture is not None, verdict.message


# --- 13.1 ------------------------------------------------------------------------------------------


def in_order(messages):
    """The rule of the chats, as a small machine."""
    state = "start"
    for m in messages:
        step = {("start", "system"): "asked for", ("start", "user"): "asked", ("asked for", "user"): "asked", ("asked", "assistant"): "answered",
                ("answered", "user"): "asked"}  # fmt: skip
        state = step.get((state, m["role"]), "bad") if m["content"].strip() else "bad"
    return state == "answered"


def test_rows_that_can_teach():
    right("13.1", in_order)
    right("13.1", lambda m: 1.0 if in_order(m) else 0.0)


def no_strip(messages):
    return in_order([m if m["content"] == "" else m | {"content": "x"} for m in messages])


def ends_anyhow(messages):
    return in_order(messages) or in_order([*messages, {"role": "assistant", "content": "x"}])


def last_only(messages):
    return messages[-1]["role"] == "assistant" and all(m["role"] in ("system", "user", "assistant") and m["content"].strip() for m in messages)


def without_systems(messages):
    rest = [m for m in messages if m["role"] != "system"]
    return bool(rest) and in_order(rest)


def greeting(messages):
    rest = messages[1:] if messages[0]["role"] == "system" else messages
    return in_order(messages) or (rest[0]["role"] == "assistant" and (len(rest) == 1 or in_order(rest[1:])))


@pytest.mark.parametrize("answer, said", [
    (no_strip, "Blanks passed for an answer"),
    (ends_anyhow, "A chat that ends with a question was accepted"),
    (last_only, "The turns were not checked"),
    (without_systems, "A system message in the middle was accepted"),
    (greeting, "The assistant was allowed to begin"),
    (lambda m: m[0]["role"] != "system" and in_order(m), "The system message was not allowed"),
])  # fmt: skip
def test_rows_that_cannot_teach(answer, said):
    wrong("13.1", answer, said)


@given(st.lists(st.tuples(st.sampled_from(["system", "user", "assistant", "bot"]), st.sampled_from(["yes", " ", "?"])), min_size=1, max_size=6))
def test_the_rule_is_that_of_the_reader(tmp_path_factory, turns):
    messages = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n")
    assert usable(messages) == in_order(messages) == (len(read_messages(path)[0]) == 1)


def test_what_became_of_each_row_is_said_with_its_reason():
    from qlora_lib.course.own_way import NOTED, problem_rows
    from qlora_lib.paths import project_root
    from qlora_lib.tasks.own_report import Kind, check

    report = check(project_root() / "notebooks" / "data" / "malformed_messages.jsonl")
    rows = {what: (became, why, where) for what, became, why, _, where in problem_rows(report)}
    assert all(why for _, why, _ in rows.values())
    assert {what for what, (became, *_) in rows.items() if became == "left out"} == {k.what for k in report.kinds if k.left_out}
    assert rows["byte order mark, skipped"][0] == rows["blank line"][0] == "mended" and rows["byte order mark, skipped"][2] == "the whole file"
    assert {became for what, (became, *_) in rows.items() if what.startswith("converted from")} == {"converted"}
    assert rows["the same as an earlier row"][0] == "kept" and rows["unknown role"][1] == "it cannot teach; the first: message 2: bot"
    noted = [k.what for k in report.kinds if not k.left_out]
    assert all(any(what.startswith(start) for start in NOTED) for what in noted)  # the reader's words and this table's are the same
    report.kinds = [Kind("odd in a new way", False, 1, [{"row": 3, "detail": ""}])]
    assert problem_rows(report) == [["odd in a new way", "kept", "it can teach as it is", "1", "3"]]


# --- 13.2 ------------------------------------------------------------------------------------------


def learned_by_labels(messages):
    """Runs of labels in what the tiny model is trained with."""
    import tiny

    from qlora_lib.models import load_tokenizer
    from qlora_lib.tasks.chat import encode
    from qlora_lib.tasks.examples import Example, Message

    labels = encode(Example("1", tuple(Message(**m) for m in messages)), load_tokenizer(tiny.folder())).labels
    return sum(now >= 0 and before < 0 for before, now in zip([-100, *labels], labels))


def test_turns_that_are_learned():
    right("13.2", learned_by_labels)


@pytest.mark.parametrize("answer, said", [
    (lambda m: int(m[-1]["role"] == "assistant"), "Only the last answer was counted"),
    (lambda m: len([x for x in m if x["role"] in ("user", "assistant")]), "The user's messages were counted too"),
    (lambda m: len(m), "Every message was counted"),
    (lambda m: [x["role"] for x in m].count("assistant") - 1, "The first answer was left out"),
])  # fmt: skip
def test_turns_counted_wrongly(answer, said):
    wrong("13.2", answer, said)


# --- 13.3 ------------------------------------------------------------------------------------------


def by_the_trainer(train, too_long, batch_size, accumulation):
    from qlora_lib.training import planned_steps

    profile = load_profile("smoke")
    arm = profile.arm_of_method("qlora")
    set_to = {"train.epochs": 1.0, "train.max_steps": 100_000, "train.batch_size": batch_size, "train.gradient_accumulation_steps": accumulation}
    try:
        return planned_steps(profile.settings(arm, set_to), train - too_long)
    except QloraError:
        return 0


def test_steps_of_an_epoch():
    right("13.3", by_the_trainer)


@pytest.mark.parametrize("answer, said", [
    (lambda n, long, b, a: (n - long) // b, "Gradient accumulation was forgotten"),
    (lambda n, long, b, a: n // (a * b), "Chats that are too long were counted"),
    (lambda n, long, b, a: (n - long + a * b - 1) // (a * b), "It was rounded up"),
    (lambda n, long, b, a: (n - long) / b / a, "A fraction of a step was returned"),
    (lambda n, long, b, a: (n - long) // a, "The batch size was forgotten"),
])  # fmt: skip
def test_steps_counted_wrongly(answer, said):
    wrong("13.3", answer, said)


# --- 13.4 ------------------------------------------------------------------------------------------


def by_counting(k, save_every):
    saved = 0
    for step in range(1, k + 1):
        if save_every and step % save_every == 0:
            saved = step
    return k - saved


def test_what_is_lost():
    right("13.4", by_counting)


@pytest.mark.parametrize("answer, said", [
    (lambda k, s: (s - k % s) % s if s else k, "The steps up to the next checkpoint were returned"),
    (lambda k, s: k // s * s if s else 0, "The steps that are kept were returned"),
    (lambda k, s: k, "All steps were taken for lost"),
    (lambda k, s: 0 if s == 0 else k % s, "A run without checkpoints was taken to lose nothing"),
    (lambda k, s: s - 1 if s else k, "The worst case was returned"),
])  # fmt: skip
def test_what_is_not_lost(answer, said):
    wrong("13.4", answer, said)


# --- 13.5 ------------------------------------------------------------------------------------------


def test_which_base():
    right("13.5", "dequantized")
    for answer, said in (("original", "never saw"), ("quantized again", "rounded away again"), ("without adapter", "nothing of the training")):
        verdict = check("13.5", answer)
        assert not verdict.correct and said in verdict.message and verdict.picture is not None
    found = deviations()
    assert found["dequantized"] == 0 and min(found["original"], found["quantized again"]) > 0.5 * found["without adapter"]
    assert all(f"{way} {value:.4g}" in check("13.5", "original").picture.alt for way, value in found.items())


# --- 13.6 ------------------------------------------------------------------------------------------


def by_ggml(matrices, vectors, kind):
    """With the package's own table of blocks."""
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind.upper()]]
    return matrices // block * size + vectors * 4


def test_bytes():
    right("13.6", by_ggml)


@pytest.mark.parametrize("answer, said", [
    (lambda m, v, k: m * int(k[1:].split("_")[0]) / 8 + 4 * v, "The scales of q8_0 were forgotten"),
    (lambda m, v, k: m * (9 / 8 if k == "q8_0" else int(k[1:]) / 8) + 4 * v, "The scales were taken for 32 bits wide"),
    (lambda m, v, k: (m + v) * {"f32": 4, "f16": 2}.get(k, 1.0625), "The vectors were stored like the matrices"),
    (lambda m, v, k: by_ggml(m, 0, k), "The vectors were forgotten"),
    (lambda m, v, k: by_ggml(m, v, k) * 8, "Bits were returned"),
    (lambda m, v, k: m * {"f32": 4, "f16": 2}.get(k, 66 / 64) + 4 * v, "Blocks of 64 weights were taken"),
])  # fmt: skip
def test_other_bytes(answer, said):
    wrong("13.6", answer, said)


def test_the_model_of_the_cases_is_smollm2():
    from qlora_lib.cost.shapes import ModelShape
    from qlora_lib.course.own_way import gguf_bytes

    shape = ModelShape(576, 30, 9, 3, 64, 1536, 49152, tied_embeddings=True)
    assert sum(own_data.SIZES) == shape.parameters.total
    assert all(gguf_bytes(shape, kind) == by_ggml(*own_data.SIZES, kind) for kind in ("f32", "f16", "q8_0"))
