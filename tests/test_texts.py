"""Texts: what each kind of local file gives, what broken ones are told, and splits that do not leak."""

import json
import re
from collections import Counter

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings, strategies as st

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.texts import (
    JOIN,
    SPLITS,
    parse_articles,
    split_by_article,
    check_source,
    load_texts,
    read_documents,
    split_in_order,
    split_inside,
)


@pytest.fixture
def write(tmp_path):
    def write(name: str, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def parquet(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def line(act, error=QloraError) -> str:
    with pytest.raises(error) as e:
        act()
    assert "\n" not in str(e.value)
    return str(e.value)


# --- files that can be read ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, documents",
    [
        ("a.txt", "One.\n\nTwo.\n", ["One.\n\nTwo.\n"]),
        ("README", "no suffix", ["no suffix"]),
        ("a.LOG", "any other suffix is text too", ["any other suffix is text too"]),
        ("bom.txt", b"\xef\xbb\xbfText", ["Text"]),
        ("crlf.txt", b"a\r\n\r\nb\r\n", ["a\n\nb\n"]),
        ("a.jsonl", '{"text": "a\\nb"}\n\n{"text": "c", "more": 1}\n', ["a\nb", "c"]),
        ("crlf.JSONL", b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n', ["a", "b"]),
        ("separator.jsonl", '{"text": "a\u2028b"}\n', ["a\u2028b"]),  # a line end for str.splitlines
        ("null.jsonl", '{"text": null}\n{"text": "a"}\n{"text": "  "}\n', ["a"]),
        ("a.csv", 'id,text\n1,"a, b"\n2,"c\nd"\n\n3,"say ""e"""\n', ["a, b", "c\nd", 'say "e"']),
        ("bom.csv", b"\xef\xbb\xbftext,n\r\na,1\r\n", ["a"]),
        ("words.csv", "text\nNA\nnull\n007\n", ["NA", "null", "007"]),  # words, not missing values or numbers
        ("empty-cell.csv", "text,n\n,1\na,2\n", ["a"]),
        ("a.tsv", 'text\tn\nsay "a", b\t1\n', ['say "a", b']),
        ("book.csv", "text\n" + "x" * 200_000 + "\n", ["x" * 200_000]),
    ],
)
def test_what_a_file_gives(write, name, content, documents):
    assert read_documents(write(name, content)) == documents


def test_parquet_of_any_text_type(tmp_path):
    for i, texts in enumerate((
        pyarrow.array(["a", None, "b"]),
        pyarrow.array(["a", "b"], pyarrow.large_string()),
        pyarrow.array(["a", "b"]).dictionary_encode(),
    )):  # fmt: skip
        assert read_documents(parquet(tmp_path / f"{i}.parquet", text=texts)) == ["a", "b"]


def test_another_column(write, tmp_path):
    assert read_documents(write("a.jsonl", '{"body": "a"}'), "body") == ["a"]
    assert read_documents(write("a.csv", "n,body\n1,a"), "body") == ["a"]
    assert read_documents(parquet(tmp_path / "a.parquet", n=[1], body=["a"]), "body") == ["a"]


def test_a_folder_gives_its_files_in_order_without_hidden_pictures_and_empty_ones(write, tmp_path):
    write("set/b.txt", "second")
    write("set/a/z.jsonl", '{"text": "first"}')
    write("set/c.csv", "text\nthird\n")
    write("set/empty.txt", "")
    write("set/.git/object", b"\xff\x00")
    write("set/.hidden.txt", "hidden")
    write("set/picture.png", b"\x89PNG")
    assert read_documents(tmp_path / "set") == ["first", "second", "third"]


def test_a_folder_in_a_hidden_place_is_not_hidden(write, tmp_path):
    write(".cache/set/a.txt", "seen")
    assert read_documents(tmp_path / ".cache" / "set") == ["seen"]


# --- files that cannot ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.txt", b"\x7fELF\x00\x01", "is a binary file, not text"),
        ("a.gz", b"\x1f\x8b\x08\x00", r"is not UTF-8 text \(byte 1\)"),
        ("a.txt", "caf\u00e9".encode("latin-1"), r"is not UTF-8 text \(byte 3\)"),
        ("a.txt", "text".encode("utf-16"), "is not UTF-8 text"),
        ("a.csv", "text\ncaf\u00e9".encode("latin-1"), "is not UTF-8 text"),
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.jsonl", b"", "holds no text"),
        ("a.csv", b"text\n", "holds no text"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b"\n', "line 2 is not JSON"),
        ("a.jsonl", b'\n\n{"text": "a"} x\n', "line 3 is not JSON"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", "line 1 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"text": "a"}\n["text"]\n', "line 2 is not a JSON object"),
        ("a.jsonl", b'{"text": "a"}\n{"text": 5}\n', "line 2 has no text in 'text', but 5"),
        ("a.jsonl", b'{"text": "half \\ud83d"}\n', "line 1 has no text in 'text'"),
        ("a.csv", b"text\nHello, world\n", "line 2 has 2 cells, its header 1. Quote a cell that holds a comma"),
        ("a.csv", b"n,text\n1,a\n2\n", "line 3 has 1 cells, its header 2"),
        ("a.csv", b'text\n"a\nb\n', "line 3 is malformed"),
        ("a.tsv", b"n\ttext\n1\ta\tb\n", "holds a tab"),
        ("a.parquet", b"PAR1 no", "is not a readable Parquet file"),
        ("a.parquet", b"", "is not a readable Parquet file"),
    ],
)
def test_a_broken_file_is_one_line(write, name, content, said):
    path = write(name, content)
    told = line(lambda: read_documents(path))
    assert re.search(said, told) and str(path) in told


@pytest.mark.parametrize(
    "name, content, has",
    [("a.jsonl", '{"body": "a", "n": 1}', "body, n"), ("a.csv", "body,n\na,1\n", "body, n"), ("a.csv", "", "none")],
)
def test_a_missing_column_names_those_there(write, name, content, has):
    told = line(lambda: read_documents(write(name, content)), UsageError)
    assert f"has no column 'text' (it has: {has})" in told and "--set data.text_column=NAME" in told


def test_parquet_without_the_column_or_without_text(tmp_path):
    numbers = parquet(tmp_path / "a.parquet", n=[1, 2])
    assert "has no column 'text' (it has: n)" in line(lambda: read_documents(numbers), UsageError)
    assert "row 1 has no text in 'n', but 1" in line(lambda: read_documents(numbers, "n"))


@pytest.mark.parametrize("name", ["", " ", "nowhere.txt", "~nobody-of-that-name/a.txt", "x" * 5000, "a\0b"])
def test_a_source_that_is_not_there_names_the_registered_ones(name):
    for act in (load_texts, read_documents, lambda n: check_source(n, "text")):
        told = line(lambda: act(name), UsageError)
        assert "no data set or file" in told and "wikipedia-sample" in told and len(told) < 500


def test_a_folder_with_no_text_and_a_device(tmp_path):
    (tmp_path / "a.png").touch()
    assert "no text, JSONL" in line(lambda: read_documents(tmp_path), UsageError)
    assert "is no regular file" in line(lambda: read_documents("/dev/zero"), UsageError)


def test_a_source_is_checked_without_fetching_a_registered_one(write):
    check_source("wikitext-2", "text")  # would need the hub
    check_source(str(write("a.txt", "text")), "text")
    assert "line 1 is not JSON" in line(lambda: check_source(str(write("a.jsonl", "?")), "text"))


# --- splits --------------------------------------------------------------------------------------


ARTICLES = [(str(n), f"Title {n}\n\nBody {n} " + "word " * (n % 40)) for n in range(3000)]


def test_articles_are_split_by_the_hash_of_their_id():
    splits = split_by_article(ARTICLES)
    texts = [text for s in SPLITS for text in splits[s]]
    assert Counter(texts) == Counter(text for _, text in ARTICLES)  # each once
    shares = [len(splits[s]) / len(ARTICLES) for s in SPLITS]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    # Neither the order of the file nor the other articles decide where one goes.
    assert split_by_article(ARTICLES[::-1]) == splits
    fewer = split_by_article(ARTICLES[:1000])
    assert all(set(fewer[s]) <= set(splits[s]) for s in SPLITS)


def test_a_text_under_two_titles_stays_in_one_split():
    twice = [*ARTICLES[:500], *((str(10_000 + i), f"Other {i}\n\n{text.partition(JOIN)[2]}") for i, (_, text) in enumerate(ARTICLES[:500]))]
    bodies = {s: [t.partition(JOIN)[2] for t in texts] for s, texts in split_by_article(twice).items()}
    assert sum(map(len, bodies.values())) == 500
    assert not any(set(bodies[a]) & set(bodies[b]) for a, b in (("train", "validation"), ("train", "test"), ("validation", "test")))


def test_articles_are_read_with_their_titles_and_empty_ones_left_out(write):
    path = write("wiki.utf8", '<doc id="1" url="u" title="A">\nA\n\nFirst.\n\nSecond.\n</doc>\n'
                 '<doc id="2" url="u" title="B">\nB\n</doc>\n<doc id="3" url="u" title="C">\nC\n\nThird.\n</doc>\n')  # fmt: skip
    assert parse_articles(path) == [("1", "A\n\nFirst.\n\nSecond."), ("3", "C\n\nThird.")]


@given(st.lists(st.text("ab \n", min_size=1, max_size=40), min_size=1, max_size=60))
def test_documents_are_split_in_order_and_none_is_lost(documents):
    splits = split_in_order(documents)
    assert [d for s in SPLITS for d in splits[s]] == documents


@settings(deadline=None)
@given(st.text("ab\u00e9 \n", min_size=1, max_size=2000))
def test_a_text_is_cut_in_order_and_only_blank_is_lost(text):
    splits = split_inside(text)
    parts = [part for s in SPLITS for part in splits[s]]
    at = 0
    for part in parts:
        at = text.index(part, at) + len(part)
    assert "".join("".join(parts).split()) == "".join(text.split())


@pytest.mark.parametrize("text", ["two words " * 10_000, "a line of words\n" * 5000, "A paragraph.\n\n" * 5000, "x" * 50_000],
                         ids=["one line", "lines", "paragraphs", "one word"])  # fmt: skip
def test_a_single_file_is_split_by_length(write, text):
    texts = load_texts(str(write("book.txt", text)))
    sizes = [sum(map(len, texts.splits[s])) for s in SPLITS]
    assert [n / len(text) for n in sizes] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    words = set(text.split())
    assert len(words) == 1 or all(set(texts.splits[s][0].split()) == words for s in SPLITS)  # none is cut in two


def test_one_huge_row_does_not_empty_the_other_splits(write):
    rows = ["short text"] * 40 + ["a long tail of words " * 400]
    texts = load_texts(str(write("a.jsonl", "\n".join(json.dumps({"text": r}) for r in rows))))
    assert all(texts.splits[s] for s in SPLITS)


def test_a_local_files_revision_is_that_of_its_text(write):
    first = load_texts(str(write("a.txt", "some words\n" * 30)))
    assert (first.name, first.source) == ("a.txt", "local file") and first.license is None
    assert load_texts(str(write("b.txt", "some words\n" * 30))).revision == first.revision
    assert load_texts(str(write("a.txt", "some  words\n" * 30))).revision != first.revision


def test_the_made_up_text_is_always_the_same():
    texts = load_texts("tiny-text")
    assert texts == load_texts("tiny-text")
    assert [len(texts.splits[s]) for s in SPLITS] == [270, 15, 15]
    assert len({d for s in SPLITS for d in texts.splits[s]}) == 300  # no document twice, so none in two splits


@pytest.mark.demo
def test_no_article_of_the_wikipedia_sample_is_in_two_splits():
    texts = load_texts("wikipedia-sample")
    bodies = {s: [t.partition(JOIN)[2] for t in texts.splits[s]] for s in SPLITS}
    assert sum(map(len, bodies.values())) == len(set().union(*bodies.values())) == 1093
    assert texts.stand_in_for == "wikitext-2" and "Wikipedia" in texts.attribution
    assert load_texts("wikipedia-sample").splits == texts.splits
