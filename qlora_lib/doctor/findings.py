"""What `qlora doctor` found, as fields for JSON and as lines for a reader."""

from dataclasses import asdict, dataclass, field

GIB = 2**30


@dataclass
class Findings:
    """All sizes in bytes. `advice` is one line for each thing that needs doing or knowing."""

    device: str
    device_name: str
    dtype: str
    dtype_reason: str
    cpu: str
    cpu_threads: int
    memory_bytes: int  # that this process may use
    memory_available_bytes: int
    gpu_memory_bytes: int | None
    disk_free_bytes: int  # where the cache is
    cache_folder: str
    cache_bytes: int
    cached_assets: list[str]
    bitsandbytes: dict[str, str]
    versions: dict[str, str]
    platform: str
    hub: str
    profile: str = "demo"  # against whose needs the machine was held
    needed_memory_bytes: int = 0
    needed_by: str = ""  # what needs that much
    machine_memory_bytes: int = 0
    memory_limit: str = ""  # what lets this process use less than the machine has; empty: nothing
    swap_bytes: int = 0
    gpu_memory_free_bytes: int | None = None
    results_folder: str = ""
    results_disk_free_bytes: int = 0
    temporary_folder: str = ""
    temporary_disk_free_bytes: int = 0
    damaged_cache: list[str] = field(default_factory=list)
    interrupted_fetches: list[str] = field(default_factory=list)
    damaged_results: list[str] = field(default_factory=list)  # records and checkpoints
    interrupted_runs: list[str] = field(default_factory=list)
    held_folders: list[str] = field(default_factory=list)
    hashed: bool = False  # by --deep: files were compared by their content, not by their size alone
    outside_ranges: list[str] = field(default_factory=list)
    network_settings: list[str] = field(default_factory=list)  # names of variables, never their values
    advice: list[str] = field(default_factory=list)

    def to_dict(self) -> dict:
        return asdict(self)

    def to_text(self) -> str:
        rows = [
            ("device", f"{self.device} ({self.device_name})"),
            ("dtype", f"{self.dtype}: {self.dtype_reason}"),
            ("threads", str(self.cpu_threads)),
            ("memory", self._memory()),
        ]
        if self.gpu_memory_bytes:
            free = f"{self.gpu_memory_free_bytes / GIB:.1f} of " if self.gpu_memory_free_bytes is not None else ""
            rows.append(("GPU memory", f"{free}{self.gpu_memory_bytes / GIB:.1f} GiB{' free' if free else ''}"))
        rows += [
            ("disk", f"{self.disk_free_bytes / GIB:.1f} GiB free"),
            ("cache", f"{self.cache_folder} ({self.cache_bytes / GIB:.2f} GiB; {', '.join(self.cached_assets) or 'empty'})"),
        ]
        if self.results_folder:
            rows.append(("results", f"{self.results_folder} ({self.results_disk_free_bytes / GIB:.1f} GiB free)"))
        if self.temporary_folder:
            rows.append(("temporary", f"{self.temporary_folder} ({self.temporary_disk_free_bytes / GIB:.1f} GiB free)"))
        rows += [
            *((f"4-bit {k}" if k in ("layers",) else k, v) for k, v in self.bitsandbytes.items()),
            ("hub", self.hub),
        ]
        if self.network_settings:
            rows.append(("network", f"set: {', '.join(self.network_settings)}"))
        rows += [
            ("platform", self.platform),
            ("versions", ", ".join(f"{k} {v}" for k, v in self.versions.items())),
        ]
        width = max(len(k) for k, _ in rows)
        lines = [f"{k:<{width}}  {v}" for k, v in rows]
        lines += ["", *(f"! {a}" for a in self.advice)] if self.advice else ["", "Nothing stands in the way."]
        return "\n".join(lines)

    def _memory(self) -> str:
        text = f"{self.memory_available_bytes / GIB:.1f} of {self.memory_bytes / GIB:.1f} GiB free"
        more = [f"{self.memory_limit}: the machine has {self.machine_memory_bytes / GIB:.1f}"] if self.memory_limit else []
        more += [f"swap {self.swap_bytes / GIB:.1f} GiB"] if self.swap_bytes else []
        return f"{text} ({'; '.join(more)})" if more else text
