"""What base an adapter was trained on: which model, in which format.

How it works: training writes a record beside the adapter; it names the model with its revision, the format of the base and
the dtype of training. PEFT's own file names a folder of the machine that trained, which means nothing elsewhere. An
adapter without a record is taken on the word of whoever gives its base.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from qlora_lib import hardware, models
from qlora_lib.assets import resolve_model
from qlora_lib.config import Quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.records import RECORD_NAME, RunRecord, read_record

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Base:
    """What an adapter was trained on."""

    asset: object  # assets.ModelAsset
    quantization: Quantization
    dtype: torch.dtype  # of the unquantized weights in training
    record: RunRecord | None = None

    @property
    def quantized(self) -> bool:
        return self.quantization.format != "none"

    @property
    def format(self) -> str:
        q = self.quantization
        return f"{q.format}+dq" if q.format in ("nf4", "fp4") and q.double_quant else q.format

    def load(self, path: Path | None = None):
        """The base as it was in training, or other weights in its format."""
        return models.load_base(path or self.asset.path, self.quantization, self.dtype, hardware.device())


def base_of(adapter: Path, model: str | None = None, quantization: Quantization | None = None) -> Base:
    """The base of an adapter: as its record says, else as given.

    Raises: UsageError where neither says it, and where the two contradict each other.
    """
    models.check_adapter(adapter)
    record = None
    if (Path(adapter).parent / RECORD_NAME).is_file():
        record = read_record(Path(adapter).parent / RECORD_NAME)
    if record is None and model is None:
        raise UsageError(f"there is no {RECORD_NAME} beside {adapter} that names its base", "Give it: --model NAME --quantization FORMAT")
    if record is None:
        return Base(resolve_model(model), quantization or Quantization(), hardware.choose_dtype("auto", hardware.device()).torch)
    if record.derived_from and model is None:
        raise UsageError(f"this adapter was trained on what arm '{record.derived_from}' had trained", "Give that model: --model FOLDER")
    trained, dtype = _trained(record, adapter)
    if quantization and quantization != trained:
        raise UsageError(f"this adapter was trained on a base in {trained.format}, not {quantization.format}", "Leave --quantization out")
    asset = resolve_model(model or str(record.setting("model.name") or record.model.name))
    known, found = record.model.revision, asset.revision
    # Two digests of one kind that differ are two models; a commit and a digest of files cannot be compared.
    if not record.derived_from and known and found and known != found and len(known) == len(found):
        raise UsageError(
            f"this adapter was trained on another base: {record.model.name} {known[:12]}, and {asset.name} is {found[:12]}",
            "Give the very model that its record names",
        )
    return Base(asset, trained, dtype, record)


def _trained(record: RunRecord, adapter: Path) -> tuple[Quantization, torch.dtype]:
    try:
        return Quantization.model_validate(record.setting("quantization")), DTYPES[record.provenance.dtype]
    except (KeyError, ValueError):
        raise QloraError(
            f"the {RECORD_NAME} beside {adapter} does not say in which format and dtype its base was",
            "Move it away, and give --model NAME --quantization FORMAT",
        ) from None


def warn_of_another_base(adapter: Path, quantization: str) -> None:
    """Say on standard error when an adapter is laid on a base in another format than its record names."""
    try:
        trained_on = read_record(Path(adapter).parent / RECORD_NAME).setting("quantization.format")
    except QloraError:
        return
    if trained_on and trained_on != quantization:
        print(
            f"warning: this adapter was trained on a base in '{trained_on}', and is laid on one in '{quantization}': "
            f"its loss is another there. Use --quantization {trained_on}",
            file=sys.stderr,
        )
