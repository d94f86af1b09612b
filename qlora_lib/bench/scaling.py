"""How training grows with length and batch: seconds and bytes of a step, at each place of the grid.

How it works: at each place every arm makes two steps, of which the second is metered, and then its timed ones in
turns with the others. The arms are those of training.py, without stock's full fine-tuning. A place that does not fit
into memory is a point with a reason: where what the last place took, grown in proportion, is more than is free, it
is not tried, since a system that runs out of memory may end the process instead of refusing.
"""

from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

from qlora_lib.bench.record import ScalingPoint
from qlora_lib.bench.rounds import Work, in_turns_where_it_fits
from qlora_lib.bench.settings import BenchSettings, Shape
from qlora_lib.bench.training import UNTIMED, Arm, batches_of, make_arms, metered_step
from qlora_lib.fast.install import uninstall
from qlora_lib.progress import say

ARMS = ("qlora.stock", "qlora.fast", "full.fast")
GIB = 2**30


def measure_training_scaling(path: Path, tokens: np.ndarray, settings: BenchSettings) -> list[ScalingPoint]:
    """The series training.length and training.batch. tokens: [tokens], the training text."""
    grid = settings.grid
    arms = [arm for arm in make_arms(path, settings) if arm.name in ARMS]
    places = [("training.length", length, Shape(1, length)) for length in grid.lengths]
    places += [("training.batch", batch, Shape(batch, grid.batch_length)) for batch in grid.batches]
    points: list[ScalingPoint] = []
    try:
        for series, x, shape in places:
            say(f"scaling, {series} {x}")
            points += _at(arms, series, x, shape, tokens, settings, points)
    finally:
        for arm in arms:
            uninstall(arm.model)
    return points


def _at(arms: list[Arm], series: str, x: int, shape: Shape, tokens, settings: BenchSettings, before) -> list[ScalingPoint]:
    batches = batches_of(tokens, shape, UNTIMED + settings.scaling_repeats, settings.seed)
    memory: dict[str, tuple[int, int]] = {}

    def prepare(arm: Arm) -> None:
        memory[arm.name] = metered_step(arm, batches, settings.seed)

    def ready(arm: Arm, i: int) -> None:
        arm.enter()
        torch.manual_seed(settings.seed + i)  # every arm's dropout starts from there

    def run(arm: Arm, i: int) -> None:
        arm.step(batches[UNTIMED + i])

    too_large = {arm.name: too_large_after(before, series, arm.name, x) for arm in arms}
    works = {a.name: Work(partial(prepare, a), partial(ready, a), partial(run, a)) for a in arms if not too_large[a.name]}
    seconds, reasons = in_turns_where_it_fits(works, settings.scaling_repeats)
    points = []
    for arm in arms:
        common = {"series": series, "arm": arm.name, "what": arm.what, "x": x, "tokens": shape.tokens}
        if arm.name not in seconds:
            points.append(ScalingPoint(**common, reason=too_large[arm.name] or reasons[arm.name]))
            continue
        resident, above = memory[arm.name]
        points.append(
            ScalingPoint.timed(
                seconds[arm.name], **common, peak_tensor_bytes=resident + above, above_resident_bytes=above
            )
        )  # fmt: skip
    return points


def too_large_after(points: list[ScalingPoint], series: str, arm: str, x: int) -> str | None:
    """Why this place is not tried, from the last one of the series: what a step needs grows at least in proportion."""
    own = [p for p in points if (p.series, p.arm) == (series, arm)]
    if not own:
        return None
    last = own[-1]
    if last.reason:
        return last.reason if x > last.x else None
    needed, free = last.above_resident_bytes * x / last.x, psutil.virtual_memory().available
    if needed <= free:
        return None
    return f"not tried: it would need about {needed / GIB:.1f} GiB of memory, and {free / GIB:.1f} GiB are free"
