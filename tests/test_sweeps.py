"""Sweeps: which arms are one axis, what a good range is, and when two points differ."""

import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
from example_records import example_records
from example_sweeps import (
    BEST,
    example_sweeps,
    example_task_sweeps,
    example_tasks,
    loss_of,
)
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from qlora_lib import sensitivity, style, sweeps
from qlora_lib.figures import STUDY_FIGURES, draw_studies, parts
from qlora_lib.figures.tasks import base_of
from qlora_lib.sensitivity import GoodRange
from qlora_lib.studies import Studies, rank_axes, studies_of
from qlora_lib.sweeps import ATTENTION, MODULES, RANK, RATE, TOKENS, one_axis


@pytest.fixture(scope="module")
def found():
    return example_sweeps()


def values(axis):
    return [p.value for p in axis.points]


# --- selection ---------------------------------------------------------------------------------------


def test_the_shared_arm_of_several_sweeps_is_found_in_each(found):
    shared = "qlora-rate-0.002-s0"
    axes = sweeps.setting_axes(found)
    assert values(axes["rank"]) == [4, 8, 16, 64] and values(axes["alpha"]) == [8, 16, 32, 64]
    assert values(axes["dropout"]) == [0, 0.05, 0.1] and values(axes["warmup"]) == [0, 4, 12]
    assert values(axes["tokens"]) == values(axes["tokens-tuned"]) == [128, 512, 2048]
    for name, at in {"rank": 16, "alpha": 32, "dropout": 0.05, "warmup": 4, "tokens": 512}.items():
        assert axes[name].at(at).name == shared
    assert shared not in {p.name for p in axes["rank-attention"].points} and values(axes["rank-attention"]) == [4, 8, 16, 64]
    assert all(p.seeds == (0, 1) for axis in axes.values() for p in axis.points)


def test_an_axis_is_what_its_sweep_declares_and_nothing_else(found):
    """Against the names that the profile gives its arms."""
    for name, prefix in (("full", "full-rate-"), ("lora", "lora-rate-"), ("qlora", "qlora-rate-"), ("qlora-8bit", "adamw8bit-")):
        arms = {r.arm for p in sweeps.rate_axes(found)[name].points for r in p.records}
        assert arms == {arm for arm in found if arm.startswith(prefix)}


def test_an_arm_that_differs_in_a_second_setting_is_left_out(found):
    other = found["rank-8-s0"].model_copy(deep=True)
    other.arm, other.settings["train"]["weight_decay"] = "stray", 0.1
    axis = one_axis(found | {"stray": other}, "qlora", RANK)
    assert "stray" not in {r.arm for p in axis.points for r in p.records}
    timed = found["rank-8-s0"].model_copy(deep=True)
    timed.arm, timed.seed, timed.settings["runtime"]["threads"] = "other-threads", 2, 8  # changes no loss
    assert one_axis(found | {"x": timed}, "qlora", RANK).at(8).seeds == (0, 1, 2)


def test_settings_that_older_records_lack_do_not_part_them(found):
    old = {a: r.model_copy(deep=True) for a, r in found.items()}
    for r in old.values():
        if r.arm.startswith("rank-"):
            r.settings["train"].pop("weight_decay")
    assert values(one_axis(old, "qlora", RANK, {MODULES: "all-linear"})) == [4, 8, 16, 64]


def test_batches_are_compared_at_equal_tokens_and_each_at_its_best(found):
    def loss(method, settings, seed):
        best = {"qlora": {1: 1e-3, 4: 2e-3, 16: 4e-3}[settings.train.batch_size * settings.train.gradient_accumulation_steps]}
        return loss_of(method, settings, seed, BEST | best)

    axes = sweeps.setting_axes(example_sweeps(loss))
    assert [p.records[0].settings["train"]["learning_rate"] for p in axes["tokens-tuned"].points] == [1e-3, 2e-3, 4e-3]
    assert {p.records[0].settings["train"]["learning_rate"] for p in axes["tokens"].points} == {2e-3}
    more = {a: r.model_copy(deep=True) for a, r in found.items()}
    for seed in (0, 1):
        more[f"batch-16-0.002-s{seed}"].train.tokens *= 2
    assert values(one_axis(more, "qlora", TOKENS)) == [128, 512]


def test_full_fine_tuning_has_no_adapter_settings(found):
    odd = {a: r.model_copy(deep=True) for a, r in found.items()}
    odd["full-rate-0.0001-s0"].settings["lora"]["rank"] = 999
    assert len(sweeps.rate_axes(odd)["full"].points) == 5


# --- the best, failures, edges -----------------------------------------------------------------------


def test_each_method_at_its_best_by_the_mean_over_seeds(found):
    best = sweeps.at_best(found)
    assert {name: p.value for name, p in best.items()} == {"full": 1e-4, "lora": 2e-3, "qlora": 2e-3, "qlora-8bit": 2e-3}
    assert best["lora"].mean == pytest.approx(3.0) and best["lora"].scores == pytest.approx((2.997, 3.003))


def test_the_best_at_an_end_is_open(found):
    low = example_sweeps(lambda m, s, seed: loss_of(m, s, seed, {m: 4e-4}))
    high = example_sweeps(lambda m, s, seed: loss_of(m, s, seed, {m: 9e-3}))
    assert sweeps.rate_axes(low)["lora"].open == "below" and sweeps.rate_axes(high)["lora"].open == "above"
    assert sweeps.rate_axes(found)["lora"].open is None
    one = {a: r for a, r in found.items() if a.startswith("lora-rate-0.002")}
    assert sweeps.rate_axes(one)["lora"].open == "alone"


def test_a_seed_that_failed_takes_its_point_out_of_the_running():
    def loss(method, settings, seed):
        if method == "lora" and settings.train.learning_rate == 2e-3 and seed == 1:
            return None  # the best otherwise
        return 9.0 if method == "qlora" and settings.train.learning_rate == 2e-3 and seed == 0 else loss_of(method, settings, seed)

    axes = sweeps.rate_axes(example_sweeps(loss))
    assert axes["lora"].best.value in (1e-3, 4e-3) and axes["lora"].at(2e-3).mean is None
    assert axes["lora"].at(2e-3).failures == {1: "the loss became NaN at step 5"}
    assert axes["qlora"].best.value in (1e-3, 4e-3) and "above where it began" in axes["qlora"].at(2e-3).failures[0]
    assert sensitivity.good_range(axes["lora"], 0.5).is_open  # beside the failed rate nothing is interpolated


# --- the good range ----------------------------------------------------------------------------------

losses = st.lists(st.floats(2.5, 4.0), min_size=2, max_size=7)


def grid(n):
    return [1e-4 * 2**i for i in range(n)]


@given(losses, st.floats(0.001, 0.5))
def test_the_range_is_where_the_line_through_the_points_is_low(found_losses, within):
    """Against the same line on a fine grid."""
    rates = grid(len(found_losses))
    span = sensitivity.good_span(rates, found_losses, within)
    x = np.linspace(0, len(rates) - 1, 1 + 2000 * (len(rates) - 1))
    low = np.interp(x, range(len(rates)), found_losses) <= min(found_losses) + within + 1e-12
    best = int(np.argmin(found_losses)) * 2000
    left = best - int(np.argmin(low[best::-1])) if not low[: best + 1].all() else 0
    right = best + int(np.argmin(low[best:])) if not low[best:].all() else len(x) - 1
    assert math.log2(span.low / rates[0]) == pytest.approx(x[left], abs=2e-3)
    assert math.log2(span.high / rates[0]) == pytest.approx(x[right], abs=2e-3)
    assert span.open_below == bool(low[: best + 1].all()) and span.open_above == bool(low[best:].all())


@given(losses, st.floats(0.001, 0.3), st.floats(0.0, 0.3), st.floats(0.01, 100))
def test_a_wider_tolerance_never_narrows_and_the_unit_of_rates_does_not_matter(found_losses, within, more, factor):
    rates = grid(len(found_losses))
    span, wider = (sensitivity.good_span(rates, found_losses, t) for t in (within, within + more))
    assert wider.low <= span.low * (1 + 1e-9) and wider.high >= span.high * (1 - 1e-9)
    assert sensitivity.good_span([r * factor for r in rates], found_losses, within).factor == pytest.approx(span.factor)


def test_a_parabola_by_hand():
    span = sensitivity.good_span(grid(5), [3.08, 3.02, 3.0, 3.02, 3.08], 0.02)
    assert span.factor == pytest.approx(4) and not span.is_open
    assert sensitivity.good_span(grid(3), [None, 3.0, None], 0.1).factor == 1
    assert sensitivity.good_span(grid(2), [None, None], 0.1) is None


factors = st.tuples(st.floats(1, 100), st.booleans()).map(lambda t: GoodRange(1.0, t[0], False, t[1]))


@given(st.lists(factors, min_size=1, max_size=3), st.lists(factors, min_size=1, max_size=3))
def test_one_is_narrower_where_the_other_is_wider(one, other):
    mirror = {"narrower": "wider", "wider": "narrower", "no difference shown": "no difference shown"}
    way = sensitivity.compare_widths(one, other)
    assert sensitivity.compare_widths(other, one) == mirror[way]
    if way == "narrower":
        assert max(r.factor for r in one) < min(r.factor for r in other) and not any(r.is_open for r in one)


def test_a_closed_range_against_an_open_one():
    narrow, open_one = GoodRange(1, 2, False, False), GoodRange(1, 8, False, True)
    assert sensitivity.compare_widths([narrow], [open_one]) == "narrower"
    assert sensitivity.compare_widths([GoodRange(1, 16, False, False)], [open_one]) == "no difference shown"  # it may be wider still
    assert sensitivity.compare_widths([GoodRange(1, 2.0001, False, False)], [narrow]) == "no difference shown"  # not resolved
    assert sensitivity.compare_widths([], [narrow]) is None


@pytest.mark.parametrize(("curvature", "way"), [(0.08, "narrower"), (0.004, "wider"), (0.02, "no difference shown")])
def test_sensitivity_follows_the_curvature(curvature, way):
    swept = example_sweeps(lambda m, s, seed: loss_of(m, s, seed, curvature={"full": 0.02, "lora": 0.02, "qlora": curvature}))
    axes = sweeps.rate_axes(swept)
    assert sensitivity.sensitivity(axes["qlora"], axes["lora"], sensitivity.tolerance(axes.values())) == way


# --- spread ------------------------------------------------------------------------------------------


def test_the_deviation_of_a_seed_against_numpy_and_with_an_outlier():
    draws = np.random.default_rng(0).normal(3.0, 0.01, (4000, 2))
    assert sensitivity.seed_deviation(draws.tolist()) == pytest.approx(0.01, rel=0.05)
    half = np.abs(draws[:, 0] - draws[:, 1]) / math.sqrt(2)
    assert sensitivity.seed_deviation(draws.tolist()) == pytest.approx(1.4826 * statistics.median(half))
    assert sensitivity.seed_deviation([*draws.tolist(), [3.0, 9.0], [3.0, None]]) == pytest.approx(0.01, rel=0.05)
    assert sensitivity.seed_deviation([[3.0], [None, 3.1]]) is None


def test_the_tolerance_is_twice_the_seeds_or_its_floor():
    assert sensitivity.tolerance_of([[3.0, 3.001]]) == sensitivity.FLOOR == sensitivity.tolerance_of([[3.0]])
    assert sensitivity.tolerance_of([[3.0, 3.1]]) == pytest.approx(2 * 1.4826 * 0.1 / math.sqrt(2))


def test_perplexities_are_paired_by_window_over_the_seeds_of_both(found):
    best = sweeps.at_best(found)
    a, b = (np.mean([r.perplexity.window_nll_after for r in best[n].records], axis=0) for n in ("qlora", "full"))
    a = a + np.random.default_rng(1).normal(0, 0.01, len(a))
    for r in best["qlora"].records:
        r.perplexity.window_nll_after = a.tolist()
    interval = sensitivity.perplexity_difference(best["qlora"], best["full"])
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high))


# --- pictures ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studies(found):
    return Studies(found, example_tasks(), example_task_sweeps())


@pytest.fixture(scope="module")
def demo():
    return example_records("demo")


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_pictures_are_byte_stable_labelled_and_told_in_words(studies, demo, tmp_path):
    drawn = draw_studies(studies, demo, tmp_path, ("svg",))
    assert [f.name for f in drawn] == list(STUDY_FIGURES)
    for one, kind in zip(drawn, STUDY_FIGURES.values(), strict=True):
        figure, name = kind.draw(studies, demo), one.name
        assert one.path_svg.read_bytes() == style.render(figure, "svg")
        assert any(c.isdigit() for c in one.alt) and "None" not in one.alt and one.caption
        for axes in figure.get_axes():
            assert not axes.axison or axes.get_xlabel() or name == "sweep-learning-rate", name
        assert "stands in for" in texts(figure) and "machine:" in texts(figure)


def marks(figure) -> list[tuple]:
    """Where everything stands that was drawn."""
    return [(line.get_color(), *map(tuple, line.get_xydata().round(9))) for a in figure.get_axes() for line in a.get_lines()]


@pytest.mark.parametrize("name", [n for n in STUDY_FIGURES if n.startswith("sweep")])
def test_another_loss_makes_another_picture(name, studies, demo):
    other = Studies(example_sweeps(lambda m, s, seed: loss_of(m, s, seed) + 0.01 * s.lora.alpha * (m == "qlora")), {}, {})
    draw = STUDY_FIGURES[name].draw
    assert marks(draw(studies, demo)) != marks(draw(other, demo))


def test_nothing_is_drawn_from_nothing_and_old_pictures_go(studies, demo, tmp_path):
    (tmp_path / "sweep-rank.svg").write_text("of yesterday")
    drawn = draw_studies(Studies(), demo, tmp_path, ("svg",))
    assert [f.name for f in drawn] == ["throughput"] == [p.stem for p in tmp_path.iterdir()]
    for kind in STUDY_FIGURES.values():
        with pytest.raises(parts.NothingToDraw):
            kind.arms(Studies(), {})


def drawn_of(studies, demo, only="") -> list[str]:
    """Names of the pictures that can be drawn; those that begin with `only` are drawn but not saved."""
    names = []
    for name, kind in STUDY_FIGURES.items():
        try:
            kind.arms(studies, demo)
        except parts.NothingToDraw as e:
            assert e.message
        else:
            if name.startswith(only):
                kind.draw(studies, demo)
            assert kind.alt(studies, demo)
            names.append(name)
    return names


def test_any_part_of_the_sweeps_can_be_drawn(found, demo):
    """As they come in, arm by arm; and with failures everywhere."""
    assert drawn_of(Studies({a: found[a] for a in list(found)[:2]}), demo, "none") == ["throughput"]
    assert "sweep-learning-rate" in drawn_of(Studies({a: found[a] for a in list(found)[:9]}), demo, "sweep-learning")
    assert "sweep-rank" in drawn_of(Studies({a: found[a] for a in list(found)[:40]}), demo, "sweep-rank")
    broken = example_sweeps(lambda m, s, seed: None if seed else loss_of(m, s, seed))
    assert "sweep-memory" not in drawn_of(Studies(broken), demo, "sweep")


def test_times_of_sweeps_are_never_drawn(studies, demo):
    """A field that is not there cannot be read."""
    timeless = {a: r.model_copy(deep=True) for a, r in studies.sweeps.items()}
    for r in timeless.values():
        for name in ("seconds", "seconds_per_step", "seconds_per_step_quartiles", "tokens_per_second"):
            r.train and r.train.__dict__.pop(name)
        r.__dict__.pop("mfu")
        r.__dict__.pop("generation")
    assert len(drawn_of(Studies(timeless), demo, "sweep")) == 6


def test_rank_against_accuracy_is_an_axis_of_tasks():
    axis = rank_axes(example_task_sweeps(lambda rank, seed: 90 - abs(rank - 8) + seed))["film-reviews", "accuracy"]
    assert values(axis) == [4, 8, 16, 64] and axis.best.value == 8 and axis.best.mean == 90.5
    assert base_of(axis, "accuracy") == 58.0


def test_selection_loads_no_torch_and_no_pictures():
    code = "import sys, qlora_lib.studies; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_attention_modules_are_those_of_the_profile(found):
    assert {tuple(r.settings["lora"]["target_modules"]) for a, r in found.items() if a.startswith("rank-attention")} == {ATTENTION}
    assert RATE in sweeps.flat_settings(found["full-rate-0.0001-s0"])


def test_studies_are_found_by_rule(monkeypatch, tmp_path, found):
    from qlora_lib import records

    monkeypatch.setattr(records, "results_dir", lambda name: tmp_path / "results" / name)
    monkeypatch.setattr(records, "committed_records", lambda name: tmp_path / "records" / name)
    assert studies_of("demo") == Studies()
    for name, record in example_tasks().items():
        record.write(tmp_path / "results" / "demo" / name)
    own = found["qlora-rate-0.002-s0"]
    own.write(tmp_path / "results" / "demo-long" / own.arm)
    assert set(studies_of("demo", "own").tasks) == set(example_tasks()) and set(studies_of("demo").sweeps) == {own.arm}
    (tmp_path / "records" / "demo-long").mkdir(parents=True)
    for r in (found["base"], example_task_sweeps()["reviews-rank-8-s0"]):
        (tmp_path / "records" / "demo-long" / f"{r.arm}.json").write_text(r.to_json())
    studies = studies_of("demo", "committed")
    assert set(studies.sweeps) == {"base"} and set(studies.swept_tasks) == {"reviews-rank-8-s0"} and not studies.tasks


def test_seeds_of_a_task_whose_examples_differ_in_length_stay_together():
    """The tokens of a step are then no setting: they follow from which examples the seed drew."""
    from example_sweeps import example_task_sweeps

    from qlora_lib.studies import rank_axes

    records = example_task_sweeps()
    for record in records.values():
        record.train.tokens_per_step += 15 * record.seed
    for axis in rank_axes(records).values():
        assert all(len(point.records) > 1 for point in axis.points)
