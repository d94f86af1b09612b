"""How much memory this process may use: the machine's, its control groups' or its own limit, whichever is least.

How it works: a container, a scheduler or systemd puts a process into a control group (cgroup v1 or v2) whose limit, or that of a
group above it, ends the process long before the machine is full. `ulimit -v` bounds its address space.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

# file of the limit, of what is used, and the key in memory.stat of what the system takes back when it must
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
V2 = ("memory.max", "memory.current", "inactive_file")


@dataclass(frozen=True)
class Memory:
    """In bytes. `limit` says what makes `usable` less than the machine's; empty: nothing."""

    machine: int
    usable: int
    available: int
    swap: int
    limit: str


def memory(root: Path = Path("/")) -> Memory:
    """Under `root` lie proc/ and sys/."""
    now = psutil.virtual_memory()
    usable, available, why = now.total, now.available, ""
    for name, limit, used in (*control_groups(root), *_address_space()):
        available = min(available, max(0, limit - used))
        if limit < usable:
            usable, why = limit, name
    return Memory(now.total, usable, available, psutil.swap_memory().total, why)


def control_groups(root: Path = Path("/")) -> Iterator[tuple[str, int, int]]:
    """(name, limit, used without what can be taken back) of each control group with a limit that holds this process."""
    mount = root / "sys/fs/cgroup"
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if (number, controllers) == ("0", ""):
            top, names = mount, V2
        elif "memory" in controllers.split(","):
            top, names = mount / "memory", V1
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for depth in range(len(parts), -1, -1):
            if limited := _limit(top.joinpath(*parts[:depth]), *names):
                yield "limit of the container or control group", *limited


def _limit(group: Path, limit: str, used: str, cached: str) -> tuple[int, int] | None:
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # no such file, or "max"
        return None
    return most, max(0, now - int(kept.get(cached, 0)))


def _address_space() -> Iterator[tuple[str, int, int]]:
    try:
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[0]
    except (ImportError, AttributeError):
        return
    if most != resource.RLIM_INFINITY:
        yield "limit of ulimit -v", most, psutil.Process().memory_info().vms
