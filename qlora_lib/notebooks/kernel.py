"""The kernel that executes the notebooks: the running interpreter, whatever kernels are installed.

How it works: one process executes all notebooks of a call, because starting one and importing the stack
takes longer than many a lesson. Before each notebook its names are forgotten, its counter goes back to
1, and the memory that is free goes back to the system, so that a peak is the notebook's own. A kernel
that died is replaced by a new one. What kernels write on their own standard error, past what their cells show, goes to a
file: Python's fault handler writes there what ran when a kernel crashed.
"""

import os
import signal
import tempfile
from pathlib import Path

import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from jupyter_core.utils import run_sync
from traitlets import default

from qlora_lib.errors import QloraError

MOST = 1 << 16  # bytes of a dead kernel's last words
RESET = """
get_ipython().reset()
import ctypes, gc, os
os.chdir({folder!r})
gc.collect()
try:
    ctypes.CDLL(None).malloc_trim(0)
except (OSError, AttributeError):
    pass  # not glibc
del ctypes, gc, os
"""


class ThisPython(AsyncKernelManager):
    """Starts the ipykernel of `sys.executable`."""

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())  # of this interpreter: sys.executable

    @default("transport_encryption")
    def _encrypt_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"  # else the kernel warns on every start


class SharedKernel:
    """A context in which notebooks are executed one after another by one process."""

    def __enter__(self) -> "SharedKernel":
        self.manager = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with this context
        return self

    def __exit__(self, *exc) -> None:
        self._end()
        self._errors.close()

    def fresh(self, folder: Path) -> ThisPython:
        """The manager of a running kernel in which nothing is defined, its working directory `folder`."""
        self._seen = os.fstat(self._errors.fileno()).st_size  # never sought in: kernels write where they last were
        if self.manager is None or not run_sync(self.manager.is_alive)():
            self._end()
            self.manager = ThisPython(kernel_name="python3")
            run_sync(self.manager.start_kernel)(
                cwd=str(folder), stderr=self._errors, env={**os.environ, "PYTHONFAULTHANDLER": "1"}
            )
        else:
            self._run(RESET.format(folder=str(folder)))
        try:
            Path(f"/proc/{self.manager.provisioner.pid}/clear_refs").write_text("5")  # Linux: the peak starts anew
        except OSError:
            pass
        return self.manager

    def peak_resident_bytes(self) -> int | None:
        """Highest resident set since `fresh`, in bytes; None where /proc is not there."""
        return peak_resident_bytes(self.manager.provisioner.pid)

    def how_it_died(self) -> tuple[str, str]:
        """(how the process ended, what it wrote on its own standard error) of a kernel that is no more."""
        process = getattr(self.manager.provisioner, "process", None) if self.manager else None
        code = process.poll() if process else None
        if code is None:
            how = "it does not answer any more"
        elif code == -signal.SIGKILL:
            how = "the system ended it (SIGKILL), most likely for want of memory"
        elif code < 0:
            how = f"{signal.Signals(-code).name} ended it"
        else:
            how = f"it left with exit code {code}"
        return how, os.pread(self._errors.fileno(), MOST, self._seen).decode("utf-8", "replace")

    def _run(self, code: str) -> None:
        client = self.manager.client()
        client.start_channels()
        try:
            run_sync(client.wait_for_ready)(timeout=60)
            reply = run_sync(client.execute_interactive)(
                code, store_history=False, output_hook=lambda message: None, timeout=60
            )
            if reply["content"]["status"] != "ok":
                raise QloraError(f"the kernel could not be made fresh: {reply['content'].get('evalue')}")
        finally:
            client.stop_channels()

    def _end(self) -> None:
        if self.manager is not None and self.manager.has_kernel:
            run_sync(self.manager.shutdown_kernel)(now=True)
        self.manager = None


def peak_resident_bytes(pid: int | str = "self") -> int | None:
    """Highest resident set of a process since it began, in bytes; None where /proc is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), None)
