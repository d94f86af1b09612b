"""What `qlora plan --calibrate` has measured on this machine, as later plans read it.

How it works: one JSON file in the cache folder, written whole or not at all by `qlora_lib.calibration`, with the machine
that it was measured on. A file of another machine (the cache may lie on a shared disk), of another version, or a damaged
one is as good as none. Reading it needs nothing heavy.
"""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from qlora_lib.paths import cache_dir

SCHEMA = 1


@dataclass(frozen=True)
class Machine:
    """By what a measurement is known to be this machine's."""

    cpu: str
    cores: int  # that this process may use
    system: str  # "Linux x86_64"


@dataclass(frozen=True)
class StepTimed:
    """A training step that was timed, beside the least time that its products could take at the measured peak."""

    method: str  # full, lora or qlora
    fast: bool  # forwards of qlora_lib.fast; where not, those of the stock stack
    model: str  # whose widths it has
    batch: int
    length: int  # tokens
    seconds: float  # of one optimizer step, the median
    hardware_flops: int

    def share(self, peak: float) -> float:
        """Of the peak, FLOP/s, that its products reached."""
        return self.hardware_flops / (self.seconds * peak)


@dataclass(frozen=True)
class DecodeTimed:
    """Greedy decoding at batch 1, beside the bytes that a token must read."""

    quantization: str
    fast: bool
    model: str
    tokens_per_second: float
    bytes_per_token: int

    def share(self, bandwidth: float) -> float:
        return self.bytes_per_token * self.tokens_per_second / bandwidth


@dataclass(frozen=True)
class Calibration:
    machine: Machine
    measured_at: str  # ISO date and time, UTC
    gemm_flops_per_second: float  # fp32
    bytes_per_second: float  # of memory: the better of copying and reading
    steps: tuple[StepTimed, ...]
    decodes: tuple[DecodeTimed, ...] = ()

    def to_json(self) -> str:
        return json.dumps({"schema": SCHEMA} | asdict(self), indent=1)


def calibration_file() -> Path:
    return cache_dir() / "calibration.json"


def this_machine() -> Machine:
    import platform

    from qlora_lib import hardware

    return Machine(hardware.cpu_name(), hardware.usable_cpus(), f"{platform.system()} {platform.machine()}")


def read_calibration(file: Path | None = None) -> Calibration | None:
    """This machine's, or None where there is none that can be used."""
    try:
        found = json.loads((file or calibration_file()).read_text(encoding="utf-8"))
        if found.pop("schema") != SCHEMA or (machine := Machine(**found.pop("machine"))) != this_machine():
            return None
        steps = tuple(StepTimed(**step) for step in found.pop("steps"))
        decodes = tuple(DecodeTimed(**decode) for decode in found.pop("decodes"))
        calibration = Calibration(machine=machine, steps=steps, decodes=decodes, **found)
        if not all(map(_is_typed, (calibration, *steps, *decodes))):
            return None
        numbers = [calibration.gemm_flops_per_second, calibration.bytes_per_second]
        numbers += [n for s in steps for n in (s.seconds, s.hardware_flops)] + [n for d in decodes for n in (d.tokens_per_second, d.bytes_per_token)]
        return calibration if all(0 < n < 1e18 for n in numbers) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _is_typed(part) -> bool:
    """Whether a part's plain fields hold what they say: the file may have been edited, or cut off."""
    kinds = {str: str, bool: bool, int: int, float: float | int}
    return all(isinstance(getattr(part, f.name), kinds.get(f.type, object)) for f in fields(part))
