"""Tasks: each metric before and after training, accuracy against rank, and tokens a second of the arms.

How it works: a metric's record has its interval over test examples, drawn as whiskers. Percentages and perplexities have panels of
their own. Speed is of the demo's arms only, which were timed; sweeps were not.
"""

from matplotlib.ticker import FixedLocator, NullLocator

from qlora_lib import style
from qlora_lib.figures import parts
from qlora_lib.figures.parts import NothingToDraw, Records, framed, settled
from qlora_lib.records import Metric, RunRecord
from qlora_lib.studies import METRIC_NAMES, WIN_RATES, rank_axes
from qlora_lib.style import FAINT, INK, SOFT
from qlora_lib.sweeps import Axis

METRICS_CAPTION = (
    "Each task’s metric on its test examples before and after QLoRA training. Whiskers: 95 % confidence intervals over examples."
)
RANK_CAPTION = "Accuracy after training against rank. Small marks: one seed each; line: their mean; dashed: the untrained base."
SPEED_CAPTION = "Training and generation speed of each arm. Whiskers of training: quartiles over steps; of generation: the repeats."


def metrics_of(records: Records) -> list[tuple[RunRecord, str, Metric]]:
    """(record, metric's name, metric) of everything measured before or after."""
    return [
        (r, name, metric) for r in records.values() if r.task for name, metric in r.task.metrics.items()
        if name not in WIN_RATES and (metric.before is not None or metric.after is not None)
    ]  # fmt: skip


def metric_arms(tasks: Records) -> list[str]:
    arms = list(dict.fromkeys(r.arm for r, _, _ in metrics_of(tasks)))
    if not arms:
        raise NothingToDraw("no task was scored")
    return arms


def draw_metrics(tasks: Records) -> style.Figure:
    """One row a metric: a hollow mark before, a filled one after, an arrow between them."""
    arms, rows = metric_arms(tasks), metrics_of(tasks)
    groups = [(unit, [row for row in rows if row[2].unit == unit]) for unit in dict.fromkeys(m.unit for _, _, m in rows)]
    notes = ["Hollow: before training (the quantized base). Filled: after. Whiskers: 95 % confidence intervals over test examples."]
    height = 3.6 + sum(1.0 + 0.85 * len(of) for _, of in groups)
    with style.page_style():
        figure = framed("Tasks before and after QLoRA", height, tasks, arms, notes)
        panels = figure.subplots(len(groups), 1, squeeze=False, height_ratios=[0.6 + len(of) for _, of in groups])[:, 0]
        for axes, (unit, of) in zip(panels, groups, strict=True):
            for row, (_, _, metric) in enumerate(of):
                _draw_metric(axes, row, metric)
            axes.set_yticks(range(len(of)), [f"{r.data.name},\n{METRIC_NAMES.get(name, name)}" for r, name, _ in of])
            axes.set_ylim(len(of) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            axes.grid(True, axis="x")
            better = "more is better" if of[0][2].higher_is_better else "less is better"
            axes.set_xlabel(f"{unit}, {better}")
            if unit == "%":
                axes.set_xlim(0, 100)
            else:
                axes.set_xlim(0, 1.08 * axes.get_xlim()[1])
        return settled(figure)


def _draw_metric(axes, row: int, metric: Metric) -> None:
    places = ((metric.before, metric.before_interval, row - 0.14, "white"), (metric.after, metric.after_interval, row + 0.14, style.GREEN))
    for value, interval, y, face in places:
        if value is None:
            axes.text(0.5, y, parts.NOT_MEASURED, transform=axes.get_yaxis_transform(), size=6, style="italic", color=SOFT, va="center")
            continue
        if interval:
            axes.plot(interval, [y, y], color=style.GREEN, lw=1.1, zorder=2)
        axes.plot(value, y, "D", mfc=face, mec=style.GREEN, mew=1.2, zorder=3)
        end = max(interval) if interval else value
        axes.annotate(style.number(value), (end, y), xytext=(5, 0), textcoords="offset points", va="center", size=6, color=INK)


# --- rank against accuracy -------------------------------------------------------------------------


def rank_arms(found: Records) -> list[str]:
    axes = rank_axes(found)
    if not axes:
        raise NothingToDraw("no task was trained at two ranks")
    return list(dict.fromkeys(r.arm for axis in axes.values() for p in axis.points for r in p.records))


def draw_rank(found: Records) -> style.Figure:
    """One panel a data set and metric."""
    arms, axes_of = rank_arms(found), rank_axes(found)
    columns = min(3, len(axes_of))
    rows = -(-len(axes_of) // columns)
    with style.page_style():
        figure = framed("Rank and the tasks’ metrics", 2.6 + 4.6 * rows, found, arms, ["Small marks: one seed each. Line: their mean."])
        panels = figure.subplots(rows, columns, squeeze=False).ravel()
        for spare in panels[len(axes_of):]:
            spare.set_axis_off()
        for axes, ((data, metric), axis) in zip(panels, axes_of.items()):
            for p in axis.points:
                known = [(p.value, score) for score in p.scores if score is not None]
                axes.plot(*zip(*known) if known else ([], []), "D", mfc="white", mec=style.GREEN, ms=3.4, mew=0.9, ls="none", zorder=3)
            mean = [(p.value, p.mean) for p in axis.points if p.mean is not None]
            axes.plot([x for x, _ in mean], [y for _, y in mean], color=style.GREEN, zorder=2)
            before = base_of(axis, metric)
            if before is not None:
                axes.axhline(before, color=style.GREY, ls="--", lw=0.9)
                axes.annotate("untrained", (0.99, before), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=6,
                              color=SOFT, xytext=(0, 1.5), textcoords="offset points")  # fmt: skip
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator([p.value for p in axis.points]))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
            axes.set_title(f"{data}, {METRIC_NAMES.get(metric, metric)}")
            axes.set_xlabel("rank")
            axes.set_ylabel("%")
            axes.yaxis.grid(True)
        return settled(figure)


def base_of(axis: Axis, metric: str) -> float | None:
    """The metric of the untrained base, which every arm of an axis measured."""
    return axis.points[0].records[0].task.metrics[metric].before


# --- speed ----------------------------------------------------------------------------------------


def speed_arms(records: Records) -> list[str]:
    arms = [a for a in style.in_order(records) if records[a].train]
    if not arms:
        raise NothingToDraw("no arm was trained")
    return arms


def draw_speed(records: Records) -> style.Figure:
    """Bars of tokens a second: training, and generation where it was timed."""
    arms, styles = speed_arms(records), style.arm_styles(records)
    made = [a for a in style.in_order(records) if records[a].generation]
    with style.page_style():
        figure = framed("Throughput", 3.2 + 0.62 * max(len(arms), len(made)), records, arms, ["More is better."])
        left, right = figure.subplots(1, 2)
        for axes, some, title in ((left, arms, "Training"), (right, made, "Generation, batch of one")):
            end = 0.0
            for row, arm in enumerate(some):
                r = records[arm]
                if axes is left:
                    rate, tokens, times = r.train.tokens_per_second, r.train.tokens_per_step, r.train.seconds_per_step_quartiles
                else:
                    rate, tokens, times = r.generation.tokens_per_second, r.generation.new_tokens, r.generation.repeats
                axes.barh(row, rate, height=0.6, **styles[arm].bar)
                reach = rate
                if times:
                    spread = [tokens / max(times), tokens / min(times)]
                    axes.plot(spread, [row, row], color=INK, lw=1)
                    reach = max(reach, spread[1])
                axes.annotate(style.number(rate), (reach, row), xytext=(4, 0), textcoords="offset points", va="center", size=6.5)
                end = max(end, reach)
            axes.set_title(title)
            axes.set_yticks(range(len(some)), [parts.wrapped(records[a].label, 26) for a in some])
            axes.set_ylim(max(len(some), 1) - 0.5, -0.5)
            axes.tick_params(axis="y", length=0)
            axes.set_xlim(0, 1.2 * end or 1)
            axes.set_xlabel("tokens per second")
            axes.xaxis.grid(True, color=FAINT)
            if not some:
                axes.text(0.5, 0.5, parts.NOT_MEASURED, transform=axes.transAxes, ha="center", style="italic", color=SOFT)
        return settled(figure)


# --- in words ---------------------------------------------------------------------------------------


def metrics_alt(tasks: Records) -> str:
    def text(value: float | None) -> str:
        return parts.NOT_MEASURED if value is None else style.number(value)

    rows = (f"{r.data.name}, {METRIC_NAMES.get(n, n)}: {text(m.before)} before, {text(m.after)} after" for r, n, m in metrics_of(tasks))
    return f"Metrics of tasks before and after training. {'; '.join(rows)}."


def rank_alt(found: Records) -> str:
    def of(axis: Axis) -> str:
        return ", ".join(f"rank {p.value:g}: {'failed' if p.mean is None else style.number(p.mean)}" for p in axis.points)

    rows = (f"{data}, {METRIC_NAMES.get(metric, metric)}: {of(axis)}" for (data, metric), axis in rank_axes(found).items())
    return f"Metric after training by rank. {'; '.join(rows)}."


def speed_alt(records: Records) -> str:
    rows = (f"{records[a].label} {style.number(records[a].train.tokens_per_second)} in training" for a in speed_arms(records))
    made = (f"{r.label} {style.number(r.generation.tokens_per_second)} in generation" for r in records.values() if r.generation)
    return f"Tokens per second. {'; '.join([*rows, *made])}."
