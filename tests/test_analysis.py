"""Intervals against closed forms and scipy; comparability; what cannot be computed."""

import math

import numpy as np
import pytest
from scipy import stats

from example_records import example_records
from qlora_lib import analysis
from qlora_lib.analysis import compare, difference, paired_interval, share_interval, why_not


@pytest.fixture
def records():
    return example_records("demo")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 23, 47, 500])
@pytest.mark.parametrize("probability", [0.6, 0.95, 0.975, 0.9995])
def test_student_quantile_is_scipys(degrees, probability):
    assert analysis.student_quantile(probability, degrees) == pytest.approx(
        stats.t.ppf(probability, degrees), rel=1e-9
    )


def test_interval_of_two_windows_by_hand():
    # d = (0, 2): mean 1, standard error 1; t(0.975, 1) = tan(0.475 pi).
    got = paired_interval([1.0, 5.0], [1.0, 3.0])
    assert (got.value, got.windows) == (1.0, 2)
    assert got.high - 1.0 == pytest.approx(math.tan(0.475 * math.pi))


def test_paired_interval_is_scipys_and_ignores_what_windows_share():
    rng = np.random.default_rng(1)
    a, b = rng.normal(3.0, 0.3, 40), rng.normal(3.1, 0.3, 40)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    ours = paired_interval(a, b)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high))
    hard = rng.normal(0, 5, 40)
    assert paired_interval(a + hard, b + hard).low == pytest.approx(ours.low)


def test_paired_interval_covers_as_often_as_it_says():
    rng = np.random.default_rng(2)
    inside = [not paired_interval(rng.normal(0.1, 1, 12), np.zeros(12)).excludes(0.1)
              for _ in range(2000)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_one_window_or_unequal_windows_are_refused():
    with pytest.raises(ValueError, match="two windows"):
        paired_interval([1.0], [2.0])
    with pytest.raises(ValueError):
        paired_interval([1.0, 2.0, 3.0], [1.0, 2.0])


def test_share_interval_exact_share_and_coverage():
    whole = np.array([0.1, 0.2, 0.4])
    got = share_interval(0.75 * whole, whole)
    assert (got.value, got.low, got.high) == pytest.approx((0.75, 0.75, 0.75))
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        whole = rng.normal(0.2, 0.05, 40)
        hits += not share_interval(0.8 * whole + rng.normal(0, 0.03, 40), whole).excludes(0.8)
    assert hits / 1000 == pytest.approx(0.95, abs=0.025)


def test_difference_is_the_log_ratio_of_the_recorded_perplexities(records):
    d, why = difference(records, "qlora", "full")
    p = {arm: records[arm].perplexity.after for arm in ("qlora", "full")}
    assert why is None
    assert d.ratio.value == pytest.approx(p["qlora"] / p["full"], rel=1e-5)
    assert d.ratio.low < d.ratio.value < d.ratio.high
    assert d.verdict == "worse"
    back, _ = difference(records, "full", "qlora")
    assert back.nats.value == pytest.approx(-d.nats.value)
    assert back.verdict == "better"


def test_compare_by_hand(records):
    c = compare(records)
    size = {arm: r.size_bytes.total for arm, r in records.items()}
    assert c.reference == "full"
    assert c.compression["qlora"] == size["full"] / size["qlora"]
    assert c.train_speed["qlora"] == pytest.approx(4.02 / 4.16)
    assert c.decode_speed["qlora"] == pytest.approx(4.9 / 15.7)
    assert c.peak_memory["full"] == 1.0
    assert set(c.quantization) == {"base-nf4dq", "base-nf4", "base-fp4", "base-int8"}
    assert set(c.against_reference) == {
        "lora", "qlora", "qlora-checkpointing", "full-nf4dq", "lora-nf4dq"
    }
    assert c.train_then_quantize.reference == "full-nf4dq"
    assert c.train_then_quantize.verdict == "better"
    assert compare(records, "lora").train_then_quantize.reference == "lora-nf4dq"
    share = math.log(27.25 / 21.63) / math.log(27.25 / 21.86)
    assert c.recovered.value == pytest.approx(share, rel=1e-4)
    assert c.gained["lora"].nats.value == pytest.approx(math.log(20.02 / 21.86), abs=1e-5)


def test_what_cannot_be_computed_is_none_with_a_reason(records):
    c = compare(records)
    assert c.against_reference["qlora-checkpointing"] is None
    assert "not measured" in c.reasons["against_reference.qlora-checkpointing"]
    assert c.train_speed["base"] is None and "not trained" in c.reasons["train_speed.base"]
    only = compare({"qlora": records["qlora"]})
    assert only.reference is None and only.compression == {"qlora": None}
    assert only.train_then_quantize is None and only.reasons["train_then_quantize"]
    assert only.recovered is None and "base" in only.reasons["recovered"]
    assert only.against_reference == {"qlora": None}
    assert compare({}).reference is None


def test_recovery_may_be_negative_or_undefined():
    records = example_records("demo")
    p = records["qlora"].perplexity
    p.window_nll_after = [x + 0.1 for x in p.window_nll_before]
    assert compare(records).recovered.value < 0
    free = records["base"].perplexity
    free.window_nll_before = list(p.window_nll_before)
    c = compare(records)
    assert c.recovered is None and "nothing to recover" in c.reasons["recovered"]


@pytest.mark.parametrize(
    ("path", "value", "aspect", "says"),
    [
        ("seed", 7, "perplexity", "seed"),
        ("data.name", "other", "perplexity", "data: other"),
        ("data.revision", None, "perplexity", None),
        ("perplexity.protocol", "strided", "perplexity", "protocol"),
        ("perplexity.stride", 64, "perplexity", "stride"),
        ("perplexity.window_nll_after", [1.0, 2.0], "perplexity", "number of windows"),
        ("perplexity.after", None, "perplexity", "was not measured"),
        ("train.tokens_per_step", 1024, "training", "tokens per step"),
        ("train.steps", 5, "perplexity", "training steps"),
        ("train", None, "training", "qlora was not trained"),
        ("provenance.cpu", "another", "decoding", "the machine's cpu"),
        ("provenance.cpu", "another", "perplexity", None),
        ("generation.new_tokens", 9, "decoding", "new tokens"),
        ("generation", None, "decoding", "not measured"),
        ("generation.engine", "fast", "decoding", "what made the tokens: fast and transformers"),
        ("train.fast_path", ["loss"], "training", "what trained them: the fast path and the stock stack"),
        ("train.fast_path", ["loss"], "perplexity", None),
        ("model.name", "other", "size", "model"),
        ("status", "stopped", "perplexity", "stopped early"),
    ],
)
def test_records_that_do_not_compare_say_why(records, path, value, aspect, says):
    full, qlora = records["full"], records["qlora"]
    assert why_not(qlora, full, aspect) is None
    *parents, name = path.split(".")
    part = qlora
    for parent in parents:
        part = getattr(part, parent)
    setattr(part, name, value)
    reason = why_not(qlora, full, aspect)
    assert (reason is None) if says is None else (says in reason)


def test_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, qlora_lib.analysis; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
