"""Where a plan may run: the GPUs of the data-sheet table, and this machine's CPU.

How it works: a `Card` is what a plan asks of either: memory that can be used, the peak of matrix products in a dtype, and
the bandwidth of memory, each with words that say where the figure comes from. A GPU's are its data sheet's. A CPU's
are measured where `qlora plan --calibrate` has been run on this machine; where not, its peak is stated as cores x clock
x operations a cycle, what a data sheet would print, and its bandwidth is not known.
"""

import platform
import re
from dataclasses import dataclass
from functools import cache

from qlora_lib.cost.calibrated import Calibration, read_calibration
from qlora_lib.cost.devices import GIB, GPUS, find_gpu
from qlora_lib.errors import UsageError, nearest

CPU = "cpu"
# About the least that torch is seen to name as a card's "total capacity", in the out-of-memory messages of public issue
# reports: the driver and ECC keep the rest. No data sheet prints it.
USABLE_GIB = {
    "T4": 14.56, "RTX 3070": 7.76, "RTX 3090": 23.68, "RTX 4090": 23.63, "L4": 21.95,
    "A100 40GB": 39.38, "A100 80GB": 79.14, "H100 SXM": 79.1,
}  # fmt: skip
SYSTEM_BYTES = 2 * GIB  # that the system and Python with its libraries are taken to need of a machine's memory
# fp32 operations of a core and cycle: two units of fused multiply-add, as wide as the registers
PER_CYCLE = {"AVX-512": 64, "AVX2": 32, "NEON": 16}


@dataclass(frozen=True)
class Card:
    name: str
    device: str  # cuda or cpu
    dtype: str  # in which it trains unless told otherwise
    memory_bytes: int  # nominal
    usable_bytes: int
    usable_words: str
    peaks: dict[str, tuple[float, str]]  # dtype -> (FLOP/s, which peak that is)
    bandwidth: float | None  # bytes a second
    bandwidth_words: str
    calibration: Calibration | None = None

    def __hash__(self) -> int:
        return hash((self.name, self.usable_bytes))


def gpu_card(name: str) -> Card:
    gpu = GPUS[name]
    dtypes = [d for d in ("fp32", "fp16", "bf16") if getattr(gpu, d)]
    return Card(
        name=name,
        device="cuda",
        dtype="bf16" if gpu.bf16 else "fp16",
        memory_bytes=gpu.memory_bytes,
        usable_bytes=int(USABLE_GIB[name] * GIB),
        usable_words="as torch counts this card's memory",
        peaks={d: (gpu.peak(d), gpu.peak_label(d)) for d in dtypes},
        bandwidth=gpu.bandwidth,
        bandwidth_words=f"{gpu.bandwidth / 1e9:g} GB/s ({gpu.source})",
    )


def this_cpu() -> Card:
    """This machine without a GPU. Its memory is the machine's, or its container's."""
    from qlora_lib import hardware  # psutil and nothing heavier

    total, calibration = hardware.total_memory(), read_calibration()
    if calibration:
        peak = calibration.gemm_flops_per_second
        peaks = {"fp32": (peak, f"measured here: fp32 matrix product, {peak / 1e9:.0f} GFLOP/s, {calibration.machine.cpu}")}
        bandwidth = calibration.bytes_per_second
        words = f"memory measured here: {bandwidth / 1e9:.1f} GB/s"
    else:
        stated = stated_peak(hardware.cpu_name(), hardware.usable_cpus())
        peaks = {"fp32": stated} if stated else {}
        bandwidth, words = None, "memory bandwidth not known: --calibrate measures it"
    usable = max(total - SYSTEM_BYTES, 0)
    return Card(
        CPU, "cpu", "fp32", total, usable, f"{total / GIB:.1f} GiB less {SYSTEM_BYTES / GIB:g} for the system and Python",
        peaks, bandwidth, words, calibration,
    )  # fmt: skip


def stated_peak(name: str, cores: int) -> tuple[float, str] | None:
    """(fp32 FLOP/s, its derivation) of so many cores of this CPU; None where its clock or its registers are not known."""
    import psutil

    flags, clock = "", None
    try:
        with open("/proc/cpuinfo") as file:
            text = file.read()
        flags = " ".join(re.findall(r"^flags\s*:(.*)$", text, re.MULTILINE)[:1])
        clocks = [float(mhz) for mhz in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", text, re.MULTILINE)]
        clock = max(clocks, default=None)
    except (OSError, ValueError):
        pass
    try:
        found = psutil.cpu_freq()
        clock = max(clock or 0, found.max or found.current or 0) or None if found else clock
    except (OSError, AttributeError, NotImplementedError, RuntimeError):
        pass
    if "avx512f" in flags.split():
        kind = "AVX-512"
    elif "avx2" in flags.split():
        kind = "AVX2"
    elif platform.machine().lower() in ("arm64", "aarch64"):
        kind = "NEON"
    else:
        return None
    if not clock:
        return None
    flops = cores * clock * 1e6 * PER_CYCLE[kind]
    derivation = f"{cores} cores x {clock / 1000:.2f} GHz x {PER_CYCLE[kind]} FLOP a cycle ({kind})"
    return flops, f"stated, not measured: fp32, {derivation} = {flops / 1e9:.0f} GFLOP/s, {name}"


def every_card() -> tuple[Card, ...]:
    """The GPUs of the table, in its order, and this CPU."""
    return (*(_gpu_card(name) for name in GPUS), this_cpu())


def find_cards(name: str) -> tuple[Card, ...]:
    """The cards that a name means: "T4", "RTX 4090", "4090", "A100" (both), torch's name of a device, or "cpu".

    Raises UsageError, with the nearest name, for one that is not in the table.
    """
    wanted = _plain(name)
    if wanted == CPU:
        return (this_cpu(),)
    if gpu := find_gpu(name):
        return (_gpu_card(gpu.name),)
    bare = re.sub(r"^(nvidia|tesla|geforce)+", "", wanted)
    found = [known for known in GPUS if bare and bare in (_plain(known), *_parts(known))]
    if not found:
        raise UsageError(f"unknown GPU '{name}'", nearest(name.upper(), (*GPUS, CPU)))
    return tuple(_gpu_card(known) for known in found)


def cards_named_in(text: str) -> tuple[Card, ...]:
    """The cards whose names stand in a text, such as a profile's `hardware`."""
    return tuple(_gpu_card(name) for name in GPUS if re.search(rf"\b{re.escape(name)}\b", text))


_gpu_card = cache(gpu_card)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _parts(name: str) -> list[str]:
    """Shorter names of a card: "RTX 4090" is also 4090, "A100 40GB" and "H100 SXM" also A100 and H100."""
    first, *rest = name.lower().split()
    return [*rest] if first == "rtx" else [first]


