"""The fast path against the stock stack: losses, gradients, dropout, the optimizer's bits, decoded tokens."""

from types import SimpleNamespace

import bitsandbytes as bnb
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.nn import functional as F
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from qlora_lib.fast import kernels
from qlora_lib.fast.decoder import Decoder
from qlora_lib.fast.decoders import fast_decoder
from qlora_lib.fast.elementwise import RmsNorm, Rotary
from qlora_lib.fast.install import install, uninstall
from qlora_lib.fast.layers import Projections, drop
from qlora_lib.fast.loss import LinearCrossEntropy, linear_cross_entropy
from qlora_lib.fast.optimizer import FusedAdamW8bit
from qlora_lib.fast.static import StaticDecoder
from qlora_lib.models import keep_weights_as_packed

SHAPE = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "llama-untied-bias": LlamaConfig(**SHAPE, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=32),
}
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(4 * 21).reshape(4, 21) * 37 % 317 + 3


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tiny models of random weights, by name."""
    made = {}
    for name, config in CONFIGS.items():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        for parameter in model.parameters():  # biases and norms too, so that none is trivial
            parameter.data.add_(0.05 * torch.randn_like(parameter))
        made[name] = tmp_path_factory.mktemp(name)
        model.save_pretrained(made[name])
    return made


@pytest.fixture
def build(folders):
    def build(name="llama", method="qlora", dropout=0.0, targets=LINEAR, dtype=torch.float32):
        four_bit = {"quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype,
        )}  # fmt: skip
        model = AutoModelForCausalLM.from_pretrained(folders[name], dtype=dtype, **(four_bit if method == "qlora" else {}))
        keep_weights_as_packed(model)
        if method != "full":
            torch.manual_seed(1)
            model = get_peft_model(model, LoraConfig(
                r=8, lora_alpha=16, lora_dropout=dropout, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM",
            ))  # fmt: skip
        return model.train()

    return build


def gradients(model, ids=IDS, **kwargs):
    model.zero_grad()
    loss = model(input_ids=ids, labels=ids, **kwargs).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def distance(found: dict, wanted: dict) -> float:
    """Largest relative difference of a tensor."""
    assert found.keys() == wanted.keys() and found
    return max(float((found[n].double() - wanted[n].double()).norm() / wanted[n].double().norm()) for n in wanted)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_losses_and_gradients_are_the_stock_stacks(build, name, method):
    model = build(name, method)
    loss, grads = gradients(model)
    assert install(model)
    fast_loss, fast_grads = gradients(model)
    assert fast_loss == pytest.approx(loss, rel=1e-6)
    assert distance(fast_grads, grads) < 2e-5
    uninstall(model)
    again, restored = gradients(model)
    assert again == loss and all(torch.equal(restored[n], grads[n]) for n in grads)


def test_with_checkpointing_and_items_in_the_batch(build):
    model = build()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, grads = gradients(model, num_items_in_batch=torch.tensor(50))
    install(model)
    fast_loss, fast_grads = gradients(model, num_items_in_batch=torch.tensor(50))
    assert fast_loss == pytest.approx(loss, rel=1e-6) and distance(fast_grads, grads) < 2e-5


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_under_autocast_the_functions_run_and_are_as_near_to_fp32(build, name, method, monkeypatch):
    exact_loss, exact = gradients(build(name, method))
    model = build(name, method, dtype=torch.bfloat16)  # PEFT keeps its adapters in fp32
    calls = []
    apply = Projections.apply
    monkeypatch.setattr(Projections, "apply", lambda *args: calls.append(args[2].dtype) or apply(*args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        stock_loss, stock = gradients(model)
        assert not calls
        install(model)
        loss, fast = gradients(model)
    assert calls and set(calls) == {torch.bfloat16}
    assert abs(loss - exact_loss) <= abs(stock_loss - exact_loss) + 1e-3 * exact_loss
    assert all(g.dtype == torch.float32 for n, g in fast.items() if "lora" in n)
    apart = {n: ((fast[n] - exact[n]).norm() / exact[n].norm(), (stock[n] - exact[n]).norm() / exact[n].norm()) for n in fast}
    assert sum(a for a, _ in apart.values()) <= 1.2 * sum(b for _, b in apart.values())


def test_an_adapter_that_is_exchanged_is_seen(build):
    model = build(method="lora").eval()
    install(model)
    before = model(input_ids=IDS).logits
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.mul_(2)
    doubled = model(input_ids=IDS).logits
    module = model.base_model.model.model.layers[0].self_attn.q_proj
    module.lora_B["default"] = torch.nn.Linear(8, 64, bias=False)  # another tensor under the same name
    module.scaling["default"] = 0.5
    exchanged = model(input_ids=IDS).logits
    uninstall(model)
    assert torch.allclose(model(input_ids=IDS).logits, exchanged, atol=1e-4)
    assert not torch.allclose(before, doubled, atol=1e-3) and not torch.allclose(doubled, exchanged, atol=1e-3)


def test_rotation_and_its_backward():
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    torch.manual_seed(0)
    x, angles = torch.randn(2, 5, 3, 8, requires_grad=True), torch.randn(2, 5, 8)  # halves need not be equal
    cosine, sine = angles.cos(), angles.sin()
    turned = Rotary.apply(x, cosine, sine)
    grad = torch.randn_like(turned)
    (found,) = torch.autograd.grad(turned, x, grad)
    wanted, _ = apply_rotary_pos_emb(x.transpose(1, 2), x.transpose(1, 2), cosine, sine)
    (expected,) = torch.autograd.grad(wanted, x, grad.transpose(1, 2))
    assert torch.allclose(turned, wanted.transpose(1, 2), atol=1e-6) and torch.allclose(found, expected, atol=1e-6)


def test_gradients_are_as_near_to_fp64_as_the_stock_stacks(build):
    exact = gradients(build(method="lora", dtype=torch.float32).double())[1]
    model = build(method="lora")
    stock = gradients(model)[1]
    install(model)
    fast = gradients(model)[1]
    assert distance(fast, exact) <= 2 * distance(stock, exact)


@pytest.mark.parametrize("method", ["qlora", "full"])
def test_twenty_steps_give_the_same_losses(build, method):
    losses = []
    for fast in (False, True):
        model = build(method=method)
        if fast:
            install(model)
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        losses.append([])
        for step in range(20):
            ids = (IDS + step) % 317 + 3
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] != losses[0][0]


def test_fewer_targets_and_what_the_functions_do_not_cover_run_as_before(build):
    for model in (build(targets=["q_proj", "v_proj"]), build(targets=["down_proj", "o_proj"])):
        loss, grads = gradients(model)
        install(model)
        fast_loss, fast_grads = gradients(model)
        assert fast_loss == pytest.approx(loss, rel=1e-6) and distance(fast_grads, grads) < 2e-5
    model = build(method="lora")
    other = LoraConfig(r=4, lora_alpha=4, target_modules=LINEAR, init_lora_weights=False)
    model.add_adapter("other", other)
    install(model)

    def logits():
        model.eval()
        with torch.no_grad():
            return model(input_ids=IDS).logits

    def compare(change):
        change()
        fast = logits()
        uninstall(model)
        assert torch.allclose(fast, logits(), atol=1e-5)
        install(model)
        return fast

    default = compare(lambda: model.set_adapter("default"))
    assert not torch.allclose(compare(lambda: model.set_adapter("other")), default, atol=1e-3)
    both = compare(lambda: model.base_model.set_adapter(["default", "other"]))
    off = compare(lambda: model.disable_adapter_layers())
    assert not torch.allclose(both, off, atol=1e-3)
    model.enable_adapter_layers()
    model.set_adapter("default")
    assert torch.allclose(compare(lambda: model.merge_adapter()), default, atol=1e-4)


def test_an_unknown_architecture_is_left_alone():
    from transformers import GPT2Config

    model = AutoModelForCausalLM.from_config(GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50))
    assert install(model) == [] and Decoder.of(model) is None


def test_without_labels_logits_come_out_as_before(build):
    model = build().eval()
    with torch.no_grad():
        stock = model(input_ids=IDS).logits
        install(model)
        assert torch.allclose(model(input_ids=IDS).logits, stock, atol=1e-5)


# --- dropout --------------------------------------------------------------------------------------


@given(st.integers(1, 5000), st.floats(1e-4, 0.95), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_dropped_places_are_ascending_and_inside(n, probability, seed):
    torch.manual_seed(seed)
    places = drop(torch.zeros(n), probability)
    assert places.dtype == torch.int64
    assert (places.diff() > 0).all() and (not len(places) or (places[0] >= 0 and places[-1] < n))


@pytest.mark.parametrize("probability", [0.05, 0.5, 0.9])
def test_every_element_is_dropped_with_its_probability(probability):
    torch.manual_seed(0)
    n, rounds = 200, 20_000
    count = torch.zeros(n)
    pairs = 0
    for _ in range(rounds):
        places = drop(torch.zeros(n), probability)
        count[places] += 1
        pairs += int((places.diff() == 1).sum())
    sigma = (rounds * probability * (1 - probability)) ** 0.5
    assert ((count - rounds * probability).abs() < 5 * sigma).all()
    expected = rounds * (n - 1) * probability**2  # neighbours are independent
    assert abs(pairs - expected) < 6 * (rounds * n * probability**2) ** 0.5 + 1e-2 * expected


def test_dropout_is_unbiased_and_off_in_evaluation(build):
    model = build(method="lora", dropout=0.3)
    install(model)
    group = model.base_model.model.model.layers[0].self_attn.o_proj
    x = torch.randn(1, 3, 64)
    torch.manual_seed(0)
    with torch.no_grad():
        noisy = torch.stack([group(x) for _ in range(4000)])
        model.eval()
        exact = group(x)
        assert torch.equal(exact, group(x))
    spread = noisy.std(0) / 4000**0.5
    assert ((noisy.mean(0) - exact).abs() < 6 * spread + 1e-5).all() and spread.max() > 0


def test_one_seed_gives_one_training(build):
    def run():
        model = build(dropout=0.2)
        install(model)
        torch.manual_seed(3)
        return gradients(model)

    first, second = run(), run()
    assert first[0] == second[0] and all(torch.equal(first[1][n], second[1][n]) for n in first[1])


# --- the loss and the norm ------------------------------------------------------------------------


@pytest.mark.parametrize("rows, ignored", [(1, 0), (300, 7), (129, 129)])
def test_cross_entropy_in_chunks(rows, ignored):
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, 16, requires_grad=True), torch.randn(50, 16, requires_grad=True)
    targets = torch.randint(0, 50, (rows,))
    targets[:ignored] = -100
    total = LinearCrossEntropy.apply(hidden, weight, targets)
    (total * 0.37).backward()
    h, w = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    wanted = F.cross_entropy(h @ w.T, targets, reduction="sum")
    (wanted * 0.37).backward()
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6, abs=1e-9)
    assert torch.allclose(hidden.grad.double(), h.grad, atol=1e-5) and torch.allclose(weight.grad.double(), w.grad, atol=1e-4)


def test_labels_are_shifted_and_divided_as_transformers_does():
    from transformers.loss.loss_utils import ForCausalLMLoss

    torch.manual_seed(0)
    hidden, weight = torch.randn(2, 9, 16), torch.randn(50, 16)
    labels = torch.randint(0, 50, (2, 9))
    labels[0, :4] = -100
    for items in (None, torch.tensor(5)):
        wanted = ForCausalLMLoss(hidden @ weight.T, labels, 50, num_items_in_batch=items)
        assert linear_cross_entropy(hidden, weight, labels, items).item() == pytest.approx(wanted.item(), rel=1e-6)


def test_rms_norm_backward():
    torch.manual_seed(0)
    x, weight = torch.randn(3, 5, 32, requires_grad=True), torch.randn(32, requires_grad=True)
    y = RmsNorm.apply(x, weight, 1e-6)
    grad = torch.randn_like(y)
    y.backward(grad)
    a, w = x.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    wanted = w * a * (a.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
    wanted.backward(grad.double())
    assert torch.allclose(y.double(), wanted, atol=1e-5)
    assert torch.allclose(x.grad.double(), a.grad, atol=1e-5) and torch.allclose(weight.grad.double(), w.grad, atol=1e-4)


# --- the optimizer --------------------------------------------------------------------------------


def matrices(seed):
    torch.manual_seed(seed)
    shapes = [(16, 576), (576, 16), (192, 16), (1536, 16), (101, 101), (3,), (16, 256)] * 3  # one ends inside a block
    return [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]


def test_updates_are_those_of_bitsandbytes():
    ours, theirs = matrices(0), matrices(0)
    kwargs = {"lr": 1e-2, "weight_decay": 0.01, "optim_bits": 8}
    fast, stock = FusedAdamW8bit(ours, **kwargs), bnb.optim.AdamW(theirs, **kwargs)
    for step in range(6):
        torch.manual_seed(step)
        for a, b in zip(ours, theirs):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        ours[2].grad = theirs[2].grad = None if step == 3 else ours[2].grad  # its count of steps falls behind
        if step == 3:
            theirs[2].grad = None
        fast.step()
        stock.step()
        if step == 2:  # states are interchangeable
            fast.load_state_dict(stock.state_dict())
        for a, b in zip(ours, theirs):  # a fused product may round the last bit otherwise
            assert torch.allclose(a, b, rtol=1e-6, atol=1e-8)
            for name in ("state1", "state2"):
                assert (fast.state[a][name].float() - stock.state[b][name].float()).abs().max() <= 1
                assert (fast.state[a][name] != stock.state[b][name]).float().mean() < 1e-3


# --- decoding -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("method", ["qlora", "lora", "full"])
def test_decoded_logits_are_the_models(build, name, method):
    model = build(name, method).eval()
    decoder = Decoder.of(model)
    read = 12 if method == "full" else 5  # a long prompt and a short one
    logits, ids = decoder.start(IDS[:1, :read], 42), IDS[0, :read].tolist()
    for _ in range(30):
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
        np.testing.assert_allclose(logits, wanted, atol=2e-4)
        ids.append(int(logits.argmax()))
        logits = decoder.step(ids[-1])


def test_a_decoder_follows_the_adapter(build):
    model = build(method="lora").eval()
    with_adapter = Decoder.of(model).start(IDS[:1], 30).copy()
    first = Decoder.of(model)
    first.start(IDS[:1], 30)
    on = first.step(5).copy()
    model.disable_adapter_layers()
    off = Decoder.of(model)
    assert np.abs(off.start(IDS[:1], 30) - with_adapter).max() > 1e-3
    assert np.abs(off.step(5) - on).max() > 1e-3


def test_models_that_the_kernels_do_not_know(build):
    assert Decoder.of(build(method="full", dtype=torch.bfloat16)) is None
    growing = LlamaConfig(**SHAPE, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4})
    assert Decoder.of(AutoModelForCausalLM.from_config(growing)) is None
    sliding = MistralConfig(**SHAPE, sliding_window=16)
    assert Decoder.of(AutoModelForCausalLM.from_config(sliding)) is None


def test_settings_that_change_logits_are_left_to_transformers(build):
    model = build(method="full").eval()
    assert fast_decoder(model) is not None
    model.generation_config.repetition_penalty = 1.1
    assert fast_decoder(model) is None
    model.generation_config.repetition_penalty = 1.0
    model.generation_config.bad_words_ids = [[5]]
    assert fast_decoder(model) is None


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("method", ["qlora", "full"])
def test_a_static_cache_gives_the_models_logits(build, name, method):
    """The decoder for CUDA, here on the CPU and traced without a compiler."""
    model = build(name, method).eval()
    decoder = StaticDecoder(model, backend="eager")
    for _ in range(2):  # the second text in the same cache
        logits, ids = decoder.start(IDS[:1, :5], 40), IDS[0, :5].tolist()
        for _ in range(12):
            with torch.no_grad():
                wanted = model(input_ids=torch.tensor([ids])).logits[0, -1].numpy()
            np.testing.assert_allclose(logits, wanted, atol=2e-4)
            ids.append(int(logits.argmax()))
            logits = decoder.step(ids[-1])


def test_a_step_that_cannot_be_compiled_runs_as_it_is(build, monkeypatch):
    model = build(method="full").eval()
    decoder = StaticDecoder(model, backend="eager")

    def half_done(token, place):
        decoder._eager(token, place)
        raise RuntimeError("no compiler")

    decoder._step = half_done
    decoder.start(IDS[:1, :5], 40)
    with pytest.warns(UserWarning, match="without torch.compile.*no compiler"):
        logits = decoder.step(7)
    with torch.no_grad():
        wanted = model(input_ids=torch.cat([IDS[:1, :5], torch.tensor([[7]])], 1)).logits[0, -1].numpy()
    np.testing.assert_allclose(logits, wanted, atol=2e-4)
    monkeypatch.setattr(decoder.base, "forward", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):  # an error that is not the compiler's is not hidden
        decoder.step(8)


@pytest.mark.parametrize("error", [ImportError("No module named 'numba'"), RuntimeError("cannot cache function: no locator available")])
def test_without_a_compiler_the_plain_ways_are_taken(build, monkeypatch, error):
    """numba is missing, or finds no folder that it may write to: stock updates, and transformers decodes."""
    import builtins

    from qlora_lib.fast import optimizer

    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name in ("qlora_lib.fast.kernels", "qlora_lib.fast.decoder"):
            raise error
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    optimizer._kernel.cache_clear()
    try:
        assert fast_decoder(build(method="full").eval()) is None
        ours, theirs = matrices(0), matrices(0)
        fast, stock = FusedAdamW8bit(ours, lr=1e-2, optim_bits=8), bnb.optim.AdamW(theirs, lr=1e-2, weight_decay=1e-2, optim_bits=8)
        for a, b in zip(ours, theirs):
            a.grad = torch.ones_like(a)
            b.grad = torch.ones_like(b)
        fast.step()
        stock.step()
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs))
    finally:
        optimizer._kernel.cache_clear()


def test_compiling_is_announced_once(build, monkeypatch, capsys):
    model = build(method="full").eval()
    decoder = Decoder.of(model)
    decoder.start(IDS[:1, :5], 8)
    capsys.readouterr()
    Decoder.of(model)
    assert capsys.readouterr().err == ""  # it is compiled now
    monkeypatch.setattr(kernels, "compiled_before", lambda: False)
    Decoder.of(model)
    assert "compiling the decoder" in capsys.readouterr().err


def test_what_an_earlier_process_compiled_is_seen(build, monkeypatch, tmp_path):
    Decoder.of(build(method="full").eval()).start(IDS[:1, :5], 8)
    empty = SimpleNamespace(signatures=[], stats=SimpleNamespace(cache_path=str(tmp_path)))
    kept = SimpleNamespace(signatures=[], stats=kernels.token.stats)
    monkeypatch.setattr(kernels, "token", empty)
    assert not kernels.compiled_before()
    monkeypatch.setattr(kernels, "token", kept)
    assert kernels.compiled_before()
