"""Verdicts before the audit's own, and its findings in words and numbers, for lesson 14.

How it works: a reader's verdicts lie beside the ledger of predictions; as there, the first one counts. What the audit says
(qlora_lib.claims) is computed when it is asked. The pictures are in audit_drawing.py.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from qlora_lib.claims import DOCUMENTS, KINDS, VERDICTS, Audited, audit, counts
from qlora_lib.claims.claim import ASSUMED, FAILS, HOLDS, UNKNOWN
from qlora_lib.errors import QloraError, UsageError, nearest
from qlora_lib.notebooks.shown import Shown, paragraphs
from qlora_lib.paths import write_atomic

SHORT = {"holds": HOLDS, "assumption": ASSUMED, "fails": FAILS, "unknown": UNKNOWN}


def first_verdicts(
    folder: Path, said: Mapping[str, str | None]
) -> dict[str, str | None]:
    """A reader's verdict on each quotation, in full words: the first that was written down, else None. Kept in `folder`.

    Raises UsageError for a word that is no verdict (see SHORT).
    """
    for word in said.values():
        if word is not None and word not in SHORT:
            raise UsageError(f"'{word}' is no verdict", nearest(str(word), SHORT))
    file = folder / "verdicts.json"
    try:
        kept = {
            k: v
            for k, v in json.loads(file.read_text(encoding="utf-8")).items()
            if v in VERDICTS
        }
    except (OSError, ValueError, AttributeError):
        kept = {}
    first = {
        key: kept.get(key) or (SHORT[word] if word else None)
        for key, word in said.items()
    }
    if any(first.values()):
        try:
            write_atomic(file, json.dumps(first, indent=1) + "\n")
        except OSError:
            pass  # shown all the same
    return first


def says(*ids: str) -> Shown:
    """What the audit says of these claims, in this order: quotation, verdict, recomputation, explanation."""
    by_id = {a.claim.id: a for a in audit(ids)}
    found = [by_id[key] for key in ids]
    leads = [
        f"“{a.claim.quote}” ({a.claim.section}): {a.finding.verdict}." for a in found
    ]
    return paragraphs(
        [f"Recomputed: {a.finding.recomputed}. {a.finding.explanation}" for a in found],
        leads,
    )


def counts_by(audited: Iterable[Audited], by: str) -> dict[str, dict[str, int]]:
    """How many claims got each verdict, for each "document" or "kind" that has any."""
    found, groups = list(audited), DOCUMENTS if by == "document" else KINDS
    each = {g: counts(a for a in found if getattr(a.claim, by) == g) for g in groups}
    return {g: of for g, of in each.items() if any(of.values())}


def quality_losses() -> dict[str, tuple[str, float, float]]:
    """What QLoRA is said to lose, percent: label -> (how it is known, low, high). What has no record here is left out."""
    from qlora_lib.claims import measured, sources
    from qlora_lib.claims.checks import cell, change, figures
    from qlora_lib.published import REFERENCES

    low, high = (f.value for f in figures(REFERENCES["guide.degradation"].text))
    kept = figures(REFERENCES["guide.quality"].text)[0].value
    rise = change(
        cell(10, "perplexity", "qlora"), cell(10, "perplexity", "standard")
    ).value
    mmlu = -change(sources.PAPER_MMLU["nf4"], sources.PAPER_MMLU["bf16"]).value
    found = {
        f"the guide: {REFERENCES['guide.degradation'].text} degradation": (
            "no metric is named",
            low,
            high,
        ),
        f"the guide: {REFERENCES['guide.quality'].text} of the quality": (
            "no metric is named",
            100 - kept,
            100 - kept,
        ),
        "the study: perplexity on WikiText-2": ("printed with its metric", rise, rise),
        "the QLoRA paper: accuracy, MMLU": ("printed with its metric", mmlu, mmlu),
    }
    try:
        _, least, most = measured.perplexity_above("qlora", "full")
        found[f"{measured.MODEL}: perplexity"] = (
            "measured by this project, 95 % interval",
            least,
            most,
        )
    except QloraError:
        pass
    return found
