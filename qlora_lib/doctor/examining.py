"""Look at everything, against the needs of one profile; nothing is downloaded and nothing is changed."""

import os
import tempfile
from pathlib import Path

from qlora_lib import hardware
from qlora_lib.config import Profile, load_profile
from qlora_lib.doctor import folders, kept, needs, stack
from qlora_lib.doctor.findings import Findings
from qlora_lib.doctor.memory import memory
from qlora_lib.paths import cache_dir, results_dir


def examine(profile: str = "demo", deep: bool = False) -> Findings:
    """Device, memory, disks, cache, results, stack and settings.

    Args:
        profile: a profile's name or file, whose needs the machine is held against.
        deep: also hash the files of the cache, of checkpoints and of records, some seconds a GiB.

    Raises UsageError for an unknown profile.
    """
    import torch

    from qlora_lib.assets import is_cached, registered_data, registered_models

    hardware.quiet_logs()
    wanted = load_profile(profile)
    on = hardware.device()
    dtype = hardware.choose_dtype("auto", on)
    cache, results, temporary = _folders()
    found_in_cache, found_in_results = kept.in_cache(cache.path, deep), kept.in_results(results.path, deep)  # before anything is noted anew
    names = [spec.name for spec in (*registered_models(), *registered_data())]
    cached = [name for name in names if is_cached(name)]
    about, stack_advice = stack.about_bitsandbytes(on)
    now, need = memory(), needs.need_of(wanted)
    usable = min(now.usable, hardware.total_memory())
    found = Findings(
        device=on,
        device_name=hardware.device_name(on),
        dtype=dtype.name,
        dtype_reason=dtype.reason,
        cpu=hardware.cpu_name(),
        cpu_threads=hardware.usable_cpus(),
        memory_bytes=usable,
        memory_available_bytes=min(now.available, usable),
        gpu_memory_bytes=torch.cuda.get_device_properties(0).total_memory if on == "cuda" else None,
        disk_free_bytes=cache.free_bytes,
        cache_folder=str(cache.path),
        cache_bytes=folders.folder_bytes(cache.path),
        cached_assets=cached,
        bitsandbytes=about,
        versions=hardware.versions(),
        platform=hardware.platform_name(),
        hub="offline by HF_HUB_OFFLINE" if "HF_HUB_OFFLINE" in stack.network_settings(os.environ) else "used for hub models only",
        profile=wanted.name,
        needed_memory_bytes=need.memory,
        needed_by=need.by,
        machine_memory_bytes=now.machine,
        memory_limit=now.limit,
        swap_bytes=now.swap,
        gpu_memory_free_bytes=torch.cuda.mem_get_info()[0] if on == "cuda" else None,
        results_folder=str(results.path),
        results_disk_free_bytes=results.free_bytes,
        temporary_folder=str(temporary.path),
        temporary_disk_free_bytes=temporary.free_bytes,
        damaged_cache=found_in_cache.damaged,
        interrupted_fetches=found_in_cache.interrupted,
        damaged_results=found_in_results.damaged,
        interrupted_runs=found_in_results.interrupted,
        held_folders=found_in_results.held,
        hashed=deep,
        outside_ranges=stack.outside(stack.ranges()),
        network_settings=stack.network_settings(os.environ),
    )
    missing = [name for name in wanted.assets() if name in names and name not in cached]
    found.advice = [
        *_machine_advice(found, wanted),
        *folders.advice([cache, results, temporary], _room(wanted)),
        *kept.advice(found_in_cache, found_in_results),
        *(f"Package {text}: pip install -c constraints.txt -e ." for text in found.outside_ranges),
        *stack_advice,
        *stack.threads_advice(os.environ, found.cpu_threads, stack.cpu_quota()),
        *stack.network_advice(found.network_settings, missing),
        *stack.surroundings_advice([cache.path, results.path]),
    ]
    return found


def _folders() -> tuple[folders.Folder, folders.Folder, folders.Folder]:
    return (
        folders.look_at("the cache", cache_dir(), "QLORA_CACHE"),
        folders.look_at("results", results_dir("demo").parent, "QLORA_RESULTS"),
        folders.look_at("temporary files", _temporary(), "TMPDIR"),
    )


def _temporary() -> Path:
    """Where temporary files go, or would go if it could be written."""
    try:
        return Path(tempfile.gettempdir())
    except OSError:  # none of the usual places can be written
        return Path(os.environ.get("TMPDIR", "/tmp"))


def _room(profile: Profile) -> dict[str, float]:
    """GiB that each kind of folder should have free."""
    return {"the cache": profile.needs.disk_gib, "results": profile.needs.disk_gib, "temporary files": folders.TEMPORARY_GIB}


def _machine_advice(found: Findings, profile: Profile) -> list[str]:
    need = needs.Need(found.needed_memory_bytes, found.needed_by)
    said = needs.memory_advice(profile, need, found.memory_available_bytes, found.memory_bytes, found.memory_limit, found.swap_bytes)
    if found.device == "cuda":
        if profile.needs.gpu_memory_gib:
            said += needs.gpu_advice(profile, found.device_name, found.gpu_memory_bytes, found.gpu_memory_free_bytes)
    elif profile.needs.gpu_memory_gib:
        said.append(f"`{profile.name}` needs a CUDA GPU with {profile.needs.gpu_memory_gib:g} GiB, and PyTorch finds none here")
    else:
        said.append("No CUDA GPU: `demo` and `smoke` are made for this; the other profiles need a GPU")
    return said
