"""Which card each profile fits, by the planner, and the cheapest change where it does not fit; and the limits of time by data sheet.

How it works: a profile's arms become workloads (profile_plans.py), arms of one method on one model the one that needs the most.
Only GPUs are asked: a CPU's memory would be this machine's, and the pages are to be the same on any. All of it is
predicted; no GPU has run any of it.
"""

from dataclasses import dataclass
from functools import cache

from qlora_lib.config import Profile, load_profile, profile_names
from qlora_lib.cost.advice import Way, advise
from qlora_lib.cost.cards import Card, cards_named_in, gpu_card
from qlora_lib.cost.devices import GPUS
from qlora_lib.cost.fitting import FITS, Fit, fit
from qlora_lib.cost.models import MODELS
from qlora_lib.cost.planner import why
from qlora_lib.cost.roofline import decode_time, step_time
from qlora_lib.cost.workload import Workload
from qlora_lib.profile_plans import cards_for, workload
from qlora_lib.report.cost_steps import METHOD, SHOWN
from qlora_lib.report.formats import NBSP
from qlora_lib.report.grid import Table
from qlora_lib.report.values import Store
from qlora_lib.validation.published_gpu import compare_speeds

MODEL, BATCH, LENGTH = "tinyllama-1.1b", 4, 512  # of the table of limits: the study's model and tokens


@dataclass(frozen=True)
class Planned:
    """Arms of a profile with one method and one model: the one of them that needs the most memory."""

    profile: str
    hardware: str  # what the profile is for, in its words
    arm: str
    alike: int  # how many arms it stands for, itself included
    method: str
    model: str
    runs: bool  # whether the profile runs it, or only declares it
    fits: tuple[Fit, ...]  # by card, in the order of cards()
    own: tuple[str, ...]  # cards that the profile is for

    @property
    def key(self) -> str:
        return f"plan.{self.profile}.{self.arm}"

    def on(self, card: str) -> Fit:
        return next(f for f in self.fits if f.card.name == card)


@cache
def cards() -> tuple[Card, ...]:
    return tuple(map(gpu_card, GPUS))


@cache
def planned() -> tuple[Planned, ...]:
    profiles = [load_profile(name) for name in profile_names()]
    return tuple(p for profile in profiles if "CPU" not in profile.hardware for p in of_profile(profile))


def of_profile(profile: Profile) -> list[Planned]:
    own = tuple(card.name for card in cards_named_in(profile.hardware) or cards_for(profile.hardware) if card.name in GPUS)
    groups: dict[tuple, list[tuple[str, list[Fit]]]] = {}
    for arm in profile.arms:
        if arm.method != "base":
            settings = profile.settings(arm)
            fits = [fit(workload(arm.method, settings, card), card) for card in cards()]
            again = fits[0].work.checkpointing
            groups.setdefault((arm.method, settings.model.name, again, arm.runs), []).append((arm.name, fits))
    found = []
    for (method, model, _, runs), some in groups.items():
        name, fits = max(some, key=lambda one: one[1][0].memory.peak_bytes)
        found.append(Planned(profile.name, profile.hardware, name, len(some), method, model, runs, tuple(fits), own))
    return found


# --- tables -------------------------------------------------------------------------------------------


def matrix(s: Store) -> Table:
    """Each profile's arms by card."""
    rows: list[tuple[str, ...]] = []
    for p, head in _with_heads(s):
        rows += [head] if head else []
        needs = (min(f.needs[0] for f in p.fits), max(f.needs[1] for f in p.fits))
        rows.append((
            f"{{{_label(s, p)}}}", _put(s, p, "needs", needs, "gib1_range"),
            *(_put(s, p, f"{f.card.name}.verdict", f.verdict, "fits") for f in p.fits),
        ))  # fmt: skip
    names = [s.put(f"cost.card.{card.name}", card.name, "text", "named", {"card": card.name}) for card in cards()]
    columns = [("Predicted", "Needs (GiB)")] + [("Predicted", f"{{{name}}}") for name in names]
    return Table(
        "cost-cards", "Which card each profile’s training fits, by the planner. Nothing of this was run on a GPU.", columns, rows,
        "Needs: the peak of a step’s tensors, with what CUDA and its allocator take beside them, from the least to the most of all these "
        "cards. Fits: also at the high end of that range; tight: at its low end only. Of arms that differ in rank or task the one that "
        "needs the most stands for all; an arm in brackets is declared by its profile and not run.",
        label="Arm", label_width=3.3, widths=(1.6, *[1] * len(cards())),
    )  # fmt: skip


def components(s: Store) -> Table:
    """On the first of a profile's own cards."""
    rows: list[tuple[str, ...]] = []
    for p, head in _with_heads(s):
        rows += [head] if head else []
        memory = p.on(p.own[0]).memory
        cells = [_put(s, p, title, sum(memory.parts[name] for name in names), "gib", names) for title, names in SHOWN.items()]
        rows.append((f"{{{_label(s, p)}}}", *cells, _put(s, p, "peak", memory.peak_bytes, "gib"), f"={memory.moment}"))
    columns = [("Predicted", title) for title in (*SHOWN, "Peak", "Highest at")]
    return Table(
        "cost-components", "The planner’s components for each profile’s step at its highest moment, in GiB.", columns, rows,
        "What CUDA and its allocator take beside the tensors is not in the peak.",
        label="Arm", label_width=2.9, widths=(0.95, 1, 1.15, 1.3, 0.85, 1.25, 0.75, 1.95),
    )  # fmt: skip


def too_large(s: Store) -> list[list[list[dict[str, str]]]]:
    """Rows of pieces (arm, cards, why, cheapest change) of a profile's arms on the cards that it is for and does not fit."""
    rows = []
    for p in planned():
        ways: dict[tuple, list[Fit]] = {}
        for name in p.own:
            f = p.on(name)
            if f.verdict != FITS:
                way = next(iter(advise(f.work, f.card)), None)
                ways.setdefault((f.verdict, way.changes if way else ()), []).append(f)
        for (verdict, _), some in ways.items():
            f, key = some[0], f"{p.key}.{some[0].card.name}"
            way = next(iter(advise(f.work, f.card)), None)
            text = {
                "arm": f"{p.profile}: {_name(p)}",
                "cards": ", ".join(x.card.name for x in some),
                "why": f"{verdict}: {why(f)}",
                "change": told(way) if way else "no smaller batch, shorter length, lower rank, optimizer or method makes it fit",
            }
            rows.append([[{"value": s.use(s.put(f"{key}.{what}", words, "text", "predicted", {"plan": p.key, "card": f.card.name, "path": what})).key}]
                         for what, words in text.items()])  # fmt: skip
    return rows


def told(way: Way) -> str:
    low, high = (f"{n / 2**30:.2f}" for n in way.needs)
    needs = low if low == high else f"{low} to {high}"
    return f"{' + '.join(way.changes)}: {needs}{NBSP}GiB, {way.time_ratio:.2f} of the time for the same tokens, {way.result}"


def limits(s: Store) -> Table:
    """What each card's data sheet allows at most."""
    rows = []
    for card in cards():
        gpu = GPUS[card.name]
        sheet = {"document": gpu.source, "card": card.name}
        peak = s.put(f"sheet.{card.name}.peak", gpu.peak(card.dtype) / 1e12, "plain", "published", sheet | {"path": card.dtype})
        band = s.put(f"sheet.{card.name}.bandwidth", gpu.bandwidth / 1e9, "plain", "published", sheet | {"path": "bandwidth"})
        cells = []
        for method in METHOD:
            time = step_time(work_of(method, card), card)
            cells.append(s.put(f"limit.{card.name}.{method}", time.limit_seconds, "seconds", "predicted", {"limit": card.name, "path": method}))
        for form in ("lora", "qlora"):
            speed = decode_time(work_of(form, card), card).limit
            cells.append(s.put(f"limit.{card.name}.decode.{form}", speed, "count", "predicted", {"limit": card.name, "path": f"decode.{form}"}))
        rows.append((f"{{{s.put(f'cost.card.{card.name}', card.name, 'text', 'named', {'card': card.name})}}}", f"={card.dtype}", peak, band, *cells))
    sources = "; ".join(f"{card.name}: {GPUS[card.name].source}" for card in cards())
    s.put("sheet.sources", sources, "text", "published", {"document": "data sheets"})
    for name, value in (("model", MODEL), ("batch", BATCH), ("length", LENGTH)):
        s.put(f"limit.{name}", value, "text" if name == "model" else "count", "named", {"limit": name})
    columns = [("Published", t) for t in ("Products in", "TFLOP/s", "GB/s")]
    columns += [("Predicted: a step, at least (s)", METHOD[m]) for m in METHOD] + [("Predicted: tokens/s, at most", t) for t in ("16-bit", "NF4")]
    return Table(
        "cost-limits", "Limits by data sheet: a training step of {limit.model} of {limit.batch}\u00a0×\u00a0{limit.length} tokens, and decoding one text with "
        "that model. Nothing of this was run.", columns, rows,
        f"{bound(s)} Peaks are dense, with fp32 accumulation; decoding reads every weight once a token, and NF4 is with double quantization. Data "
        "sheets: {sheet.sources}.",
        label="Card", label_width=2.1, widths=(1, 1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9),
    )  # fmt: skip


def work_of(method: str, card: Card) -> Workload:
    return Workload(MODELS[MODEL].shape, method, BATCH, LENGTH, dtype=card.dtype, device=card.device)


def bound(s: Store) -> str:
    """What the steps of the table are bound by, in words."""
    kinds = {step_time(work_of(method, card), card).bound for card in cards() for method in METHOD}
    return f"Every step here is bound by {kinds.pop()}." if len(kinds) == 1 else f"Steps here are bound by {' or '.join(sorted(map(str, kinds)))}."


def shares(s: Store) -> dict[str, str]:
    """Keys of the shares of such limits that published speeds reach, from the least to the most."""
    found = compare_speeds()
    groups = {"training": [x.share for x in found if x.what.startswith("training")], "decoding": [x.share for x in found if x.what.startswith("decoding")]}
    return {
        name: s.put(f"share.{name}", (min(some), max(some)), "percent_range", "predicted", {"shares": name}) for name, some in groups.items() if some
    }  # fmt: skip


def _with_heads(s: Store):
    """(planned, the head row before it, or None)."""
    seen = None
    for p in planned():
        head = None
        if p.profile != seen:
            seen = p.profile
            words = f"{p.profile}: for {p.hardware}"
            head = (f"{{{s.put(f'plan.{p.profile}', words, 'text', 'named', {'profile': p.profile})}}}",)
        yield p, head


def _name(p: Planned) -> str:
    several = len({q.model for q in planned() if q.profile == p.profile}) > 1
    again = p.fits[0].work.checkpointing
    alike = [q for q in planned() if (q.profile, q.method, q.model, q.runs) == (p.profile, p.method, p.model, p.runs)]
    name = f"{METHOD[p.method]}{f', {p.model}' if several else ''}"
    if len({q.fits[0].work.checkpointing for q in alike}) > 1 and again:
        name += ", checkpointing"
    return name if p.runs else f"({name})"


def _label(s: Store, p: Planned) -> str:
    return s.put(f"{p.key}.label", _name(p), "text", "named", {"plan": p.key, "path": "label"})


def _put(s: Store, p: Planned, what: str, number, form: str, of: tuple[str, ...] = ()) -> str:
    source = {"plan": p.key, "path": what} | ({"of": list(of)} if of else {})
    return s.put(f"{p.key}.{what}", number, form, "predicted", source)
