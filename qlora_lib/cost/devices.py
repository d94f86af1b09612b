"""Data-sheet figures of the GPUs that the profiles name.

How it works: one frozen record a card, found by the name that `torch.cuda.get_device_name` gives.
Peaks are *dense* (NVIDIA prints twice as much "with sparsity") and, for fp16 and bf16, with fp32
accumulation, which is how torch multiplies 16-bit matrices; GeForce tensor cores run that at half
their advertised fp16-accumulate rate. `fp32` is the plain CUDA-core rate, `tf32` that of tensor cores.
A card that is not listed gets no peak: a neighbour's figure would make a wrong utilization.
"""

import re
from dataclasses import dataclass

from qlora_lib.errors import UsageError, nearest

GIB = 2**30
TERA = 10**12

DTYPE_NAMES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
PEAK_DTYPES = ("fp32", "tf32", "fp16", "bf16")


@dataclass(frozen=True)
class Gpu:
    """One card. Memory in bytes, nominal: the driver and ECC keep some of it (a T4 shows 15 GiB)."""

    name: str
    memory_bytes: int
    bandwidth: float  # bytes per second
    fp32: float  # dense peak FLOP/s, as the others
    tf32: float | None
    fp16: float
    bf16: float | None
    source: str
    device_names: str  # regular expression of the whole device name, vendor and series left out

    def peak(self, dtype: str) -> float:
        """Dense peak FLOP/s for "fp32", "tf32", "fp16", "bf16" or torch's names of them.

        Raises UsageError when the card has no such units.
        """
        dtype = str(dtype).removeprefix("torch.")
        key = DTYPE_NAMES.get(dtype, dtype)
        if key not in PEAK_DTYPES:
            raise UsageError(f"no peak for dtype '{dtype}'", nearest(dtype, (*PEAK_DTYPES, *DTYPE_NAMES)))
        peak = getattr(self, key)
        if peak is None:
            raise UsageError(f"{self.name} has no {key} matrix units", "Use fp16 or fp32 on this card.")
        return peak

    def peak_label(self, dtype: str) -> str:
        """The peak in words, as a record names it: card, dtype, figure and where it is printed."""
        peak = self.peak(dtype)
        key = DTYPE_NAMES.get(str(dtype).removeprefix("torch."), str(dtype))
        accumulation = ", fp32 accumulation" if key in ("fp16", "bf16") else ""
        return f"{self.name}, dense {key}{accumulation}, {peak / TERA:g} TFLOP/s ({self.source})"


_A100 = dict(fp32=19.5 * TERA, tf32=156 * TERA, fp16=312 * TERA, bf16=312 * TERA)

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu(
            "T4", 16 * GIB, 320e9, 8.1 * TERA, None, 65 * TERA, None,
            source="NVIDIA T4 data sheet", device_names="T4",
        ),
        Gpu(
            "RTX 3070", 8 * GIB, 448e9, 20.3 * TERA, 20.3 * TERA, 40.6 * TERA, 40.6 * TERA,
            source="NVIDIA Ampere GA102 architecture white paper, appendix A", device_names="RTX 3070",
        ),
        Gpu(
            "RTX 3090", 24 * GIB, 936e9, 35.6 * TERA, 35.6 * TERA, 71 * TERA, 71 * TERA,
            source="NVIDIA Ampere GA102 architecture white paper, appendix A", device_names="RTX 3090",
        ),
        Gpu(
            "RTX 4090", 24 * GIB, 1008e9, 82.6 * TERA, 82.6 * TERA, 165.2 * TERA, 165.2 * TERA,
            source="NVIDIA Ada architecture white paper, appendix A", device_names="RTX 4090",
        ),
        Gpu(
            "L4", 24 * GIB, 300e9, 30.3 * TERA, 60 * TERA, 121 * TERA, 121 * TERA,
            source="NVIDIA L4 data sheet, halved from its figures with sparsity", device_names="L4",
        ),
        Gpu(
            "A100 40GB", 40 * GIB, 1555e9, **_A100,
            source="NVIDIA A100 data sheet", device_names="A100-(SXM4|PCIE)-40GB|A100 40GB PCIe",
        ),
        Gpu(
            "A100 80GB", 80 * GIB, 2039e9, **_A100,
            source="NVIDIA A100 data sheet, SXM", device_names="A100-SXM4-80GB",
        ),
        Gpu(
            "H100 SXM", 80 * GIB, 3350e9, 67 * TERA, 494.7 * TERA, 989.4 * TERA, 989.4 * TERA,
            source="NVIDIA H100 data sheet and architecture white paper", device_names="H100 80GB HBM3",
        ),
    )
}  # fmt: skip


def find_gpu(device_name: str) -> Gpu | None:
    """The card that `torch.cuda.get_device_name` names, or this table's own name of it; else None.

    The whole name must agree: an RTX 3070 Ti, a laptop's RTX 4090, an L40 or an H100 PCIe is another card.
    """
    if device_name in GPUS:
        return GPUS[device_name]
    bare = re.sub(r"^(NVIDIA |Tesla |GeForce )+", "", device_name.strip())
    return next((gpu for gpu in GPUS.values() if re.fullmatch(gpu.device_names, bare, re.IGNORECASE)), None)
