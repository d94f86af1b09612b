"""The chapters on settings and the guide: values from the records, sentences that follow the sweeps, and nothing typed."""

import json
import re

import pytest
from example_records import example_records
from example_sweeps import BEST, example_sweeps, loss_of, stubs
from test_report import TEMPLATE, digits_left, recompute, text_of

from qlora_lib.config import load_profile
from qlora_lib.figures import STUDY_FIGURES
from qlora_lib.report import build_report
from qlora_lib.report.build import compile_pdf, lay_out, report_data
from qlora_lib.report.derive import FUNCTIONS
from qlora_lib.report.formats import NOT_MEASURED, show
from qlora_lib.report.segments import NAMES
from qlora_lib.studies import Studies


@pytest.fixture(scope="module")
def records():
    profile, made_up = load_profile("demo"), example_records("demo")
    for name, record in made_up.items():
        record.settings = profile.settings(profile.arm(name)).model_dump(exclude={"seed"})
    return made_up


@pytest.fixture(scope="module")
def studies():
    return Studies(example_sweeps(lambda m, s, seed: None if (m, s.train.learning_rate, seed) == ("lora", 8e-3, 1) else loss_of(m, s, seed)))


@pytest.fixture(scope="module")
def built(records, studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps")
    drawn = stubs(folder, [name for name in STUDY_FIGURES if name.startswith("sweep")])
    pdf = build_report("demo", records, drawn, folder / "r.pdf", data_json=folder / "r.json", studies=studies)
    return text_of(pdf), json.loads((folder / "r.json").read_text()), drawn, pdf.read_bytes()


def data_of(records, loss=loss_of, keep=lambda arm: True):
    return report_data("demo", records, [], TEMPLATE, studies=Studies({a: r for a, r in example_sweeps(loss).items() if keep(a)}))


def read(data, pieces) -> str:
    return "".join(data["values"][p["value"]]["text"] if "value" in p else p.get("text", "") for p in pieces)


def said(records, slot, loss=loss_of, keep=lambda arm: True) -> str:
    data = data_of(records, loss, keep)
    return " ".join(f"{p['lead']} {read(data, p['pieces'])}" for p in data["say"][slot]).replace("\u00a0", " ")


def curved(qlora):
    return lambda m, s, seed: loss_of(m, s, seed, curvature={"full": 0.02, "lora": 0.02, "qlora": qlora})


# --- figures on the page ------------------------------------------------------------------------------


def test_every_value_is_computed_again_from_the_records(built, studies, records):
    values = built[1]["values"]
    on_disk = {a: json.loads(r.to_json()) for a, r in records.items()}
    swept = {a: json.loads(r.to_json()) for a, r in studies.sweeps.items()}

    def again(key):
        source = values[key]["source"]
        if "sweep" in source:
            return recompute("x", {"x": {"source": source | {"arm": source["sweep"]}}}, swept)
        if "function" in source:
            inputs = [again(k) for k in source["inputs"]]
            return None if None in inputs else FUNCTIONS[source["function"]](*inputs)
        return recompute(key, values, on_disk)

    mine = {k: v for k, v in values.items() if re.match(r"sweep\.|sweep-|point|good-|rate-ratio|loss-difference|guide", k)}
    assert len(mine) > 250 and len([k for k in mine if "point" in k]) > 100
    for key, value in mine.items():
        number = again(key)
        assert (NOT_MEASURED if number is None else show(number, value["source"]["format"])) == value["text"], key


def test_values_by_hand(built):
    values = {k: v["text"] for k, v in built[1]["values"].items()}
    assert values["point.qlora-rate-0.002-s0.loss"] == "3.070" and values["point.qlora-rate-0.002-s0.loss-seeds"] == "[3.067,\u00a03.073]"
    assert values["good-factor.qlora"] == "4.0" and values["rate-ratio.lora.full"] == "20"
    assert values["loss-difference.rank-64-s0.qlora-rate-0.002-s0"] == "\u22120.008"


def test_no_time_of_a_sweep_is_named(built):
    forbidden = re.compile(r"seconds|tokens_per_second|latency|mfu|hfu|finished|peak_memory")
    paths = [v["source"]["path"] for v in built[1]["values"].values() if "sweep" in v["source"]]
    assert len(paths) > 100 and not [p for p in paths if forbidden.search(p)]


def test_no_figure_is_typed_and_every_numeral_on_the_page_has_a_value(built, records, studies, tmp_path):
    data = report_data("demo", records, built[2], TEMPLATE, studies=studies)
    lay_out(tmp_path, TEMPLATE, json.dumps(data), built[2])
    audited = text_of(compile_pdf(tmp_path, timestamp=0, audit=True))
    assert "A method compared at a learning rate" in audited and "two back ends" in audited
    assert digits_left(audited) == []
    body = built[0][built[0].rindex("A method compared at a learning rate") : built[0].rindex("What it is It is a course")]
    known = set(re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(v["text"] for v in data["values"].values())))
    for numeral in re.findall(r"\d[\d,]*(?:\.\d+)?", NAMES.sub("", body)):
        assert re.fullmatch(r"\d{1,2}(\.\d)?", numeral.rstrip(",")) or numeral.rstrip(",") in known, numeral


def test_captions_name_the_model_the_data_and_what_it_stands_in_for(built):
    data = built[1]
    captions = {f"table {n}": t["caption"] for n, t in data["tables"].items() if n.startswith("sweep")} | {
        n: c for n, c in data["captions"].items() if n.startswith("sweep")
    }
    assert len(captions) == 7
    for name, pieces in captions.items():
        text = read(data, pieces)
        assert all(word in text for word in ("smollm2-135m", "wikipedia-sample", "a stand-in for wikitext-2", "Example CPU")), name


def test_pictures_and_tables_are_referred_to_and_stand(built):
    text = built[0]
    for title in ("Each method at its best learning rate", "QLoRA’s other settings", "Best practices of the guide", "Tradeoffs that the demo"):
        assert re.search(rf"Table \d+\. {title}", text), title
    for caption in ("Validation loss against the learning rate", "Validation loss of QLoRA against rank", "Perplexity on the test split"):
        assert re.search(rf"Figure \d+\. {caption}", text), caption


def test_the_same_input_makes_the_same_bytes(records, studies, built, tmp_path):
    again = build_report("demo", records, built[2], tmp_path / "b.pdf", data_json=tmp_path / "d.json", studies=studies)
    assert again.read_bytes() == built[3]


def test_without_sweeps_the_chapters_say_so(records, tmp_path):
    pdf = build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json")
    text = text_of(pdf)
    assert f"What the settings are worth was {NOT_MEASURED}" in text and "they were not measured for this profile" in text
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["sweeps"] == {"tables": [], "pictures": [], "any": False}


@pytest.mark.parametrize("first", [1, 3, 30])
def test_sweeps_that_are_still_coming_in(records, first):
    assert report_data("demo", records, [], TEMPLATE, studies=Studies(dict(list(example_sweeps().items())[:first])))


def test_a_sweep_of_which_every_arm_stopped(records, tmp_path):
    stopped = Studies(example_sweeps(lambda m, s, seed: None))
    build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json", studies=stopped)
    assert "best learning rate was found: not measured" in said(records, "sweep-best", lambda m, s, seed: None)


def test_the_long_profile_has_a_report_of_its_own(tmp_path):
    """Its arms have dots in their names."""
    found = example_sweeps()
    few = {a: found[a] for a in ("base", "qlora-rate-0.002-s0", "qlora-rate-0.0005-s0", "full-rate-0.0001-s0")}
    text = text_of(build_report("demo-long", few, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json"))
    assert "qlora-rate-0.0005-s0" in text


# --- sentences follow the sweeps --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("curvature", "expected"),
    [
        (0.08, "do make training more sensitive to the rate here"),
        (0.004, "less sensitive to the rate here, against the claim"),
        (0.02, "more sensitive to the rate is not shown here"),
    ],
)
def test_the_claim_of_sensitivity_is_judged_by_the_data(records, curvature, expected):
    assert expected in said(records, "sweep-sensitivity", curved(curvature))
    demo = data_of(records, curved(curvature))
    assert any(expected in read(demo, row[1]) for row in demo["claims"]["demo"])


def test_without_lora_the_four_bits_are_not_judged(records):
    text = said(records, "sweep-sensitivity", curved(0.08), keep=lambda arm: not arm.startswith("lora"))
    assert "narrower than that of full fine-tuning" in text and "cannot be told" in text
    alone = said(records, "sweep-sensitivity", keep=lambda arm: arm.startswith("qlora"))
    assert NOT_MEASURED in alone


def test_the_end_of_the_grid_is_said(records):
    upper = lambda m, s, seed: loss_of(m, s, seed, BEST | {"lora": 9e-3})
    assert "LoRA’s best lies at the upper end of the rates tried, so a higher one may be better" in said(records, "sweep-best", upper)
    assert "end of the rates tried" not in said(records, "sweep-best", keep=lambda arm: not arm.startswith("adamw"))
    assert "open at the upper end" in said(records, "sweep-sensitivity", upper)


def test_quality_at_the_best_higher_lower_and_no_difference(records):
    import numpy as np

    def shifted(by):
        found = example_sweeps()
        for arm, r in found.items():
            if arm.startswith("qlora-rate-0.002"):
                wobble = np.random.default_rng(3).normal(0, 0.02, 20)
                lora = found[arm.replace("qlora", "lora")].perplexity
                r.perplexity.window_nll_after = [x + by + w for x, w in zip(lora.window_nll_after, wobble - wobble.mean())]
                r.perplexity.after = lora.after * float(np.exp(by))
        data = report_data("demo", records, [], TEMPLATE, studies=Studies(found))
        return " ".join(read(data, p["pieces"]) for p in data["say"]["sweep-best"])

    assert "QLoRA’s perplexity on the test split is higher than that of LoRA (+5.1%" in shifted(0.05)
    assert "QLoRA’s perplexity on the test split is lower than that of LoRA (\u22124.9%" in shifted(-0.05)
    assert "Between QLoRA and LoRA, each at its best, no difference on the test split is shown" in shifted(0.0)


def test_the_optimizer_matters_or_not(records):
    assert "Between 8-bit and 32-bit AdamW no difference is shown" in said(records, "sweep-sensitivity")
    worse = lambda m, s, seed: loss_of(m, s, seed) + 0.1 * (s.train.optimizer == "adamw_8bit")
    assert "8-bit state raises the loss" in said(records, "sweep-sensitivity", worse)
    assert "8-bit state raises the loss" in said(records, "guide-advice", worse)


def test_rank_and_modules(records):
    text = said(records, "sweep-rank")
    assert "Rank, all linear layers: from 4 to 64 no difference is shown" in text and "attention alone are worse" in text
    advice = said(records, "guide-advice")
    assert "not shown to be worse: here 4" in advice and "Put them in all linear layers" in advice
    steep = lambda m, s, seed: loss_of(m, s, seed) - (0.1 * (s.lora.rank >= 16) if m == "qlora" else 0)
    assert "not shown to be worse: here 16" in said(records, "guide-advice", steep)
    rank = said(records, "sweep-rank", steep)
    assert "64 does best" in rank and "worse, in nats: 4 (+0.116), 8 (+0.112)" in rank and "at the upper end" in rank
    tie = lambda m, s, seed: loss_of(m, s, seed) - 0.03 * (s.lora.target_modules != "all-linear")
    assert "The attention alone suffices here" in said(records, "guide-advice", tie)


@pytest.mark.parametrize(("setting", "lead"), [("alpha", "Alpha."), ("dropout", "Dropout.")])
def test_a_setting_is_worth_a_search_only_where_it_shows(records, setting, lead):
    assert f"{lead} Not worth a search here" in said(records, "guide-advice")
    matters = lambda m, s, seed: loss_of(m, s, seed) + 0.3 * abs(getattr(s.lora, setting) - {"alpha": 32, "dropout": 0.05}[setting])
    assert (f"{lead} Worth choosing" in said(records, "guide-advice", matters)) == (setting == "alpha")


def test_a_large_batch_at_equal_tokens(records):
    assert "At equal tokens a large batch costs steps" in said(records, "guide-advice")
    flat = lambda m, s, seed: loss_of(m, s.model_copy(update={"train": s.train.model_copy(update={"batch_size": 4, "gradient_accumulation_steps": 1})}), seed)
    assert "At equal tokens a large batch" not in said(records, "guide-advice", flat)


def test_the_back_end_is_the_one_that_trained(records):
    assert "trained with PEFT and bitsandbytes. What Unsloth would change was not measured" in said(records, "guide-back-ends")
    other = {a: r.model_copy(deep=True) for a, r in records.items()}
    for r in other.values():
        r.settings["runtime"]["backend"] = "unsloth"
    assert "trained with Unsloth" in said(other, "guide-back-ends", keep=lambda arm: False)
    assert "trained with both" in said(other, "guide-back-ends")


def test_failures_are_named(records, studies):
    data = report_data("demo", records, [], TEMPLATE, studies=studies)
    text = " ".join(read(data, p["pieces"]) for p in data["say"]["sweep-failed"])
    assert "LoRA, learning rate, 0.008, seed 1" in text and "the loss became NaN at step 5" in text
    assert said(records, "sweep-failed") == ""


def test_evidence_stands_in_every_piece_of_advice(records):
    data = data_of(records)
    assert len(data["say"]["guide-advice"]) >= 9
    for paragraph in data["say"]["guide-advice"]:
        assert paragraph["lead"] and [p for p in paragraph["pieces"] if "value" in p], paragraph
