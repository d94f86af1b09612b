"""The report's section on speed: found by rule, chosen by the numbers, and silent on what was not run."""

import json
import re
import subprocess
import sys

import pytest

from example_bench import example_bench
from example_records import example_records
from qlora_lib.bench.record import GreedyAgreement
from qlora_lib.errors import QloraError
from qlora_lib.figures import BENCH_FIGURES, draw_benches
from qlora_lib.report import benches as benches_module
from qlora_lib.report import build_report
from qlora_lib.report.benches import flat, read_benches, spread
from qlora_lib.report.build import report_data
from qlora_lib.report.formats import NOT_MEASURED, show
from qlora_lib.report.values import Store
from test_report import TEMPLATE, changed, text_of


@pytest.fixture(scope="module")
def records():
    return example_records("demo")


@pytest.fixture(scope="module")
def both(records):
    return {a: example_bench(records["full"], a) for a in ("default", "keep")}


def said(records, slot, benches=None) -> str:
    data = report_data("demo", records, [], TEMPLATE, benches=benches)
    pieces = [piece for paragraph in data["say"][slot] for piece in [{"text": " "}, *paragraph["pieces"]]]
    return "".join(data["values"][p["value"]]["text"] if "value" in p else p.get("text", "") for p in pieces)


def with_seconds(records, **seconds):
    return {"default": example_bench(records["full"], **seconds)}


# --- where records are found -----------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path, monkeypatch):
    monkeypatch.setattr(benches_module, "results_dir", lambda name: tmp_path / "results" / name)
    monkeypatch.setattr(benches_module, "committed_records", lambda name: tmp_path / "records" / name)
    return tmp_path


def test_own_records_come_before_committed_ones_and_only_where_asked(both, folders):
    model = both["keep"].model.name
    for source in ("auto", "own", "committed"):
        assert read_benches(model, source) == {}
    both["keep"].write(folders / "records" / "bench" / "keep.json")
    both["default"].write(folders / "records" / "bench" / "default.json")
    assert list(read_benches(model)) == ["default", "keep"] and read_benches(model, "own") == {}
    both["keep"].write(folders / "results" / "bench.json")
    assert list(read_benches(model)) == ["keep"]
    assert list(read_benches(model, "own")) == ["keep"]
    assert list(read_benches(model, "committed")) == ["default", "keep"]


def test_another_model_a_quick_run_and_a_damaged_file(both, folders):
    own = folders / "results" / "bench.json"
    both["default"].write(own)
    assert read_benches("another-model") == {}
    quick = both["default"].model_copy(deep=True)
    quick.settings["quick"] = True
    quick.write(own)
    assert read_benches(quick.model.name) == {}
    own.write_text("{")
    with pytest.raises(QloraError, match="no record of qlora bench"):
        read_benches(quick.model.name)


def test_reading_loads_no_torch():
    code = "import sys, qlora_lib.report.benches; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- values ----------------------------------------------------------------------------------------


def test_every_printed_value_is_found_in_the_record(records, both):
    values = report_data("demo", records, [], TEMPLATE, benches=both)["values"]
    plain = {a: flat(type(r).model_validate_json(json.dumps(r.to_dict()))) for a, r in both.items()}
    ours = {k: v for k, v in values.items() if "bench" in v["source"]}
    assert len(ours) > 120
    for key, value in ours.items():
        source = value["source"]
        assert show(plain[source["bench"]].get(source["path"]), source["format"]) == value["text"], key
    assert values["bench.keep.measurements.training.4x128.qlora.fast.tokens_per_second@rate"]["text"] == "223"  # 512 / 2.3


def test_a_slip_of_the_pen_is_an_error_and_a_part_not_run_is_not(records, both):
    store = Store(records, benches=both)
    assert store.get("bench.default.measurements.training.9x9.qlora.fast.median_seconds").text == NOT_MEASURED
    for key in ("bench.default.measurements.training.4x128.qlora.fast.seconds_median", "bench.default.limit.x", "bench.other.x"):
        with pytest.raises(QloraError, match="bench record|no value"):
            store.get(key)
    with pytest.raises(QloraError, match="no format"):
        store.get("bench.default.settings.repeats@colour")


def test_what_a_ratio_lies_between(both):
    record = both["default"].model_copy(deep=True)
    name = "training.4x128.qlora.fast_over_stock"
    low, high = spread(record, name)
    assert low < record.ratios[name] < high
    details = record.ratio_details[name]
    details.quartiles = None  # fewer than four repeats: the least and the most of the pairs
    record.measurement(details.denominator).seconds = [3.0, 4.0]
    record.measurement(details.numerator).seconds = [2.0, 5.0]
    assert spread(record, name) == (0.8, 1.5)
    assert spread(record, "memory.4x128.qlora.fast_over_stock") is None


# --- sentences, both ways -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (2.3, "In QLoRA’s training this library is faster than the stock stack: 1.65×"),
        (5.7, "In QLoRA’s training this library is slower than the stock stack: 0.67×"),
        (3.8, "In QLoRA’s training no difference between this library and the stock stack is shown"),
    ],
)
def test_training_faster_slower_and_no_difference(records, seconds, expected):
    assert expected in said(records, "speed-found", with_seconds(records, training__qlora__fast=seconds))


def test_cases_that_differ_are_told_apart(records):
    two = {
        "default": example_bench(records["full"]),
        "keep": example_bench(records["full"], "keep", training__qlora__fast=5.7, training__full__fast=3.4),
    }
    text = said(records, "speed-found", two)
    assert "In QLoRA’s training it depends on the case" in text
    assert "In full fine-tuning this library is faster than the stock stack" in text
    assert "(no difference shown) with freed memory kept" in text.replace("\u00a0", " ")


def test_less_memory_and_more(records, both):
    assert "take less memory at their peak than the stock stack’s" in said(records, "speed-found", both)
    more = {"default": both["default"].model_copy(deep=True)}
    for name, ratio in more["default"].ratio_details.items():
        if name.startswith("memory."):
            ratio.value = 1.2
    assert "take more memory at their peak than the stock stack’s" in said(records, "speed-found", more)


@pytest.mark.parametrize(
    ("seconds", "training", "generation", "moral"),
    [
        ({}, "The stock stack repeats it here: 0.89×", "The stock stack repeats it here: 0.41×", "both turn round"),
        ({"training__qlora__stock": 2.0, "decode__nf4dq_adapter__stock": 1.0}, "does not repeat it here; QLoRA is the faster: 1.70×",
         "does not repeat it here; QLoRA is the faster: 2.30×", "both turn round"),
        ({"training__qlora__stock": 3.4}, "With the stock stack no difference is shown here", "repeats it here: 0.41×", "both turn round"),
        ({"training__qlora__fast": 4.0}, "The stock stack repeats it here", "repeats it here", None),
        ({"training__qlora__fast": 3.1}, "The stock stack repeats it here", "repeats it here", "not shown to be slower"),
        ({"decode__nf4dq_adapter__fast": 2.2}, "The stock stack repeats it here", "repeats it here", None),
    ],
)  # fmt: skip
def test_the_published_findings_follow_from_the_numbers(records, seconds, training, generation, moral):
    text = said(records, "speed-published", with_seconds(records, **seconds))
    first, second = text.split("It publishes that QLoRA generates slower")
    assert training in first and generation in second
    assert "+37.3% in time" in first and "3.12×" in second  # as the study prints them, or computed from that
    for word in ("both turn round", "not shown to be slower"):
        assert (word in text) == (word == moral)


def test_the_conclusion_on_the_study_s_speed(records, both):
    assert "goes one way with the stock stack and the other with this library" in said(records, "speed-of-study", both)
    slow = with_seconds(records, training__qlora__fast=4.0)
    assert "goes one way" not in said(records, "speed-of-study", slow)
    assert "goes one way" not in said(records, "speed-of-study")


def test_the_causes_and_what_is_not_told_apart(records, both):
    text = said(records, "speed-why", both).replace("\u00a0", " ")
    assert "A token of the stock stack takes 112 ms: 40.0 ms dequantization" in text
    assert "A token of this library takes 18.0 ms: 2.00 ms adapter products" in text
    assert "dequantization happens inside the products and is not told apart" in text
    assert "multiplies by 4-bit weights without dequantizing" not in text
    fused = {"default": both["default"].model_copy(deep=True)}
    for cause in [c.model_copy() for c in fused["default"].causes if c.arm.endswith("stock")]:
        fused["default"].causes.append(cause.model_copy(update={"arm": "nf4dq_adapter.stock_unfused"}))
    assert "multiplies by 4-bit weights without dequantizing" in said(records, "speed-why", fused)


def test_numerics(records, both):
    text = said(records, "speed-numerics", both)
    assert "0.09 times as much" in text and "All 50 greedy tokens" in text
    other = {"default": both["default"].model_copy(deep=True)}
    other["default"].numerics.equal_tokens["nf4dq_adapter"] = 17
    other["default"].numerics.loss_relative_differences = [1e-7, 4.2e-6, 3e-6]
    other["default"].numerics.greedy = GreedyAgreement(texts=10, tokens=2000, equal=1998, gaps_where_not=[1e-5, 2e-4])
    text = said(records, "speed-numerics", other).replace("\xa0", " ")
    assert "Of 50 greedy tokens the first 17 are equal" in text
    assert "losses of 3 steps differ by at most 4 × 10⁻⁶" in text and "Of 2,000 greedy tokens in 10 texts 1,998 are" in text


def test_several_sequences_at_a_time(records, both):
    """Slower than the stock stack is said with its figures; faster, in other words."""
    from qlora_lib.bench.record import ScalingPoint

    def batch(who, speeds):
        return [
            ScalingPoint(series="decode.batch", arm=f"nf4dq_adapter.{who}", what="", x=x, tokens=x, seconds=[x / v],
                         median_seconds=x / v, tokens_per_second=v) for x, v in speeds.items()
        ]  # fmt: skip

    for ours, words in (({1: 80.0, 2: 20.0, 4: 30.5}, "more slowly than the stock stack: 20.0 tokens a second against 29.0 for 2 sequences, 30.5"),
                        ({1: 80.0, 2: 40.0, 4: 90.0}, "faster than the stock stack in all"),
                        ({1: 80.0, 2: 20.0, 4: 90.0}, "in some batches and slower in others")):  # fmt: skip
        one = {"default": both["default"].model_copy(deep=True)}
        kept = [p for p in one["default"].scaling if p.series != "decode.batch"]
        one["default"].scaling = [*kept, *batch("fast", ours), *batch("stock", {1: 19.0, 2: 29.0, 4: 53.0})]
        assert words in said(records, "speed-growth", one)


# --- the page ----------------------------------------------------------------------------------------


def test_the_page_has_tables_pictures_and_sentences(records, both, tmp_path):
    drawn = draw_benches(both, tmp_path, ("svg",))
    assert [f.name for f in drawn] == list(BENCH_FIGURES)
    pdf = build_report("demo", records, drawn, tmp_path / "r.pdf", data_json=tmp_path / "r.json", benches=both)
    text = text_of(pdf)
    assert "Speed: this library against the stock stack" in text
    assert len(re.findall(r"Table \d+\. This library against the stock stack", text)) == 2
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["speed"]["tables"] == ["speed-default", "speed-keep", "speed-published"]
    assert data["speed"]["pictures"] == list(BENCH_FIGURES)
    refs = {p["ref"] for paragraphs in data["say"].values() for q in paragraphs for p in q["pieces"] if "ref" in p}
    assert {f"figure-{name}" for name in BENCH_FIGURES} <= refs
    for figure in drawn:
        assert data["figures"][figure.name]["alt"] and re.search(r"\d", figure.alt)


@pytest.mark.parametrize("parts", [(), ("scaling",), ("causes",)])
def test_a_part_that_was_not_run_is_not_measured(records, parts, tmp_path):
    found = {"keep": example_bench(records["full"], "keep", parts)}
    build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json", benches=found)
    assert json.loads((tmp_path / "r.json").read_text())["speed"]["pictures"] == ["bench-keep", *(f"bench-{p}" for p in parts)]
    assert (NOT_MEASURED in said(records, "speed-growth", found)) == ("scaling" not in parts)
    assert ("made of was " + NOT_MEASURED in said(records, "speed-why", found)) == ("causes" not in parts)


def test_only_the_limits_were_measured(records, tmp_path):
    bare = example_bench(records["full"], parts=())
    empty = bare.model_copy(update={"measurements": [], "numerics": type(bare.numerics)()}, deep=True)
    for ratio in empty.ratio_details.values():
        ratio.value = ratio.quartiles = None
    build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json", benches={"default": empty})
    assert "compute the same was not measured" in said(records, "speed-numerics", {"default": empty})


def test_no_record_is_one_sentence(records, tmp_path):
    pdf = build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json")
    assert "against the stock stack was not measured" in text_of(pdf)
    assert json.loads((tmp_path / "r.json").read_text())["speed"] == {"tables": [], "pictures": []}


def test_a_picture_of_a_record_that_is_gone_does_not_stay(both, tmp_path):
    draw_benches(both, tmp_path, ("svg",))
    draw_benches({"keep": both["keep"].model_copy(update={"scaling": [], "causes": []})}, tmp_path, ("svg",))
    assert [p.name for p in tmp_path.iterdir()] == ["bench-keep.svg"]


# --- which implementation the arms ran ------------------------------------------------------------


def on_fast_path(records, arms=("full", "lora", "qlora", "qlora-checkpointing")):
    words = {"full": ["loss", "norms"], "lora": ["loss", "norms", "adapters"]}
    for arm in arms:
        records = changed(records, arm, train__fast_path=words.get(arm, ["loss", "norms", "adapters", "optimizer"]))
    for arm, r in records.items():
        if r.generation and arms:
            records = changed(records, arm, generation__engine="fast")
    return records


def test_the_path_of_the_arms_is_said(records):
    assert "Every trained arm here ran the stock stack" in said(records, "path")
    assert "transformers’ own generate in every arm" in said(records, "path")
    fast = said(on_fast_path(records), "path")
    assert "All trained arms here ran on this library’s fast path" in fast
    assert "loss, norms, adapters, optimizer" in fast and "this library’s decoder in every arm" in fast
    mixed = said(on_fast_path(records, ("qlora",)), "path")
    assert "Some trained arms" in mixed and "arms of different paths are not compared" in mixed
    assert "A training step of QLoRA is" not in said(on_fast_path(records, ("qlora",)), "training")


def test_times_are_said_to_be_of_their_path(records, both):
    assert said(records, "timed-path", both).strip().startswith("Times here are those of the stock stack")
    assert "of this library’s fast path" in said(on_fast_path(records), "timed-path", both)


def test_advice_on_generation_goes_both_ways(records):
    assert "do not deploy the 4-bit base" in said(records, "choosing")
    quick = changed(
        records, "qlora", generation__latency_seconds=0.5, generation__tokens_per_second=100.0,
        generation__repeats=[0.49, 0.5, 0.51], train__seconds_per_step=1.0, train__seconds_per_step_quartiles=(0.99, 1.01),
    )  # fmt: skip
    text = said(quick, "choosing")
    assert "keep the weights in 4-bit" in text and "do not deploy" not in text
    assert "QLoRA is the faster of the two here" in text
    assert "in a training step QLoRA is faster" in said(quick, "speed-of-study")
    assert "in this run it is lower" in said(quick, "agreement")
