"""Scaling, fitted exponents and the causes of slow decoding, as `qlora bench` measures them."""

import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import one_thread  # noqa: F401

from qlora_lib.bench import causes, loading, rounds, scaling, scaling_decoding, training
from qlora_lib.bench.cached import FastContinuation, StockContinuation
from qlora_lib.bench.causes import Parts, measure_causes, taken_apart
from qlora_lib.bench.decoding import compiled_decoder, stock_arm
from qlora_lib.bench.fits import fit_all, power_law
from qlora_lib.bench.record import ScalingPoint
from qlora_lib.bench.settings import QUICK, BenchSettings, Grid
from qlora_lib.config import Lora
from qlora_lib.errors import QloraError
from qlora_lib.metrics.sizes import model_bytes

GRID = Grid(
    lengths=(8, 16, 24), batches=(1, 2), batch_length=8, contexts=(4, 8), sequences=(1, 2), prompts=(4, 8), new_tokens=2
)
SETTINGS = BenchSettings(**(QUICK | {"grid": GRID, "scaling_repeats": 2}))


@pytest.fixture(scope="module")
def models() -> loading.InferenceModels:
    return loading.load_for_inference(tiny.folder(), Lora(), 0)


@pytest.fixture(scope="module")
def tokens() -> np.ndarray:
    return tiny.data().tokens["train"]


@pytest.fixture(scope="module")
def decoded(models, tokens) -> list[ScalingPoint]:
    return scaling_decoding.measure_decoding_scaling(models, tokens, SETTINGS)


@pytest.fixture(scope="module")
def parts(models, tokens) -> list[Parts]:
    return measure_causes(models, tokens, SETTINGS)


# --- fits ----------------------------------------------------------------------------------------

POSITIVE = st.floats(1e-6, 1e6)


@given(
    c=POSITIVE, k=st.floats(-3, 3), x=st.lists(st.integers(1, 4096), min_size=3, max_size=8, unique=True)
)  # fmt: skip
def test_a_power_law_gives_its_exponent_back(c, k, x):
    exponent, worst = power_law(x, [c * n**k for n in x])
    assert exponent == pytest.approx(k, abs=1e-6) and worst < 1e-6


@given(x=st.lists(st.integers(1, 2000), min_size=3, max_size=6, unique=True), data=st.data())
def test_the_fit_is_the_least_squares_line_of_the_logarithms(x, data):
    y = data.draw(st.lists(POSITIVE, min_size=len(x), max_size=len(x)))
    a, b = np.log(x), np.log(y)
    slope = ((a - a.mean()) * (b - b.mean())).sum() / ((a - a.mean()) ** 2).sum()  # the closed form
    fitted = np.exp(b.mean() + slope * (a - a.mean()))
    exponent, worst = power_law(x, y)
    assert exponent == pytest.approx(slope, rel=1e-6, abs=1e-6)
    assert worst == pytest.approx(np.abs(np.array(y) / fitted - 1).max(), rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("n", [0, 1, 2])
def test_fewer_than_three_points_have_no_exponent(n):
    assert power_law([1, 2][:n], [3.0, 5.0][:n]) == (None, None)


def point(x: int, seconds: float, what: str = "a", arm: str = "qlora.fast", **more) -> ScalingPoint:
    return ScalingPoint.timed([seconds], x, series="training.length", arm=arm, what=what, x=x, **more)


def test_every_arm_and_quantity_that_has_a_point_has_a_fit():
    points = [point(x, 2.0 * x, peak_tensor_bytes=100 * x * x, above_resident_bytes=7) for x in (1, 2, 4)]
    points += [point(x, 1.0, arm="full.fast") for x in (1, 2)]
    points.append(ScalingPoint(series="training.length", arm="full.fast", what="a", x=4, tokens=4, reason="out of memory"))
    fits = {(f.arm, f.quantity): f for f in fit_all(points)}
    assert fits["qlora.fast", "seconds"].exponent == pytest.approx(1)
    assert fits["qlora.fast", "peak_tensor_bytes"].exponent == pytest.approx(2)
    assert fits["qlora.fast", "above_resident_bytes"].exponent == pytest.approx(0, abs=1e-12)
    assert (fits["full.fast", "seconds"].exponent, fits["full.fast", "seconds"].points) == (None, 2)
    assert ("full.fast", "peak_tensor_bytes") not in fits


def test_two_ways_of_decoding_are_not_fitted_as_one():
    points = [point(1, 50.0, "decoder"), *(point(x, 3.0 * x, "generate") for x in (2, 4, 8))]
    (fit,) = fit_all(points)
    assert (fit.exponent, fit.points) == (pytest.approx(1), 3)


def test_an_arm_that_never_ran_is_a_fit_without_an_exponent():
    points = [ScalingPoint(series="decode.context", arm="fp32.stock", what="a", x=x, tokens=1, reason="no") for x in (1, 2, 3)]
    (fit,) = fit_all(points)
    assert (fit.quantity, fit.exponent, fit.points) == ("seconds", None, 0)


# --- training ------------------------------------------------------------------------------------


def test_training_has_a_point_for_every_arm_at_every_place(tokens):
    points = scaling.measure_training_scaling(tiny.folder(), tokens, SETTINGS)
    places = [("training.length", x, x) for x in GRID.lengths] + [("training.batch", x, 8 * x) for x in GRID.batches]
    assert [(p.series, p.x, p.tokens, p.arm) for p in points] == [(*place, arm) for place in places for arm in scaling.ARMS]
    for p in points:
        assert len(p.seconds) == 2 and p.median_seconds == statistics.median(p.seconds) and p.reason is None
        assert p.tokens_per_second == pytest.approx(p.tokens / p.median_seconds)
        assert p.peak_tensor_bytes > p.above_resident_bytes > 0
    weights = {p.arm: {q.peak_tensor_bytes - q.above_resident_bytes for q in points if q.arm == p.arm} for p in points}
    assert all(len(each) == 1 for each in weights.values())  # weights and states do not grow
    above = {p.x: p.above_resident_bytes for p in points if (p.series, p.arm) == ("training.length", "qlora.stock")}
    assert above[24] > above[16] > above[8]


def test_a_shape_that_runs_out_of_memory_is_a_point_with_a_reason(tokens, monkeypatch):
    step = training.Arm.step

    def limited(arm, ids):
        if arm.name == "qlora.stock" and ids.numel() >= 16:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
        return step(arm, ids)

    monkeypatch.setattr(training.Arm, "step", limited)
    points = scaling.measure_training_scaling(tiny.folder(), tokens, SETTINGS)
    for p in points:
        if p.arm == "qlora.stock" and p.tokens >= 16:
            assert p.reason == rounds.OUT_OF_MEMORY and (p.seconds, p.median_seconds, p.peak_tensor_bytes) == ([], None, None)
        else:
            assert p.reason is None and len(p.seconds) == 2
    assert {f.exponent for f in fit_all(points) if f.arm == "qlora.stock"} == {None}


def test_memory_that_ends_in_a_timed_round_takes_out_that_arm_alone():
    ran = []

    def fails(i):
        if i == 1:
            raise MemoryError

    nothing = lambda *_: None  # noqa: E731
    works = {"a": rounds.Work(nothing, nothing, fails), "b": rounds.Work(nothing, nothing, ran.append)}
    seconds, reasons = rounds.in_turns_where_it_fits(works, 3)
    assert list(seconds) == ["b"] and len(seconds["b"]) == 3 == len(ran) and reasons == {"a": rounds.OUT_OF_MEMORY}
    broken = {"a": rounds.Work(nothing, nothing, lambda i: [][1])}
    with pytest.raises(IndexError):
        rounds.in_turns_where_it_fits(broken, 1)


def test_what_cannot_fit_is_not_tried(monkeypatch):
    before = [point(8, 1.0, above_resident_bytes=1000)]
    monkeypatch.setattr(scaling.psutil, "virtual_memory", lambda: SimpleNamespace(available=3000))
    too_large = lambda x, points=before: scaling.too_large_after(points, "training.length", "qlora.fast", x)  # noqa: E731
    assert too_large(24) is None and "not tried" in too_large(32)
    assert scaling.too_large_after(before, "training.batch", "qlora.fast", 32) is None  # another series
    failed = [*before, ScalingPoint(series="training.length", arm="qlora.fast", what="a", x=16, tokens=16, reason="no room")]
    assert too_large(24, failed) == "no room"


# --- decoding ------------------------------------------------------------------------------------


def test_decoding_has_a_point_for_every_arm_at_every_place(decoded):
    places = [("decode.context", x, 2) for x in GRID.contexts] + [("decode.batch", x, 2 * x) for x in GRID.sequences]
    places += [("first_token.prompt", x, x) for x in GRID.prompts]
    arms = ("fp32.stock", "nf4dq_adapter.stock", "nf4dq_adapter.fast")
    assert [(p.series, p.x, p.tokens, p.arm) for p in decoded] == [(*place, arm) for place in places for arm in arms]
    for p in decoded:
        assert len(p.seconds) == (0 if p.reason else 2) and p.peak_tensor_bytes is None


def test_what_ours_runs_is_said_where_it_changes(decoded):
    ours = {(p.series, p.x): p.what for p in decoded if p.arm == scaling_decoding.FAST}
    assert "compiled decoder" in ours["decode.batch", 1] and "generate" in ours["decode.batch", 2]
    assert ours["decode.context", 4] == ours["decode.batch", 1]


def test_the_fast_path_is_out_of_the_model_afterwards(decoded, models):
    assert not any("before_fast" in m.__dict__ for m in models.fast_4bit.modules())


def test_a_filled_cache_continues_the_text_and_reads_one_token_at_a_time(models):
    ids = tiny.ids(1, 9)
    whole = stock_arm("fp32", "", models.fp32, ids).run(5)
    how, widths = StockContinuation(models.fp32, ids, 5), []
    how.fill()
    hook = models.fp32.model.register_forward_hook(
        lambda m, _, kwargs, out: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        for _ in range(2):  # the cache is as before
            how.ready()
            assert how.run() == whole
    finally:
        hook.remove()
    assert widths == [1] * 10


def test_the_compiled_decoder_continues_the_same_text(models):
    decoder, reason = compiled_decoder(models.fp32)
    if decoder is None:
        pytest.skip(reason)
    ids = tiny.ids(1, 9)
    how = FastContinuation(decoder, ids, 5)
    how.fill()
    for _ in range(2):
        how.ready()
        assert how.run() == stock_arm("fp32", "", models.fp32, ids).run(5)


def test_where_there_is_no_decoder_the_point_says_why(models, tokens, monkeypatch):
    monkeypatch.setattr(scaling_decoding, "compiled_decoder", lambda _: (None, "no such processor"))
    ids = scaling_decoding.prompts_of(tokens, 1, 5)
    points = {p.arm: p for p in scaling_decoding._decoded(models, "decode.context", 4, ids, SETTINGS)}
    assert points[scaling_decoding.FAST].reason == "no such processor" and not points["fp32.stock"].reason


def test_prompts_are_the_profiles_text_and_come_round_again():
    text = np.arange(20)
    assert scaling_decoding.prompts_of(text, 3, 8).tolist() == [[*range(8)], [*range(8, 16)], [*range(8)]]
    with pytest.raises(QloraError, match="20 tokens"):
        scaling_decoding.prompts_of(text, 1, 21)


# --- causes --------------------------------------------------------------------------------------


def test_causes_add_up_to_the_measured_token(parts):
    assert [p.arm for p in parts][-1] == causes.FAST and parts[0].arm == causes.STOCK
    for p in parts:
        found = {c.cause: c for c in taken_apart(p, 1e9)}
        assert list(found) == [causes.DEQUANTIZATION, causes.ADAPTER, causes.TRAFFIC, causes.REST]
        assert all(c.what and c.arm == p.arm for c in found.values())
        known = [c.seconds_per_token for c in found.values() if c.seconds_per_token is not None]
        if p.token is not None:
            assert sum(known) == pytest.approx(p.token)


def test_dequantization_is_told_apart_exactly_where_it_happens_by_itself(parts, models):
    by_arm = {p.arm: p for p in parts}
    fused = causes.is_fused(models.stock_4bit)
    assert (causes.UNFUSED in by_arm) == fused and not causes.is_fused(models.fast_4bit)
    assert (by_arm[causes.STOCK].dequantization is None) == fused
    apart = by_arm[causes.UNFUSED if fused else causes.STOCK]
    assert apart.dequantization > 0 and apart.adapter > 0 and apart.token > 0
    assert by_arm[causes.FAST].dequantization is None and "registers" in by_arm[causes.FAST].what_dequantization


def test_bytes_of_traffic_are_those_that_a_token_reads(parts, models):
    by_arm = {p.arm: p for p in parts}
    fp32, four_bit = model_bytes(models.fp32), model_bytes(models.fast_4bit)
    unfused = by_arm.get(causes.UNFUSED, by_arm[causes.STOCK])
    assert unfused.bytes_read == fp32.total  # tied head: read whole
    scales = four_bit.quantized_weights * 2 // 64 * 4  # fp32, one for 64 weights
    assert causes.looked_up_bytes(models.fast_4bit) == four_bit.unquantized + four_bit.quantized_weights + scales
    if by_arm[causes.FAST].token is not None:
        assert by_arm[causes.FAST].bytes_read == causes.looked_up_bytes(models.fast_4bit)


def test_a_rest_below_zero_is_kept_and_explained():
    given = Parts("a", "a token", 0.010, 0.008, "d", 0.003, "p", 4_000_000, "t")
    *_, traffic, rest = taken_apart(given, 1e9)
    assert traffic.seconds_per_token == pytest.approx(0.004) and rest.seconds_per_token == pytest.approx(-0.005)
    assert "below zero" in rest.what


def test_without_a_decoder_ours_is_null_with_the_reason(models, tokens, monkeypatch):
    monkeypatch.setattr(causes, "compiled_decoder", lambda _: (None, "no such processor"))
    ours = taken_apart(measure_causes(models, tokens, SETTINGS)[-1], 1e9)
    assert {c.seconds_per_token for c in ours} == {None} and all("no such processor" in c.what for c in ours)


def test_adapter_products_are_those_of_peft(models, monkeypatch):
    """Same calls on the same shapes as PEFT's own forward at batch 1."""
    seen = []
    adapters = [m for name, m in models.fast_4bit.named_modules() if name.endswith((".lora_A.default", ".lora_B.default"))]
    hooks = [m.register_forward_hook(lambda m, x, y: seen.append((id(m), tuple(x[0].shape), y.dtype))) for m in adapters]
    try:
        with torch.no_grad():
            models.fast_4bit(input_ids=tiny.ids(1, 1))
        by_peft = sorted(seen)
        seen.clear()
        causes.adapter_products(models.fast_4bit)()
        assert sorted(seen) == by_peft and len(seen) == 2 * 7 * 2
    finally:
        for hook in hooks:
            hook.remove()


def test_every_4_bit_weight_is_dequantized_once(models, monkeypatch):
    import bitsandbytes.functional as functional

    seen = []
    monkeypatch.setattr(functional, "dequantize_4bit", lambda data, state: seen.append(state.shape.numel()))
    weights = causes.four_bit_weights(models.fast_4bit)
    causes.dequantize_all(weights)
    assert len(seen) == 7 * 2 and sum(seen) == 2 * model_bytes(models.fast_4bit).quantized_weights
