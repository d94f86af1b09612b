"""The course's notebooks: executed headlessly, written as pages, and what their cells show.

`execute_notebooks` runs them through papermill and writes their HTML; `lesson.Lesson` is what their
cells call. Importing this package loads neither papermill nor matplotlib.
"""

from qlora_lib.notebooks.execution import NotebookFailed
from qlora_lib.notebooks.runner import Executed, execute_notebooks, run_notebooks

__all__ = ["Executed", "NotebookFailed", "execute_notebooks", "run_notebooks"]
