"""Ctrl-C, SIGTERM or the end of the parent: a training ends its step, writes a checkpoint and leaves.

How it works: `Leaving` notes the first signal, and whoever trains asks it between two steps. A second signal ends the process at
once. A process whose parent must not outlive it holds the read end of a pipe: when the parent is gone, however it went, the
pipe ends, and the process sends itself SIGTERM.
"""

import os
import signal
import sys
import threading
from typing import IO

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Left(KeyboardInterrupt):
    """Training was asked to end, and has; `step` is that of the checkpoint it left."""

    def __init__(self, number: int, step: int):
        super().__init__(f"left after step {step}, asked by {signal.Signals(number).name}")
        self.exit_code, self.step = 128 + number, step


class Leaving:
    """A context in which the first SIGINT or SIGTERM is noted in `asked`, and the second ends the process.

    Outside of the main thread, where no handler can be set, nothing is noted. Of several processes one says so.
    """

    asked: int | None = None  # the signal's number

    def __init__(self, says: bool = True):
        self.says = says

    def __enter__(self) -> "Leaving":
        self._before = {}
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame) -> None:
        if self.asked is not None:
            self.__exit__()
            raise KeyboardInterrupt
        self.asked = number
        if self.says:
            print("  ending this step and writing a checkpoint; once more: leave at once", file=sys.stderr, flush=True)


def leave_with(pipe: IO) -> None:
    """Send this process SIGTERM when `pipe`, whose other end the parent holds, comes to its end."""

    def wait() -> None:
        while pipe.read(1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="leave with the parent", daemon=True).start()
