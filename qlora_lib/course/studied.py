"""Lesson 11's sweeps and tasks: where they come from, and their tables, sentences and pictures.

How it works: a lesson's task arms are its profile's; sweeps are those of the profile's long run, and of `demo`'s where the
profile has none, since they take hours. Tables and sentences are the report's own, chosen from the same records. A
setting's curve is drawn here: the loss at the end for each value, and on the way there.
"""

from dataclasses import replace

from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

from qlora_lib import sensitivity, style, sweeps
from qlora_lib.figures import STUDY_FIGURES, NothingToDraw
from qlora_lib.figures.sweeps import LABELS, rate_text
from qlora_lib.notebooks.lesson import Lesson
from qlora_lib.notebooks.shown import Picture, Shown, as_table, paragraphs
from qlora_lib.report import quantities
from qlora_lib.report import sweeps as of_sweeps
from qlora_lib.report import tasks as of_tasks
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.grid import Table
from qlora_lib.report.segments import parse, plain
from qlora_lib.report.sweep_tables import tables as sweep_tables
from qlora_lib.report.values import Store
from qlora_lib.studies import studies_of
from qlora_lib.sweeps import Axis, Point, Records

SETTINGS = {  # what a control calls it -> the axis
    "rate, QLoRA": "qlora", "rate, LoRA": "lora", "rate, full": "full", "rate, 8-bit AdamW": "qlora-8bit",
    "rank": "rank", "rank, attention only": "rank-attention", "alpha": "alpha", "dropout": "dropout", "warm-up": "warmup",
    "tokens a step": "tokens",
}  # fmt: skip
COLORS = (style.BLUE, style.ORANGE, style.GREEN, style.VERMILLION, style.PURPLE, style.SKY, style.GREY)
MARKERS = "osD^vPX"


class Studied:
    """Sweeps and task arms beside a lesson; `found` is a studies.Studies, any part of which may be empty."""

    def __init__(self, lesson: Lesson):
        name = lesson.profile.name
        found = studies_of(name)
        if not found.sweeps and not found.swept_tasks and name != "demo":
            found, name = studies_of("demo"), "demo"
        self.found = replace(found, tasks=lesson.tasks)
        self.profile = f"{name}-long"
        self.records = lesson.records
        self.axes = sweeps.rate_axes(found.sweeps) | sweeps.setting_axes(found.sweeps)
        self.tolerance = sensitivity.tolerance(self.axes.values())
        self.store = Store(lesson.records, studies=self.found)
        quantities.define(self.store)
        of_sweeps.define(self.store)
        of_tasks.define(self.store)

    def origin(self) -> Shown:
        """Whose sweeps these are, and how many of them there are."""
        some = next((r for r in self.found.sweeps.values() if r.train), None)
        if some is None:
            return paragraphs([f"There are no records of sweeps ({self.profile}): what needs them is {NOT_MEASURED}."])
        arms = sum(r.train is not None for r in self.found.sweeps.values())
        stand_in = f", a stand-in for {some.data.stand_in_for}" if some.data.stand_in_for else ""
        return paragraphs([
            f"Sweeps of profile “{self.profile}”: {arms} arms of {some.model.name} on {some.data.name}{stand_in}; {some.provenance.cpu}.",
            *([f"Settings without records, {NOT_MEASURED}: {', '.join(self.missing)}."] if self.missing else []),
        ])  # fmt: skip

    @property
    def missing(self) -> list[str]:
        return [name for name in SETTINGS if name not in self.settings]

    @property
    def settings(self) -> list[str]:
        """Those of SETTINGS that were run at two values or more."""
        return [name for name, axis in SETTINGS.items() if axis in self.axes and len(self.axes[axis].points) > 1]

    def best(self, name: str) -> Point | None:
        """A method's best point, where it was run at more than one rate."""
        axis = self.axes.get(name)
        return axis.best if axis and axis.open != "alone" else None

    # --- as the report has it ------------------------------------------------------------------------

    def say(self, *slots: str) -> Shown:
        """The report's sentences on sweeps and tasks."""
        known = of_sweeps.all_sentences(self.store) | of_tasks.all_sentences(self.store)
        found = [self._plain(text) for slot in slots for _, text in known[slot]]
        return paragraphs(found or [f"{NOT_MEASURED.capitalize()}."])

    def table(self, name: str) -> Shown:
        """A table of the report: task-tasks, task-costs, task-ranks, sweep-methods, sweep-settings."""
        tables = {t.name: t for t in (*of_tasks.tables(self.store), *sweep_tables(self.store))}
        return self._table(tables[name]) if name in tables else paragraphs([f"{NOT_MEASURED.capitalize()}: no record has it."])

    def figure(self, name: str) -> Picture | Shown:
        """A figure of the report on sweeps or tasks, or why there is none."""
        kind = STUDY_FIGURES[name]
        try:
            return Picture(kind.draw(self.found, self.records), kind.alt(self.found, self.records))
        except NothingToDraw as e:
            return paragraphs([f"Not drawn: {e.message}."])

    def _table(self, table: Table) -> Shown:
        rows = []
        for label, *cells in table.rows:
            texts = [self._plain(c[1:]) if c[:1] == "=" else self.store.get(c).text if c else "" for c in cells]
            rows.append([self._plain(label), *(texts or [""] * len(table.columns))])
        return as_table([table.label, *(self._plain(title) for _, title in table.columns)], rows)

    def _plain(self, template: str) -> str:
        return plain(parse(template, self.store), self.store)

    # --- a setting's curve ---------------------------------------------------------------------------

    def curve(self, setting: str) -> Picture:
        """The loss at the end for each value of one of `settings`, and the loss on the way there."""
        return Picture(*draw_setting(self.axes[SETTINGS[setting]], setting, self.tolerance))


def draw_setting(axis: Axis, title: str, within: float) -> tuple[style.Figure, str]:
    """Left: every seed and the mean against the value. Right: the mean over seeds during training, one line a value."""
    points = axis.points
    text = rate_text if axis.key == sweeps.RATE else lambda v: f"{v:g}"
    logarithmic = points[0].value > 0 and points[-1].value / points[0].value >= 4
    places = [p.value if logarithmic else i for i, p in enumerate(points)]
    with style.page_style():
        figure = style.new_figure(6.4)
        left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
        low, top = _extent(points, within)
        for i, (p, x) in enumerate(zip(points, places, strict=True)):
            look = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
            for seed, score in zip(p.seeds, p.scores, strict=True):
                failed = score is None or seed in p.failures
                left.plot(x, top if failed else score, **look | ({"marker": "x", "ms": 7, "clip_on": False} if failed else {}), ls="none")
            steps, losses = _course(p)
            right.plot(steps, losses, **look, label=text(p.value))
        means = [(x, p.mean) for p, x in zip(points, places, strict=True) if p.mean is not None and not p.failures]
        left.plot(*zip(*means) if means else ([], []), color=style.INK, lw=1, zorder=1)
        if axis.best:
            left.axhspan(axis.best.mean, axis.best.mean + within, color=style.FAINT, alpha=0.5, lw=0, zorder=0)
        if logarithmic:
            left.set_xscale("log")
            left.xaxis.set_minor_locator(NullLocator())
        left.xaxis.set_major_locator(FixedLocator(places))
        left.set_xticklabels([text(p.value) for p in points])
        left.margins(x=0.12)
        left.set_ylim(low - 0.08 * (top - low), top)
        left.set_xlabel(title.replace("rate,", "learning rate,"))
        left.set_ylabel("validation loss, nats a token")
        left.set_title("At the end; shaded: no worse than the best")
        right.set_title("On the way, mean of the seeds")
        right.set_xlabel("training tokens")
        right.xaxis.set_major_locator(MaxNLocator(5))
        right.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        for axes in (left, right):
            axes.yaxis.grid(True)
        figure.legend(loc="outside right upper", title=title.split(",")[0])
    told = ", ".join(f"{text(p.value)}: {'failed' if p.mean is None or p.failures else f'{p.mean:.3f}'}" for p in points)
    return figure, f"Validation loss at the end of training by {title}. {told}."


def _course(p: Point) -> tuple[list[int], list[float]]:
    """(tokens, mean loss) of a point during training, as far as every seed came."""
    trains = [r.train for r in p.records]
    n = min(len(t.eval_loss) for t in trains)
    tokens = [step * trains[0].tokens_per_step for step in trains[0].eval_steps[:n]]
    return tokens, [sum(t.eval_loss[i] for t in trains) / len(trains) for i in range(n)]


def _extent(points: tuple[Point, ...], within: float) -> tuple[float, float]:
    """Of the losses at the end, at least four tolerances high, so that no small difference looks like a large one."""
    known = [x for p in points for seed, x in zip(p.seeds, p.scores, strict=True) if x is not None and seed not in p.failures]
    low, high = min(known, default=0.0), max(known, default=1.0)
    more = max(0.0, 4 * within - (high - low)) / 2
    return low - more, high + more + 0.08 * (high - low + 2 * more)


def good_rates(records: Records) -> list[list[str]]:
    """Rows (method, seed, from, to, factor) of the good ranges of the learning rate, each seed and the means."""
    within, rows = sensitivity.shared_tolerance(records), []
    for name, axis in sweeps.rate_axes(records).items():
        for seed in (*axis.seeds, None) if len(axis.points) > 1 else ():
            if span := sensitivity.good_range(axis, within, seed):
                ends = [rate_text(x) for x in (span.low, span.high)]
                factor = f"{'at least ' if span.is_open else ''}{style.number(span.factor, 2)}"
                rows.append([LABELS[name], "mean" if seed is None else str(seed), *ends, factor])
    return rows
