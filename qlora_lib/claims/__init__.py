"""What the five documents claim, recomputed: `audit()` gives every claim with its verdict.

How it works: each module named in `MODULES` holds the claims of a document on one subject, in a list `CLAIMS`. A claim's
judge reads the quotation and recomputes it (claim.py, checks.py) from a model's widths (qlora_lib.cost), from the
libraries' own code, from small experiments, or from the records that the repository carries. Modules load no torch until
a judge runs that needs it.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from importlib import import_module

from qlora_lib.claims.claim import KINDS, VERDICTS, Audited, Claim, Document, Finding, Verdict
from qlora_lib.claims.documents import DOCUMENTS
from qlora_lib.errors import UsageError, nearest

MODULES = (
    "study_model",
    "study_quantization",
    "study_lora",
    "study_memory",
    "study_flops",
    "study_mfu",
    "study_time",
    "study_quality",
    "study_inference",
    "readme",
    "demo",
    "guide_memory",
    "guide_mechanism",
    "guide_advice",
    "guide_code",
    "qwen",
    "across",
)

__all__ = ["DOCUMENTS", "KINDS", "VERDICTS", "Audited", "Claim", "Document", "Finding", "Verdict", "all_claims", "as_json", "audit", "counts"]


@cache
def all_claims() -> dict[str, Claim]:
    """Every claim by its id, by document in DOCUMENTS' order, then as their modules list them."""
    found = [claim for name in MODULES for claim in import_module(f"{__name__}.{name}").CLAIMS]
    place = {key: i for i, key in enumerate(DOCUMENTS)}
    found.sort(key=lambda claim: place[claim.document])  # stable
    claims = {claim.id: claim for claim in found}
    if len(claims) < len(found):
        raise ValueError("two claims share an id")
    return claims


def audit(ids: Iterable[str] | None = None) -> list[Audited]:
    """Check the claims of these ids, or all; in the order of `all_claims`.

    Raises UsageError for an id that no claim has.
    """
    claims = all_claims()
    wanted = set(claims if ids is None else ids)
    for unknown in sorted(wanted - claims.keys()):
        raise UsageError(f"no claim '{unknown}'", nearest(unknown, claims))
    return [Audited(claim, claim.check()) for key, claim in claims.items() if key in wanted]


def as_json(audited: Iterable[Audited]) -> dict:
    """{"claims": [{id, document, section, quote, kind, recomputed, verdict, explanation, evidence}], "documents", "counts"}."""
    audited = list(audited)
    return {
        "claims": [_claim_as_json(a) for a in audited],
        "documents": {key: asdict(d) for key, d in DOCUMENTS.items() if any(a.claim.document == key for a in audited)},
        "counts": counts(audited),
    }


def counts(audited: Iterable[Audited]) -> dict[str, int]:
    """How many claims have each verdict, all four named."""
    found = Counter(a.finding.verdict for a in audited)
    return {verdict: found[verdict] for verdict in VERDICTS}


def _claim_as_json(a: Audited) -> dict:
    return {
        "id": a.claim.id,
        "document": a.claim.document,
        "section": a.claim.section,
        "quote": a.claim.quote,
        "kind": a.claim.kind,
        "recomputed": a.finding.recomputed,
        "verdict": a.finding.verdict,
        "explanation": a.finding.explanation,
        "evidence": dict(a.finding.evidence),
    }
