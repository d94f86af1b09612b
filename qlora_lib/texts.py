"""Raw texts: registered sets and local files, as documents in three splits.

How it works: a registered set knows its own splits (WikiText-2) or is split by article
(its stand-in), by the hash of the article's id, so that no article is in two splits and the split
never depends on a random generator. A local file is split in reading order, 90/5/5 by length.
Documents are plain strings; tokens and windows are `data.py`'s.
"""

import hashlib
import json
import random
import re
from dataclasses import dataclass, field
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
    notes: list[str] = field(default_factory=list)


def load_texts(name: str, text_column: str = "text") -> Texts:
    """A registered set, or a local file or folder, in splits.

    Raises UsageError for an unknown name or a missing file, QloraError for what cannot be read.
    """
    if name == "tiny-text":
        return _tiny_text()
    from qlora_lib.assets import registered_data, resolve_data_files

    known = [spec.name for spec in registered_data()]
    if name not in known:
        path = Path(name).expanduser()
        if not path.exists():
            raise UsageError(
                f"no data set or file '{name}'",
                f"Give a file or folder that exists, or one of: {', '.join(['tiny-text', *known])}",
            )
        return _local(path, text_column)
    asset = resolve_data_files(name)
    if name == "wikipedia-sample":
        splits = _split_by_article(_parse_articles(asset.files["all"]))
    else:  # one Parquet file a split
        splits = {split: read_table(asset.files[split], "text") for split in SPLITS}
    return Texts(
        name, asset.source, splits, asset.revision, asset.license, asset.attribution, asset.stand_in_for
    )


# --- the Wikipedia sample ------------------------------------------------------------------------

_ARTICLE = re.compile(r'<doc id="(\d+)"[^>]*>\n(.*?)</doc>', re.DOTALL)


def _parse_articles(path: Path) -> list[tuple[str, str]]:
    """[(id, text)] of a WikiExtractor file; an article with nothing under its title is left out."""
    articles = []
    for number, body in _ARTICLE.findall(path.read_text(encoding="utf-8")):
        title, _, rest = body.strip().partition("\n")
        if rest.strip():
            articles.append((number, f"{title}\n\n{rest.strip()}"))
    return articles


def _split_by_article(articles: list[tuple[str, str]]) -> dict[str, list[str]]:
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
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.is_file() and not p.name.startswith("."))
        files = [p for p in files if p.suffix.lower() in TEXT_SUFFIXES | TABLE_SUFFIXES]
        if not files:
            raise UsageError(f"no text, JSONL, CSV, TSV or Parquet file in {path}")
        return [doc for f in files for doc in read_documents(f, text_column)]
    if not path.is_file():
        raise UsageError(f"no file at {path}", "Give a text, JSONL, CSV, TSV or Parquet file that exists")
    documents = (
        read_table(path, text_column) if path.suffix.lower() in TABLE_SUFFIXES else [_read_text(path)]
    )
    documents = [d for d in documents if d.strip()]
    if not documents:
        raise QloraError(f"{path} holds no text", "Give a file with some words in it")
    return documents


def _read_text(path: Path) -> str:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise QloraError(
            f"{path} is not UTF-8 text (byte {e.start})", "Convert it, or give a text, JSONL, CSV, TSV or Parquet file"
        ) from None
    except OSError as e:
        raise QloraError(f"{path} cannot be read: {e.strerror}") from None
    if "\0" in text:
        raise QloraError(f"{path} is a binary file, not text", "Give a text, JSONL, CSV, TSV or Parquet file")
    return text.replace("\r\n", "\n")


def read_table(path: Path, column: str) -> list[str]:
    """One text column of a JSONL, CSV, TSV or Parquet file."""
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        rows = []
        for number, line in enumerate(_read_text(path).split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (json.JSONDecodeError, RecursionError):
                raise QloraError(f"{path} line {number} is not JSON", "Each line must be one JSON object") from None
            _check_cell(row.get(column) if isinstance(row, dict) else None, row, path, number, column)
            rows.append(row[column])
        return rows
    import datasets

    datasets.disable_progress_bars()
    try:
        if suffix == ".parquet":
            table = datasets.Dataset.from_parquet(str(path), keep_in_memory=True)
        else:
            separator = "\t" if suffix == ".tsv" else ","
            _read_text(path)  # a clear line for what is not text
            table = datasets.Dataset.from_csv(str(path), sep=separator, keep_in_memory=True)
    except QloraError:
        raise
    except Exception as e:  # datasets wraps every parser's own errors
        reason = str(e.__cause__ or e).splitlines()[0]
        raise QloraError(f"{path} is not a readable {suffix[1:].upper()} file: {reason:.160}") from None
    if column not in table.column_names:
        raise UsageError(
            f"{path} has no column '{column}' (it has: {', '.join(table.column_names)})",
            "Name the text column with --set data.text_column=NAME",
        )
    rows = table[column]
    for number, cell in enumerate(rows, 1):
        _check_cell(cell, cell, path, number, column, allow_empty=True)
    return [cell or "" for cell in rows]


def _check_cell(cell, row, path, number, column, allow_empty=False) -> None:
    if isinstance(cell, str) or (allow_empty and cell is None):
        return
    has = f" (it has: {', '.join(map(str, row))[:120]})" if isinstance(row, dict) else ""
    raise QloraError(
        f"{path} row {number} has no text in '{column}'{has}",
        "Name the text column with --set data.text_column=NAME",
    )


def _local(path: Path, text_column: str) -> Texts:
    documents = read_documents(path, text_column)
    digest = hashlib.sha256("\0".join(documents).encode()).hexdigest()
    if len(documents) < 20:  # a few long files: their paragraphs, else their lines, are the units
        paragraphs = [p for d in documents for p in d.split("\n\n") if p.strip()]
        lines = [line for d in documents for line in d.splitlines() if line.strip()]
        documents = paragraphs if len(paragraphs) >= 20 else lines
    return Texts(
        name=path.name,
        source="local file" if path.is_file() else "local folder",
        revision=f"sha256:{digest}",
        splits=split_in_order(documents),
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
        stand_in_for="wikitext-2",
    )
