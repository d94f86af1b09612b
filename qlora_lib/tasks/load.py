"""A task's data set by its name or its file, in splits.

How it works: a registered name is the hub's published set or its stand-in; a local file or folder is known by its format.
Splits are the published ones where there are three. Where there are two (train, and a validation or dev split whose labels
everyone has), the published validation is what is tested on, and a twentieth of train validates: by the hash of the text,
for SQuAD of the article's title. Where there is one, it is cut 90/5/5 in the same way; AlpacaEval's is all test. In each
split the examples stand in the order of the hash of their ids, so that the first hundred are a fair sample.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from qlora_lib.errors import QloraError, UsageError, nearest
from qlora_lib.tasks import published
from qlora_lib.tasks.examples import Example, TaskData
from qlora_lib.tasks.kept import made_once
from qlora_lib.tasks.made import MADE, make
from qlora_lib.tasks.splits import SPLITS, by_hash

SUFFIXES = (".tsv", ".json", ".jsonl", ".parquet")
NAMES = {
    "train": "train",
    "dev": "validation",
    "valid": "validation",
    "validation": "validation",
    "val": "validation",
    "test": "test",
}


def task_names() -> list[str]:
    """Every data set of a task that is known by name: made on the spot, published, and stand-ins."""
    from qlora_lib.assets import registered_data

    return [*MADE, *(spec.name for spec in registered_data() if spec.task)]


def is_task(name: str | Path) -> bool:
    """Whether `name` is a task's data set: registered, or a local file or folder in a task's format.

    Looks at names and at the beginnings of files alone, and fetches nothing. A table with a `text` column is text.
    """
    if str(name) in task_names():
        return True
    path = _existing(name)
    return bool(path and any(published.format_of(file) for file in _candidates(path)))


def load_task(name: str | Path) -> TaskData:
    """The examples of a registered set or of a local file or folder, in splits.

    Raises UsageError for what is no task's data set, QloraError for what cannot be brought or read.
    """
    if str(name) in MADE:
        return make(str(name))
    if str(name) in task_names():
        data = _registered(str(name))
    elif path := _existing(name):
        data = _local(path)
    else:
        raise UsageError(f"no task's data set or file '{name!s:.200}'", nearest(str(name), task_names()))
    return replace(data, splits={split: _mixed(data.splits.get(split, [])) for split in SPLITS})


def _mixed(examples: list[Example]) -> list[Example]:
    return sorted(examples, key=lambda e: hashlib.sha256(e.id.encode()).digest())


# --- registered ------------------------------------------------------------------------------------

REGISTERED = {"dolly-15k": "Dolly JSONL", "sst2": "SST-2 Parquet", "squad": "SQuAD Parquet", "alpaca-eval": "AlpacaEval JSON"}


def _registered(name: str) -> TaskData:
    from qlora_lib.assets import registered_data, resolve_data_files
    from qlora_lib.tasks import stand_ins

    spec = next(s for s in registered_data() if s.name == name)
    asset = resolve_data_files(name)
    if name in REGISTERED:
        splits, left_out = _splits({s: [path] for s, path in asset.files.items()}, REGISTERED[name])
    else:
        splits, left_out = made_once(name, asset.revision, lambda: stand_ins.make(name, asset.files["all"]))
    return TaskData(
        name=name, task=spec.task, source=asset.source, splits=splits, revision=asset.revision, license=asset.license,
        attribution=asset.attribution, stand_in_for=asset.stand_in_for, left_out=left_out,
    )  # fmt: skip


def _splits(files: dict[str, list[Path]], format_name: str) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Read files by split ("all": not split yet) and cut what is missing; see above."""
    format = published.FORMATS[format_name]
    found: dict[str, list[Example]] = {}
    left_out: Counter = Counter()
    for split, paths in files.items():
        found[split] = []
        for number, path in enumerate(paths):
            examples, reasons = published.read(path, format, f"{split}-{number}-" if len(paths) > 1 else f"{split}-")
            found[split] += examples
            left_out.update(reasons)
    if format_name == "AlpacaEval JSON":
        return {"test": [e for examples in found.values() for e in examples]}, dict(left_out)
    return _completed(found, format.key), dict(left_out)


def _completed(found: dict[str, list[Example]], key: Callable[[Example], str]) -> dict[str, list[Example]]:
    """Three splits out of one, two or three."""
    if len(found) == 1:
        return by_hash(next(iter(found.values())), key)
    if "test" not in found:
        found["test"] = found.pop("validation")
    if "validation" not in found:
        found |= {s: e for s, e in by_hash(found["train"], key, test=0.0).items() if s != "test"}
    return found


# --- local -----------------------------------------------------------------------------------------


def _existing(name: str | Path) -> Path | None:
    try:
        path = Path(name).expanduser()
        return path if str(name).strip() and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # a name that no file can have, or the home of nobody
        return None


def _candidates(path: Path) -> Iterable[Path]:
    """The file, or those files of a folder that may hold a task, in order; hidden ones are not meant."""
    if not path.is_dir():
        return [path]
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return [p for p in files if not any(part.startswith(".") for part in p.relative_to(path).parts)]


def _split_of(path: Path) -> str | None:
    """What a file's name says: train-v1.1.json, dev.tsv, validation-00000-of-00001.parquet."""
    words = re.findall(r"[a-z]+", path.stem.lower())
    return next((NAMES[word] for word in words if word in NAMES), None)


def _local(path: Path) -> TaskData:
    formats = {file: format for file in _candidates(path) if (format := published.format_of(file))}
    kinds = sorted(set(formats.values()))
    if not kinds:
        raise UsageError(
            f"{path} is in no format of a task; expected one of: {', '.join([*published.FORMATS, published.MESSAGES])}",
            "Give such a file, or a folder with train, dev and test files",
        )
    if len(kinds) > 1:
        raise UsageError(f"{path} holds files of several formats: {', '.join(kinds)}", "Give a folder for each")
    (kind,) = kinds
    files = _by_split(path, list(formats))
    if kind == published.MESSAGES:
        task, (splits, left_out) = "chat", _own(files)
    else:
        unlabelled = _without_labels(files) if kind == "SST-2 TSV" and len(files) > 1 else 0
        task, (splits, left_out) = published.FORMATS[kind].task, _splits(files, kind)
        if unlabelled:
            left_out["without a label"] = left_out.get("without a label", 0) + unlabelled
    return TaskData(
        name=path.resolve().name,
        task=task,
        source="local folder" if path.is_dir() else "local file",
        splits=splits,
        revision=_revision(files),
        left_out=left_out,
    )


def _by_split(path: Path, files: list[Path]) -> dict[str, list[Path]]:
    """{split: files}; a single file, or files whose names say nothing, are "all"."""
    named: dict[str, list[Path]] = {}
    for file in files:
        named.setdefault(_split_of(file) or "all", []).append(file)
    if len(named) == 1:
        return {"all": files}
    if "all" in named:
        raise UsageError(
            f"{path} holds {named['all'][0].name} beside files named for their split",
            "Name each train, dev or test, or give one file",
        )
    if "train" not in named:
        raise UsageError(
            f"{path} has no train file (it has: {', '.join(f.name for f in files):.120})", "Name it train, or give one file"
        )
    return named


def _without_labels(files: dict[str, list[Path]]) -> int:
    """Takes GLUE's test file, which has no labels, out of `files`; returns its rows."""
    count = 0
    for file in list(files.get("test", [])):
        with open(file, encoding="utf-8-sig", errors="replace") as f:
            if f.readline().rstrip("\n").split("\t") != ["sentence", "label"]:
                count += sum(1 for line in f if line.strip())
                files["test"].remove(file)
    if not files.get("test", True):
        del files["test"]
    return count


def _revision(files: dict[str, list[Path]]) -> str:
    """A digest of the splits' bytes: that of the same files under any name of the folder."""
    total = hashlib.sha256()
    for split in sorted(files):
        for file in files[split]:
            with open(file, "rb") as f:
                total.update(split.encode() + hashlib.file_digest(f, "sha256").digest())
    return f"sha256:{total.hexdigest()}"


def _own(files: dict[str, list[Path]]) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """Chats of one's own, split as the published sets are."""
    from qlora_lib.tasks.own import chat_key, read_messages

    found, left_out = {}, Counter()
    for split, paths in files.items():
        found[split] = []
        for path in paths:
            examples, problems = read_messages(path)
            found[split] += examples
            refused = {problem.row: problem for problem in problems}
            left_out.update(problem.what for problem in refused.values())
            if not examples or len(refused) > len(examples):  # more than half, as for the published formats
                first = f" (row {problems[0].row}: {problems[0].what})" if problems else ""
                raise QloraError(
                    f"{path}: {len(refused)} of {len(refused) + len(examples)} rows hold no chat that can be learned{first}",
                    f"See what is wrong, row by row: qlora check {path}",
                )
    return _completed(found, chat_key), dict(left_out)
