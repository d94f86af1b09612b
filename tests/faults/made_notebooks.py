"""Notebooks of a few cells, executed as the course's are."""

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

METADATA = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def write_notebook(path: Path, cells: list[str]) -> None:
    parameters = new_code_cell("profile = records = None", metadata={"tags": ["parameters"]})
    nbformat.write(new_notebook(cells=[parameters, *map(new_code_cell, cells)], metadata=METADATA), path)
