"""What a claim, a finding and a verdict are.

How it works: a claim is a short quotation and a *judge*, a function from that quotation to a finding. The judge reads its
figures out of the quotation (checks.figures) or out of the printed tables (qlora_lib.published), recomputes them, and
`decide` turns the comparison into the verdict. So no verdict is written down anywhere: `requoted` gives the same claim
with another quotation, whose verdict follows from what it then says.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal, get_args

from qlora_lib.errors import QloraError

Verdict = Literal["holds", "holds under an assumption", "does not hold", "cannot be checked here"]
Kind = Literal["number", "formula", "percentage", "name", "API call", "mechanism", "consistency", "meaning"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
KINDS: tuple[Kind, ...] = get_args(Kind)
HOLDS, ASSUMED, FAILS, UNKNOWN = VERDICTS

Evidence = Mapping[str, float | int | str]


@dataclass(frozen=True)
class Document:
    """One of the documents that are audited."""

    key: str  # what a claim's `document` names
    authors: tuple[str, ...]  # none where the document names none
    title: str
    about: str  # what it is, in a few words


@dataclass(frozen=True)
class Finding:
    recomputed: str  # in words, with the figure
    verdict: Verdict
    explanation: str  # one to three sentences: why, the assumption, or the right figure
    evidence: Evidence  # every number used, by name; finite


@dataclass(frozen=True)
class Claim:
    id: str  # "study-memory-01"
    document: str  # a Document's key
    section: str  # "4.1, table 5"
    quote: str  # short and verbatim, without markup; cells of a table with a space between, " ... " where words are left out
    kind: Kind
    judge: Callable[[str], Finding]  # of the quotation

    def check(self) -> Finding:
        """The finding; one that needs what this machine lacks (a record, say) cannot be checked here."""
        try:
            return self.judge(self.quote)
        except QloraError as e:
            return Finding("not recomputed", UNKNOWN, str(e), {})

    def requoted(self, old: str, new: str) -> "Claim":
        """The same claim, had its document said `new` where it says `old`."""
        if old not in self.quote:
            raise ValueError(f"{self.id} does not quote '{old}'")
        return replace(self, quote=self.quote.replace(old, new))


@dataclass(frozen=True)
class Audited:
    claim: Claim
    finding: Finding


class Claims(list[Claim]):
    """The claims of one module, all of one document; `claim` declares one above its judge.

    CLAIMS = Claims("study")

    @CLAIMS.claim("study-memory-01", "4.1, table 5", "Standard Model (FP16) 2,098.18", "number")
    def half_precision(quote: str) -> Finding: ...
    """

    def __init__(self, document: str):
        super().__init__()
        self.document = document

    def claim(self, id: str, section: str, quote: str, kind: Kind, document: str = "") -> Callable:
        if kind not in KINDS:
            raise ValueError(f"{id}: no kind '{kind}'")

        def declare(judge: Callable[[str], Finding]) -> Callable[[str], Finding]:
            self.append(Claim(id, document or self.document, section, quote, kind, judge))
            return judge

        return declare


def decide(holds: bool, assuming: bool = False, known: bool = True) -> Verdict:
    """The verdict on a claim: `holds` as it stands, or `assuming` something the document leaves open.

    `known` is False where neither could be computed: what it needs is not printed and not derivable.
    """
    if not known:
        return UNKNOWN
    return HOLDS if holds else ASSUMED if assuming else FAILS


def finding(verdict: Verdict, recomputed: str, say: str | Mapping[str, str], evidence: Evidence) -> Finding:
    """A finding; `say` is its explanation, or an explanation for each verdict that may come out."""
    if not isinstance(say, str):
        say = say.get(verdict, f"Recomputed: {recomputed}.")
    return Finding(recomputed, verdict, say, dict(evidence))
