"""Exercises of notebook 10: right answers by other ways than the library's, wrong ones as they are made; and its pictures."""

import pytest
import torch

from exercising import accepted, rejected
from qlora_lib.assets import resolve_model
from qlora_lib.config import Quantization, load_profile
from qlora_lib.course.deploying import deployments, draw_kept, kept_share, response_loss, through_four_bits, trained_adapter
from qlora_lib.course.exercises.instructions import EXERCISES
from qlora_lib.course.instructing import draw_batches, instruction_arm, show_tokens
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.lora import dequantized
from qlora_lib.models import attach_lora, load_base, load_tokenizer
from qlora_lib.tasks.chat import IGNORED, Encoded, encode
from qlora_lib.tasks.load import load_task


# NF4’s level next above 0
SECOND = 0.07958029955625534  # as bitsandbytes prints it
RIGHT = [("10.1", 47), ("10.5", 1.5), ("10.6", 1e3 * 0.08 * SECOND / 2), ("10.6", 3.184)]
WRONG = [
    ("10.1", 45, "The ends were forgotten"),
    ("10.1", 31, "Only the last answer"),
    ("10.1", 53, "The opening of the turn"),
    ("10.1", 49, "The line break behind the end"),
    ("10.1", 77, "The questions were counted"),
    ("10.1", 12 + 20 + 15 + 10 + 30 + 5 * 5, "Every token of the chat"),
    ("10.5", (1560 - 1000) / (1040 - 1000), "Padding was compared"),
    ("10.5", 8 * 210 / 1040, "The unordered rows were all padded"),
    ("10.5", 1560 / 1000, "The ordered batches were taken"),
    ("10.5", 1040 / 1560, "The two were swapped"),
    ("10.5", 1 - 1040 / 1560, "The saved share"),
    ("10.6", 1e3 * 0.08 * SECOND, "The whole gap"),
    ("10.6", 1e3 * SECOND / 2, "The scale was forgotten"),
    ("10.6", 1e3 * 0.08 / 7 / 2, "Levels at equal distances"),
    ("10.6", 1e3 * 0.08 * 0.09105003625154495 / 2, "The gap below 0"),
]


@pytest.mark.parametrize("key, answer", RIGHT)
def test_right_numbers(key, answer):
    accepted(key, answer)


@pytest.mark.parametrize("key, answer, said", WRONG)
def test_wrong_numbers_are_named(key, answer, said):
    rejected(key, answer, said)


def by_loop(ids, starts, end):
    labels, on = [], False
    for i, token in enumerate(ids):
        on = on or i in starts
        labels.append(token if on else -100)
        on = on and token != end
    return labels


def stops_before_the_end(ids, starts, end):
    return [-100 if token == end else label for token, label in zip(ids, by_loop(ids, starts, end))]


def from_the_first_start(ids, starts, end):
    return [-100] * starts[0] + list(ids[starts[0] :])


def last_only(ids, starts, end):
    return by_loop(ids, [max(starts)], end)


def shifted(ids, starts, end):
    return by_loop(ids, starts, end)[1:] + [-100]


def zeros(ids, starts, end):
    return [0 if x == -100 else x for x in by_loop(ids, starts, end)]


def swapped(ids, starts, end):
    return [t if x == -100 else -100 for t, x in zip(ids, by_loop(ids, starts, end))]


def every_end(ids, starts, end):
    return [t if t == end else x for t, x in zip(ids, by_loop(ids, starts, end))]


def test_the_label_mask():
    accepted("10.2", by_loop)
    accepted("10.2", lambda ids, starts, end: torch.tensor(by_loop(ids, starts, end)))
    rejected("10.2", stops_before_the_end, "The end of the answer is not learned")
    rejected("10.2", from_the_first_start, "All that follows the first start")
    rejected("10.2", last_only, "Only the last answer")
    rejected("10.2", shifted, "The labels are shifted")
    rejected("10.2", zeros, "The mask is made of zeros")
    rejected("10.2", swapped, "Prompt and answer were swapped")
    rejected("10.2", every_end, "Every end is learned")


def test_the_label_mask_is_that_of_training():
    """The exercise's rule gives the labels that the library trains with."""
    tokenizer = load_tokenizer(resolve_model("tiny-random").path)
    for example in load_task("tiny-instructions").splits["train"][:5]:
        e = encode(example, tokenizer)
        assert by_loop(e.ids, [e.prompt_length], tokenizer.eos_token_id) == e.labels


def fates(prompts, responses, limit):
    found = [0, 0, 0]
    for prompt, response in zip(prompts, responses):
        left = max(0, min(response, limit - prompt))
        found[0 if left == response else 1 if left else 2] += 1
    return found


def below_the_limit(prompts, responses, limit):
    rows = list(zip(prompts, responses))
    fit, lost = sum(p + r < limit for p, r in rows), sum(p >= limit for p, _ in rows)
    return fit, len(rows) - fit - lost, lost


def test_what_cutting_would_have_done():
    accepted("10.4", fates)
    rejected("10.4", lambda p, r, n: list(below_the_limit(p, r, n)), "A row of exactly the limit")
    rejected("10.4", lambda p, r, n: [fates(p, r, n)[0], sum(fates(p, r, n)[1:]), fates(p, r, n)[2]], "Lost rows were counted")
    rejected("10.4", lambda p, r, n: [sum(b <= n for b in r), sum(b > n for b in r), 0], "The prompt was not counted")
    rejected("10.4", lambda p, r, n: [fates(p, r, n)[i] for i in (0, 2, 1)], "The last two were swapped")


@pytest.mark.parametrize(
    "key, right, wrong",
    [
        ("10.3", "padding is the end's token", ["the rank is too small", "too few steps", "four bits"]),
        ("10.7", "adapter beside the 4-bit base", ["onto the dequantized, quantized again", "onto the original, 16 bits", "onto the original, quantized again"]),
    ],
)  # fmt: skip
def test_choices(key, right, wrong):
    accepted(key, right)
    for answer in wrong:
        rejected(key, answer, f"Not “{answer}”: ")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)


# --- pictures of tokens and batches ----------------------------------------------------------------


class Letters:
    """One token a character."""

    def decode(self, ids, **_):
        return "".join(map(chr, ids))


def test_tokens_are_escaped_and_told_apart_twice():
    ids = [ord(c) for c in "<b>\ny\N{REPLACEMENT CHARACTER}"]
    shown = show_tokens(ids, [IGNORED] * 4 + ids[4:], Letters())
    assert "<b>" not in shown.html and "&lt;" in shown.html and "↵" in shown.html
    assert shown.html.count("border-bottom") == 3  # two tokens and the legend: ground and underline, not colour alone
    assert shown.text == "<b>\n[y][▯]" and "2 of 6 tokens" in shown.html


def test_batches_are_drawn_with_their_padding():
    examples = [Encoded([0] * n, [IGNORED] * 2 + [0] * (n - 2), 2) for n in (4, 10, 4, 10)]
    figure, alt = draw_batches(examples, {"mixed": [0, 1, 2, 3], "ordered": [0, 2, 1, 3]}, batch_size=2)
    assert "mixed: 30% of the positions" in alt and "ordered: 0% of" in alt  # 12 of 40
    widths = [sum(bar.get_width() for bar in axes.patches) for axes in figure.axes]
    assert widths == [40, 28]


def test_the_arm_of_the_lesson():
    assert instruction_arm(load_profile("demo"))[0] == instruction_arm(load_profile("smoke"))[0] == "task-instructions"
    assert instruction_arm(load_profile("rtx3070-tinyllama-dolly"))[1].data.name == "dolly-15k"
    with pytest.raises(UsageError, match="no arm that is tuned on instructions"):
        instruction_arm(load_profile("demo").model_copy(update={"arms": []}))


# --- ways to deploy --------------------------------------------------------------------------------

NF4 = Quantization(format="nf4")


def test_what_quantizing_again_keeps():
    """Products far below half a gap: on a level nothing is left, between levels all of it on average."""
    assert abs(kept_share(0.003, on_levels=True)) < 0.1
    assert kept_share(0.01, on_levels=False) == pytest.approx(1, abs=0.15)
    assert kept_share(1.0, on_levels=True) == pytest.approx(1, abs=0.05)
    _, alt = draw_kept({"onto the original": [(0.01, 0.9), (0.02, 1.0)]})
    assert "Onto the original the layers of this model keep 90% to 100%." in alt


@pytest.fixture(scope="module")
def tuned():
    """(a 4-bit tiny model with an adapter of small random matrices, the same model plain)."""
    path = resolve_model("tiny-random").path
    adapted = attach_lora(load_base(path, NF4, torch.float32, "cpu"), load_profile("smoke").lora, seed=0)
    g = torch.Generator().manual_seed(0)
    for name, p in adapted.named_parameters():
        if "lora_B" in name:
            p.data = 0.01 * torch.randn(p.shape, generator=g)
    return adapted.eval(), load_base(path, Quantization(), torch.float32, "cpu")


def test_the_ways_are_what_their_names_say(tuned):
    adapted, plain = tuned
    tokenizer = load_tokenizer(resolve_model("tiny-random").path)
    examples = [encode(e, tokenizer) for e in load_task("tiny-instructions").splits["test"][:3]]
    layer = adapted.get_submodule("base_model.model.model.layers.0.mlp.up_proj")
    product = layer.get_delta_weight("default").detach()
    original = plain.model.layers[0].mlp.up_proj.weight.detach().clone()
    stood = dequantized(layer.base_layer).detach()
    loss, weights = {}, {}
    for way in deployments(adapted, plain, NF4):
        loss[way.name] = response_loss(way.model, examples)
        weights[way.name] = way.model.model.layers[0].mlp.up_proj.weight.detach().clone()
        assert bool(way.kept) == way.again
    torch.testing.assert_close(weights["merged onto the original"], original + product)
    torch.testing.assert_close(weights["merged onto the dequantized"], stood + product)
    torch.testing.assert_close(weights["merged onto the dequantized, quantized again"], through_four_bits(stood + product, NF4))
    assert loss["merged onto the dequantized"] == pytest.approx(response_loss(adapted, examples), abs=1e-5)
    with torch.no_grad():  # transformers' own loss of one example
        batch = {"input_ids": torch.tensor([examples[0].ids]), "labels": torch.tensor([examples[0].labels])}
        assert response_loss(adapted, examples[:1]) == pytest.approx(float(adapted(**batch).loss), abs=1e-5)


def test_only_four_bits_have_these_ways(tuned):
    with pytest.raises(QloraError, match="the base is in 'int8'"):
        next(deployments(*tuned, Quantization(format="int8")))


def test_an_adapter_is_the_records_own_or_none(tmp_path, monkeypatch):
    from example_records import example_records

    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    record = example_records("smoke")["qlora"]
    folder = tmp_path / "smoke" / "qlora"
    assert trained_adapter("smoke", None) is None and trained_adapter("smoke", record) is None
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_model.safetensors").touch()
    assert trained_adapter("smoke", record) is None  # whose it is is not known
    record.write(folder)
    assert trained_adapter("smoke", record) == folder / "adapter"
    other = record.model_copy(update={"provenance": record.provenance.model_copy(update={"cache_key": "another"})})
    assert trained_adapter("smoke", other) is None
