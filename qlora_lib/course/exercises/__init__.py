"""The exercises of each lesson: one module a notebook, with its `EXERCISES`."""

from importlib import import_module

MODULES = {
    "01": "quantization",
    "02": "double_quantization",
    "03": "lora",
    "04": "memory",
    "05": "comparison",
    "06": "inference",
    "07": "faults",
    "08": "planning",
    "09": "figures",
    "10": "instructions",
    "11": "tasks",
    "12": "judges",
    "13": "own_data",
    "14": "audit",
}


def exercises_of(notebook: str) -> list:
    """The exercises of the notebook with this number, in their order."""
    return import_module(f"{__name__}.{MODULES[notebook]}").EXERCISES
