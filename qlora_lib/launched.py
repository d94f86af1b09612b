"""`qlora train` where torchrun or `accelerate launch` has started it several times: one claims the folder, all train.

How it works: each process starts itself anew with the environment that an arm's process has (the allocator and the number of
threads must stand there before it starts; its place among the others stays), then meets the others once. The first does what
`study.run_arm` does, and where that would start processes for a job, it sends the job to the others and runs its part of it. The
others run what they are sent, until they are told the exit code to end with.
"""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from qlora_lib import hardware, processes, study
from qlora_lib.claimed import HOLDER_NAME
from qlora_lib.config import ArmEntry, Profile
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.job import Job

KEY = "runtime.processes"
AGAIN = "QLORA_STARTED_AGAIN"


def run_arm(profile: Profile, arm: ArmEntry, out: Path, overrides: dict[str, Any], force: bool = False) -> study.ArmResult:
    """`study.run_arm` on the processes of the launcher. Returns in the first alone; the others end here."""
    launch = processes.launched()
    overrides = overrides | {KEY: launch.world}
    settings = profile.settings(arm, overrides)
    _start_again(hardware.threads_environment(
        settings.runtime.threads or max(1, hardware.usable_cpus() // launch.local_world), settings.runtime.keep_freed_memory
    ))  # fmt: skip
    hardware.quiet_logs()
    processes.leave_with_parent()
    together = processes.join(hardware.device())
    processes.check_number(launch.world, together.world)
    try:
        return _Lead(together).run(profile, arm, out, overrides, force) if together.leads else sys.exit(_follow(together))
    except BaseException:  # the launcher ends those that are left, and they are about to end
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise


def as_launched(profile: Profile, arm: ArmEntry, overrides: dict[str, Any]) -> dict[str, Any]:
    """The overrides, for checking settings: with the launcher's number of processes.

    Raises UsageError where another number is asked for.
    """
    processes.check_launcher()
    launch = processes.launched()
    if launch is None:
        return overrides
    asked = overrides.get(KEY, arm.set.get(KEY, profile.runtime.processes))
    if asked != launch.world and (KEY in overrides or asked != 1):
        raise UsageError(
            f"{KEY} is {asked}, and the launcher has started {launch.world}", f"Leave {KEY} out, or give the launcher that number"
        )
    return overrides | {KEY: launch.world}


def _start_again(wanted: dict[str, str]) -> None:
    """This command in another environment, as the same process; returns only where that has been done."""
    if os.environ.get(AGAIN) or not hasattr(os, "fork"):  # Windows: it would be another process
        return
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], os.environ | wanted | {AGAIN: "1"})


class _Lead:
    """The first process: it decides what is run, and tells the others."""

    def __init__(self, together: processes.Together) -> None:
        self.together, self.heard = together, True  # whether the others are listening, and not within a job

    def run(self, profile: Profile, arm: ArmEntry, out: Path, overrides: dict[str, Any], force: bool) -> study.ArmResult:
        code = 1
        try:
            result = study.run_arm(profile, arm, out, overrides, force, spawn=self.spawn)
            code = 0
            return result
        except QloraError as e:
            code = e.exit_code
            raise
        finally:
            if self.heard:
                with suppress(Exception):  # they may be gone
                    self.together.from_first(lambda: code)

    def spawn(self, job: Job) -> None:
        """In place of `study._spawn`: what is trained, all run together; the rest runs as it always does."""
        if job.processes == 1:
            return study._spawn(job)
        self.together.from_first(job.to_json)
        self.heard = False
        if not all(self.together.gather(True)):
            self.heard = True
            raise QloraError(f"not every process sees {job.out}", "Give a folder that all machines share, with --out")
        from qlora_lib import arm

        code = arm.perform(job)
        self.heard = not code
        study.raise_for(job, code)


def _follow(together: processes.Together) -> int:
    """Run what the first process sends, until it sends the exit code. Raises what `study.raise_for` does."""
    while isinstance(sent := together.from_first(lambda: None), str):
        job = Job.from_json(sent)
        sees = (job.out / HOLDER_NAME).is_file()  # the first has written it
        if all(together.gather(sees)):
            from qlora_lib import arm

            study.raise_for(job, arm.perform(job))
    return sent
