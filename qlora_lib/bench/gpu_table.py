"""A GPU check as plain text: each measured number, and beside it what was predicted."""

from qlora_lib.bench.gpu_record import GpuCase, GpuCheckRecord

MIB, TERA, GIGA = 2**20, 1e12, 1e9
# Words of a row, the quantity, how it is written, and how its prediction is to be read.
ROWS = (
    ("weights, MiB", "weight_bytes", MIB, ""),
    ("trained, MiB", "trainable_bytes", MIB, ""),
    ("optimizer states, MiB", "optimizer_bytes", MIB, ""),
    ("peak of a step, MiB", "peak_bytes", MIB, "about "),
    ("seconds a step", "step_seconds", 1, "at least "),
    ("decoded tokens/s", "decode_tokens_per_second", 1, "at most "),
)
UNKNOWN, NOT_MEASURED = "not known", "not measured"


def to_text(record: GpuCheckRecord) -> str:
    p = record.provenance
    capability = f", compute capability {p.capability}" if p.capability else ""
    peak = f"{p.peak_flops_per_second / TERA:.4g} TFLOP/s, " if p.peak_flops_per_second else ""
    bandwidth = f"{p.bandwidth_bytes_per_second / GIGA:.0f} GB/s" if p.bandwidth_bytes_per_second else UNKNOWN
    lines = [
        f"{p.device}{capability}, {p.memory_bytes / MIB:.0f} MiB; {p.dtype}: {p.dtype_reason}",
        f"peak: {peak}{p.peak}; bandwidth: {bandwidth}",
    ]
    if record.tiny:
        lines.append("tiny: this shows that the check runs; its numbers mean nothing")
    for case in record.cases:
        lines += ["", *_case(case)]
    return "\n".join(lines)


def _case(case: GpuCase) -> list[str]:
    checkpointing = ", checkpointing" if case.gradient_checkpointing else ""
    lines = [f"{case.name}: {case.what}; {case.batch} x {case.length} tokens a step{checkpointing}"]
    if case.reason:
        lines.append(f"  {case.status if case.status != 'measured' else 'in part'}: {case.reason}")
    lines.append(f"  {'':<24}{'measured':>14}{'predicted':>22}")
    for words, quantity, unit, reading in ROWS:
        measured, predicted = (getattr(case, f"{kind}_{quantity}") for kind in ("measured", "predicted"))
        said = UNKNOWN if predicted is None else f"{reading}{_number(predicted / unit)}"
        lines.append(f"  {words:<24}{NOT_MEASURED if measured is None else _number(measured / unit):>14}{said:>22}")
    if case.losses:
        verdict = "falls" if case.falls else "does not fall"
        course = f"{case.loss_first:.3f} to {case.loss_last:.3f}"
        lines.append(f"  loss over {len(case.losses)} steps on one batch: {course}, {verdict}")
    return lines


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"
