"""Bytes that stay, by arithmetic, against those of loaded models and of real optimizers."""

from dataclasses import replace

import bitsandbytes as bnb
import cost_models as c
import pytest
import torch
from tiny import one_thread  # noqa: F401

from qlora_lib.bench.gpu_models import SHAPES
from qlora_lib.cost import memory as m
from qlora_lib.cost.shapes import LLAMA_8B, SMOLLM2, TINYLLAMA
from qlora_lib.cost.workload import Workload
from qlora_lib.errors import UsageError
from qlora_lib.metrics.memory import optimizer_bytes
from qlora_lib.metrics.sizes import model_bytes

FORMATS = [("none", True), ("int8", True), ("nf4", True), ("nf4", False), ("fp4", True), ("fp4", False)]
FAMILIES = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("mistral", {"intermediate_size": 200}),  # blocks of 64 that end within a row
    ("qwen2", {}),  # biases on q, k and v
    ("qwen3", {"head_dim": 32}),  # norms of queries and keys; heads wider than the hidden state has room for
]


def work_of(path, quantization: str, double_quant: bool = True, **settings) -> Workload:
    method = "lora" if quantization == "none" else "qlora"
    return Workload(c.shape_of(path), method, 1, 8, rank=3, quantization=quantization, double_quant=double_quant, **settings)


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family, widths", FAMILIES, ids=[f"{f}{len(w)}" for f, w in FAMILIES])
@pytest.mark.parametrize("quantization, double_quant", FORMATS)
def test_resident_bytes_are_those_counted_on_a_loaded_model(family, widths, tied, quantization, double_quant):
    path = c.folder(family, tied, **widths)
    work = work_of(path, quantization, double_quant)
    counted, computed = model_bytes(c.training_model(path, work)), m.resident(work)
    assert computed.total == counted.total
    assert (computed.adapters, computed.quantization_constants) == (counted.adapter, counted.quantization_state)
    assert computed.weights + computed.buffers == counted.quantized_weights + counted.unquantized


@pytest.mark.parametrize("quantization", ["none", "int8", "nf4"])
@pytest.mark.parametrize("fast", [False, True])
def test_in_mixed_precision_biases_change_their_dtype_with_the_first_forward(quantization, fast):
    path = c.folder("llama", True, attention_bias=True, mlp_bias=True)
    work = work_of(path, quantization, dtype="bf16", fast=fast)
    model = c.training_model(path, work)
    c.saved(model, work)
    assert m.resident(work).total == model_bytes(model).total


@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16"])
def test_weights_that_are_trained(weight_dtype):
    path = c.folder("qwen3", False)
    work = Workload(c.shape_of(path), "full", 1, 8, dtype="bf16", weight_dtype=weight_dtype)
    model = c.training_model(path, work)
    assert m.resident(work).total == model_bytes(model).total and m.resident(work).adapters == 0
    assert m.trained_tensors(work) == [p.numel() for p in model.parameters()]  # in this order


@pytest.mark.parametrize("optimizer, make", [("adamw", torch.optim.AdamW), ("adamw_8bit", bnb.optim.AdamW8bit)])
@pytest.mark.parametrize("weight_dtype", ["fp32", "bf16"])
def test_optimizer_states_are_those_of_a_real_one(optimizer, make, weight_dtype):
    path = c.folder("qwen2", True)
    work = Workload(c.shape_of(path), "full", 1, 8, dtype="bf16", weight_dtype=weight_dtype, optimizer=optimizer, trainer=False)
    model = c.training_model(path, work)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    real = make(model.parameters(), lr=1e-6)
    real.step()
    assert m.optimizer_bytes(work) == (optimizer_bytes(real), 0)


@pytest.mark.parametrize("tied", [True, False])
def test_trainer_leaves_the_embeddings_states_in_32_bits(tied, monkeypatch, tmp_path):
    """As transformers' Trainer makes the optimizer; its first step makes the states."""
    from transformers import Trainer, TrainingArguments

    monkeypatch.setattr(bnb.optim.GlobalOptimManager, "_instance", None)  # it remembers modules for the whole process
    path = c.folder("llama", tied, vocab_size=300)
    work = Workload(c.shape_of(path), "full", 1, 8, optimizer="adamw_8bit")
    model = c.training_model(path, work)
    arguments = TrainingArguments(output_dir=str(tmp_path), optim="adamw_8bit", use_cpu=True, report_to="none")
    real = Trainer(model=model, args=arguments).create_optimizer()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    real.step()
    assert m.optimizer_bytes(work) == (optimizer_bytes(real), 0)
    assert m.optimizer_bytes(replace(work, fast=True))[0] < m.optimizer_bytes(work)[0]  # that one it does not know


def test_a_paged_optimizer_may_put_large_tensors_alone_on_the_host():
    def states(shape, rank, optimizer, device="cuda"):
        return m.optimizer_bytes(Workload(shape, "qlora", 1, 8, rank=rank, optimizer=optimizer, device=device))

    for optimizer in ("adamw", "adamw_8bit"):
        assert states(TINYLLAMA, 16, f"paged_{optimizer}")[1] == 0  # the largest matrix is 16 x 5,632
        assert states(LLAMA_8B, 16, f"paged_{optimizer}", "cpu") == states(LLAMA_8B, 16, optimizer, "cpu")
    device, host = states(LLAMA_8B, 16, "paged_adamw_8bit")
    # A of down_proj and B of gate and up have 16 x 14,336 = 229,376 elements, all others at most 65,536
    assert host == 32 * 3 * 229_376 * 2
    assert device + host == states(LLAMA_8B, 16, "adamw_8bit")[0]
    device, host = states(LLAMA_8B, 16, "paged_adamw")
    assert host == 32 * 3 * 229_376 * 8 and device + host == 8 * LLAMA_8B.lora_parameters(16)


@pytest.mark.parametrize("double_quant", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("rows, columns", [(1, 64), (3, 100), (17, 64 * 257), (64, 4096)])
@pytest.mark.parametrize("block_size", [64, 256])
def test_one_matrix_takes_what_bitsandbytes_gives_it(rows, columns, quant_type, double_quant, block_size):
    codes, state = bnb.functional.quantize_4bit(
        torch.randn(rows, columns), quant_type=quant_type, blocksize=block_size, compress_statistics=double_quant
    )
    constants = [state.absmax, state.code]
    if double_quant:
        constants += [state.offset, state.state2.absmax, state.state2.code]
    computed = m.quantized_bytes(rows * columns, rows, quant_type, double_quant, block_size)
    assert computed == (codes.nbytes, sum(t.nbytes for t in constants))


def test_bits_a_parameter_are_those_of_the_paper():
    n = 4096 * 4096
    plain, nested = (8 * sum(m.quantized_bytes(n, 4096, "nf4", dq)) / n for dq in (False, True))
    assert plain - 4 == pytest.approx(0.5, abs=1e-4) and nested - 4 == pytest.approx(0.127, abs=1e-3)


def test_known_models():
    assert [sum(m.weight_tensors(s)) for s in (SMOLLM2, TINYLLAMA, LLAMA_8B)] == [134_515_008, 1_100_048_384, 8_030_261_248]
    for shape in SHAPES.values():
        assert sum(m.weight_tensors(shape)) == shape.parameters.total
    qlora = m.resident(Workload(SMOLLM2, "qlora", 1, 1, double_quant=False))
    assert (qlora.total - qlora.adapters) / 2**20 == pytest.approx(165.1, abs=0.05)  # counted on the real model
    qlora = m.resident(Workload(SMOLLM2, "qlora", 1, 1))
    assert (qlora.total - qlora.adapters) / 2**20 == pytest.approx(160.6, abs=0.05)


# --- what a workload may be -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"method": "qlorra"}, "Did you mean 'qlora'"),
        ({"method": "full", "quantization": "nf4"}, "cannot be trained"),
        ({"quantization": "none"}, "QLoRA without quantization"),
        ({"quantization": "int4"}, "unknown quantization"),
        ({"dtype": "fp8"}, "unknown dtype"),
        ({"weight_dtype": "bf16"}, "weight dtype is 'bf16' and the products run in fp32"),
        ({"adapter_dtype": "fp16", "dtype": "bf16"}, "Choose from: fp32, bf16"),
        ({"batch": 0}, "batch is 0"),
        ({"length": 1.5}, "length is 1.5"),
        ({"accumulation": True}, "accumulation is True"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"block_size": 48}, "bitsandbytes takes: 64"),
        ({"targets": ("q_prj",)}, "Did you mean 'q_proj'"),
        ({"optimizer": "sgd"}, "unknown optimizer"),
    ],
)
def test_a_workload_that_cannot_be_is_refused(settings, said):
    with pytest.raises(UsageError) as e:
        Workload(**{"shape": SMOLLM2, "method": "qlora", "batch": 4, "length": 128, **settings})
    assert said in str(e.value)


def test_what_is_left_open_is_what_training_would_take():
    work = Workload(SMOLLM2, "qlora", 4, 128, dtype="bf16")
    assert (work.quantization, work.weight_dtype, work.tokens, work.loss) == ("nf4", "fp32", 512, "whole")
    assert Workload(SMOLLM2, "lora", 4, 128, dtype="bf16").weight_dtype == "bf16"
    assert Workload(SMOLLM2, "full", 4, 128, dtype="fp16").weight_dtype == "fp32"
    assert replace(work, fast=True).loss == "chunked"
    assert replace(work, fast=True, dtype="fp16").loss == "whole"  # the loss is scaled up there
