"""Hostile data files through every command that reads one: chats, SST-2, SQuAD, Dolly, AlpacaEval, text, tables, Parquet."""

import io
import os

import pyarrow
import pyarrow.parquet
import pytest
from hostile import LONG, anything, as_json, damaged, files, inputs, lines, nested
from hypothesis import example, given
from hypothesis import strategies as st

WORDS = "a film that moves and surprises; nobody could say why it was so long or so short".split()


def say(i: int, n: int = 6) -> str:
    return (
        " ".join(WORDS[(i * 7 + k * (i + 1)) % len(WORDS)] for k in range(n)) + f" {i}"
    )


CHATS = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": say(i)},
            {"role": "assistant", "content": say(i + 1)},
        ]
    }
    for i in range(6)
]
SHAREGPT = [
    {
        "conversations": [
            {"from": "human", "value": say(i)},
            {"from": "gpt", "value": say(i + 1)},
        ]
    }
    for i in range(6)
]
DOLLY = [
    {
        "instruction": say(i),
        "context": say(i, 3),
        "response": say(i + 1),
        "category": "open_qa",
    }
    for i in range(6)
]
ALPACA = [
    {
        "instruction": say(i),
        "output": say(i + 1),
        "generator": "reference",
        "dataset": "d",
    }
    for i in range(6)
]
ROWS = [{"text": say(i, 40), "id": i} for i in range(6)]
SQUAD = {"version": "1.1", "data": [
    {"title": f"T{i}", "paragraphs": [{"context": say(i, 12), "qas": [{"id": f"q{i}", "question": say(i + 2), "answers": [{"text": say(i, 12)[:5], "answer_start": 0}]}]}]}
    for i in range(4)
]}  # fmt: skip
SST2 = "sentence\tlabel\n" + "".join(f"{say(i)} \t{i % 2}\n" for i in range(8))
CSV = "id,text\n" + "".join(f'{i},"{say(i, 9)}, ""so"""\n' for i in range(8))
ANNOTATIONS = [
    {"instruction": say(i), "output_1": say(i), "output_2": say(i + 1), "generator_1": "a", "generator_2": "b", "annotator": "j", "preference": [1.0, 2.0, 1.5, None][i % 4]}
    for i in range(8)
]  # fmt: skip


def parquet(**columns) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


OF_TEXT, OF_SST2 = (
    parquet(text=[say(i) for i in range(5)]),
    parquet(sentence=[say(i) for i in range(5)], label=[0, 1, 0, 1, 1]),
)
OF_SQUAD = parquet(
    id=["1", "2"], title=["t", "u"], context=[say(1, 9)] * 2, question=["who?"] * 2,
    answers=[{"text": [say(1, 9)[:4]], "answer_start": [0]}] * 2,
)  # fmt: skip
ODD = parquet(
    text=pyarrow.array([1, 2]),
    sentence=pyarrow.array([b"\xff", None]),
    label=pyarrow.array([None, 2**40]),
)
SELF_MADE = parquet(instruction=[nested(3)] * 2, response=[{"a": 1}] * 2)

LINES = {
    "chats.jsonl": CHATS,
    "shared.jsonl": SHAREGPT,
    "dolly.jsonl": DOLLY,
    "rows.jsonl": ROWS,
}
TREES = {"squad.json": SQUAD, "alpaca.json": ALPACA}
BYTES = {
    "sst2.tsv": SST2.encode(), "rows.csv": CSV.encode(), "rows.tsv": CSV.replace(",", "\t").encode(), "a.txt": say(3, 90).encode(),
    "text.parquet": OF_TEXT, "sst2.parquet": OF_SST2, "squad.parquet": OF_SQUAD, "odd.parquet": ODD, "self.parquet": SELF_MADE,
}  # fmt: skip
some = st.one_of(
    *(st.tuples(st.just(name), lines(rows)) for name, rows in LINES.items()),
    *(st.tuples(st.just(name), files(tree)) for name, tree in TREES.items()),
    *(st.tuples(st.just(name), st.one_of(damaged(data), damaged(data), st.just(data), anything)) for name, data in BYTES.items()),
    st.tuples(st.sampled_from([*LINES, *TREES, *BYTES]), st.sampled_from([as_json(CHATS), OF_SST2, SST2.encode(), *BYTES.values()])),  # another's name
)  # fmt: skip
NOWHERE = ("--model", "./none")  # data is looked at before the model
DOORS = (
    ("check", "FILE"), ("check", "FILE", "--json", "--tolerate", "100", "--rows", "1000"), ("check", "FILE", "--model", "tiny-random", "--max-length", "8"),
    ("eval", *NOWHERE, "--data", "FILE"), ("eval", *NOWHERE, "--data", "FOLDER"), ("eval", *NOWHERE, "--data", "FILE", "--text-column", "sentence"),
    *(("eval", *NOWHERE, "--task", task, "--data", "FILE") for task in ("sst2", "squad", "responses")),
    ("eval", *NOWHERE, "--task", "winrate", "--data", "FILE", "--baseline", "FILE"), ("eval", *NOWHERE, "--task", "responses", "--data", "FOLDER"),
    ("train", "--profile", "smoke", "--method", "lora", "--out", "run", "--set", "data.name=FILE"),
    ("generate", *NOWHERE, "--messages", "FILE"), ("generate", *NOWHERE, "--messages", "FILE", "--system", "s", "--json"),
    ("eval", "--task", "winrate", "--annotations", "FILE"),
)  # fmt: skip
CELL = "x" * 140_000
ONCE = (  # what these tests have found
    ("sst2.tsv", SST2.encode() + CELL.encode() + b"\t1\n"), ("sst2.tsv", SST2.replace("film", "fi\rlm").encode()), ("sst2.tsv", b"sentence\tlabel\na\0b\t1\n"),
    ("squad.json", as_json(SQUAD).replace(b'"q1"', b'"\\ud800"')), ("squad.json", as_json(SQUAD).replace(b'"T1"', b'"\\ud800"')),
    ("chats.jsonl", b"[" * 100_000), ("chats.jsonl", LONG.encode()), ("chats.jsonl", b'{"role": ["user"], "content": "x"}'),
    ("chats.jsonl", as_json({"role": "user", "content": "\ud800"})), ("alpaca.json", b"[" * 100_000), ("alpaca.json", b"[" + LONG.encode() + b"]"),
    ("chats.jsonl", b'{"messages": ' + b"[" * 960 + b"]" * 960 + b"}"), ("odd.parquet", ODD), ("squad.parquet", OF_SQUAD[:-9]),
)  # fmt: skip


def call(doors, words, name: str, data: bytes):
    folder = doors.fresh()
    (folder / "data").mkdir()
    (folder / "data" / name).write_bytes(data)
    return doors.call(
        *[w.replace("FILE", f"data/{name}").replace("FOLDER", "data") for w in words]
    )


@pytest.mark.parametrize("name, data, words", [
    *((name, b"\n".join(map(as_json, rows)), DOORS[3] if name == "rows.jsonl" else DOORS[8]) for name, rows in LINES.items()),
    ("alpaca.json", as_json(ALPACA), DOORS[8]), ("squad.json", as_json(SQUAD), DOORS[7]), ("sst2.tsv", SST2.encode(), DOORS[6]),
    ("sst2.parquet", OF_SST2, DOORS[6]), ("squad.parquet", OF_SQUAD, DOORS[7]), ("rows.csv", CSV.encode(), DOORS[3]), ("text.parquet", OF_TEXT, DOORS[3]),
])  # fmt: skip
def test_the_unspoiled_files_are_good(doors, name, data, words):
    """Else everything would be refused for the same reason: here only the model is missing."""
    assert "there is no file or folder ./none" in call(doors, words, name, data).err


def test_the_unspoiled_annotations_are_good(doors):
    assert call(doors, DOORS[-1], "a.json", as_json(ANNOTATIONS)).code == 0


@pytest.mark.parametrize("words", DOORS, ids=lambda words: " ".join(words)[:40])
def test_files_that_were_taken_wrongly_once(doors, count, words):
    for name, data in ONCE:
        count("data files")
        call(doors, words, name, data)


@inputs(0.16)
@given(file=some, words=st.sampled_from(DOORS))
def test_data_files(doors, count, file, words):
    count("data files")
    call(doors, words, *file)


@inputs(0.02)
@given(data=files(ANNOTATIONS))
@example(data=b"[" * 100_000)
@example(data=as_json(ANNOTATIONS).replace(b"1.0", LONG.encode()))
@example(data=as_json(ANNOTATIONS).replace(b"1.0", b"1" + b"0" * 400))
def test_annotations(doors, count, data):
    count("data files")
    call(doors, DOORS[-1], "annotations.json", data)


@pytest.mark.parametrize(
    "words", DOORS[:-3] + DOORS[-1:], ids=lambda words: " ".join(words)[:40]
)
@pytest.mark.parametrize(
    "kind", ["fifo", "loop", "dangling", "folder", "device", "unreadable"]
)
def test_what_is_no_file(doors, count, words, kind):
    """A pipe nobody writes to would be waited for without end."""
    folder = doors.fresh()
    (folder / "data").mkdir()
    path = folder / "data" / "x.jsonl"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "unreadable":
        path.write_bytes(as_json(CHATS[0]))
        path.chmod(0)
    else:
        path.symlink_to(
            {"loop": "x.jsonl", "dangling": "nowhere", "device": "/dev/zero"}[kind]
        )
    count("data files")
    doors.call(
        *[w.replace("FILE", "data/x.jsonl").replace("FOLDER", "data") for w in words]
    )
