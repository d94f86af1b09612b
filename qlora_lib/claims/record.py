"""The audit as the repository carries it: every claim with its finding, so that pages need not recompute them.

How it works: `make` runs the whole audit, which imports the libraries and tries them; `python -m qlora_lib.claims` writes
what it found to report/records/audit.json, and pages read only that file. `differences` says where a record is not what
the code finds now. All text in it is data.
"""

import json
import math
import re
from pathlib import Path
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from qlora_lib.bench.record import read_as
from qlora_lib.claims.claim import Kind, Verdict
from qlora_lib.errors import QloraError
from qlora_lib.paths import report_dir, write_atomic
from qlora_lib.records import Part

COMMAND = "python -m qlora_lib.claims"
TOLERANCE = 0.05  # relative, of a number that an experiment on another machine may find otherwise
NOISE = 1e-4  # below which two such numbers are alike
_NUMBER = re.compile(r"[\d.,]*\d(?:e[-+]?\d+)?")


class AuditedClaim(Part):
    id: str
    document: str  # a key of claims.DOCUMENTS
    section: str
    quote: str
    kind: Kind
    recomputed: str
    verdict: Verdict
    explanation: str
    evidence: dict[str, int | float | str]


class AuditRecord(Part):
    schema_version: Literal[1] = Field(1, alias="schema")
    versions: dict[str, str]  # of the libraries that were looked at
    claims: list[AuditedClaim]

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, populate_by_name=True, protected_namespaces=())

    @model_validator(mode="after")
    def _each_once(self):
        if len({c.id for c in self.claims}) < len(self.claims):
            raise ValueError("two claims share an id")
        return self

    def to_json(self) -> str:
        return json.dumps(self.model_dump(by_alias=True, mode="json"), indent=1, ensure_ascii=False) + "\n"

    def write(self, path: Path) -> None:
        write_atomic(path, self.to_json())


def make() -> AuditRecord:
    """Check every claim; takes as long as the audit."""
    from qlora_lib.claims import as_json, audit
    from qlora_lib.hardware import versions

    libraries = {name: v for name, v in versions().items() if name in ("torch", "transformers", "peft", "bitsandbytes")}
    return AuditRecord(versions=libraries, claims=as_json(audit())["claims"])


def committed_audit() -> Path:
    return report_dir() / "records" / "audit.json"


def read_audit(path: Path) -> AuditRecord:
    """Read one record; a damaged or foreign file is one clear line."""
    return read_as(AuditRecord, path, COMMAND)


def read_committed() -> AuditRecord | None:
    """The record that the repository carries; None where there is none."""
    path = committed_audit()
    return read_audit(path) if path.is_file() else None


def differences(kept: AuditRecord, now: AuditRecord) -> list[str]:
    """Where two audits differ, one line each. Numbers in words count by the evidence, which may differ by `TOLERANCE`."""
    a, b = ({c.id: c for c in record.claims} for record in (kept, now))
    told = [f"{id}: not in the record" for id in b if id not in a] + [f"{id}: no longer a claim" for id in a if id not in b]
    if not told and list(a) != list(b):
        told.append("the claims stand in another order")
    for id in (id for id in a if id in b):
        for name in ("document", "section", "quote", "kind", "verdict"):
            if getattr(a[id], name) != getattr(b[id], name):
                told.append(f"{id}: {name} was '{getattr(a[id], name)}' and is '{getattr(b[id], name)}'")
        for name in ("recomputed", "explanation"):
            if _words(getattr(a[id], name)) != _words(getattr(b[id], name)):
                told.append(f"{id}: other words in '{name}'")
        if a[id].evidence.keys() != b[id].evidence.keys():
            told.append(f"{id}: other evidence")
        else:
            told += [f"{id}: {name} was {x} and is {b[id].evidence[name]}" for name, x in a[id].evidence.items() if not _alike(x, b[id].evidence[name])]
    return told


def _words(text: str) -> str:
    return _NUMBER.sub("#", text)


def _alike(x: int | float | str, y: int | float | str) -> bool:
    if isinstance(x, str) or isinstance(y, str):
        return x == y
    return math.isclose(x, y, rel_tol=TOLERANCE, abs_tol=NOISE)


def refuse_stale(path: Path) -> None:
    """QloraError where the record at `path` is not what the audit finds now."""
    if found := differences(read_audit(path), make()):
        raise QloraError(f"{path} differs from the audit in {len(found)} places, the first: {found[0]}", f"Write it anew: {COMMAND}")
