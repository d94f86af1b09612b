"""What is measured: perplexity, answers, preferences, bytes, memory and speed. Each names its protocol."""

# At once, not when asked for: importing a module of the same name later would put it in the function's place.
from qlora_lib.metrics.perplexity import perplexity
from qlora_lib.metrics.squad import squad_em_f1
from qlora_lib.metrics.win_rate import win_rate

__all__ = ["perplexity", "squad_em_f1", "win_rate"]
