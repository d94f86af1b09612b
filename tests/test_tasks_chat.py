"""What of a chat is learned: the response and its end, under every kind of template; and nothing of the prompt."""

import copy

import pytest
from hypothesis import given, strategies as st

from qlora_lib.errors import QloraError
from qlora_lib.tasks.chat import IGNORED, choice_ids, encode, fit, prompt_ids
from qlora_lib.tasks.examples import Example, Message

# As the publishers have them, cut to what decides the text.
ZEPHYR = (  # TinyLlama-1.1B-Chat
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
    "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
CHATML_WITH_DEFAULT = (  # SmolLM2: a system prompt of its own where none is given
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are helpful<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA = (  # trims, and refuses a system message
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% set role = 'model' if message['role'] == 'assistant' else 'user' %}"
    "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{'<start_of_turn>model\n'}}{% endif %}"
)
LLAMA2 = (  # drops a system message without a word here; a space around the response
    "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<bos>' + '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = (  # empty thoughts before the last response alone
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ message.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"
)
NO_END = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>", "<bos>"]
# template, what is learned after "Hi there" (eos is <|eos|> here)
TEMPLATES = {
    "zephyr": (ZEPHYR, "Hi there<|eos|>"),
    "chatml": (CHATML_WITH_DEFAULT, "Hi there<|im_end|>"),
    "gemma": (GEMMA, "Hi there<end_of_turn>"),
    "llama2": (LLAMA2, " Hi there <|eos|>"),
    "qwen3": (QWEN3, "Hi there<|im_end|>"),
    "no end": (NO_END, "Hi there<|eos|>"),
    "none": (None, "Hi there<|eos|>"),
}


def chat(*contents: str, system: str | None = None, **fields) -> Example:
    roles = ("user", "assistant")
    messages = [Message(roles[i % 2], text) for i, text in enumerate(contents)]
    return Example("1", tuple([Message("system", system)] * (system is not None) + messages), **fields)


@pytest.fixture(params=TEMPLATES)
def templated(request, tiny_tokenizer):
    return with_template(tiny_tokenizer, TEMPLATES[request.param][0]), TEMPLATES[request.param][1]


def with_template(tokenizer, template):
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    tokenizer.chat_template = template
    return tokenizer


def learned(encoded, tokenizer) -> str:
    assert len(encoded.ids) == len(encoded.labels)
    assert all(label in (IGNORED, i) for i, label in zip(encoded.ids, encoded.labels))
    return tokenizer.decode([i for i in encoded.labels if i != IGNORED])


def test_the_response_and_its_end_are_learned(templated):
    tokenizer, end = templated
    example = chat("Say hi", "Hi there")
    encoded = encode(example, tokenizer)
    assert learned(encoded, tokenizer) == end
    assert encoded.labels[: encoded.prompt_length] == [IGNORED] * encoded.prompt_length
    assert IGNORED not in encoded.labels[encoded.prompt_length :]
    assert prompt_ids(example, tokenizer) == encoded.ids[: encoded.prompt_length]


def test_the_prompt_is_what_generation_gives_the_model(templated):
    tokenizer, _ = templated
    if tokenizer.chat_template is None:
        return
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Say hi"}], add_generation_prompt=True, enable_thinking=False, tokenize=False
    )
    assert tokenizer.decode(prompt_ids(chat("Say hi", "Hi there"), tokenizer)) == asked


def test_every_turn_of_the_assistant_is_learned(templated):
    tokenizer, end = templated
    example = chat("One?", "Hi there", "Two?", "Hi there")
    encoded = encode(example, tokenizer)
    if tokenizer.chat_template == NO_END:  # what the template does not end, only the end of the text ends
        end = "Hi thereHi there<|eos|>"
    else:
        end += end
    assert learned(encoded, tokenizer) == end
    assert "Two?" in tokenizer.decode(prompt_ids(example, tokenizer))


def test_a_system_message_stands_in_the_prompt_of_every_template(templated):
    tokenizer, end = templated
    encoded = encode(chat("Say hi", "Hi there", system="Be terse"), tokenizer)
    prompt = tokenizer.decode(encoded.ids[: encoded.prompt_length])
    assert prompt.count("Be terse") == 1 and "Say hi" in prompt and learned(encoded, tokenizer) == end
    empty = encode(chat("Say hi", "Hi there", system=""), tokenizer)
    assert learned(empty, tokenizer) == end


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), st.text(alphabet="aé \n😀'.:", min_size=1, max_size=20))
def test_any_text_comes_back(tiny_tokenizer, prompt, response):
    for plain in (False, True):
        encoded = encode(chat(prompt, response, plain=plain), tiny_tokenizer)
        assert learned(encoded, tiny_tokenizer) == response + "<|eos|>"


def test_trimmed_responses(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, GEMMA)
    assert learned(encode(chat("a", "  b \n"), tokenizer), tokenizer) == "b<end_of_turn>"


def test_the_end_is_learned_where_it_is_also_the_padding(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, ZEPHYR)
    tokenizer.pad_token = tokenizer.eos_token
    encoded = encode(chat("a", "b"), tokenizer)
    assert encoded.labels[-1] == encoded.ids[-1] == tokenizer.eos_token_id


def test_a_response_that_spells_the_end_still_ends(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, CHATML_WITH_DEFAULT)
    assert learned(encode(chat("a", "say <|im_end|> now"), tokenizer), tokenizer) == "say <|im_end|> now<|im_end|>"
    assert learned(encode(chat("a", "b<|eos|>", plain=True), tokenizer), tokenizer) == "b<|eos|><|eos|>"


@pytest.mark.parametrize("messages, said", [
    ((Message("assistant", "Hi"),), "no chat of a user and an assistant"),
    ((Message("user", "Hi"),), "no chat of a user and an assistant"),
    ((Message("user", "a"), Message("user", "b"), Message("assistant", "c")), "must alternate"),
])  # fmt: skip
def test_what_a_template_refuses_is_one_line(tiny_tokenizer, messages, said):
    tokenizer = with_template(tiny_tokenizer, GEMMA)
    with pytest.raises(QloraError, match=said) as e:
        encode(Example("row-7", messages), tokenizer)
    assert "\n" not in str(e.value) and "row-7" in str(e.value)


@pytest.mark.parametrize("template, said", [
    ("{% for m in messages %}{{ m['content'] | upper }}{% endfor %}", "it changes the response"),
    ("{% for m in messages %}{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}{{ '>>>' }}{% endif %}", "is not how it writes"),
    ("{% for m in messages %}{{ m['content'] + ('<|eos|>' if loop.last and m['role'] == 'assistant' else '') }}{% endfor %}", "otherwise than"),
])  # fmt: skip
def test_a_template_that_cannot_be_learned_from_is_one_line(tiny_tokenizer, template, said):
    with pytest.raises(QloraError, match=said):
        encode(chat("a", "b", "c", "d"), with_template(tiny_tokenizer, template))


def test_no_end_of_text_no_learning(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, None)
    tokenizer.eos_token = None
    for plain in (False, True):
        with pytest.raises(QloraError, match="no end-of-text token"):
            encode(chat("a", "b", plain=plain), tokenizer)


def test_a_model_without_template_gets_alpacas(tiny_tokenizer):
    tokenizer = with_template(tiny_tokenizer, None)
    encoded = encode(chat("Say hi", "Hi", "More", "Ho", system="Be terse"), tokenizer)
    assert tokenizer.decode(encoded.ids) == (
        "Be terse\n\n### Instruction:\nSay hi\n\n### Response:\nHi<|eos|>\n\n### Instruction:\nMore\n\n### Response:\nHo<|eos|>"
    )


def test_fit_leaves_out_and_never_cuts(tiny_tokenizer):
    short, long = chat("a", "b"), chat("a", "b" * 100)
    size = len(encode(short, tiny_tokenizer).ids)
    kept, left_out = fit([short, long, short], tiny_tokenizer, size)
    assert kept == [encode(short, tiny_tokenizer)] * 2 and left_out == {f"longer than {size} tokens": 1}
    assert fit([short], tiny_tokenizer, size) == ([encode(short, tiny_tokenizer)], {})
    assert fit([short], tiny_tokenizer, size - 1) == ([], {f"longer than {size - 1} tokens": 1})


def test_choices_follow_the_plain_prompt(tiny_tokenizer):
    example = chat("good film\nAnswer:", " positive", plain=True, choices=(" negative", " positive"))
    assert [tiny_tokenizer.decode(c) for c in choice_ids(example, tiny_tokenizer)] == [" negative", " positive"]
    prompt = prompt_ids(example, tiny_tokenizer)
    assert tiny_tokenizer.decode(prompt) == "good film\nAnswer:"
    assert encode(example, tiny_tokenizer).ids == [*prompt, *choice_ids(example, tiny_tokenizer)[1], tiny_tokenizer.eos_token_id]


# --- a tokenizer with merges ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def merging():
    """Byte-level BPE that knows a few merges across words, as real ones do within them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ċ", "Ċ"), ("Ġ", "H"), ("ĠH", "i"), ("Ġ", "p")]
    vocab = {t: i for i, t in enumerate(["<|eos|>", *alphabet, *("".join(m) for m in merges)])}
    bpe = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|eos|>", clean_up_tokenization_spaces=False)


def test_a_token_across_the_cut_is_parted_where_generation_parts_it(merging):
    merging.chat_template = NO_END
    example = chat("x", "Hi")  # "assistant: " + "Hi" would end in the token " Hi"
    encoded = encode(example, merging)
    assert prompt_ids(example, merging) == encoded.ids[: encoded.prompt_length]
    assert merging.decode(encoded.ids) == "user: x\nassistant: Hi<|eos|>"
    assert learned(encoded, merging) == "Hi<|eos|>"
    merging.chat_template = None
    assert learned(encode(chat("x", "\nHi"), merging), merging) == "\nHi<|eos|>"


# --- the default model ------------------------------------------------------------------------------


@pytest.mark.demo
def test_the_default_models_own_template():
    from qlora_lib.assets import resolve_model
    from qlora_lib.models import load_tokenizer

    tokenizer = load_tokenizer(resolve_model("smollm2-135m").path)

    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40), st.text(alphabet="ab é\n😀'.:漢", max_size=20))
    def comes_back(prompt, response):
        encoded = encode(chat(prompt, response), tokenizer)
        assert learned(encoded, tokenizer) == response + "<|im_end|>"
        assert prompt_ids(chat(prompt, response), tokenizer) == encoded.ids[: encoded.prompt_length]

    comes_back()
    encoded = encode(chat("One?", "Hi there", "Two?", "Ho"), tokenizer)
    assert learned(encoded, tokenizer) == "Hi there<|im_end|>Ho<|im_end|>"
    prompt = tokenizer.decode(encoded.ids[: encoded.prompt_length])
    assert prompt.startswith("<|im_start|>system\nYou are a helpful AI assistant")  # its own, where none is given
    assert prompt.endswith("<|im_start|>user\nTwo?<|im_end|>\n<|im_start|>assistant\n")
    asked = [{"role": r, "content": c} for r, c in (("user", "One?"), ("assistant", "Hi there"), ("user", "Two?"))]
    assert encoded.ids[: encoded.prompt_length] == tokenizer.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    review = chat("a gripping film\nAnswer:", " positive", plain=True, choices=(" negative", " positive"))
    assert choice_ids(review, tokenizer) == [tokenizer(c).input_ids for c in (" negative", " positive")]
    assert [len(c) for c in choice_ids(review, tokenizer)] == [1, 1]
