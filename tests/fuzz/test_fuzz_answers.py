"""Hostile texts and numbers to a model that is really loaded."""

from hostile import TEXTS, as_json, inputs, spoiled
from hypothesis import example, given
from hypothesis import strategies as st

SPEECH = st.sampled_from([t for t in TEXTS if "\0" not in t]) | st.text(
    st.characters(exclude_characters="\0"), max_size=40
)
SAMPLING = st.fixed_dictionaries({}, optional={
    "--temperature": st.sampled_from(("0", "1", "1e-300", "1e-45", "1e38", "1e308", "nan", "inf", "-1")),
    "--seed": st.sampled_from(("0", "1", "4294967295", "4294967296", "-1", "1" + "0" * 40)),
    "--max-new-tokens": st.sampled_from(("1", "2", "0", "-1")), "--dtype": st.sampled_from(("fp32", "bf16", "fp7")), "--system": SPEECH,
    "--quantization": st.sampled_from(("nf4", "int8")),
})  # fmt: skip
CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
]


def words_of(options: dict) -> list[str]:
    return [
        f"{name}={value}"
        for name, value in {"--max-new-tokens": "1", **options}.items()
    ]


@inputs(0.03)
@given(prompt=SPEECH, options=SAMPLING, chat=st.booleans())
@example(prompt="\udcff", options={}, chat=False)
@example(prompt="\udcff", options={}, chat=True)
@example(prompt="x", options={"--temperature": "1e-300"}, chat=False)
@example(prompt="x", options={"--temperature": "1e308"}, chat=False)
@example(prompt="x", options={"--system": "\udcff"}, chat=False)
@example(prompt="x" * 3000, options={}, chat=False)
def test_prompts_and_sampling(loading, count, prompt, options, chat):
    count("answers")
    loading.call(
        "generate",
        "--model",
        "tiny-random",
        f"--prompt={prompt}",
        *words_of(options),
        *(["--chat"] if chat else []),
    )


@inputs(0.02)
@given(
    data=spoiled(CHAT).map(as_json) | spoiled({"messages": CHAT}).map(as_json),
    options=SAMPLING,
)
@example(data=as_json([{"role": "user", "content": "\ud800"}]), options={})
def test_messages(loading, count, data, options):
    (loading.fresh() / "chat.json").write_bytes(data)
    count("answers")
    loading.call(
        "generate",
        "--model",
        "tiny-random",
        "--messages",
        "chat.json",
        "--json",
        *words_of(options),
    )


@inputs(0.015)
@given(
    lines=st.lists(
        SPEECH | st.sampled_from(("/reset", "/quit", "hello", "x" * 3000)), max_size=3
    )
)
@example(lines=["\ud800", "hello"])
def test_talks(loading, count, lines):
    """A refused message is told and the talk goes on: as many error lines as messages that cannot be answered."""
    count("answers")
    with loading.several_errors():
        loading.call(
            "generate",
            "--model",
            "tiny-random",
            "--interactive",
            "--max-new-tokens",
            "1",
            stdin="\n".join(lines),
        )


@inputs(0.015)
@given(
    text=SPEECH,
    context=st.sampled_from(("2", "3", "64", "512", "131073")),
    stride=st.sampled_from(("1", "2", "64")),
    windows=st.sampled_from(("1", "2")),
)
def test_evaluations(loading, count, text, context, stride, windows):
    (loading.fresh() / "a.txt").write_bytes(text.encode("utf-8", "surrogatepass"))
    count("answers")
    loading.call(
        "eval",
        "--model",
        "tiny-random",
        "--data",
        "a.txt",
        "--context",
        context,
        "--stride",
        stride,
        "--windows",
        windows,
        "--json",
    )
