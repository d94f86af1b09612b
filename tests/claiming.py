"""How a claim is tried: its finding is whole, and another quotation or another finding turns its verdict."""

import json
import math

from qlora_lib import claims
from qlora_lib.claims import measured
from qlora_lib.claims.claim import Claim
from qlora_lib.paths import committed_records


def record(arm: str, profile: str = "demo") -> dict:
    """A committed record as plain JSON."""
    return json.loads((committed_records(profile) / f"{arm}.json").read_text(encoding="utf-8"))


def is_whole(claim: Claim, words: int) -> None:
    """The quotation has `words` at most, and the finding all of its parts."""
    found = claim.check()
    assert len(claim.quote.split()) <= words
    assert found.recomputed and found.explanation.endswith((".", ")")) and found.verdict in claims.VERDICTS
    assert all(isinstance(v, str) or math.isfinite(v) for v in found.evidence.values())


def turned_by_quoting(claim: Claim, verdict: str, old: str, new: str, turned: str) -> None:
    assert claim.check().verdict == verdict
    assert claim.requoted(old, new).check().verdict == turned


def turned_by_finding(claim: Claim, monkeypatch, verdict: str, module, name: str, instead, turned: str) -> None:
    assert claim.check().verdict == verdict
    monkeypatch.setattr(module, name, instead)
    assert claim.check().verdict == turned


def swapped_arms(one: str, other: str):
    """`measured.arm` that takes one arm for the other."""
    arm = measured.arm
    return lambda name: arm({one: other, other: one}.get(name, name))
