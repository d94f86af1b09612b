"""Where the wall clock went: stages of a report and their parts, as a table and as data.

How it works: whoever runs a stage says what its parts took and whether they came from the cache. An arm says more:
its record holds the seconds of its own stages, and what is left of the seconds that were waited for it is its
process starting and ending.
"""

from dataclasses import dataclass, field

from qlora_lib.records import RunRecord

STAGE_ORDER = ("train", "perplexity", "score", "decode", "load", "data", "start", "save")  # of an arm; the rest is "other"


@dataclass(frozen=True)
class Stage:
    name: str
    seconds: float
    cached: bool = False  # taken from the cache: the seconds are those of looking
    parts: list["Stage"] = field(default_factory=list)

    def to_dict(self, total: float) -> dict:
        """`share` is of `total` seconds."""
        share = self.seconds / total if total else None
        parts = [part.to_dict(total) for part in self.parts]
        return {"stage": self.name, "seconds": self.seconds, "share": share, "cached": self.cached, "parts": parts}


def arm_stage(label: str, seconds: float, cached: bool, record: RunRecord) -> Stage:
    """An arm that took `seconds`; `other` is what its record accounts for in no stage, and the process around it."""
    if cached:
        return Stage(label, seconds, True)
    spent = record.provenance.stage_seconds
    parts = {name: spent[name] for name in STAGE_ORDER if name in spent}
    parts["other"] = max(0.0, seconds - sum(parts.values()))
    return Stage(label, seconds, False, [Stage(name, took) for name, took in parts.items()])


def summed(stages: list[Stage]) -> list[Stage]:
    """The parts of several stages added up by name, the longest first."""
    totals: dict[str, float] = {}
    for part in (part for stage in stages for part in stage.parts):
        totals[part.name] = totals.get(part.name, 0.0) + part.seconds
    return sorted((Stage(name, seconds) for name, seconds in totals.items()), key=lambda s: -s.seconds)


def to_text(stages: list[Stage]) -> str:
    """The table that ends a report; each stage's parts stand under it, those of an arm beside it."""
    total = sum(stage.seconds for stage in stages)
    rows = [("where the time went", "seconds", "share", "")]
    for stage in stages:
        rows.append(_row(stage.name, stage, total, _of(stage.parts)))
        rows += [_row(f"  {part.name}", part, total, "cached" if part.cached else f"run{_longest(part.parts)}") for part in stage.parts]
        if inside := summed(stage.parts):
            rows.append(("  all of these", "", "", _longest(inside, len(inside)).removeprefix(": ")))
    rows.append(("in all", f"{total:.1f}", "", ""))
    wide = max(len(row[0]) for row in rows)
    return "\n".join(f"{name:<{wide}} {seconds:>8} {share:>6}  {note}".rstrip() for name, seconds, share, note in rows)


def _row(name: str, stage: Stage, total: float, note: str) -> tuple[str, str, str, str]:
    return name, f"{stage.seconds:.1f}", f"{100 * stage.seconds / total:.0f} %" if total else "", note


def _of(parts: list[Stage]) -> str:
    cached = sum(part.cached for part in parts)
    counts = ((len(parts) - cached, "run"), (cached, "cached"))
    return ", ".join(f"{count} {what}" for count, what in counts if count) or "run"


def _longest(parts: list[Stage], most: int = 4) -> str:
    longest = sorted(parts, key=lambda s: -s.seconds)[:most]
    return "".join(f"{', ' if n else ': '}{part.name} {part.seconds:.1f}" for n, part in enumerate(longest))
