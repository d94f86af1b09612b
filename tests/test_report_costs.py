"""The chapter on costs: its tables hold the validation's, the planner's and others' numbers, each in columns of its own."""

import json
import re

import pytest
from example_costs import FAR, HOSTILE, MISSING, example_validation
from example_records import example_records
from example_sweeps import stubs
from test_report import TEMPLATE, digits_left, text_of

from qlora_lib.config import load_profile
from qlora_lib.cost import plan
from qlora_lib.cost.cards import gpu_card
from qlora_lib.cost.devices import GPUS
from qlora_lib.figures import COST_FIGURES, draw_costs
from qlora_lib.report import build_report, cost_cards, cost_published
from qlora_lib.report.build import compile_pdf, lay_out, report_data
from qlora_lib.report.cost_steps import SHOWN, WORST
from qlora_lib.report.formats import NOT_MEASURED, show
from qlora_lib.report.segments import NAMES
from qlora_lib.validation.published_gpu import UNITS, compare_all
from qlora_lib.validation.summary import summarize


@pytest.fixture(scope="module")
def records():
    profile, made_up = load_profile("demo"), example_records("demo")
    for name, record in made_up.items():
        record.settings = profile.settings(profile.arm(name)).model_dump(exclude={"seed"})
    return made_up


@pytest.fixture(scope="module")
def validation():
    return example_validation()


@pytest.fixture(scope="module")
def built(records, validation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("costs")
    drawn = stubs(folder, COST_FIGURES)
    pdf = build_report("demo", records, drawn, folder / "r.pdf", data_json=folder / "r.json", validation=validation)
    return text_of(pdf), json.loads((folder / "r.json").read_text()), drawn


@pytest.fixture(scope="module")
def without(records):
    return report_data("demo", records, [], TEMPLATE)


def read(data, pieces) -> str:
    return "".join(data["values"][p["value"]]["text"] if "value" in p else p.get("text", "") for p in pieces)


def cells(data, table) -> dict[str, list[str]]:
    """Label -> cells, in words; a group's name stands before its labels."""
    found, group = {}, ""
    for row in data["tables"][table]["rows"]:
        label = read(data, row["label"])
        if row["head"]:
            group = label
        else:
            found[f"{group}/{label}" if group else label] = [read(data, cell) for cell in row["cells"]]
    return found


# --- against what was measured ------------------------------------------------------------------------


def test_the_components_of_each_step_are_the_records(built, validation):
    steps, shown = {s.name: s for s in validation.steps}, cells(built[1], "cost-parts")
    assert len(shown) == 6
    titles = [read(built[1], c["title"]) for c in built[1]["tables"]["cost-parts"]["columns"]]
    for label, row in shown.items():
        method, again = label.split(":")[0].split(",")[0].lower(), "checkpointing" in label
        step = steps[f"smollm2-135m.{method}.4x128" + ".checkpointing" * again]
        assert label.endswith(step.predicted.moment)
        *parts, predicted, measured, error = row
        for title, text in zip(titles, parts):
            assert text == show(sum(step.predicted.parts[name] for name in SHOWN[title]), "mib"), (label, title)
        assert [predicted, measured] == [show(n, "mib") for n in (step.predicted.peak_bytes, step.measured.peak_bytes)]
        assert error == show(step.predicted.peak_bytes / step.measured.peak_bytes - 1, "percent_signed")
    left_out = [name for title, names in SHOWN.items() if title not in titles for name in names]
    assert all(step.predicted.parts[name] == 0 for step in steps.values() if step.model == "smollm2-135m" and step.name.endswith("4x128") for name in left_out)


def test_groups_hold_every_measured_step_once_and_their_errors(built, validation):
    shown = cells(built[1], "cost-errors")
    assert len(shown) == 13 and sum(int(row[0]) for label, row in shown.items() if "All" not in label) == len(validation.of())
    found = summarize(validation).all
    last = shown["All of them/Mean, and worst"]
    assert last[0] == str(found.cases) and last[3:] == [show(found.mean_absolute, "percent"), show(found.worst, "percent_signed")]
    some = [s for s in validation.of("tiny") if s.method == "lora" and s.checkpointing]
    peaks = [s.measured.peak_bytes for s in some]
    row = shown["Tiny models with random weights/LoRA, checkpointing"]
    assert row[0] == str(len(some)) and row[1] == f"{show(min(peaks), 'mib')} to {show(max(peaks), 'mib')}"


def test_the_worst_steps_come_first_and_misses_are_explained(built, validation):
    shown = list(cells(built[1], "cost-worst").items())
    by_size = sorted(validation.of(), key=lambda s: -abs(s.error))
    assert len(shown) == WORST and shown[0][0] == by_size[0].name and FAR in shown[0][0]
    assert shown[0][1][2] == "\u221213.0%"
    misses = [s.name for s in validation.of() if abs(s.error) > 0.10]
    assert misses and all(f"Off by more than 10%: {name} by \u221213.0%" in built[0] for name in misses)
    assert MISSING in built[0] and "out of memory" in built[0]


def test_within_the_limit_there_is_no_miss(records):
    record = example_validation("tiny")
    data = report_data("demo", records, [], TEMPLATE, validation=record)
    assert [read(data, p["pieces"]) for p in data["say"]["cost-misses"]] == ["No step is off by more than 10%."]
    assert {label.split("/")[0] for label in cells(data, "cost-errors")} == {"Tiny models with random weights", "All of them"}
    assert all(row[-2] == NOT_MEASURED for row in cells(data, "cost-parts").values())  # the real model was not measured


def test_without_a_record_nothing_is_said_to_be_measured(without):
    text = " ".join(read(without, p["pieces"]) for p in without["say"]["cost-errors"])
    assert NOT_MEASURED in text and without["say"]["cost-misses"] == []
    assert "cost-errors" not in without["tables"] and "cost-worst" not in without["tables"]
    for row in cells(without, "cost-parts").values():
        assert row[-2:] == [NOT_MEASURED, NOT_MEASURED] and row[-3] != NOT_MEASURED
    kinds = [v["kind"] for k, v in without["values"].items() if k.startswith("step.") and v["text"] != NOT_MEASURED]
    assert kinds and "measured" not in kinds


def test_own_arms_stand_beside_what_the_planner_says_of_their_settings(built, records):
    shown = cells(built[1], "cost-arms")
    arm = records["qlora"]
    train = arm.settings["train"]
    said = plan(
        "smollm2-135m", "qlora", arm.settings["data"]["window_length"], train["batch_size"], gpus=["cpu"], search=False,
        accumulation=train["gradient_accumulation_steps"], rank=arm.settings["lora"]["rank"], fast=arm.settings["runtime"]["fast"],
        checkpointing=train["gradient_checkpointing"], optimizer="paged_adamw_8bit" if "paged" in train["optimizer"] else "adamw",
    )  # fmt: skip
    measured, predicted, error, moment = shown[arm.label]
    assert (predicted, moment) == (show(said["peak_bytes"], "mib"), said["moment"])
    assert measured == show(arm.train.peak_tensor_bytes, "mib")
    assert error == show(said["peak_bytes"] / arm.train.peak_tensor_bytes - 1, "percent_signed")


# --- against others' figures --------------------------------------------------------------------------


def test_every_published_figure_stands_with_its_source_and_its_error(built):
    data, compared = built[1], compare_all()
    rows = [row for block in data["costs"]["published"] for row in block["rows"]]
    assert len(rows) == len(compared)
    for row, c in zip(rows, compared):  # blocks keep the order, since figures of a source stand together
        f = c.figure
        assert read(data, row["what"]) == f.what
        assert read(data, row["published"]).replace("\u00a0", " ").endswith(f"{f.value:,g} {f.printed or f.unit}")
        assert read(data, row["predicted"]) == f"{c.predicted_bytes / UNITS[f.unit]:,.2f}\u00a0{f.unit}"
        if c.error is not None:
            assert read(data, row["error"]) == show(c.error, "percent_signed")
        assert read(data, row["measured"]) == NOT_MEASURED
        assert bool(row["why"]) == row["miss"] == (c.explanation is not None)


def test_settings_are_told_once_and_none_is_lost(built):
    data = built[1]
    for block, (source, some) in zip(data["costs"]["published"], by_source().items()):
        assert source.title in read(data, block["source"]) and source.date in read(data, block["source"])
        shared, letters = read(data, block["stated"]), read(data, block["differs"])
        above = ""
        for row, c in zip(block["rows"], some):
            own = above if row["again"] else read(data, row["stated"]) + read(data, row["assumed"])
            for setting in (*c.figure.stated, *c.figure.assumed):
                assert setting in shared or setting in own or setting in read(data, block["assumed"]), (c.figure.key, setting)
            assert all(words in letters for words in (*c.figure.because, *(d.words for d in c.figure.differs)))
            above = own


def by_source() -> dict:
    found: dict = {}
    for c in compare_all():
        found.setdefault(c.figure.source, []).append(c)
    return found


def test_bytes_of_a_difference_add_up_to_what_its_letters_say(built):
    data = built[1]
    rows = {c.figure.key: row for (_, some), block in zip(by_source().items(), data["costs"]["published"]) for c, row in zip(some, block["rows"])}
    c = next(c for c in compare_all() if c.explanation and len([n for _, n in c.differences if n]) > 1 and not c.impossible)
    printed = [float(n) for n in re.findall(r"[+-]\d+\.\d\d", read(data, rows[c.figure.key]["why"]).replace("\u2212", "-"))]
    assert len(printed) == len(c.differences)
    assert sum(printed) == pytest.approx(sum(n for _, n in c.differences) / UNITS[c.figure.unit], abs=0.005 * len(printed))


# --- cards --------------------------------------------------------------------------------------------


def test_verdicts_by_card_are_the_planners():
    """Asked again through `plan`, from the profile's own settings."""
    profile = load_profile("t4-tinyllama-wikitext2")
    for p in (p for p in cost_cards.planned() if p.profile == profile.name and p.method != "full"):
        s = profile.settings(profile.arm(p.arm))
        said = plan(
            s.model.name, p.method, s.data.window_length, s.train.batch_size, gpus=list(GPUS), search=False,
            accumulation=s.train.gradient_accumulation_steps, rank=s.lora.rank, checkpointing=s.train.gradient_checkpointing, dropout=s.lora.dropout,
            optimizer="paged_adamw_8bit" if s.train.optimizer == "paged_adamw_8bit" else "adamw", fast=s.runtime.fast,
            **({"dtype": s.train.precision} if s.train.precision != "auto" else {}),
        )  # fmt: skip
        assert {f.card.name: f.verdict for f in p.fits} == {name: card["verdict"] for name, card in said["gpus"].items()}, p.arm
        assert {f.memory.peak_bytes for f in p.fits} == {card["peak_bytes"] for card in said["gpus"].values()}


def test_every_gpu_profile_is_there_and_its_misfits_have_a_change(built):
    data = built[1]
    text = " ".join(cells(data, "cost-cards"))
    for name in ("t4-tinyllama-wikitext2", "rtx3070-tinyllama-dolly", "llama3.1-8b", "rtx3090-qwen2.5-tasks"):
        assert name in text
    assert "demo" not in text  # a CPU's memory would be this machine's
    misfits = {(p.profile, card) for p in cost_cards.planned() for card in p.own if not p.on(card).fits}
    rows = [[read(data, cell) for cell in row] for row in data["costs"]["too-large"]]
    told = {(row[0].split(":")[0], card) for row in rows for card in row[1].split(", ")}
    assert misfits == told and all("GiB" in row[2] and row[3] for row in rows)
    marks = {cell.split("\u00a0")[-1] for row in cells(data, "cost-cards").values() for cell in row[1:]}
    assert {"fits", "no"} <= marks <= {"fits", "tight", "no"}


def test_limits_are_the_data_sheets(built):
    shown = cells(built[1], "cost-limits")
    assert list(shown) == list(GPUS)
    assert shown["T4"][:3] == ["fp16", "65", "320"] and shown["H100 SXM"][:3] == ["bf16", "989.4", "3350"]
    text = built[0]
    assert all(gpu.source in text for gpu in GPUS.values())
    time = cost_cards.step_time(cost_cards.work_of("full", gpu_card("T4")), gpu_card("T4"))
    assert shown["T4"][3] == show(time.limit_seconds, "seconds") and time.limit_seconds == max(time.compute_seconds, time.memory_seconds)


# --- the page -----------------------------------------------------------------------------------------


def test_published_predicted_and_measured_have_columns_of_their_own(built):
    data = built[1]
    for name, table in data["tables"].items():
        if not name.startswith("cost-"):
            continue
        for i, column in enumerate(table["columns"]):
            keys = [p["value"] for row in table["rows"] if row["cells"] for p in row["cells"][i] if "value" in p]
            kinds = {data["values"][key]["kind"] for key in keys} - {"named"}
            assert len(kinds) <= 1, (name, i, kinds)
            assert ("published" in kinds) <= (column["group"] == "Published"), (name, i)
            assert (kinds == {"measured"}) == (column["group"] == "Measured here"), (name, i)
    for block in data["costs"]["published"]:
        for row in block["rows"]:
            kinds = {what: {data["values"][p["value"]]["kind"] for p in row[what] if "value" in p} for what in ("published", "predicted", "error")}
            assert kinds["published"] == {"published"} and kinds["predicted"] == {"predicted"} >= kinds["error"]


def test_no_figure_is_typed_and_every_numeral_on_the_page_has_a_value(records, validation, built, tmp_path):
    data = report_data("demo", records, built[2], TEMPLATE, validation=validation)
    lay_out(tmp_path, TEMPLATE, json.dumps(data), built[2])
    audited = text_of(compile_pdf(tmp_path, timestamp=0, audit=True))
    assert "Whether a training fits a card" in audited and digits_left(audited) == []
    body = built[0][built[0].rindex("Whether a training fits a card") : built[0].rindex("Five write-ups")]
    known = set(re.findall(r"\d[\d,]*(?:\.\d+)?", " ".join(v["text"] for v in data["values"].values())))
    for numeral in re.findall(r"\d[\d,]*(?:\.\d+)?", NAMES.sub("", body)):
        numeral = numeral.rstrip(",")
        assert re.fullmatch(r"\d{1,2}(\.\d)?", numeral) or numeral in known, numeral


def test_tables_and_pictures_are_on_the_page(built):
    for words in ("What a training step holds at its highest moment", "How far the memory model is off", "The steps that are predicted worst",
                  "Errors of what the planner says", "Published amounts of GPU memory", "Which card each profile", "Limits by data sheet"):  # fmt: skip
        assert re.search(rf"Table \d+\. {words}", built[0]), words
    assert len(re.findall(r"Figure \d+\. (?:Predicted against measured|Memory on GPUs)", built[0])) == 2


def test_text_of_a_record_is_never_markup(records, validation, tmp_path):
    hostile = validation.model_copy(deep=True)
    hostile.provenance.cpu = HOSTILE
    next(s for s in hostile.steps if not s.measured).reason = HOSTILE
    pdf = build_report("demo", records, [], tmp_path / "h.pdf", data_json=tmp_path / "h.json", validation=hostile)
    squeezed = re.sub(r"[\s\u00ad-]", "", text_of(pdf))
    assert squeezed.count(re.sub(r"[\s-]", "", HOSTILE)) >= 4


def test_figures_are_drawn_and_a_missing_record_takes_its_figure_away(tmp_path):
    drawn = draw_costs(example_validation("tiny"), tmp_path, ("svg",))
    assert [f.name for f in drawn] == list(COST_FIGURES) and all(f.path_svg.is_file() and f.alt for f in drawn)
    again = draw_costs(None, tmp_path, ("svg",))
    assert [f.name for f in again] == ["validation-published"] and not (tmp_path / "validation.svg").exists()


def test_the_planner_is_asked_once():
    assert cost_published.compared() is cost_published.compared() and cost_cards.planned() is cost_cards.planned()
