"""What is measured: perplexity, bytes, memory and speed. Each names its protocol."""

# At once, not when asked for: importing the module of this name later would put it in the function's place.
from qlora_lib.metrics.perplexity import perplexity

__all__ = ["perplexity"]
