"""Made-up records of `qlora bench`, so that pages can be drawn and tested without a run.

How it works: a table of seconds gives each measurement its repeats; ratios and fits are computed from them by the bench's
own functions. Nothing here was measured.
"""

from qlora_lib.bench.fits import fit_all
from qlora_lib.bench.ratios import ratios
from qlora_lib.bench.record import (
    BenchProvenance, BenchRecord, Cause, DecodeLimit, Limits, Measurement, Numerics, ScalingPoint, TrainingLimit,
)  # fmt: skip
from qlora_lib.records import RunRecord

SHAPES = {"4x128": 512, "4x256": 1024}  # tokens of a step
REPEATS = {"stock": (1.0, 1.004, 0.996, 1.008, 0.992), "fast": (1.0, 0.997, 1.003, 1.002, 0.998)}  # no two rounds are alike
SECONDS = {  # of a step at 4x128; of 50 tokens; of 1,024 scored tokens
    "training.qlora.stock": 3.8, "training.qlora.fast": 2.3, "training.full.stock": 3.4, "training.full.fast": 3.1,
    "decode.fp32.stock": 2.3, "decode.fp32.fast": 1.9, "decode.nf4dq_adapter.stock": 5.6, "decode.nf4dq_merged.fast": 0.9,
    "decode.nf4dq_adapter.fast": 0.9, "perplexity.fp32.stock": 1.5, "perplexity.fp32.fast": 1.4,
    "perplexity.nf4dq_adapter.stock": 2.9, "perplexity.nf4dq_adapter.fast": 1.7,
}  # fmt: skip
PEAKS = {"qlora.stock": 1.49e9, "qlora.fast": 0.7e9, "full.stock": 2.5e9, "full.fast": 2.34e9}


def example_bench(of: RunRecord, allocator: str = "default", parts=("scaling", "causes"), **seconds: float) -> BenchRecord:
    """A record of the model, text and machine of `of`; `seconds` replaces those above (training__qlora__fast=9.0)."""
    table = SECONDS | {name.replace("__", "."): value for name, value in seconds.items()}
    measured = [m for name, value in table.items() for m in _measured(name, value)]
    measured.append(Measurement.missing("decode.llama_cpp", "llama.cpp, a .gguf file", 50, "not installed"))
    limits = Limits(
        gemm_flops_per_second=1.4e11, copy_bytes_per_second=2.1e10, read_bytes_per_second=2.6e10,
        training={
            f"{shape}.{m}": TrainingLimit(flops=int(rate * tokens), seconds_per_step=rate * tokens / 1.4e11,
                                          tokens_per_second=1.4e11 / rate)
            for shape, tokens in SHAPES.items() for m, rate in (("qlora", 5.9e8), ("full", 8.3e8))
        },
        decode={"fp32": DecodeLimit(bytes_per_token=538_060_288, tokens_per_second=48.3),
                "nf4dq_adapter": DecodeLimit(bytes_per_token=187_923_448, tokens_per_second=138.3)},
    )  # fmt: skip
    points = _points(table) if "scaling" in parts else []
    details = ratios(measured, limits, list(SHAPES))
    return BenchRecord(
        settings={"shapes": list(SHAPES), "repeats": 5, "scaling_repeats": 3, "new_tokens": 50, "quick": False,
                  "grid": {"batch_length": 128, "contexts": [64, 256, 512]}},
        model=of.model, data=of.data, ratios={name: ratio.value for name, ratio in details.items()}, measurements=measured,
        limits=limits, scaling=points, fits=fit_all(points), causes=_causes() if "causes" in parts else [],
        numerics=Numerics(
            loss_stock=3.5, loss_relative_difference=2.1e-6, gradient_relative_difference=7.2e-5,
            worst_gradient_relative_difference=2.4e-4, worst_gradient="v_proj", loss_error={"stock": 2.2e-6, "fast": 9.7e-8},
            gradient_error={"stock": 6.8e-5, "fast": 6.1e-6}, perplexity_relative_difference={"nf4dq_adapter": 1.3e-3},
            equal_tokens={"fp32": 50, "nf4dq_adapter": 50},
        ),
        ratio_details=details,
        provenance=BenchProvenance(
            finished="2026-01-02T03:04:05+00:00", cpu=of.provenance.cpu, threads=of.provenance.threads, memory_bytes=2**34,
            platform="Linux", versions={"torch": "2.13.0", "transformers": "5.23.0", "peft": "0.21.2", "bitsandbytes": "0.50.2"},
            git_commit=None, allocator=allocator, environment={}, load_average_before=0.11, wall_seconds=1.0,
            stage_seconds={}, peak_resident_bytes=2**33,
        ),
    )  # fmt: skip


def _measured(name: str, seconds: float) -> list[Measurement]:
    part, what, whose = name.split(".")
    if part != "training":
        tokens = 50 if part == "decode" else 1024
        return [Measurement.timed(name, f"{what}, {whose}", tokens, [seconds * r for r in REPEATS[whose]])]
    return [
        Measurement.timed(
            f"training.{shape}.{what}.{whose}", f"{what}, {whose}", tokens, [seconds * tokens / 512 * r for r in REPEATS[whose]],
            peak_tensor_bytes=int(PEAKS[f"{what}.{whose}"] * (0.6 + 0.4 * tokens / 512)),
        )
        for shape, tokens in SHAPES.items()
    ]  # fmt: skip


def _points(table: dict[str, float]) -> list[ScalingPoint]:
    found = []
    for arm in ("qlora.stock", "qlora.fast", "full.fast"):
        step = table[f"training.{arm}"] / 512
        for series, xs, unit in (("training.length", (128, 256, 512), 1), ("training.batch", (1, 2, 4), 128)):
            for x in xs:
                found.append(ScalingPoint.timed(
                    [step * (x * unit) ** 1.07] * 3, x * unit, series=series, arm=arm, what="a step", x=x,
                    peak_tensor_bytes=int(PEAKS[arm] * (0.5 + x * unit / 512)), above_resident_bytes=int(1e6 * x * unit),
                ))  # fmt: skip
    for arm in ("fp32.stock", "nf4dq_adapter.stock", "nf4dq_adapter.fast"):
        token = table[f"decode.{arm}"] / 50
        for x in (64, 256, 512):
            found.append(ScalingPoint.timed(
                [16 * token * (1 + x / 5000)] * 3, 16, series="decode.context", arm=arm, what="tokens", x=x))  # fmt: skip
    return found


def _causes() -> list[Cause]:
    parts = {
        "nf4dq_adapter.stock": (0.04, 0.03, 0.02, 0.022), "nf4dq_adapter.fast": (None, 0.002, 0.006, 0.01),
    }  # fmt: skip
    names = ("dequantization", "adapter products", "memory traffic", "everything else")
    return [
        Cause(arm=arm, cause=cause, seconds_per_token=value, what="made up")
        for arm, values in parts.items() for cause, value in zip(names, values, strict=True)
    ]  # fmt: skip
