"""qlora_lib: understand, measure and use QLoRA.

Quantized loading, LoRA, training and metrics as small modules; a study that runs a profile's arms;
pages that draw from its records. Importing the package loads nothing heavy.
"""


def __getattr__(name: str):
    if name != "__version__":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from importlib.metadata import PackageNotFoundError, version  # a third of what `qlora --help` would import

    try:
        return version("qlora_lib")
    except PackageNotFoundError:  # a source tree that was never installed
        return "0+unknown"
