"""What is measured: perplexity, bytes, memory and speed. Each names its protocol."""

__all__ = ["perplexity"]


def __getattr__(name: str):
    if name == "perplexity":
        from qlora_lib.metrics.perplexity import perplexity

        return perplexity
    raise AttributeError(name)
