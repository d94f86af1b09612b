"""What pages show beside a profile's own arms: its task arms, and the sweeps of its long profile, on text and on tasks.

How it works: sweeps take hours, so they come from the repository, else from this machine's results; task arms from where the
profile's other arms come. `rank_axes` is what a sweep of ranks on a task found, by its metrics in per cent.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from qlora_lib.errors import QloraError
from qlora_lib.records import RunRecord, Source, records_of, task_records_of
from qlora_lib.sweeps import RANK, Axis, Records, metric_after, one_axis

METRIC_NAMES = {"accuracy": "accuracy", "exact_match": "exact match", "f1": "F1", "response_perplexity": "response perplexity"}
WIN_RATES = ("win_rate", "length_controlled_win_rate")  # of answers after training against those before: nothing to set before


@dataclass(frozen=True)
class Studies:
    """Task arms of a profile, and the sweeps of its long profile: on text, and on tasks. Any may be empty."""

    sweeps: dict[str, RunRecord] = field(default_factory=dict)
    tasks: dict[str, RunRecord] = field(default_factory=dict)
    swept_tasks: dict[str, RunRecord] = field(default_factory=dict)


def studies_of(profile: str, source: Source = "auto") -> Studies:
    """Task arms of `profile` from `source`, and the sweeps of `<profile>-long`, whatever `source` is."""
    long = f"{profile}-long"
    sweeps = _first(lambda kind: records_of(long, kind), "committed", "own")
    swept_tasks = _first(lambda kind: task_records_of(long, kind), "committed", "own")
    return Studies(sweeps, _first(lambda kind: task_records_of(profile, kind), source), swept_tasks)


def _first(read: Callable[[Source], tuple[dict[str, RunRecord], str]], *sources: Source) -> dict[str, RunRecord]:
    for source in sources:
        try:
            found, _ = read(source)
        except QloraError:
            continue  # none there
        if found:
            return found
    return {}


def rank_axes(found: Records) -> dict[tuple[str, str], Axis]:
    """(data set, metric) -> QLoRA along the rank, on each task that was swept; metrics in %, of which more is better."""
    axes = {}
    for data in dict.fromkeys(r.data.name for r in found.values() if r.task):
        some = {a: r for a, r in found.items() if r.data.name == data and r.task}
        for name in dict.fromkeys(n for r in some.values() for n, m in r.task.metrics.items() if m.unit == "%" and n not in WIN_RATES):
            axis = one_axis(some, "qlora", RANK, score=metric_after(name), lower_is_better=False)
            if len(axis.points) > 1:
                axes[data, name] = axis
    return axes
