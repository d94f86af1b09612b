"""The formats in which the task data sets are published, row by row: SST-2, SQuAD v1.1, Dolly, AlpacaEval.

How it works: `format_of` looks at the beginning of a file and names its format; `read` gives its examples and counts the
rows that hold none, by reason (a missing key, no text, an answer that does not stand where it says). The prompts:

- SST-2: that of lm-evaluation-harness (task `sst2` of its GLUE group), word for word and without a chat template; the
  choices follow it after a space. Sentences stay as published, with the blank at their end.
- SQuAD: the passage and the question, with the instruction to answer with words of the passage. All gold answers are kept.
- Dolly: the instruction, then the context where there is one. AlpacaEval: the instruction.

Sources of the formats: GLUE's SST-2 download (train.tsv, dev.tsv, test.tsv; not quoted) and `stanfordnlp/sst2` of the hub;
train-v1.1.json and dev-v1.1.json of SQuAD and `rajpurkar/squad`; databricks-dolly-15k.jsonl; alpaca_eval.json.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.tasks.examples import Example, Message, Task
from qlora_lib.tasks.own import FORMS
from qlora_lib.tasks.splits import Sieve, normalized

SST2_PROMPT = "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"
SST2_CHOICES = (" negative", " positive")  # labels 0 and 1
QA_PROMPT = "Answer the question with a few words taken from the text.\n\nText: {context}\n\nQuestion: {question}"
SNIFFED = 1 << 16  # bytes: enough for the first passage of SQuAD


class Malformed(Exception):
    """A row that holds no example; its text is the reason under which it is counted."""


@dataclass(frozen=True)
class Format:
    name: str
    task: Task
    expected: str  # in one line
    rows: Callable[[Path], Iterator[tuple[str, Any]]]  # (where, row), read lazily
    example: Callable[[str, Any], Example]
    key: Callable[[Example], str]  # examples of the same key are in the same split


# --- examples --------------------------------------------------------------------------------------


def review(number: str, sentence: str, label: int) -> Example:
    """A sentence by the SST-2 protocol; label 0 is negative, 1 positive."""
    response = SST2_CHOICES[label]
    messages = Message("user", SST2_PROMPT.format(sentence=sentence)), Message("assistant", response)
    return Example(number, messages, choices=SST2_CHOICES, plain=True, category=response.strip())


def question(number: str, context: str, asked: str, answers: tuple[str, ...], category: str | None = None) -> Example:
    """A question about a passage; the first answer is the one that is learned."""
    messages = Message("user", QA_PROMPT.format(context=context, question=asked)), Message("assistant", answers[0])
    return Example(number, messages, answers=answers, category=category)


def instruction(number: str, asked: str, response: str, context: str = "", category: str | None = None) -> Example:
    prompt = f"{asked}\n\n{context}" if context else asked
    return Example(number, (Message("user", prompt), Message("assistant", response)), category=category)


def prompt_key(example: Example) -> str:
    return normalized(example.prompt[-1].content)


# --- rows to examples ------------------------------------------------------------------------------


def _sst2(where: str, row: Any) -> Example:
    sentence, label = _text(row, "sentence", strip=False), row.get("label")
    if str(label) == "-1":
        raise Malformed("without a label")
    if str(label) not in ("0", "1"):
        raise Malformed("label is not 0 or 1")
    return review(where, sentence, int(label))


def _squad(where: str, row: Any) -> Example:
    context, asked = _text(row, "context", strip=False), _text(row, "question")
    golds = row.get("answers")
    if not isinstance(golds, list) or not golds:
        raise Malformed("no answer")
    for gold in golds:
        text, start = _text(gold, "text", strip=False, what="answer"), gold.get("answer_start")
        if not isinstance(start, int) or start < 0 or context[start : start + len(text)] != text:
            raise Malformed("answer does not stand where it says")
    answers = tuple(dict.fromkeys(gold["text"].strip() for gold in golds))
    title, number = _text(row, "title", optional=True), row.get("id")
    return question(_text(row, "id") if isinstance(number, str) and number else str(number or where), context, asked, answers, category=title or None)


def _dolly(where: str, row: Any) -> Example:
    response = _text(row, "response")
    context, category = _text(row, "context", optional=True), _text(row, "category", optional=True)
    return instruction(where, _text(row, "instruction"), response, context, category or None)


def _alpaca(where: str, row: Any) -> Example:
    category = _text(row, "dataset", optional=True)
    return instruction(where, _text(row, "instruction"), _text(row, "output"), category=category or None)


def _text(row: Any, key: str, strip: bool = True, optional: bool = False, what: str | None = None) -> str:
    if not isinstance(row, dict):
        raise Malformed("row is no object")
    if row.get(key) is None and optional:
        return ""
    if key not in row:
        raise Malformed(f"no {key}")
    text = row[key]
    if not isinstance(text, str):
        raise Malformed(f"{key} is no text")
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair: no tokenizer takes it
        raise Malformed(f"{key} is no valid Unicode") from None
    if not text.strip() and not optional:
        raise Malformed(f"empty {what or key}")
    return text.strip() if strip else text


# --- files to rows ---------------------------------------------------------------------------------


def _decoded(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise QloraError(f"{path} is not UTF-8 text (byte {e.start})", "Convert it to UTF-8") from None
    except OSError as e:
        raise QloraError(f"{path} cannot be read: {e.strerror}", "Check its permissions") from None


def _tsv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    """GLUE quotes nothing: a quotation mark in a cell is one of the sentence's own."""
    header, *rows = (line.removesuffix("\r").split("\t") for line in _decoded(path).split("\n"))
    if header != ["sentence", "label"]:
        raise UsageError(
            f"{path} has no labels (its header is: {', '.join(header):.120}); GLUE keeps those of its test files to itself",
            "Give the train and dev files: the latter is what is tested on",
        )
    for number, row in enumerate(rows, 2):
        if row != [""]:
            yield f"line {number}", dict(zip(header, row)) if len(row) == 2 else f"{len(row)} cells"


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError):
                yield f"line {number}", None


def _json(path: Path) -> Any:
    try:
        return json.loads(_decoded(path))
    except (ValueError, RecursionError) as e:
        raise QloraError(f"{path} is not JSON ({e!s:.80})", "Download it again, or mend it") from None


def _alpaca_rows(path: Path) -> Iterator[tuple[str, Any]]:
    rows = _json(path)
    if not isinstance(rows, list):
        raise QloraError(
            f"{path} is no list of outputs; expected [{{instruction, output, generator}}, ...]", "See alpaca_eval.json"
        )
    for number, row in enumerate(rows, 1):
        yield f"row {number}", row


def _squad_rows(path: Path) -> Iterator[tuple[str, Any]]:
    articles = _json(path)
    articles = articles.get("data") if isinstance(articles, dict) else None
    for a, article in enumerate(_list(articles, path, "data")):
        title = article.get("title") if isinstance(article, dict) else None
        for p, paragraph in enumerate(_list(article, path, "paragraphs")):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            for q, asked in enumerate(_list(paragraph, path, "qas")):
                where = f"article {a + 1}, paragraph {p + 1}, question {q + 1}"
                yield where, {"context": context, "title": title, **asked} if isinstance(asked, dict) else asked


def _list(value: Any, path: Path, key: str) -> list:
    value = value.get(key) if isinstance(value, dict) else value
    if not isinstance(value, list):
        raise QloraError(
            f"{path} has no list '{key}' where SQuAD v1.1 has one; expected data > paragraphs > qas", "See train-v1.1.json"
        )
    return value


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as e:
        reason = (str(e).splitlines() or [""])[0]
        raise QloraError(f"{path} is not a readable Parquet file: {reason:.160}", "Fetch or write it again") from None
    for number, row in enumerate(rows, 1):
        answers = row.get("answers")
        if isinstance(answers, dict):  # the hub's columns of SQuAD: {text: [...], answer_start: [...]}
            pairs = zip(answers.get("text") or [], answers.get("answer_start") or [])
            row["answers"] = [{"text": text, "answer_start": start} for text, start in pairs]
        yield f"row {number}", row


def _title_key(example: Example) -> str:
    return example.category or prompt_key(example)


_SST2_EXPECTED = "sentence and label (0 or 1)"
_SQUAD_EXPECTED = "questions with a context and answers that stand in it"
_DOLLY_EXPECTED = "instruction, context, response and category"
FORMATS = {
    f.name: f
    for f in (
        Format("SST-2 TSV", "classification", _SST2_EXPECTED, _tsv_rows, _sst2, prompt_key),
        Format("SST-2 Parquet", "classification", _SST2_EXPECTED, _parquet_rows, _sst2, prompt_key),
        Format("SQuAD JSON", "qa", _SQUAD_EXPECTED, _squad_rows, _squad, _title_key),
        Format("SQuAD Parquet", "qa", _SQUAD_EXPECTED, _parquet_rows, _squad, _title_key),
        Format("Dolly JSONL", "instructions", _DOLLY_EXPECTED, _jsonl_rows, _dolly, prompt_key),
        Format("Dolly Parquet", "instructions", _DOLLY_EXPECTED, _parquet_rows, _dolly, prompt_key),
        Format("AlpacaEval JSON", "instructions", "instruction and output", _alpaca_rows, _alpaca, prompt_key),
    )
}
MESSAGES = "messages JSONL"  # chats of one's own: not a published format, and read elsewhere


def read(path: Path, format: Format, prefix: str = "") -> tuple[list[Example], dict[str, int]]:
    """(examples, rows left out by reason) of one file; ids begin with `prefix` where the rows have none.

    Raises QloraError for a file that cannot be read, that is empty, or of which more than half of the rows hold no example.
    """
    sieve, examples = Sieve(str(path), format.expected), []
    for where, row in format.rows(path):
        sieve.rows += 1
        try:
            examples.append(format.example(prefix + where.replace(" ", "-"), row))
        except Malformed as e:
            sieve.refuse(where, str(e))
    return examples, sieve.done()


# --- which format ----------------------------------------------------------------------------------


def format_of(path: Path) -> str | None:
    """The name of a file's format by its suffix and its beginning, or None: then it is text, if anything."""
    suffix = path.suffix.lower()
    if suffix not in (".parquet", ".tsv", ".json", ".jsonl") or not path.is_file():  # a pipe would be waited for
        return None
    if suffix == ".parquet":
        return _parquet_format(path)
    try:
        with open(path, "rb") as f:
            start = f.read(SNIFFED).decode("utf-8-sig", "replace").lstrip()
    except OSError:
        return None
    if suffix == ".tsv":
        header = start.partition("\n")[0].rstrip("\r").split("\t")
        return "SST-2 TSV" if header in (["sentence", "label"], ["index", "sentence"]) else None
    if suffix == ".json":
        if start.startswith("{") and re.search(r'"data"\s*:', start) and re.search(r'"paragraphs"\s*:', start):
            return "SQuAD JSON"
        keys = [re.search(rf'"{key}"\s*:', start) for key in ("instruction", "output")]
        return "AlpacaEval JSON" if start.startswith("[") and all(keys) else None
    return _columns_format(_first_row_keys(start), "JSONL")


def _first_row_keys(start: str) -> set[str]:
    """Keys of the first line that is an object; of a line that is longer than what was read, those to be seen."""
    for line in start.split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            return set(row)
    return set(re.findall(r'"(\w+)"\s*:', start)) if start.startswith("{") else set()


def _columns_format(columns: set[str], kind: str) -> str | None:
    if "text" in columns:
        return None  # plain text, whatever stands beside it
    if kind == "JSONL" and any(form <= set(columns) for form in FORMS):
        return MESSAGES
    if {"instruction", "response"} <= columns:
        return f"Dolly {kind}"
    if kind == "Parquet" and {"sentence", "label"} <= columns:
        return "SST-2 Parquet"
    return "SQuAD Parquet" if kind == "Parquet" and {"context", "question", "answers"} <= columns else None


def _parquet_format(path: Path) -> str | None:
    import pyarrow.parquet

    try:
        return _columns_format(set(pyarrow.parquet.read_schema(path).names), "Parquet")
    except (OSError, ValueError, pyarrow.ArrowException):
        return None  # what reads it says what is wrong
