"""Raw texts: registered sets and local files, as documents in three splits.

How it works: a registered set knows its own splits (WikiText-2) or is split by article
(its stand-in), by the hash of the article's id, so that no article is in two splits and the split
never depends on a random generator. A local file is split in reading order, 90/5/5 by length:
between documents where there are enough of them, else inside the text, between paragraphs.
Documents are plain strings; tokens and windows are `data.py`'s.
"""

import csv
import hashlib
import io
import json
import random
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.errors import QloraError, UsageError

SPLITS = ("train", "validation", "test")
JOIN = "\n\n"  # between documents: WikiText's rows are joined so, see data.py
TEXT_SUFFIXES = {".txt", ".md", ".text", ".rst", ".raw", ".utf8", ""}
TABLE_SUFFIXES = {".jsonl", ".csv", ".tsv", ".parquet"}


@dataclass(frozen=True)
class Texts:
    """Documents by split, and where they come from."""

    name: str
    source: str
    splits: dict[str, list[str]]
    revision: str | None = None
    license: str | None = None
    attribution: str | None = None
    stand_in_for: str | None = None


def load_texts(name: str, text_column: str = "text") -> Texts:
    """A registered set, or a local file or folder, in splits.

    Raises UsageError for an unknown name or a missing file, QloraError for what cannot be read.
    """
    if name == "tiny-text":
        return _tiny_text()
    from qlora_lib.assets import resolve_data_files

    if not is_registered(name):
        return _local(local_path(name), text_column)
    asset = resolve_data_files(name)
    if name == "wikipedia-sample":
        splits = split_by_article(parse_articles(asset.files["all"]))
    else:  # one Parquet file a split
        splits = {split: read_table(asset.files[split], "text") for split in SPLITS}
    return Texts(
        name, asset.source, splits, asset.revision, asset.license, asset.attribution, asset.stand_in_for
    )


def registered_names() -> list[str]:
    from qlora_lib.assets import registered_data

    return ["tiny-text", *(spec.name for spec in registered_data() if spec.task is None)]


def is_registered(name: str) -> bool:
    return name in registered_names()


def check_source(name: str, text_column: str) -> None:
    """Raise now what `load_texts` would raise for local data; a registered set is left for later."""
    if not is_registered(name):
        read_documents(local_path(name), text_column)


def local_path(name: str | Path) -> Path:
    """The local file or folder that `name` means; UsageError where there is none."""
    try:
        path = Path(name).expanduser()
        if str(name).strip() and path.exists():
            return path
    except (OSError, RuntimeError):  # a name that no file can have, or the home of nobody
        pass
    raise UsageError(
        f"no data set or file '{name!s:.200}'",
        f"Give a file or folder that exists, or one of: {', '.join(registered_names())}",
    )


# --- the Wikipedia sample ------------------------------------------------------------------------

_ARTICLE = re.compile(r'<doc id="(\d+)"[^>]*>\n(.*?)</doc>', re.DOTALL)


def parse_articles(path: Path) -> list[tuple[str, str]]:
    """[(id, text)] of a WikiExtractor file; an article with nothing under its title is left out."""
    articles = []
    for number, body in _ARTICLE.findall(path.read_text(encoding="utf-8")):
        title, _, rest = body.strip().partition("\n")
        if rest.strip():
            articles.append((number, f"{title}\n\n{rest.strip()}"))
    return articles


def split_by_article(articles: list[tuple[str, str]]) -> dict[str, list[str]]:
    """90/5/5 by the hash of the id; in a split, articles stand in the order of that hash.

    So the first windows of a split are a fair sample of its articles, not a run of one topic. The
    text of an article that occurs twice stays in one split.
    """
    splits, seen = {s: [] for s in SPLITS}, set()
    hashed = sorted((hashlib.sha256(number.encode()).digest(), text) for number, text in articles)
    for digest, text in hashed:
        body = text.partition("\n\n")[2]
        if body in seen:
            continue
        seen.add(body)
        bucket = digest[-1] % 20
        splits["test" if bucket == 0 else "validation" if bucket == 1 else "train"].append(text)
    return splits


# --- local files ---------------------------------------------------------------------------------


def read_documents(path: Path, text_column: str = "text") -> list[str]:
    """Every document of a local file or folder, unsplit: one a text file, one a table row."""
    path = local_path(path)
    if not path.is_dir():
        return _with_text(_read_file(path, text_column), path)
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES and p.is_file())
    # Hidden files and folders (.git, .ipynb_checkpoints) are not what was meant.
    files = [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]
    if not files:
        raise UsageError(f"no text, JSONL, CSV, TSV or Parquet file in {path}", "Give a folder that holds some")
    return _with_text([doc for file in files for doc in _read_file(file, text_column)], path)


def _with_text(documents: list[str], path: Path) -> list[str]:
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise QloraError(f"{path} holds no text", "Give a file with some words in it")
    return documents


def _read_file(path: Path, text_column: str) -> list[str]:
    if not path.is_file():
        raise UsageError(f"{path} is no regular file", "Give a text, JSONL, CSV, TSV or Parquet file")
    return read_table(path, text_column) if path.suffix.lower() in TABLE_SUFFIXES else [_read_text(path)]


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise QloraError(
            f"{path} is not UTF-8 text (byte {e.start})", "Convert it, or give a text, JSONL, CSV, TSV or Parquet file"
        ) from None
    except OSError as e:
        raise QloraError(f"{path} cannot be read: {e.strerror}", "Check its permissions") from None
    if "\0" in text:
        raise QloraError(f"{path} is a binary file, not text", "Give a text, JSONL, CSV, TSV or Parquet file")
    return text.replace("\r\n", "\n")


def read_table(path: Path, column: str) -> list[str]:
    """One text column of a JSONL, CSV, TSV or Parquet file; a missing value is an empty text.

    Raises UsageError where no row has that column, QloraError (with the line) for a malformed row.
    """
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        return _parquet_column(path, column)
    return _jsonl_column(path, column) if suffix == ".jsonl" else _csv_column(path, column, "\t" if suffix == ".tsv" else ",")


def _jsonl_column(path: Path, column: str) -> list[str]:
    texts = []
    for number, line in enumerate(_read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise QloraError(f"{path} line {number} is not JSON", "Each line must be one JSON object") from None
        if not isinstance(row, dict):
            raise QloraError(f"{path} line {number} is not a JSON object", 'Each line must be like {"text": "..."}')
        if column not in row:
            raise _no_column(path, column, row, f" line {number}")
        texts.append(_cell(row[column], path, number, column))
    return texts


def _csv_column(path: Path, column: str, separator: str) -> list[str]:
    csv.field_size_limit(sys.maxsize)  # a cell may be a whole book
    rows = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=separator, strict=True)
    texts = []
    try:
        header = next(rows, [])
        if column not in header:
            raise _no_column(path, column, header)
        for row in rows:
            if row and len(row) != len(header):
                raise QloraError(
                    f"{path} line {rows.line_num} has {len(row)} cells, its header {len(header)}",
                    f"Quote a cell that holds {'a tab' if separator == chr(9) else 'a comma'}",
                )
            if row:
                texts.append(row[header.index(column)])
    except csv.Error as e:
        raise QloraError(f"{path} line {rows.line_num} is malformed: {e}", "Mend that row, most likely its quotes") from None
    return texts


def _parquet_column(path: Path, column: str) -> list[str]:
    import datasets

    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory(prefix="qlora-parquet-") as scratch:
        try:
            table = datasets.Dataset.from_parquet(str(path), keep_in_memory=True, cache_dir=scratch)
        except Exception as e:  # every parser's own errors, wrapped
            reason = str(e.__cause__ or e).splitlines()[0].rstrip(".")
            raise QloraError(f"{path} is not a readable Parquet file: {reason:.160}", "Write it again") from None
        if column not in table.column_names:
            raise _no_column(path, column, table.column_names)
        return [_cell(cell, path, number, column, "row") for number, cell in enumerate(table[column], 1)]


def _cell(cell, path: Path, number: int, column: str, unit: str = "line") -> str:
    if cell is None:
        return ""
    try:
        cell.encode()
        return cell
    except (AttributeError, UnicodeEncodeError):  # no text, or half of a surrogate pair
        raise QloraError(
            f"{path} {unit} {number} has no text in '{column}', but {cell!r:.40}",
            "Mend that row, or name the text column with text_column",
        ) from None


def _no_column(path: Path, column: str, columns, where: str = "") -> UsageError:
    has = ", ".join(map(str, columns))
    return UsageError(
        f"{path}{where} has no column '{column}' (it has: {has or 'none':.120})",
        "Name the text column: --set data.text_column=NAME, or qlora eval --text-column NAME",
    )


def _local(path: Path, text_column: str) -> Texts:
    documents = read_documents(path, text_column)
    splits = split_in_order(documents)
    if len(documents) < 20 or not all(splits.values()):
        splits = split_inside(JOIN.join(documents))
    return Texts(
        name=path.resolve().name,
        source="local file" if path.is_file() else "local folder",
        revision=f"sha256:{hashlib.sha256(chr(0).join(documents).encode()).hexdigest()}",
        splits=splits,
    )


def split_in_order(documents: list[str]) -> dict[str, list[str]]:
    """The first 90 % of the characters train, the next 5 % validate, the last 5 % test."""
    total = sum(map(len, documents))
    splits, before = {s: [] for s in SPLITS}, 0
    for document in documents:
        share = (before + len(document) / 2) / max(total, 1)
        splits["train" if share < 0.9 else "validation" if share < 0.95 else "test"].append(document)
        before += len(document)
    return splits


def split_inside(text: str) -> dict[str, list[str]]:
    """The same shares of one text, cut where a paragraph ends, else a line, else a word."""
    first = _boundary(text, len(text) * 90 // 100)
    second = _boundary(text, max(first, len(text) * 95 // 100))
    parts = text[:first], text[first:second], text[second:]
    return {split: [part.strip("\n")] if part.strip() else [] for split, part in zip(SPLITS, parts)}


def _boundary(text: str, near: int) -> int:
    """Where the paragraph, line or word at `near` ends, whichever ends within 2 % of the text."""
    for mark in ("\n\n", "\n", " "):
        end = text.find(mark, near, near + len(text) // 50)
        if end >= 0:
            return end
    return near


# --- made on the spot ----------------------------------------------------------------------------


def _tiny_text() -> Texts:
    """A few hundred short documents of a toy grammar, the same on every machine."""
    rng = random.Random(0)
    nouns = "model weight matrix adapter block token layer scale code window".split()
    verbs = "holds stores scales rounds reads keeps trains needs moves shares".split()
    adjectives = "small large frozen quantized low-rank sparse exact noisy".split()

    def sentence():
        subject, verb, thing = (rng.choice(words) for words in (nouns, verbs, nouns))
        return f"The {rng.choice(adjectives)} {subject} {verb} a {rng.choice(adjectives)} {thing}."

    documents = [" ".join(sentence() for _ in range(6)) for _ in range(300)]
    return Texts(
        name="tiny-text",
        source="made on the spot from a toy grammar",
        splits=split_in_order(documents),
        license="CC0-1.0",
    )
