"""Claims of the demo and of the Qwen project, and between documents: recomputed by other means, and turned.

As in test_claims_guide.py: arithmetic from widths typed here, records as plain JSON, and for each claim another quotation
or another finding that turns its verdict.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from claiming import is_whole, record, swapped_arms, turned_by_finding, turned_by_quoting

from qlora_lib import claims
from qlora_lib.claims import across, demo, libraries, measured, sources
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, UNKNOWN
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.models import MODELS
from qlora_lib.paths import committed_records
from qlora_lib.sweeps import Axis, Point

OURS = {key: claim for key, claim in claims.all_claims().items() if claim.document in ("demo", "qwen", "across")}
GIB, MIB = 2**30, 2**20

# name -> (hidden, layers, width of queries, of keys and values, MLP, vocabulary, matrices of the vocabulary)
TINYLLAMA, QWEN3_4B, QWEN3_8B = (
    (2048, 22, 2048, 256, 5632, 32000, 2),
    (2560, 36, 4096, 1024, 9728, 151936, 1),
    (4096, 36, 4096, 1024, 12288, 151936, 2),
)


def linear(model) -> int:
    h, layers, q, kv, mlp, _, _ = model
    return layers * h * (2 * q + 2 * kv + 3 * mlp)


def total(model) -> int:
    """Without norms, a few in a hundred thousand."""
    return linear(model) + model[0] * model[5] * model[6]


def matrices(model, rank: int) -> list[int]:
    """Elements of the adapters' matrices of one layer, all linear."""
    h, _, q, kv, mlp, _, _ = model
    return [rank * n for pair in ((h, q), (h, kv), (h, kv), (q, h), (h, mlp), (h, mlp), (mlp, h)) for n in pair]


def evidence(key: str) -> dict:
    return OURS[key].check().evidence


# --- every claim ---------------------------------------------------------------------------------


def test_every_claim_is_tried_below():
    assert set(OURS) == {name for name, *_ in SAID_OTHERWISE} | set(FOUND_OTHERWISE)


@pytest.mark.parametrize("key", OURS)
def test_findings_are_whole(key):
    is_whole(OURS[key], words=25)


def test_the_documents_quoted_are_known():
    assert {claim.document for claim in OURS.values()} <= set(claims.DOCUMENTS)


# --- another quotation, another verdict ----------------------------------------------------------

SAID_OTHERWISE = [
    ("demo-01", HOLDS, "8GB", "12GB", FAILS),
    ("demo-01", HOLDS, "RTX 3070", "RTX 9999", UNKNOWN),
    ("demo-02", HOLDS, "1.1B", "1.5B", FAILS),
    ("demo-03", HOLDS, "15K", "52K", FAILS),
    ("demo-14", UNKNOWN, "Key Tradeoffs Observed", "12.3 tokens per second", HOLDS),
    ("qwen-01", FAILS, "4B", "3B", HOLDS),
    ("qwen-01", FAILS, "Qwen2.5-4B-Instruct", "Qwen3-4B", HOLDS),
    ("qwen-02", FAILS, "8B", "7B", HOLDS),
    ("qwen-06", FAILS, "training and evaluation", "evaluation", HOLDS),
    ("qwen-07", HOLDS, "F1 Score", "BLEU", FAILS),
    ("qwen-08", HOLDS, "24GB", "16GB", FAILS),
    ("qwen-09", FAILS, "Ulta", "Core Ultra", HOLDS),
    ("qwen-10", ASSUMED, "bfloat16", "float32", HOLDS),
    ("qwen-10", ASSUMED, "bfloat16", "float16", FAILS),
    ("qwen-11", ASSUMED, "4, 8, 16", "4, 8", FAILS),
    ("qwen-11", ASSUMED, "4, 8, 16", "64", HOLDS),
    ("qwen-12", FAILS, "full fine-tuning", "LoRA", HOLDS),
    ("qwen-14", HOLDS, "2023", "2024", FAILS),
    ("qwen-14", HOLDS, "QLoRA: Efficient", "Efficient", UNKNOWN),
    ("qwen-15", HOLDS, "ICLR", "ICML", FAILS),
    ("qwen-16", FAILS, "Zhang", "Yang", HOLDS),
    ("qwen-17", HOLDS, "Houlsby", "Hu", FAILS),
    ("qwen-18", ASSUMED, "TimDettmers", "bitsandbytes-foundation", HOLDS),
    ("qwen-18", ASSUMED, "TimDettmers/bitsandbytes", "TimDettmers/other", FAILS),
    ("across-02", FAILS, "7 attention", "4 attention", HOLDS),
    ("across-03", FAILS, "37.3", "10.0", HOLDS),
    ("across-04", FAILS, "18.73", "0.45", HOLDS),
    ("across-05", FAILS, "548.61", "200.00", HOLDS),
    ("across-05", FAILS, "<16GB", "<48GB", HOLDS),
    ("across-06", ASSUMED, "32", "16", HOLDS),
    ("across-06", ASSUMED, "alpha=16", "alpha=8", FAILS),
    ("across-07", HOLDS, "10^{-4}", "10^{-5}", FAILS),
    ("across-08", ASSUMED, "3.1x", "0.9x", FAILS),
    ("across-09", FAILS, "3090 (24GB VRAM)", "3090 (240GB VRAM)", HOLDS),
    ("across-11", ASSUMED, "8GB", "1GB", FAILS),
    ("across-12", FAILS, "524.54", "541.20", HOLDS),
    ("across-12", FAILS, "524.54", "590.11", ASSUMED),
    ("across-13", HOLDS, "12,615,680", "12,615,681", FAILS),
]


@pytest.mark.parametrize("key, verdict, old, new, turned", SAID_OTHERWISE)
def test_another_quotation_turns_the_verdict(key, verdict, old, new, turned):
    turned_by_quoting(OURS[key], verdict, old, new, turned)


def test_one_precision_everywhere_would_agree():
    claim = OURS["across-01"].requoted("full precision", "float16").requoted("bfloat16", "float16")
    assert claim.check().verdict == HOLDS


# --- other findings, another verdict -------------------------------------------------------------


def axis(*losses: tuple[float, tuple[float, float]]) -> Axis:
    """(value, losses of two seeds) as the points of an axis."""

    def made(seed: int, loss: float):
        return SimpleNamespace(seed=seed, arm="made", status="complete", train=SimpleNamespace(eval_loss=[9.0, loss]))

    return Axis("made", "qlora", tuple(Point(v, tuple(made(s, x) for s, x in enumerate(both)), both) for v, both in losses))


def steep(base: float) -> Axis:
    return axis((1, (base + 1, base + 1)), (2, (base, base)), (4, (base + 1, base + 1)))


def flat(base: float) -> Axis:
    return axis((1, (base, base)), (2, (base, base)), (4, (base, base)))


def narrower() -> dict:
    return {"qlora": steep(3.4), "lora": flat(3.3), "full": flat(3.2), "qlora-8bit": flat(3.9)}


def on_a_large_card(method, model=demo.MODEL, card=demo.CARD, **more):
    return _step(method, model, "RTX 3090", **more)


def always_the_same(method, *args, **more):
    return _step("lora", *args, **more)


_step = demo.step

FOUND_OTHERWISE = {
    "demo-04": (HOLDS, libraries, "trained_names", lambda: ("lora_A", "lora_B", "embed"), FAILS),
    "demo-05": (ASSUMED, demo, "step", on_a_large_card, FAILS),
    "demo-06": (HOLDS, demo, "GPUS", {"H100 SXM": GPUS["H100 SXM"]}, FAILS),
    "demo-07": (HOLDS, demo, "step", always_the_same, ASSUMED),
    "demo-08": (UNKNOWN, measured, "rates", narrower, HOLDS),
    "demo-09": (UNKNOWN, measured, "rates", narrower, HOLDS),
    "demo-10": (ASSUMED, demo, "CARD", "H100 SXM", FAILS),
    "demo-11": (ASSUMED, measured, "settings", lambda: {"tokens-tuned": axis((128, (3.6, 3.6)), (512, (3.4, 3.4)))}, HOLDS),
    "demo-12": (HOLDS, measured, "arm", swapped_arms("full", "lora"), FAILS),
    "demo-13": (ASSUMED, libraries, "merged_difference", lambda: (0.0, 10), HOLDS),
    "qwen-03": (ASSUMED, measured, "perplexity_above", lambda one, other: (-2.0, -3.0, -1.0), HOLDS),
    "qwen-04": (ASSUMED, libraries, "loads_a_script", lambda: "", HOLDS),
    "qwen-05": (ASSUMED, sources, "ALPACA_EVAL", {"train": 1, "eval": 805}, HOLDS),
    "qwen-13": (UNKNOWN, measured, "tolerance", lambda: 0.0, HOLDS),
    "across-01": (FAILS, across, "WIDTHS", {"full precision": "float16", "float16": "float16"}, HOLDS),
    "across-10": (ASSUMED, across, "SMALLEST_PAGED", 1, HOLDS),
}


@pytest.mark.parametrize("key", FOUND_OTHERWISE)
def test_other_findings_turn_the_verdict(key, monkeypatch):
    turned_by_finding(OURS[key], monkeypatch, *FOUND_OTHERWISE[key])


def test_nothing_is_paged_where_no_matrix_is_large(monkeypatch):
    monkeypatch.setattr(across, "SMALLEST_PAGED", 10**6)
    assert OURS["across-10"].check().verdict == FAILS


# --- the same figures by other means -------------------------------------------------------------


def test_the_steps_by_a_lower_bound():
    """Weights, gradients and states alone, 16 bytes a trained number in fp32; the peak is above."""
    found = evidence("demo-05")
    trained = 22 * sum(matrices(TINYLLAMA, 16))
    least = {
        "full": 16 * total(TINYLLAMA),
        "lora": 2 * total(TINYLLAMA) + 16 * trained,
        "qlora": linear(TINYLLAMA) * 4.127 / 8 + 4 * (total(TINYLLAMA) - linear(TINYLLAMA)) + 16 * trained,
    }
    for method, size in least.items():
        assert size / GIB < found[f"{method} GiB"] < 1.4 * size / GIB + 0.6
    assert least["full"] > 8 * GIB > 2 * least["lora"]
    wide = evidence("qwen-12")
    for name, model in (("qwen3-4b", QWEN3_4B), ("qwen3-8b", QWEN3_8B)):
        assert wide[f"{name}, fp32 weights, AdamW GiB"] > 16 * total(model) / GIB
        # weights and gradients in bf16 have to be on the card, whatever is paged
        assert wide[f"{name}, bf16 weights, paged 8-bit AdamW GiB"] > 4 * total(model) / GIB
    assert 4 * total(QWEN3_8B) > 24 * GIB > 4 * total(QWEN3_4B)


def test_full_fine_tuning_against_cards_by_sixteen_bytes_a_parameter():
    """What is above the card by this bound alone is surely too large."""
    found = evidence("demo-06")
    surely = sum(16 * MODELS[name].shape.parameters.total > gpu.memory_bytes for name in demo.BY_SIZE for gpu in GPUS.values())
    assert surely <= found["too_large"] <= found["pairs"] == len(demo.BY_SIZE) * len(GPUS)
    assert 2 * surely > found["pairs"]


def test_parameters_and_rows():
    assert evidence("demo-02")["parameters"] == 1_100_048_384
    assert evidence("demo-04")["percent_at_rank_16"] == pytest.approx(100 * 22 * sum(matrices(TINYLLAMA, 16)) / 1_100_048_384)
    assert evidence("across-13")["recomputed"] == 22 * sum(matrices(TINYLLAMA, 16)) == 12_615_680
    two = evidence("across-02")
    assert two["attention_parameters"] == 22 * sum(matrices(TINYLLAMA, 16)[:8]) and two["all_parameters"] == 12_615_680


def test_shares_that_are_paged():
    found = evidence("qwen-11")
    for name, model in (("qwen3-4b", QWEN3_4B), ("qwen3-8b", QWEN3_8B)):
        for rank in (4, 8, 16):
            each = np.array(matrices(model, rank))
            assert found[f"{name}, r = {rank}, %"] == pytest.approx(100 * each[each >= 100_000].sum() / each.sum())
    largest = evidence("across-10")
    assert largest["the study's adapters (TinyLlama, r=16, all linear)"] == 16 * 5632 < 100_000 <= 16 * 12_288


def test_sensitivity_by_the_records_themselves():
    """Good ranges by interpolation of each method's mean losses, in numpy."""
    rates = {"full": ("2.5e-05", "5e-05", "0.0001", "0.0002", "0.0004"), "lora": ("0.0005", "0.001", "0.002", "0.004", "0.008")}
    rates["qlora"] = rates["lora"]
    found = evidence("demo-08")
    for method, tried in rates.items():
        loss = [np.mean([record(f"{method}-rate-{r}-s{s}", "demo-long")["train"]["eval_loss"][-1] for s in (0, 1)]) for r in tried]
        grid = np.linspace(math.log(float(tried[0])), math.log(float(tried[-1])), 20_001)
        good = grid[np.interp(grid, [math.log(float(r)) for r in tried], loss) <= min(loss) + found["tolerance"]]
        assert found[f"{method} factor"] == pytest.approx(math.exp(good[-1] - good[0]), rel=1e-3)
    eight = evidence("demo-09")
    for rate, plain in (("0.001", "qlora-rate-0.001"), ("0.004", "qlora-rate-0.004")):
        ends = [np.mean([record(f"{arm}-s{s}", "demo-long")["train"]["eval_loss"][-1] for s in (0, 1)]) for arm in (f"adamw8bit-{rate}", plain)]
        assert eight[f"nats at {float(rate):g}"] == pytest.approx(ends[0] - ends[1])


def test_decoding_and_cost_by_the_records_themselves():
    speed = {arm: record(arm)["generation"]["tokens_per_second"] for arm in ("base", "lora", "base-nf4dq", "qlora")}
    assert evidence("demo-13")["NF4, %"] == pytest.approx(100 * (speed["qlora"] / speed["base-nf4dq"] - 1))
    assert evidence("demo-13")["16/32-bit, %"] == pytest.approx(100 * (speed["lora"] / speed["base"] - 1))
    found = evidence("across-08")
    assert found["NF4 for fp32"] == pytest.approx(speed["base"] / speed["base-nf4dq"])
    assert found["on 3B on a T4"] == pytest.approx(25.66 / 13.58)
    train = {arm: record(arm)["train"] for arm in ("full", "lora", "qlora")}
    assert evidence("demo-12")["time_percent"] == pytest.approx(100 * (train["lora"]["seconds_per_step"] / train["full"]["seconds_per_step"] - 1))
    assert evidence("demo-07")[f"{measured.MODEL}, against lora, %"] == pytest.approx(
        100 * (train["qlora"]["peak_tensor_bytes"] / train["lora"]["peak_tensor_bytes"] - 1)
    )


def test_convergence_by_the_records_themselves():
    found = evidence("demo-11")
    at = [np.mean([record(f"qlora-rate-0.004-s{s}", "demo-long")["train"]["eval_loss"][-1] for s in (0, 1)])]
    assert found["nats at 512"] == pytest.approx(at[0])
    assert record("qlora-rate-0.004-s0", "demo-long")["train"]["tokens_per_step"] == 512


def test_learning_rates_by_the_records_themselves():
    found = evidence("across-07")
    for method, rates in (("full", (0.0001, 0.0002, 0.0004)), ("qlora", (0.002, 0.004, 0.008))):
        loss = {r: np.mean([record(f"{method}-rate-{r}-s{s}", "demo-long")["train"]["eval_loss"][-1] for s in (0, 1)]) for r in rates}
        assert found[f"best {method}"] == min(loss, key=loss.get)
    assert found["claimed_factor"] == pytest.approx(10)


def test_bits_and_bytes_between_the_documents():
    assert evidence("across-01")["bytes a parameter"] == pytest.approx(24.06 * MIB / 12_615_680)
    assert evidence("across-05")["scaled_gb"] == pytest.approx(548.61 * MIB / 1_100_048_384 * 65)
    assert evidence("across-12")["bits"] == pytest.approx(524.54 * MIB * 8 / 1_100_048_384, rel=1e-6)
    assert evidence("across-03")["from_its_times"] == pytest.approx(100 * (1979.42 / 1441.24 - 1))


def test_the_table_of_sizes_is_that_of_the_known_models():
    for family, prefix in (("Qwen2.5", "qwen2.5-"), ("Qwen3", "qwen3-")):
        known = {float(name.removeprefix(prefix).removesuffix("b")) for name in MODELS if name.startswith(prefix)}
        assert known and known <= set(sources.QWEN_SIZES[family])
    assert 4 in sources.QWEN_SIZES["Qwen3"] and not {4, 8} & set(sources.QWEN_SIZES["Qwen2.5"])


def test_papers_are_those_of_the_bibliography():
    import re

    def plain(title: str) -> str:
        return re.sub(r"\W", "", title).lower()

    text = (committed_records("demo").parent.parent / "bibliography.bib").read_text(encoding="utf-8")
    entries = {}
    for entry in text.replace("{", "").replace("}", "").split("\n@"):
        fields = dict(re.findall(r"^\s*(\w+) = (.+),$", entry, re.MULTILINE))
        if {"title", "author", "year"} <= set(fields):
            entries[plain(fields["title"])] = (re.match(r"\w+", fields["author"])[0], int(fields["year"]))
    found = [(paper, entries.get(plain(title))) for title, paper in sources.PAPERS.items()]
    known = [(paper, entry) for paper, entry in found if entry]
    assert len(known) >= 2
    for paper, entry in known:
        assert (paper.first_author, paper.year) == entry


def test_data_as_this_library_registers_it():
    from qlora_lib.assets.registry import DATA

    assert str(sources.ALPACA_EVAL["eval"]) in DATA["alpaca-eval"].attribution
    assert [next(iter(DATA[k].files.values())).rpartition(".")[2] for k in ("sst2", "squad", "alpaca-eval")] == ["parquet", "parquet", "json"]


def test_a_merged_model_by_this_library_s_own_merge():
    """The other merge, written out, leaves no adapter either."""
    import torch

    from qlora_lib.lora import inject_lora, merge_lora

    model = libraries.tiny_model().eval()
    inject_lora(model, rank=4, alpha=8, target_modules=("q_proj",), dropout=0.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
        ids = torch.arange(8)[None]
        beside = model.eval()(input_ids=ids).logits
        merge_lora(model)
        assert torch.allclose(model(input_ids=ids).logits, beside, atol=1e-5)
    difference, left = libraries.merged_difference()
    assert difference < 1e-5 and left == 0 == sum("lora_" in name for name, _ in model.named_parameters())
