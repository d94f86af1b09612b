"""The claims, one by one: what the audited documents say, what was recomputed, and the verdict.

How it works: the audit's record is text and verdicts; each becomes a value, so that the page prints it as a string and never
as markup. Counts by document and verdict are computed from the record. Nothing is judged here.
"""

from typing import Any

from qlora_lib.claims import DOCUMENTS, VERDICTS
from qlora_lib.claims.record import AuditedClaim
from qlora_lib.report.formats import NOT_MEASURED
from qlora_lib.report.grid import Table
from qlora_lib.report.sentences import Paragraph
from qlora_lib.report.values import Store

NOTHING = f"There is no record of the audit: which claims hold was {NOT_MEASURED}."
WORDS = ("section", "kind", "quote", "recomputed", "explanation")
TITLES = {
    "holds": "Holds", "holds under an assumption": "Under an assumption", "does not hold": "Does not hold",
    "cannot be checked here": "Cannot be checked",
}  # fmt: skip


def documents(s: Store) -> list[str]:
    """Keys of the documents that have claims, in their order."""
    there = {c.document for c in s.audit.claims} if s.audit else set()
    return [key for key in DOCUMENTS if key in there]


def shown(s: Store) -> dict[str, Any]:
    """The claims by document, each cell a value's key; and all ids, to which other chapters link."""
    return {
        "ids": [c.id for c in s.audit.claims] if s.audit else [],
        "documents": [
            {"title": _document(s, key), "rows": [_row(s, c) for c in s.audit.claims if c.document == key]} for key in documents(s)
        ],
    }  # fmt: skip


def _document(s: Store, key: str) -> list[dict[str, str]]:
    document = DOCUMENTS[key]
    by = f"{' and '.join(document.authors)}: " if document.authors else ""
    text = f"{by}{document.title} ({document.about})"
    return [{"value": s.use(s.put(f"document.{key}", text, "text", "published", {"document": document.title})).key}]


def _row(s: Store, c: AuditedClaim) -> dict[str, str]:
    cells = {what: _put(s, c, what, getattr(c, what), "text") for what in WORDS}
    return {"id": c.id, "kind-of-verdict": c.verdict} | cells | {"verdict": _put(s, c, "verdict", c.verdict, "mark")}


def _put(s: Store, c: AuditedClaim, what: str, text: str, form: str) -> str:
    return s.use(s.put(f"claim.{c.id}.{what}", text, form, "audited", {"audit": c.id, "path": what})).key


def all_tables(s: Store) -> dict[str, Any]:
    if not s.audit:
        return {}
    rows = [(f"{{{_short(s, key)}}}", *_counts(s, key)) for key in documents(s)]
    columns = [("Verdict", TITLES[v]) for v in VERDICTS] + [("", "Claims")]
    table = Table(
        "claims-summary", "Claims by document and verdict.", columns, [*rows, ("All", *_counts(s, ""))], label="Document", label_width=6.6,
    )  # fmt: skip
    return {table.name: table.as_json(s)}


def _short(s: Store, key: str) -> str:
    return s.put(f"document.{key}.title", DOCUMENTS[key].title, "text", "published", {"document": DOCUMENTS[key].title})


def _counts(s: Store, document: str) -> list[str]:
    some = [c for c in s.audit.claims if document in ("", c.document)]

    def put(verdict: str, number: int) -> str:
        key = f"claims.{document or 'all'}.{verdict.replace(' ', '-') or 'all'}"
        return s.put(key, number, "count", "audited", {"claims": document, "verdict": verdict})

    return [*(put(v, sum(c.verdict == v for c in some)) for v in VERDICTS), put("", len(some))]


def all_sentences(s: Store) -> dict[str, list[Paragraph]]:
    if not s.audit:
        return {"claims-method": [("", NOTHING)], "claims-found": []}
    versions = ", ".join(f"{name} {v}" for name, v in s.audit.versions.items())
    s.put("claims.versions", versions, "text", "audited", {"audit": "versions"})
    _counts(s, "")
    method = (
        "A claim is a short quotation: a number, a formula, a percentage, a name, a call of a library, a statement of mechanism, an agreement of "
        "figures with each other, or what a right figure is said to mean. Its figures are read out of the quotation and computed again, from the model’s widths, the libraries’ own code "
        "({claims.versions}), small experiments, data sheets and the runs of this report; the verdict follows from the comparison, and none is written down. "
        "qlora audit repeats it."
    )
    found = (
        "Of {claims.all.all} claims {claims.all.holds} hold as they stand, {claims.all.holds-under-an-assumption} under an assumption that is stated, "
        "{claims.all.does-not-hold} do not hold, and {claims.all.cannot-be-checked-here} cannot be checked here."
    )
    return {"claims-method": [("", method)], "claims-found": [("", found)]}
