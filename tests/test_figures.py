"""Figures: byte-stable, honest about what is missing, and labelled with units."""

import subprocess
import sys
from pathlib import Path

import pytest
from example_bench import example_bench
from example_records import example_records

from qlora_lib import figures, style
from qlora_lib.figures import comparison, draw_all, left_out, parts, quality, training

ROOT = Path(__file__).resolve().parent.parent
DRAWERS = {
    "figure-1-comparison": comparison.draw_comparison,
    "figure-2-radar": comparison.draw_radar,
    "loss-curves": training.draw_loss_curves,
    "memory-breakdown": training.draw_memory_breakdown,
    "quality-against-bytes": quality.draw_quality_against_bytes,
    "quantization-alone": quality.draw_quantization_alone,
}


@pytest.fixture(scope="module")
def records():
    return example_records()


def texts(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_every_figure_of_the_report_has_a_drawer():
    assert set(DRAWERS) == set(figures.FIGURES)


def test_the_same_records_make_the_same_bytes_in_another_process(records, tmp_path):
    drawn = draw_all(records, tmp_path / "here", formats=("svg",))
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from pathlib import Path; from example_records import example_records\n"
        "from qlora_lib.figures import draw_all\n"
        f"draw_all(example_records(), Path({str(tmp_path / 'there')!r}), formats=('svg',))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
    assert len(drawn) == len(DRAWERS)
    for figure in drawn:
        again = tmp_path / "there" / figure.path_svg.name
        assert figure.path_svg.read_bytes() == again.read_bytes(), figure.name


@pytest.mark.parametrize("name", DRAWERS)
def test_another_value_makes_another_picture(name, records):
    changed = {arm: r.model_copy(deep=True) for arm, r in records.items()}
    r = changed["full"]
    r.train.loss[3] += 1.0
    r.train.seconds_per_step *= 2
    r.train.peak_tensor_bytes += 2**30
    r.size_bytes.total += 2**28
    changed["base-fp4"].perplexity.before += 3
    render = lambda values: style.render(DRAWERS[name](values), "svg")  # noqa: E731
    assert render(records) != render(changed)


@pytest.mark.parametrize("name", ["figure-1-comparison", "figure-2-radar"])
def test_what_was_not_measured_is_said_and_not_drawn_as_nothing(name, records):
    changed = {arm: r.model_copy(deep=True) for arm, r in records.items()}
    for r in changed.values():
        r.mfu = None
    shown = texts(DRAWERS[name](changed)).replace("\n", " ")
    assert shown.count(parts.NOT_MEASURED) > texts(DRAWERS[name](records)).replace("\n", " ").count(parts.NOT_MEASURED)


@pytest.mark.parametrize("name", DRAWERS)
def test_every_axis_has_a_label_and_the_footer_names_model_data_and_machine(name, records):
    figure = DRAWERS[name](records)
    for axes in figure.get_axes():
        if axes.axison and axes.name == "rectilinear":
            assert axes.get_xlabel(), name
    foot = texts(figure)
    for word in (records["full"].model.name, records["full"].data.name, "machine:"):
        assert word in foot


def test_units_stand_on_the_axes(records):
    labels = [a.get_xlabel() for a in comparison.draw_comparison(records).get_axes()]
    for unit in ("MiB", ", s", "%", "tokens/s"):
        assert any(unit in label for label in labels), unit


def test_nothing_is_drawn_from_too_little_and_the_reason_is_given(records, tmp_path):
    only = {"base": records["base"]}
    assert draw_all(only, tmp_path, formats=("svg",)) == []
    reasons = left_out(only)
    assert set(reasons) == set(DRAWERS) and all(reasons.values())


def test_a_picture_of_other_records_does_not_stay(records, tmp_path):
    draw_all(records, tmp_path, formats=("svg",))
    draw_all({"base": records["base"], "full": records["full"]}, tmp_path, formats=("svg",))
    assert not (tmp_path / "quantization-alone.svg").exists()


def test_log_ticks_are_plain_numbers(records):
    figure = comparison.draw_comparison(records)
    style.render(figure, "png")
    ticks = [t.get_text() for a in figure.get_axes() for t in a.get_xticklabels()]
    assert ticks and not any("$" in t for t in ticks)


def test_spread_keeps_labels_apart_and_in_order():
    placed = parts.spread([1.0, 1.01, 5.0, 1.02], 0.5)
    order = sorted(placed)
    assert all(b - a >= 0.5 - 1e-9 for a, b in zip(order, order[1:]))
    assert placed[0] < placed[1] < placed[3] < placed[2]


def test_figures_load_no_torch():
    code = "import sys, qlora_lib.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_memory_parts_add_up_to_the_measured_peak(records):
    for arm in training.memory_arms(records):
        assert sum(training.memory_parts(records[arm])) == records[arm].train.peak_tensor_bytes
    lora = records["lora"].model_copy(deep=True)
    lora.train.gradient_bytes = None  # then nothing can be said about the rest either
    assert training.memory_parts(lora)[-1] is None
    assert "activations not measured" in texts(training.draw_memory_breakdown({"lora": lora}))


def test_radar_ratios_by_hand(records):
    table = comparison.ratios_to_best(records, ["full", "qlora"])
    assert table["full"] == pytest.approx([
        records["qlora"].size_bytes.total / records["full"].size_bytes.total,  # less is better
        1.0,
        records["qlora"].parameters.trainable / records["full"].parameters.trainable,
        1.0,
        1.0,
        1.0,
    ])  # fmt: skip
    assert table["qlora"][-1] == pytest.approx(4.9 / 15.7)  # more is better


def test_a_figure_of_the_bench_shows_the_record_that_has_its_part(records, tmp_path):
    full = example_bench(records["full"])
    bare = full.model_copy(update={"scaling": [], "causes": []})
    drawn = figures.draw_benches({"default": bare, "keep": full}, tmp_path, ("svg",))
    assert [figure.name for figure in drawn] == list(figures.BENCH_FIGURES)
    assert [f.name for f in figures.draw_benches({"default": bare}, tmp_path, ("svg",))] == ["bench-default"]
    assert [path.name for path in tmp_path.iterdir()] == ["bench-default.svg"]
    assert figures.draw_benches({}, tmp_path) == [] and not list(tmp_path.iterdir())


def test_front_holds_what_nothing_beats_in_both_directions():
    points = {"a": (1, 9), "b": (2, 5), "beaten": (3, 6), "c": (4, 1), "tie": (2, 7)}
    assert quality.front(points) == ["a", "b", "c"]


def test_two_arms_suffice_where_two_can_be_compared(records, tmp_path):
    two = {arm: records[arm] for arm in ("lora", "qlora")}
    names = {figure.name for figure in draw_all(two, tmp_path, formats=("svg",))}
    assert names == set(DRAWERS) - {"quantization-alone"}
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.svg" for name in names}


def test_a_readers_own_settings_change_nothing_and_are_left_alone(records):
    import matplotlib

    plain = style.render(quality.draw_quantization_alone(records), "pdf")
    with matplotlib.rc_context({"font.size": 20, "axes.grid": True, "svg.hashsalt": "other"}):
        assert style.render(quality.draw_quantization_alone(records), "pdf") == plain
        assert matplotlib.rcParams["font.size"] == 20


@pytest.mark.parametrize(
    ("value", "shown"),
    [(4.16, "4.16"), (513.13, "513"), (9.996, "10.0"), (1100.4, "1,100"), (-0.5, "\u22120.500"), (0, "0")],
)
def test_numbers_have_three_digits_and_no_exponent(value, shown):
    assert style.number(value) == shown


def test_colours_of_the_methods_differ_in_lightness_or_hue_for_red_green_blindness():
    import numpy as np
    from matplotlib.colors import to_rgb

    # Deuteranopia after Vienot, Brettel and Mollon (1999), on linear RGB.
    loss = np.array([[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]])
    seen = [
        np.clip(loss @ np.array(to_rgb(c)) ** 2.2, 0, 1) ** (1 / 2.2)
        for c in style.METHOD_COLOR.values()
    ]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(apart) > 0.15
