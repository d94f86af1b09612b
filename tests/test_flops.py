"""Parameter counts against the real model classes, FLOPs against `torch.utils.flop_counter`.

The counter sees every product of eager attention on a CPU except bitsandbytes' forward one, which is
an operator of its own (`bitsandbytes::gemm_4bit`): its formula is registered here. The backward
product is an ordinary matmul after `dequantize_4bit`, counted as it is.
"""

import os

os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")  # bitsandbytes would compile for seconds

import json
import subprocess
import sys
from dataclasses import asdict, replace
from math import prod

import bitsandbytes as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.bnb import Linear4bit as Lora4bit
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM

from qlora_lib.cost import (
    ALL_LINEAR,
    GPUS,
    ModelShape,
    find_gpu,
    mfu,
    protocol_flops,
    resolve_targets,
    step_flops,
)
from qlora_lib.errors import UsageError

TINYLLAMA = dict(
    model_type="llama", hidden_size=2048, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, intermediate_size=5632, vocab_size=32000, tie_word_embeddings=False,
)  # fmt: skip
SMOLLM2 = dict(
    model_type="llama", hidden_size=576, num_hidden_layers=30, num_attention_heads=9,
    num_key_value_heads=3, intermediate_size=1536, vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
TINY = dict(
    model_type="llama", hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, intermediate_size=48, vocab_size=40, tie_word_embeddings=False,
)  # fmt: skip
VARIANTS = {
    "llama with all biases": TINY | dict(attention_bias=True, mlp_bias=True),
    "llama, wide heads": TINY | dict(head_dim=16, num_key_value_heads=4),
    "mistral": TINY | dict(model_type="mistral"),
    "qwen2": TINY | dict(model_type="qwen2", tie_word_embeddings=True),
    "qwen3": TINY | dict(model_type="qwen3", head_dim=16),
    "qwen3 with biases": TINY | dict(model_type="qwen3", head_dim=16, attention_bias=True),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Products this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def build(config: dict, device="cpu"):
    config = dict(config)
    config = AutoConfig.for_model(config.pop("model_type"), **config, attn_implementation="eager")
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def quantize_layers(model) -> None:
    """Swap the layers' linear modules for bitsandbytes' NF4 ones, as a 4-bit load does."""
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, linear in list(block.named_children()):
                if isinstance(linear, torch.nn.Linear):
                    new = bnb.nn.Linear4bit(
                        linear.in_features, linear.out_features, linear.bias is not None,
                        compute_dtype=torch.float32, quant_type="nf4",
                    )  # fmt: skip
                    new.load_state_dict(linear.state_dict())
                    setattr(block, name, new.to("cpu").requires_grad_(False))
    model.is_loaded_in_4bit = True  # what tells PEFT to use its 4-bit layer


def prepare(config, method, targets=ALL_LINEAR, rank=4, checkpointing=False, input_grad=None):
    model = build(config)
    if method == "qlora":
        quantize_layers(model)
    if method != "full":
        model = get_peft_model(model, LoraConfig(r=rank, target_modules=list(targets), lora_dropout=0.1))
    adapted = [m for m in model.modules() if isinstance(m, Lora4bit)]
    assert len(adapted) == (method == "qlora") * len(targets) * config["num_hidden_layers"]
    model.train()
    if checkpointing:
        model.activation_checkpointing_enable()
    if input_grad is True:
        model.enable_input_require_grads()
    if input_grad is False:
        model.disable_input_require_grads()
    return model


def gemm_4bit_flops(a_shape, _packed, weight_shape, *_, out_shape=None, **__) -> int:
    """a (..., in) times the dequantized weight (out, in)."""
    return 2 * prod(a_shape[:-1]) * prod(weight_shape)


def counted(model, batch: int, length: int, accumulation: int = 1) -> tuple[int, int]:
    """FLOPs that torch saw: (forward, all that backward ran)."""
    forward = backward = 0
    formulas = {torch.ops.bitsandbytes.gemm_4bit: gemm_4bit_flops}
    for _ in range(accumulation):
        ids = torch.randint(0, model.config.vocab_size, (batch, length))
        with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
            before = counter.get_total_flops()
            loss.backward()
        forward += before
        backward += counter.get_total_flops() - before
    return forward, backward


def predicted(flops) -> tuple[int, int]:
    return flops.forward, flops.backward + flops.recompute + flops.input_gradient


# --- FLOPs ---


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_step_equals_the_counter_with_the_stack_s_defaults(method, checkpointing):
    model = prepare(TINY, method, checkpointing=checkpointing)
    flops = step_flops(
        ModelShape.read(TINY), method, 2, 6, rank=4, gradient_checkpointing=checkpointing, accumulation=3
    )
    assert counted(model, 2, 6, accumulation=3) == predicted(flops)
    assert flops.hardware_flops == sum(predicted(flops))
    assert (flops.hardware_flops > flops.model_flops) == checkpointing


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("method", ["full", "qlora"])
def test_step_equals_the_counter_for_each_architecture(name, method):
    config = VARIANTS[name]
    model = prepare(config, method, checkpointing=True)
    flops = step_flops(ModelShape.read(config), method, 1, 5, rank=4, gradient_checkpointing=True)
    assert counted(model, 1, 5) == predicted(flops)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    method=st.sampled_from(["lora", "qlora"]),
    targets=st.sets(st.sampled_from(ALL_LINEAR), min_size=1),
    rank=st.integers(1, 5),
    batch=st.integers(1, 3),
    length=st.integers(1, 7),
    layers=st.integers(1, 3),
    kv_heads=st.sampled_from([1, 2, 4]),
    tied=st.booleans(),
    checkpointing=st.booleans(),
    input_grad=st.booleans(),
)
def test_step_equals_the_counter_for_any_targets(
    method, targets, rank, batch, length, layers, kv_heads, tied, checkpointing, input_grad
):
    config = TINY | dict(num_hidden_layers=layers, num_key_value_heads=kv_heads, tie_word_embeddings=tied)
    model = prepare(config, method, targets, rank, checkpointing, input_grad)
    flops = step_flops(
        ModelShape.read(config), method, batch, length, rank, targets, checkpointing,
        input_requires_grad=input_grad,
    )  # fmt: skip
    assert counted(model, batch, length) == predicted(flops)


@pytest.mark.parametrize("method", ["lora", "qlora"])
@pytest.mark.parametrize("target", ALL_LINEAR)
def test_a_single_target_leaves_out_what_nothing_before_it_needs(method, target):
    """One target in one layer: all that precedes it has no gradient, so each name differs."""
    config = TINY | dict(num_hidden_layers=1)
    for checkpointing in (False, True):
        model = prepare(config, method, [target], 4, checkpointing, input_grad=False)
        flops = step_flops(
            ModelShape.read(config), method, 2, 5, 4, target, checkpointing, input_requires_grad=False
        )
        assert counted(model, 2, 5) == predicted(flops)


def test_checkpointing_changes_the_hardware_s_work_and_not_the_model_s():
    shape = ModelShape.read(TINYLLAMA)
    plain = step_flops(shape, "qlora", 4, 512)
    again = step_flops(shape, "qlora", 4, 512, gradient_checkpointing=True)
    assert again.model_flops == plain.model_flops == plain.hardware_flops
    # All layers once more, but for the B of the last adapter.
    head = 2 * 4 * 512 * 2048 * 32000
    assert again.recompute == plain.forward - head - 22 * 2 * 4 * 512 * 16 * 2048
    assert again.input_gradient > 0
    assert step_flops(shape, "full", 4, 512, gradient_checkpointing=True).input_gradient == 0


def test_protocol_is_exact_for_full_and_slightly_high_for_a_frozen_base():
    shape = ModelShape.read(TINYLLAMA)
    assert protocol_flops(shape, "full", 2, 512, accumulation=4).relative_difference == 0
    lora = protocol_flops(shape, "lora", 2, 512)
    with_input_gradient = step_flops(shape, "lora", 2, 512, input_requires_grad=True)
    assert lora.estimate == with_input_gradient.hardware_flops
    assert lora.exact == with_input_gradient.model_flops
    assert 0 < lora.relative_difference < 0.01


def test_mfu_is_a_fraction_of_the_peak():
    assert mfu(3e12, 2.0, 6e12) == 0.25
    for seconds, peak in ((0, 1e12), (1.0, 0)):
        with pytest.raises(UsageError):
            mfu(1e12, seconds, peak)


# --- parameters ---


@pytest.mark.parametrize("config", [TINYLLAMA, SMOLLM2, *VARIANTS.values()])
def test_parameters_equal_the_model_s_by_component(config):
    model = build(config, device="meta")
    found = dict(embedding=0, attention=0, mlp=0, norms=0, head=0)
    part_of = dict(embed_tokens="embedding", lm_head="head", self_attn="attention", mlp="mlp")
    for name, parameter in model.named_parameters():  # a tied head is listed once, as the embedding
        parts = name.split(".")
        component = next((part_of[p] for p in parts if p in part_of), "norms")
        found["norms" if "norm" in parts[-2] else component] += parameter.numel()
    counts = ModelShape.read(config).parameters
    assert asdict(counts) == found
    assert counts.total == model.num_parameters()
    # A loaded config object says the same as the file's dictionary.
    assert ModelShape.read(model.config) == ModelShape.read(config)


def test_known_totals():
    assert ModelShape.read(TINYLLAMA).parameters.total == 1_100_048_384
    assert ModelShape.read(TINYLLAMA).lora_parameters(16) == 12_615_680
    assert ModelShape.read(SMOLLM2).parameters.total == 134_515_008


@pytest.mark.parametrize("targets", ["all-linear", ("q_proj", "v_proj"), ("down_proj",)])
def test_lora_parameters_equal_peft_s_trainable_count(targets):
    modules = targets if isinstance(targets, str) else list(targets)
    peft = get_peft_model(build(TINYLLAMA, "meta"), LoraConfig(r=16, target_modules=modules))
    trainable, total = peft.get_nb_trainable_parameters()
    shape = ModelShape.read(TINYLLAMA)
    assert shape.lora_parameters(16, targets) == trainable
    assert shape.parameters.total + trainable == total


def test_shape_is_read_from_a_file_and_from_its_folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(SMOLLM2))
    expected = ModelShape.read(SMOLLM2)
    assert ModelShape.read(tmp_path) == ModelShape.read(str(tmp_path / "config.json")) == expected
    assert ModelShape.read(expected) is expected
    assert expected.linear_modules["k_proj"] == (576, 192)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({k: v for k, v in TINY.items() if k != "model_type"}, "no 'model_type'"),
        (TINY | dict(model_type="mamba"), "Choose from: llama, mistral"),
        ({k: v for k, v in TINY.items() if k != "vocab_size"}, "no 'vocab_size'"),
        (TINY | dict(model_type="qwen3"), "no 'head_dim'"),
        ({k: v for k, v in VARIANTS["mistral"].items() if "key_value" not in k}, "no 'num_key_value_heads'"),
        (TINY | dict(hidden_size="wide"), "hidden_size = 'wide'"),
        (TINY | dict(num_key_value_heads=3), "multiple"),
    ],
)
def test_a_config_that_cannot_be_counted_is_one_clear_line(config, says):
    with pytest.raises(UsageError, match=says) as e:
        ModelShape.read(config)
    assert "\n" not in str(e.value)


def test_missing_and_broken_files_are_usage_errors(tmp_path):
    with pytest.raises(UsageError, match="no model config at"):
        ModelShape.read(tmp_path)
    for content in (b"\xff\xfe", b"{", b"[]"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(UsageError, match="JSON"):
            ModelShape.read(tmp_path)


def test_keys_that_a_llama_config_may_leave_out():
    old = {k: v for k, v in TINY.items() if k != "num_key_value_heads"}
    assert ModelShape.read(old) == replace(ModelShape.read(TINY), num_kv_heads=4)
    assert ModelShape.read(old | dict(num_key_value_heads=None, head_dim=None)).num_kv_heads == 4


def test_targets_come_in_the_order_run_and_unknown_ones_get_a_hint():
    assert resolve_targets(["v_proj", "q_proj", "q_proj"]) == ("q_proj", "v_proj")
    assert resolve_targets("all-linear") == ALL_LINEAR
    with pytest.raises(UsageError, match="Did you mean 'gate_proj'"):
        resolve_targets(["gate_prj"])
    with pytest.raises(UsageError, match="at least one"):
        resolve_targets([])


@pytest.mark.parametrize("bad", [dict(method="qlorra"), dict(batch=0), dict(length=1.5), dict(rank=0)])
def test_impossible_steps_are_usage_errors(bad):
    with pytest.raises(UsageError):
        step_flops(ModelShape.read(TINY), **(dict(method="lora", batch=1, length=8) | bad))


# --- devices ---


@pytest.mark.parametrize(
    ("device", "name"),
    [
        ("Tesla T4", "T4"),
        ("NVIDIA GeForce RTX 3070", "RTX 3070"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("GeForce RTX 3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100-PCIE-40GB", "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        *((name, name) for name in GPUS),
    ],
)
def test_a_card_is_found_by_the_name_torch_gives(device, name):
    assert find_gpu(device).name == name


@pytest.mark.parametrize(
    "device",
    [
        "NVIDIA GeForce RTX 3070 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA L40S", "NVIDIA L40",
        "NVIDIA H100 PCIe", "NVIDIA H200", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "Tesla V100-SXM2-16GB", "",
    ],
)  # fmt: skip
def test_a_neighbour_is_not_taken_for_a_listed_card(device):
    assert find_gpu(device) is None


def test_peaks_are_dense_and_named():
    t4, geforce, h100 = GPUS["T4"], GPUS["RTX 3090"], GPUS["H100 SXM"]
    assert t4.peak("float16") == t4.peak(torch.float16) == 65e12
    with pytest.raises(UsageError, match="no bf16"):
        t4.peak("bfloat16")
    with pytest.raises(UsageError, match="no peak for dtype"):
        t4.peak("int3")
    assert geforce.peak("fp16") == pytest.approx(2 * geforce.peak("fp32"), rel=0.01)  # not 4 x: see devices
    assert h100.peak("bf16") == pytest.approx(132 * 4 * 512 * 2 * 1.83e9, rel=1e-4)  # SMs x cores x FMA
    assert "fp32 accumulation" in geforce.peak_label("bf16") and "71 TFLOP/s" in geforce.peak_label("bf16")


def test_importing_the_cost_package_loads_nothing_heavy():
    code = (
        "import sys; from qlora_lib.cost import step_flops; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'pydantic', 'yaml') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
