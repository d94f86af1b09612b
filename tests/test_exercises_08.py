"""Exercises of notebook 08: right answers by other ways than the library's, wrong ones as they are made; its pictures."""

import math
import statistics

import pytest
import torch

from exercising import accepted, rejected
from qlora_lib.cost import Workload, shape_of
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.fitting import fit
from qlora_lib.course import planning
from qlora_lib.course.exercises.planning import AS_IT_IS, CARD, EXERCISES, steps
from qlora_lib.validation.published_gpu import compare_all
from qlora_lib.validation.record import committed_validation

PARAMETERS, GIB = 1_100_048_384, 2**30
TABLE = 128_256 * 4096  # Llama-3.1-8B's embedding, and its head

RIGHT = [
    ("08.1", 16.392), ("08.1", PARAMETERS * 4 * 4 / GIB), ("08.2", 1.957), ("08.2", TABLE * 4 / 2**30),
    ("08.7", 203), ("08.7", 203.125), ("08.8", 0.61), ("08.8", 732.42 * 6 / 3600 / 2),
]  # fmt: skip
WRONG = [
    ("08.1", PARAMETERS * (4 + 4) / GIB, "The optimizer's averages were forgotten"),
    ("08.1", PARAMETERS * (2 + 2 + 4 + 4) / GIB, "Twelve bytes were counted"),
    ("08.1", PARAMETERS * 4 / GIB, "The weights alone"),
    ("08.1", PARAMETERS * (2 + 4 + 4 + 8) / GIB, "A copy in 16 bits"),
    ("08.1", 17.6, "A GiB is 2^30 bytes"),
    ("08.2", 2 * TABLE * 4 / GIB, "All their bytes were counted"),
    ("08.2", TABLE * 2 / GIB, "One of the two was counted"),
    ("08.2", 8_030_261_248 * 2 / GIB, "Every weight was cast"),
    ("08.2", 2.101, "A GiB is 2^30 bytes"),
    ("08.7", 65e12 / 320e9 * 2, "A weight was given one operation"),
    ("08.7", 65e12 / 320e9 / 3, "A weight was given six operations"),
    ("08.7", 8.1e12 / 320e9, "The fp32 peak was taken"),
    ("08.7", 65e12 / 320e9 / 2, "A weight was given one byte"),
    ("08.7", 16 * 65e12 / 320e9 / 2, "Bits were taken for bytes"),
    ("08.7", 320e9 / 65e12, "Bandwidth over peak"),
    ("08.8", 12e6 / (4 * 512) * 6 / 3600 * 0.5, "Accumulation was forgotten"),
    ("08.8", 12e6 / (8 * 512) * 6 / 3600 * 0.5, "The micro-batch was forgotten"),
    ("08.8", 4e6 / 16_384 * 6 / 3600 * 0.5, "One epoch was counted"),
    ("08.8", 12e6 / 32 * 6 / 3600 * 0.5, "The length was forgotten"),
    ("08.8", 12e6 / 16_384 * 6 / 60 * 0.5, "The price was paid by the minute"),
    ("08.8", 12e6 / 16_384 * 6 / 3600, "Hours were returned"),
]


@pytest.mark.parametrize("key, answer", RIGHT)
def test_right_numbers(key, answer):
    accepted(key, answer)


@pytest.mark.parametrize("key, answer, said", WRONG)
def test_wrong_numbers_are_named(key, answer, said):
    rejected(key, answer, said)


# --- 08.3 ------------------------------------------------------------------------------------------


def by_tensors(predicted, measured):
    p, m = torch.tensor(predicted, dtype=torch.float64), torch.tensor(measured, dtype=torch.float64)
    off = (p - m) / m
    return [off.abs().mean(), off[off.abs().argmax()]]


def mean_of_signed(predicted, measured):
    off = [(p - m) / m for p, m in zip(predicted, measured)]
    return [sum(off) / len(off), sorted(off, key=abs)[-1]]


def highest(predicted, measured):
    off = [(p - m) / m for p, m in zip(predicted, measured)]
    return [statistics.mean(map(abs, off)), sorted(off)[-1]]


def sizes_only(predicted, measured):
    off = [abs(p - m) / m for p, m in zip(predicted, measured)]
    return [statistics.mean(off), max(off)]


def over_predicted(predicted, measured):
    off = [(p - m) / p for p, m in zip(predicted, measured)]
    return [statistics.mean(map(abs, off)), sorted(off, key=abs)[-1]]


def turned_over(predicted, measured):
    off = [(m - p) / p for p, m in zip(predicted, measured)]
    return [statistics.mean(map(abs, off)), sorted(off, key=abs)[-1]]


def negative_where_too_high(predicted, measured):
    off = [(m - p) / m for p, m in zip(predicted, measured)]
    return [statistics.mean(map(abs, off)), sorted(off, key=abs)[-1]]


def root_mean_square(predicted, measured):
    off = [(p - m) / m for p, m in zip(predicted, measured)]
    return [math.sqrt(sum(e**2 for e in off) / len(off)), sorted(off, key=abs)[-1]]


def test_errors():
    accepted("08.3", by_tensors)
    rejected("08.3", mean_of_signed, "Errors of either sign were let cancel")
    rejected("08.3", highest, "The worst was taken by its sign")
    rejected("08.3", sizes_only, "The worst lost its sign")
    rejected("08.3", over_predicted, "Errors were divided by the prediction")
    rejected("08.3", turned_over, "Measured over predicted was taken")
    rejected("08.3", negative_where_too_high, "Measured less predicted was taken")
    rejected("08.3", lambda p, m: [100 * e for e in by_tensors(p, m)], "Per cent were returned")
    rejected("08.3", root_mean_square, "The root of the mean square")


# --- 08.4 ------------------------------------------------------------------------------------------


def tried_out(usable, overhead, fixed, gradients, sequence):
    """One more sequence as long as the step still fits."""
    batch = 0
    while fixed + overhead + max(gradients, sequence * (batch + 1)) <= usable:
        batch += 1
    return batch


def all_at_once(usable, overhead, fixed, gradients, sequence):
    return max(0, math.floor((usable - overhead - fixed - gradients) / sequence))


def without_gradients(usable, overhead, fixed, gradients, sequence):
    return max(0, math.floor((usable - overhead - fixed) / sequence))


def without_overhead(usable, overhead, fixed, gradients, sequence):
    room = usable - fixed
    return 0 if room < gradients else max(0, math.floor(room / sequence))


def rounded_up(usable, overhead, fixed, gradients, sequence):
    room = usable - overhead - fixed
    return 0 if room < max(gradients, sequence) else math.ceil(room / sequence)


def at_least_one(usable, overhead, fixed, gradients, sequence):
    return max(1, tried_out(usable, overhead, fixed, gradients, sequence))


def unrounded(usable, overhead, fixed, gradients, sequence):
    room = usable - overhead - fixed
    return 0 if room < max(gradients, sequence) else room / sequence


def test_the_largest_batch():
    accepted("08.4", tried_out)
    rejected("08.4", all_at_once, "Gradients and activations were added up")
    rejected("08.4", without_gradients, "The gradients were forgotten")
    rejected("08.4", without_overhead, "What stands beside the tensors was forgotten")
    rejected("08.4", rounded_up, "The batch was rounded up")
    rejected("08.4", at_least_one, "A batch of one was taken for granted")
    rejected("08.4", unrounded, "A part of a sequence was returned")


# --- 08.5 ------------------------------------------------------------------------------------------


def test_the_cheapest_change():
    accepted("08.5", "micro-batches of 2")
    rejected("08.5", "8-bit AdamW", "Not “8-bit AdamW”: an adapter's states are small")
    rejected("08.5", "rank 4", "Not “rank 4”: it takes from adapter and states")
    rejected("08.5", "256 tokens", "Not “256 tokens”: it fits, and is another training")
    rejected("08.5", "checkpointing", "Not “checkpointing”: it fits with most room to spare")


def test_the_planner_agrees_with_the_choice():
    """What each option says of fitting is what the planner computes, and no mild one is cheaper than the right one."""
    from qlora_lib.cost.advice import NEARLY, advise, seconds_per_token

    card = gpu_card(CARD)
    known = steps()
    fits = {name for name, work in known.items() if fit(work, card).fits}
    assert fits == {"256 tokens", "micro-batches of 2", "checkpointing"}
    options = next(e for e in EXERCISES if e.key == "08.5").options
    assert {name for name in options if "still does not fit" not in options[name]} == fits
    assert seconds_per_token(known["micro-batches of 2"], card) < seconds_per_token(known["checkpointing"], card)
    same = [way for way in advise(known[AS_IT_IS], card) if way.cost < NEARLY]
    assert any(way.settings == {"batch": 2, "accumulation": 2} for way in same)


# --- 08.6 ------------------------------------------------------------------------------------------


def product_by_product(base, adapter, tokens, seconds, peak, checkpointing):
    """Each weight: its product forward, for its input's gradient, for its own; and once more where it is recomputed."""
    forward = 2 * tokens * (base + adapter)
    inputs = 2 * tokens * (base + adapter)
    own = 2 * tokens * (adapter if adapter > 0 else base)
    model = forward + inputs + own
    rate = 1 / seconds / peak
    return torch.tensor([model * rate, (model + forward * bool(checkpointing)) * rate], dtype=torch.float64)


def six_for_all(base, adapter, tokens, seconds, peak, checkpointing):
    flops = 6 * (base + adapter) * tokens
    return [flops / seconds / peak, (flops + checkpointing * 2 * (base + adapter) * tokens) / seconds / peak]


def base_only(base, adapter, tokens, seconds, peak, checkpointing):
    flops = (6 - 2 * (adapter > 0)) * base * tokens
    return [flops / seconds / peak, (flops + checkpointing * 2 * base * tokens) / seconds / peak]


def recompute_in_both(*args):
    return [product_by_product(*args)[1]] * 2


def recompute_in_none(*args):
    return [product_by_product(*args)[0]] * 2


def trained_only(base, adapter, tokens, seconds, peak, checkpointing):
    flops = 6 * (adapter if adapter else base) * tokens
    return [flops / seconds / peak, (flops + checkpointing * 2 * (base + adapter) * tokens) / seconds / peak]


def test_utilizations():
    accepted("08.6", product_by_product)
    rejected("08.6", six_for_all, "Six operations were counted for a frozen weight")
    rejected("08.6", base_only, "The adapter was forgotten")
    rejected("08.6", recompute_in_both, "What is computed again was counted as the model's")
    rejected("08.6", recompute_in_none, "What is computed again was left out of the hardware's")
    rejected("08.6", trained_only, "Only what is trained was counted")
    rejected("08.6", lambda *args: product_by_product(*args).flip(0).tolist(), "The two were swapped")
    rejected("08.6", lambda *args: (100 * product_by_product(*args)).tolist(), "Per cent were returned")


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            found = e.judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert found.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name, found.message)


# --- pictures and tables ---------------------------------------------------------------------------


@pytest.fixture
def works():
    shape, _ = shape_of("tinyllama-1.1b")
    return {m: Workload(shape, m, 2, 128, dtype="fp16", device="cuda") for m in ("full", "qlora")}


def test_what_is_held_at_each_moment_adds_up(works):
    from qlora_lib.cost import step_memory

    for work in works.values():
        memory, held = step_memory(work), planning.held_at(work)
        assert {moment: sum(parts.values()) for moment, parts in held.items()} == dict(memory.moments)
        assert held[memory.moment] == dict(memory.parts)


def test_moments_are_drawn_with_their_peaks_and_limits(works):
    figure, alt = planning.draw_moments(works, {"T4": 14 * GIB})
    axes = figure.axes[0]
    widths = sum(bar.get_width() for bar in axes.patches)
    total = sum(sum(parts.values()) for work in works.values() for parts in planning.held_at(work).values())
    assert widths == pytest.approx(total / GIB)
    assert axes.lines[0].get_xdata()[0] == 14 and alt.count("the peak") == 2 and "Can be used: T4 14.0 GiB" in alt


def test_what_stands_beside_is_drawn_behind_the_bar(works):
    parts = planning.held_at(works["qlora"])["optimizer"]
    figure, _ = planning.draw_held({"x": parts}, {"x": (GIB, 3 * GIB)}, notes={"x": "fits"})
    box = figure.axes[0].patches[-1]
    assert box.get_x() == pytest.approx(sum(parts.values()) / GIB + 1) and box.get_width() == pytest.approx(2)
    assert planning.BESIDE in [t.get_text() for t in figure.legends[0].get_texts()]


def test_points_lie_on_the_roof(works):
    card = gpu_card("T4")
    points = {m: planning.training_point(w, card) for m, w in works.items()} | {"token": planning.decoding_point(works["full"], card)}
    for p in points.values():
        assert p.limit == pytest.approx(min(65e12, p.intensity * 320e9))
        assert p.reached is None or p.reached[0] <= p.reached[1] <= p.limit * (1 + 1e-9)
    assert points["token"].intensity < 2 < points["full"].intensity < points["qlora"].intensity
    figure, alt = planning.draw_roofline(card, "fp16", points)
    assert "ridge at 203 FLOP a byte" in alt and "token at" in alt and "bound by memory" in alt
    assert len(figure.legends[0].get_texts()) == 3


def test_every_missed_figure_has_a_reason():
    compared = compare_all()
    missed, because = planning.reasons(compared)
    assert [row[0] for row in missed] == [c.figure.key for c in compared if c.error is not None and abs(c.error) > 0.10]
    known = {row[0]: row[1] for row in because}
    used = {number for row in missed for number in row[3].split(", ")}
    assert used == set(known) and len(set(known.values())) == len(known)
    for row, c in zip(missed, (c for c in compared if c.explanation)):
        words = [known[number] for number in row[3].split(", ")]
        assert all(text in words for text, n in c.differences if n)
        assert (planning.IMPOSSIBLE in words) == bool(c.impossible)


def test_a_grid_that_is_absent_is_said_to_be(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    monkeypatch.setattr(planning, "committed_validation", lambda: tmp_path / "none.json")
    record, words = planning.validation_record()
    assert record is None and "not measured" in words


@pytest.mark.skipif(not committed_validation().is_file(), reason="the grid was not measured")
def test_ones_own_grid_comes_first(monkeypatch, tmp_path):
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    assert planning.validation_record()[1].startswith("the repository's record")
    (tmp_path / "validation.json").write_bytes(committed_validation().read_bytes())
    assert planning.validation_record()[1].startswith("this machine's record")
