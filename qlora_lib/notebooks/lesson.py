"""What the notebooks show from records: tables, sentences, pictures, predictions and what it all cost.

How it works: a notebook opens a `Lesson` on one profile. Its cells name values as the report does
(`qlora.size_bytes.total`, `perplexity-interval.qlora.full`; see report/values.py), so notebook and
report print the same figure in the same way, and a quantity that was not measured says so. Sentences
that depend on the numbers are the report's own, chosen from the records.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping

from qlora_lib import hardware, style
from qlora_lib.config import load_profile
from qlora_lib.errors import QloraError, UsageError, nearest
from qlora_lib.figures import FIGURES, NothingToDraw
from qlora_lib.notebooks.predictions import draw_predictions, predictions_alt
from qlora_lib.notebooks.ledger import Ledger
from qlora_lib.notebooks.shown import Picture, Shown, as_table, paragraphs
from qlora_lib.paths import course_dir, report_dir, write_atomic
from qlora_lib.records import RunRecord, records_of, task_records_of
from qlora_lib.report import quantities
from qlora_lib.report.formats import NOT_MEASURED, show
from qlora_lib.report.segments import parse, plain
from qlora_lib.report.sentences import all_sentences
from qlora_lib.report.values import Store
from qlora_lib.report.verdicts import all_verdicts, choices

SOURCES = ("auto", "own", "committed", "run")


class Lesson:
    """The records of one profile, and ways to show them."""

    def __init__(self, profile: str = "demo", records: str = "auto"):
        """Read the records, and with `records="run"` first train the arms that have none.

        Args:
            profile: a profile's name or YAML file.
            records: "auto" (this machine's where there are any, else those of the repository),
                "own", "committed", or "run".
        """
        if records not in SOURCES:
            raise UsageError(f"records = '{records}' is no source", nearest(records, SOURCES))
        self._begun = time.perf_counter()
        hardware.quiet_logs()  # chatter of the stack has no place on a page
        self.profile = load_profile(profile)
        if records == "run":
            from qlora_lib.study import run_profile

            run_profile(self.profile)
            records = "own"
        found, self.source = records_of(self.profile.name, records)
        self.records: dict[str, RunRecord] = {arm: found[arm] for arm in style.in_order(found)}
        self.tasks: dict[str, RunRecord] = task_records_of(self.profile.name, records)[0]
        self.store = Store(self.records, self.profile.search is not None)
        quantities.define(self.store)
        self.ledger = Ledger(course_dir(self.profile.name) / "predictions.json")

    def _repr_html_(self) -> str:
        return paragraphs(self._opening()).html

    def __repr__(self) -> str:
        return "\n".join(self._opening())

    def _opening(self) -> list[str]:
        first = next(iter(self.records.values()))
        missing = [a.label for a in self.profile.arms if a.runs and a.name not in self.records | self.tasks]
        lines = [
            f"The numbers below are those of profile “{self.profile.name}”: {self.source}.",
            f"{first.model.name} on {first.data.name}; {self.text('hardware')}.",
        ]
        if missing:
            lines.append(f"These arms have no record, so what needs them is left out: {', '.join(missing)}.")
        if first.data.stand_in_for:
            lines.append(f"The text stands in for {first.data.stand_in_for}; no number is that data set's.")
        if first.data.attribution:
            lines.append(f"Text: {first.data.attribution}")
        return lines

    # --- values ----------------------------------------------------------------------------------

    def number(self, key: str):
        """The number behind a value's name, or None."""
        return self.store.number(key)

    def text(self, key: str) -> str:
        """A value as the report prints it."""
        return self.store.get(key).text

    def arms(self, wanted: Callable[[RunRecord], object] | None = None) -> list[str]:
        """Names of the arms, all or those whose record satisfies `wanted`, in the pages' order."""
        return [arm for arm, record in self.records.items() if wanted is None or wanted(record)]

    # --- pieces of a page ------------------------------------------------------------------------

    def table(self, columns: Mapping[str, str], arms: Iterable[str] | None = None) -> Shown:
        """One row an arm; `columns` maps a heading to the path of a record's field.

        A path may name a format: "size_bytes.total@mib_unit". "{arm}" in a path stands for the arm,
        for values that are not fields: "gained-interval.{arm}".
        """
        rows = [
            [self.records[arm].label, *(self._cell(arm, path) for path in columns.values())]
            for arm in (self.arms() if arms is None else arms)
            if arm in self.records
        ]
        return as_table(["Arm", *columns], rows)

    def _cell(self, arm: str, path: str) -> str:
        if "{arm}" not in path:
            return self.text(f"{arm}.{path}")
        try:
            return self.text(path.format(arm=arm))
        except QloraError:  # a comparison that is defined for other arms
            return "—"

    def say(self, *slots: str) -> Shown:
        """The report's sentences on these subjects, as these records make them."""
        known = all_sentences(self.store) | all_verdicts(self.store)
        for slot in slots:
            if slot not in known:
                raise QloraError(f"the report says nothing about '{slot}'", nearest(slot, known))
        found = [(lead, self._plain(text)) for slot in slots for lead, text in known[slot]]
        return paragraphs([text for _, text in found], [lead for lead, _ in found])

    def choices(self) -> Shown:
        """The choice table: what matters most, what to use, what the records say."""
        rows = [[self._plain(c.removeprefix("=")) for c in row] for row in choices(self.store)]
        return as_table(["What matters most", "Use", "Because"], rows, numbers=False)

    def _plain(self, template: str) -> str:
        return plain(parse(template, self.store), self.store)

    def figure(self, name: str) -> Picture | Shown:
        """A figure of the report, or the reason why these records do not allow it."""
        if name not in FIGURES:
            raise QloraError(f"no figure '{name}'", nearest(name, FIGURES))
        try:
            return Picture(FIGURES[name].draw(self.records), FIGURES[name].alt(self.records))
        except NothingToDraw as e:
            return paragraphs([f"Not drawn: {e.message}."])

    def reveal(
        self,
        name: str,
        guess: float | None,
        value: float | None,
        form: str = "rate",
        what: str = "Measured",
        rule: float | None = None,
    ) -> Shown:
        """A prediction beside the value; both go to the ledger, where the first prediction counts.

        Args:
            name: of the prediction, unique in the course, its notebook's number first.
            guess: the reader's, or None.
            value: what was measured, or None where it was not.
            form: a format of report/formats.py.
            what: how the value was got.
            rule: what a simple rule says, or a published write-up.
        """
        if value is None:
            return paragraphs([f"These records do not say: {NOT_MEASURED}."])
        entry = self.ledger.note(name, guess, value, form, what, rule)
        line = f"{what}: {show(value, form)}."
        if guess is None:
            line += " (No prediction was written down: set guess, run the cell again.)"
        else:
            line += f" Your prediction: {show(guess, form)}{_apart(guess, value)}."
        if rule is not None:
            line += f" The simple rule says {show(rule, form)}{_apart(rule, value)}."
        if entry.guess not in (None, guess):
            line += f" In the ledger stands your first prediction, {show(entry.guess, form)}."
        return paragraphs([line, *([self.ledger.trouble] if self.ledger.trouble else [])])

    def predictions(self) -> Picture | Shown:
        """Every prediction of the ledger against what was measured."""
        entries = self.ledger.entries
        try:
            return Picture(draw_predictions(entries), predictions_alt(entries))
        except NothingToDraw as e:
            return paragraphs([f"Not drawn: {e.message}."])

    def keep(self, name: str, figure: style.Figure, alt: str) -> Picture:
        """Show a figure, and save it as SVG and PNG, to be used in a talk."""
        for file_format in ("svg", "png"):
            write_atomic(course_dir(self.profile.name) / "talk" / f"{name}.{file_format}", style.render(figure, file_format))
        return Picture(figure, alt)

    # --- what it cost ----------------------------------------------------------------------------

    def cost(self, notebook: str, each_arm: bool = False) -> Shown:
        """Measured time and memory: of this notebook when it last ran headlessly, and of the arms."""
        rows = []
        if spent := _last_run(self.profile.name, notebook):
            rows.append(("this notebook, its records being there", spent["seconds"], spent["peak_resident_bytes"]))
        measured = [(r.label, r.provenance.wall_seconds, r.provenance.peak_resident_bytes) for r in self.records.values()]
        if each_arm:
            rows += [(f"the arm “{label}”", seconds, peak) for label, seconds, peak in measured]
        total, largest = sum(m[1] for m in measured), max(m[2] for m in measured)
        rows.append((f"all {len(measured)} arms, one after another", total, largest))
        return as_table(
            ["Measured", "Time", "Peak resident memory"],
            [[what, _duration(seconds), show(peak, "mib_unit")] for what, seconds, peak in rows],
        )

    def spent(self) -> Shown:
        """Time since the lesson was opened, and the most memory that this process has held."""
        from qlora_lib.notebooks.kernel import peak_resident_bytes

        seconds = _duration(time.perf_counter() - self._begun)
        memory = show(peak_resident_bytes(), "mib_unit")
        return paragraphs([f"Since the lesson was opened: {seconds}; most memory resident: {memory}."])


def _apart(guess: float, value: float) -> str:
    if guess * value <= 0:
        return ""
    ratio = max(guess / value, value / guess)
    return ", within a tenth of it" if ratio <= 1.1 else f", off by a factor of {ratio:.2g}"


def _duration(seconds: float) -> str:
    return f"{style.number(seconds)} s" if seconds < 100 else f"{style.number(seconds / 60)} min"


def _last_run(profile: str, notebook: str) -> dict | None:
    """What the last headless execution took, here or else where the committed records were made."""
    stamp = report_dir() / profile / "notebooks" / f"{notebook}.stamp.json"
    committed = report_dir() / "records" / f"{profile}-notebooks.json"
    try:
        if stamp.is_file():
            return json.loads(stamp.read_text())
        return json.loads(committed.read_text()).get(notebook)
    except (OSError, ValueError):
        return None
