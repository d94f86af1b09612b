"""The Unsloth back end against the signatures of Unsloth 2026.8.19; Unsloth itself is not installed."""

import importlib.util
import inspect
import sys
import types

import pytest

from qlora_lib import unsloth
from qlora_lib.config import load_profile, parse_overrides
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.hardware import DType

BF16 = DType("bf16", "test")


class FastLanguageModel2026_8_19:
    """What `unsloth.FastLanguageModel` of 2026.8.19 takes: names, order and defaults, written down from its source."""

    @staticmethod
    def from_pretrained(
        model_name="unsloth/Llama-3.2-1B-Instruct", max_seq_length=2048, dtype=None, load_in_4bit=True, load_in_8bit=False,
        load_in_16bit=False, full_finetuning=False, token=None, device_map="sequential", rope_scaling=None,
        fix_tokenizer=True, trust_remote_code=False, use_gradient_checkpointing="unsloth", resize_model_vocab=None,
        revision=None, use_exact_model_name=False, offload_embedding=False, float32_mixed_precision=None,
        fast_inference=False, gpu_memory_utilization=0.5, float8_kv_cache=False, random_state=3407, max_lora_rank=64,
        disable_log_stats=True, qat_scheme=None, load_in_fp8=False, unsloth_tiled_mlp=False, text_only=False,
        *args, **kwargs,
    ):  # fmt: skip
        return None, None

    @staticmethod
    def get_peft_model(
        model, r=16, target_modules=("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        lora_alpha=16, lora_dropout=0.0, bias="none", layers_to_transform=None, layers_pattern=None,
        finetune_last_n_layers=None, use_gradient_checkpointing="unsloth", random_state=3407, max_seq_length=2048,
        use_rslora=False, modules_to_save=None, init_lora_weights=True, loftq_config=None,
        temporary_location="_unsloth_temporary_saved_buffers", qat_scheme=None, target_parameters=None,
        ensure_weight_tying=False, **kwargs,
    ):  # fmt: skip
        return None


READ_FROM_KWARGS = {"local_files_only"}  # by from_pretrained of that version; anything else would reach the model's constructor


def bound(function, arguments: dict) -> dict:
    """`arguments` as the function takes them; one that it has no parameter for fails."""
    took = inspect.signature(function).bind(**arguments).arguments
    unknown = set(took.pop("kwargs", {})) - READ_FROM_KWARGS
    assert not unknown, f"no parameter of {function.__name__}: {sorted(unknown)}"
    return took


def settings(*assignments: str, arm: str = "qlora-unsloth"):
    profile = load_profile("llama3.1-8b")
    return profile.settings(profile.arm(arm), parse_overrides(assignments))


@pytest.fixture
def fake(monkeypatch):
    """A module `unsloth` that notes its calls, on a machine that says it has CUDA."""
    calls, module = {}, types.ModuleType("unsloth")
    module.__spec__ = importlib.util.spec_from_loader("unsloth", loader=None)

    class FastLanguageModel:
        @staticmethod
        def from_pretrained(*args, **kwargs):
            assert not args
            calls["load"] = bound(FastLanguageModel2026_8_19.from_pretrained, kwargs)
            return "model", "tokenizer"

        @staticmethod
        def get_peft_model(model, **kwargs):
            calls["attach"] = bound(FastLanguageModel2026_8_19.get_peft_model, {"model": model} | kwargs)
            return "adapted"

    module.FastLanguageModel = FastLanguageModel
    monkeypatch.setitem(sys.modules, "unsloth", module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.delenv("UNSLOTH_DISABLE_STATISTICS", raising=False)
    return calls


def test_the_profile_s_arguments_bind_to_the_real_signatures(fake, tmp_path):
    import torch

    s = settings()
    unsloth.require()
    model = unsloth.load(tmp_path, s, "qlora", BF16)
    assert unsloth.attach(model, s) == "adapted"
    load, attach = fake["load"], fake["attach"]
    assert load["model_name"] == str(tmp_path) and load["use_exact_model_name"] and load["trust_remote_code"] is False
    assert (load["max_seq_length"], load["dtype"], load["load_in_4bit"]) == (2048, torch.bfloat16, True)
    assert attach["model"] == "model"
    assert (attach["r"], attach["lora_alpha"], attach["lora_dropout"]) == (16, 16, 0.05)
    assert type(attach["r"]) is int and attach["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert attach["use_gradient_checkpointing"] == load["use_gradient_checkpointing"] == "unsloth"


def test_settings_reach_the_arguments(fake, tmp_path):
    s = settings("lora.target_modules=all-linear", "lora.alpha=24.5", "lora.use_rslora=true", "train.gradient_checkpointing=false", "seed=7")
    unsloth.attach(unsloth.load(tmp_path, s, "lora", BF16), s)
    load, attach = fake["load"], fake["attach"]
    assert load["load_in_4bit"] is False and load["use_gradient_checkpointing"] is False
    assert load["random_state"] == attach["random_state"] == 7
    assert attach["lora_alpha"] == 24.5 and attach["use_rslora"] is True and len(attach["target_modules"]) == 7


def test_an_argument_that_unsloth_does_not_have_is_found(tmp_path):
    """`use_bf16_immediately`, which one of the guides passes, is no parameter: it would reach the model's constructor."""
    arguments = unsloth.load_arguments(tmp_path, settings(), "qlora", BF16)
    bound(FastLanguageModel2026_8_19.from_pretrained, arguments)
    with pytest.raises(AssertionError, match="use_bf16_immediately"):
        bound(FastLanguageModel2026_8_19.from_pretrained, arguments | {"use_bf16_immediately": True})


def test_what_falls_into_kwargs_reaches_the_model_and_is_refused_there(tiny_model):
    from transformers import AutoModelForCausalLM

    with pytest.raises(TypeError, match="use_bf16_immediately"):
        AutoModelForCausalLM.from_pretrained(tiny_model, use_bf16_immediately=True)


def test_no_statistics_are_sent(fake, monkeypatch):
    monkeypatch.setenv("UNSLOTH_DISABLE_STATISTICS", "")  # so that what is set is undone
    monkeypatch.delenv("UNSLOTH_DISABLE_STATISTICS")
    unsloth.require()
    import os

    assert os.environ["UNSLOTH_DISABLE_STATISTICS"] == "1"


# --- where it cannot run -------------------------------------------------------------------------


def refused(act, kind=QloraError) -> str:
    with pytest.raises(kind) as e:
        act()
    assert "\n" not in str(e.value)
    return str(e.value)


def test_without_cuda(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "needs a CUDA GPU" in refused(unsloth.require) and "peft" in refused(unsloth.require)


def test_without_the_package(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    line = refused(unsloth.require)
    assert "not installed" in line and f"pip install unsloth=={unsloth.VERSION}" in line


def test_a_package_that_does_not_start_is_one_line(fake, monkeypatch):
    def fails(name):
        raise ImportError("Unsloth: your transformers\nis too new")

    monkeypatch.setattr(importlib, "import_module", fails)
    assert "your transformers is too new" in refused(unsloth.require)


@pytest.mark.parametrize(
    "assignment, says",
    [
        ("quantization.format=fp4", "without NF4"),
        ("quantization.double_quant=false", "without NF4 and double"),
        ("runtime.fast=true", "runtime.fast is true"),
    ],
)
def test_settings_that_unsloth_cannot_serve(assignment, says):
    assert says in refused(lambda: settings(assignment), UsageError)


def test_full_and_base_arms_keep_to_peft():
    line = refused(lambda: settings("runtime.backend=unsloth", "runtime.fast=false", arm="base"), UsageError)
    assert "method base" in line


def test_importing_the_library_does_not_import_unsloth():
    assert "unsloth" not in sys.modules
