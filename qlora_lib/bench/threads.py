"""One number of threads for torch and for what numba compiles.

How it works: numba reads NUMBA_NUM_THREADS when it is imported, and otherwise takes every logical processor. Where
its threads are OpenMP's, starting them sets the number for the whole process, torch's too. So the variable is set
before the import, and the number is set again once numba has started its threads.
"""

import os
import sys

import torch

from qlora_lib import hardware


def use_threads() -> int:
    """Set both to OMP_NUM_THREADS, or one a physical core; returns the number."""
    threads = int(os.environ.get("OMP_NUM_THREADS", hardware.usable_cpus()))
    if "numba" not in sys.modules:  # later it would be refused
        os.environ.setdefault("NUMBA_NUM_THREADS", str(threads))
    torch.set_num_threads(threads)
    try:
        from qlora_lib.fast.threads import use_torchs_threads
    except ImportError:
        return threads  # without numba nothing is compiled
    use_torchs_threads()
    return threads
