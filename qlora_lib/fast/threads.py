"""numba computes with as many threads as torch."""

import numba
import torch


def use_torchs_threads() -> None:
    """Starting numba's threads may change torch's number, where both are OpenMP's: it is set again."""
    threads = torch.get_num_threads()
    numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(threads)
