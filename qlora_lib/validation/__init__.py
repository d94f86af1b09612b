"""Is the memory model right? Predicted against measured on this CPU, and against what others have published.

How it works: `grid` lists cases (a model, a method, the size of a step); `measure` trains one step of each with the stock
stack and meters it; `run` does them all, in processes of their own, into one record that it can resume;
`published_gpu` holds others' figures against what their settings give, and `litgpt` counts what one such program holds
otherwise; `summary` says how large the errors are, and which settings the large ones have in common. Predicted, measured and published numbers have fields of their own.
"""

from qlora_lib.validation.record import ValidationRecord, committed_validation, read_validation

__all__ = ["ValidationRecord", "committed_validation", "read_validation"]
