"""`qlora plan`: needs that only grow, verdicts, the largest that fits, advice that is true, times, prices, the command."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qlora_lib.cli import main
from qlora_lib.config import load_profile
from qlora_lib.cost import GPUS, MODELS, Run, Workload, find_cards, plan
from qlora_lib.cost import fitting as fitting_module
from qlora_lib.cost.advice import NEARLY, SAME, advise, changed_fields
from qlora_lib.cost.calibrated import Calibration, DecodeTimed, Machine, StepTimed, calibration_file, read_calibration, this_machine
from qlora_lib.cost.cards import gpu_card, stated_peak, this_cpu
from qlora_lib.cost.fitting import LARGEST, fit, largest
from qlora_lib.cost.peak import step_memory
from qlora_lib.cost.plan_table import bar, duration, durations, size, to_text
from qlora_lib.cost.roofline import decode_bytes, decode_time, flops_of, step_time, training_share
from qlora_lib.cost.speeds import DECODE_SPEEDS, training_speeds
from qlora_lib.errors import UsageError
from qlora_lib.profile_plans import cards_for, plan_profile

GIB = 2**30
GPU_PROFILES = ("t4-tinyllama-wikitext2", "rtx3070-tinyllama-dolly", "llama3.1-8b", "rtx3090-qwen2.5-tasks")
TINYLLAMA = MODELS["tinyllama-1.1b"].shape
T4 = gpu_card("T4")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """No calibration but the test's own."""
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def call(capfd, monkeypatch):
    """Run `qlora plan ...` in this process: (exit code, standard output, standard error)."""

    def call(*words: str):
        monkeypatch.setattr(sys, "argv", ["qlora", "plan", *map(str, words)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as e:
            main()
        out, err = capfd.readouterr()
        return e.value.code, out, err

    return call


def on_card(card, method="qlora", model="tinyllama-1.1b", batch=4, length=512, **settings) -> Workload:
    return Workload(MODELS[model].shape, method, batch, length, **{"dtype": card.dtype, "device": card.device} | settings)


# --- what is answered ----------------------------------------------------------------------------


def test_the_answer_has_what_the_contract_says():
    found = plan("tinyllama-1.1b", method="qlora", seq_len=512, batch_size=4)
    counts = found["parameters"]
    assert counts["total"] == 1_100_048_384 == sum(counts[name] for name in ("embedding", "attention", "mlp", "norms", "head"))
    # rank 16 on 22 layers: q and o 2048-2048, k and v 2048-256, gate, up and down 2048-5632
    assert counts["trainable"] == counts["adapters"] == 16 * 22 * (2 * (2048 + 2048) + 2 * (2048 + 256) + 3 * (2048 + 5632))
    assert found["peak_bytes"] == sum(found["bytes"].values()) and set(found["bytes"]) == set(found["sizes"])
    assert all(found["sizes"][name] >= count for name, count in found["bytes"].items())
    assert set(found["fits"]) == set(found["gpus"]) == {*GPUS, "cpu"}
    assert all(isinstance(fits, bool) for fits in found["fits"].values())
    json.dumps(found, allow_nan=False)


def test_a_plan_may_be_asked_by_widths_and_by_one_card():
    by_name, by_shape = plan("qwen3-4b", "lora", gpus="L4"), plan(MODELS["qwen3-4b"].shape, "lora", gpus=["L4"])
    assert by_name["bytes"] == by_shape["bytes"] and list(by_name["fits"]) == ["L4"]


def test_the_top_is_about_the_first_card_that_is_named():
    both = plan("tinyllama-1.1b", gpus=["T4", "cpu", "T4"])
    assert both["settings"]["dtype"] == "fp16" and list(both["fits"]) == ["T4", "cpu"]
    assert both["peak_bytes"] == both["gpus"]["T4"]["peak_bytes"]
    assert both["gpus"]["cpu"]["dtype"] == "fp32"


def test_full_training_of_tinyllama_does_not_fit_a_t4_and_the_plan_says_why():
    found = plan("tinyllama-1.1b", "full", gpus=["T4"])
    fixed = 16 * 1_100_048_384  # fp32 weights, gradients, two averages
    states = found["sizes"]["weights"] + found["sizes"]["gradients"] + found["sizes"]["optimizer states"]
    assert states == pytest.approx(fixed, rel=1e-4) and fixed > found["gpus"]["T4"]["usable_bytes"]
    assert found["fits"] == {"T4": False}
    why = found["gpus"]["T4"]["why"]
    assert "weights (4.1), gradients (4.1) and optimizer states (8.2) alone are 16.4 GiB" in why
    assert found["gpus"]["T4"]["largest"]["batch_size"] is found["gpus"]["T4"]["largest"]["seq_len"] is None
    first = found["gpus"]["T4"]["advice"][0]
    assert "8-bit AdamW" in first["changes"][0] and first["needs_bytes"]["high"] <= found["gpus"]["T4"]["usable_bytes"]


# --- needs only grow -----------------------------------------------------------------------------

WORKLOADS = st.builds(
    lambda card, method, model, batch, length, checkpointing, attention, optimizer, rank, accumulation, fast: on_card(
        card, method, model, batch, length, checkpointing=checkpointing, attention=attention, optimizer=optimizer, rank=rank,
        accumulation=accumulation, fast=fast,
    ),
    st.sampled_from([gpu_card("T4"), gpu_card("RTX 3090"), this_cpu()]),
    st.sampled_from(["full", "lora", "qlora"]),
    st.sampled_from(["tiny-2-layers", "smollm2-135m", "tinyllama-1.1b", "qwen2.5-7b", "qwen3-4b"]),
    st.integers(1, 16), st.integers(1, 3000), st.booleans(), st.sampled_from(["sdpa", "eager"]),
    st.sampled_from(["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"]), st.integers(1, 64), st.integers(1, 4), st.booleans(),
)  # fmt: skip


@given(WORKLOADS, st.sampled_from(["batch", "length"]), st.integers(1, 64))
def test_more_never_needs_less(work, name, more):
    larger = replace(work, **{name: getattr(work, name) + more})
    assert step_memory(larger).peak_bytes >= step_memory(work).peak_bytes


@given(WORKLOADS, st.integers(1, 64))
def test_a_higher_rank_never_needs_less(work, more):
    """With states of 32 bits that stay: bitsandbytes keeps those of tiny matrices in 32 bits and does not page small ones."""
    work = replace(work, optimizer="adamw")
    assert step_memory(replace(work, rank=work.rank + more)).peak_bytes >= step_memory(work).peak_bytes


@given(WORKLOADS, st.integers(0, 100 * GIB), st.integers(0, 100 * GIB))
def test_what_fits_a_card_fits_a_larger_one(work, usable, more):
    card = replace(T4, usable_bytes=usable)
    order = ("does not fit", "tight", "fits")
    small, large = fit(work, card).verdict, fit(work, replace(card, usable_bytes=usable + more)).verdict
    assert order.index(small) <= order.index(large)


@given(WORKLOADS, st.sampled_from(["batch", "length"]), st.integers(1, 80 * GIB))
def test_the_largest_that_fits_is_the_largest(work, what, usable):
    card = replace(T4, usable_bytes=usable)
    found = largest(work, card, what)
    if found is None:
        assert not fit(replace(work, **{what: 1}), card).fits
        return
    assert fit(replace(work, **{what: found}), card).fits
    assert found == LARGEST[what] or not fit(replace(work, **{what: found + 1}), card).fits


def test_tight_is_not_fitting(monkeypatch):
    monkeypatch.setattr(fitting_module, "overhead", lambda work: (1 * GIB, 3 * GIB))
    work = on_card(T4)
    peak = step_memory(work).peak_bytes
    for beside, verdict in ((GIB - 1, "does not fit"), (GIB, "tight"), (3 * GIB - 1, "tight"), (3 * GIB, "fits")):
        found = fit(work, replace(T4, usable_bytes=peak + beside))
        assert (found.verdict, found.fits) == (verdict, verdict == "fits")
    assert found.needs == (peak + GIB, peak + 3 * GIB)


# --- advice --------------------------------------------------------------------------------------


@given(WORKLOADS, st.floats(0.2, 1.0))
def test_advice_really_makes_it_fit(work, share):
    card = replace(gpu_card("RTX 3090") if work.device == "cuda" else this_cpu(), usable_bytes=int(fit_needs(work) * share))
    ways = advise(work, card)
    assert not (ways and fit(work, card).fits)
    for way in ways:
        assert fit(way.work, card).fits and way.changes
        assert way.needs[1] <= card.usable_bytes
        assert way.work.batch * way.work.accumulation == work.batch * work.accumulation
        if way.cost == SAME:
            assert (way.work.method, way.work.length, way.work.rank) == (work.method, work.length, work.rank)
    order = [round(way.weight, 2) for way in ways if way.cost <= NEARLY]
    assert order == sorted(order)


def fit_needs(work: Workload) -> int:
    return fit(work, T4).needs[1]


def test_no_change_of_an_advice_can_be_left_out():
    work = on_card(T4, "qlora", batch=16, length=2048, optimizer="adamw")
    ways = advise(work, T4)
    assert ways
    for way in ways:
        for name in set(way.settings) - {"accumulation"}:
            kept = {n: v for n, v in way.settings.items() if n != name}
            if name == "batch":
                kept.pop("accumulation")
            assert not fit(replace(work, **kept), T4).fits, (way.changes, name)


def test_nothing_is_advised_where_it_fits_or_nothing_helps():
    assert advise(on_card(T4, batch=1, length=128), T4) == []
    assert advise(on_card(T4), replace(T4, usable_bytes=GIB // 10)) == []


def test_a_loss_in_pieces_is_not_promised_in_fp16():
    """This library's chunked loss leaves fp16 to the stock one."""
    for card in (T4, gpu_card("RTX 3070")):
        ways = advise(on_card(card, "qlora", "llama3.2-1b", batch=16, length=512), replace(card, usable_bytes=5 * GIB))
        fast = [way for way in ways if way.work.fast]
        assert fast and all((way.work.loss == "chunked") == (card.dtype == "bf16") for way in fast), card.name
        assert any("pieces" in " ".join(way.changes) for way in ways) == (card.dtype == "bf16"), card.name


def test_changed_fields_name_what_a_user_would_set():
    work = on_card(T4)
    after = replace(work, batch=2, accumulation=2, optimizer="paged_adamw_8bit")
    assert changed_fields(work, after) == {
        "batch": 2, "accumulation": 2, "optimizer": "paged_adamw_8bit", "8-bit states": True, "paged states": True,
    }  # fmt: skip


# --- time ----------------------------------------------------------------------------------------


def test_a_large_step_is_bound_by_compute_and_takes_its_products_at_the_peak():
    work, card = on_card(T4, "lora", batch=8, length=512), T4
    time = step_time(work, card)
    assert time.limit_seconds == pytest.approx(flops_of(work).hardware_flops / 65e12) and time.bound == "compute"
    assert "fp16" in time.peak and "65 TFLOP/s" in time.peak and "data sheet" in time.peak


def test_a_tiny_step_of_full_training_is_bound_by_memory():
    work = on_card(T4, "full", batch=1, length=1)
    time = step_time(work, T4)
    n = TINYLLAMA.parameters.total  # weights twice, less the look-up; gradients and weights twice each; both averages twice
    moved = 2 * 4 * (n - TINYLLAMA.parameters.embedding) + 4 * 4 * n + 2 * 8 * n
    assert time.bound == "memory" and time.limit_seconds == pytest.approx(moved / 320e9, rel=1e-3)


def test_decoding_cannot_be_faster_than_the_weights_are_read():
    llama = MODELS["llama2-7b"].shape
    work = Workload(llama, "qlora", 1, 256, quantization="nf4", dtype="bf16", device="cuda")
    cache = 2 * 32 * 4096 * 256 * 2
    plain = 2 * (llama.parameters.total - 32_000 * 4096)
    assert decode_bytes(replace(work, method="lora", quantization="none"), 256) == plain + cache
    quantized = decode_bytes(work, 256) - cache - 2 * (llama.parameters.total - llama.linear_weights - 32_000 * 4096)
    assert 8 * quantized / llama.linear_weights == pytest.approx(4.127, abs=1e-3)  # bits a weight, QLoRA section 3
    assert decode_time(work, gpu_card("L4")).limit == pytest.approx(300e9 / decode_bytes(work, 256))


@pytest.mark.parametrize("point", training_speeds(), ids=lambda p: f"{p.card}-{p.method}")
def test_estimates_give_back_the_published_steps(point):
    card = gpu_card(point.card)
    work = Workload(
        MODELS[point.model].shape, point.method, point.batch, point.length, accumulation=point.accumulation, rank=point.rank,
        targets=point.targets, checkpointing=point.checkpointing, dtype=point.dtype, device="cuda",
    )  # fmt: skip
    low, high = step_time(work, card).estimate
    assert low * 0.999 <= point.seconds <= high * 1.001


@pytest.mark.parametrize("point", DECODE_SPEEDS, ids=lambda p: f"{p.card}-{p.model}-{p.quantization}-{p.double_quant}")
def test_estimates_give_back_the_published_decoding(point):
    card = gpu_card(point.card)
    method = "lora" if point.quantization == "none" else "qlora"
    work = Workload(MODELS[point.model].shape, method, 1, 64, quantization=point.quantization, double_quant=point.double_quant, dtype=card.dtype, device="cuda")
    time = decode_time(work, card)
    assert point.tokens_per_second < time.limit  # nobody can have been faster
    assert time.estimate[0] * 0.999 <= point.tokens_per_second <= time.estimate[1] * 1.001


def test_no_published_step_reached_more_than_the_peak():
    from qlora_lib.cost.roofline import share_reached

    assert all(0 < share_reached(point) < 1 for point in training_speeds())


@given(WORKLOADS)
def test_an_estimate_is_never_below_the_limit(work):
    card = gpu_card("RTX 3090") if work.device == "cuda" else this_cpu()
    time = step_time(work, card)
    if time.estimate:
        assert time.limit_seconds <= time.estimate[0] <= time.estimate[1]


def test_paging_is_paid_for():
    work = on_card(T4, "full", batch=1, length=64, optimizer="paged_adamw", checkpointing=True)
    found = fit(work, T4)
    assert found.memory.host_bytes > 0 and found.fits
    spilled = found.needs[1] + found.memory.host_bytes - T4.usable_bytes
    assert found.paging_bytes == 2 * spilled > 0
    assert step_time(work, T4, found.paging_bytes).bound == "paging"
    assert fit(work, gpu_card("A100 80GB")).paging_bytes == 0


def test_a_run_is_its_steps_and_its_price_its_hours():
    run = Run(tokens=1_000_000, epochs=3, price=2.5)
    answer = plan("tinyllama-1.1b", "qlora", gpus=["T4"], run=run)["gpus"]["T4"]
    steps = -(-3_000_000 // 2048)
    assert answer["run"]["steps"] == steps and answer["run"]["tokens"] == steps * 2048
    assert answer["run"]["hours_at_least"] == pytest.approx(steps * answer["step"]["limit_seconds"] / 3600)
    assert answer["run"]["hours_estimate"]["high"] == pytest.approx(steps * answer["step"]["estimate_seconds"]["high"] / 3600)
    assert answer["run"]["price"]["estimate"]["high"] == pytest.approx(2.5 * answer["run"]["hours_estimate"]["high"])
    assert plan("tinyllama-1.1b", "full", gpus=["T4"], run=run)["gpus"]["T4"]["run"] is None  # it does not fit


@pytest.mark.parametrize("given", [dict(steps=5, tokens=5), dict(epochs=2.0), dict(price=1.0), dict(steps=5, epochs=1.0)])
def test_a_run_that_says_too_much_or_too_little_is_refused(given):
    with pytest.raises(UsageError):
        Run(**given)


# --- this machine --------------------------------------------------------------------------------


def calibration(machine: Machine | None = None) -> Calibration:
    return Calibration(
        machine or this_machine(), "2026-01-01T00:00:00+00:00", 100e9, 20e9,
        (StepTimed("qlora", False, "smollm2-135m", 2, 128, 4.0, 200_000_000_000), StepTimed("qlora", True, "smollm2-135m", 2, 128, 2.5, 200_000_000_000)),
        (DecodeTimed("nf4", False, "smollm2-135m", 10.0, 500_000_000),),
    )  # fmt: skip


def test_a_calibration_corrects_the_times_of_this_machine_and_says_so():
    before = plan("smollm2-360m", "qlora", gpus=["cpu"])["gpus"]["cpu"]
    assert before["step"]["estimate_seconds"] is None and before["calibrated"] is None
    calibration_file().parent.mkdir(parents=True)
    calibration_file().write_text(calibration().to_json())
    after = plan("smollm2-360m", "qlora", gpus=["cpu"], search=False)["gpus"]["cpu"]
    work = on_card(this_cpu(), model="smollm2-360m")
    seconds = flops_of(work).hardware_flops / (0.5 * 100e9)  # 200 GFLOP in 4 s are half of 100 GFLOP/s
    assert after["step"]["estimate_seconds"] == {"low": pytest.approx(seconds), "high": pytest.approx(seconds)}
    assert after["step"]["share_of_peak"]["low"] == pytest.approx(0.5)
    assert "measured here" in after["step"]["peak"] and "measured here" in after["step"]["share_from"]
    assert after["calibrated"] == "2026-01-01T00:00:00+00:00"
    assert after["decode"]["share_of_bandwidth"]["low"] == pytest.approx(10.0 * 500e6 / 20e9)
    fast = plan("smollm2-360m", "qlora", gpus=["cpu"], search=False, fast=True)["gpus"]["cpu"]
    assert fast["step"]["share_of_peak"]["high"] == pytest.approx(0.8)


def test_a_calibration_without_lora_takes_that_of_qlora_and_none_for_full():
    card = replace(this_cpu(), calibration=calibration())
    share = lambda method: training_share(on_card(card, method, "smollm2-135m"), card)  # noqa: E731
    assert share("lora") == share("qlora") and "qlora" in share("lora").words and share("full") is None


def test_another_machines_calibration_and_a_damaged_one_are_as_good_as_none(tmp_path):
    file = tmp_path / "c.json"
    file.write_text(calibration().to_json())
    assert read_calibration(file) == calibration()
    file.write_text(calibration(replace(this_machine(), cores=1000)).to_json())
    assert read_calibration(file) is None
    whole = calibration().to_json()
    for damaged in ("", "[]", "{}", "null", whole[:-20], whole.replace('"schema": 1', '"schema": 2'), whole.replace("4.0", '"x"'), whole.replace("4.0", "-1")):
        file.write_text(damaged)
        assert read_calibration(file) is None, damaged


def test_a_cpus_stated_peak_says_how_it_was_derived():
    found = stated_peak("some CPU", 3)
    if found:
        assert found[0] > 1e9 and "3 cores" in found[1] and found[1].startswith("stated, not measured")


# --- cards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written, meant",
    [("t4", ["T4"]), ("RTX4090", ["RTX 4090"]), ("3090", ["RTX 3090"]), ("A100", ["A100 40GB", "A100 80GB"]), ("h100", ["H100 SXM"]),
     ("NVIDIA A100-SXM4-80GB", ["A100 80GB"]), ("a100-40gb", ["A100 40GB"]), ("Tesla T4", ["T4"]), ("CPU", ["cpu"])],
)  # fmt: skip
def test_cards_by_their_names(written, meant):
    assert [card.name for card in find_cards(written)] == meant


@pytest.mark.parametrize("name, told", [("T5", "'T4'"), ("RTX 3070 Ti", "'RTX 3070'"), ("H100 PCIe", "'H100 SXM'"), ("", "Choose from"), ("RTX", "")])
def test_an_unknown_card_is_refused_with_the_nearest(name, told):
    with pytest.raises(UsageError) as e:
        find_cards(name)
    assert told in str(e.value)


def test_less_can_be_used_than_a_card_has():
    for name in GPUS:
        card = gpu_card(name)
        assert 0.9 < card.usable_bytes / card.memory_bytes < 1, name


# --- profiles ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GPU_PROFILES)
def test_every_arm_that_a_gpu_profile_runs_fits_a_card_that_it_is_for(name):
    profile = load_profile(name)
    found = plan_profile(profile)
    assert [n for arm in found["arms"] for n in arm["names"]] != [] and "cpu" not in found["cards"]
    assert {n for arm in found["arms"] for n in arm["names"]} == {arm.name for arm in profile.arms}
    for arm in found["arms"]:
        if arm["trains"] and arm["runs"]:
            assert any(arm["fits"].values()), arm["names"]
        if arm["trains"] and not arm["runs"]:
            assert not any(arm["fits"].values()), arm["names"]  # declared as too large: it is
            assert all(there["advice"] or there["verdict"] != "fits" for there in arm["gpus"].values())


def test_what_a_plan_does_not_follow_is_said():
    found = plan_profile(load_profile("llama3.1-8b"))
    notes = {arm["names"][0]: arm["notes"] for arm in found["arms"] if arm["trains"]}
    assert "Unsloth" in notes["qlora-unsloth"][0] and notes["qlora-peft"] == []
    on_t4 = next(arm for arm in found["arms"] if arm["names"] == ["qlora-peft"])["gpus"]["T4"]
    assert on_t4["step"]["limit_seconds"] is None and "no bf16" in on_t4["notes"][0]


def test_the_demo_is_for_this_machine():
    found = plan_profile(load_profile("demo"), run=Run(steps=10))
    assert found["cards"] == ["cpu"]
    trained = [arm for arm in found["arms"] if arm["trains"]]
    assert len({arm["gpus"]["cpu"]["peak_bytes"] for arm in trained}) == len(trained)  # what is alike is one row


def test_cards_of_a_profile_are_those_it_names():
    assert [c.name for c in cards_for("one NVIDIA RTX 3070 (8 GB), or any GPU with 8 GB")] == ["RTX 3070"]
    assert {c.name for c in cards_for("one GPU with 24 GB")} == {"RTX 3090", "RTX 4090", "L4"}
    assert [c.name for c in cards_for("any CPU with two cores")] == ["cpu"]
    assert len(cards_for("a GPU")) == len(GPUS)


# --- text and command ----------------------------------------------------------------------------


def test_bars_have_the_length_of_their_share():
    assert bar(1, True, 10) == "█" * 10 and bar(0, True, 10) == "" and bar(0.55, True, 10) == "█████▌"
    assert bar(0.55, False, 10) == "#" * 6
    assert all(bar(x / 80, False, 10).isascii() for x in range(81))


def test_figures_are_short():
    assert (size(0), size(2048), size(5 * 2**20), size(1.5 * GIB)) == ("0", "2.0 KiB", "5.0 MiB", "1.50 GiB")
    assert (duration(0.05), duration(90), duration(300), duration(9000), duration(1e6)) == ("50.0 ms", "90.00 s", "5.0 min", "2.5 h", "11.6 d")
    assert durations(1800, 9000) == "0.5 to 2.5 h" and durations(5, 5) == "5.00 s" and duration(None) == "-"


def test_the_command_answers_in_words(call):
    code, out, err = call("--model", "tinyllama-1.1b", "--method", "full", "--gpu", "T4", "--steps", "500", "--price", "0.35")
    assert (code, err) == (0, "")
    assert "T4: does not fit" in out and "8-bit AdamW" in out and "65 TFLOP/s" in out and "predicted" in out
    found = plan("tinyllama-1.1b", "full", gpus=["T4"], run=Run(steps=500, price=0.35))
    assert out.rstrip("\n") in (to_text(found), to_text(found, blocks=False))


def test_the_command_answers_in_json(call):
    code, out, _ = call("--model", "llama3.1-8b", "--seq-len", 1024, "--batch-size", 2, "--rank", 8, "--targets", "q_proj, v_proj",
                        "--checkpointing", "--optimizer", "paged_adamw_8bit", "--gpu", "4090", "--gpu", "A100", "--json")  # fmt: skip
    assert code == 0
    settings = dict(batch_size=2, seq_len=1024, rank=8, targets=("q_proj", "v_proj"), checkpointing=True, optimizer="paged_adamw_8bit")
    assert json.loads(out) == json.loads(json.dumps(plan("llama3.1-8b", gpus=["4090", "A100"], **settings)))


def test_the_command_answers_for_a_profile(call):
    code, out, _ = call("--profile", "t4-tinyllama-wikitext2")
    assert code == 0 and "full-as-published (declared, not run) on T4: does not fit" in out
    code, out, _ = call("--profile", "rtx3070-tinyllama-dolly", "--gpu", "T4", "--json")
    assert code == 0 and json.loads(out)["cards"] == ["T4"]


def test_text_without_block_characters_is_plain():
    text = to_text(plan("tinyllama-1.1b"), blocks=False)
    assert text.isascii() and "#" in text


@pytest.mark.parametrize(
    "words, told",
    [(["--model", "tinylama"], "Did you mean 'tinyllama-1.1b'?"), (["--model", "tinyllama-1.1b", "--gpu", "T5"], "Did you mean 'T4'?"),
     (["--model", "tinyllama-1.1b", "--targets", "q_prj"], "Did you mean 'q_proj'?"), ([], "name a --model or a --profile"),
     (["--model", "tinyllama-1.1b", "--method", "qlor"], "'qlor' is not one of"), (["--model", "tinyllama-1.1b", "--batch-size", "0"], "batch-size"),
     (["--profile", "dem"], "Did you mean 'demo'?"), (["--profile", "demo", "--rank", "4"], "--profile has its own --rank"),
     (["--model", "tinyllama-1.1b", "--epochs", "2"], "tokens"), (["--model", "tinyllama-1.1b", "--method", "full", "--quantization", "nf4"], "cannot be trained"),
     (["--model", "tinyllama-1.1b", "--optimizer", "adam"], "is not one of"), (["--model", "tinyllama-1.1b", "--targets", ","], "no target modules")],
)  # fmt: skip
def test_what_is_asked_wrongly_is_one_line_and_exit_2(call, words, told):
    code, out, err = call(*words)
    (line,) = err.splitlines()
    assert (code, out) == (2, "") and line.startswith("error: ") and told in line


def test_no_module_of_cost_loads_anything_heavy():
    names = sorted(f"qlora_lib.cost.{path.stem}" for path in (Path(__file__).parent.parent / "qlora_lib" / "cost").glob("[a-z]*.py"))
    code = f"import importlib, sys\nfor name in {names}: importlib.import_module(name)\nprint([m for m in ('torch', 'numpy', 'pydantic', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    assert done.stdout.strip() == "[]" and len(names) > 10


def test_a_plan_needs_no_torch_and_less_than_two_seconds():
    """The whole command in a process of its own; processor time, since others may be working here."""
    code = (
        "import sys, time\n"
        "from qlora_lib.cli import cli\n"
        "cli(sys.argv[1:], standalone_mode=False)\n"
        "heavy = [m for m in ('torch', 'numpy', 'pydantic', 'transformers', 'numba', 'matplotlib') if m in sys.modules]\n"
        "print(heavy, time.process_time(), file=sys.stderr)\n"
    )
    words = ["plan", "--model", "llama3.1-70b", "--method", "full", "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent)
    heavy, seconds = done.stderr.strip().rsplit(" ", 1)
    assert heavy == "[]" and float(seconds) < 2
    assert json.loads(done.stdout)["parameters"]["total"] == 70_553_706_496
