"""A user's own conversations: every wrong row is named and left out, none stops the reading; and the way to Ollama."""

import json
import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lib.cli import main
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.tasks.examples import Message
from qlora_lib.tasks.load import load_task
from qlora_lib.tasks.modelfile import PARAMETERS, chat_parts, quoted, write_modelfile
from qlora_lib.tasks.own import chat_key, read_messages, read_rows, shown, split
from qlora_lib.tasks.own_report import check


def turns(*pairs: str) -> list[dict]:
    return [{"role": pair.split(":")[0], "content": pair.split(":", 1)[1]} for pair in pairs]


def row(*pairs: str) -> str:
    return json.dumps({"messages": turns(*pairs)})


GOOD = row("user:Why is the sky blue?", "assistant:Air scatters blue light the most.")


@pytest.fixture
def write(tmp_path):
    def write(*lines: str, name: str = "mine.jsonl", end: str = "\n"):
        path = tmp_path / name
        path.write_bytes((end.join(lines) + end).encode("utf-8", "surrogatepass"))
        return path

    return write


def many(n: int) -> list[str]:
    return [row(f"user:What is {i} and {i}?", f"assistant:It is {2 * i}.") for i in range(n)]


def test_a_file_that_is_mostly_no_chats_is_refused_with_the_way_to_see_why(write):
    half = load_task(write(*many(4), *["{}"] * 4))
    assert sum(len(part) for part in half.splits.values()) == 4 and sum(half.left_out.values()) == 4
    path = write(*many(4), *["{}"] * 5)
    with pytest.raises(QloraError, match=r"5 of 9 rows hold no chat .*row 5") as error:
        load_task(path)
    assert f"qlora check {path}" in error.value.hint


# --- rows ----------------------------------------------------------------------------------------

BAD = {
    "{'messages': []}": "not JSON",
    '{"messages": [': "not JSON",
    "[" * 100_000: "not JSON",
    '["a"]': "not a JSON object",
    "{}": "no messages",
    '{"messages": []}': "no messages",
    '{"messages": "hello"}': "no messages",
    '{"messages": ["hello"]}': "a message is no object",
    '{"messages": [{"from": "human", "value": "x"}]}': "unknown role",
    row("user:hello", "tool:1", "assistant:a"): "unknown role",
    row("user:hello", "assistant: \n "): "empty content",
    row("system:", "user:a", "assistant:b"): "empty content",
    '{"messages": [{"role": "user", "content": ["a"]}, {"role": "assistant", "content": "b"}]}': "content is not text",
    '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": null}]}': "content is not text",
    '{"messages": [{"role": "user", "content": "a\\ud83d"}, {"role": "assistant", "content": "b"}]}': "half a character",
    row("user:a"): "does not end with the assistant",
    row("system:a"): "does not end with the assistant",
    row("user:a", "assistant:b", "user:c"): "does not end with the assistant",
    row("user:a", "user:b", "assistant:c"): "two user messages in a row",
    row("user:a", "assistant:b", "assistant:c"): "two assistant messages in a row",
    row("user:a", "system:b", "assistant:c"): "system message is not the first",
    row("system:x", "system:b", "user:a", "assistant:c"): "system message is not the first",
    row("assistant:a", "user:b", "assistant:c"): "the assistant speaks first",
    row("system:s", "assistant:a"): "the assistant speaks first",
}


@pytest.mark.parametrize("line, what", BAD.items(), ids=range(len(BAD)))
def test_a_bad_row_is_named_and_left_out(write, line, what):
    examples, problems = read_messages(write(GOOD, line, GOOD))
    assert [e.id for e in examples] == ["row-1", "row-3"]
    (problem,) = problems
    assert problem.row == 2 and problem.what.startswith(what)


def test_bytes_that_are_no_utf8(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(GOOD.encode() + b"\n" + GOOD.replace("blue", "bl\xfc").encode("latin-1").replace(b"\\u00fc", b"\xfc") + b"\n")
    examples, (problem,) = read_messages(path)
    assert len(examples) == 1 and (problem.row, problem.what) == (2, "not UTF-8")


def test_conversations_are_kept_as_they_are(write):
    chat = turns("system:Be short.\n", "user: Hi\u00a0there", "assistant:Hello! \U0001f600", "user:Bye", "assistant:\tBye.\n")
    (example,), problems = read_messages(write(json.dumps({"messages": chat, "id": 7})))
    assert problems == [] and example.messages == tuple(Message(**m) for m in chat)
    assert example.response == "\tBye.\n" and len(example.prompt) == 4


FORMS = [
    ({"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, "ShareGPT"),
    ({"prompt": "a", "completion": "b"}, "prompt and completion"),
    ({"instruction": "a", "input": "", "output": "b"}, "instruction and output"),
    ({"instruction": "a", "input": "more", "output": "b"}, "instruction and output"),
]


@pytest.mark.parametrize("value, what", FORMS, ids=range(len(FORMS)))
def test_other_forms_are_converted_and_said_to_be(write, value, what):
    rows = read_rows(write(json.dumps(value)))
    (example,), (note,) = rows.examples, rows.notes
    assert rows.problems == [] and what in note.what
    assert example.response == "b" and example.prompt[-1].content == ("a\n\nmore" if value.get("input") else "a")
    assert (example.messages[0].role == "system") == ("conversations" in value)


def test_what_is_odd_is_noted_and_kept(write):
    rows = read_rows(write("\ufeff" + GOOD, "", GOOD, "  ", row("user:b", "assistant:c"), end="\r\n"))
    assert [e.id for e in rows.examples] == ["row-1", "row-3", "row-5"] and rows.problems == []
    noted = {(n.row, n.what, n.detail) for n in rows.notes}
    assert noted == {
        (0, "byte order mark, skipped", ""), (0, "Windows line ends", ""), (2, "blank line", ""), (4, "blank line", ""),
        (3, "the same as an earlier row", "row 1"),
    }  # fmt: skip


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip), min_size=2, max_size=6))
def test_any_text_comes_back_unchanged(tmp_path_factory, texts):
    texts = texts[: len(texts) // 2 * 2]
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
    path = tmp_path_factory.mktemp("own") / "one.jsonl"
    path.write_text(json.dumps({"messages": chat}, ensure_ascii=False) + "\n", encoding="utf-8", newline="")
    (example,), problems = read_messages(path)
    assert problems == [] and [m.content for m in example.messages] == texts


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_in_one_line(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("own") / "bytes.jsonl"
    path.write_bytes(data)
    try:
        rows = read_rows(path)
    except UsageError as e:
        assert "\n" not in str(e)
    else:
        lines = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
        assert len(rows.examples) + len(rows.problems) == len(lines)


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data, says",
    [
        (b"", "is empty"),
        (b" \n\n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"[" + GOOD.encode() + b"]", "one JSON array"),
        (b'\n [\n{"messages": []}]', "Convert it: python"),
        (b'{\n "messages": []\n}', "several lines"),
        (GOOD.encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08\x00", "compressed"),
    ],
)
def test_a_file_of_another_kind_is_told_how_to_become_one(tmp_path, data, says):
    path = tmp_path / "mine.jsonl"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=says):
        read_messages(path)


def test_the_conversion_that_is_advised_works(tmp_path):
    import subprocess

    path = tmp_path / "array.json"
    path.write_text(json.dumps([json.loads(GOOD)] * 3))
    with pytest.raises(UsageError) as e:
        read_messages(path)
    program = re.search(r'python -c "(.*?)" FILE', str(e.value))[1]
    out = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True).stdout
    assert out.splitlines() == [GOOD] * 3


def test_a_missing_file(tmp_path):
    with pytest.raises(UsageError, match="no file"):
        read_messages(tmp_path / "none.jsonl")


# --- splits --------------------------------------------------------------------------------------


def test_the_split_is_the_words_alone_and_of_about_the_shares(write):
    lines = many(400)
    one = split(read_messages(write(*lines))[0])
    other = split(read_messages(write(*reversed(lines), name="other.jsonl"))[0])
    words = lambda parts: {name: {e.messages for e in part} for name, part in parts.items()}
    assert words(one) == words(other) and sum(map(len, one.values())) == 400
    assert 340 <= len(one["train"]) <= 380 and all(8 <= len(one[name]) <= 34 for name in ("validation", "test"))


def test_rows_that_ask_the_same_stand_together(write):
    lines = many(60) + [row(f"user:What is {i} and {i}?", "assistant:Twice that.") for i in range(60)]
    parts = split(read_messages(write(*lines))[0])
    asked = [{chat_key(e) for e in part} for part in parts.values()]
    assert not asked[0] & asked[1] and not asked[0] & asked[2] and not asked[1] & asked[2]


def test_training_splits_as_the_check_says(write):
    path = write(*many(200))
    assert {name: len(part) for name, part in load_task(str(path)).splits.items()} == check(path).splits


# --- qlora check ---------------------------------------------------------------------------------


@pytest.fixture
def call(capfd, monkeypatch):
    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["qlora", "check", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        return e.value.code, *capfd.readouterr()

    return call


def test_a_good_file(write, call):
    code, out, err = call(write(*many(200)))
    assert (code, err) == (0, "") and "200 conversations in 200 rows, 400 turns" in out
    assert "left out" not in out and "an epoch is 11 whole steps of 16" in out


def test_bad_rows_are_counted_and_only_some_are_named(write, call):
    path = write(*many(200), *[row("user:alone")] * 30)
    code, out, err = call(path, "--rows", 3)
    assert code == 1 and err.count("\n") == 1 and "30 of 230 rows hold no conversation, 13%" in err
    assert re.search(r"30  does not end with the assistant: row 201, 202, 203, \.\.\.$", out, re.MULTILINE)
    assert call(path, "--tolerate", 20)[0] == 0
    code, out, err = call(path, "--rows", 0)
    assert "row 201" not in out


def test_too_few_conversations(write, call):
    code, _, err = call(write(*many(3)))
    assert code == 1 and "3 conversations are too few" in err and "100 different" in err


def test_json_is_one_document(write, call):
    code, out, _ = call(write(*many(200), "{"), "--json")
    found = json.loads(out)
    assert code == 0 and found["usable"] and found["tokens"] is None
    assert found["kinds"][0] == {
        "what": "not JSON", "left_out": True, "count": 1, "first": [{"row": 201, "detail": found["kinds"][0]["first"][0]["detail"]}],
    }  # fmt: skip
    code, out, err = call(write("{"), "--json")
    assert code == 1 and not json.loads(out)["usable"] and err.startswith("error: 1 of 1 rows")


def test_control_characters_of_the_data_do_not_reach_the_terminal(write, call):
    evil = json.dumps({"messages": [{"role": "\x1b[31mred\u202e\n", "content": "a"}]})
    _, out, _ = call(write(*many(100), evil))
    assert "\x1b" not in out and "\u202e" not in out and r"\x1b[31mred\u202e\n" in out
    assert shown("a" * 100, 10) == "aaaaaaa..." and shown("é\x00") == r"é\x00"


def test_tokens_with_a_model(write, call, tiny_tokenizer):
    from qlora_lib.tasks.chat import encode

    long = row("user:tell me", "assistant:" + "word " * 100)
    path = write(*many(150), long)
    code, out, err = call(path, "--model", "tiny-random", "--max-length", "128", "--json")
    found = json.loads(out)
    encoded = [encode(e, tiny_tokenizer) for e in read_messages(path)[0]]
    lengths = [len(e.ids) for e in encoded]
    assert code == 0, err
    assert (found["tokens"], found["longest_tokens"], found["longest_row"]) == (sum(lengths), max(lengths), 151)
    assert found["longer_than_max"] == sum(n > 128 for n in lengths) == 1
    assert found["response_share"] == sum(label != -100 for e in encoded for label in e.labels) / sum(lengths)
    assert sum(found["splits"].values()) == 150


def test_max_length_needs_a_model(write, call):
    code, _, err = call(write(GOOD), "--max-length", 100)
    assert code == 2 and "--model" in err


# --- Ollama --------------------------------------------------------------------------------------


def read_modelfile(text: str) -> list[tuple[str, str]]:
    """[(instruction, argument)] by Ollama's rules (parser/parser.go): a value that opens with quotes goes on to the
    first line end at which it also closes with them; what Go does not print is dropped, but for line feeds and tabs."""
    found, rest = [], text
    while rest := rest.lstrip(" \t\n\r"):
        if rest.startswith("#"):
            rest = rest.partition("\n")[2]
            continue
        name, _, rest = rest.partition(" ")
        for end in [i for i, c in enumerate(rest) if c in "\n\r"] + [len(rest)]:
            value = rest[:end].strip()
            fence = '"""' if value.startswith('"""') else '"' if value.startswith('"') else ""
            if len(value) >= 2 * len(fence) and value.endswith(fence):
                break
        else:
            raise AssertionError("a value that never closes")
        value = value[len(fence) : len(value) - len(fence)]
        found.append((name, "".join(c for c in value if c.isprintable() or c in "\n\t")))
        rest = rest[end:]
    return found


def render_go(template: str, messages: list[dict]) -> str:
    """The part of Go's text/template that our templates use, with Ollama's variables."""
    pieces = re.split(r"\{\{ (.*?) \}\}", template)
    root = {"Messages": messages, "System": "\n\n".join(m["content"] for m in messages if m["role"] == "system")}

    def value(word: str, dot, names):
        if word.startswith("$."):
            return root[word[2:]]
        if word.startswith("."):
            return {k.lower(): v for k, v in dot.items()}[word[1:].lower()]
        return names[word] if word.startswith("$") else json.loads(word)

    def holds(words: str, dot, names) -> bool:
        if m := re.fullmatch(r"and (\S+) \((.*)\)", words):
            return bool(value(m[1], dot, names)) and holds(m[2], dot, names)
        operator, *args = re.findall(r'"[^"]*"|\S+', words)
        if operator in ("eq", "le"):
            a, b = (value(arg, dot, names) for arg in args)
            return a == b if operator == "eq" else a <= b
        return bool(value(operator, dot, names))

    def block(at: int, dot, names, live: bool) -> tuple[str, int]:
        """Text from piece `at` up to the `else` or `end` that closes it, and where that is."""
        text = ""
        while at < len(pieces):
            text += pieces[at]
            at += 1
            if at == len(pieces):
                break
            action = pieces[at]
            if action == "end" or action.startswith("else"):
                return text, at
            if m := re.fullmatch(r"range (\$\w+), (\$\w+) := (\S+)", action):
                items = value(m[3], dot, names) if live else []
                for i, item in enumerate(items):
                    inner, _ = block(at + 1, item, names | {m[1]: i, m[2]: item}, True)
                    text += inner
                _, at = block(at + 1, {}, names, False)
            elif action.startswith("if "):
                done, condition = not live, action[3:]
                while True:
                    taken = not done and (condition is None or holds(condition, dot, names))
                    inner, at = block(at + 1, dot, names, taken)
                    text, done = text + (inner if taken else ""), done or taken
                    if pieces[at] == "end":
                        break
                    condition = pieces[at][8:] if pieces[at].startswith("else if ") else None
            else:
                text += str(value(action, dot, names)) if live else ""
            at += 1
        return text, at

    return block(0, root, {}, True)[0]


SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a "
    "helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + "
    "'\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {  # templates of the families, written out as their models' tokenizers have them or shorter
    "SmolLM2": (SMOLLM2, ["<|im_start|>", "<|im_end|>"]),
    "ChatML": (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}"
        "{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}",
        ["<|im_start|>", "<|im_end|>"],
    ),
    "Llama 3": (
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "Llama 3.1": (
        "{% if messages[0]['role'] == 'system' %}{% set s = messages[0]['content'] %}{% set messages = messages[1:] %}{% else %}"
        "{% set s = '' %}{% endif %}{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + s + '<|eot_id|>' }}"
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
        ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
    ),
    "TinyLlama": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + '</s>' }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + '</s>' }}\n{% elif message['role'] == "
        "'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + '</s>' }}\n{% endif %}\n{% if loop.last and "
        "add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
        ["<|system|>", "</s>", "<|user|>", "<|assistant|>"],
    ),
    "Mistral": (  # no place for a system prompt
        "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('must alternate') }}"
        "{% endif %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + '</s>' }}"
        "{% endif %}{% endfor %}",
        ["[INST]", "[/INST]", "</s>"],
    ),
}
CHATS = [
    turns("user:Hi"),
    turns("user:Hi {{ .System }}", "assistant:Hello\n\n", "user:\tBye"),
    turns("system:Be short.", "user:Hi"),
    turns("system:Be\n\nshort.", "user:Why?", 'assistant:"""', "user:No", "assistant:Yes", "user:<|x|>"),
]


@pytest.fixture
def tokenizer(tiny_model):
    """A function: the tiny tokenizer with another chat template."""
    from qlora_lib.models import load_tokenizer

    def with_template(template):
        found = load_tokenizer(tiny_model)
        found.chat_template = template
        return found

    return with_template


@pytest.fixture
def gguf(tmp_path):
    path = tmp_path / "my model.gguf"
    path.write_bytes(b"GGUF")
    return path


@pytest.mark.parametrize("name", TEMPLATES)
def test_ollama_writes_a_chat_as_the_tokenizer_does(name, tokenizer, gguf):
    template, stops = TEMPLATES[name]
    tok = tokenizer(template)
    path, why = write_modelfile(gguf, tok)
    found = read_modelfile(path.read_text())
    assert why is None and found[0] == ("FROM", "./my model.gguf")
    assert sorted(v for k, v in found if k == "PARAMETER") == sorted(f'stop "{stop}"' for stop in stops)
    (go,) = [v for k, v in found if k == "TEMPLATE"]
    for chat in CHATS:
        if name == "Llama 3":  # it trims what is said, and Go's templates cannot
            chat = [m | {"content": m["content"].strip()} for m in chat]
        expected = chat
        if name == "Mistral" and chat[0]["role"] == "system":  # training puts it before the user's first words
            expected = [{"role": "user", "content": f"{chat[0]['content']}\n\n{chat[1]['content']}"}, *chat[2:]]
        text = tok.apply_chat_template(expected, tokenize=False, add_generation_prompt=True, enable_thinking=False)
        assert render_go(go, chat) == text


def test_the_prompt_of_a_model_without_chat_template_is_the_one_it_is_trained_with(tokenizer, gguf):
    from qlora_lib.tasks.chat import prompt_ids
    from qlora_lib.tasks.examples import Example

    tok = tokenizer(None)
    (go,) = [v for k, v in read_modelfile(write_modelfile(gguf, tok)[0].read_text()) if k == "TEMPLATE"]
    for chat in CHATS:
        example = Example("x", tuple(Message(**m) for m in [*chat, {"role": "assistant", "content": "end"}]))
        assert tok(render_go(go, chat), add_special_tokens=False).input_ids == prompt_ids(example, tok)


@pytest.mark.parametrize(
    "template",
    [
        SMOLLM2.replace("helpful", "{{ '{{' }} helpful"),
        "{{ messages[-1]['content'] }}",  # the last words alone
        "{% for m in messages %}{{ loop.index ~ m['role'] ~ ': ' ~ m['content'] }}{% endfor %}",  # turns are numbered
        "{{ raise_exception('no') }}",
        "{{ strftime_now('%d') }}" + SMOLLM2,
        "{{ '\x07' }}" + SMOLLM2,
    ],
)
def test_a_template_that_does_more_is_not_written_and_said_to_be_missing(tokenizer, gguf, template):
    path, why = write_modelfile(gguf, tokenizer(template), system="Be short.")
    assert "no TEMPLATE" in why and "\n" not in why
    assert [k for k, _ in read_modelfile(path.read_text())] == ["FROM", "SYSTEM"]


def test_a_bos_that_the_tokenizer_adds_itself_is_not_written_twice(tokenizer):
    from tokenizers.processors import TemplateProcessing

    tok = tokenizer("{{ bos_token }}" + TEMPLATES["Mistral"][0])
    tok.add_special_tokens({"bos_token": "<s>"})
    assert chat_parts(tok).default_system == "<s>"
    tok.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tok.bos_token_id)])
    parts = chat_parts(tok)
    assert parts.default_system == "" and parts.render(None, ["Hi"]) == "[INST] Hi [/INST]"


def test_parameters_and_system_prompt(gguf, tokenizer, tmp_path):
    parameters = {"num_ctx": 2048, "temperature": 0.2, "stop": "### End"}
    path, _ = write_modelfile(gguf, tokenizer(SMOLLM2), 'Say "yes".', parameters, out=tmp_path / "sub" / "Modelfile")
    found = read_modelfile(path.read_text())
    assert ("SYSTEM", 'Say "yes".') in found and found[0] == ("FROM", str(gguf))
    assert found[-3:] == [("PARAMETER", "num_ctx 2048"), ("PARAMETER", "temperature 0.2"), ("PARAMETER", 'stop "### End"')]


@pytest.mark.parametrize(
    "parameters", [{"temprature": 1}, {"temperature": "hot"}, {"seed": True}, {"stop": "a\nFROM evil"}, {"stop": ""}, {"num_ctx": "1\nSYSTEM x"}]
)
def test_parameters_that_ollama_does_not_have(gguf, parameters):
    with pytest.raises(UsageError):
        write_modelfile(gguf, parameters=parameters)
    assert "temperature" in PARAMETERS


quotes = st.text(st.sampled_from(['"', "\n", " ", "\r", "\t", "a", "F", "\u00a0", "\\", "#"]), max_size=12)


@given(quotes | st.text(st.characters(exclude_categories=["Cs", "Cc", "Cf", "Cn", "Co"])))
def test_no_system_prompt_ends_its_quotes(text):
    """It comes back as one instruction with the same words, or is refused."""
    try:
        written = quoted(text, "the system prompt")
    except UsageError:
        assert re.search(r'"""\s*[\n\r]', '"""' + text) or '"""\n' in ('"""' + text).replace("\r", "\n")
        return
    (only,) = read_modelfile(f"SYSTEM {written}\n")
    plain = "".join(" " if c.isspace() and c not in "\n\t\r\u2028\u2029" else c for c in text)
    assert only[0] == "SYSTEM" and only[1].split() == plain.split()
    if text.isprintable() and not re.search(r"[^\S ]", text):
        assert only[1] == text


@pytest.mark.parametrize("evil", ['a"""\nFROM evil', '"""\nFROM evil\nSYSTEM """', 'x """ \t\nPARAMETER stop ""', 'a"""\rFROM evil'])
def test_an_injection_is_refused_in_one_line(gguf, evil):
    with pytest.raises(UsageError, match="three double quotes"):
        write_modelfile(gguf, system=evil)
    assert not (gguf.parent / "Modelfile").exists()


def test_quotes_that_end_nothing_are_kept(gguf):
    for text in ('say """this""" now', 'ends in """', '"', '"a"', 'a"\n"b'):
        path, _ = write_modelfile(gguf, system=text)
        assert read_modelfile(path.read_text())[-1] == ("SYSTEM", text)


def test_a_missing_gguf(tmp_path):
    with pytest.raises(UsageError, match="no GGUF"):
        write_modelfile(tmp_path / "none.gguf")


def test_half_a_character_is_refused(gguf):
    with pytest.raises(QloraError, match="surrogate"):
        write_modelfile(gguf, system="a\ud83d")
