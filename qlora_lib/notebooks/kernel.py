"""The kernel that executes the notebooks: the running interpreter, whatever kernels are installed."""

from pathlib import Path

import zmq
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from traitlets import default


class ThisPython(AsyncKernelManager):
    """Starts the ipykernel of `sys.executable`, and notes the kernel's peak memory at its end."""

    peak_resident_bytes: int | None = None  # of the last kernel; None where /proc is not there

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(**get_kernel_dict())  # of this interpreter: sys.executable

    @default("transport_encryption")
    def _encrypt_where_possible(self) -> str:
        return "auto" if zmq.has("curve") else "disabled"  # else the kernel warns on every start

    async def _async_request_shutdown(self, restart: bool = False) -> None:
        ThisPython.peak_resident_bytes = peak_resident_bytes(self.provisioner.pid)
        await super()._async_request_shutdown(restart)

    request_shutdown = _async_request_shutdown


def peak_resident_bytes(pid: int | str = "self") -> int | None:
    """Highest resident set of a process since it began, in bytes; None where /proc is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(x.split()[1]) * 1024 for x in lines if x.startswith("VmHWM")), None)
