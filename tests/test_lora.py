"""Our LoRA against PEFT's, the oracle: equality where the arithmetic is the same."""

import json
import math
import warnings

import bitsandbytes as bnb
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.lora import dequantized, inject_lora, load_lora, lora_layers, merge_lora, save_lora, unmerge_lora

one_thread = tiny.one_thread
SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
WIDE = {"rank": 4, "alpha": 8, "target_modules": "all-linear"}


def ours(model, seed=0, **settings):
    torch.manual_seed(seed)
    return inject_lora(model, **{**WIDE, **settings})


def theirs(model, seed=0, rank=4, alpha=8, target_modules="all-linear", dropout=0.0, rank_stabilized=False):
    config = LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=target_modules,
                        lora_dropout=dropout, use_rslora=rank_stabilized)  # fmt: skip
    torch.manual_seed(seed)
    return get_peft_model(model, config)


def pair(form="fp32", dtype=torch.float32, **settings):
    """The same base with our adapter and with PEFT's, from the same seed."""
    return ours(tiny.base(tiny.FORMATS[form], dtype), **settings), theirs(tiny.base(tiny.FORMATS[form], dtype), **settings)


def matrices(model):
    """{layer.lora_X: weight} under the name that both have in common."""
    return {
        name.removeprefix("base_model.model.").replace(".default.", "."): p
        for name, p in model.named_parameters()
        if ".lora_" in name
    }


def stir(*models, size=0.05):
    """B away from zero, alike in every model, so that the adapters do something."""
    with torch.no_grad():
        for model in models:
            random = torch.Generator().manual_seed(1)
            for name, p in matrices(model).items():
                if ".lora_B." in name:
                    p.copy_(torch.randn(p.shape, generator=random) * size)


def logits(model, seed=0):
    with torch.no_grad():
        return model(input_ids=tiny.ids(2, 12, seed=seed)).logits


def loss(model, seed=0):
    ids = tiny.ids(2, 12, seed=seed)
    return model(input_ids=ids, labels=ids).loss


# --- the start -----------------------------------------------------------------------------------


STORED = [("fp32", torch.float32), ("fp32", torch.bfloat16), ("fp32", torch.float16), ("nf4dq", torch.float32),
          ("nf4dq", torch.bfloat16), ("int8", torch.float32)]  # fmt: skip


@pytest.mark.parametrize("form, dtype", STORED)
def test_one_seed_gives_pefts_adapter(form, dtype):
    mine, peft = map(matrices, pair(form, dtype))
    assert list(mine) == list(peft) and len(mine) == 2 * 14
    for name, p in mine.items():
        assert p.dtype == peft[name].dtype == torch.float32 and torch.equal(p, peft[name]), name
        assert bool(p.any()) == (".lora_A." in name)


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
def test_a_fresh_adapter_changes_no_bit_of_the_output(form):
    base = tiny.base(tiny.FORMATS[form])
    before = logits(base)
    assert torch.equal(logits(ours(base)), before)


def test_only_a_and_b_are_trained():
    model = ours(tiny.base(), target_modules=("q_proj", "down_proj"))
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == set(matrices(model)) and len(trained) == 2 * 2 * 2
    shape = {n.rpartition(".layers.0.")[2]: tuple(p.shape) for n, p in matrices(model).items()}
    assert shape["self_attn.q_proj.lora_A.weight"] == (4, 64) and shape["mlp.down_proj.lora_A.weight"] == (4, 128)
    assert shape["mlp.down_proj.lora_B.weight"] == (64, 4)
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert count == 2 * (4 * (64 + 64) + 4 * (128 + 64))


def test_a_target_is_the_end_of_a_name_as_in_peft():
    for targets in (("self_attn.q_proj",), ("layers.1.mlp.up_proj", "v_proj"), SEVEN):
        assert list(matrices(ours(tiny.base(), target_modules=targets))) == list(
            matrices(theirs(tiny.base(), target_modules=list(targets)))
        )
    assert list(lora_layers(ours(tiny.base(), target_modules="q_proj"))) == [
        f"model.layers.{i}.self_attn.q_proj" for i in range(2)
    ]


def test_the_layer_follows_the_mode_of_the_layer_that_it_wraps():
    assert not any(m.training for m in ours(tiny.base(), dropout=0.5).modules())  # loaded for evaluation
    assert all(m.training for m in lora_layers(ours(tiny.base().train())).values())


# --- forward and gradients -----------------------------------------------------------------------

CASES = [
    *((form, settings) for form in ("fp32", "nf4dq") for settings in ({}, {"rank_stabilized": True}, {"dropout": 0.3})),
    ("fp4", {}),
    ("fp32", {"target_modules": ["q_proj", "up_proj"], "rank": 3}),
]


@pytest.mark.parametrize("form, settings", CASES, ids=str)
def test_forward_and_gradients_are_pefts_to_the_bit(form, settings):
    models = pair(form, **settings)
    stir(*models)
    found = []
    for model in models:
        model.train()
        torch.manual_seed(5)  # of the dropout masks
        value = loss(model)
        value.backward()
        found.append((value.detach(), {name: p.grad for name, p in matrices(model).items()}))
    (mine, gradients), (peft, their_gradients) = found
    assert torch.equal(mine, peft)
    for name, gradient in gradients.items():
        assert gradient.any() and torch.equal(gradient, their_gradients[name]), name
    for parameter in models[0].parameters():
        assert parameter.requires_grad or parameter.grad is None


def test_dropout_is_of_the_adapters_input_alone_and_only_in_training():
    torch.manual_seed(0)
    layer = inject_lora(nn.Sequential(nn.Linear(64, 5)), 4, 8, ("0",), dropout=0.5)
    stir(layer)
    x = torch.ones(1, 64)
    torch.manual_seed(1)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    a, b = layer[0].lora_A.weight, layer[0].lora_B.weight
    assert torch.equal(layer(x), layer[0].base_layer(x) + x @ a.T @ b.T * 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_16_bit_base_keeps_its_dtype_and_equals_peft(dtype):
    models = pair(dtype=dtype)
    stir(*models)
    mine, peft = map(logits, models)
    assert mine.dtype == dtype and torch.equal(mine, peft)


def test_16_bit_products_of_a_4_bit_base_differ_from_pefts_by_their_rounding():
    """PEFT rounds the adapter's term to bf16 before it adds it; here the sum is rounded."""
    models = pair("nf4dq", torch.bfloat16)
    stir(*models)
    mine, peft = (logits(m).float() for m in models)
    exact = logits(stirred("nf4dq"))
    assert (mine - peft).abs().max() < 2**-6 * exact.abs().max()
    assert (mine - exact).norm() < 1.05 * (peft - exact).norm()


def stirred(form, **settings):
    model = ours(tiny.base(tiny.FORMATS[form]), **settings)
    stir(model)
    return model


def test_an_8_bit_base():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        models = pair("int8")
        stir(*models)
        assert torch.equal(*map(logits, models))
        before = logits(models[0])
        merged = logits(merge_lora(models[0]))
    # the base rounded its input to 8 bits too, which the merged layer does not
    assert (merged - before).norm() < 0.05 * before.norm()


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    lead=st.lists(st.integers(1, 4), max_size=3),
    rank=st.integers(1, 12),
    alpha=st.floats(0.1, 64),
    stabilized=st.booleans(),
    bias=st.booleans(),
)
def test_any_shape_rank_and_alpha(shape, lead, rank, alpha, stabilized, bias):
    """y = x W^T + b + s x A^T B^T in fp64; merging does not change it, and unmerging restores W."""
    base = nn.Linear(*shape, bias=bias, dtype=torch.float64)
    weight = base.weight.detach().clone()
    model = inject_lora(nn.Sequential(base), rank, alpha, ("0",), rank_stabilized=stabilized)
    layer = model[0]
    nn.init.normal_(layer.lora_B.weight)
    a, b = layer.lora_A.weight, layer.lora_B.weight
    assert a.shape == (rank, shape[0]) and b.shape == (shape[1], rank) and a.dtype == torch.float64
    x = torch.randn(*lead, shape[0], dtype=torch.float64)
    scale = alpha / (math.sqrt(rank) if stabilized else rank)
    expected = x @ weight.T + (base.bias if bias else 0) + scale * (x @ a.T @ b.T)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    merge_lora(model)
    assert type(model[0]) is nn.Linear
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    unmerge_lora(model)
    assert torch.equal(model[0].base_layer.weight, weight)


# --- training ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
def test_twenty_steps_have_pefts_losses(form):
    found = []
    for model in pair(form, rank=8, alpha=16):
        model.train()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
        losses = []
        for step in range(20):
            value = loss(model, seed=step % 4)
            value.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(value.item())
        found.append((losses, matrices(model)))
    (mine, adapter), (peft, their_adapter) = found
    assert mine == pytest.approx(peft, rel=1e-6) and sum(mine[-4:]) < 0.97 * sum(mine[:4])
    for name, p in adapter.items():
        torch.testing.assert_close(p, their_adapter[name], rtol=1e-5, atol=1e-6)


# --- merging -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("stabilized", [False, True])
def test_merged_weights_and_outputs_are_pefts(dtype, stabilized):
    models = pair(dtype=dtype, rank_stabilized=stabilized)
    stir(*models)
    mine, peft = merge_lora(models[0]), models[1].merge_and_unload()
    assert list(mine.state_dict()) == list(peft.state_dict()) == list(tiny.base().state_dict())
    for name, tensor in peft.state_dict().items():
        assert tensor.dtype == dtype and torch.equal(mine.state_dict()[name], tensor), name
    assert torch.equal(logits(mine), logits(peft))
    assert not any(p.requires_grad for m in mine.modules() if hasattr(m, "before_merging") for p in m.parameters())


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
def test_unmerging_restores_every_bit(form):
    model = stirred(form)
    before, state = logits(model), {k: v.clone() for k, v in model.state_dict().items()}
    for _ in range(2):
        merged = logits(merge_lora(model))
        assert not torch.equal(merged, before)
        torch.testing.assert_close(merged, before, rtol=1e-4, atol=1e-5)
        unmerge_lora(model)
        assert torch.equal(logits(model), before)
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(matrices(model))


def test_merging_in_fp32_then_subtracting_would_not_restore_it():
    """Why the old weight is kept."""
    layer = next(iter(lora_layers(stirred("fp32")).values()))
    weight, product = layer.base_layer.weight, layer.product()
    assert not torch.equal(weight + product - product, weight)


@pytest.mark.parametrize("form, dtype", [("nf4dq", torch.float32), ("fp4", torch.float32), ("nf4", torch.bfloat16)])
def test_a_4_bit_base_is_merged_into_its_dequantized_weight(form, dtype):
    model = ours(tiny.base(tiny.FORMATS[form], dtype))
    stir(model)
    before = logits(model)
    wanted = {
        name: (dequantized(layer.base_layer).float() + layer.product()).to(dtype) for name, layer in lora_layers(model).items()
    }
    merge_lora(model)
    for name, weight in wanted.items():
        layer = model.get_submodule(name)
        assert type(layer) is nn.Linear and torch.equal(layer.weight, weight)
    after = logits(model)
    tolerance = 1e-4 if dtype == torch.float32 else 0.05
    assert after.dtype == dtype and (after - before).norm() < tolerance * before.norm()


def test_peft_quantizes_the_sum_again_and_loses_what_merging_here_keeps():
    mine, peft = pair("nf4dq")
    stir(mine, peft)
    before = logits(mine)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        again = logits(peft.merge_and_unload())
    kept = (logits(merge_lora(mine)) - before).norm()
    assert kept < 1e-3 * (again - before).norm()


def test_merged_dtype_can_be_chosen():
    model = merge_lora(stirred("nf4dq"), torch.bfloat16)
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16


def test_dequantized_is_what_the_layer_multiplies_with():
    for form in ("fp32", "nf4", "nf4dq", "fp4"):
        layer = tiny.base(tiny.FORMATS[form]).model.layers[0].mlp.up_proj
        assert torch.equal(layer(torch.eye(64)).T, dequantized(layer)), form


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
@pytest.mark.parametrize("settings", [{}, {"rank_stabilized": True, "target_modules": ["self_attn.q_proj", "up_proj"]}])
def test_peft_loads_what_is_saved_here(form, settings, tmp_path):
    model = stirred(form, dropout=0.1, **settings)
    save_lora(model, tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of missing or unexpected keys
        warnings.filterwarnings("ignore", category=FutureWarning)
        peft = PeftModel.from_pretrained(tiny.base(tiny.FORMATS[form]), tmp_path / "adapter")
    assert type(peft).__name__ == "PeftModelForCausalLM"
    assert torch.equal(logits(peft), logits(model))
    config = peft.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (4, 8, 0.1)
    assert config.use_rslora == settings.get("rank_stabilized", False)


@pytest.mark.parametrize("form", ["fp32", "nf4dq"])
@pytest.mark.parametrize("settings", [{}, {"rank_stabilized": True, "target_modules": ["q_proj", "layers.1.mlp.up_proj"]}])
def test_what_peft_saved_is_loaded_here(form, settings, tmp_path):
    peft = theirs(tiny.base(tiny.FORMATS[form]), dropout=0.1, **settings)
    stir(peft)
    peft.save_pretrained(tmp_path)
    model = load_lora(tiny.base(tiny.FORMATS[form]), tmp_path)
    assert torch.equal(logits(model), logits(peft.eval()))
    assert next(iter(lora_layers(model).values())).settings.dropout == 0.1


def test_a_round_trip_and_tensors_in_16_bits(tmp_path):
    model = stirred("fp32")
    save_lora(model, tmp_path)
    assert torch.equal(logits(load_lora(tiny.base(), tmp_path)), logits(model))
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: v.bfloat16() for k, v in load_file(file).items()}, file)
    again = load_lora(tiny.base(), str(tmp_path))
    assert {p.dtype for p in matrices(again).values()} == {torch.float32}
    torch.testing.assert_close(logits(again), logits(model), rtol=0.05, atol=0.05)


def test_a_model_without_a_head(tmp_path):
    body = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    twin.load_state_dict(body.state_dict())
    inject_lora(body, 2, 4, "all-linear")
    stir(body, size=1.0)
    save_lora(body, tmp_path)
    x = torch.randn(5, 3)
    assert torch.equal(PeftModel.from_pretrained(twin, tmp_path)(x), body(x))


@pytest.fixture
def adapter(tmp_path):
    save_lora(stirred("fp32"), tmp_path)
    return tmp_path


@pytest.mark.parametrize("changes, message", [
    ({"use_dora": True}, "use_dora = true"),
    ({"bias": "all"}, 'bias = "all"'),
    ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\]'),
    ({"rank_pattern": {"q_proj": 2}}, "rank_pattern"),
    ({"alpha_pattern": {"q_proj": 2}, "use_dora": True}, "alpha_pattern = .*, use_dora = true"),
    ({"layers_to_transform": [0]}, "layers_to_transform"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ({"something_new": {"a": 1}}, "something_new"),
    ({"peft_type": "LOHA"}, 'peft_type = "LOHA"'),
    ({"r": 0}, "rank = 0"),
    ({"r": None}, "rank = None"),
    ({"lora_alpha": "a lot"}, "is no LoRA adapter's"),
    ({"target_modules": ["q_porj"]}, "no linear layer 'q_porj'. Did you mean 'q_proj'"),
])  # fmt: skip
def test_an_adapter_that_is_more_than_lora_is_refused(adapter, changes, message):
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    model = tiny.base()
    with pytest.raises(UsageError, match=message):
        load_lora(model, adapter)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_an_adapter_of_another_model_leaves_this_one_alone(adapter, change):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    first = min(tensors)
    if change == "missing":
        del tensors[first]
    elif change == "extra":
        tensors["base_model.model.model.layers.2.mlp.up_proj.lora_A.weight"] = torch.zeros(4, 64)
    else:
        tensors[first] = torch.zeros(4, 65)
    save_file(tensors, file)
    model = tiny.base()
    with pytest.raises(QloraError, match="does not fit: base_model.* Give the adapter of this very model"):
        load_lora(model, adapter)
    assert not lora_layers(model)


def test_folders_that_hold_no_adapter(adapter, tmp_path):
    with pytest.raises(UsageError, match="no folder"):
        load_lora(tiny.base(), tmp_path / "nowhere")
    (adapter / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(QloraError, match="cannot be read"):
        load_lora(tiny.base(), adapter)
    (adapter / "adapter_config.json").write_text("[]")
    with pytest.raises(UsageError, match="is no LoRA adapter's"):
        load_lora(tiny.base(), adapter)


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings, message", [
    ({"target_modules": ("q_porj",)}, "no linear layer 'q_porj'. Did you mean 'q_proj'"),
    ({"target_modules": ("zzz",)}, "Choose from: q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"),
    ({"target_modules": ("embed_tokens",)}, "no linear layer 'embed_tokens'"),
    ({"target_modules": ("lm_head",)}, r"no linear layer 'lm_head' besides the output head, which is left out"),
    ({"target_modules": ()}, "target_modules is empty"),
    ({"rank": 0}, "rank = 0; a whole number of 1 or more"),
    ({"rank": -1}, "rank = -1"), ({"rank": 2.5}, "rank = 2.5"), ({"rank": True}, "rank = True"),
    ({"alpha": 0}, "alpha = 0; a number above 0"), ({"alpha": float("nan")}, "alpha = nan"),
    ({"dropout": 1.0}, "dropout = 1.0; a share"), ({"dropout": -0.1}, "dropout = -0.1"),
])  # fmt: skip
def test_settings_that_cannot_be(settings, message):
    model = tiny.base()
    with pytest.raises(UsageError, match=message):
        inject_lora(model, **settings)
    assert not lora_layers(model) and all(p.requires_grad for p in model.parameters())


def test_twice_or_not_at_all(tmp_path):
    model = ours(tiny.base())
    with pytest.raises(UsageError, match="has LoRA layers already"):
        inject_lora(model)
    with pytest.raises(UsageError, match="no merged LoRA layer"):
        unmerge_lora(model)
    merge_lora(model)
    for function in (merge_lora, lambda m: save_lora(m, tmp_path)):
        with pytest.raises(UsageError, match="no LoRA layer. Call inject_lora or load_lora first"):
            function(model)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="no linear layer inside"):
        inject_lora(nn.Linear(3, 3))


def test_a_quantized_layer_of_another_kind_is_named():
    class Ternary(nn.Linear):
        def __init__(self):
            super().__init__(2, 2, bias=False)
            self.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)

    with pytest.raises(UsageError, match="cannot dequantize a Ternary; nn.Linear, Linear4bit or Linear8bitLt"):
        merge_lora(inject_lora(nn.Sequential(Ternary()), 1, 1, ("0",)))
    assert issubclass(bnb.nn.Linear4bit, nn.Linear) and issubclass(bnb.nn.Linear8bitLt, nn.Linear)
