"""Arms in turns: one round runs every arm once, so that drift and others' work meet all of them alike."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from qlora_lib.errors import out_of_memory
from qlora_lib.progress import say

OUT_OF_MEMORY = "out of memory"


def in_turns(
    arms: Mapping[str, Callable[[int], object]], repeats: int, ready: Mapping[str, Callable[[int], object]] | None = None
) -> dict[str, list[float]]:
    """Seconds of each arm's call in each round; it is given the round's number. `ready` runs before, untimed."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for i in range(repeats):
        for name, run in arms.items():
            if ready:
                ready[name](i)
            seconds[name].append(timed(partial(run, i)))
        shown = ", ".join(f"{name} {times[-1]:.3g}" for name, times in seconds.items())
        say(f"  round {i + 1}/{repeats}, seconds: {shown}")
    return seconds


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Work:
    """What one arm does at one place of a series."""

    prepare: Callable[[], object]  # once, untimed: a first run
    ready: Callable[[int], object]  # before each timed run, untimed
    run: Callable[[int], object]


def in_turns_where_it_fits(works: Mapping[str, Work], repeats: int) -> tuple[dict[str, list[float]], dict[str, str]]:
    """(seconds of the arms that ran, the reason of those that ran out of memory); other errors are not caught."""
    reasons: dict[str, str] = {}

    def guarded(name: str, call: Callable) -> Callable:
        def attempt(*given) -> None:
            if name in reasons:
                return
            try:
                call(*given)
            except (MemoryError, RuntimeError) as e:
                if not out_of_memory(e):
                    raise
                reasons[name] = OUT_OF_MEMORY
                say(f"  {name}: {OUT_OF_MEMORY}")

        return attempt

    for name, work in works.items():
        guarded(name, work.prepare)()
    left = {name: work for name, work in works.items() if name not in reasons}
    seconds = in_turns(
        {name: guarded(name, work.run) for name, work in left.items()}, repeats,
        {name: guarded(name, work.ready) for name, work in left.items()},
    )  # fmt: skip
    return {name: times for name, times in seconds.items() if name not in reasons}, reasons
