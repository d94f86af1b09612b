"""Made-up records of the validation and of the audit, so that their pages can be tested without measuring or auditing.

How it works: what is "measured" is the prediction, off by a little that depends on the case; one case is off by more than the
limit, and one was not measured. The claims are of the real documents' keys and say nothing true.
"""

from qlora_lib.claims.claim import KINDS, VERDICTS
from qlora_lib.claims.record import AuditedClaim, AuditRecord
from qlora_lib.cost.shapes import ModelShape
from qlora_lib.validation import grid
from qlora_lib.validation.record import (
    PROTOCOL,
    AtRest,
    Bytes,
    MeasuredStep,
    PredictedStep,
    Provenance,
    Step,
    ValidationRecord,
    shapes_of,
)

FAR = "qlora.2x256"  # part of the name of the step that is far off
MISSING = "full.1x512"
HOSTILE = '#panic("x") *bold* $x$ _i_ `r` [b] @ref <l> \\ // c ~ -- = Heading'


def error_of(name: str, i: int) -> float:
    return -0.13 if FAR in name and "smollm2" in name else 0.01 * ((i % 7) - 3)


def example_validation(only: str | None = None) -> ValidationRecord:
    """only: `real` or `tiny`."""
    steps, at_rest = [], []
    for i, case in enumerate(grid.cases(only)):
        shape: ModelShape = grid.SHAPES[case.model]
        if MISSING in case.name:
            steps.append(Step.of(case, shape, None, "out of memory"))
            continue
        p = PredictedStep.of(case, shape)
        peak = round(p.peak_bytes / (1 + error_of(case.name, i)))
        fixed = p.model_bytes + p.optimizer_bytes
        steps.append(Step.of(case, shape, MeasuredStep(
            model_bytes=p.model_bytes, optimizer_bytes=p.optimizer_bytes, above_bytes=peak - fixed, peak_bytes=peak,
        )))  # fmt: skip
    for form in grid.formats(only):
        shape = grid.SHAPES[form.model]
        p = AtRest.of(form, shape, None, "x").predicted
        at_rest.append(AtRest.of(form, shape, Bytes(weights=p.weights, quantization_constants=p.quantization_constants, adapters=p.adapters)))
    provenance = Provenance(
        finished="2026-01-02T03:04:05+00:00", cpu="Example CPU", threads=1, platform="example", seconds=1.0, git_commit=None,
        versions={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
    )  # fmt: skip
    return ValidationRecord(
        protocol=PROTOCOL, shapes=shapes_of(e.model for e in (*steps, *at_rest)), steps=steps, at_rest=at_rest, provenance=provenance
    )


def example_audit(each: int = 4, ids: tuple[str, ...] = (), **text: str) -> AuditRecord:
    """`each` claims a document, with each verdict in turn, and besides those of these ids; `text` replaces fields of all."""
    claims = []

    def add(id: str, document: str, i: int) -> None:
        fields = {
            "section": f"{i}.1, table {i}", "quote": f"it is {i + 1}.25 of {id}", "recomputed": f"{i + 1}.37 in all",
            "explanation": f"Counted, it is {i + 1}.37 and rounds to {i + 1}.4.",
        } | text  # fmt: skip
        claims.append(AuditedClaim(
            id=id, document=document, kind=KINDS[i % len(KINDS)], verdict=VERDICTS[i % len(VERDICTS)], evidence={"value": i + 1.37}, **fields,
        ))  # fmt: skip

    for document in ("study", "readme", "demo", "guide", "qwen", "across"):
        for i in range(each):
            add(f"{document}-example-{i:02}", document, i)
    for i, id in enumerate(ids):
        add(id, id.partition("-")[0], i)
    return AuditRecord(versions={"torch": "2.13.0", "peft": "0.21.2"}, claims=claims)
