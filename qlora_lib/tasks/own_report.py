"""What `qlora check` tells about a file of conversations: its problems by kind, its size, and what an epoch takes."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.own import ENOUGH, Problem, read_rows, split

TOLERATED = 0.05  # of the rows may hold no conversation


@dataclass
class Kind:
    """One kind of problem: how often, and where first."""

    what: str
    left_out: bool
    count: int = 0
    first: list[dict] = field(default_factory=list)  # {"row", "detail"}


@dataclass
class Report:
    """Counts of one file. Tokens are null without a model; `unusable` is the line that says why, or null."""

    file: str
    rows: int  # blank ones left out
    conversations: int
    bad_share: float
    turns: int  # messages of user and assistant
    characters: int
    response_share: float | None  # of the characters; of the tokens with a model
    splits: dict[str, int]
    kinds: list[Kind]
    unusable: str | None = None
    tokens: int | None = None
    longest_tokens: int | None = None
    longest_row: int | None = None
    max_length: int | None = None
    longer_than_max: int | None = None
    batch_size: int | None = None
    steps_per_epoch: int | None = None  # whole ones, as training counts them


def check(
    path: str | Path, tokenizer=None, max_length: int | None = None, batch_size: int = 16, tolerated: float = TOLERATED, named: int = 5
) -> Report:
    """Read a file and describe it; of each kind of problem the first `named` rows are named.

    `batch_size` is of an optimizer step, gradient accumulation included; what is longer than `max_length` tokens is left
    out of it, as training does, and what is left at the end of an epoch is too little for a step of its own.
    """
    rows = read_rows(path)
    examples, bad = rows.examples, len(rows.problems)
    characters = sum(len(m.content) for e in examples for m in e.messages)
    learned = sum(len(m.content) for e in examples for m in e.messages if m.role == "assistant")
    report = Report(
        file=Path(path).name,
        rows=len(examples) + bad,
        conversations=len(examples),
        bad_share=bad / max(1, len(examples) + bad),
        turns=sum(m.role != "system" for e in examples for m in e.messages),
        characters=characters,
        response_share=learned / characters if characters else None,
        splits={},
        kinds=[*_kinds(rows.problems, True, named), *_kinds(rows.notes, False, named)],
        max_length=max_length,
        batch_size=batch_size,
    )
    kept = _count_tokens(report, examples, tokenizer) if tokenizer is not None and examples else examples
    report.splits = {name: len(part) for name, part in split(kept).items()}
    report.steps_per_epoch = report.splits["train"] // batch_size
    report.unusable = _unusable(report, bad, tolerated)
    return report


def _kinds(problems: list[Problem], left_out: bool, named: int) -> list[Kind]:
    kinds: dict[str, Kind] = {}
    for problem in problems:
        kind = kinds.setdefault(problem.what, Kind(problem.what, left_out))
        kind.count += 1
        if len(kind.first) < named:
            kind.first.append({"row": problem.row, "detail": problem.detail})
    return sorted(kinds.values(), key=lambda kind: -kind.count)


def _count_tokens(report: Report, examples: list[Example], tokenizer) -> list[Example]:
    """Fill in the report's tokens; returns the examples of at most `max_length`."""
    from tqdm.auto import tqdm

    from qlora_lib.tasks.chat import IGNORED, encode

    lengths, learned = [], 0
    for example in tqdm(examples, desc="tokens", leave=False, disable=not sys.stderr.isatty()):
        encoded = encode(example, tokenizer)
        lengths.append(len(encoded.ids))
        learned += sum(label != IGNORED for label in encoded.labels)
    report.tokens, report.longest_tokens = sum(lengths), max(lengths)
    report.response_share = learned / report.tokens
    report.longest_row = int(examples[lengths.index(max(lengths))].id.removeprefix("row-"))
    if report.max_length is None:
        return examples
    kept = [e for e, length in zip(examples, lengths) if length <= report.max_length]
    report.longer_than_max = len(examples) - len(kept)
    return kept


def _unusable(report: Report, bad: int, tolerated: float) -> str | None:
    if report.bad_share > tolerated:
        return f"{bad} of {report.rows} rows hold no conversation, {report.bad_share:.0%}, and at most {tolerated:.0%} may"
    empty = [name for name, count in report.splits.items() if not count]
    if empty:
        return (
            f"{sum(report.splits.values())} conversations are too few or too alike: nothing falls to {' and '.join(empty)}. "
            f"By the hash of what is asked, one in twenty validates and one in twenty is tested on, so {ENOUGH} different "
            "ones are nearly always enough"
        )
    return None
