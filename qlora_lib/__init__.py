"""qlora_lib: understand, measure and use QLoRA.

Quantized loading, LoRA, training and metrics as small modules; a study that runs a profile's arms;
pages that draw from its records. Importing the package loads nothing heavy.
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("qlora_lib")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
