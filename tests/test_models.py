"""Loading, adapters and merging, against PEFT and bitsandbytes themselves."""

import json
import shutil
import subprocess
import sys

import bitsandbytes as bnb
import pytest
import tiny
import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from qlora_lib import models
from qlora_lib.config import Lora, Quantization
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.hardware import DType

one_thread = tiny.one_thread
SEVEN = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def layers(model):
    """{name: module} of the linear layers that are not the head."""
    head = model.get_output_embeddings()
    return {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and m is not head}


# --- loading


@pytest.mark.parametrize("form, kind", [("fp32", torch.nn.Linear), ("int8", bnb.nn.Linear8bitLt), ("nf4", bnb.nn.Linear4bit),
                                        ("nf4dq", bnb.nn.Linear4bit), ("fp4", bnb.nn.Linear4bit)])  # fmt: skip
def test_each_format_quantizes_the_layers_and_nothing_else(form, kind):
    quantization = tiny.FORMATS[form]
    model = tiny.base(quantization)
    assert not model.training
    assert len(layers(model)) == 14 and {type(m) for m in layers(model).values()} == {kind}
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    stored = load_file(tiny.folder() / "model.safetensors")
    for name, tensor in model.state_dict().items():
        if "norm" in name or "embed" in name:
            assert torch.equal(tensor, stored[name]), name
    if kind is bnb.nn.Linear4bit:
        for module in layers(model).values():
            state = module.weight.quant_state
            assert (state.quant_type, state.blocksize, state.nested) == (quantization.format, 64, quantization.double_quant)
            assert module.compute_dtype == torch.float32 and module.weight.dtype == torch.uint8


def test_the_weights_are_those_of_the_file_to_the_formats_precision():
    """NF4's largest gap between codes is 0.3039 of a block's absmax: no value is off by more than half."""
    stored = load_file(tiny.folder() / "model.safetensors")
    for name, module in layers(tiny.base(tiny.FORMATS["nf4"])).items():
        weight = stored[f"{name}.weight"]
        read = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
        absmax = weight.view(-1, 64).abs().amax(1, keepdim=True)
        assert ((read - weight).view(-1, 64).abs() <= 0.152 * absmax).all()
        assert (read - weight).abs().max() > 0
    for name, module in layers(tiny.base()).items():
        assert torch.equal(module.weight, stored[f"{name}.weight"])


def test_bitsandbytes_is_imported_without_the_compiler_and_compiles_on_the_first_call():
    probe = """
import sys, torch
asked = []
def compile_now(function, **options):
    asked.append((function.__name__, options))
    return function
torch.compile = compile_now
from qlora_lib import models
models.import_bitsandbytes()
print(asked, torch.compile is compile_now, "torch._inductor.compile_fx" in sys.modules)
from bitsandbytes.backends.default import ops
codes, code = torch.arange(64, dtype=torch.uint8), torch.linspace(-1, 1, 256)
made = [ops._dequantize_blockwise_compute(codes, torch.ones(1), code, 64, torch.float32) for _ in range(2)]
print(asked, all(torch.equal(m, code[:64]) for m in made))
"""
    run = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    assert run.stdout.splitlines() == [
        "[] True False",
        "[('_dequantize_blockwise_compute', {'dynamic': False})] True",
    ], run.stderr


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_dtype_is_of_the_weights_and_of_the_products(dtype):
    assert {p.dtype for p in tiny.base(dtype=dtype).parameters()} == {dtype}
    model = tiny.base(tiny.FORMATS["nf4dq"], dtype)
    assert {m.compute_dtype for m in layers(model).values()} == {dtype}
    assert model.get_input_embeddings().weight.dtype == dtype


def test_full_training_keeps_fp32_weights_whatever_the_products():
    for name in ("fp32", "fp16", "bf16"):
        assert models.weight_dtype("full", DType(name, "")) is torch.float32
        for method in ("base", "lora", "qlora"):
            assert models.weight_dtype(method, DType(name, "")) is DType(name, "").torch


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(tiny.folder(), tmp_path / "model")


@pytest.mark.parametrize("damage", ["truncated", "empty", "no weights", "pickle", "no config", "bad config", "unknown type"])
def test_a_broken_folder_is_one_line(copy, damage):
    weights, config = copy / "model.safetensors", copy / "config.json"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "empty":
        weights.write_bytes(b"")
    elif damage == "no weights":
        weights.unlink()
    elif damage == "pickle":
        torch.save({}, copy / "pytorch_model.bin")
        weights.unlink()
    elif damage == "no config":
        config.unlink()
    elif damage == "bad config":
        config.write_text("{")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "nothing", "architectures": ["Nothing"]}))
    with pytest.raises(QloraError, match="cannot be loaded") as e:
        models.load_base(copy, Quantization(), torch.float32, "cpu")
    assert "\n" not in str(e.value)


def test_a_folder_without_a_tokenizer_is_one_line(tmp_path):
    with pytest.raises(QloraError, match="no tokenizer can be read") as e:
        models.load_tokenizer(tmp_path)
    assert "\n" not in str(e.value)


# --- AVX512-BF16


def gradient(model, ids):
    """Of the loss, in the embedding's output: all 4-bit weights are read on the way back."""
    inputs = model.get_input_embeddings()(ids).detach().requires_grad_()
    model.train()
    model(inputs_embeds=inputs, labels=ids).loss.backward()
    return inputs.grad


@pytest.mark.parametrize("form", ["nf4", "nf4dq", "fp4"])
def test_an_evaluation_between_steps_leaves_gradients_right(form):
    model, ids = tiny.base(tiny.FORMATS[form]), tiny.ids(2, 16)
    before = gradient(model, ids)
    packed = [m.weight.data.clone() for m in layers(model).values()]
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert all(torch.equal(a, m.weight.data) for a, m in zip(packed, layers(model).values()))
    assert torch.equal(gradient(model, ids), before)


@pytest.mark.skipif(not has_avx512bf16(), reason="only CPUs with AVX512-BF16 repack")
@pytest.mark.filterwarnings("ignore:bitsandbytes..gemv_4bit")
def test_without_our_switch_bitsandbytes_repacks():
    """What `keep_weights_as_packed` is there for; when this fails, the switch can go."""
    model, ids = tiny.base(tiny.FORMATS["nf4"], torch.bfloat16), tiny.ids(2, 16)
    for module in layers(model).values():
        module.support_avx512bf16_for_cpu = True
    before = gradient(model, ids)
    packed = [m.weight.data.clone() for m in layers(model).values()]
    model.eval()
    with torch.no_grad():
        model(input_ids=ids)
    assert not all(torch.equal(a, m.weight.data) for a, m in zip(packed, layers(model).values()))
    try:
        after = gradient(model, ids)
    except RuntimeError:
        return
    assert (after - before).norm() > 0.1 * before.norm()


# --- adapters


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["down_proj"], "all-linear"])
def test_lora_is_pefts_own(form, targets):
    lora = Lora(rank=3, alpha=7, dropout=0.1, target_modules=targets)
    model = models.attach_lora(tiny.base(tiny.FORMATS[form]), lora, seed=5)
    torch.manual_seed(5)
    config = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=7, lora_dropout=0.1, target_modules=targets)
    theirs = get_peft_model(tiny.base(tiny.FORMATS[form]), config)
    mine = {n: p for n, p in model.named_parameters() if "lora_" in n}
    reference = {n: p for n, p in theirs.named_parameters() if "lora_" in n}
    assert mine.keys() == reference.keys() and len(mine) == 4 * (7 if targets == "all-linear" else len(targets))
    assert all(torch.equal(mine[n], reference[n]) for n in mine)
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(mine)
    assert not any("lm_head" in n or "embed" in n for n in mine)
    module = model.base_model.model.model.layers[1].mlp.down_proj if targets != ["q_proj", "v_proj"] else model.base_model.model.model.layers[1].self_attn.v_proj
    assert module.scaling["default"] == pytest.approx(7 / 3) and module.lora_dropout["default"].p == 0.1


def test_rslora_scales_by_the_root_of_the_rank():
    model = models.attach_lora(tiny.base(), Lora(rank=4, alpha=8, use_rslora=True), 0)
    assert model.base_model.model.model.layers[0].self_attn.q_proj.scaling["default"] == pytest.approx(8 / 4**0.5)


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed():
    ids = tiny.ids(1, 12)
    base = tiny.base()
    plain = base(input_ids=ids).logits
    model = models.attach_lora(base, Lora(rank=4), 0)
    assert torch.equal(model.eval()(input_ids=ids).logits, plain)

    def a_of(seed):
        return models.attach_lora(tiny.base(), Lora(rank=4), seed).base_model.model.model.layers[0].mlp.up_proj.lora_A["default"].weight

    assert torch.equal(a_of(1), a_of(1)) and not torch.equal(a_of(1), a_of(2))


def test_all_linear_means_the_layers_without_the_head():
    assert set(models.linear_names(tiny.base())) == SEVEN
    assert set(models.linear_names(tiny.base(tiny.FORMATS["nf4"]))) == SEVEN


def test_an_unknown_module_names_the_nearest():
    for name, said in (("q_porj", "no linear layer 'q_porj'.*Did you mean 'q_proj'"), ("lm_head", "no linear layer 'lm_head'")):
        with pytest.raises(UsageError, match=said):
            models.attach_lora(tiny.base(), Lora(target_modules=["v_proj", name]), 0)


@pytest.mark.parametrize("method, form", [("full", "fp32"), ("lora", "fp32"), ("qlora", "nf4dq")])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_checkpointing_is_on_only_when_asked_for(method, form, checkpointing):
    """PEFT's preparation turns it on by default, which alone makes QLoRA much slower."""
    model = models.prepare_for_training(tiny.base(tiny.FORMATS[form]), method, checkpointing)
    assert model.is_gradient_checkpointing is checkpointing and model.config.use_cache is False
    if method == "full":
        assert all(p.requires_grad for p in model.parameters())


def test_qlora_casts_16_bit_leftovers_to_fp32_and_freezes_all():
    model = models.prepare_for_training(tiny.base(tiny.FORMATS["nf4dq"], torch.bfloat16), "qlora", False)
    assert not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for n, p in model.named_parameters() if "proj" not in n} == {torch.float32}


@pytest.fixture(scope="module")
def trained():
    """A LoRA model whose B is not zero."""
    model = models.attach_lora(tiny.base(), Lora(rank=4, alpha=8), 0)
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=generator)
    return model.eval()


@pytest.fixture
def adapter(trained, tmp_path):
    models.save_adapter(trained, tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_comes_back_bit_for_bit(trained, adapter):
    assert {p.name for p in adapter.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert not list(adapter.glob("*.bin"))
    assert json.loads((adapter / "adapter_config.json").read_text())["target_modules"] == sorted(SEVEN)  # the same bytes each time
    saved = load_file(adapter / "adapter_model.safetensors")
    assert len(saved) == 28 and not any("embed" in n or "lm_head" in n for n in saved)
    for trainable in (False, True):
        again = models.load_adapter(tiny.base(), adapter, trainable)
        here = {n: p for n, p in trained.named_parameters() if "lora_" in n}
        there = {n: p for n, p in again.named_parameters() if "lora_" in n}
        assert here.keys() == there.keys() and all(torch.equal(here[n], there[n]) for n in here)
        assert {p.requires_grad for p in there.values()} == {trainable}
    ids = tiny.ids(1, 12)
    assert torch.equal(trained(input_ids=ids).logits, again.eval()(input_ids=ids).logits)


@pytest.mark.parametrize("damage, error, said", [
    ("nothing there", UsageError, "no folder .*Give the folder of an adapter"),
    ("no config", UsageError, "adapter_config.json is missing.*it has: .*adapter_model.safetensors"),
    ("bin only", UsageError, "adapter_model.safetensors is missing.*adapter_model.bin"),
    ("truncated", QloraError, "does not load on this base"),
    ("bad json", QloraError, "does not load on this base"),
    ("other rank", QloraError, "does not load on this base"),
    ("a tensor is gone", QloraError, "does not fit this base: 1 of its 28 places stay empty"),
    ("of a deeper model", QloraError, "does not fit this base: 0 of its 28 places stay empty and 2 tensors have none"),
    ("other modules", QloraError, "does not load on this base"),
])  # fmt: skip
def test_a_broken_adapter_is_one_line(adapter, damage, error, said):
    weights, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    tensors, settings = load_file(weights), json.loads(config.read_text())
    if damage == "nothing there":
        shutil.rmtree(adapter)
    elif damage == "no config":
        config.unlink()
    elif damage == "bin only":
        torch.save(tensors, adapter / "adapter_model.bin")
        weights.unlink()
    elif damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif damage == "bad json":
        config.write_text("{")
    elif damage == "other rank":
        config.write_text(json.dumps(settings | {"r": 8}))
    elif damage == "a tensor is gone":
        tensors.pop(next(iter(tensors)))
        save_file(tensors, weights)
    elif damage == "of a deeper model":
        more = {n.replace("layers.1", "layers.2"): t.clone() for n, t in tensors.items() if "layers.1.mlp.up_proj" in n}
        save_file(tensors | more, weights)
    else:
        config.write_text(json.dumps(settings | {"target_modules": ["query_key_value"]}))
    with pytest.raises(error, match=said) as e:
        models.load_adapter(tiny.base(), adapter)
    assert "\n" not in str(e.value) and e.value.exit_code == (2 if error is UsageError else 1)


def test_an_adapter_that_brings_its_embeddings_is_taken(trained, tmp_path):
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    assert any("embed_tokens" in n for n in load_file(tmp_path / "adapter_model.safetensors"))
    models.load_adapter(tiny.base(), tmp_path)


def test_an_adapter_of_virtual_tokens_is_refused(tmp_path):
    """Evaluation goes past the place where PEFT puts them: the number would be the base's."""
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    get_peft_model(tiny.base(), config).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="virtual tokens"):
        models.load_adapter(tiny.base(), tmp_path)


def test_merging_keeps_what_the_adapter_computes(adapter):
    ids = tiny.ids(2, 20)
    model = models.load_adapter(tiny.base(), adapter).eval()
    plain = tiny.base()(input_ids=ids).logits
    adapted = model(input_ids=ids).logits
    merged = models.merge_adapter(model)
    assert not any("lora_" in n for n, _ in merged.named_parameters())
    torch.testing.assert_close(merged(input_ids=ids).logits, adapted, rtol=1e-4, atol=1e-5)
    assert (adapted - plain).abs().max() > 0.01
