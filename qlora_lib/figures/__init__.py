"""Records -> figures: SVG for the page, PDF for papers, PNG for a look.

How it works: each figure is one function that takes the records and returns a matplotlib Figure,
so that a notebook can show it; `draw_all` saves every figure that the records allow. A quantity
that was not measured is written as such in the picture, never drawn as 0. Nothing here trains,
and nothing imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qlora_lib.bench.record import BenchRecord
from qlora_lib.figures import bench, bench_scaling, comparison, quality, sweep_quality, sweeps, tasks, training
from qlora_lib.figures import validation as validating
from qlora_lib.figures.comparison import draw_comparison, draw_radar
from qlora_lib.figures.parts import NothingToDraw
from qlora_lib.figures.quality import draw_quality_against_bytes, draw_quantization_alone
from qlora_lib.figures.training import draw_loss_curves, draw_memory_breakdown
from qlora_lib.paths import write_atomic
from qlora_lib.records import RunRecord
from qlora_lib.style import METADATA, Figure, render
from qlora_lib.studies import Studies
from qlora_lib.validation.published_gpu import compare_all
from qlora_lib.validation.record import ValidationRecord

__all__ = [
    "BENCH_FIGURES", "DrawnFigure", "FIGURES", "NothingToDraw", "STUDY_FIGURES", "draw_all", "draw_benches", "draw_comparison",
    "draw_costs", "draw_loss_curves", "draw_memory_breakdown", "draw_quality_against_bytes", "draw_quantization_alone", "draw_radar",
    "draw_studies", "left_out",
]  # fmt: skip

Records = dict[str, RunRecord]


@dataclass(frozen=True)
class Kind:
    """One kind of figure: which arms it shows (or why none), how it is drawn and described."""

    arms: Callable[[Records], list[str]]  # raises NothingToDraw
    draw: Callable[[Records], Figure]
    alt: Callable[[Records], str]
    caption: str


FIGURES: dict[str, Kind] = {
    "figure-1-comparison": Kind(
        comparison.comparison_arms, draw_comparison, comparison.comparison_alt,
        comparison.COMPARISON_CAPTION,
    ),
    "figure-2-radar": Kind(
        comparison.radar_arms, draw_radar, comparison.radar_alt, comparison.RADAR_CAPTION
    ),
    "loss-curves": Kind(
        training.curve_arms, draw_loss_curves, training.curves_alt, training.CURVES_CAPTION
    ),
    "memory-breakdown": Kind(
        training.memory_arms, draw_memory_breakdown, training.memory_alt, training.MEMORY_CAPTION
    ),
    "quality-against-bytes": Kind(
        quality.scored_arms, draw_quality_against_bytes, quality.bytes_alt, quality.BYTES_CAPTION
    ),
    "quantization-alone": Kind(
        quality.quantized_arms, draw_quantization_alone, quality.alone_alt, quality.ALONE_CAPTION
    ),
}  # fmt: skip


Benches = dict[str, BenchRecord]  # by setting of the allocator


@dataclass(frozen=True)
class BenchKind:
    """One kind of figure of `qlora bench`: the record that it shows, how it is drawn and described."""

    record: Callable[[Benches], BenchRecord | None]  # None: nothing to draw
    draw: Callable[[BenchRecord], Figure]
    alt: Callable[[BenchRecord], str]
    caption: str


def _measured(allocator: str) -> Callable[[Benches], BenchRecord | None]:
    return lambda benches: record if (record := benches.get(allocator)) and record.measurements else None


def _with(part: str) -> Callable[[Benches], BenchRecord | None]:
    """The first record that holds `scaling` or `causes`."""
    return lambda benches: next((record for record in benches.values() if getattr(record, part)), None)


BENCH_FIGURES: dict[str, BenchKind] = {
    "bench-default": BenchKind(_measured("default"), bench.draw_bench, bench.bench_alt, bench.CAPTION),
    "bench-keep": BenchKind(_measured("keep"), bench.draw_bench, bench.bench_alt, bench.CAPTION),
    "bench-scaling": BenchKind(
        _with("scaling"), bench_scaling.draw_scaling, bench_scaling.scaling_alt, bench_scaling.SCALING_CAPTION
    ),
    "bench-causes": BenchKind(
        _with("causes"), bench_scaling.draw_causes, bench_scaling.causes_alt, bench_scaling.CAUSES_CAPTION
    ),
}


@dataclass(frozen=True)
class StudyKind:
    """One kind of figure of sweeps or tasks; each function takes the studies and the profile's own records."""

    arms: Callable[[Studies, Records], list[str]]  # raises NothingToDraw
    draw: Callable[[Studies, Records], Figure]
    alt: Callable[[Studies, Records], str]
    caption: str


def _of_sweeps(arms, draw, alt, caption: str) -> StudyKind:
    return StudyKind(*(lambda studies, records, f=f: f(studies.sweeps, records) for f in (arms, draw, alt)), caption)


def _of_one(part: Callable[[Studies, Records], Records], arms, draw, alt, caption: str) -> StudyKind:
    return StudyKind(*(lambda studies, records, f=f: f(part(studies, records)) for f in (arms, draw, alt)), caption)


STUDY_FIGURES: dict[str, StudyKind] = {
    "sweep-learning-rate": _of_sweeps(sweeps.rate_arms, sweeps.draw_learning_rate, sweeps.rate_alt, sweeps.RATE_CAPTION),
    "sweep-rank": _of_sweeps(sweeps.rank_arms, sweeps.draw_rank, sweeps.rank_alt, sweeps.RANK_CAPTION),
    "sweep-settings": _of_sweeps(sweeps.settings_arms, sweeps.draw_settings, sweeps.settings_alt, sweeps.SETTINGS_CAPTION),
    "sweep-curves": _of_sweeps(sweep_quality.curves_arms, sweep_quality.draw_curves, sweep_quality.curves_alt, sweep_quality.CURVES_CAPTION),
    "sweep-memory": _of_sweeps(sweep_quality.memory_arms, sweep_quality.draw_memory, sweep_quality.memory_alt, sweep_quality.MEMORY_CAPTION),
    "throughput": _of_one(
        lambda studies, records: records | studies.tasks, tasks.speed_arms, tasks.draw_speed, tasks.speed_alt, tasks.SPEED_CAPTION
    ),
    "task-metrics": _of_one(
        lambda studies, records: studies.tasks, tasks.metric_arms, tasks.draw_metrics, tasks.metrics_alt, tasks.METRICS_CAPTION
    ),
    "task-rank": _of_one(
        lambda studies, records: studies.swept_tasks, tasks.rank_arms, tasks.draw_rank, tasks.rank_alt, tasks.RANK_CAPTION
    ),
}


@dataclass(frozen=True)
class DrawnFigure:
    name: str
    path_svg: Path
    alt: str  # says with numbers what a reader would see
    caption: str  # says what is shown, without numbers that were measured


def left_out(records: Records) -> dict[str, str]:
    """Figures that these records do not allow, with the reason."""
    reasons = {}
    for name, kind in FIGURES.items():
        try:
            kind.arms(records)
        except NothingToDraw as e:
            reasons[name] = e.message
    return reasons


def draw_all(
    records: Records, folder: Path, formats: tuple[str, ...] = ("svg", "pdf", "png")
) -> list[DrawnFigure]:
    """Save every figure that the records allow as `folder/<name>.<format>`, each file whole or not
    at all. Files of an earlier run whose figure is now left out are removed: they would show other
    records. `left_out` says why a figure is missing."""
    folder, drawn, absent = Path(folder), [], left_out(records)
    for name, kind in FIGURES.items():
        if name in absent:
            _remove(folder, name)
        else:
            drawn.append(_save(folder, name, formats, kind, records))
    return drawn


def draw_benches(
    benches: Benches, folder: Path, formats: tuple[str, ...] = ("svg", "pdf", "png")
) -> list[DrawnFigure]:
    """The same for the records of `qlora bench`; none for an empty `benches`."""
    folder, drawn = Path(folder), []
    for name, kind in BENCH_FIGURES.items():
        if (record := kind.record(benches)) is None:
            _remove(folder, name)
        else:
            drawn.append(_save(folder, name, formats, kind, record))
    return drawn


def draw_studies(
    studies: Studies, records: Records, folder: Path, formats: tuple[str, ...] = ("svg", "pdf", "png")
) -> list[DrawnFigure]:
    """The same for sweeps and tasks; none for a profile without either. `records` are the profile's own."""
    folder, drawn = Path(folder), []
    for name, kind in STUDY_FIGURES.items():
        try:
            kind.arms(studies, records)
        except NothingToDraw:
            _remove(folder, name)
        else:
            drawn.append(_save(folder, name, formats, kind, studies, records))
    return drawn


@dataclass(frozen=True)
class CostKind:
    """One kind of figure of the memory model's errors: how it is drawn and described."""

    draw: Callable[..., Figure]
    alt: Callable[..., str]
    caption: str


COST_FIGURES = ("validation", "validation-published")


def draw_costs(
    record: ValidationRecord | None, folder: Path, formats: tuple[str, ...] = ("svg", "pdf", "png")
) -> list[DrawnFigure]:
    """The same for the memory model: against what was measured (none without a record), and against others' figures."""
    folder, drawn = Path(folder), []
    measured, published = COST_FIGURES
    if record is None or not record.of():
        _remove(folder, measured)
    else:
        kind = CostKind(validating.draw_validation, validating.validation_alt, validating.CAPTION)
        drawn.append(_save(folder, measured, formats, kind, record))
    kind = CostKind(validating.draw_published, validating.published_alt, validating.PUBLISHED_CAPTION)
    return [*drawn, _save(folder, published, formats, kind, compare_all())]


def _save(folder: Path, name: str, formats: tuple[str, ...], kind: Kind | BenchKind | StudyKind | CostKind, *shown) -> DrawnFigure:
    figure = kind.draw(*shown)
    for file_format in formats:
        write_atomic(folder / f"{name}.{file_format}", render(figure, file_format))
    return DrawnFigure(name, folder / f"{name}.svg", kind.alt(*shown), kind.caption)


def _remove(folder: Path, name: str) -> None:
    for file_format in METADATA:
        (folder / f"{name}.{file_format}").unlink(missing_ok=True)
