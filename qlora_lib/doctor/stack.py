"""The installed packages against the ranges that are asked for, bitsandbytes' native library, threads, and the network's settings."""

import importlib.util
import os
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PIP_NO_INDEX")
PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
MIRRORS = ("HF_ENDPOINT", "PIP_INDEX_URL")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
ON = ("1", "ON", "YES", "TRUE")
SLOW_DISKS = ("/mnt/c/", "/mnt/d/")  # Windows' own, seen from WSL


def ranges() -> list[str]:
    """Requirements such as "torch>=2.6": the checkout's, else those of the installed package."""
    import tomllib

    checkout = Path(__file__).resolve().parents[2] / "pyproject.toml"
    try:
        return tomllib.loads(checkout.read_text(encoding="utf-8"))["project"]["dependencies"]
    except (OSError, ValueError, KeyError):
        pass
    try:
        return [text for text in metadata.requires("qlora_lib") or [] if "extra ==" not in text]
    except metadata.PackageNotFoundError:
        return []


def outside(requirements: list[str]) -> list[str]:
    """Those that the installed packages do not meet, such as "peft 0.15.0, and >=0.19 is needed"."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, requirements):
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "is missing"
        if version == "is missing" or not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version}, and {requirement.specifier} is needed")
    return found


def about_bitsandbytes(on: str) -> tuple[dict[str, str], list[str]]:
    """(What the 4-bit library can do on this device, in words; advice)."""
    import torch

    from qlora_lib.models import import_bitsandbytes

    about = {"bitsandbytes": f"{import_bitsandbytes().__version__} on {on}"}
    about["layers"] = "NF4, FP4 and int8 layers, forward and backward"
    about["native library"], advice = _native_library(on)
    if on == "cuda":
        about["paged optimizers"] = "yes: states move to host memory when the GPU is full"
    else:
        about["paged optimizers"] = "no GPU to page from: the unpaged twin runs, and records say so"
        if torch.cpu._is_avx512_bf16_supported():
            about["repacking"] = (
                "this CPU has AVX512-BF16: bitsandbytes would repack 4-bit weights in an evaluation; "
                "qlora_lib switches that off, since gradients after it are at risk"
            )
    return about, advice


def _native_library(on: str) -> tuple[str, list[str]]:
    """(Its file, or that there is none; advice)."""
    from bitsandbytes.cextension import lib

    again = "install bitsandbytes again (pip install --force-reinstall --no-deps bitsandbytes)"
    if "ErrorHandler" in type(lib).__name__:
        if on == "cuda":
            why = " (BNB_CUDA_VERSION is set: unset it)" if "BNB_CUDA_VERSION" in os.environ else ""
            return "none that loads", [
                f"bitsandbytes has no native library for this CUDA{why}: 4-bit layers will fail; python -m bitsandbytes says why; {again}"
            ]
        return "none that loads: PyTorch's own operations take its place", [
            f"bitsandbytes' native library does not load: 4-bit layers fall back to PyTorch's operations, which are much slower; {again}"
        ]
    name = Path(getattr(getattr(lib, "_lib", None), "_name", "") or "loaded").name
    if on == "cuda" and not getattr(lib, "compiled_with_cuda", True):
        return name, [f"bitsandbytes has loaded {name}, which has no CUDA: {again}"]
    return name, []


def threads_advice(environment: Mapping[str, str], cores: int, quota: float | None) -> list[str]:
    """`cores` that this process may run on; `quota` of them that its control group gives it time on."""
    said = []
    for name in THREADS:
        value = environment.get(name, "").split(",")[0]
        if value.isdigit() and int(value) > cores:
            said.append(f"{name} is {value} and there are {cores} cores: more threads than cores are slower; unset it")
    if quota is not None and quota < cores:
        given = max(1, int(quota))
        said.append(
            f"The container gives this process the time of {quota:g} of its {cores} cores: --set runtime.threads={given}, and OMP_NUM_THREADS={given}"
        )
    return said


def cpu_quota(root: Path = Path("/")) -> float | None:
    """Cores whose time the container gets; None: all."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            text = " ".join((root / "sys/fs/cgroup" / name).read_text() for name in names)
            quota, period = map(int, text.split())
        except (OSError, ValueError):  # no such file, or "max"
            continue
        if quota > 0 and period > 0:
            return quota / period
    return None


def network_settings(environment: Mapping[str, str]) -> list[str]:
    """Names of the variables that bear on fetching. Values stay out: a proxy's may hold a password."""
    found = [name for name in OFFLINE if environment.get(name, "").upper() in ON]
    found += [name for name in PROXIES if environment.get(name) or environment.get(name.lower())]
    return found + [name for name in MIRRORS if environment.get(name)]


def network_advice(settings: list[str], missing: list[str]) -> list[str]:
    """`missing`: what the profile needs and is not here yet."""
    if not missing or not settings:
        return []
    what = f"{', '.join(missing[:3])}{' and more' if len(missing) > 3 else ''} must be fetched"
    said = [f"{name} is set, and {what}: unset it, or bring the cache from another machine" for name in settings if name in OFFLINE]
    through = [name for name in settings if name not in OFFLINE]
    return said + ([f"{', '.join(through)} set: {what} through there; unset what is not reachable"] if through else [])


def surroundings_advice(folders: list[Path]) -> list[str]:
    said = []
    if importlib.util.find_spec("pip") is None:
        said.append("pip is missing in this environment, and it fetches the default model: python -m ensurepip")
    if platform.system() == "Windows":
        said.append("Native Windows is not supported: use WSL2, see docs/INSTALL.md")
    if slow := [str(f) for f in folders if str(f).startswith(SLOW_DISKS) and "microsoft" in platform.release().lower()]:
        said.append(f"{slow[0]} is on Windows' disk, many times slower from WSL2: keep it in the Linux file system")
    return said
