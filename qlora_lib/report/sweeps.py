"""What the settings are worth: the sentences of the sweeps, chosen by the tolerance's judgement, and what is shown beside them.

How it works: as in sentences.py, a slot has a function that writes its paragraphs; values and tables are those of
sweep_values.py and sweep_tables.py. Times of sweeps are named nowhere.
"""

from collections.abc import Iterable
from typing import Any

from qlora_lib import sensitivity as judge
from qlora_lib import sweeps
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.phrases import join
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.sweep_tables import all_tables, at_least, tables, where
from qlora_lib.report.sweep_values import (
    AXES,
    NAMES,
    attention_pairs,
    define,
    define_pair,
    key,
    rates_of,
    settings_of,
)
from qlora_lib.report.values import Store
from qlora_lib.sweeps import Axis, Point

__all__ = ["all_sentences", "all_tables", "captions", "define", "shown"]

NOTHING = f"What the settings are worth was {NOT_MEASURED}: there are no records of sweeps for this profile."
FIGURES = ("sweep-learning-rate", "sweep-rank", "sweep-settings", "sweep-curves", "sweep-memory")


def shown(s: Store, drawn: Iterable[str]) -> dict[str, Any]:
    return {"tables": [t.name for t in tables(s)], "pictures": [name for name in FIGURES if name in set(drawn)]}


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    slots = {
        "sweep-method": method, "sweep-best": best, "sweep-sensitivity": sensitivity, "sweep-rank": rank,
        "sweep-settings": settings, "sweep-batch": batch, "sweep-failed": failed,
    }  # fmt: skip
    if not s.studies.sweeps:
        return {name: [] for name in slots} | {"sweep-method": [("", NOTHING)]}
    return {name: [("", text) for text in write(s)] for name, write in slots.items()}


def method(s: Store) -> list[str]:
    found = s.studies.sweeps
    at = next((f"sweep.{r.arm}" for r in found.values() if r.train), None)
    if at is None or not s.values.get("sweep-tolerance"):
        return [NOTHING]
    stand_in = f", a stand-in for {{{at}.data.stand_in_for}}," if s.has(f"{at}.data.stand_in_for") else ""
    first = (
        f"These arms train {{{at}.model.name}} on {{{at}.train.tokens}} tokens of {{{at}.data.name}}{stand_in} and differ in one setting at a "
        f"time. {_seeds(s)} A setting is chosen by the loss on the validation split after the last step; "
        "the perplexity beside it is of the test split, which chose nothing. Their losses and bytes are shown and their times are not, "
        "because several arms shared the machine."
    )
    if s.has("sweep-deviation"):
        noise = (
            "The loss of one seed lies {sweep-deviation} nats, one standard deviation, from the mean of its point. Two means of two "
            "seeds then differ by chance with that same standard error; so a difference counts from twice that on, and from "
            "{sweep-floor} nats at the least, which is a choice: a smaller change of perplexity is of little use. The larger of the two, "
            "{sweep-tolerance} nats, is the tolerance of all that follows."
        )
    else:
        noise = "No point has two seeds yet, so the tolerance of all that follows, {sweep-tolerance} nats, is a choice and not a measurement."
    return [first, noise]


def _seeds(s: Store) -> str:
    counted = {len(p.records) for axis in (*rates_of(s).values(), *settings_of(s).values()) for p in axis.points}
    return "Every point was run with more than one seed." if min(counted) > 1 else "Some points have one seed only."


def best(s: Store) -> list[str]:
    rates = {n: a for n, a in rates_of(s).items() if a.best}
    if not rates:
        return [f"No method’s best learning rate was found: {NOT_MEASURED}."]
    first = "; ".join(
        f"{NAMES[n] if i == 0 else _within(NAMES[n])} does best at {{sweep.{a.best.name}.settings.train.learning_rate@scientific}}, with "
        f"a perplexity of {{{key(a.best, 'perplexity')}}}" for i, (n, a) in enumerate(rates.items())
    ) + "."  # fmt: skip
    edges = [
        f"{NAMES[n]}’s best lies at the {'lower' if a.open == 'below' else 'upper'} end of the rates tried, so a "
        f"{'lower' if a.open == 'below' else 'higher'} one may be better still."
        for n, a in rates.items() if a.open in ("below", "above")
    ]  # fmt: skip
    alone = [f"{NAMES[n]} was run at one rate only, so its best is not known." for n, a in rates.items() if a.open == "alone"]
    differences = [difference_at_best(s, rates, *pair) for pair in (("qlora", "lora"), ("qlora", "full"), ("lora", "full"))]
    ratio = "LoRA’s best rate is {rate-ratio.lora.full} times that of full fine-tuning." if "rate-ratio.lora.full" in s.values else None
    return join(first, *edges, *alone, ratio) + join(*differences)


def _within(name: str) -> str:
    return name[:1].lower() + name[1:] if name.startswith("Full") else name


def difference_at_best(s: Store, rates: dict[str, Axis], one: str, other: str) -> str | None:
    if not {one, other} <= {name for name, axis in rates.items() if axis.open != "alone"}:
        return None
    a, b = rates[one].best, rates[other].best
    pair = f"{a.name}.{b.name}"
    if judge.perplexity_difference(a, b) is None or not s.has(f"point-interval.{pair}"):
        return None
    low, high = s.number(f"point-interval.{pair}")
    names = f"{NAMES[one]} and {_within(NAMES[other])}"
    figures = f"{{point-change.{pair}}}, {{confidence}} interval {{point-interval.{pair}}}"
    if low <= 0 <= high:
        return f"Between {names}, each at its best, no difference on the test split is shown ({figures})."
    return f"Each at its best, {NAMES[one]}’s perplexity on the test split is {'higher' if low > 0 else 'lower'} than that of {_within(NAMES[other])} ({figures})."


def sensitivity(s: Store) -> list[str]:
    """The claim that 4-bit training is more sensitive to learning rate and optimizer, next to the data."""
    rates = {n: a for n, a in rates_of(s).items() if a.best and len(a.points) > 1}
    claim = (
        "Is training on four bits more sensitive to its learning rate and optimizer, as is written? The measure here is how wide the range of "
        "rates is whose loss is within the tolerance of the method’s own best."
    )
    if "qlora" not in rates or len(rates) < 2:
        return [f"{claim} For QLoRA and another method it was {NOT_MEASURED}."]
    widths = "; ".join(f"{_width(s, n, a)}" for n, a in rates.items()) + "."
    return [" ".join([claim, widths[:1].upper() + widths[1:]]), *join(rate_verdict(s), _missed(s, rates), optimizer_verdict(s))]


def _width(s: Store, name: str, axis: Axis) -> str:
    span = judge.good_range(axis, s.number("sweep-tolerance"))
    ends = {(True, True): "both ends", (True, False): "the lower end", (False, True): "the upper end"}
    rest = f", open at {ends[span.open_below, span.open_above]} of what was tried" if span.is_open else ""
    return f"for {_within(NAMES[name])} it is a factor of {at_least(s, axis)}{{good-factor.{name}}}{rest}"


def rate_verdict(s: Store) -> str | None:
    """QLoRA against LoRA, which differ in the four bits alone, then against full fine-tuning."""
    rates, within = rates_of(s), s.values.get("sweep-tolerance")
    if "qlora" not in rates or within is None:
        return None
    told = {}
    for other in ("lora", "full"):
        if other in rates and rates[other].best and rates["qlora"].best and min(len(rates[n].points) for n in ("qlora", other)) > 1:
            told[other] = judge.sensitivity(rates["qlora"], rates[other], within.number)
    if told.get("lora") is None and told.get("full") is None:
        return None
    words = {
        "narrower": "narrower than {} in every seed", "wider": "wider than {} in every seed",
        "no difference shown": "not shown to be narrower or wider than {}",
    }  # fmt: skip
    parts = [words[way].format({"lora": "LoRA’s", "full": "that of full fine-tuning"}[o]) for o, way in told.items() if way]
    moral = {
        "narrower": "At equal adapters the four bits do make training more sensitive to the rate here.",
        "wider": "At equal adapters the four bits make training less sensitive to the rate here, against the claim.",
        "no difference shown": "That the four bits make training more sensitive to the rate is not shown here.",
    }.get(told.get("lora"), "Without LoRA beside it, what the four bits do cannot be told from what the adapter does.")
    return f"QLoRA’s range is {' and '.join(parts)}. {moral}"


def _missed(s: Store, rates: dict[str, Axis]) -> str | None:
    """What a rate of twice, or half, the best costs each method."""
    told = []
    for factor, words in ((2.0, "twice"), (0.5, "half")):
        costs = []
        for n, axis in rates.items():
            if n == "qlora-8bit" or judge.cost_of_missing(axis, factor) is None:
                continue
            p = next(p for p in axis.points if abs(p.value / (factor * axis.best.value) - 1) < 1e-6)
            if p.failures:
                continue
            s.derive(f"loss-difference.{p.name}.{axis.best.name}", "difference", [key(p, "loss"), key(axis.best, "loss")], "signed3")
            costs.append(f"{{loss-difference.{p.name}.{axis.best.name}}} ({_within(NAMES[n])})")
        if len(costs) > 1:
            told.append(f"a rate of {words} the best costs {', '.join(costs)}")
    text = "; ".join(told)
    return f"In nats, {text}." if told else None


def optimizer_verdict(s: Store) -> str | None:
    rates, within = rates_of(s), s.values.get("sweep-tolerance")
    if not {"qlora", "qlora-8bit"} <= set(rates) or not (rates["qlora"].best and rates["qlora-8bit"].best):
        return None
    pairs = [(p, q) for p in rates["qlora-8bit"].points if (q := rates["qlora"].at(p.value))]
    for p, q in pairs:
        define_pair(s, p, q)
    ways = {judge.verdict(p, q, within.number) for p, q in pairs} - {None}
    listed = ", ".join(f"{{loss-difference.{p.name}.{q.name}}}" for p, q in pairs if p.mean is not None and q.mean is not None)
    if not ways:
        return None
    if ways == {"no difference shown"}:
        return f"Between 8-bit and 32-bit AdamW no difference is shown at any of the rates that both were run with ({listed} nats)."
    what = "raises" if "better" not in ways else "lowers" if "worse" not in ways else "changes"
    return f"AdamW with 8-bit state {what} the loss against 32-bit state at some rates ({listed} nats), and so the optimizer matters here."


def outcome(s: Store, axis: Axis, name: str) -> str | None:
    """One sentence on an axis: no difference, or the best and what is worse."""
    if axis.best is None or len(axis.points) < 2:
        return None
    words, path, form = AXES[name]
    good = judge.optimum(axis, s.number("sweep-tolerance"))

    def value(p: Point) -> str:
        return f"{{sweep.{p.name}.{path}@{form}}}"

    fit = [p for p in axis.points if not p.failures and p.mean is not None]
    if len(good) == len(axis.points):
        low, high = min(fit, key=lambda p: p.mean), max(fit, key=lambda p: p.mean)
        return (
            f"{words}: from {value(axis.points[0])} to {value(axis.points[-1])} no difference is shown (losses from {{{key(low, 'loss')}}} to "
            f"{{{key(high, 'loss')}}})."
        )
    worse = ", ".join(f"{value(p)} ({{loss-difference.{p.name}.{axis.best.name}}})" for p in fit if p not in good)
    broken = ", ".join(value(p) for p in axis.points if p not in fit)
    tied = [p for p in good if p is not axis.best]
    text = f"{words}: {value(axis.best)} does best ({{{key(axis.best, 'loss')}}})"
    if tied:
        text += f"; not shown to be worse: {', '.join(map(value, tied))}"
    if worse:
        text += f"; worse, in nats: {worse}"
    if broken:
        text += f"; failed: {broken}"
    if axis.open in ("below", "above"):
        text += f"; the best lies at the {'lower' if axis.open == 'below' else 'upper'} end of what was tried"
    return text + "."


def rank(s: Store) -> list[str]:
    axes = settings_of(s)
    parts = [outcome(s, axes[n], n) for n in ("rank", "rank-attention") if n in axes]
    if not any(parts):
        return join(f"What the rank is worth was {NOT_MEASURED}.")
    scale = "Alpha was the same at every rank, so a higher rank also had a smaller scale, alpha over rank." if "rank" in axes else None
    return join(*parts, modules_verdict(s), scale)


def modules_verdict(s: Store) -> str | None:
    pairs = attention_pairs(settings_of(s))
    ways = [judge.verdict(p, q, s.number("sweep-tolerance")) for p, q in pairs]
    listed = ", ".join(
        f"{{loss-difference.{p.name}.{q.name}}} at rank {{sweep.{p.name}.settings.lora.rank}}" for (p, q), way in zip(pairs, ways) if way
    )
    known = {way for way in ways if way}
    if not known:
        return None
    if known == {"worse"}:
        return f"Adapters in the attention alone are worse than in all linear layers at every rank ({listed} nats)."
    if known == {"better"}:
        return f"Adapters in the attention alone are better than in all linear layers at every rank ({listed} nats)."
    if known == {"no difference shown"}:
        return f"Between adapters in the attention alone and in all linear layers no difference is shown ({listed} nats)."
    return f"Whether adapters in the attention alone are as good as in all linear layers depends on the rank ({listed} nats)."


def settings(s: Store) -> list[str]:
    axes = settings_of(s)
    told = join(*(outcome(s, axes[n], n) for n in ("alpha", "dropout", "warmup") if n in axes))
    return told or join(f"What alpha, dropout and warm-up are worth was {NOT_MEASURED}.")


def batch(s: Store) -> list[str]:
    axes = settings_of(s)
    told = [outcome(s, axes[n], n) for n in ("tokens", "tokens-tuned") if n in axes]
    if not any(told):
        return join(f"What the effective batch is worth was {NOT_MEASURED}.")
    return join("All batches were trained on as many tokens, so a larger one took fewer steps.", *told)


def failed(s: Store) -> list[str]:
    arms = [r for r in s.studies.sweeps.values() if r.train is not None and sweeps.failure(r)]
    if not arms:
        return []
    listed = "; ".join(f"{{sweep.{r.arm}.label}}" + (f" ({{sweep.{r.arm}.status_reason}})" if r.status_reason else "") for r in arms)
    return [f"These arms stopped, or ended above the loss that they began with, and their points are called failed: {listed}."]


def captions(s: Store, drawn: Iterable[str]) -> dict[str, str]:
    """Templates, of the pictures that were drawn."""
    text = {
        "sweep-learning-rate": "Validation loss against the learning rate. Small marks: one seed each; lines: their mean; ringed: each method’s "
        "best. Bars: the rates whose loss is within the tolerance of the best; an arrow says that the grid ends first.",
        "sweep-rank": "Validation loss of QLoRA against rank, and against the parameters that it trains. Band: the tolerance around the reference.",
        "sweep-settings": "Validation loss of QLoRA against its other settings. Band: the tolerance around the reference.",
        "sweep-curves": "Validation loss during training, each method at its best learning rate. Right: one line a seed.",
        "sweep-memory": "Perplexity on the test split against what a training step holds at its peak, and against what is deployed. Crosses: "
        "the arms of the comparison in the chapters before, which trained on more tokens.",
    }
    return {name: f"{words} {where(s)}" for name, words in text.items() if name in set(drawn)}
