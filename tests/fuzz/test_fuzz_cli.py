"""Hostile arguments to every command: the parameters are click's own, so a command that is added is tried too."""

import os

import click
import pytest
from hostile import LONG, TEXTS, inputs
from hypothesis import assume, example, given
from hypothesis import strategies as st

from qlora_lib.cli import cli

# Words that mean something somewhere: what they mean elsewhere is for the command to find out. None starts an hour of work:
# the doors are stopped where it begins (conftest.py).
KNOWN = (
    "smoke", "demo", "t4-tinyllama-wikitext2", "tiny-random", "tinyllama-1.1b", "llama3.1-8b", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "a/b", "a/b@main",
    "tiny-text", "tiny-reviews", "tiny-questions", "tiny-instructions", "wikipedia-sample", "lora", "qlora", "full", "base", "nf4", "none", "T4", "cpu", "RTX 3090",
    "4x128", "4x128,1x1", "training,decode", "all-linear", "q_proj,v_proj", "05", "05,06", "study", "does not hold", "study-memory", "q*", "fp16", "bf16",
    "train.max_steps=5", "lora.rank=3", "data.name=a.txt", "lora=3", "=", "a=b=c", "train.max_steps=" + LONG, "train.max_steps=0x" + "f" * 5000,
    "lora.target_modules=[a, [b]]", "seed=&a [*a]", "key_variable=sk-secret", "base_url=ftp://x", "kind=local", "model=tiny-random", "local", "reference",
    "perplexity", "sst2", "squad", "responses", "winrate", "endpoint", "f16", "q8_0",
)  # fmt: skip
FILES = (
    "a.txt", "empty", "chats.jsonl", "rows.csv", "config.json", "zero.gguf", "own.yaml", "folder", "folder/in", "missing", "missing/in", "missing.yaml", "new",
    "new/er", "a.txt/in", "link", "loop", "dangling", "secret", "spaced name.txt", "-rf", "--help.txt", "é.txt", "/dev/null", "~/a.txt",
    "~nosuchuser/x", ".", "./folder", "folder/../a.txt", "x" * 300, "a/" * 3000 + "b", "file:///etc/passwd", "http://127.0.0.1:1/x", "C:\\x", "\\\\host\\x",
)  # fmt: skip
COUNTS = (
    "0", "1", "2", "8", "-1", "+3", " 5 ", "5_000", "1e3", "1.5", "0x10", "٣", "１２", "", "nan", "inf", "-inf", "1e400", "1e-400", "None", "True", "2147483648",
    "4294967296", "9223372036854775807", "9223372036854775808", "18446744073709551616", "1" + "0" * 30, "1" + "0" * 400, LONG, "-" + LONG, "0.1", "100", "128",
)  # fmt: skip
argument_text = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"])
    | st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF),
    max_size=30,
)
words = st.one_of(
    st.sampled_from(KNOWN), st.sampled_from(FILES), st.sampled_from(COUNTS),
    st.sampled_from([t for t in TEXTS if "\0" not in t and t not in ("\ud800", "/dev/zero")]), argument_text,
)  # fmt: skip


@st.composite
def value_of(draw, param: click.Parameter) -> str:
    """Mostly one that this parameter might take."""
    kind = param.type
    if draw(st.integers(0, 9)) < 2:
        return draw(words)
    if isinstance(kind, click.Choice):
        return draw(
            st.sampled_from(
                [*kind.choices, kind.choices[0].upper(), kind.choices[0][:-1], ""]
            )
        )
    if isinstance(kind, click.types.IntParamType | click.types.FloatParamType):
        return draw(st.sampled_from(COUNTS))
    if isinstance(kind, click.Path):
        return draw(st.sampled_from(FILES))
    return draw(st.sampled_from(KNOWN) | st.sampled_from(FILES))


@st.composite
def calls(draw, name: str) -> list[str]:
    """Arguments of one command: some of its own, in any order, and at times a word too many."""
    command = cli.commands[name]
    given_, pieces = (
        [p for p in command.params if p.required or draw(st.integers(0, 3)) == 0],
        [],
    )
    for param in given_:
        if param.required and draw(st.integers(0, 9)) == 0:
            continue
        if isinstance(param, click.Argument):
            pieces += [
                [draw(value_of(param))]
                for _ in range(draw(st.integers(1, 2 if param.nargs < 0 else 1)))
            ]
            continue
        option = draw(st.sampled_from([*param.opts, *param.secondary_opts]))
        if param.is_flag:
            pieces.append([option if draw(st.integers(0, 9)) else f"{option}=x"])
        else:
            for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
                value = draw(value_of(param))
                pieces.append(
                    [f"{option}={value}"] if draw(st.booleans()) else [option, value]
                )
    if draw(st.integers(0, 4)) == 0:
        pieces.append([draw(words)])
    return [name, *(word for piece in draw(st.permutations(pieces)) for word in piece)]


def furnish(folder) -> None:
    """What the names of FILES stand for."""
    (folder / "a.txt").write_text("The small model keeps a matrix.\n" * 30)
    (folder / "spaced name.txt").write_text("Words.\n")
    (folder / "-rf").write_text("Words.\n")
    (folder / "é.txt").write_text("Words.\n")
    (folder / "empty").touch()
    (folder / "chats.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
        * 3
    )
    (folder / "rows.csv").write_text("text,n\na,1\n")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "zero.gguf").write_bytes(b"GGUF" + bytes(40))
    (folder / "own.yaml").write_text("title: t\n")
    (folder / "folder").mkdir()
    (folder / "folder" / "in").write_text("Words.\n")
    (folder / "link").symlink_to("a.txt")
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "secret").write_text("Words.\n")
    (folder / "secret").chmod(0)


def tried(doors, count, argv) -> object:
    assume("--debug" not in argv)  # which asks for a traceback
    furnish(doors.fresh())
    count("arguments")
    return doors.call(*argv)


@pytest.mark.parametrize("name", sorted(cli.commands))
def test_each_command(doors, count, name):
    @inputs(0.3 / len(cli.commands))
    @given(argv=calls(name))
    def each(argv):
        tried(doors, count, argv)

    each()


@inputs(0.005)
@given(argv=st.lists(words | st.sampled_from(sorted(cli.commands)), max_size=4))
@example(argv=["\udcff"])
@example(argv=["x" * 70_000])
def test_no_command(doors, count, argv):
    tried(doors, count, argv)


ONCE = (
    ["check", "a.txt", "--tolerate", "nan"], ["plan", "--model", "~nosuchuser/x"], ["generate", "--model", "~nosuchuser/x", "--prompt", "x"], ["fetch", "~nosuchuser/x"],
    ["plan", "--model", "tiny-random", "--batch-size", "1" + "0" * 400], ["plan", "--model", "tiny-random", "--seq-len", "1" + "0" * 4000],
    ["plan", "--model", "tiny-random", "--rank", "1" + "0" * 400], ["plan", "--model", "tiny-random", "--accumulation", "1" + "0" * 400],
    ["plan", "--model", "tiny-random", "--steps", "1" + "0" * 400], ["plan", "--model", "tiny-random", "--tokens", "5", "--epochs", "nan"],
    ["plan", "--model", "a/b@../../../../../../../../bin/ls"], ["bench", "--gpu-check", "--budget", "nan"], ["bench", "--gpu-check", "--budget", "inf"],
    ["eval", "--model", "tiny-random", "--task", "sst2", "--data", "tiny-reviews", "--context", "1" + "0" * 30],
)  # fmt: skip


@pytest.mark.parametrize("argv", ONCE, ids=lambda argv: " ".join(argv)[:50])
def test_arguments_that_were_taken_wrongly_once(doors, count, argv):
    found = tried(doors, count, argv)
    assert found.code in (1, 2) and "stopped by the test" not in found.err, found


def test_every_command_gets_to_its_work(doors):
    """Else everything would be refused for the same reason."""
    good = {
        "doctor": [], "profiles": [], "fetch": ["smollm2-135m"], "train": ["--profile", "smoke", "--method", "lora", "--out", "run"],
        "search": ["--profile", "demo"], "sweep": ["--profile", "smoke"], "eval": ["--model", "tiny-random", "--data", "a.txt"], "bench": ["--quick"],
        "generate": ["--model", "tiny-random", "--prompt", "x"], "run": ["--only", "05"], "report": ["--profile", "smoke", "--committed"], "course": [],
        "check": ["chats.jsonl", "--tolerate", "100"], "plan": ["--model", "tiny-random"], "audit": ["--only", "study-memory"],
        "export": ["--model", "tiny-random", "--out", "new.gguf"], "merge": ["--adapter", "folder", "--out", "new"],
    }  # fmt: skip
    assert set(cli.commands) <= set(good), (
        "say here how a new command is called, and in conftest.py where its work begins"
    )
    for name in cli.commands:
        furnish(doors.fresh())
        found = doors.call(name, *good[name])
        assert (
            found.code == 0
            or "stopped by the test" in found.err
            or name in ("check", "merge", "search", "sweep")
        ), found


def test_the_names_lie_within_the_folder(doors):
    """A path that leads out of it would be written to: rightly, and still not in a test."""
    inside = os.path.realpath(doors.given)
    for name in (*FILES, *KNOWN):
        full = os.path.normpath(os.path.join(inside, name))
        assert full.startswith((inside, "/dev/null")), name
