"""The processes that train one arm together: who they are, how they meet, and what they say to each other.

How it works: a launcher (`study` with `runtime.processes`, torchrun, `accelerate launch`) gives each process its rank in the
environment. They meet once, in `join`, in one process group that Trainer then finds and uses too; on a GPU it has a second
backend, gloo, for what is said on the CPU. The first of them (rank 0) leads: it claims the folder, scores, writes and prints.
Each trains on its share of every step's windows, so that a step is the same whatever their number (`share`).

What is not training (perplexity, tasks, decoding, saving) the first does alone. Before training the others wait for it, for a day
if need be (gloo's and NCCL's half an hour is too short for an evaluation); after training they are done and end.
Until torch is needed nothing here imports it.
"""

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any

from qlora_lib.errors import QloraError, UsageError

PATIENCE = timedelta(days=1)  # of a process that waits; one that dies is noticed at once by its connections and its launcher
STORE = "QLORA_STORE"  # the file over which the processes that `children` starts find each other
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LOST = 75  # exit code of a process that ended because another one had
HOW = (
    "On a CPU: torchrun --nproc-per-node N, or ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes N; "
    "anywhere, with no launcher: --set runtime.processes=N"
)


@dataclass(frozen=True)
class Launch:
    """What the environment says of this process and the others."""

    rank: int
    world: int  # how many there are
    local_rank: int  # on this machine
    local_world: int


ALONE = Launch(0, 1, 0, 1)


def launched() -> Launch | None:
    """This process's place among several; None where it is the only one."""
    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        local_rank = int(os.environ.get("LOCAL_RANK", rank))
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    except (KeyError, ValueError):
        return None
    return Launch(rank, world, local_rank, local_world) if world > 1 else None


def check_launcher() -> None:
    """Raise a UsageError where `accelerate launch` was asked for several processes and has started one without a word.

    It does so with `--cpu`, or where no `--multi_gpu` is given (accelerate 1.15, `simple_launcher`).
    """
    said = os.environ.get("ACCELERATE_MIXED_PRECISION") is not None and "MASTER_PORT" in os.environ
    if said and "RANK" not in os.environ and STORE not in os.environ:
        raise UsageError("accelerate was asked for several processes and has started one", HOW)


def share(batch_size: int, accumulation: int, processes: int) -> tuple[int, int]:
    """(batch size, accumulated batches) of each process, so that a step over all of them has `batch_size * accumulation` windows.

    Raises ValueError where neither of the two can be divided.
    """
    if accumulation % processes == 0:
        return batch_size, accumulation // processes
    if batch_size % processes == 0:
        return batch_size // processes, accumulation
    raise ValueError(f"{processes} divides neither")


class Together:
    """This process and those that it trains with; alone, each method gives back what it was given."""

    def __init__(self, launch: Launch | None = None, store=None) -> None:
        self.rank, self.world, self.store = (launch.rank, launch.world, store) if launch else (0, 1, None)

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def wait(self) -> None:
        """Until every process is here."""
        self.highest(0)

    def highest(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world == 1:
            return value
        import torch

        held = torch.tensor(value, dtype=torch.int64)  # on the CPU: gloo carries it
        torch.distributed.all_reduce(held, torch.distributed.ReduceOp.MAX)
        return int(held)

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns in the first process; it is called in no other."""
        if self.world == 1:
            return make()
        import torch

        held = [make() if self.leads else None]
        torch.distributed.broadcast_object_list(held, src=0, device=torch.device("cpu"))
        return held[0]

    def gather(self, value: Any) -> list:
        """Every process's value, by rank."""
        if self.world == 1:
            return [value]
        import torch

        held = [None] * self.world
        torch.distributed.all_gather_object(held, value)
        return held


_together = Together()


def current() -> Together:
    """Those that this process has joined."""
    return _together


def join(on: str) -> Together:
    """Meet the other processes of the launcher, once; with none, or when they have met, those of `current`.

    Args:
        on: `cpu` or `cuda`; a GPU for each process.
    """
    global _together
    launch = launched()
    if launch is None or _together.world > 1:
        return _together
    import torch
    from torch import distributed

    # accelerate looks for these two, and takes their absence for several machines
    os.environ |= {"LOCAL_RANK": str(launch.local_rank), "LOCAL_WORLD_SIZE": str(launch.local_world)}
    if on == "cuda":
        if launch.local_world > torch.cuda.device_count():
            raise UsageError(
                f"{launch.local_world} processes need a GPU each, and PyTorch sees {torch.cuda.device_count()}",
                "Start as many processes as there are GPUs: runtime.processes, or the launcher's number",
            )
        torch.cuda.set_device(launch.local_rank)
    else:
        os.environ["ACCELERATE_USE_CPU"] = "true"  # or accelerate looks for GPUs and runs each process by itself
    if path := os.environ.get(STORE):
        store = distributed.FileStore(path, launch.world)
    else:
        store, _, _ = next(distributed.rendezvous("env://", rank=launch.rank, world_size=launch.world))
    store.set_timeout(PATIENCE)
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on == "cuda" else "gloo",
        store=distributed.PrefixStore("training", store),
        rank=launch.rank,
        world_size=launch.world,
        timeout=PATIENCE,
    )
    _together = Together(launch, distributed.PrefixStore("qlora", store))
    return _together


def check_number(asked: int, running: int, what: str = "train here") -> None:
    """Raise a QloraError where another number of processes runs than was asked for."""
    if asked != running:
        raise QloraError(f"runtime.processes is {asked}, and {running} {what}", HOW)


@cache
def speaks() -> bool:
    """Whether this process is to print the error that it ends with: of several, the first to fail is."""
    if _together.world > 1:
        try:
            return _together.store.add("failed", 1) == 1
        except Exception:  # whoever kept the store is gone, and has spoken
            return False
    return (launched() or ALONE).rank == 0


def lost_others(error: BaseException) -> bool:
    """Whether this error says that another process is gone, and nothing of this one."""
    if _together.world == 1 or isinstance(error, QloraError):
        return False
    text = f"{type(error).__name__} {error}".lower()
    return any(sign in text for sign in ("gloo", "nccl", "by peer", "distnetworkerror", "diststoreerror", "distbackenderror"))


def leave_with_parent() -> None:
    """Send this process SIGTERM when the launcher that started it is gone, however it went."""
    import signal

    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="leave with the launcher", daemon=True).start()
