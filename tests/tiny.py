"""The tiny random model, its data and settings, in this process: what the run wing's tests share."""

import functools
from pathlib import Path

import pytest
import torch

from qlora_lib import models
from qlora_lib.assets import resolve_model
from qlora_lib.config import ArmEntry, Quantization, load_profile
from qlora_lib.data import LanguageData, prepare
from qlora_lib.hardware import DType

FP32 = DType("fp32", "test")
FORMATS = {
    "fp32": Quantization(),
    "int8": Quantization(format="int8"),
    "nf4": Quantization(format="nf4", double_quant=False),
    "nf4dq": Quantization(format="nf4"),
    "fp4": Quantization(format="fp4", double_quant=False),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """For a module that takes it over: products this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@functools.cache
def folder() -> Path:
    return resolve_model("tiny-random", progress=False).path


@functools.cache
def data(window_length: int = 32) -> LanguageData:
    return prepare("tiny-text", "text", window_length, models.load_tokenizer(folder()))


def base(quantization: Quantization = FORMATS["fp32"], dtype: torch.dtype = torch.float32):
    return models.load_base(folder(), quantization, dtype, "cpu")


def arm(method: str, **settings) -> tuple[ArmEntry, object]:
    """(arm, settings) of the `smoke` profile with `train__max_steps=3` and the like on top."""
    profile = load_profile("smoke")
    entry = profile.arm_of_method(method)
    return entry, profile.settings(entry, {key.replace("__", "."): value for key, value in settings.items()})


def training_model(model, method: str, settings):
    """A loaded base as an arm of this method trains it."""
    model = models.prepare_for_training(model, method, settings.train.gradient_checkpointing)
    return model if method == "full" else models.attach_lora(model, settings.lora, settings.seed)


def trainable(method: str, settings):
    return training_model(base(settings.quantization), method, settings)


def ids(*shape: int, seed: int = 0) -> torch.Tensor:
    """Random tokens of the tiny vocabulary, its three special ones left out."""
    return torch.randint(3, 259, shape, generator=torch.Generator().manual_seed(seed))
