"""Exercises of notebook 06: right answers by other ways than the library's, wrong ones as they are made."""

import pytest
import torch

from exercising import accepted, rejected
from qlora_lib.course.benches import operations_allow, ratio, read_benches
from qlora_lib.course.exercises.inference import EXERCISES
from qlora_lib.course.token_time import draw_token_time

WEIGHTS, EMBEDDING = 8_030_261_248, 128_256 * 4096


LINEAR, HEAD, ADAPTER = 106_168_320, 4 * 49_152 * 576, 4 * 4_884_480  # weights; bytes
RIGHT = [
    ("06.1", 128), ("06.3", 1008 / (2 * 7.504924672)), ("06.3", 67.2), ("06.5", 74_076), ("06.5", 74_000),
    ("06.6", 25e9 / (LINEAR * 4.5 / 8 + ADAPTER + HEAD)), ("06.6", 129.9),
]  # fmt: skip
WRONG = [
    ("06.1", 2 * 32 * 32 * 128 * 2 / 1024, "The query heads were counted"),
    ("06.1", 32 * 8 * 128 * 2 / 1024, "Keys without values"),
    ("06.1", 2 * 8 * 128 * 2 / 1024, "One layer was counted"),
    ("06.1", 2 * 32 * 8 * 128 * 4 / 1024, "Numbers of 32 bits"),
    ("06.1", 2 * 32 * 128 * 2 / 1024, "One head was counted"),
    ("06.1", 131.072, "A KiB is 1,024 bytes"),
    ("06.3", 1008e9 / (2 * WEIGHTS), "The embedding was read whole"),
    ("06.3", 1008e9 / (2 * (WEIGHTS - 2 * EMBEDDING)), "Neither embedding nor head"),
    ("06.3", 1008e9 / (4 * (WEIGHTS - EMBEDDING)), "Numbers of 32 bits"),
    ("06.3", 1008e9 / (16 * (WEIGHTS - EMBEDDING)), "Bits were taken for bytes"),
    ("06.5", 24 * 2**30 / 131_072, "The weights were forgotten"),
    ("06.5", (24e9 - 2 * WEIGHTS) / 131_072, "A GiB is 2^30 bytes"),
    ("06.5", (24 * 2**30 - 2 * WEIGHTS) / (4 * 131_072), "The query heads were counted"),
    ("06.5", (24 * 2**30 - 2 * WEIGHTS) / 65_536, "Keys without values"),
    ("06.6", 25e9 / (LINEAR * 4.5 / 8 + ADAPTER), "The head was left out"),
    ("06.6", 25e9 / (LINEAR * 4.5 / 8 + ADAPTER + 2 * HEAD), "The tied matrix was read twice"),
    ("06.6", 25e9 / (LINEAR * 4.5 / 8 + ADAPTER + 49_152 * 576 / 2), "The head was taken in four bits"),
    ("06.6", 25e9 / (LINEAR / 2 + ADAPTER + HEAD), "The scales were forgotten"),
    ("06.6", 25e9 / (LINEAR * (4 + 8 / 64) / 8 + ADAPTER + HEAD), "The scales were taken in 8 bits"),
    ("06.6", 25e9 / (LINEAR * 4.5 / 8 + HEAD), "The adapter was forgotten"),
    ("06.6", 25e9 / (LINEAR * 4 + ADAPTER + HEAD), "The weights were read in 32 bits"),
]


@pytest.mark.parametrize("key, answer", RIGHT)
def test_right_numbers(key, answer):
    accepted(key, answer)


@pytest.mark.parametrize("key, answer, said", WRONG)
def test_wrong_numbers_are_named(key, answer, said):
    rejected(key, answer, said)


def counted(prompt, new):
    """Decode for real, with a model that counts what it is given."""
    seen = [0, 0]
    for which, cached in ((0, True), (1, False)):
        text = [0] * prompt
        step = text
        for _ in range(new):
            seen[which] += len(step)
            text = text + [1]
            step = text[-1:] if cached else text
    return seen


def puts_the_last_through(prompt, new):
    return [prompt + new, sum(range(prompt, prompt + new))]


def whole_text_each_time(prompt, new):
    return [prompt + new - 1, new * (prompt + new)]


def only_the_prompt(prompt, new):
    return [prompt + new - 1, prompt * new]


def only_new_tokens(prompt, new):
    return [new, sum(range(prompt, prompt + new))]


def test_tokens_through_the_model():
    accepted("06.2", counted)
    accepted("06.2", lambda p, n: torch.tensor(counted(p, n)))
    rejected("06.2", puts_the_last_through, "The last token was put through")
    rejected("06.2", whole_text_each_time, "Without a cache every pass was given the whole text")
    rejected("06.2", only_the_prompt, "The text was not let grow")
    rejected("06.2", only_new_tokens, "The prompt was forgotten")
    rejected("06.2", lambda p, n: counted(p, n)[::-1], "The two were swapped")


def faster(seconds, times):
    new = 0.0
    for part, by in zip(seconds, times):
        new += part / by
    return sum(seconds) / new


def mean_factor(seconds, times):
    return sum(times) / len(times)


def factors_by_share(seconds, times):
    whole = sum(seconds)
    return sum(s / whole * t for s, t in zip(seconds, times))


def one_after_the_other(seconds, times):
    result = 1.0
    for by in times:
        result *= by
    return result


def test_what_a_remedy_is_worth():
    accepted("06.7", faster)
    accepted("06.7", lambda s, t: float(torch.tensor(s).sum() / (torch.tensor(s) / torch.tensor(t)).sum()))
    rejected("06.7", mean_factor, "The factors were averaged. ")
    rejected("06.7", factors_by_share, "The factors were averaged by their shares")
    rejected("06.7", one_after_the_other, "The factors were multiplied")
    rejected("06.7", lambda s, t: max(t), "The largest factor was taken")
    rejected("06.7", lambda s, t: 1 / faster(s, t), "New time over old")
    rejected("06.7", lambda s, t: sum(a / b for a, b in zip(s, t)), "The new time was returned")


def test_why_four_bits_can_be_slower():
    accepted("06.4", "weights are written out")
    rejected("06.4", "4-bit products are slow", "Not “4-bit products are slow”: there are none")
    rejected("06.4", "the cache grows", "Not “the cache grows”")
    rejected("06.4", "double quantization reads more", "Not “double quantization reads more”")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)


def test_the_time_of_a_token_is_drawn_beside_what_its_bytes_take():
    causes = {"memory traffic": 0.02, "dequantization": 0.04, "adapter": 0.005, "the rest": 0.05}
    ways = {"a, b": causes, "c": {"one compiled call": 0.025}}
    figure, alt = draw_token_time(ways, {"a, b": 0.013, "c": 0.013})
    axes = figure.axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(140)
    assert [line.get_xdata()[0] for line in axes.lines] == [13.0, 13.0]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [*causes, "one compiled call", "bytes over bandwidth"]
    assert "a, b 115 ms, its bytes alone 13" in alt and "c 25" in alt


def test_records_of_bench_that_are_absent_are_no_error(tmp_path):
    assert read_benches(tmp_path) == {}
    assert ratio(None, "training.4x128.stock.qlora_over_full") is None and operations_allow(None, "4x128") is None
