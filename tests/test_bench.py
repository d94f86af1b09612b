"""`qlora bench`: what is compared, that both sides do the same work, the record's form, and its mistakes."""

import json
import os
import statistics
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from tiny import one_thread  # noqa: F401

import qlora_lib.cli.bench as command
from qlora_lib import style
from qlora_lib.bench import decoding, loading, machine, numerics, ratios, rounds, scoring, training
from qlora_lib.bench.record import BenchRecord, Limits, Measurement, read_bench
from qlora_lib.bench.run import _stage, default_out, run_bench
from qlora_lib.bench.settings import PARTS, QUICK, BenchSettings, Shape, parse_shapes
from qlora_lib.bench.table import to_text
from qlora_lib.cli import main
from qlora_lib.config import Lora
from qlora_lib.cost.flops import step_flops
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.data import training_order
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.figures.bench import bench_alt, draw_bench
from qlora_lib.hardware import KEEP_FREED_MEMORY

SETTINGS = BenchSettings(**QUICK)


@pytest.fixture(scope="module")
def record() -> BenchRecord:
    """One quick run with two repeats, through JSON and back."""
    made = run_bench(BenchSettings(**(QUICK | {"repeats": 2, "shapes": parse_shapes("2x16,1x32")})))
    return BenchRecord.model_validate_json(json.dumps(made.to_dict()))


@pytest.fixture(scope="module")
def models():
    load = lambda shipped: loading.inference_model(tiny.folder(), Lora(), 0, as_shipped=shipped)  # noqa: E731
    return SimpleNamespace(fp32=tiny.base(), stock_4bit=load(True), fast_4bit=load(False))


@pytest.fixture
def bench(capfd, monkeypatch):
    """Run `qlora bench ...` in this process: (exit code, standard output, standard error)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["qlora", "bench", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        return e.value.code, *capfd.readouterr()

    return call


# --- the record ----------------------------------------------------------------------------------


def test_every_ratio_is_recomputed_from_the_measurements(record):
    assert set(record.ratios) == set(record.ratio_details)
    for name, detail in record.ratio_details.items():
        above = record.measurement(detail.numerator)
        if above.reason:
            assert record.ratios[name] is None
            continue
        if detail.denominator.startswith("limits."):
            _, part, where = detail.denominator.split(".", 2)
            limit = getattr(record.limits, part)[where].tokens_per_second
            expected = above.tokens / statistics.median(above.seconds) / limit
        else:
            below = record.measurement(detail.denominator)
            if below.reason:
                assert record.ratios[name] is None and detail.quartiles is None
                continue
            if detail.quantity == "peak_tensor_bytes":
                expected = above.peak_tensor_bytes / below.peak_tensor_bytes
            else:
                speeds = [(above.tokens / a) / (below.tokens / b) for a, b in zip(above.seconds, below.seconds, strict=True)]
                expected = statistics.median(speeds)
        assert record.ratios[name] == pytest.approx(expected, rel=1e-12), name


def test_the_ratios_that_the_targets_are_about_are_there_by_name(record):
    for shape in ("2x16", "1x32"):
        for name in ("qlora.fast_over_stock", "fast.qlora_over_full", "full.fast_over_stock", "stock.qlora_over_full"):
            assert record.ratios[f"training.{shape}.{name}"] > 0
            assert record.ratios[f"memory.{shape}.{name}"] > 0
    assert record.ratios["decode.nf4dq_adapter.stock_over_stock_fp32"] > 0
    for name in ("fast_over_stock", "fast_over_stock_fp32"):
        value = record.ratios[f"decode.nf4dq_adapter.{name}"]
        assert (value or 0) > 0 or record.measurement("decode.nf4dq_adapter.fast").reason
    assert record.ratios["perplexity.fast_over_stock"] > 0


def test_each_measurement_has_its_repeats_or_the_reason_why_not(record):
    names = [m.name for m in record.measurements]
    assert len(set(names)) == len(names) == 2 * 4 + 6 + 4
    for m in record.measurements:
        assert m.name.startswith(f"{m.part}.") and m.what
        if m.reason:
            assert (m.seconds, m.median_seconds, m.tokens_per_second) == ([], None, None)
            continue
        assert len(m.seconds) == 2 and m.median_seconds == statistics.median(m.seconds)
        assert m.quartiles_seconds is None  # of two there are none
        assert (m.peak_tensor_bytes is not None) == (m.part == "training") and m.model_bytes > 0
        if m.part == "training":
            assert m.peak_tensor_bytes > m.model_bytes


def test_limits_follow_from_the_shapes_and_the_bytes(record, models):
    limits, shape = record.limits, ModelShape.read(tiny.folder() / "config.json")
    for name, limit in limits.training.items():
        where, method = name.split(".")
        batch, length = map(int, where.split("x"))
        assert limit.flops == step_flops(shape, method, batch, length, 16).hardware_flops
        assert limit.tokens_per_second == pytest.approx(batch * length * limits.gemm_flops_per_second / limit.flops)
    bandwidth = max(limits.copy_bytes_per_second, limits.read_bytes_per_second)
    assert limits.decode["fp32"].bytes_per_token == loading.bytes_per_token(models.fp32)
    assert limits.decode["fp32"].tokens_per_second == pytest.approx(bandwidth / limits.decode["fp32"].bytes_per_token)


def test_ours_computes_what_the_stock_stack_does(record):
    n = record.numerics
    assert n.loss_relative_difference < 1e-5 and n.gradient_relative_difference < 1e-4
    assert n.worst_gradient_relative_difference >= n.gradient_relative_difference / 10 and "lora_" in n.worst_gradient
    for error in (n.loss_error, n.gradient_error):
        assert error["fast"] <= 2 * error["stock"] + 1e-6
    assert n.perplexity_relative_difference["fp32"] < 1e-5
    assert n.perplexity_relative_difference["nf4dq_adapter"] < 1e-2  # stock may multiply in bf16


def test_where_it_was_measured_stands_in_the_record(record):
    p = record.provenance
    assert p.threads == torch.get_num_threads() and p.cpu and p.versions["torch"] and p.wall_seconds > 0
    assert set(p.stage_seconds) == {"limits", "load", *PARTS}
    assert record.settings["shapes"] == ["2x16", "1x32"] and record.settings["lora"]["rank"] == 16
    assert record.settings["quick"] is True


def test_a_record_is_read_back_and_a_damaged_one_is_told(record, tmp_path):
    record.write(tmp_path / "bench.json")
    assert read_bench(tmp_path / "bench.json") == record
    (tmp_path / "cut.json").write_text((tmp_path / "bench.json").read_text()[:500])
    with pytest.raises(QloraError, match="no record of qlora bench"):
        read_bench(tmp_path / "cut.json")
    with pytest.raises(QloraError, match="qlora bench"):
        read_bench(tmp_path / "none.json")


def test_the_table_names_every_measurement_and_ratio(record):
    text = to_text(record)
    for name in (*record.ratios, *(m.name for m in record.measurements)):
        assert f"\n{name} " in text, name
    assert "not measured: llama.cpp" in text or "llama_cpp" in text


def test_the_table_has_every_point_fit_and_cause(record):
    lines = [" ".join(line.split()) for line in to_text(record).splitlines()]
    for p in record.scaling:
        (line,) = [x for x in lines if x.startswith(f"{p.series} {p.x} {p.arm} ")]
        assert f"{p.median_seconds:.3g}" in line if p.reason is None else p.reason in line
    for f in record.fits:
        (line,) = [x for x in lines if x.startswith(f"{f.series} {f.arm} {f.quantity} ")]
        assert ("too few" if f.exponent is None else f"{f.exponent:.3f}") in line
    for c in record.causes:
        value = "not told apart" if c.seconds_per_token is None else f"{1000 * c.seconds_per_token:.4g} ms"
        assert f"{c.cause} {value} {c.what}" in lines


def test_a_whole_record_has_every_series_fit_and_cause(record):
    assert {p.series for p in record.scaling} == {
        "training.length", "training.batch", "decode.context", "decode.batch", "first_token.prompt",
    }  # fmt: skip
    assert all((p.reason is None) == (len(p.seconds) == record.settings["scaling_repeats"]) for p in record.scaling)
    fitted = {(f.series, f.arm) for f in record.fits if f.exponent is not None}
    assert ("training.length", "qlora.fast") in fitted and ("training.batch", "qlora.fast") not in fitted  # of two points
    arms = {c.arm for c in record.causes}
    assert {"nf4dq_adapter.stock", "nf4dq_adapter.fast"} <= arms and len(record.causes) == 4 * len(arms)
    traffic = {c.arm: c.seconds_per_token for c in record.causes if c.cause == "memory traffic"}
    if traffic["nf4dq_adapter.fast"] is not None:
        read = traffic["nf4dq_adapter.fast"] * record.limits.read_bytes_per_second
        assert read < record.limits.decode["fp32"].bytes_per_token


# --- ratios, by hand -----------------------------------------------------------------------------


def test_a_ratio_is_the_median_over_pairs_of_repeats():
    fast = Measurement.timed("decode.a.fast", "a", 10, [1.0, 2.0, 3.0])
    slow = Measurement.timed("decode.a.stock", "a", 10, [3.0, 2.0, 6.0])
    assert ratios._each(fast, slow, ratios.SPEED) == [3.0, 1.0, 2.0]  # median 2; the medians' ratio is 1.5
    limits = Limits(gemm_flops_per_second=1.0, copy_bytes_per_second=1.0, read_bytes_per_second=1.0)
    others = [Measurement.missing(name, "", 10, "not run") for pair in ratios.pairs([]).values() for name in pair]
    fast, slow = (m.model_copy(update={"name": name}) for m, name in ((fast, "decode.fp32.fast"), (slow, "decode.fp32.stock")))
    found = ratios.ratios([*others, fast, slow], limits, [])
    assert found["decode.fp32.fast_over_stock"].value == 2.0
    assert found["decode.nf4dq_adapter.fast_over_stock_fp32"].value is None


def test_different_amounts_of_work_are_compared_by_speed():
    a, b = (Measurement.timed("training.x", "x", tokens, [s]) for tokens, s in ((100, 1.0), (50, 1.0)))
    assert ratios._each(a, b, ratios.SPEED) == [2.0]


def test_rounds_alternate_and_preparation_is_not_timed():
    calls = []
    arms = {name: lambda i, name=name: calls.append((name, i)) for name in ("stock", "fast")}
    ready = {name: lambda i, name=name: calls.append((f"ready {name}", i)) for name in arms}
    seconds = rounds.in_turns(arms, 2, ready)
    assert [c for c in calls if "ready" not in c[0]] == [("stock", 0), ("fast", 0), ("stock", 1), ("fast", 1)]
    assert calls[0] == ("ready stock", 0) and {len(s) for s in seconds.values()} == {2}


def test_the_better_of_two_readings_of_the_machine_holds():
    a = Limits(gemm_flops_per_second=1.0, copy_bytes_per_second=5.0, read_bytes_per_second=3.0)
    b = Limits(gemm_flops_per_second=2.0, copy_bytes_per_second=4.0, read_bytes_per_second=3.5)
    both = machine.better(a, b)
    assert (both.gemm_flops_per_second, both.copy_bytes_per_second, both.read_bytes_per_second) == (2.0, 5.0, 3.5)


# --- that both sides do the same work ------------------------------------------------------------


def test_a_step_of_the_bench_is_the_step_written_by_hand():
    """Trainer's step adds cost and changes no number: same losses, same weights, for stock and for ours."""
    settings = BenchSettings(**(QUICK | {"lora": Lora(dropout=0.0)}))
    batches = training.batches_of(tiny.data().tokens["train"], Shape(2, 32), 3, 0)
    by_trainer, by_hand = training.make_arms(tiny.folder(), settings), training.make_arms(tiny.folder(), settings)
    for arm, other in zip(by_trainer, by_hand, strict=True):
        arm.enter()
        losses = [arm.step(ids) for ids in batches]
        other.enter()
        assert other.model.training
        expected = []
        for ids in batches:
            loss = other.model(input_ids=ids, labels=ids).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(other.parameters, training.MAX_GRAD_NORM)
            other.optimizer.step()
            other.optimizer.zero_grad()
            expected.append(loss.item())
        assert losses == pytest.approx(expected, rel=1e-6), arm.name
        for ours, theirs in zip(arm.parameters, other.parameters, strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6), arm.name


def test_a_step_goes_through_trainer_and_leaves_no_gradient_where_it_fails(monkeypatch):
    from transformers import Trainer

    arm = training.make_arms(tiny.folder(), SETTINGS)[0]
    (ids,) = training.batches_of(tiny.data().tokens["train"], Shape(2, 16), 1, 0)
    seen, step = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda self, *given: seen.append(self) or step(self, *given))
    arm.enter()
    arm.step(ids)
    assert seen == [arm.trainer] and arm.trainer.args.report_to == []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        arm.step(ids)
    assert all(p.grad is None for p in arm.parameters)


def test_trainer_does_not_change_the_model_or_what_it_returns():
    for method in ("qlora", "full"):
        model = loading.training_model(tiny.folder(), method, Lora(), 0)
        before = {id(m): m.forward for m in model.modules()}
        assert not training.make_trainer(model).accelerator.native_amp
        assert all(m.forward == before[id(m)] for m in model.modules())


def test_the_steps_of_the_bench_give_the_losses_of_trainers_loop(tmp_path):
    from qlora_lib.training import train

    steps, batch = 3, 4
    _, s = tiny.arm(
        "qlora", train__max_steps=steps, train__optimizer="adamw_8bit", train__schedule="constant", train__warmup_steps=0,
        train__learning_rate=training.LEARNING_RATE["qlora"], train__batch_size=batch,
        lora__dropout=0.0, lora__rank=16, lora__alpha=32,
    )  # fmt: skip
    data = tiny.data()
    model = loading.training_model(tiny.folder(), "qlora", s.lora, s.seed)
    expected = train(model, data, s, tiny.FP32, "cpu", tmp_path).train.loss

    stock = training.make_arms(tiny.folder(), BenchSettings(**(QUICK | {"lora": s.lora})))[0]
    order = training_order(len(data.windows("train")), steps * batch, s.seed).reshape(steps, batch)
    batches = training.batches_of(data.tokens["train"], Shape(batch, 32), steps, s.seed)
    assert all((b.numpy() == data.windows("train")[rows]).all() for b, rows in zip(batches, order, strict=True))
    stock.enter()
    assert [stock.step(b) for b in batches] == pytest.approx(expected, rel=1e-6)


def test_arms_of_a_method_share_weights_and_differ_in_forwards_and_optimizer():
    qlora_stock, qlora_fast, full_stock, full_fast = training.make_arms(tiny.folder(), SETTINGS)
    assert [a.name for a in (qlora_stock, qlora_fast, full_stock, full_fast)] == [
        "qlora.stock", "qlora.fast", "full.stock", "full.fast",
    ]  # fmt: skip
    assert qlora_stock.model is qlora_fast.model and full_stock.model is full_fast.model
    assert type(qlora_stock.optimizer) is not type(qlora_fast.optimizer) and full_stock.optimizer is full_fast.optimizer
    assert qlora_stock.model.training and full_stock.model.training
    replaced = lambda model: sum("before_fast" in m.__dict__ for m in model.modules())  # noqa: E731
    qlora_fast.enter()
    assert replaced(qlora_fast.model) > 0
    qlora_stock.enter()
    assert replaced(qlora_stock.model) == 0


def test_adapters_have_all_seven_modules_rank_16_and_dropout():
    model = loading.training_model(tiny.folder(), "qlora", Lora(), 0)
    config = model.peft_config["default"]
    assert (config.r, config.lora_dropout, len(config.target_modules)) == (16, 0.05, 7)
    assert model.get_base_model().is_gradient_checkpointing is False


def test_the_reference_is_fp64_in_every_norm_product_and_loss():
    model = loading.training_model(tiny.folder(), "qlora", Lora(dropout=0.0), 0)
    loading.fill_adapters(model, 0)
    ids = tiny.ids(2, 12)
    before = model(input_ids=ids).logits
    numerics.to_fp64(model)
    seen = set()
    for module in model.modules():
        if not list(module.children()) and not type(module).__name__.endswith("RotaryEmbedding"):  # two angles, in fp32
            module.register_forward_hook(lambda m, given, out: seen.add((type(m).__name__, out.dtype)))
    after = model(input_ids=ids).logits
    assert after.dtype == torch.float64 and torch.allclose(after, before.double(), atol=1e-5)
    assert {dtype for _, dtype in seen} == {torch.float64} and "Linear4bit" not in {name for name, _ in seen}
    norm = model.get_base_model().model.norm
    x = torch.randn(3, 64, dtype=torch.float64)
    exact = norm.weight * x / (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).sqrt()
    assert torch.allclose(norm(x), exact, rtol=1e-14)


def test_both_ways_of_scoring_agree(models):
    windows = tiny.data().windows("test")[:3]
    stock = scoring.stock_perplexity(models.fp32, windows, 2)
    assert scoring.fast_perplexity(models.fp32, windows, 2) == pytest.approx(stock, rel=1e-6)


def test_the_stock_4_bit_model_keeps_the_products_that_bitsandbytes_ships(models):
    import bitsandbytes as bnb

    flags = lambda model: {m.support_avx512bf16_for_cpu for m in model.modules() if isinstance(m, bnb.nn.Linear4bit)}  # noqa: E731
    assert flags(models.stock_4bit) == {bnb.functional.has_avx512bf16()}
    assert flags(models.fast_4bit) == {False}


def test_decoders_make_exactly_the_tokens_asked_for_and_the_same(models):
    ids = tiny.ids(1, 9)
    stock = decoding.stock_arm("decode.fp32.stock", "", models.fp32, ids)
    fast = decoding.fast_arm("decode.fp32.fast", "", models.fp32, ids)
    made = stock.run(12)
    assert len(made) == 12 and models.fp32.generation_config.eos_token_id not in made
    if fast.run is None:
        pytest.skip(fast.reason)
    assert fast.run(12) == made == fast.run(12)


def test_what_cannot_be_decoded_gives_its_reason(models, monkeypatch):
    ids = tiny.ids(1, 4)
    monkeypatch.setitem(sys.modules, "qlora_lib.fast.decoder", None)
    arm = decoding.fast_arm("decode.fp32.fast", "", models.fp32, ids)
    assert arm.run is None and "not installed" in arm.reason
    arm = decoding.llama_cpp_arm("decode.llama_cpp", None, "no binding", ids, 4)
    assert (arm.run, arm.reason) == (None, "no binding")


def test_llama_cpp_reads_the_prompt_and_feeds_each_token_once(monkeypatch, tmp_path):
    seen = []

    class Llama:
        def __init__(self, model_path, n_ctx, **_):
            assert n_ctx == 4 + 6 and model_path == str(file)

        def reset(self):
            seen.clear()

        def eval(self, tokens):
            seen.extend(tokens)

        def sample(self, temp):
            assert temp == 0.0  # greedy
            return len(seen)

    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama, __spec__=object()))
    ids = tiny.ids(1, 4)
    arm = decoding.llama_cpp_arm("decode.llama_cpp", file, None, ids, 6)
    assert arm.what == "llama.cpp, m.gguf"
    assert arm.run(6) == arm.run(6) == [4, 5, 6, 7, 8, 9]
    assert seen == [*ids[0].tolist(), 4, 5, 6, 7, 8]  # the last one made is not read


def test_greedy_tokens_are_counted_until_the_first_that_differs():
    assert decoding._agree([1, 2, 3], [1, 2, 3]) == 3
    assert decoding._agree([1, 9, 3], [1, 2, 3]) == 1
    assert decoding._agree(None, [1]) is None


def test_an_embedding_that_is_only_looked_up_is_not_read(models):
    tied = loading.bytes_per_token(models.fp32)
    head = models.fp32.get_output_embeddings()
    embedding = models.fp32.get_input_embeddings()
    untied = torch.nn.Embedding.from_pretrained(embedding.weight.detach().clone())
    models.fp32.set_input_embeddings(untied)
    try:
        assert loading.bytes_per_token(models.fp32) == tied
    finally:
        models.fp32.set_input_embeddings(embedding)
        head.weight = embedding.weight


# --- the figure ----------------------------------------------------------------------------------


def shown(figure) -> str:
    return "\n".join(t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))


def test_the_figure_shows_values_limits_and_what_was_not_measured(record):
    figure = draw_bench(record)
    text = shown(figure)
    for m in record.measurements:
        if m.part != "perplexity" and m.tokens_per_second:
            assert style.number(m.tokens_per_second) in text and m.name in bench_alt(record)
    llama_cpp = record.measurement("decode.llama_cpp")
    assert ("not measured" in text) == (llama_cpp.reason is not None)
    for word in (record.model.name, record.data.name, record.provenance.cpu, "numbers mean nothing"):
        assert word in text.replace("\n", " ")
    assert all(axes.get_xlabel() for axes in figure.get_axes())
    lines = [line.get_xdata()[0] for line in figure.get_axes()[0].get_lines()]
    assert set(lines) == {limit.tokens_per_second for limit in record.limits.training.values()}


def test_the_same_record_makes_the_same_bytes_and_another_does_not(record):
    drawn = style.render(draw_bench(record), "svg")
    assert style.render(draw_bench(record), "svg") == drawn
    changed = record.model_copy(deep=True)
    changed.measurements[0].peak_tensor_bytes *= 3
    assert style.render(draw_bench(changed), "svg") != drawn


def test_quartiles_become_whiskers(record):
    changed = record.model_copy(deep=True)
    m = changed.measurement("training.2x16.qlora.fast")
    m.quartiles_seconds = (m.median_seconds * 0.9, m.median_seconds * 1.1)
    ends = [tuple(line.get_xdata()) for line in draw_bench(changed).get_axes()[0].get_lines()]
    assert pytest.approx((m.tokens_per_second / 1.1, m.tokens_per_second / 0.9)) in ends


def test_a_figure_loads_no_torch():
    code = "import sys, qlora_lib.figures.bench; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- the command and its mistakes ----------------------------------------------------------------


def test_quick_run_on_the_command_line_writes_what_it_prints(bench, tmp_path):
    out = tmp_path / "new" / "b.json"
    code, printed, progress = bench("--quick", "--parts", "training", "--json", "--out", out)
    assert code == 0, progress
    assert json.loads(printed) == json.loads(out.read_text()) and read_bench(out).settings["repeats"] == 1
    assert {"ratios", "measurements", "limits"} <= set(json.loads(printed))
    assert "round 1/1" in progress and [p.name for p in out.parent.iterdir()] == ["b.json"]


def test_a_quick_run_does_not_take_the_place_of_a_measurement():
    assert default_out(True) != default_out(False) and default_out(False).name == "bench.json"


@pytest.mark.parametrize("text", ["4", "4x", "x128", "0x128", "4x1", "4x128,", "4 by 128", "-4x128", "4x128;4x256", ""])
def test_a_shape_that_is_none_is_refused(text, bench):
    with pytest.raises(UsageError, match="is no shape"):
        parse_shapes(text)


def test_shapes_are_read_in_order_and_once():
    assert parse_shapes("4x256, 4x128,4x256") == (Shape(4, 256), Shape(4, 128))
    assert str(Shape(4, 128)) == "4x128" and Shape(4, 128).tokens == 512


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--shapes", "4by128"], "no shape"),
        (["--quick", "--model", "no-such-model"], "no-such-model"),
        (["--quick", "--profile", "smok"], "smoke"),
        (["--quick", "--gguf", "nowhere.gguf"], "nowhere.gguf"),
        (["--quick", "--shapes", "1x99999"], "tokens"),
        (["--quick", "--parts", "training,decoding"], "decoding"),
    ],
)
def test_a_mistake_is_one_line(words, says, bench, tmp_path):
    code, printed, progress = bench(*words, "--out", tmp_path / "b.json")
    lines = progress.splitlines()
    assert code in (1, 2) and printed == "" and not (tmp_path / "b.json").exists()
    assert len(lines) == 1 and lines[0].startswith("error: ") and says in lines[0], progress


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "BertForMaskedLM"),
        ({"architectures": ["PhiForCausalLM"], "model_type": "phi"}, "model type 'phi'"),
    ],
)
def test_a_model_that_is_no_causal_language_model_is_refused_before_the_work(change, says, tmp_path):
    config = json.loads((tiny.folder() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UsageError, match=says):
        loading.check_model(tmp_path)


def test_too_little_text_for_a_window_is_told():
    with pytest.raises(QloraError, match="one window needs 64"):
        training.batches_of(tiny.data().tokens["train"][:63], Shape(2, 64), 1, 0)
    with pytest.raises(QloraError, match="one window needs 32"):
        scoring.measure_scoring(None, tiny.data().tokens["test"][:31], SETTINGS)


def test_too_little_memory_is_told_and_other_failures_are_not_hidden():
    stages = {}
    with pytest.raises(QloraError, match="out of memory in the part 'training'"), _stage(stages, "training"):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")
    with pytest.raises(RuntimeError, match="shapes differ"), _stage(stages, "training"):
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize("setting", ["repeats", "scaling_repeats", "new_tokens", "windows", "context", "score_batch"])
def test_nothing_is_measured_zero_times(setting):
    with pytest.raises(UsageError, match=setting):
        BenchSettings(**{setting: 0})


@pytest.fixture
def started(monkeypatch):
    """(program, words, environment) that the command would start again with."""
    found = []
    monkeypatch.setattr(os, "execve", lambda *given: found.append(given))
    monkeypatch.setattr(sys, "argv", ["qlora", "bench", "--allocator", "keep"])
    for name in KEEP_FREED_MEMORY:
        monkeypatch.delenv(name, raising=False)
    return found


def test_allocator_settings_are_there_before_the_process_starts(started, monkeypatch):
    command.start_again_with("default")
    assert started == []  # it is so already
    command.start_again_with("keep")
    ((program, words, environment),) = started
    assert program == sys.executable and words[1:] == ["-m", "qlora_lib", "bench", "--allocator", "keep"]
    assert KEEP_FREED_MEMORY.items() <= environment.items() and os.environ.items() <= environment.items()
    for name, value in KEEP_FREED_MEMORY.items():
        monkeypatch.setenv(name, value)
    started.clear()
    command.start_again_with("keep")
    assert started == []
    command.start_again_with("default")
    assert not KEEP_FREED_MEMORY.keys() & started[0][2].keys()


def test_another_systems_allocator_is_left_alone(started, monkeypatch):
    monkeypatch.setattr("platform.libc_ver", lambda: ("", ""))
    with pytest.raises(UsageError, match="glibc"):
        command.start_again_with("keep")
    assert started == []
