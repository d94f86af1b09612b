"""Records and figures -> one JSON -> Typst -> PDF.

How it works: every figure becomes a value with its source (values.py); tables, sentences and the
appendix name values by key; all of it is written as report/<profile>/data.json. Template, data and
pictures are laid into one folder of their own and compiled there, so that no path of this machine
gets into the document. Fonts are those that Typst carries, the date is that of the newest record:
the same input makes the same bytes. A warning of Typst is an error here.
"""

import json
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typst

from qlora_lib import published
from qlora_lib.claims.record import AuditRecord
from qlora_lib.config import load_profile, profile_names
from qlora_lib.errors import QloraError
from qlora_lib.paths import report_dir, write_atomic
from qlora_lib.records import RunRecord
from qlora_lib.report import audit as claims
from qlora_lib.report import costs, guide, quantities, speed, sweeps, tasks
from qlora_lib.report.appendix import appendix
from qlora_lib.report.benches import Benches
from qlora_lib.report.captions import all_captions
from qlora_lib.report.segments import parse
from qlora_lib.report.sentences import all_sentences
from qlora_lib.report.tables import all_tables, choice_rows
from qlora_lib.report.values import Store
from qlora_lib.report.verdicts import all_verdicts
from qlora_lib.studies import Studies
from qlora_lib.validation.record import ValidationRecord

if TYPE_CHECKING:
    from qlora_lib.figures import DrawnFigure

TEMPLATE = "report.typ"
SUBTITLE = "Repeated, corrected and measured"
KEYWORDS = ("QLoRA", "LoRA", "fine-tuning", "quantization", "NF4", "LLaMA", "perplexity")
AUTHOR = "The qlora_lib project"
_NAMED_IN_TEMPLATE = re.compile(r'\bv\("([^"]+)"\)')


def build_report(
    profile: str,
    records: Mapping[str, RunRecord],
    figures: Sequence["DrawnFigure"],
    out_pdf: Path,
    title: str = published.TITLE,
    subtitle: str = SUBTITLE,
    source: str = "",
    template: Path | None = None,
    data_json: Path | None = None,
    benches: Benches | None = None,
    studies: Studies | None = None,
    validation: ValidationRecord | None = None,
    audit: AuditRecord | None = None,
) -> Path:
    """Write the PDF of `records`, atomically, and the data it prints beside it; returns `out_pdf`.

    `source` says where the records come from (the sentence of `records.records_of`); `template` is
    the folder of the Typst files, by default the checkout's report/; `data_json` where the data goes,
    by default report/<profile>/data.json; `benches` what `qlora bench` found for this model; `studies` the
    sweeps and task arms that stand beside the profile's own; `validation` and `audit` the records of these. Raises QloraError on any warning or error of Typst.
    """
    template = Path(template or report_dir())
    data = report_data(profile, records, figures, template, title, subtitle, source, benches, studies, validation, audit)
    text = json.dumps(data, indent=1, ensure_ascii=False) + "\n"
    write_atomic(Path(data_json or report_dir() / profile / "data.json"), text)
    stamp = max(datetime.fromisoformat(r.provenance.finished) for r in records.values())
    with tempfile.TemporaryDirectory(prefix="qlora-report-") as folder:
        lay_out(Path(folder), template, text, figures)
        pdf = compile_pdf(Path(folder), int(stamp.timestamp()))
    write_atomic(Path(out_pdf), pdf)
    return Path(out_pdf)


def report_data(
    profile: str,
    records: Mapping[str, RunRecord],
    figures: Sequence["DrawnFigure"],
    template: Path,
    title: str = published.TITLE,
    subtitle: str = SUBTITLE,
    source: str = "",
    benches: Benches | None = None,
    studies: Studies | None = None,
    validation: ValidationRecord | None = None,
    audit: AuditRecord | None = None,
) -> dict[str, Any]:
    """All that the template reads: values by key, and the text, tables and pictures that name them."""
    if not records:
        raise QloraError(f"no records to report for profile '{profile}'", f"Run: qlora run --profile {profile}")
    store = Store(dict(records), _rates_searched(profile), benches, studies, validation, audit)
    quantities.define(store)
    speed.define(store)
    for part in (sweeps, tasks, guide):
        part.define(store)
    slots = all_sentences(store) | all_verdicts(store) | speed.all_sentences(store)
    slots |= sweeps.all_sentences(store) | tasks.all_sentences(store) | guide.all_sentences(store)
    slots |= costs.all_sentences(store) | claims.all_sentences(store)
    drawn = [figure.name for figure in figures]
    finished = max(r.provenance.finished for r in records.values())
    data = {
        "document": {
            "profile": profile,
            "title": title,
            "subtitle": subtitle,
            "study": {"title": published.TITLE, "authors": list(published.AUTHORS)},
            "author": AUTHOR,
            "keywords": list(KEYWORDS),
            "source": source,
            "date": datetime.fromisoformat(finished).strftime("%Y-%m-%d").split("-"),
        },
        "say": {
            name: [{"lead": lead, "pieces": parse(text, store)} for lead, text in paragraphs]
            for name, paragraphs in slots.items()
        },
        "tables": {name: table for part in (all_tables, *(p.all_tables for p in (speed, sweeps, tasks, costs, claims)))
                   for name, table in part(store).items()},
        "speed": speed.shown(store),
        "sweeps": sweeps.shown(store, drawn) | {"any": bool(store.studies.sweeps)},
        "tasks": tasks.shown(store, drawn),
        "costs": costs.shown(store, drawn),
        "claims": guide.claims(store),
        "audit": claims.shown(store),
        "choices": choice_rows(store),
        "captions": all_captions(store) | {
            name: parse(text, store)
            for part in (sweeps, tasks, costs) for name, text in part.captions(store, drawn).items()
        },
        "figures": {f.name: {"path": f"/figures/{f.name}.svg", "alt": f.alt} for f in figures},
        "appendix": appendix(store),
    }
    for file in template_files(template):
        for key in _NAMED_IN_TEMPLATE.findall(file.read_text(encoding="utf-8")):
            store.use(key)
    data["values"] = {key: value.as_json() for key, value in store.printed().items()}
    return data


def _rates_searched(profile: str) -> bool:
    """Whether the profile chose each method's rate by a search; no for records of a profile that
    this checkout does not have."""
    return profile in profile_names() and load_profile(profile).search is not None


def template_files(template: Path) -> list[Path]:
    """The template's own files; what reports wrote beside them is none of them."""
    patterns = ("*.typ", "*.bib", "chapters/*.typ")
    return sorted(file for pattern in patterns for file in template.glob(pattern))


def lay_out(folder: Path, template: Path, data: str, figures: Sequence["DrawnFigure"]) -> None:
    """Put template, data and pictures into one folder, the only one that Typst may read."""
    if not (template / TEMPLATE).is_file():
        raise QloraError(f"no report template at {template / TEMPLATE}", "Run from the checkout")
    for file in template_files(template):
        place = folder / file.relative_to(template)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    (folder / "data.json").write_text(data, encoding="utf-8")
    (folder / "figures").mkdir()
    for figure in figures:
        shutil.copyfile(figure.path_svg, folder / "figures" / f"{figure.name}.svg")


def compile_pdf(folder: Path, timestamp: int, audit: bool = False) -> bytes:
    """Compile the laid-out folder. `audit` prints a mark in place of every value (see lib.typ)."""
    main = folder / TEMPLATE
    try:
        pdf, warnings = typst.compile_with_warnings(
            main, root=folder, ignore_system_fonts=True, timestamp=timestamp, format="pdf",
            pdf_standards="ua-1", sys_inputs={"audit": "yes" if audit else "no"},
        )  # fmt: skip
    except typst.TypstError as e:
        raise QloraError(f"the report does not compile: {_diagnostic(e)}") from None
    if warnings:
        raise QloraError(
            f"the report compiles with {len(warnings)} warning(s), the first: {_diagnostic(warnings[0])}",
            "A warning means that something is not printed as written: mend the template",
        )
    return pdf


def _diagnostic(found) -> str:
    """The message with its place in the template; the folder of the build is nobody's business."""
    message = re.sub(r" \(searched at .*\)", "", found.message)
    where = re.search(r"┌─ (?:\S*/)?(\S+?:\d+)", found.diagnostic)
    return message + (f" ({where[1]})" if where else "")
