"""Start the processes that run one job, give each the job, and watch them until the last has ended.

How it works: `python -m qlora_lib.arm`, as many times as the job's settings ask for, each with its rank in the environment and
the job on a standard input of its own, which stays open: a process leaves when that ends, so none outlives its parent.
torchrun would do, but all its processes would share one input, and it hides which of them failed, and how. The processes meet
over a file in the arm's folder, so no port is taken.
"""

import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.job import SCRATCH, Job
from qlora_lib.processes import LOST, RANKS, STORE

STDERR = 2
LEAVE_SECONDS = 120  # to end a step and write a checkpoint
OTHERS_SECONDS = 10  # for a process to notice that another has failed
LOOPBACK = {"linux": "lo", "darwin": "lo0"}  # the network card by which processes of one machine talk


@dataclass(frozen=True)
class Ended:
    code: int  # as subprocess has it: below 0 the signal that ended it
    rank: int  # of the process that decided it


def run(job: Job) -> Ended:
    """Run the job in processes of its own; their lines go to standard error.

    An exception, such as Ctrl-C, asks them to leave before it goes on.
    """
    with ExitStack() as stack:
        environments = [_environment(job)]
        if job.processes > 1:
            meeting = stack.enter_context(tempfile.TemporaryDirectory(dir=job.out, prefix=SCRATCH, ignore_cleanup_errors=True))
            environments = [environments[0] | _rank(job, rank, Path(meeting) / "store") for rank in range(job.processes)]
        children: list[subprocess.Popen] = []
        try:
            for environment in environments:
                children.append(stack.enter_context(_start(environment)))
            for child in children:
                _tell(child, job)
            return _watch(children)
        except BaseException:  # Ctrl-C, or SIGTERM's SystemExit
            for child in children:
                child.terminate()
            try:
                _end(children, LEAVE_SECONDS)
            except BaseException:  # the second Ctrl-C
                _end(children, 0)
            raise


def _environment(job: Job) -> dict[str, str]:
    runtime, n = job.settings.runtime, job.processes
    threads = runtime.threads or max(1, hardware.usable_cpus() // n)
    env = {key: value for key, value in os.environ.items() if key not in (*RANKS, STORE)}
    env |= hardware.threads_environment(threads, runtime.keep_freed_memory)
    env.setdefault("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(n))))  # more of them Trainer would use in its own way
    return env


def _rank(job: Job, rank: int, store: Path) -> dict[str, str]:
    n = str(job.processes)
    ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, STORE: str(store)}
    if sys.platform in LOOPBACK:
        ranks["GLOO_SOCKET_IFNAME"] = LOOPBACK[sys.platform]
    return ranks


def _start(environment: dict[str, str]) -> subprocess.Popen:
    # Not sys.stderr: a notebook or a test may have put an object there that is no file. A group of its own, so that Ctrl-C
    # comes to it from here, once.
    command = [sys.executable, "-m", "qlora_lib.arm"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=STDERR, env=environment, text=True, process_group=0)


def _tell(child: subprocess.Popen, job: Job) -> None:
    try:
        child.stdin.write(job.to_json() + "\n")
        child.stdin.flush()
    except BrokenPipeError:  # it ended at once; its exit code says more
        with suppress(BrokenPipeError):  # of what is still to be written
            child.stdin.close()


def _watch(children: list[subprocess.Popen]) -> Ended:
    """Wait for all. Where one fails, or the first is done, the others get some seconds to end as well."""
    if len(children) == 1:
        return Ended(children[0].wait(), 0)
    ended: list[Ended] = []  # in the order in which they did, without those that were ended from here
    running, killed = dict(enumerate(children)), []
    while running:
        for rank, child in list(running.items()):
            if child.poll() is not None:
                del running[rank]
                if child not in killed:
                    ended.append(Ended(child.returncode, rank))
                if child.returncode or rank == 0:
                    left = LEAVE_SECONDS if child.returncode in (130, 143) else OTHERS_SECONDS
                    killed += _end(list(running.values()), left)
        time.sleep(0.05)
    failed = [e for e in ended if e.code not in (0, LOST)]
    return failed[0] if failed else next((e for e in ended if e.code), ended[0])


def _end(children: list[subprocess.Popen], seconds: float) -> list[subprocess.Popen]:
    """Wait for these at most so long, then kill what is left, and return that."""
    until = time.monotonic() + seconds
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(timeout=max(0.0, until - time.monotonic()))
    slow = [child for child in children if child.poll() is None]
    for child in slow:
        child.kill()
    return slow
