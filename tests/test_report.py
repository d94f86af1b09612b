"""The PDF: every figure on it comes from a record, sentences follow the data, and bytes repeat."""

import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pypdf
import pytest

from example_bench import example_bench
from example_records import example_records
from qlora_lib.config import load_profile
from qlora_lib.errors import QloraError
from qlora_lib.figures import DrawnFigure, draw_all, draw_benches
from qlora_lib.paths import project_root
from qlora_lib.report import build_report
from qlora_lib.report.benches import flat
from qlora_lib.report.build import compile_pdf, lay_out, report_data, template_files
from qlora_lib.report.derive import FUNCTIONS
from qlora_lib.report.formats import FORMATS, NOT_MEASURED, show, significant
from qlora_lib.report.segments import NAMES, parse, plain
from qlora_lib.report.values import Store

TEMPLATE = project_root() / "report"
CHAPTERS = [
    "Introduction", "QLoRA: Methodology and Theory", "Experimental Setup", "Results and Analysis",
    "Comprehensive Performance Comparison Table", "Visualization and Analysis", "Conclusion & Discussion",
]  # fmt: skip


@pytest.fixture(scope="module")
def records():
    """Made-up records of `demo`, with the settings that the profile would give them."""
    profile, made_up = load_profile("demo"), example_records("demo")
    for arm in (a for a in profile.arms if a.name in made_up):
        made_up[arm.name].settings = profile.settings(arm).model_dump(exclude={"seed"})
    return made_up


@pytest.fixture(scope="module")
def benches(records):
    return {a: example_bench(records["base"], a) for a in ("default", "keep")}


@pytest.fixture(scope="module")
def figures(records, benches, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    return draw_all(records, folder, ("svg",)) + draw_benches(benches, folder, ("svg",))


@pytest.fixture(scope="module")
def built(records, benches, figures, tmp_path_factory):
    """(the PDF's path, its data)."""
    folder = tmp_path_factory.mktemp("built")
    pdf = build_report("demo", records, figures, folder / "demo.pdf", data_json=folder / "data.json", benches=benches)
    return pdf, json.loads((folder / "data.json").read_text())


@pytest.fixture(scope="module")
def page_text(built):
    return text_of(built[0])


def changed(records, arm, **parts):
    """The records with fields of one arm replaced: `perplexity__after=None`."""
    record = records[arm].model_copy(deep=True)
    for path, value in parts.items():
        *parents, last = path.split("__")
        part = record
        for name in parents:
            part = getattr(part, name)
        setattr(part, last, value)
    return records | {arm: record}


def text_of(pdf: bytes | Path) -> str:
    """The text of all pages as a reader sees it, without soft breaks and on one line."""
    source = io.BytesIO(pdf) if isinstance(pdf, bytes) else pdf
    text = "\n".join(page.extract_text() for page in pypdf.PdfReader(source).pages)
    return re.sub(r"\s+", " ", text.replace("\u200b", "").replace("\u00a0", " ")).replace("/ ", "/")


def said(records, slot) -> str:
    """The sentences of a slot, as they will read."""
    data = report_data("demo", records, [], TEMPLATE)
    found = []
    for paragraph in data["say"][slot]:
        for piece in paragraph["pieces"]:
            found.append(data["values"][piece["value"]]["text"] if "value" in piece else piece.get("text", ""))
    return "".join(found)


# --- every figure comes from somewhere ----------------------------------------------------------


def audited(records, template, tmp_path, benches=None) -> str:
    """Text of the PDF with every value, heading, equation, reference and citation taken out."""
    data = report_data("demo", records, [], template, benches=benches)
    folder = tmp_path / "laid-out"
    folder.mkdir()
    lay_out(folder, template, json.dumps(data), [])
    return text_of(compile_pdf(folder, timestamp=0, audit=True))


def copy_of_template(tmp_path) -> Path:
    for file in template_files(TEMPLATE):
        place = tmp_path / "template" / file.relative_to(TEMPLATE)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return tmp_path / "template"


def digits_left(text: str) -> list[str]:
    return re.findall(r"\S*\d\S*", NAMES.sub("", text))


def test_no_figure_in_prose_tables_or_captions_is_typed_by_hand(records, benches, tmp_path):
    text = audited(records, TEMPLATE, tmp_path, benches)
    assert "qlora bench runs it and this library in turns" in text
    assert "Fine-tuning adapts a language model" in text  # the prose is there
    assert text.count("◇") > 400  # and so are the values, as marks
    assert digits_left(text) == []


@pytest.mark.parametrize(
    "planted",
    ["Perplexity fell to 42.7.", "#figure(table[4,096])", '#figure(caption: "12 steps", kind: table, [x])'],
)
def test_a_planted_figure_is_caught(records, tmp_path, planted):
    template = copy_of_template(tmp_path)
    with open(template / "chapters" / "results.typ", "a") as f:
        f.write(f"\n\n{planted}\n")
    assert digits_left(audited(records, template, tmp_path)) != []


def test_a_figure_in_a_sentence_of_the_code_is_refused(records):
    store = Store(records)
    assert parse("NF4 holds 4-bit codes of WikiText-2.", store)  # names, not amounts
    with pytest.raises(QloraError, match="typed by hand"):
        parse("QLoRA needs 179 MiB.", store)


def recompute(key, values, records_json):
    """The number behind a printed value, from the JSON of the records and the named functions only."""
    source = values[key]["source"]
    if "function" in source:
        inputs = [recompute(k, values, records_json) for k in source["inputs"]]
        return None if None in inputs else FUNCTIONS[source["function"]](*inputs)
    if "document" in source:
        text = values[key]["text"].replace(",", "").replace("\u2212", "-")
        return float(re.match(r"[-+]?[\d.]+", text)[0])
    if "bench" in source:
        return records_json["bench", source["bench"]].get(source["path"])
    number = records_json.get(source["arm"])
    for part in source["path"].split("."):
        number = None if number is None else number.get(part)
    return number if number != [] else None


def test_every_value_is_found_in_the_records_that_were_written(records, benches, built, tmp_path):
    """Re-read from disk by arm and path, printed again by the named format, word for word."""
    for arm, record in records.items():
        record.write(tmp_path / arm)
    on_disk = {p.parent.name: json.loads(p.read_text()) for p in tmp_path.glob("*/record.json")}
    on_disk |= {("bench", a): flat(r) for a, r in benches.items()}
    values = built[1]["values"]
    kinds = {
        kind: [k for k, v in values.items() if v["kind"] == kind and not k.startswith("step.")]  # test_report_costs.py has those
        for kind in ("measured", "setting", "derived")
    }
    assert len(kinds["measured"]) > 150 and len(kinds["setting"]) > 20 and len(kinds["derived"]) > 80
    for keys in kinds.values():
        for key in keys:
            source, text = values[key]["source"], values[key]["text"]
            if "function" in source and text == NOT_MEASURED:
                continue  # two arms may be unfit to compare although both were measured
            number = recompute(key, values, on_disk)
            if key.startswith(tuple(records)) and number is None:
                assert text in (NOT_MEASURED, "none"), key
            else:
                assert show(number, source["format"]) == text, key


def test_derived_values_against_hand_arithmetic(records, built):
    values = {k: v["text"] for k, v in built[1]["values"].items()}
    full, qlora = records["full"], records["qlora"]
    assert values["size-gain.qlora.full"] == f"{full.size_bytes.total / qlora.size_bytes.total:.2f}×"
    rise = 100 * (qlora.perplexity.after / full.perplexity.after - 1)
    assert values["perplexity-change.qlora.full"] == f"+{rise:.1f}%"
    assert values["nf4dq.bits"] == "4.127"
    assert values["tinyllama.linear"] == "968,884,224"


def test_every_value_is_on_the_page_and_every_numeral_has_a_value(built, page_text):
    text = page_text
    values = [v for v in built[1]["values"].values() if v["source"].get("format") != "numbers"]
    squeezed = re.sub(r"[\s\u00ad-]", "", text)
    printed = [v["text"] for v in values if v["kind"] == "measured"]
    absent = [t for t in printed if re.sub(r"[\s\u00a0-]", "", t) not in squeezed]
    assert len(absent) < 0.1 * len(printed), absent  # those only computed with, or broken by a page
    # The other way: large or broken numerals are in some value; whole small ones may be page,
    # section, table and figure numbers. The bibliography has years and report numbers of its own.
    body = text[: text.index("Bibliography [1]")] + text[text.index("Table A1") :]
    body = body[body.index("Fine-tuning adapts") :]  # past the contents
    known = " ".join(v["text"] for v in built[1]["values"].values())
    known_numerals = set(re.findall(r"\d[\d,]*(?:\.\d+)?", known))
    for numeral in re.findall(r"\d[\d,]*(?:\.\d+)?", NAMES.sub("", body)):
        numeral = numeral.rstrip(",")
        structural = re.fullmatch(r"\d{1,2}(\.\d)?", numeral)
        assert structural or numeral in known_numerals, numeral


def origin(key, values) -> set[str]:
    """Whether a value rests on the study's print, on our records, or on neither."""
    value = values[key]
    if value["kind"] == "derived":
        return set().union(*(origin(k, values) for k in value["source"]["inputs"]), set())
    return {"published" if value["kind"] == "published" else "ours"}


def test_published_and_measured_never_share_a_column(built):
    data = built[1]
    for name, table in data["tables"].items():
        for i, column in enumerate(table["columns"]):
            keys = [p["value"] for row in table["rows"] if row["cells"] for p in row["cells"][i] if "value" in p]
            origins = set().union(*(origin(k, data["values"]) for k in keys))
            assert origins <= {"published" if column["published"] else "ours"}, (name, i)


# --- the document --------------------------------------------------------------------------------


def test_chapters_tables_and_figures_stand_in_order(built, page_text):
    reader = pypdf.PdfReader(built[0])
    outline = [entry.title for entry in reader.outline if not isinstance(entry, list)]
    numbered = [re.sub(r"^\d+ ", "", t) for t in outline]
    start = numbered.index("Introduction")
    assert numbered[start : start + 7] == CHAPTERS
    assert {"Bibliography", "A Provenance and Settings"} <= {*outline}
    for word, last in (("Table", 18), ("Figure", 10)):
        places = [page_text.index(f"{word} {n}. ") for n in range(1, last + 1)]
        assert places == sorted(places)


def test_captions_of_results_name_model_data_and_hardware(built, records):
    data = built[1]
    values = {k: v["text"] for k, v in data["values"].items()}
    captions = {k: t["caption"] for k, t in data["tables"].items() if k not in ("glance", "data", "architecture")}
    captions = {k: caption for k, caption in captions.items() if not k.startswith(("cost-", "claims-"))}  # not of these runs
    for name, pieces in (captions | data["captions"]).items():
        caption = "".join(values[p["value"]] if "value" in p else p.get("text", "") for p in pieces)
        for part in (records["base"].model.name, records["base"].data.name, records["base"].provenance.cpu):
            assert part in caption, name


def test_metadata_and_no_path_of_this_machine(built, page_text, figures, tmp_path):
    meta = pypdf.PdfReader(built[0]).metadata
    assert meta.title.startswith("QLoRA Fine-Tuning of LLaMA Models")
    assert meta.author and "NF4" in meta["/Keywords"]
    everything = built[0].read_bytes() + page_text.encode() + json.dumps(built[1]).encode()
    for path in (project_root(), Path.home(), figures[0].path_svg.parent, tmp_path):
        assert str(path).encode() not in everything


def test_same_input_same_bytes(built, records, benches, figures, tmp_path):
    again = build_report("demo", records, figures, tmp_path / "b.pdf", data_json=tmp_path / "d.json", benches=benches)
    assert json.loads((tmp_path / "d.json").read_text()) == built[1]
    assert again.read_bytes() == built[0].read_bytes()
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["b.pdf", "d.json"]  # nothing left beside


@pytest.mark.parametrize(
    ("profile", "arms"),
    [("demo", ("base", "qlora")), ("smoke", ("base", "qlora")), ("demo", ("base",)), ("smoke", ("full",))],
)
def test_any_subset_of_arms_builds_and_says_what_is_missing(profile, arms, tmp_path):
    few = {arm: r for arm, r in example_records(profile).items() if arm in arms}
    pdf = build_report(profile, few, [], tmp_path / "few.pdf", data_json=tmp_path / "few.json")
    assert NOT_MEASURED in text_of(pdf)


def test_no_records_is_a_clear_error(tmp_path):
    with pytest.raises(QloraError, match="no records"):
        build_report("demo", {}, [], tmp_path / "none.pdf", data_json=tmp_path / "none.json")


# --- what must fail -------------------------------------------------------------------------------


def with_line(tmp_path, line) -> Path:
    template = copy_of_template(tmp_path)
    with open(template / "report.typ", "a") as f:
        f.write(f"\n{line}\n")
    return template


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('#text(font: "No Such Font")[x]', "warning.*no such font.*[(]report.typ:"),
        ('#v("qlora.perplexity.afer")', "no field 'afer'.*Did you mean 'after'"),
        ('#v("nonsense")', "no value 'nonsense'"),
        ('#let key = "nonsense"; #v(key)', "does not compile.*no value 'nonsense'"),
        ("#undefined-name", "does not compile.*unknown variable"),
    ],
)
def test_a_warning_or_an_unknown_value_fails_the_build(records, tmp_path, line, message):
    out = tmp_path / "out.pdf"
    out.write_bytes(b"the report of yesterday")
    with pytest.raises(QloraError, match=message):
        build_report("demo", records, [], out, template=with_line(tmp_path, line), data_json=tmp_path / "d.json")
    assert out.read_bytes() == b"the report of yesterday"


@pytest.mark.promise("hostile-file")
def test_text_from_data_is_never_markup(records, tmp_path):
    text = "#panic(\"x\") *bold* $x$ _i_ `r` [b] @ref <l> \\ // c </svg> & ~ -- ''\n= Heading\n- item\n/ T: u"
    hostile = {arm: r.model_copy(deep=True) for arm, r in records.items()}
    for r in hostile.values():
        r.model.name = r.model.note = r.data.name = r.data.attribution = r.label = text
        r.provenance.notes, r.provenance.cpu = [text], text
        if r.generation:
            r.generation.sample = text
    figure = DrawnFigure("loss-curves", tmp_path / "loss.svg", alt=text, caption=text)
    figure.path_svg.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    pdf = build_report("demo", hostile, [figure], tmp_path / "h.pdf", data_json=tmp_path / "h.json")
    flat = re.sub(r"\s", "", text_of(pdf))
    assert flat.count(re.sub(r"\s", "", text)) >= 20


# --- sentences follow the data --------------------------------------------------------------------


def timed(records, seconds):
    return changed(
        records, "qlora", train__seconds_per_step=seconds,
        train__seconds_per_step_quartiles=(seconds * 0.99, seconds * 1.01),
    )  # fmt: skip


def test_slower_faster_and_no_difference_in_training(records):
    assert "A training step of QLoRA is slower than one of full fine-tuning" in said(timed(records, 9.0), "training")
    assert "A training step of QLoRA is faster than one of full fine-tuning" in said(timed(records, 1.0), "training")
    assert "full fine-tuning no difference in time is shown" in said(timed(records, 4.05), "training")
    assert "Time of a training step" not in said(timed(records, 9.0), "advantages")


def test_slower_and_faster_in_generation(records):
    slow = "In generation QLoRA is slower than full fine-tuning"
    assert slow in said(records, "inference") and "loses speed" not in said(records, "inference")
    fast = changed(
        records, "qlora", generation__latency_seconds=0.5, generation__tokens_per_second=100.0,
        generation__repeats=[0.49, 0.5, 0.51],
    )  # fmt: skip
    assert "In generation QLoRA is faster than full fine-tuning" in said(fast, "inference")
    assert "do not deploy the 4-bit base" not in said(fast, "choosing")


def scored(records, shift, arm="qlora", like="full"):
    """`arm` scored as `like` is, window by window, plus `shift` nats and a little that cancels."""
    windows = records[like].perplexity.window_nll_after
    new = [x + shift + 0.02 * (-1) ** i for i, x in enumerate(windows)]
    after = records[like].perplexity.after * 2.718281828**shift
    return changed(records, arm, perplexity__after=after, perplexity__window_nll_after=new)


def test_perplexity_higher_lower_and_an_interval_with_zero(records):
    assert "QLoRA’s perplexity is higher than that of full fine-tuning" in said(scored(records, 0.1), "perplexity")
    assert "QLoRA’s perplexity is lower than that of full fine-tuning" in said(scored(records, -0.1), "perplexity")
    tie = said(scored(records, 0.0), "perplexity")
    assert "perplexities of QLoRA and full fine-tuning no difference is shown" in tie
    assert "in this run no difference is shown" in said(scored(records, 0.0), "agreement")


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        ("base", "wins back all or nearly all of that cost"),
        ("halfway", "wins back a part of that cost"),
        ("start", "is not shown"),
        ("worse", "it adds to it"),
        ("better", "makes up for more than that"),
    ],
)
def test_what_was_recovered(records, after, expected):
    start = records["qlora"].perplexity.window_nll_before
    base = records["base"].perplexity.window_nll_before
    share = {"base": 1.0, "halfway": 0.5, "start": 0.0, "worse": -0.5, "better": 1.5}[after]
    end = [s + share * (b - s) + 0.01 * (-1) ** i for i, (s, b) in enumerate(zip(start, base, strict=True))]
    assert expected in said(changed(records, "qlora", perplexity__window_nll_after=end), "perplexity")


def test_training_first_and_quantizing_after_may_win(records):
    assert "QLoRA is the better choice here" in said(records, "deployed")
    after = [x + 0.3 for x in records["full-nf4dq"].perplexity.window_nll_before]
    worse = changed(records, "qlora", perplexity__window_nll_after=after, perplexity__after=33.0)
    assert "QLoRA is the worse choice here" in said(worse, "deployed")
    assert "train in full precision and quantize after" in said(worse, "choosing")


def chosen(records) -> dict[str, str]:
    store_data = report_data("demo", records, [], TEMPLATE)
    read = lambda pieces: "".join(p.get("text", "") for p in pieces)  # noqa: E731
    return {read(aim): read(use) for aim, use, _ in store_data["choices"]}


def test_the_choice_table_is_made_from_the_records(records):
    assert chosen(records)["Memory while training"] == "QLoRA"
    assert chosen(records)["Time while training"] == "LoRA"
    other = changed(timed(records, 1.0), "lora", train__peak_tensor_bytes=1)
    assert chosen(other)["Memory while training"] == "LoRA"
    assert chosen(other)["Time while training"] == "QLoRA"


def test_without_a_tensor_meter_memory_is_judged_by_the_allocators_peak(records):
    """As on a GPU; one arm without it is enough."""
    other = changed(records, "full", train__peak_tensor_bytes=None)
    other = changed(other, "lora", train__peak_memory_bytes=1)
    assert chosen(other)["Memory while training"] == "LoRA"


def test_hardware_decides_what_the_limits_say(records):
    assert "not run on a GPU" in said(records, "limits")
    on_gpu = {arm: r.model_copy(deep=True) for arm, r in records.items()}
    for r in on_gpu.values():
        r.provenance.device = "Tesla T4"
    assert "not run on a GPU" not in said(on_gpu, "limits")
    assert "Tesla T4" in said(on_gpu, "limits")


def test_arms_that_cannot_be_compared_are_not(records):
    other_text = changed(records, "qlora", data__name="another text")
    assert "full fine-tuning (" not in said(other_text, "perplexity")
    values = report_data("demo", other_text, [], TEMPLATE)["values"]
    assert values["perplexity-change.qlora.full"]["text"] == NOT_MEASURED
    stopped = changed(records, "qlora", status="stopped", status_reason="the loss became NaN")
    assert "stopped early: the loss became NaN" in said(stopped, "run")


def test_null_is_not_measured_and_zero_is_zero(records):
    less = changed(records, "full", mfu=None, train__peak_tensor_bytes=None, perplexity=None)
    data = report_data("demo", less, [], TEMPLATE)
    for key in ("full.mfu", "full.perplexity.after", "perplexity-change.qlora.full", "full.train.peak_tensor_bytes"):
        assert data["values"][key]["text"] == NOT_MEASURED, key
    assert data["values"]["full.size_bytes.adapter"]["text"] == "0.00"


# --- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "digits", "text"),
    [
        (4.5, 3, "4.50"), (0, 3, "0"), (1234.5, 3, "1,230"), (0.00012345, 3, "0.000123"), (9.999, 3, "10.0"),
        (1.2e-7, 3, "1.20\u00a0×\u00a010⁻⁷"), (-2.5, 2, "\u22122.5"), (3.21e12, 3, "3.21\u00a0×\u00a010¹²"),
    ],
)  # fmt: skip
def test_significant_digits(x, digits, text):
    assert significant(x, digits) == text


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("percent_signed", 0.0, "0.0%"), ("percent_signed", -0.00001, "0.0%"), ("percent_signed", 0.1873, "+18.7%"),
        ("scientific", 2e-5, "2\u00a0×\u00a010⁻⁵"), ("scientific", 2.5e-4, "2.5\u00a0×\u00a010⁻⁴"),
        ("mib_unit", 3 * 2**20, "3.0\u00a0MiB"), ("mib_unit", 2048, "2.0\u00a0KiB"), ("plain", None, "none"),
        ("plain", True, "on"), ("plain", ["a", "b"], "a, b"), ("count", None, NOT_MEASURED),
        ("percent_interval", (-0.031, 0.011), "[\u22123.1%,\u00a0+1.1%]"), ("date", "2026-01-02T03:04:05+00:00", "2 January 2026"),
    ],
)  # fmt: skip
def test_formats(name, value, text):
    assert name in FORMATS and show(value, name) == text


def test_pieces_read_as_written(records):
    store = Store(records)
    assert plain(parse("_Base_ of {full.seed}, {@table-size}", store), store) == "Base of 0, …"


def test_the_page_wing_loads_no_torch():
    code = "import sys, qlora_lib.report; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
