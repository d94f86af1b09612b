"""What this machine is, which dtype suits it and why, and how fast it multiplies.

The dtype is never chosen silently: `choose_dtype` returns the reason with it, and records keep
both. The peak that MFU divides by is the data sheet's on a GPU and a measured GEMM on a CPU,
whose data sheet says nothing that a two-core share of it could reach.
"""

import logging
import os
import platform
import statistics
import subprocess
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import psutil

DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

# glibc returns large blocks to the system at once and pays page faults for them again in the next
# step; kept, a training step is a quarter faster here. Must be set before a process starts.
KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(16 * 2**30),
    "MALLOC_TOP_PAD_": str(64 * 2**20),
}


@dataclass(frozen=True)
class DType:
    name: str  # fp32, fp16 or bf16
    reason: str

    @property
    def torch(self):
        import torch

        return getattr(torch, DTYPES[self.name])


def quiet_logs() -> None:
    """Keep the stack's chatter (absent optional kernels, its own deprecations) out of the log."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def device() -> str:
    """`cuda` where PyTorch can use a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def choose_dtype(wanted: str = "auto", on: str | None = None) -> DType:
    """The dtype of activations and matrix products on this device, and why."""
    import torch

    on = on or device()
    if wanted == "fp16" and on == "cpu":
        return DType("fp32", "fp16 was asked for, and a CPU does not train in it")
    if wanted != "auto":
        return DType(wanted, "as asked for")
    if on == "cuda":
        major, minor = torch.cuda.get_device_capability()
        if major >= 8:
            return DType("bf16", f"compute capability {major}.{minor} has bfloat16 tensor cores")
        return DType("fp16", f"compute capability {major}.{minor} has no bfloat16 tensor cores")
    if torch.cpu._is_amx_tile_supported():
        return DType("bf16", "this CPU has bfloat16 matrix units (AMX)")
    if torch.cpu._is_avx512_bf16_supported():  # measured: 1.4 to 2.3 times the time of fp32
        return DType("fp32", "this CPU has AVX512-BF16 but no AMX: bf16 products are slower than fp32 there")
    return DType("fp32", "this CPU has no bfloat16 instructions: bf16 would be many times slower")


def cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_name(on: str) -> str:
    if on == "cuda":
        import torch

        return torch.cuda.get_device_name()
    return cpu_name()


def usable_cpus() -> int:
    """Physical cores that this process may run on: two threads of one core share its multipliers."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(allowed, psutil.cpu_count(logical=False) or allowed))


def threads_environment(threads: int | None, keep_freed_memory: bool) -> dict[str, str]:
    """Environment for a process that computes: thread counts and the allocator."""
    count = str(threads or usable_cpus())
    env = {"OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count, "NUMBA_NUM_THREADS": count}
    env |= {"TOKENIZERS_PARALLELISM": "false"}
    env |= {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    if keep_freed_memory and platform.libc_ver()[0] == "glibc":
        env |= KEEP_FREED_MEMORY
    return env


def total_memory() -> int:
    """Bytes that this process may use: the machine's, or its container's when that is less."""
    total = psutil.virtual_memory().total
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(name).read_text()))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return total


def gemm_peak(dtype, size: int = 1536, seconds: float = 0.8) -> float:
    """FLOP/s of square matrix products on the CPU: the median of repeats, [size, size] each."""
    import torch

    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until or len(times) < 3:
        start = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - start)
    return 2 * size**3 / statistics.median(times)


def peak_flops(dtype: DType, on: str) -> tuple[float | None, str]:
    """(FLOP/s that MFU divides by, which peak that is); None for a GPU with no known data sheet."""
    if on == "cpu":
        return gemm_peak(dtype.torch), f"measured {dtype.name} matrix product, {cpu_name()}"
    from qlora_lib.cost.devices import find_gpu

    gpu = find_gpu(device_name(on))
    if gpu is None:
        return None, f"no data sheet figure for {device_name(on)}"
    return gpu.peak(dtype.name), gpu.peak_label(dtype.name)


def platform_name() -> str:
    return f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Versions of the packages that the numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "numpy", "qlora_lib"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The checkout's commit, marked when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent
    run = lambda *a: subprocess.run(["git", "-C", str(here), *a], capture_output=True, text=True, timeout=20)  # noqa: E731
    try:
        commit = run("rev-parse", "HEAD")
        if commit.returncode:
            return None
        changed = run("status", "--porcelain", "--", str(here)).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return None
    return commit.stdout.strip() + (" with changes" if changed else "")
