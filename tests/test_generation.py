"""Streaming: pieces add up to what `generate` says, and nothing is left running."""

import copy
import json
import threading

import pytest
import tiny as tiny_helpers
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from qlora_lib import models
from qlora_lib.cli import cli
from qlora_lib.comparing import cells, columns, empty_note, wrapped
from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.generation import _pieces, chat_prompt, chooser, read_chats, stream_from, with_system

one_thread = tiny_helpers.one_thread


@pytest.fixture(scope="module")
def tiny(tiny_model, tiny_tokenizer):
    return models.load_base(tiny_model, Quantization(), torch.float32, "cpu"), tiny_tokenizer


@pytest.fixture(params=["fast", "transformers"])
def engine(request, monkeypatch):
    """What makes the tokens."""
    if request.param == "transformers":
        monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    return request.param


def test_the_pieces_are_what_generate_gives(tiny, engine):
    model, tokenizer = tiny
    inputs = tokenizer("The small", return_tensors="pt", add_special_tokens=False)
    whole = model.generate(**inputs, do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)[0]
    expected = tokenizer.decode(whole[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert "".join(stream_from(model, tokenizer, "The small", max_new_tokens=12)) == expected


def test_a_plain_prompt_has_the_tokens_that_the_tokenizer_adds_and_a_chat_those_of_its_template(tiny, engine):
    model, tokenizer = tiny[0], copy.deepcopy(tiny[1])
    added = tokenizer("Z", add_special_tokens=False).input_ids  # at the end, since the tiny model says its last token again
    special = [{"id": "Z", "ids": added, "tokens": tokenizer.convert_ids_to_tokens(added)}]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A Z", special_tokens=special)

    def says(ids: list[int]) -> str:
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=12, pad_token_id=tokenizer.pad_token_id)[0]
        return tokenizer.decode(out[len(ids) :], skip_special_tokens=True)

    bare, talk = (tokenizer(t, add_special_tokens=False).input_ids for t in ("The small", chat_prompt(tokenizer, [USER])))
    assert "".join(stream_from(model, tokenizer, "The small", max_new_tokens=12)) == says([*bare, *added]) != says(bare)
    assert "".join(stream_from(model, tokenizer, [USER], max_new_tokens=12)) == says(talk) != says([*talk, *added])


def test_a_reader_who_leaves_early_leaves_no_thread(tiny, engine):
    before = threading.active_count()
    pieces = stream_from(*tiny, "The small", max_new_tokens=1500)
    next(pieces)
    pieces.close()
    assert threading.active_count() == before


def test_a_failure_in_the_thread_is_told(tiny, monkeypatch):
    model, tokenizer = tiny
    monkeypatch.setattr(type(model), "generate", lambda *a, **k: 1 / 0)
    monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    before = threading.active_count()
    with pytest.raises(QloraError, match="generation failed: division by zero"):
        list(stream_from(model, tokenizer, "The small"))
    assert threading.active_count() == before


def test_the_same_seed_samples_the_same_text(tiny, engine):
    texts = ["".join(stream_from(*tiny, "A", max_new_tokens=10, temperature=1.0, seed=s)) for s in (3, 3, 4)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("settings", [{}, {"top_k": 5}, {"top_p": 0.4, "top_k": 0}, {"min_p": 0.02}])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_tokens_are_sampled_as_generate_samples_them(tiny, monkeypatch, settings, temperature):
    model, tokenizer = tiny
    for key, value in settings.items():
        monkeypatch.setattr(model.generation_config, key, value)
    texts = []
    for _ in range(2):
        texts.append("".join(stream_from(model, tokenizer, "The", max_new_tokens=25, temperature=temperature, seed=1)))
        monkeypatch.setattr("qlora_lib.generation.fast_decoder", lambda *_: None)
    assert texts[0] == texts[1]


def test_ways_of_sampling_that_are_not_ours_are_left_to_transformers(tiny, monkeypatch):
    monkeypatch.setattr(tiny[0].generation_config, "typical_p", 0.5)
    assert chooser(tiny[0].generation_config, 1.0, 0) is None
    assert chooser(tiny[0].generation_config, 0.0, 0) is not None


def test_letters_of_several_tokens_come_out_whole(tiny):
    """One token is one byte here: what is not yet a letter is held back."""
    tokenizer = tiny[1]
    ids = tokenizer("a\N{GREEK SMALL LETTER ALPHA}\N{SNOWMAN}b", add_special_tokens=False)["input_ids"]
    assert len(ids) == 7
    pieces = list(_pieces(tokenizer, iter(ids)))
    assert pieces == ["a", "\N{GREEK SMALL LETTER ALPHA}", "\N{SNOWMAN}", "b"]
    assert "".join(_pieces(tokenizer, iter(ids[:2]))) == "a\N{REPLACEMENT CHARACTER}"


def test_the_end_of_text_ends_it(tiny, engine):
    model, tokenizer = tiny
    first = "".join(stream_from(model, tokenizer, "The small", max_new_tokens=6))
    token = tokenizer(first, add_special_tokens=False)["input_ids"][3]
    before = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = token
    try:
        text = "".join(stream_from(model, tokenizer, "The small", max_new_tokens=6))
    finally:
        model.generation_config.eos_token_id = before
    assert first.startswith(text.rstrip(tokenizer.decode([token]))) and len(text) < len(first)


# --- chats


def test_a_chat_is_what_the_template_makes_of_it(tiny, engine):
    model, tokenizer = tiny
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}, {"role": "user", "content": "The small"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text.count("assistant: ") == 2
    answers = ["".join(stream_from(model, tokenizer, p, max_new_tokens=8)) for p in (messages, text)]
    assert answers[0] == answers[1]


def test_a_template_that_refuses_is_told(tiny):
    import copy

    tokenizer = copy.copy(tiny[1])
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(UsageError, match="refuses these messages: System role not supported") as e:
        chat_prompt(tokenizer, [{"role": "user", "content": "Hi"}])
    assert "\n" not in str(e.value)


REFUSES = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
)


@pytest.mark.parametrize("template", ["its own", None, REFUSES])
def test_a_chat_is_asked_as_training_asks_it(tiny, template):
    """Also by a model without a template, and by one that refuses a system message."""
    import copy

    from qlora_lib.tasks.chat import Example, Message, prompt_ids

    tokenizer = copy.copy(tiny[1])
    if template != "its own":
        tokenizer.chat_template = template
    messages = Message("system", "Be brief."), Message("user", "Hi")
    trained = prompt_ids(Example("x", (*messages, Message("assistant", "Hello"))), tokenizer)
    asked = chat_prompt(tokenizer, [{"role": m.role, "content": m.content} for m in messages])
    assert tokenizer(asked, add_special_tokens=False).input_ids == trained
    assert "Be brief." in asked


def test_the_context_of_the_model(tiny, engine, monkeypatch, capsys):
    model, tokenizer = tiny
    monkeypatch.setattr(model.config, "max_position_embeddings", 20)
    for length in (20, 21):
        with pytest.raises(UsageError, match=f"the prompt has {length} tokens, and the context of this model is 20"):
            list(stream_from(model, tokenizer, "a" * length))
    text = "".join(stream_from(model, tokenizer, "a" * 17, max_new_tokens=50))
    assert len(tokenizer(text).input_ids) <= 3 and "context of 20 has room for 3" in capsys.readouterr().err
    with pytest.raises(UsageError, match="no tokens"):
        list(stream_from(model, tokenizer, ""))


USER, ANSWER, SYSTEM = ({"role": r, "content": r[0].upper()} for r in ("user", "assistant", "system"))
LINES = "\n".join


@pytest.mark.parametrize("text, chats", [
    (json.dumps([USER, ANSWER, USER]), [[USER, ANSWER, USER]]),
    (json.dumps([USER, ANSWER, USER], indent=1), [[USER, ANSWER, USER]]),
    (LINES(map(json.dumps, [SYSTEM, USER])), [[SYSTEM, USER]]),
    (json.dumps(USER), [[USER]]),
    (json.dumps({"messages": [USER, ANSWER]}, indent=1), [[USER]]),
    (LINES([json.dumps({"messages": [USER, ANSWER, USER, ANSWER]}), "", json.dumps({"messages": [USER], "more": 1})]), [[USER, ANSWER, USER], [USER]]),
    (json.dumps([{"messages": [USER]}, {"messages": [SYSTEM, USER]}]), [[USER], [SYSTEM, USER]]),
])  # fmt: skip
def test_files_of_messages(tmp_path, text, chats):
    (tmp_path / "m.jsonl").write_text(text)
    assert read_chats(str(tmp_path / "m.jsonl")) == chats


@pytest.mark.parametrize("text, said", [
    ("", "holds no chat"), ("[]", "holds no chat"), ("{", "are no JSON"), ('"hi"', "message 1 of .* is none"),
    (json.dumps({"role": "user"}), "message 1 of"), (json.dumps([USER, {"role": "boss", "content": "x"}]), "message 2 of"),
    (json.dumps([SYSTEM]), "does not end with a message of the user's"), (json.dumps([ANSWER]), "does not end"),
    (json.dumps([USER | {"content": " "}]), "that says something"), (json.dumps([[USER]]), "is none"),
    (LINES([json.dumps({"messages": [USER]}), json.dumps(USER)]), "mixed"),
    (LINES([json.dumps({"messages": [USER]}), json.dumps({"messages": []})]), "chat 2 does not end"),
])  # fmt: skip
def test_what_is_no_chat_is_one_line(tmp_path, text, said):
    (tmp_path / "m.jsonl").write_text(text)
    with pytest.raises(UsageError, match=said) as e:
        read_chats(str(tmp_path / "m.jsonl"))
    assert "\n" not in str(e.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_chats(str(tmp_path / "nowhere.jsonl"))


def test_a_system_message_takes_the_place_of_the_chats_own():
    mine = {"role": "system", "content": "mine"}
    assert with_system([SYSTEM, USER], "mine") == with_system([USER], "mine") == [mine, USER]
    assert with_system([SYSTEM, USER], None) == [SYSTEM, USER]


# --- two answers side by side

TEXT = st.text(st.sampled_from("ab cd\n\N{SNOWMAN}\N{CJK UNIFIED IDEOGRAPH-6771}e\N{COMBINING ACUTE ACCENT}"), max_size=80)


@given(TEXT, st.integers(2, 15), st.randoms())
def test_lines_fit_and_lose_nothing(text, width, random):
    cuts = sorted(random.randrange(len(text) + 1) for _ in range(3))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
    lines = list(wrapped(pieces, width))
    assert all(cells(line) <= width for line in lines)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert lines == list(wrapped([text], width))  # however it comes


def test_columns_stand_beside_each_other():
    shown = list(columns("one two three four\nfive", ["six ", "seven eight\n", "nine"], 27))
    assert shown == ["one two      | six seven", "three four   | eight", "five         | nine"]
    assert list(columns("a\nb", ["x"], 23)) == ["a          | x", "b          |"]
    with pytest.raises(QloraError, match="two columns need 23"):
        list(columns("a", ["b"], 20))


@pytest.fixture(scope="module")
def two_adapters(tmp_path_factory):
    """Folders of two adapters that change the text."""
    folders = []
    for seed in (1, 2):
        model = models.attach_lora(tiny_helpers.base(), Lora(rank=4), seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for name, p in model.named_parameters():
                if "lora_B" in name:
                    p.normal_(0, 0.5)
        folders.append(tmp_path_factory.mktemp(f"adapter-{seed}"))
        models.save_adapter(model, folders[-1])
    return folders


def qlora(*args, typed=None):
    """(result, standard output) of a command."""
    result = CliRunner().invoke(cli, ["generate", "--model", "tiny-random", "--max-new-tokens", "12", *map(str, args)], input=typed)
    return result, result.stdout


def alone(folder, prompt="The small") -> str:
    model = tiny_helpers.base()
    if folder is not None:
        model = models.load_adapter(model, folder).eval()
    return "".join(stream_from(model, models.load_tokenizer(tiny_helpers.folder()), prompt, max_new_tokens=12))


def test_two_sides_say_what_each_says_alone(two_adapters):
    first, second = two_adapters
    _, out = qlora("--adapter", first, "--compare", second, "--prompt", "The small", "--json")
    shown = json.loads(out)
    assert shown["texts"] == [alone(first), alone(second)] and shown["adapters"] == [str(first), str(second)]
    assert len({*shown["texts"], alone(None)}) == 3
    _, out = qlora("--adapter", first, "--compare", "base", "--prompt", "The small")
    assert out == f"--- {first}\n{alone(first)}\n--- base\n{alone(None)}\n"
    _, out = qlora("--adapter", second, "--prompt", "The small", "--json")
    assert json.loads(out) == {"model": "tiny-random", "prompt": "The small", "text": alone(second)}


def test_chats_from_a_file(two_adapters, tmp_path):
    (tmp_path / "m.jsonl").write_text(LINES([json.dumps({"messages": [USER, ANSWER]}), json.dumps({"messages": [USER, ANSWER, USER]})]))
    _, out = qlora("--messages", tmp_path / "m.jsonl", "--system", "Be brief", "--json", "--adapter", two_adapters[0])
    system = {"role": "system", "content": "Be brief"}
    chats = [[system, USER], [system, USER, ANSWER, USER]]
    assert json.loads(out)["answers"] == [{"messages": c, "text": alone(two_adapters[0], c)} for c in chats]
    _, out = qlora("--messages", "-", typed=json.dumps([USER]))
    assert out == alone(None, [USER]) + "\n"


def test_a_talk_remembers_what_was_said():
    result, out = qlora("--interactive", "--system", "Be", typed="The small\n\nA\n/reset\nThe small\n/quit\nnot read")
    system, first, second = {"role": "system", "content": "Be"}, {"role": "user", "content": "The small"}, {"role": "user", "content": "A"}
    said = alone(None, [system, first])
    then = alone(None, [system, first, {"role": "assistant", "content": said}, second])
    assert result.exit_code == 0 and out == f"{said}\n{then}\n{said}\n"


def test_a_talk_that_grows_too_long_begins_anew():
    result, out = qlora("--interactive", typed=f"Hi\n{'x' * 2100}\nHi\n")
    said = alone(None, [{"role": "user", "content": "Hi"}])
    assert result.exit_code == 0 and out == f"{said}\n{said}\n"
    assert "tokens, and the context of this model is 2048" in result.stderr and "begins anew" in result.stderr


@pytest.mark.parametrize("args, said", [
    ([], "give one of --prompt, --messages, --interactive"),
    (["--prompt", "a", "--interactive"], "give one of"),
    (["--interactive", "--json"], "--interactive has no --json"),
    (["--prompt", "a", "--compare", "base"], "needs an --adapter"),
    (["--prompt", "a", "--compare", "nowhere"], "no folder nowhere"),
    (["--prompt", "a" * 2048], "the prompt has 2048 tokens"),
    (["--prompt", " "], "the prompt is empty"),
])  # fmt: skip
def test_what_does_not_go_together(args, said):
    result, _ = qlora(*args)
    shown = f"{result.stderr} {result.exception}"
    assert result.exit_code != 0 and said in shown


def test_an_empty_answer_is_noted(capsys):
    empty_note("")
    assert "is empty: the model ended it at once" in capsys.readouterr().err
    empty_note(" \n")
    assert "nothing but white space" in capsys.readouterr().err
    empty_note("x")
    assert capsys.readouterr().err == ""
