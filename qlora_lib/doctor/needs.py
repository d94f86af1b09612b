"""What a profile needs, held against this machine: its own declaration, and the planner's prediction of each arm's step."""

import shutil
from dataclasses import dataclass

from qlora_lib import hardware
from qlora_lib.config import Profile
from qlora_lib.doctor.findings import GIB
from qlora_lib.doctor.folders import existing
from qlora_lib.errors import QloraError
from qlora_lib.paths import cache_dir


@dataclass(frozen=True)
class Need:
    """Bytes of the machine's memory, and what needs them."""

    memory: int
    by: str


def need_of(profile: Profile) -> Need:
    """The larger of what the profile asks for and, on a CPU, what its heaviest arm is predicted to take."""
    asked = Need(int(profile.needs.memory_gib * GIB), f"profile {profile.name}")
    if profile.needs.gpu_memory_gib:  # its steps are the GPU's
        return asked
    from qlora_lib.cost.cards import CPU, SYSTEM_BYTES

    arms = [(arm["gpus"][CPU]["needs_bytes"]["high"], arm["names"][0]) for arm in _planned(profile, CPU)]
    predicted, name = max(arms, default=(0, ""))
    if predicted + SYSTEM_BYTES <= asked.memory:
        return asked
    return Need(predicted + SYSTEM_BYTES, f"arm {name} of profile {profile.name}, as planned,")


def memory_advice(profile: Profile, need: Need, available: int, usable: int, limit: str, swap: int) -> list[str]:
    """`available` of `usable` bytes are free; `limit` is what keeps `usable` below the machine's."""
    if available >= need.memory:
        return []
    less = "close programs" if usable >= need.memory else f"raise the {limit}" if limit else "take a machine with more"
    slow = "; with swap it goes on, many times slower" if swap >= need.memory - available else ""
    other = " or use --profile smoke" if profile.name != "smoke" else " or set train.batch_size lower"
    return [f"Less than {need.memory / GIB:.2g} GiB of memory is free, which {need.by} needs: it may be ended by the system; {less},{other}{slow}"]


def gpu_advice(profile: Profile, device_name: str, total: int, free: int) -> list[str]:
    """Of a GPU with so many bytes: arms that the planner finds too large for it, and memory that others hold."""
    from qlora_lib.cost.cards import find_cards
    from qlora_lib.cost.plan_table import told

    said = []
    asked = profile.needs.gpu_memory_gib or 0
    try:
        (card,) = find_cards(device_name)
        arms = [(arm["names"][0], arm["gpus"][card.name]) for arm in _planned(profile, card.name)]
        for name, there in arms:
            if there["verdict"] == "does not fit":
                way = f":{told(there['advice'][0])[1:]}" if there["advice"] else ""
                said.append(f"Arm {name} of {profile.name} does not fit the {card.name}, as planned{way}")
    except (QloraError, ValueError):  # a card of no data sheet that is known here
        if total < asked * GIB:
            said.append(
                f"`{profile.name}` needs {asked:g} GiB of GPU memory, and this one has {total / GIB:.1f}: qlora plan --profile {profile.name}"
            )
    if free < min(asked * GIB, 0.8 * total):
        said.append(f"Only {free / GIB:.1f} of {total / GIB:.1f} GiB of GPU memory are free: end other programs and notebook kernels (nvidia-smi)")
    return said


def _planned(profile: Profile, card: str) -> list[dict]:
    """The arms of a profile that run and train, planned on a card; none where the model's shape is not known yet."""
    from qlora_lib.profile_plans import plan_profile

    try:
        return [arm for arm in plan_profile(profile, [card])["arms"] if arm["runs"] and arm["trains"]]
    except QloraError:
        return []


def fits_here(profile: Profile) -> tuple[bool, str]:
    """Whether a profile's heaviest arm fits this machine, and why."""
    needs, reasons = profile.needs, []
    checks = [("memory", needs.memory_gib, hardware.total_memory()), ("disk", needs.disk_gib, shutil.disk_usage(existing(cache_dir())).free)]
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
