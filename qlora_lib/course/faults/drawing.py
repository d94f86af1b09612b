"""What a diagnosis looks at: curves, answers, the sheet of measurements, and the picture that decides.

How it works: a run is always drawn over the healthy one (grey, dashed, hollow). Each kind of evidence is one
panel, so that two suspicions can be laid side by side.
"""

import math
from collections.abc import Callable

import numpy as np

from qlora_lib import style
from qlora_lib.course.faults.settings import FAULTS, HEALTHY
from qlora_lib.course.faults.signatures import SIGNATURES, confusion, finding, probability
from qlora_lib.course.faults.symptoms import Symptoms
from qlora_lib.notebooks.shown import Picture, Shown, as_table

RUN = {"color": style.VERMILLION, "marker": "o", "markersize": 3}
HEALTHY_LINE = {"color": style.GREY, "marker": "s", "markersize": 3, "markerfacecolor": "white", "linestyle": "--"}

# --- what a reader is shown of a patient ---------------------------------------------------------


def curves(run: Symptoms, healthy: Symptoms, title: str) -> Picture:
    """Training loss as it was logged, and validation loss as the run measured it."""
    with style.page_style():
        figure = style.new_figure(5.2)
        left, right = figure.subplots(1, 2)
        _training(left, run, healthy, title)
        _validation(right, run, healthy, title)
        for axes in (left, right):
            axes.legend()
    ends = [_nats(x) for r in (run, healthy) for x in (r.curves.logged_loss[-1], r.curves.eval_loss[-1])]
    words = "{}: training loss ends at {}, validation loss at {}; those of the healthy run at {} and {}."
    return Picture(figure, words.format(title, *ends))


def _training(axes, run: Symptoms, healthy: Symptoms, title: str) -> None:
    _line(axes, range(1, len(healthy.curves.logged_loss) + 1), healthy.curves.logged_loss, HEALTHY_LINE, HEALTHY)
    if run is not healthy:
        _line(axes, range(1, len(run.curves.logged_loss) + 1), run.curves.logged_loss, RUN, title)
    axes.set(title="Training loss, as logged", xlabel="step", ylabel="nats a token")
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])


def _validation(axes, run: Symptoms, healthy: Symptoms, title: str) -> None:
    _line(axes, healthy.curves.eval_steps, healthy.curves.eval_loss, HEALTHY_LINE, HEALTHY)
    if run is not healthy:
        _line(axes, run.curves.eval_steps, run.curves.eval_loss, RUN, title)
    axes.set(title="Validation loss, as the run measured it", xlabel="step", ylabel="nats a token")
    axes.set_ylim(bottom=-0.04 * axes.get_ylim()[1])


def _line(axes, steps, losses, look: dict, label: str) -> None:
    axes.plot(list(steps), losses, label=f"{label}: {_nats(losses[-1])} at the end", **look)
    broken = [(s, 0.0) for s, loss in zip(steps, losses) if not math.isfinite(loss)]
    if broken:
        axes.plot(*zip(*broken), "x", color=look["color"], markersize=6, label="_not a number")
        axes.annotate("x: not a number", broken[0], (0, 6), textcoords="offset points", size=6.5, color=style.SOFT)


def answers(run: Symptoms, healthy: Symptoms, count: int = 3) -> Shown:
    """What the deployed models write, special tokens shown, each cut at its end token."""
    rows = [[q, _short(g), _short(h)] for q, g, h in zip(run.questions, run.generations, healthy.generations)]
    return as_table(["Question", "This model", "Healthy model"], rows[:count], numbers=False)


def _short(text: str, most: int = 110) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= most else text[:most] + " …"


def sheet(run: Symptoms, healthy: Symptoms) -> Shown:
    """All measurements of a run beside the healthy one's."""
    rows = [
        [what, *("not a number" if v != v else form(v) for v in (of(run), of(healthy)))] for what, of, form in SHEET
    ]
    return as_table(["Measurement", "This run", "Healthy run"], rows)


def _nats(value: float) -> str:
    return f"{value:.3f}" if value == value else "not a number"


SHEET: tuple[tuple[str, Callable[[Symptoms], object], Callable[..., str]], ...] = (
    ("tokens of an answer with its end token", lambda r: r.curves.answer_tokens, "{:.1f}".format),
    ("tokens that are scored, an example", lambda r: r.curves.scored_tokens, "{:.1f}".format),
    ("first training loss", lambda r: r.curves.true_loss[0], _nats),
    ("steps whose loss is a finite number", lambda r: sum(map(math.isfinite, r.curves.true_loss)), str),
    ("validation loss at the end, as the run measures it", lambda r: r.curves.eval_loss[-1], _nats),
    ("the same people in the chat template", lambda r: r.validation.loss, _nats),
    ("people that nobody looked at, in the chat template", lambda r: r.unseen.loss, _nats),
    ("these people, by the deployed model", lambda r: r.deployed.loss, _nats),
    ("probability of the end token after a right answer", lambda r: r.unseen.end_logprob, probability),
    ("size of the trained update (norm of B A alpha / r)", lambda r: r.update.norm, "{:.2f}".format),
    ("size of the deployed update, of the trained one", lambda r: r.update.size, "{:.2f}".format),
    ("cosine of deployed and trained update", lambda r: r.update.cosine, _nats),
    ("share of answers that stop by themselves", lambda r: r.ended, "{:.2f}".format),
)

# --- the evidence that decides -------------------------------------------------------------------


def evidence(run: Symptoms, healthy: Symptoms, suspected: str, decides: str) -> tuple[style.Figure, str]:
    """What the signature of the suspected mistake reads and, where it does not hold, what decides instead (unnamed)."""
    found = finding(suspected, run, healthy)
    panels = {SIGNATURES[suspected][1]: f"{suspected}: {'yes' if found.holds else 'no'}"}
    words = f"{suspected}, {'yes' if found.holds else 'no'}: {found.sentence}."
    if suspected != decides:
        other = finding(decides, run, healthy)
        panels[other.evidence] = "\n".join(filter(None, (panels.get(other.evidence), "what decides")))
        words += f" What decides: {other.sentence}."
    with style.page_style():
        figure = style.new_figure(5.8)
        for axes, (kind, title) in zip(np.atleast_1d(figure.subplots(1, len(panels))), panels.items()):
            PANELS[kind](axes, run, healthy)
            axes.set_title(title)
    return figure, words


def _labels(axes, run: Symptoms, healthy: Symptoms) -> None:
    """Scored tokens against the answer's; the end token's probability is written into the bars."""
    for y, r, color, hatch in ((0, healthy, style.GREY, ""), (1, run, style.VERMILLION, "////")):
        axes.barh([y], [r.curves.scored_tokens], color=color, height=0.5, hatch=hatch, edgecolor="white", linewidth=0)
        words = f"end token: probability {probability(r.unseen.end_logprob)}"
        axes.text(0, y + 0.29, words, va="bottom", size=6.5)
    axes.axvline(run.curves.answer_tokens, color=style.INK, linewidth=0.8, linestyle="--")
    axes.text(run.curves.answer_tokens, -0.42, " an answer and its end token", size=6.5, va="center")
    axes.set_yticks([0, 1], ["healthy", "this run"])
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlim(0, 1.9 * max(run.curves.answer_tokens, 0.65 * run.curves.scored_tokens))
    axes.set_xlabel("tokens scored, an example")


def _losses(axes, run: Symptoms, healthy: Symptoms) -> None:
    """The four losses after training, from the run's own to the deployed model's."""
    names = ["validation,\nas the run\nmeasures it", "validation,\nin the chat\ntemplate"]
    names += ["unseen\npeople", "unseen,\ndeployed"]
    for r, look, label in ((healthy, HEALTHY_LINE, HEALTHY), (run, RUN, "this run")):
        losses = [r.curves.eval_loss[-1], r.validation.loss, r.unseen.loss, r.deployed.loss]
        axes.plot(names, losses, label=label, **look)
    axes.set_ylabel("nats a token")
    axes.set_ylim(0)
    axes.tick_params(axis="x", labelsize=6)
    axes.legend()


def _update(axes, run: Symptoms, healthy: Symptoms) -> None:
    """Change of single weights: deployed against trained; on the diagonal, what was trained arrived."""
    trained, deployed = run.update.sample
    if not np.isfinite(trained).all():
        axes.text(0.5, 0.5, "not a number", transform=axes.transAxes, ha="center", color=style.SOFT)
        return
    unit = 10.0 ** math.floor(math.log10(np.abs(trained).max()))
    edge = 1.05 * np.abs(trained).max() / unit
    axes.plot([-edge, edge], [-edge, edge], color=style.GREY, linewidth=0.8, linestyle="--")
    axes.plot(trained / unit, deployed / unit, "o", color=style.VERMILLION, markersize=1.8, linestyle="none")
    axes.set(xlabel=f"trained change of a weight, {unit:g}", ylabel=f"its change as deployed, {unit:g}")
    words = f"size {run.update.size:.2f}, cosine {run.update.cosine:.3f}"
    axes.text(0.03, 0.9, words, transform=axes.transAxes, size=6.5)


def _curves(axes, run: Symptoms, healthy: Symptoms) -> None:
    """Training loss as logged, with the true one where they differ."""
    _training(axes, run, healthy, "this run")
    true = run.curves.true_loss
    hidden = [s for s, loss in enumerate(true, 1) if not math.isfinite(loss)]
    if hidden:
        axes.plot(hidden, [0.0] * len(hidden), "x", color=style.INK, markersize=5, label="in truth not a number")
    sizes = ", ".join(f"{who} {r.update.norm:.3g}" for who, r in (("this run", run), (HEALTHY, healthy)))
    axes.plot([], [], " ", label=f"size of the update: {sizes.replace('nan', 'no number')}")
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.legend()


PANELS = {"labels": _labels, "losses": _losses, "update": _update, "curves": _curves}


# What tells each mistake from all others: a measurement (its column), and which way it moves.
COLUMNS = (
    "tokens scored,\nagainst those\nof an answer",
    "validation in\nthe template,\nagainst its own",
    "unseen people,\nagainst\nvalidation",
    "direction\nof the deployed\nupdate",
    "size\nof the deployed\nupdate",
    "size\nof the trained\nupdate",
    "losses\nthat are\nfinite",
)
KEY = dict(zip(FAULTS, ((0, "-"), (0, "+"), (1, "+"), (3, "-"), (4, "-"), (2, "+"), (6, "-"), (5, "-")), strict=True))


def key(suspected: str) -> tuple[style.Figure, str]:
    """Which measurement tells each mistake from all others, the suspected one marked."""
    with style.page_style():
        figure = style.new_figure(6.4)
        axes = figure.subplots()
        for row, fault in enumerate(FAULTS):
            if fault == suspected:
                axes.axhspan(row - 0.45, row + 0.45, color=style.YELLOW, alpha=0.35, linewidth=0)
            column, sign = KEY[fault]
            look = {"marker": "^", "color": style.ORANGE} if sign == "+" else {"marker": "v", "color": style.BLUE}
            axes.plot(range(len(COLUMNS)), [row] * len(COLUMNS), ".", color=style.FAINT, markersize=3)
            axes.plot([column], [row], markersize=8, linestyle="none", **look)
        axes.set_xticks(range(len(COLUMNS)), COLUMNS, size=6)
        axes.xaxis.tick_top()
        axes.set_yticks(range(len(FAULTS)), FAULTS)
        axes.set_ylim(len(FAULTS) - 0.5, -0.5)
        axes.set_xlim(-0.5, len(COLUMNS) - 0.5)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("▲ higher than in a healthy run    ▼ lower")
    column, sign = KEY[suspected]
    words = f"{COLUMNS[column]}, {'higher' if sign == '+' else 'lower'} than in a healthy run".replace("\n", " ")
    return figure, f"Which measurement tells a mistake from all others. {suspected}: {words}."


def table(symptoms: dict[str, Symptoms]) -> Shown:
    """Every signature on its own patient, and where else it holds."""
    holds, healthy = confusion(symptoms), symptoms[HEALTHY]
    rows = []
    for fault in FAULTS:
        found = finding(fault, symptoms[fault], healthy)
        also = [run for run, faults in holds.items() if fault in faults and run != fault]
        rows.append([fault, "yes" if found.holds else "no", ", ".join(also) or "nowhere", found.sentence])
    return as_table(["Mistake", "Signature holds", "Holds elsewhere", "What it saw"], rows, numbers=False)
