"""An Ollama Modelfile beside a GGUF: what the model is, how a chat becomes its prompt, where it stops.

How it works: Ollama writes prompts with templates in Go's syntax, and knows a published chat template only if it is
near one of its own list; else it hands the user's words to the model as they are. So the tokenizer's own chat template
is asked to render a few chats of placeholder words; what stands between the words is what the Go template must write.
The finding is checked on further chats, with and without a system prompt. A template that does more (dates, turns that
depend on others) is not written, and Ollama is left to its own choice. A leading BOS is left out where the tokenizer
adds one itself: so does llama.cpp, which runs the model.

    system block | before user | USER | between | ASSISTANT | after assistant | before user | USER | between

Syntax and rules as in Ollama of August 2026: docs/modelfile.mdx, docs/template.mdx, parser/parser.go, template/.
"""

import re
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path

from qlora_lib.errors import QloraError, UsageError, nearest
from qlora_lib.paths import write_atomic
from qlora_lib.tasks import chat
from qlora_lib.tasks.examples import Message

PARAMETERS = (
    "num_ctx", "repeat_last_n", "repeat_penalty", "temperature", "seed", "stop", "num_predict", "top_k", "top_p", "min_p",
)  # fmt: skip
SYSTEM, USER, ASSISTANT = "Qsystemq", "Quserq", "Qassistantq"  # words that no template writes itself
MARKERS = re.compile(r"<\|[^|<>\s]+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>")
FENCE = '"""'


@dataclass(frozen=True)
class ChatParts:
    """What a chat template writes around the words."""

    default_system: str  # before the first turn, where the chat has no system prompt
    before_system: str | None  # None: it has no place for one
    after_system: str
    system_in_turn: bool  # the system prompt stands inside the first user's turn
    before_user: str
    between: str  # after a user's words, up to where the model's begin
    after_assistant: str
    before_assistant: str = ""  # in an answer's own turn, and not where one is asked for: Mistral's space
    opening: str = ""  # at the end, before the model speaks: the empty thoughts of a model that is told not to think

    @property
    def stops(self) -> list[str]:
        """The markers of its turns: none of them belongs in an answer."""
        everything = [self.before_system or "", self.before_user, self.between, self.after_assistant]
        return list(dict.fromkeys(MARKERS.findall("".join(everything))))

    def render(self, system: str | None, turns: list[str]) -> str:
        """The prompt of a chat: the words of user and model by turns, the user's last."""
        inside = block = ""
        if system is None:
            block = self.default_system
        elif self.system_in_turn:
            inside = f"{self.before_system}{system}{self.after_system}"
        else:
            block = f"{self.before_system}{system}{self.after_system}"
        text = block
        for i, words in enumerate(turns):
            text += f"{self.before_user}{inside if i == 0 else ''}{words}{self.between}" if i % 2 == 0 else f"{self.before_assistant}{words}{self.after_assistant}"
        return text + (self.opening if len(turns) % 2 else "")

    def to_go(self) -> str:
        """The same in Go's template syntax, with Ollama's variables. A system prompt stands first in `.Messages`."""
        system = f"{self.before_system}{{{{ $.System }}}}{self.after_system}"
        block = inside = ""
        if self.before_system is None:
            block = self.default_system
        elif self.system_in_turn:
            inside = f"{{{{ if and $.System (le $i 1) }}}}{system}{{{{ end }}}}"
            block = f"{{{{ if not .System }}}}{self.default_system}{{{{ end }}}}" if self.default_system else ""
        else:
            other = f"{{{{ else }}}}{self.default_system}" if self.default_system else ""
            block = f"{{{{ if .System }}}}{system}{other}{{{{ end }}}}"
        return (
            f"{block}{{{{ range $i, $m := .Messages }}}}"
            f'{{{{ if eq .Role "user" }}}}{self.before_user}{inside}{{{{ .Content }}}}{self.between}'
            f'{{{{ else if eq .Role "assistant" }}}}{self.before_assistant}{{{{ .Content }}}}{self.after_assistant}{{{{ end }}}}{{{{ end }}}}{self.opening}'
        )


def chat_parts(tokenizer) -> ChatParts | None:
    """What the tokenizer's chat template writes, or None where it does more than `ChatParts` can say."""
    template = getattr(tokenizer, "chat_template", None)
    if template is not None and (not isinstance(template, str) or "strftime_now" in template):
        return None  # several, or one that writes the date
    try:
        return _found(tokenizer)
    except (*_template_errors(), QloraError):
        return None


def _found(tokenizer) -> ChatParts | None:
    first = _render(tokenizer, None, [USER, ASSISTANT, USER])
    closed = _render(tokenizer, None, [USER, ASSISTANT])
    shape = re.fullmatch(f"(.*){USER}(.*){ASSISTANT}(.*){USER}(.*)", first, re.DOTALL)
    if not shape or closed.count(ASSISTANT) != 1:
        return None
    start, between, after, end = shape.groups()
    opening, lead = "", ""
    if end.startswith(between):
        opening = end[len(between) :]
    elif between.startswith(end):
        between, lead = end, between[len(end) :]
    else:
        return None
    after_assistant = closed.split(ASSISTANT)[1]
    if not after.startswith(after_assistant):
        return None
    before_user = after[len(after_assistant) :]
    if not start.endswith(before_user):
        return None
    plain = ChatParts(start[: len(start) - len(before_user)], None, "", False, before_user, between, after_assistant, lead, opening)
    for parts in (_with_system(tokenizer, plain), plain):
        if parts and _agrees(tokenizer, parts) and _writable(parts):
            return parts
    return None


def write_modelfile(
    gguf: Path,
    tokenizer=None,
    system: str | None = None,
    parameters: dict[str, str | int | float] | None = None,
    out: Path | None = None,
) -> tuple[Path, str | None]:
    """Write the Modelfile of a GGUF; returns (its path, None or one line saying why it has no TEMPLATE).

    Args:
        gguf: the model's file; the Modelfile is written beside it.
        tokenizer: whose chat template the GGUF was trained with.
        system: the system prompt that chats begin with.
        parameters: Ollama's, e.g. {"num_ctx": 2048, "temperature": 0.7}.
        out: the Modelfile, where not beside the GGUF.

    Raises UsageError for a system prompt, parameter or file name that a Modelfile cannot hold.
    """
    gguf = Path(gguf)
    out = Path(out) if out else gguf.parent / "Modelfile"
    if not gguf.is_file():
        raise UsageError(f"no GGUF at {gguf}", "Give the file that the export wrote")
    parts = chat_parts(tokenizer) if tokenizer is not None else None
    if system is not None and parts and parts.before_system is None:
        raise UsageError("the model's chat template has no place for a system prompt", "Leave the system prompt out")
    lines = [f"# ollama create NAME -f {_one_line(out.name)}", f"FROM {_path(gguf, out)}"]
    why = None
    if parts:
        lines.append(f"TEMPLATE {quoted(parts.to_go(), 'the template')}")
        lines += [f'PARAMETER stop "{stop}"' for stop in parts.stops]
    else:
        what = "no tokenizer was given" if tokenizer is None else "the tokenizer's chat template is none that can be written so"
        why = f"the Modelfile has no TEMPLATE: {what}. Ollama then takes the nearest of its own, or none: try it on a chat"
    if system is not None:
        lines.append(f"SYSTEM {quoted(system, 'the system prompt')}")
    lines += [_parameter(name, value) for name, value in (parameters or {}).items()]
    write_atomic(out, "\n".join(lines) + "\n")
    return out, why


# --- the syntax of a Modelfile ---------------------------------------------------------------------


def quoted(text: str, what: str) -> str:
    '''`"""text"""`: there is no escape in it, and three quotes at the end of any line would end it there.

    Ollama drops what Go does not print (control characters, joiners) and keeps line feeds, tabs and spaces, so other
    spaces become plain ones.
    '''
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = "".join(" " if unicodedata.category(c) == "Zs" else "\n" if c in "\u2028\u2029\x85" else c for c in text)
    for i, c in enumerate(text):
        so_far = (FENCE + text[:i]).rstrip() if c == "\n" else ""
        if len(so_far) >= 6 and so_far.endswith(FENCE):
            raise UsageError(
                f"{what} has a line that ends in three double quotes, which end a Modelfile's text",
                "Write ''' there, or end the line with another character",
            )
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{what} holds half a character (a lone surrogate)", "Give text that UTF-8 can hold") from None
    return FENCE + text + FENCE


def _parameter(name: str, value) -> str:
    if name not in PARAMETERS:
        raise UsageError(f"Ollama has no parameter '{name}'", nearest(name, PARAMETERS))
    text = str(value)
    if isinstance(value, bool) or not text.strip() or not text.isprintable():
        raise UsageError(f"parameter {name}: {value!r:.60} is no number or one line of text")
    if isinstance(value, str) and name != "stop":
        raise UsageError(f"parameter {name}: expected a number, found {value!r:.60}")
    return f"PARAMETER {name} " + (f'"{text}"' if isinstance(value, str) else text)


def _path(gguf: Path, out: Path) -> str:
    path = f"./{gguf.name}" if gguf.resolve().parent == out.resolve().parent else str(gguf.resolve())
    if not path.isprintable() or path != path.strip():
        raise UsageError(f"a Modelfile cannot hold the file name {gguf.name!r}", "Rename the GGUF to plain letters")
    return path


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


# --- asking the chat template ----------------------------------------------------------------------


def _render(tokenizer, system: str | None, turns: list[str]) -> str:
    """A chat of these words as training writes it, up to the model's next turn where the user spoke last.

    As in `chat`, a template that refuses or drops a system prompt finds it at the head of the user's first words.
    """
    ask = len(turns) % 2 == 1
    if system is not None:
        try:
            text = chat.render([Message("system", system), *_messages(turns)], tokenizer, ask=ask)
        except _template_errors():  # many refuse one
            text = ""
        if system not in text:
            text = chat.render(_messages([f"{system}\n\n{turns[0]}", *turns[1:]]), tokenizer, ask=ask)
    else:
        text = chat.render(_messages(turns), tokenizer, ask=ask)
    bos = tokenizer.bos_token
    adds_bos = bos is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return text.removeprefix(bos) if adds_bos else text


def _template_errors():
    from jinja2 import TemplateError

    return TemplateError, TypeError, KeyError, ValueError


def _messages(turns: list[str]) -> list[Message]:
    return [Message(("user", "assistant")[i % 2], words) for i, words in enumerate(turns)]


def _with_system(tokenizer, plain: ChatParts) -> ChatParts | None:
    text = _render(tokenizer, SYSTEM, [USER])
    shape = re.fullmatch(f"(.*){SYSTEM}(.*){USER}(.*)", text, re.DOTALL)
    if not shape:
        return None
    before, after, _ = shape.groups()
    if after.endswith(plain.before_user):
        return replace(plain, before_system=before, after_system=after[: len(after) - len(plain.before_user)])
    if before.startswith(plain.before_user):
        return replace(plain, before_system=before[len(plain.before_user) :], after_system=after, system_in_turn=True)
    return None


def _agrees(tokenizer, parts: ChatParts) -> bool:
    """Whether these parts write chats of one to four questions as the template does."""
    chats = [[f"{word}{i}" for i, word in enumerate([USER, ASSISTANT] * n + [USER])] for n in range(4)]
    return all(
        parts.render(system, turns) == _render(tokenizer, system, turns)
        for system in ([None] if parts.before_system is None else [None, SYSTEM])
        for turns in chats
    )


def _writable(parts: ChatParts) -> bool:
    """Whether Go and a Modelfile take these texts for what they are: no braces, nothing that Ollama drops."""
    texts = (parts.default_system, parts.before_system or "", parts.after_system, parts.before_user, parts.between,
             parts.after_assistant, parts.before_assistant, parts.opening)  # fmt: skip
    if any("{{" in text or text.endswith("{") or not all(c.isprintable() or c in "\n\t" for c in text) for text in texts):
        return False
    try:
        return quoted(parts.to_go(), "the template") == FENCE + parts.to_go() + FENCE
    except QloraError:
        return False
