"""A user's own conversations: JSON Lines of `messages`, read row by row, judged, and split.

How it works: each line is one JSON object, `{"messages": [{"role": "user", "content": "..."}, ...]}`; three other common
forms are converted and said to be. A row that cannot teach (broken JSON, an unknown role, an empty message, no answer
at the end) is left out with its number and reason, and never stops the reading; what only looks odd is noted and kept.
The split is by the hash of what stands before the last answer (`splits.by_hash`): the same file gives the same split
anywhere, and rows that ask the same stand in the same part.
"""

import json
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from qlora_lib.errors import UsageError
from qlora_lib.tasks.examples import Example, Message
from qlora_lib.tasks.splits import by_hash, normalized

ENOUGH = 100  # different prompts, of which 0.95 ** 100 = 0.6 % leave a twentieth empty
SHARE_GPT = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
CONVERT = "python -c \"import json, sys; [print(json.dumps(r)) for r in json.load(open(sys.argv[1]))]\" FILE > data.jsonl"
FORMS = ({"messages"}, {"conversations"}, {"prompt", "completion"}, {"instruction", "output"})  # keys of a row


@dataclass(frozen=True)
class Problem:
    """Row 1 is the file's first line; 0 is the file itself."""

    row: int
    what: str
    detail: str = ""


@dataclass
class Rows:
    """A file read: its conversations, the rows that hold none, and what is odd about others that are kept."""

    examples: list[Example] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[Problem] = field(default_factory=list)


class _Bad(Exception):
    """(what, detail) of a row that holds no conversation."""


def read_messages(path: str | Path) -> tuple[list[Example], list[Problem]]:
    """All usable conversations of a JSONL file, and the rows that hold none, one problem each.

    Raises UsageError for a file that is missing, empty or of another kind as a whole.
    """
    rows = read_rows(path)
    return rows.examples, rows.problems


def read_rows(path: str | Path) -> Rows:
    """As `read_messages`, with what is odd too."""
    rows, seen = Rows(), {}
    data = _bytes_of(Path(path))
    if data.startswith(b"\xef\xbb\xbf"):
        data = data[3:]
        rows.notes.append(Problem(0, "byte order mark, skipped"))
    lines = data.split(b"\n")
    if any(line.endswith(b"\r") for line in lines):
        rows.notes.append(Problem(0, "Windows line ends"))
    for row, line in enumerate(lines if lines[-1] else lines[:-1], 1):
        if not line.strip():
            rows.notes.append(Problem(row, "blank line"))
            continue
        try:
            messages, converted = _conversation(line)
        except _Bad as e:
            rows.problems.append(Problem(row, *e.args))
            continue
        if converted:
            rows.notes.append(Problem(row, f"converted from {converted}"))
        example = Example(id=f"row-{row}", messages=messages)
        if (first := seen.setdefault(example.messages, row)) != row:
            rows.notes.append(Problem(row, "the same as an earlier row", f"row {first}"))
        rows.examples.append(example)
    return rows


def split(examples: list[Example]) -> dict[str, list[Example]]:
    """{train, validation, test}: about 90, 5 and 5 in a hundred."""
    return by_hash(examples, chat_key)


def chat_key(example: Example) -> str:
    """What decides the split: all that stands before the first answer, since every answer is learned."""
    first = next(i for i, m in enumerate(example.messages) if m.role == "assistant")
    return normalized("\n".join(m.content for m in example.messages[:first]))


# --- one row ---------------------------------------------------------------------------------------


def _conversation(line: bytes) -> tuple[tuple[Message, ...], str | None]:
    """(messages, the form they were converted from) of one line."""
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError as e:
        raise _Bad("not UTF-8", f"byte {e.start + 1}") from None
    except (ValueError, RecursionError) as e:
        raise _Bad("not JSON", shown(str(e))) from None
    if not isinstance(value, dict):
        raise _Bad("not a JSON object", type(value).__name__)
    turns, converted = _turns(value)
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns, 1))
    _check_order(messages)
    return messages, converted


def _turns(value: dict) -> tuple[list, str | None]:
    """([{"role", "content"}, ...], form) from any of the forms that are understood."""
    if isinstance(value.get("messages"), list) and value["messages"]:
        return value["messages"], None
    if isinstance(value.get("conversations"), list) and value["conversations"]:
        return [_from_share_gpt(turn) for turn in value["conversations"]], "ShareGPT's conversations"
    if "prompt" in value and "completion" in value:
        return _pair(value["prompt"], value["completion"]), "prompt and completion"
    answer = value.get("output", value.get("response"))
    if "instruction" in value and answer is not None:
        extra = value.get("input", value.get("context"))
        asked = value["instruction"]
        if isinstance(asked, str) and isinstance(extra, str) and extra.strip():
            asked = f"{asked}\n\n{extra}"
        return _pair(asked, answer), "instruction and output"
    if "messages" in value:
        raise _Bad("no messages", "an empty list" if value["messages"] == [] else f"`messages` is no list but {type(value['messages']).__name__}")
    raise _Bad("no messages", f"keys: {shown(', '.join(map(str, value)), 60)}")


def _pair(asked, answer) -> list[dict]:
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _from_share_gpt(turn):
    if not isinstance(turn, dict) or "from" not in turn:
        return turn
    name = turn["from"]
    return {"role": SHARE_GPT.get(name, name) if isinstance(name, str) else name, "content": turn.get("value")}


def _message(turn, number: int) -> Message:
    if not isinstance(turn, dict):
        raise _Bad("a message is no object", f"message {number}")
    role, content = turn.get("role"), turn.get("content")
    if role not in ("system", "user", "assistant"):
        raise _Bad("unknown role", f"message {number}: {shown(str(role), 30)}")
    if not isinstance(content, str):
        raise _Bad("content is not text", f"message {number}: {type(content).__name__}")
    if not content.strip():
        raise _Bad("empty content", f"message {number}, {role}")
    if any("\ud800" <= c <= "\udfff" for c in content):
        raise _Bad("half a character (lone surrogate)", f"message {number}")
    return Message(role, content)


def _check_order(messages: tuple[Message, ...]) -> None:
    roles = [m.role for m in messages]
    spoken = roles[1:] if roles[0] == "system" else roles
    if "system" in spoken:
        raise _Bad("system message is not the first", f"message {len(roles) - len(spoken) + spoken.index('system') + 1}")
    if spoken[:1] == ["assistant"]:
        raise _Bad("the assistant speaks first")
    for number, (one, other) in enumerate(pairwise(spoken), len(roles) - len(spoken) + 2):
        if one == other:
            raise _Bad(f"two {one} messages in a row", f"message {number}")
    if roles[-1] != "assistant":
        raise _Bad("does not end with the assistant")


# --- the file --------------------------------------------------------------------------------------


def _bytes_of(path: Path) -> bytes:
    if not path.is_file():
        raise UsageError(f"no file at {path}", "Give a JSON Lines file of conversations")
    data = path.read_bytes()
    start = data[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()
    if not start:
        raise UsageError(f"{path.name} is empty", 'Each line holds one {"messages": [...]}')
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UsageError(f"{path.name} is UTF-16", "Save it as UTF-8")
    if data.startswith(b"\x1f\x8b"):
        raise UsageError(f"{path.name} is compressed", "Unpack it first: gunzip")
    if start.startswith(b"["):
        raise UsageError(f"{path.name} is one JSON array, and one object a line is needed", f"Convert it: {CONVERT}")
    first, _, more = start.partition(b"\n")
    if first.strip() == b"{" and more.strip():
        raise UsageError(f"{path.name} has objects over several lines, and one a line is needed", "Convert it: jq -c . FILE > data.jsonl")
    return data


def shown(text: str, longest: int = 80) -> str:
    """Text from a file, safe for a terminal: what does not print stands as its code."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text[: longest + 1])
    return text if len(text) <= longest else text[: longest - 3] + "..."


