"""Figures of scaling and causes, drawn from a made-up record with gaps."""

import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle

from qlora_lib import style
from qlora_lib.bench.causes import Parts, taken_apart
from qlora_lib.bench.fits import fit_all
from qlora_lib.bench.record import BenchProvenance, BenchRecord, Limits, Numerics, ScalingPoint
from qlora_lib.bench.settings import BenchSettings
from qlora_lib.figures import bench_scaling
from qlora_lib.figures.bench_scaling import causes_alt, draw_causes, draw_scaling, fp32_seconds, scaling_alt
from qlora_lib.records import DataInfo, ModelInfo

STOCK = Parts("nf4dq_adapter.stock", "a token", 0.190, 0.092, "d", 0.048, "a", 520_000_000, "t")
OURS = Parts("nf4dq_adapter.fast", "a token", 0.0175, None, "in registers", 0.002, "a", 150_000_000, "t")


def points(series, arm, seconds: dict, what="w", **more) -> list[ScalingPoint]:
    common = {"series": series, "arm": arm, "what": what}
    return [
        ScalingPoint(**common, x=x, tokens=x, reason="out of memory")
        if s is None
        else ScalingPoint.timed([s], x, **common, x=x, **{k: v * x for k, v in more.items()})
        for x, s in seconds.items()
    ]


def record_of(scaling, causes) -> BenchRecord:
    return BenchRecord(
        settings=BenchSettings().plain(),
        model=ModelInfo(name="a-model", source="made up", parameters_total=1),
        data=DataInfo(name="a-text", source="made up", train_tokens=1, eval_tokens=1),
        ratios={}, measurements=[], numerics=Numerics(), ratio_details={},
        limits=Limits(gemm_flops_per_second=1, copy_bytes_per_second=1, read_bytes_per_second=25e9),
        scaling=scaling, fits=fit_all(scaling),
        causes=[c for parts in causes for c in taken_apart(parts, 25e9)],
        provenance=BenchProvenance(
            finished="2026-01-01", cpu="a processor", threads=2, memory_bytes=1, platform="p", versions={}, git_commit=None,
            allocator="keep", environment={}, load_average_before=None, wall_seconds=1, stage_seconds={}, peak_resident_bytes=1,
        ),
    )  # fmt: skip


@pytest.fixture
def record() -> BenchRecord:
    memory = {"peak_tensor_bytes": 2**22, "above_resident_bytes": 2**21}
    scaling = points("training.length", "qlora.stock", {128: 1.0, 256: 2.0, 512: 4.0, 1024: None}, **memory)
    scaling += points("training.length", "qlora.fast", {x: x**1.5 / 4000 for x in (128, 256, 512, 1024)}, **memory)
    scaling += points("training.length", "full.fast", dict.fromkeys((128, 256, 512, 1024)))
    scaling += points("decode.context", "fp32.stock", {64: 64 * 0.060, 256: 256 * 0.065, 512: 512 * 0.070})
    scaling += points("decode.batch", "nf4dq_adapter.fast", {1: 0.02}, "decoder")
    scaling += points("decode.batch", "nf4dq_adapter.fast", {2: 0.4, 4: 0.5, 8: 0.6}, "generate")
    return record_of(scaling, [STOCK, OURS])


def shown(artist) -> list[str]:
    return [t.get_text() for t in artist.findobj(match=lambda a: hasattr(a, "get_text")) if t.get_text()]


def lines(axes) -> list[list[tuple]]:
    return [list(zip(*line.get_data(), strict=True)) for line in axes.get_lines() if len(line.get_xdata())]


def test_exponents_stand_in_the_legend_and_gaps_are_told(record):
    length, batch, *_ = draw_scaling(record).get_axes()
    legend = [t.get_text() for t in length.get_legend().get_texts()]
    assert legend == ["k = 1.00", "k = 1.50", "not measured"]
    assert [len(each) for each in lines(length)] == [3, 4]  # the point without memory is no point of the line
    assert "not measured" in shown(batch)
    assert [t.get_text() for t in length.get_xticklabels()] == ["128", "256", "512", "1,024"]


def test_two_ways_of_decoding_are_two_lines(record):
    axes = draw_scaling(record).get_axes()[5]
    assert sorted(len(each) for each in lines(axes)) == [1, 3]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["k = 0.29"]


def test_every_axis_has_a_unit_and_the_foot_names_the_machine(record):
    figure = draw_scaling(record)
    panels = figure.get_axes()[:-1]
    assert len(panels) == 7 and all(axes.get_xlabel() and axes.get_ylabel() for axes in panels)
    foot = " ".join(shown(figure)).replace("\n", " ")
    for word in ("a-model", "a-text", "a processor", "allocator: keep", "3 alternating repeats"):
        assert word in foot


def test_alternative_text_of_the_scaling_has_the_numbers_that_are_drawn(record):
    alt = scaling_alt(record)
    assert "QLoRA, stock 1.00 at 128 to 4.00 at 512 (s a step), exponent 1.00" in alt
    assert "full, qlora_lib not measured" in alt and "Time to the first token: not measured" in alt


@settings(max_examples=25, deadline=None)
@given(low=st.floats(1e-4, 1e4), span=st.floats(1, 3000))
def test_there_are_always_two_numbers_or_more_on_a_logarithmic_axis(low, span):
    with style.page_style():
        axes = style.new_figure(5).subplots()
        axes.set_yscale("log")
        bench_scaling._ticks(axes, [1, 2], [low, low * span])
        inside = [y for y in axes.get_yticks() if axes.get_ylim()[0] <= y <= axes.get_ylim()[1]]
    assert 2 <= len(inside) <= 9


def pieces(axes, y: int) -> list[Rectangle]:
    return [p for p in axes.patches if abs(p.get_y() + p.get_height() / 2 - y) < 0.01]


def test_pieces_of_a_bar_lie_end_to_end_and_add_up(record):
    axes = draw_causes(record).get_axes()[0]
    assert "ms a token" in axes.get_xlabel()
    stock, ours = pieces(axes, 0), pieces(axes, 1)
    assert [p.get_width() for p in stock] == pytest.approx([92, 48, 20.8, 190 - 92 - 48 - 20.8])
    assert [p.get_x() for p in stock] == pytest.approx([0, 92, 140, 160.8])
    assert len(ours) == 3 and sum(p.get_width() for p in ours) == pytest.approx(17.5)
    text = " ".join(shown(axes))
    assert "190 ms" in text and "17.5 ms" in text
    assert [t.get_text() for t in axes.get_yticklabels()] == ["stock", "qlora_lib,\ndequantization\nin the rest"]


def test_a_rest_below_zero_is_drawn_to_the_left():
    parts = Parts("nf4dq_adapter.stock", "a token", 0.010, 0.008, "d", 0.003, "a", 0, "t")
    axes = draw_causes(record_of([], [parts])).get_axes()[0]
    assert [p.get_width() for p in pieces(axes, 0)] == pytest.approx([8, 3, -1])
    assert axes.get_xlim()[0] <= -1


def test_the_dashed_line_is_fp32_after_the_shortest_cache(record):
    assert fp32_seconds(record) == pytest.approx(0.060)
    axes = draw_causes(record).get_axes()[0]
    assert 60.0 in [pytest.approx(line.get_xdata()[0]) for line in axes.get_lines()]
    assert "dashed line at 60.0 ms" in causes_alt(record)
    alone = record_of([], [STOCK, OURS])
    assert fp32_seconds(alone) is None and "dashed" not in causes_alt(alone)


def test_alternative_text_of_the_causes_says_what_could_not_be_told_apart(record):
    alt = causes_alt(record)
    assert "stock 190 ms: dequantization 92.0 ms, adapter products 48.0 ms, memory traffic 20.8 ms" in alt
    assert "qlora_lib 17.5 ms: dequantization not told apart" in alt


def test_stock_that_is_fused_has_a_second_bar():
    parts = [Parts("nf4dq_adapter.stock_unfused", "a", 0.19, 0.09, "d", 0.05, "a", 1, "t"), STOCK, OURS]
    labels = [t.get_text() for t in draw_causes(record_of([], parts)).get_axes()[0].get_yticklabels()]
    assert [label.split(",\n")[0] for label in labels] == ["stock, not fused", "stock", "qlora_lib"]


def test_a_decoder_that_does_not_apply_is_drawn_as_not_measured():
    parts = [STOCK, Parts("nf4dq_adapter.fast", "no", None, None, "no", None, "no", None, "no")]
    record = record_of([], parts)
    axes = draw_causes(record).get_axes()[0]
    assert "not measured" in shown(axes) and not pieces(axes, 1) and "qlora_lib: not measured" in causes_alt(record)


def test_the_same_record_makes_the_same_bytes(record):
    for draw in (draw_scaling, draw_causes):
        assert style.render(draw(record), "svg") == style.render(draw(record), "svg")


def test_nothing_lies_on_something_else_or_is_cut(record):
    """Tick labels of a panel keep apart, and all text is inside the page."""
    for draw in (draw_scaling, draw_causes):
        figure = draw(record)
        with style.page_style():
            canvas = FigureCanvasAgg(figure)
            canvas.draw()  # lays it out
            renderer = canvas.get_renderer()
            beyond = []  # ticks that matplotlib holds outside of an axis are not drawn
            for axes in figure.get_axes():
                for axis in (axes.xaxis, axes.yaxis):
                    low, high = sorted(axis.get_view_interval())
                    ticks = [(t.label1, low <= t.get_loc() <= high) for t in axis.get_major_ticks()]
                    beyond += [label for label, inside in ticks if not inside]
                    boxes = [label.get_window_extent(renderer) for label, inside in ticks if inside and label.get_text()]
                    assert not any(a.overlaps(b) for a, b in pairwise(boxes)), axes.get_title()
            for text in figure.findobj(match=lambda a: hasattr(a, "get_text")):
                if text.get_text().strip() and text.get_visible() and text not in beyond:
                    box = text.get_window_extent(renderer)
                    assert box.x0 >= -1 and box.x1 <= figure.bbox.width + 1, text.get_text()


def test_figures_load_no_torch():
    code = "import sys, qlora_lib.figures.bench_scaling; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
