"""Simulated judges of a known mind, and pictures of what a win rate by one is worth.

How it works: a simulated judge follows Bradley and Terry: the second answer wins with the probability
sigmoid(its strength - the first one's strength - what the first place is worth). So the truth is known, and whatever
a protocol reports beside it is the protocol's. Its coin depends on the seed, the instruction and what it is shown.
"""

import math
import random
from collections.abc import Callable, Mapping

import numpy as np

from qlora_lib import style
from qlora_lib.judges import Verdict

Z = 1.959964  # of a 95 % interval


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


class SimulatedJudge:
    """A judge for `judges.judge_pairs`.

    Args:
        strength: of an answer, in log-odds.
        place: what the first place is worth, in log-odds; negative where the second is preferred.
    """

    name, protocol, needs_reference, parallel = ("simulated", "a simulated judge", False, 1)

    def __init__(self, strength: Callable[[str], float], place: float = 0.0, seed: int = 0):
        self.strength, self.place, self.seed = strength, place, seed

    def compare(self, instruction: str, output_1: str, output_2: str, reference: str | None = None) -> Verdict:
        chance = sigmoid(self.strength(output_2) - self.strength(output_1) - self.place)
        coin = random.Random(f"{self.seed}|{instruction}|{output_1}|{output_2}").random()
        return Verdict(2.0 if coin < chance else 1.0)

    def describe(self) -> dict:
        return {"kind": self.name, "place": self.place}


def instructions_needed(rate: float, power: float = 0.8) -> float:
    """Judgements that tell a win rate (in percent) from 50 at the level of 5 %, two-sided, with this probability.

    Wins and losses alone; the normal approximation of the binomial.
    """
    from statistics import NormalDist

    p, z = rate / 100, NormalDist().inv_cdf
    return ((z(0.975) * 0.5 + z(power) * math.sqrt(p * (1 - p))) / (p - 0.5)) ** 2


# --- pictures: each returns a figure and the words for it ------------------------------------------


def draw_spread(instructions: int, true_rate: float, evaluations: int = 4000) -> tuple[style.Figure, str]:
    """Win rates that evaluations of one and the same pair of models report, wins and losses alone."""
    rng = np.random.default_rng(0)
    rates = 100 * rng.binomial(instructions, true_rate / 100, evaluations) / instructions
    error = 100 * math.sqrt(0.25 / instructions)
    found = 100 * float((rates - 50 > Z * error).mean())
    worse = 100 * float((rates < 50).mean())
    step = 100 / instructions * max(1, round(instructions / 50))  # a whole number of wins, so that no bar stays empty
    with style.page_style():
        figure = style.new_figure(4.6)
        axes = figure.subplots()
        bins = np.arange(-step / 2, 100 + step, step)
        axes.hist(
            rates,
            bins,
            weights=np.full(evaluations, 100 / evaluations),
            color=style.SKY,
            edgecolor="white",
            linewidth=0.3,
        )
        axes.axvspan(
            max(0, 50 - Z * error), min(100, 50 + Z * error), color=style.FAINT, zorder=-1, label="not told from 50"
        )
        axes.axvline(50, color=style.INK, linewidth=0.9, linestyle="--", label="equal models")
        axes.axvline(true_rate, color=style.VERMILLION, linewidth=1.4, label="the truth")
        axes.set_xlim(10, 90)
        axes.set_xlabel("win rate that an evaluation reports, %")
        axes.set_ylabel("evaluations, %")
        axes.set_title(
            f"{instructions} instructions, true win rate {true_rate:g} %: {found:.0f} % are told from 50 and above it"
        )
        figure.legend(loc="outside upper right", ncols=3)
    alt = (
        f"Reported win rates of {evaluations:,} evaluations with {instructions} instructions and a true rate of {true_rate:g} %: "
        f"half of them between {np.quantile(rates, 0.25):.1f} and {np.quantile(rates, 0.75):.1f} %; {found:.0f} % are told from 50 "
        f"and above it, {worse:.0f} % are below 50."
    )
    return figure, alt


def draw_order(
    places: np.ndarray, curves: Mapping[str, np.ndarray], measured: Mapping[str, list], truth: float
) -> tuple[style.Figure, str]:
    """Win rates against what the first place is worth.

    Args:
        curves: order -> expected win rate, percent, at each of `places`.
        measured: order -> [(place, win rate, standard error)] of simulated evaluations.
        truth: the win rate without a bias, percent.
    """
    looks = {"fixed": ("--", "s"), "random": ("-", "o"), "other": (":", "^")}
    colors = (style.VERMILLION, style.BLUE, style.ORANGE)
    with style.page_style():
        figure = style.new_figure(6.2)
        axes = figure.subplots()
        for (name, curve), color, (line, marker) in zip(curves.items(), colors, looks.values()):
            axes.plot(places, curve, line, color=color)
            points = np.array(measured[name])
            axes.errorbar(
                points[:, 0],
                points[:, 1],
                Z * points[:, 2],
                fmt=marker,
                color=color,
                capsize=2,
                linewidth=1,
                label=name,
            )
        axes.axhline(truth, color=style.INK, linewidth=0.9, linestyle=(0, (4, 2)), label="without a bias")
        axes.axhline(50, color=style.SOFT, linewidth=0.7)
        axes.set_ylim(0, 100)
        axes.set_xlabel("what the first place is worth, log-odds")
        axes.set_ylabel("win rate of the model, %")
        figure.legend(loc="outside upper right", ncols=4)
    last = "; ".join(f"{name}: {points[-1][1]:.1f} %" for name, points in measured.items())
    return (
        figure,
        f"Win rate against what the first place is worth. Without a bias {truth:.1f} %. At the strongest bias, {last}.",
    )


def draw_lengths(results: Mapping[float, list[dict]], truth: float) -> tuple[style.Figure, str]:
    """Raw and length-controlled win rates against how long the answers are.

    results: times as long -> what the library found in each of several evaluations.
    """
    times = list(results)
    with style.page_style():
        figure = style.new_figure(6.0)
        axes = figure.subplots()
        means = {}
        for key, label, color, marker, line in (
            ("win_rate", "raw", style.VERMILLION, "s", "--"),
            ("length_controlled_win_rate", "length-controlled", style.BLUE, "o", "-"),
        ):
            found = np.array([[r[key] for r in results[t]] for t in times])  # [times, evaluations]
            means[key] = found.mean(axis=1)
            spread = found.std(axis=1, ddof=1) if found.shape[1] > 1 else None
            look = {"fmt": marker, "linestyle": line, "color": color, "capsize": 2, "linewidth": 1.2}
            axes.errorbar(times, means[key], spread, label=label, **look)
        doubtful = [
            i for i, t in enumerate(times) if 2 * sum(bool(r["warnings"]) for r in results[t]) > len(results[t])
        ]
        axes.plot(
            [times[i] for i in doubtful], means["length_controlled_win_rate"][doubtful], "o", markersize=10,
            markerfacecolor="none", markeredgecolor=style.INK, label="the library warns",
        )  # fmt: skip
        axes.axhline(truth, color=style.INK, linewidth=0.9, linestyle=(0, (4, 2)), label="the truth")
        axes.set_xscale("log", base=2)
        axes.set_xticks(times, [f"{t:g}×" for t in times])
        axes.minorticks_off()
        axes.set_ylim(20, 90)
        axes.set_xlabel("length of the model's answers, as a multiple of the baseline's")
        axes.set_ylabel("win rate, %")
        figure.legend(loc="outside upper right", ncols=4)
    told = "; ".join(
        f"{t:g} times as long {one:.1f} and {other:.1f} %" for t, one, other in zip(times, *means.values())
    )
    return (figure, f"Raw and length-controlled win rates of two models of which {truth:g} % is the truth: {told}.")


def draw_length_fit(answer: str = "") -> tuple[style.Figure, str]:
    """What the regression sees, and where each rate is read off: evidence for what a controlled rate means."""
    rng = np.random.default_rng(3)
    gaps = rng.normal(0.7, 0.8, 400)  # the model's answers are mostly the longer ones, in standard deviations
    model, length = -0.4, 1.6
    chance = 100 * sigmoid(model + length * np.tanh(gaps))
    raw, controlled = float(chance.mean()), 100 * float(sigmoid(model))
    along = np.linspace(-2, 3, 200)
    with style.page_style():
        figure = style.new_figure(5.6)
        axes = figure.subplots()
        axes.plot(along, 100 * sigmoid(model + length * np.tanh(along)), color=style.BLUE, label="fitted")
        axes.plot(gaps, chance, "|", color=style.SKY, markersize=7, label="instructions")
        axes.axhline(raw, color=style.VERMILLION, linestyle="--", linewidth=1.1, label=f"raw: their mean, {raw:.0f} %")
        axes.plot(
            [0],
            [controlled],
            "D",
            color=style.INK,
            markersize=6,
            label=f"controlled: at no difference, {controlled:.0f} %",
        )
        axes.axvline(0, color=style.SOFT, linewidth=0.8)
        axes.set_ylim(0, 100)
        axes.set_xlim(-2, 3)
        axes.set_xlabel("model's length less the baseline's, standard deviations")
        axes.set_ylabel("probability of a win, %")
        figure.legend(loc="outside upper right", ncols=4)
    alt = (
        f"The probability of a win rises with the difference of lengths. The raw rate, {raw:.0f} %, is the mean over the "
        f"instructions as they are; the controlled one, {controlled:.0f} %, is read off where the lengths are equal."
    )
    return figure, alt


def draw_interval(rate: float, error: float, label: str) -> tuple[style.Figure, str]:
    """One win rate with its 95 % interval, beside 50."""
    low, high = rate - Z * error, rate + Z * error
    with style.page_style():
        figure = style.new_figure(2.8)
        axes = figure.subplots()
        axes.errorbar(
            [rate], [0], xerr=[[rate - low], [high - rate]], fmt="o", color=style.BLUE, capsize=4, linewidth=1.6
        )
        axes.axvline(50, color=style.INK, linewidth=0.9, linestyle="--")
        axes.text(50, 0.62, " equal", va="center", fontsize=6.5)
        for end in (low, high):
            axes.annotate(
                f"{end:.1f}", (end, 0), xytext=(0, -12), textcoords="offset points", ha="center", fontsize=6.5
            )
        axes.set_yticks([0], [label])
        axes.set_ylim(-0.8, 0.8)
        axes.set_xlim(30, 80)
        axes.set_xlabel("win rate and its 95 % interval, %")
    return (
        figure,
        f"{label}: {rate:.1f} %, 95 % interval from {low:.1f} to {high:.1f} %; 50 is {'inside' if low < 50 < high else 'outside'}.",
    )
