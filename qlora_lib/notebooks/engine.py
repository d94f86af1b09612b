"""papermill's engine, saving less often, and telling a log of every cell.

How it works: papermill writes the whole notebook, pictures and all, twice a cell, which takes longer than many a
cell. Here it is written every few seconds, and once more at the end, also when a cell failed or the kernel died.
"""

import time

from papermill.engines import NBClientEngine, papermill_engines

from qlora_lib.notebooks.log import Log, cells_told
from qlora_lib.notebooks.execution import ENGINE

SECONDS = 5.0  # between two savings: what is lost if this very process is killed


class SavingLess(NBClientEngine):
    @classmethod
    def execute_managed_notebook(cls, nb_man, kernel_name, log: Log, **kwargs):
        save, last = nb_man.save, time.monotonic()

        def now_and_then(**_) -> None:
            nonlocal last
            if time.monotonic() - last > SECONDS:
                save()
                last = time.monotonic()

        nb_man.save = now_and_then
        cells_told(nb_man, log)
        try:
            return super().execute_managed_notebook(nb_man, kernel_name, **kwargs | {"stdout_file": log, "stderr_file": log})
        finally:
            nb_man.save = save  # papermill then saves for the last time


papermill_engines.register(ENGINE, SavingLess)
