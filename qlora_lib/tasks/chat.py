"""Examples as tokens: the model's chat template, and labels that teach the assistant's words and where they end.

How it works: the template writes the whole chat as text. Where an assistant's message begins is what the template writes
for the messages before it with `add_generation_prompt`: at that point the model will be asked. The response is the
message as the template writes it (some trim it) and the first special token after it, which ends the turn. Text is
tokenized as a whole, then cut: the tokens up to a cut must be those of the text up to there alone, as generation has it.
Where a tokenizer joins both sides into one token, the pieces are tokenized apart, if they decode to themselves.

- A model without a chat template gets the one of Stanford Alpaca without its preamble (PLAIN_TEMPLATE), ended by EOS.
- A template that refuses or drops a system message gets its text at the head of the first user's message.
- Templates that think (Qwen3) are told not to: `enable_thinking=False`; those that know no such thing ignore it.
- A `plain` example has no template at all: prompt, response, EOS, as the protocols of lm-evaluation-harness have it.

The end of a turn is learned whatever the padding token is: labels are made here, from positions, and never from ids.
"""

from dataclasses import dataclass

from qlora_lib.errors import QloraError
from qlora_lib.tasks.examples import Example, Message

IGNORED = -100  # the label that torch's cross entropy leaves out
PLAIN_TEMPLATE = (
    "{{ bos }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '### Instruction:\n' + m['content'] + '\n\n### Response:\n' }}"
    "{% elif m['role'] == 'assistant' %}{{ m['content'] + eos_token + '\n\n' }}"
    "{% elif m['content'] %}{{ m['content'] + '\n\n' }}{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Encoded:
    """One example as training sees it; ids and labels have the same length, and a label is its id or IGNORED."""

    ids: list[int]
    labels: list[int]
    prompt_length: int  # tokens before the last response


@dataclass(frozen=True)
class Piece:
    """Text that is learned or not, and that begins and ends between two tokens."""

    text: str
    learned: bool


def encode(example: Example, tokenizer) -> Encoded:
    """Tokens of the whole example; of the labels those of the assistant's messages and of their ends are learned.

    Raises QloraError where the model's template cannot write the example, or its tokenizer has no end of text.
    """
    pieces, ended = _pieces(example, tokenizer)
    parts = _tokens(pieces, tokenizer, special=example.plain)
    ids = [i for _, part in parts for i in part]
    labels = [i if learned else IGNORED for learned, part in parts for i in part]
    if not ended:
        ids, labels = [*ids, _eos(tokenizer)], [*labels, _eos(tokenizer)]
    return Encoded(ids, labels, sum(len(part) for _, part in parts[:-1]))


def prompt_ids(example: Example, tokenizer) -> list[int]:
    """Tokens up to where the last response begins: `encode(example).ids[:prompt_length]`."""
    pieces, _ = _pieces(example, tokenizer)
    return [i for _, part in _tokens(pieces, tokenizer, special=example.plain)[:-1] for i in part]


def choice_ids(example: Example, tokenizer) -> list[list[int]]:
    """Tokens of each choice as they follow the prompt: prompt and choice are tokenized together, then cut at the length
    of the prompt's own tokens (lm-evaluation-harness, `TemplateLM._encode_pair`)."""
    prompt = "".join(piece.text for piece in _pieces(example, tokenizer)[0][:-1])
    length = len(_ids(prompt, tokenizer, example.plain))
    return [_ids(prompt + choice, tokenizer, example.plain)[length:] for choice in example.choices]


def end_of_turn(tokenizer) -> int:
    """The token that ends a response in training, which may be another than the one that ends the model's own texts."""
    return encode(Example("", (Message("user", "a"), Message("assistant", "b"))), tokenizer).ids[-1]


def fit(examples: list[Example], tokenizer, max_length: int) -> tuple[list[Encoded], dict[str, int]]:
    """(examples of at most `max_length` tokens, how many were left out and why); none is cut."""
    encoded = [encode(example, tokenizer) for example in examples]
    kept = [e for e in encoded if len(e.ids) <= max_length]
    longer = len(encoded) - len(kept)
    return kept, {f"longer than {max_length} tokens": longer} if longer else {}


# --- text ------------------------------------------------------------------------------------------


def _pieces(example: Example, tokenizer) -> tuple[list[Piece], bool]:
    """(prompts and responses in turn, the last response last; whether they hold the end of the turn)."""
    if example.plain:
        return [Piece("\n".join(m.content for m in example.prompt), False), Piece(example.response, True)], False
    whole, messages = _written(list(example.messages), example, tokenizer)
    spans, tail = [], None
    for k in reversed(range(len(messages))):  # the last first: what follows it is the end of every turn
        if messages[k].role != "assistant":
            continue
        start = _start(messages[:k], tail is None, whole, example, tokenizer)
        body, after = _body(whole[start:], messages[k].content, example, tokenizer)
        if tail is None:
            tail = _end_of_turn(after, tokenizer)
        elif not after.startswith(tail):
            raise _unfit(example, tokenizer, "it ends an earlier turn otherwise than the last")
        spans.append((start, start + len(body) + len(tail)))
    pieces, done = [], 0
    for start, end in reversed(spans):
        pieces += [Piece(whole[done:start], False), Piece(whole[start:end], True)]
        done = end
    return pieces, bool(tail)


def _written(messages: list[Message], example: Example, tokenizer) -> tuple[str, list[Message]]:
    """(the chat as the template writes it, the messages that it was given)."""
    if not messages or messages[-1].role != "assistant" or all(m.role != "user" for m in messages[:-1]):
        raise QloraError(
            f"example {example.id} is no chat of a user and an assistant who has the last word",
            "Mend or leave out that example",
        )
    system = [m.content for m in messages if m.role == "system"]
    try:
        whole = render(messages, tokenizer)
        if all(text.strip() in whole for text in system):
            return whole, messages
    except _template_error() as e:
        if not system:
            raise _unfit(example, tokenizer, str(e)) from e
    others = _folded(messages)
    try:
        return render(others, tokenizer), others
    except _template_error() as e:
        raise _unfit(example, tokenizer, str(e)) from e


def _folded(messages: list[Message]) -> list[Message]:
    """Without system messages: their text stands at the head of the first user's."""
    system = [m.content for m in messages if m.role == "system" and m.content.strip()]
    others = [m for m in messages if m.role != "system"]
    first = next(i for i, m in enumerate(others) if m.role == "user")
    others[first] = Message("user", "\n\n".join([*system, others[first].content]))
    return others


def asked_with(messages: list[Message], tokenizer) -> str:
    """The text of a chat up to where the answer begins, written as training writes it.

    Raises what the template raises for an order of roles that it refuses.
    """
    system = [m.content.strip() for m in messages if m.role == "system"]
    try:
        text = render(messages, tokenizer, ask=True)
        if all(words in text for words in system):
            return text
    except _template_error():
        if not system:
            raise
    return render(_folded(messages), tokenizer, ask=True)


def _template_error():
    from jinja2 import TemplateError

    return TemplateError, TypeError, KeyError


def render(messages: list[Message], tokenizer, ask: bool = False, **more) -> str:
    if not more:
        more = {"enable_thinking": False}
    if not tokenizer.chat_template:
        more = {"chat_template": PLAIN_TEMPLATE, "bos": _bos(tokenizer)}
        _eos(tokenizer)
    chat = [{"role": m.role, "content": m.content} for m in messages]
    return tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask, **more)


def _start(before: list[Message], last: bool, whole: str, example: Example, tokenizer) -> int:
    """Where in the chat the response to `before` begins.

    A template that thinks leaves its empty thoughts out of all turns but the last; so an earlier one may have been asked
    in either way, and the longer that fits is the one.
    """
    try:
        ways = (False,) if last else (False, True)
        asked = [render(before, tokenizer, ask=True, enable_thinking=thinking) for thinking in ways]
    except _template_error() as e:
        raise _unfit(example, tokenizer, str(e)) from e
    fitting = [len(text) for text in asked if whole.startswith(text)]
    if not fitting:
        raise _unfit(example, tokenizer, "what it asks the model with is not how it writes the model's turn")
    return max(fitting)


def _body(rest: str, content: str, example: Example, tokenizer) -> tuple[str, str]:
    """(the response as the template wrote it, what follows); white space may stand before it or be gone."""
    for written in (content, content.strip(), content.rstrip(), content.lstrip()):
        for lead in ("", rest[: len(rest) - len(rest.lstrip())]):
            if rest.startswith(lead + written):
                return lead + written, rest[len(lead + written) :]
    raise _unfit(example, tokenizer, "it changes the response")


def _end_of_turn(after: str, tokenizer) -> str:
    """What the template writes after a response, up to and with the first special token; nothing if there is none."""
    special = {str(t) for t in tokenizer.added_tokens_decoder.values() if t.special} | set(tokenizer.all_special_tokens)
    ends = [at + len(token) for token in special if token and (at := after.find(token)) >= 0]
    return after[: min(ends)] if ends else ""


def _unfit(example: Example, tokenizer, why: str) -> QloraError:
    name = getattr(tokenizer, "name_or_path", "") or "this model"
    return QloraError(
        f"the chat template of {name} does not fit example {example.id}: {why}",
        "Mend or leave out that example, or give the model another chat template",
    )


# --- tokens ----------------------------------------------------------------------------------------


def _tokens(pieces: list[Piece], tokenizer, special: bool) -> list[tuple[bool, list[int]]]:
    """[(learned, ids)] of each piece."""
    text, ids, parts = "", [], []
    for piece in pieces:
        text += piece.text
        whole = _ids(text, tokenizer, special)
        if whole[: len(ids)] == ids:
            new = whole[len(ids) :]
        else:  # a token across the cut
            new = _ids(piece.text, tokenizer, False)
            if tokenizer.decode(new, clean_up_tokenization_spaces=False) != piece.text:
                raise QloraError(
                    f"the tokenizer joins the end of a prompt and the response '{piece.text:.40}' into one token",
                    "Let the response begin with a letter, or give the model another chat template",
                )
        parts.append((piece.learned, new))
        ids = [*ids, *new]
    return parts


def _ids(text: str, tokenizer, special: bool) -> list[int]:
    """A template writes its special tokens itself; before plain text stands what the tokenizer puts there."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return [tokenizer.bos_token_id, *ids] if special and _bos(tokenizer) else ids


def _bos(tokenizer) -> str:
    """The beginning of a text, if this tokenizer writes one by itself."""
    starts = tokenizer("a").input_ids[:1]
    return tokenizer.bos_token if starts and starts[0] == tokenizer.bos_token_id else ""


def _eos(tokenizer) -> int:
    if tokenizer.eos_token_id is None:
        raise QloraError("the model's tokenizer has no end-of-text token, so a response would have no end", "Set its eos_token")
    return tokenizer.eos_token_id
