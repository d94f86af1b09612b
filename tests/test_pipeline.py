"""`qlora report` from records to pages, without training; the checkout stays as it is."""

import json

import pytest

from example_records import example_records
from qlora_lib import pipeline, records as records_module
from qlora_lib.config import load_profile
from qlora_lib.errors import QloraError
from qlora_lib.paths import report_dir
from qlora_lib.pipeline import Outcome, make_report
from qlora_lib.report import build as build_module
from qlora_lib.stages import Stage
from qlora_lib.study import ArmFailed, ArmResult


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Records of `smoke` as the repository carries them, and every page in a folder of the test's."""
    profile, kept = load_profile("smoke"), tmp_path / "records" / "smoke"
    examples = example_records("smoke")
    kept.mkdir(parents=True)
    for arm in (a for a in profile.arms if a.name in examples):
        examples[arm.name].settings = profile.settings(arm).model_dump(exclude={"seed"})
        (kept / f"{arm.name}.json").write_text(examples[arm.name].to_json())
    pages = tmp_path / "report"
    pages.mkdir()
    for path in report_dir().iterdir():
        if path.suffix in (".typ", ".bib") or path.name == "chapters":
            (pages / path.name).symlink_to(path)
    for module in (pipeline, build_module):
        monkeypatch.setattr(module, "report_dir", lambda: pages)
    monkeypatch.setattr(pipeline, "figures_dir", lambda name: tmp_path / "figures" / name)
    monkeypatch.setattr(records_module, "committed_records", lambda name: tmp_path / "records" / name)
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "results"))
    return tmp_path


def checkout() -> dict:
    """{file: when it was written} of all that pages could be written over."""
    places = [report_dir(), report_dir().parent / "figures"]
    return {p: p.stat().st_mtime_ns for place in places for p in place.rglob("*") if p.is_file()}


def test_pages_from_the_committed_records_train_nothing(folders, monkeypatch, capsys):
    def train(*_, **__):
        raise AssertionError("trained")

    monkeypatch.setattr("qlora_lib.study.run_profile", train)
    before = checkout()
    outcome = make_report(load_profile("smoke"), notebooks=False, committed=True)
    assert checkout() == before
    assert outcome.pdf == folders / "report" / "smoke.pdf" and outcome.pdf.read_bytes().startswith(b"%PDF-")
    assert outcome.arms_run == [] and outcome.html == []
    assert set(outcome.stage_seconds) == {"figures", "pdf"} and min(outcome.stage_seconds.values()) > 0
    drawn = sorted(p.name for p in (folders / "figures" / "smoke").glob("*.svg"))
    assert sorted(p.name for p in outcome.figures) == drawn and len(drawn) >= 4
    assert not (folders / "figures" / "smoke" / "talk").exists()
    told = json.loads(json.dumps(outcome.to_dict()))
    assert [s["stage"] for s in told["stages"]] == ["figures", "pdf"] and sum(s["share"] for s in told["stages"]) == pytest.approx(1)
    table = capsys.readouterr().err.splitlines()
    assert [line.split()[0] for line in table[-4:]] == ["where", "figures", "pdf", "in"]
    assert told["pdf"] == str(outcome.pdf) and told["stage_seconds"].keys() == outcome.stage_seconds.keys()


def test_no_committed_records_is_one_line_and_no_page(folders):
    with pytest.raises(QloraError, match="no records for profile 't4-tinyllama-wikitext2'"):
        make_report(load_profile("t4-tinyllama-wikitext2"), notebooks=False, committed=True)
    assert not list(folders.glob("report/*.pdf"))


def test_an_arm_that_failed_does_not_cost_the_pages_of_the_others(folders, monkeypatch, capsys):
    """The failure is told last, with exit 1, and the pages and the table of stages show what is there."""
    examples, results = example_records("smoke"), folders / "results" / "smoke"

    def run(profile, **_):
        for arm in profile.arms:
            if arm.name != "full-nf4dq" and arm.name in examples:
                record = examples[arm.name]
                record.settings = profile.settings(arm).model_dump(exclude={"seed"})
                record.write(results / arm.name)
        examples["lora"].provenance.stage_seconds = {"train": 8e3}
        failure = ArmFailed("1 of 6 arms failed: full-nf4dq", "Mend it")
        failure.results = [ArmResult(profile.arm("base"), examples["base"], True, 0.1), ArmResult(profile.arm("lora"), examples["lora"], False, 9e3)]
        raise failure

    monkeypatch.setattr("qlora_lib.study.run_profile", run)
    example = folders / "figures" / "smoke" / "bench-default.svg"  # the repository's: no bench ran here, and the README shows it
    example.parent.mkdir(parents=True)
    example.write_text("an example")
    with pytest.raises(QloraError, match=r"1 of 6 arms failed: full-nf4dq; the pages show what is there: .*smoke\.pdf. Mend it") as e:
        make_report(load_profile("smoke"), notebooks=False)
    assert example.read_text() == "an example"
    assert e.value.exit_code == 1 and (folders / "report" / "smoke.pdf").is_file()
    table = capsys.readouterr().err
    label = load_profile("smoke").arm("lora").label
    assert "1 run, 1 cached" in table and f"  {label} " in table and "run: train 8000.0, other 1000.0" in table


def test_an_outcome_is_plain_json(tmp_path):
    stages = [Stage("arms", 1.5, False, [Stage("QLoRA", 1.5, False, [Stage("train", 1.0)])]), Stage("pdf", 0.5)]
    outcome = Outcome("smoke", tmp_path / "a.pdf", [tmp_path / "a.svg"], [tmp_path / "a.html"], ["base"], stages)
    train = {"stage": "train", "seconds": 1.0, "share": 0.5, "cached": False, "parts": []}
    arm = {"stage": "QLoRA", "seconds": 1.5, "share": 0.75, "cached": False, "parts": [train]}
    assert json.loads(json.dumps(outcome.to_dict())) == {
        "profile": "smoke", "pdf": str(tmp_path / "a.pdf"), "figures": [str(tmp_path / "a.svg")],
        "html": [str(tmp_path / "a.html")], "arms_run": ["base"], "stage_seconds": {"arms": 1.5, "pdf": 0.5},
        "stages": [{**arm, "stage": "arms", "parts": [arm]}, {"stage": "pdf", "seconds": 0.5, "share": 0.25, "cached": False, "parts": []}],
    }  # fmt: skip


def test_figures_for_a_talk_go_beside_the_others(folders):
    kept = folders / "results" / "smoke" / "course" / "talk"
    kept.mkdir(parents=True)
    (kept / "codebooks.svg").write_text("<svg/>")
    make_report(load_profile("smoke"), notebooks=False, committed=True)
    assert (folders / "figures" / "smoke" / "talk" / "codebooks.svg").read_text() == "<svg/>"
