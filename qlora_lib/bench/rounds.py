"""Arms in turns: one round runs every arm once, so that drift and others' work meet all of them alike."""

import time
from collections.abc import Callable, Mapping
from functools import partial

from qlora_lib.study import say


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
