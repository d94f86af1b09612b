"""The chapter on claims: it shows what the audit's record holds, as text, and the record is what the audit finds."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pypdf
import pytest
from example_costs import HOSTILE, example_audit
from example_records import example_records
from test_report import TEMPLATE, digits_left, text_of

from qlora_lib.claims import DOCUMENTS, VERDICTS, all_claims
from qlora_lib.claims import __main__ as door
from qlora_lib.claims import record as audits
from qlora_lib.errors import QloraError
from qlora_lib.paths import project_root
from qlora_lib.report import build_report
from qlora_lib.report.build import compile_pdf, lay_out, report_data, template_files
from qlora_lib.report.formats import MARKS, NOT_MEASURED


@pytest.fixture(scope="module")
def records():
    return example_records("demo")


@dataclass
class Built:
    pages: list[str]
    links: int
    data: dict

    @property
    def text(self) -> str:
        """Of all pages on one line, without soft breaks."""
        return re.sub(r"\s+", " ", "\n".join(self.pages).replace("\u200b", "").replace("\u00a0", " ")).replace("/ ", "/")


def build(records, folder, audit) -> Built:
    pdf = build_report("demo", records, [], folder / "r.pdf", data_json=folder / "r.json", audit=audit)
    pages = pypdf.PdfReader(pdf).pages
    return Built([p.extract_text() for p in pages], sum(len(p.get("/Annots") or []) for p in pages), json.loads((folder / "r.json").read_text()))


@pytest.fixture(scope="module")
def audit():
    """With a claim that other chapters name, and one document whose claims are all markup."""
    found = example_audit(each=12, ids=("study-memory-06",))
    for c in found.claims:
        if c.document == "qwen":
            c.quote = c.section = c.recomputed = c.explanation = HOSTILE
    return found


@pytest.fixture(scope="module")
def built(records, audit, tmp_path_factory):
    return build(records, tmp_path_factory.mktemp("claims"), audit)


@pytest.fixture(scope="module")
def bare(records, tmp_path_factory):
    """The report of a checkout without a record of the audit."""
    return build(records, tmp_path_factory.mktemp("bare"), None)


def read(data, pieces) -> str:
    return "".join(data["values"][p["value"]]["text"] if "value" in p else p.get("text", "") for p in pieces)


# --- the page -----------------------------------------------------------------------------------------


def test_every_claim_stands_with_its_quotation_finding_and_verdict(built, audit):
    text, data = built.text, built.data
    shown = [row for document in data["audit"]["documents"] for row in document["rows"]]
    assert {row["id"] for row in shown} == {c.id for c in audit.claims} == set(data["audit"]["ids"])
    values = {key: v["text"] for key, v in data["values"].items()}
    for c in audit.claims:
        row = next(row for row in shown if row["id"] == c.id)
        for field in ("section", "kind", "quote", "recomputed", "explanation"):
            assert values[row[field]] == getattr(c, field), (c.id, field)
        assert values[row["verdict"]] == f"{MARKS[c.verdict]}\u00a0{c.verdict}"
        assert c.id in text and (c.quote == HOSTILE or f"“{c.quote}”" in text and c.explanation in text)


def test_counts_by_document_and_verdict(built, audit):
    data = built.data
    rows = {read(data, row["label"]): [int(read(data, cell)) for cell in row["cells"]] for row in data["tables"]["claims-summary"]["rows"]}
    assert list(rows) == [d.title for d in DOCUMENTS.values()] + ["All"]
    for key, document in [*((k, d.title) for k, d in DOCUMENTS.items()), ("", "All")]:
        of = [c.verdict for c in audit.claims if key in ("", c.document)]
        assert rows[document] == [*(of.count(v) for v in VERDICTS), len(of)], document
    found = read(data, data["say"]["claims-found"][0]["pieces"])
    assert found.startswith(f"Of {len(audit.claims)} claims {rows['All'][0]} hold")


def test_each_verdict_has_a_mark_of_its_own():
    assert len({MARKS[v] for v in VERDICTS}) == len(VERDICTS)


def test_the_head_of_a_table_is_repeated_on_every_page(built):
    with_claims = [page for page in built.pages if len(re.findall(r"\w+-example-\d\d", page)) > 2]
    tables = sum("The claims of" in page for page in with_claims)
    assert len(with_claims) > tables >= 3  # some go on over a page
    assert all("As the document says" in page and "Verdict, and why" in page for page in with_claims)


def test_markup_in_a_quotation_is_shown_as_text(built, audit):
    squeezed = re.sub(r"[\s\u00ad\u2010-]", "", built.text)
    assert squeezed.count(re.sub(r"[\s-]", "", HOSTILE)) == 4 * sum(c.quote == HOSTILE for c in audit.claims) > 0


def test_without_a_record_the_audit_was_not_made(bare):
    text = bare.text
    assert f"which claims hold was {NOT_MEASURED}" in text and "Claims by document" not in text
    assert "study-memory-06" in text  # named all the same, without a link


def test_other_chapters_link_to_the_claims_that_they_name(built, bare):
    named = bare.text.count("study-memory-06")
    assert named >= 3 and built.links - bare.links >= named


def test_no_figure_of_a_claim_is_typed(records, tmp_path):
    data = report_data("demo", records, [], TEMPLATE, audit=example_audit(each=2))
    lay_out(tmp_path, TEMPLATE, json.dumps(data), [])
    audited = text_of(compile_pdf(tmp_path, timestamp=0, audit=True))
    assert "Five write-ups" in audited and digits_left(audited) == []


# --- the record ---------------------------------------------------------------------------------------


def named_ids() -> set[str]:
    """Ids that the chapters and their sentences name."""
    prefixes = "|".join(DOCUMENTS)
    templates = [f.read_text(encoding="utf-8") for f in template_files(TEMPLATE)]
    sentences = [f.read_text(encoding="utf-8") for f in Path(project_root(), "qlora_lib", "report").glob("*.py")]
    return {id for text in (*templates, *sentences) for id in re.findall(rf'["#]((?:{prefixes})-(?:[a-z0-9]+-)?\d\d)["}}]', text)}


def test_the_committed_record_has_every_claim_and_those_that_chapters_name():
    record = audits.read_committed()
    claims = all_claims()
    assert [c.id for c in record.claims] == list(claims)
    for c in record.claims:
        assert (c.document, c.section, c.quote, c.kind) == tuple(getattr(claims[c.id], f) for f in ("document", "section", "quote", "kind"))
    named = named_ids()
    assert len(named) > 30 and named <= set(claims)


def test_the_committed_record_is_what_the_audit_finds():
    kept = audits.read_committed()
    assert audits.differences(kept, audits.make()) == []


def test_a_difference_in_words_numbers_or_verdict_is_seen():
    kept = example_audit()

    def changed(**fields):
        record = kept.model_copy(deep=True)
        for name, value in fields.items():
            setattr(record.claims[3], name, value)
        return audits.differences(kept, record)

    one = kept.claims[3]
    assert changed() == []
    assert len(changed(verdict="holds")) == len(changed(quote="other")) == len(changed(explanation="Other words.")) == 1
    assert len(changed(evidence={"value": 9.0})) == len(changed(evidence={})) == 1
    assert changed(evidence={"value": one.evidence["value"] * 1.01}) == []  # another machine's experiment
    fewer = kept.model_copy(deep=True)
    gone = fewer.claims.pop()
    assert audits.differences(kept, fewer) == [f"{gone.id}: no longer a claim"] and audits.differences(fewer, kept) == [f"{gone.id}: not in the record"]
    turned = kept.model_copy(update={"claims": kept.claims[::-1]})
    assert audits.differences(kept, turned) == ["the claims stand in another order"]


def test_the_door_writes_and_checks_a_record(tmp_path, monkeypatch, capsys):
    found = example_audit()
    monkeypatch.setattr(audits, "make", lambda: found)
    out = tmp_path / "audit.json"
    assert door.main(["--out", str(out)]) == 0
    assert audits.read_audit(out) == found and "holds" in capsys.readouterr().out
    assert door.main(["--out", str(out), "--check"]) == 0
    found.claims[0].verdict = "cannot be checked here"
    assert door.main(["--out", str(out), "--check"]) == 1
    assert "differs from the audit in 1 places" in capsys.readouterr().err


def test_a_damaged_record_is_one_clear_line(tmp_path):
    (tmp_path / "a.json").write_text('{"claims": 3}')
    with pytest.raises(QloraError, match="no record of python -m qlora_lib.claims"):
        audits.read_audit(tmp_path / "a.json")
    twice = example_audit(each=1).model_dump(by_alias=True, mode="json")
    twice["claims"].append(twice["claims"][0])
    (tmp_path / "b.json").write_text(json.dumps(twice))
    with pytest.raises(QloraError, match="no record"):
        audits.read_audit(tmp_path / "b.json")
