"""`qlora report`: what is missing is run, then notebooks, figures and PDF, each timed.

How it works: the arms leave records (cached by content), and all that follows reads them. An arm
or a notebook that failed does not cost the reader the others: the pages are made from the records that are
there, and the failure is told at the end, after the table of where the time went.
"""

import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from qlora_lib.config import Profile
from qlora_lib.errors import QloraError
from qlora_lib.paths import course_dir, figures_dir, report_dir, results_dir, write_atomic
from qlora_lib.records import read_records, records_of
from qlora_lib.stages import Stage, arm_stage, to_text


@dataclass
class Outcome:
    profile: str
    pdf: Path
    figures: list[Path]
    html: list[Path]
    arms_run: list[str]  # the others came from the cache
    stages: list[Stage] = field(default_factory=list)

    @property
    def stage_seconds(self) -> dict[str, float]:
        return {stage.name: stage.seconds for stage in self.stages}

    def to_dict(self) -> dict:
        return {
            "profile": self.profile,
            "pdf": str(self.pdf),
            "figures": [str(p) for p in self.figures],
            "html": [str(p) for p in self.html],
            "arms_run": self.arms_run,
            "stage_seconds": self.stage_seconds,
            "stages": [stage.to_dict(sum(self.stage_seconds.values())) for stage in self.stages],
        }


def make_report(profile: Profile, force: bool = False, notebooks: bool = True, committed: bool = False) -> Outcome:
    """Arms -> notebooks -> figures -> PDF of one profile.

    Args:
        force: run every arm and notebook again.
        notebooks: also execute the notebooks and write their HTML.
        committed: use the records in the repository and train nothing.

    Raises:
        QloraError: when an arm or a notebook failed, after the pages of the others are made.
    """
    stages: list[Stage] = []

    @contextmanager
    def stage(name: str):
        """Times what is inside; the list it gives is for the stage's parts."""
        start, parts = time.perf_counter(), []
        yield parts
        stages.append(Stage(name, time.perf_counter() - start, bool(parts) and all(p.cached for p in parts), parts))

    failure, arms_run = None, []
    if not committed:
        from qlora_lib.study import ArmFailed, run_profile

        with stage("arms") as parts:
            try:
                results = run_profile(profile, force=force)
            except ArmFailed as e:
                failure, results = e, e.results
            arms_run = [r.arm.name for r in results if not r.cached]
            parts += [arm_stage(r.arm.label, r.seconds, r.cached, r.record) for r in results]
    if failure is not None and not read_records(results_dir(profile.name)):
        raise failure
    records, source = records_of(profile.name, "committed" if committed else "own")
    html = []
    if notebooks:
        from qlora_lib.notebooks import NotebookFailed, execute_notebooks

        with stage("notebooks") as parts:
            try:
                executed = execute_notebooks(profile, "committed" if committed else "own", force=force)
            except NotebookFailed as e:
                failure = QloraError(f"{failure.message}; {e.message}", failure.hint) if failure else e
                executed = e.executed
            html = [e.html for e in executed]
            parts += [Stage(e.name, e.seconds, e.cached) for e in executed]
    with stage("figures"):
        from qlora_lib.figures import draw_all, draw_benches, draw_costs, draw_studies
        from qlora_lib.report.benches import read_benches
        from qlora_lib.studies import studies_of
        from qlora_lib.validation import committed_validation, read_validation

        source_kind, folder = "committed" if committed else "own", figures_dir(profile.name)
        benches = read_benches(next(iter(records.values())).model.name, source_kind)
        studies = studies_of(profile.name, source_kind)
        validation = read_validation(committed_validation()) if committed_validation().is_file() else None
        drawn = draw_all(records, folder) + draw_studies(studies, records, folder)
        if benches:  # without one of its own a report has none, and the repository's example, which the README shows, stays
            drawn += draw_benches(benches, folder)
        drawn += draw_costs(validation, folder)
        _copy_talk_figures(profile.name)
    with stage("pdf"):
        from qlora_lib.claims.record import read_committed as read_audit
        from qlora_lib.report import build_report

        pdf = build_report(
            profile.name, records, drawn, report_dir() / f"{profile.name}.pdf", source=source, benches=benches, studies=studies,
            validation=validation, audit=read_audit(),
        )  # fmt: skip
    print(f"\n{to_text(stages)}", file=sys.stderr, flush=True)
    if failure is not None:
        raise QloraError(f"{failure.message}; the pages show what is there: {pdf}", failure.hint)
    return Outcome(profile.name, pdf, [f.path_svg for f in drawn], html, arms_run, stages)


def _copy_talk_figures(profile: str) -> None:
    """What the lessons kept for a talk goes beside the report's figures."""
    for path in sorted((course_dir(profile) / "talk").glob("*.*")):
        write_atomic(figures_dir(profile) / "talk" / path.name, path.read_bytes())
