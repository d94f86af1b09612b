"""What this machine can do for QLoRA, before anything is run: `qlora doctor`.

How it works: each check gives a value and, where something needs doing, one line of advice. Nothing
is downloaded and nothing is changed.
"""

import importlib.util
import os
import platform
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.config import Profile
from qlora_lib.paths import cache_dir, results_dir

GIB = 2**30


@dataclass
class Findings:
    device: str
    device_name: str
    dtype: str
    dtype_reason: str
    cpu: str
    cpu_threads: int
    memory_bytes: int
    memory_available_bytes: int
    gpu_memory_bytes: int | None
    disk_free_bytes: int
    cache_folder: str
    cache_bytes: int
    cached_assets: list[str]
    bitsandbytes: dict[str, str]
    versions: dict[str, str]
    platform: str
    hub: str
    advice: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def to_text(self) -> str:
        rows = [
            ("device", f"{self.device} ({self.device_name})"),
            ("dtype", f"{self.dtype}: {self.dtype_reason}"),
            ("threads", str(self.cpu_threads)),
            ("memory", f"{self.memory_available_bytes / GIB:.1f} of {self.memory_bytes / GIB:.1f} GiB free"),
        ]
        if self.gpu_memory_bytes:
            rows.append(("GPU memory", f"{self.gpu_memory_bytes / GIB:.1f} GiB"))
        rows += [
            ("disk", f"{self.disk_free_bytes / GIB:.1f} GiB free"),
            ("cache", f"{self.cache_folder} ({self.cache_bytes / GIB:.2f} GiB; {', '.join(self.cached_assets) or 'empty'})"),
            *((f"4-bit {k}" if k in ("layers",) else k, v) for k, v in self.bitsandbytes.items()),
            ("hub", self.hub),
            ("platform", self.platform),
            ("versions", ", ".join(f"{k} {v}" for k, v in self.versions.items())),
        ]
        width = max(len(k) for k, _ in rows)
        lines = [f"{k:<{width}}  {v}" for k, v in rows]
        lines += ["", *(f"! {a}" for a in self.advice)] if self.advice else ["", "Nothing stands in the way."]
        return "\n".join(lines)


def examine() -> Findings:
    """Look at the device, memory, disk, cache, stack and hub settings."""
    import psutil
    import torch

    from qlora_lib.assets import is_cached, registered_data, registered_models

    hardware.quiet_logs()
    on = hardware.device()
    dtype = hardware.choose_dtype("auto", on)
    cache = cache_dir()
    memory = psutil.virtual_memory()
    names = [spec.name for spec in (*registered_models(), *registered_data())]
    found = Findings(
        device=on,
        device_name=hardware.device_name(on),
        dtype=dtype.name,
        dtype_reason=dtype.reason,
        cpu=hardware.cpu_name(),
        cpu_threads=hardware.usable_cpus(),
        memory_bytes=hardware.total_memory(),
        memory_available_bytes=min(memory.available, hardware.total_memory()),
        gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory if on == "cuda" else None,
        disk_free_bytes=shutil.disk_usage(_existing(cache)).free,
        cache_folder=str(cache),
        cache_bytes=_folder_bytes(cache),
        cached_assets=[name for name in names if is_cached(name)],
        bitsandbytes=_bitsandbytes(on),
        versions=hardware.versions(),
        platform=hardware.platform_name(),
        hub="offline by HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE") else "used for hub models only",
    )
    found.advice = _advice(found)
    return found


def _bitsandbytes(on: str) -> dict[str, str]:
    """What the 4-bit library can do on this device, in words."""
    import torch

    from qlora_lib.models import import_bitsandbytes

    about = {"bitsandbytes": f"{import_bitsandbytes().__version__} on {on}"}
    about["layers"] = "NF4, FP4 and int8 layers, forward and backward"
    if on == "cuda":
        about["paged optimizers"] = "yes: states move to host memory when the GPU is full"
    else:
        about["paged optimizers"] = "no GPU to page from: the unpaged twin runs, and records say so"
        if torch.cpu._is_avx512_bf16_supported():
            about["repacking"] = (
                "this CPU has AVX512-BF16: bitsandbytes would repack 4-bit weights in an evaluation; "
                "qlora_lib switches that off, since gradients after it are at risk"
            )
    return about


def _advice(found: Findings) -> list[str]:
    advice = []
    if found.memory_available_bytes < 6 * GIB:
        advice.append("Less than 6 GiB of memory is free: `demo` may be ended by the system; close programs, or use --profile smoke")
    if found.disk_free_bytes < 5 * GIB:
        advice.append(f"Less than 5 GiB of disk is free at {found.cache_folder}: free some, or set QLORA_CACHE to another disk")
    if not _writable(Path(found.cache_folder)):
        advice.append(f"{found.cache_folder} cannot be written: set QLORA_CACHE to a folder of yours")
    results = results_dir("demo").parent
    if not _writable(results):
        advice.append(f"{results} cannot be written: results go there; set QLORA_RESULTS to a folder of yours")
    if importlib.util.find_spec("pip") is None:
        advice.append("pip is missing in this environment, and it fetches the default model: python -m ensurepip")
    if platform.system() == "Windows":
        advice.append("Native Windows is not supported: use WSL2, see docs/INSTALL.md")
    if found.device == "cpu":
        advice.append("No CUDA GPU: `demo` and `smoke` are made for this; the other profiles need a GPU")
    return advice


def _existing(path: Path) -> Path:
    """`path`, or the nearest above it that exists."""
    path = Path(path).absolute()
    while not path.exists():
        path = path.parent
    return path


def _writable(path: Path) -> bool:
    """Whether the folder is there, or can be made, and takes files."""
    existing = _existing(path)
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def _folder_bytes(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.lstat().st_size if path.is_file() and not path.is_symlink() else 0
        except OSError:  # another process has just removed it
            continue
    return total


def fits_here(profile: Profile) -> tuple[bool, str]:
    """Whether a profile's heaviest arm fits this machine, and why."""
    needs, reasons = profile.needs, []
    checks = [("memory", needs.memory_gib, hardware.total_memory()), ("disk", needs.disk_gib, shutil.disk_usage(_existing(cache_dir())).free)]
    if needs.gpu_memory_gib:
        checks.insert(0, ("GPU memory", needs.gpu_memory_gib, gpu_memory()))
    fits = True
    for what, wanted, have in checks:
        fits &= have is not None and have >= wanted * GIB
        reasons.append(f"{what}: {wanted:g} GiB of {have / GIB:.1f}" if have is not None else "no CUDA GPU")
    return fits, "; ".join(reasons)


def gpu_memory() -> int | None:
    """Bytes of the first NVIDIA GPU, asked of the driver's own tool: no torch is loaded for it."""
    import subprocess

    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True, text=True, timeout=10,
        )  # fmt: skip
        return int(out.stdout.split()[0]) * 2**20
    except (OSError, subprocess.TimeoutExpired, ValueError, IndexError):
        return None
