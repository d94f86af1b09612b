"""What this machine can do for QLoRA and what would go wrong here, before anything is run: `qlora doctor`.

How it works: each module looks at one thing (memory, folders, what is kept in them, the installed stack, the network's settings)
and gives values and, where something needs doing, one line of advice. Nothing is downloaded and nothing is changed.
docs/TROUBLESHOOTING.md has the messages that come where the advice was not taken.
"""

from qlora_lib.doctor.examining import examine
from qlora_lib.doctor.findings import GIB, Findings
from qlora_lib.doctor.needs import fits_here, gpu_memory

__all__ = ["GIB", "Findings", "examine", "fits_here", "gpu_memory"]
