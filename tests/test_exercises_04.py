"""Lesson 4: its arithmetic against autograd, the allocator and real optimizers; wrong answers named."""

from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from tiny import arm, folder, one_thread, trainable  # noqa: F401

from qlora_lib.cost.shapes import ModelShape
from qlora_lib.course import anatomy as a
from qlora_lib.course.answers import check, exercise
from qlora_lib.course.exercises.memory import EXERCISES, LLAMA_8B, SMOLLM2, TINYLLAMA
from qlora_lib.course.stepping import SavedTensors, build, measure, method_of, random_batch
from qlora_lib.fast.install import install
from qlora_lib.metrics.memory import optimizer_bytes
from qlora_lib.metrics.sizes import model_bytes

KINDS = [
    ("full", {}),
    ("full", {"train__gradient_checkpointing": True}),
    ("lora", {}),
    ("lora", {"lora__dropout": 0.0}),
    ("lora", {"lora__dropout": 0.0, "lora__rank": 3}),
    ("qlora", {}),
    ("qlora", {"train__gradient_checkpointing": True}),
]


@pytest.mark.parametrize("batch, length", [(2, 48)])
@pytest.mark.parametrize("kind, settings", KINDS, ids=[f"{k} {' '.join(s)}" for k, s in KINDS])
def test_a_step_holds_what_the_shapes_say(kind, settings, batch, length):
    _, s = arm(kind, **settings)
    model, optimizer = build(folder(), kind, s)
    shape, method = ModelShape.read(model.config), method_of(s, kind)
    found = measure(model, optimizer, random_batch(shape.vocab_size, batch, length))
    trained = a.trained_tensors(shape, method)
    assert found.model.total == a.weight_bytes(shape, method)
    assert found.states == a.state_bytes(trained, method.optimizer_bits)
    assert found.gradients == 4 * sum(trained)
    assert found.saved == sum(a.saved_bytes(shape, method, batch, length).values())
    expected = a.anatomy(shape, method, batch, length)
    assert found.total == pytest.approx(expected.total, rel=0.03 if method.checkpointing else 0.002)
    assert found.held.max() == found.peak and len(found.times) == len(found.held) and found.begins["backward"] > 0


@pytest.mark.parametrize("batch, length", [(2, 48), (4, 160)])
@pytest.mark.parametrize("kind, settings", KINDS, ids=[f"{k} {' '.join(s)}" for k, s in KINDS])
def test_a_step_of_the_fast_path_holds_what_the_shapes_say(kind, settings, batch, length):
    _, s = arm(kind, **settings)
    model, optimizer = build(folder(), kind, s)
    shape, method = ModelShape.read(model.config), method_of(s, kind, fast=bool(install(model)))
    torch.manual_seed(0)
    found = measure(model, optimizer, random_batch(shape.vocab_size, batch, length))
    off = found.saved - sum(a.saved_bytes(shape, method, batch, length).values())
    drawn = bool(method.dropout) and not method.checkpointing
    assert abs(off) <= 5 * a.places_spread(shape, method, batch, length) if drawn else off == 0
    expected = a.anatomy(shape, method, batch, length)
    within = 0.05 if method.checkpointing or method.trains_all else 0.005
    assert found.total == pytest.approx(expected.total, rel=within)
    assert found.total < a.anatomy(shape, replace(method, fast=False), batch, length).total


def test_the_fast_path_keeps_no_mask_no_copy_and_no_logits():
    stock = a.Method("qlora", 16, 0.05, four_bit=True, optimizer_bits=8)
    fast = replace(stock, fast=True)
    for batch, length in ((4, 128), (4, 256)):
        before, after = (a.saved_bytes(SMOLLM2, m, batch, length) for m in (stock, fast))
        assert after["loss"] < before["loss"] / 80 and after["adapters"] < before["adapters"] / 10
    # dropout hardly costs there: the places of one element in twenty, twice as wide
    without = a.saved_bytes(SMOLLM2, replace(fast, dropout=0.0), 4, 256)
    assert 1.0 < sum(after.values()) / sum(without.values()) < 1.06


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "up_proj", "down_proj")])
@pytest.mark.parametrize("fast", [False, True])
def test_adapters_on_part_of_a_group_are_left_to_the_stock_stack(targets, fast):
    _, s = arm("lora", lora__target_modules=list(targets), lora__dropout=0.0)
    model = trainable("lora", s).train()
    shape = ModelShape.read(model.config)
    if fast:
        install(model)
    ids = random_batch(shape.vocab_size, 2, 32)
    with SavedTensors(model) as saved:
        model(input_ids=ids, labels=ids)
    method = a.Method("lora", rank=s.lora.rank, targets=targets, fast=fast)
    assert saved.bytes == sum(a.saved_bytes(shape, method, 2, 32).values())


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "o_proj", "down_proj")])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_adapters_on_some_layers(targets, dropout):
    _, s = arm("lora", lora__target_modules=list(targets), lora__dropout=dropout)
    model = trainable("lora", s).train()
    shape = ModelShape.read(model.config)
    ids = random_batch(shape.vocab_size, 2, 32)
    with SavedTensors(model) as saved:
        model(input_ids=ids, labels=ids)
    method = a.Method("lora", rank=s.lora.rank, dropout=dropout, targets=targets)
    assert saved.bytes == sum(a.saved_bytes(shape, method, 2, 32).values())
    assert model_bytes(model).adapter == 4 * sum(a.adapter_tensors(shape, s.lora.rank, targets))


def test_a_smaller_rank_saves_less_only_by_the_outputs_of_a():
    bytes_of = lambda rank: sum(a.saved_bytes(SMOLLM2, a.Method("lora", rank, 0.05), 4, 64).values())  # noqa: E731
    assert bytes_of(16) - bytes_of(4) == 30 * 7 * 12 * 256 * 4


@pytest.mark.parametrize("sizes", [[4095], [4096], [5000, 100, 8192], [12]])
@pytest.mark.parametrize("make, bits", [(torch.optim.AdamW, 32), (bnb.optim.AdamW8bit, 8)])
def test_states_of_real_optimizers(sizes, make, bits):
    tensors = [torch.nn.Parameter(torch.zeros(n)) for n in sizes]
    for t in tensors:
        t.grad = torch.ones_like(t)
    optimizer = make(tensors, lr=1e-3)
    optimizer.step()
    assert optimizer_bytes(optimizer) == a.state_bytes(sizes, bits)


def test_the_paging_limit_is_that_of_bitsandbytes():
    import inspect

    from bitsandbytes.optim.optimizer import Optimizer8bit

    assert "p.numel() < 1e5" in inspect.getsource(Optimizer8bit.get_state_buffer)
    assert a.paged(100_000, "cuda") and not a.paged(99_999, "cuda") and not a.paged(10**9, "cpu")


def test_shapes_of_the_exercises():
    assert sum(a.weight_tensors(SMOLLM2)) == 134_515_008 and sum(a.weight_tensors(TINYLLAMA)) == 1_100_048_384
    assert sum(a.weight_tensors(LLAMA_8B)) == 8_030_261_248
    assert sum(a.adapter_tensors(TINYLLAMA, 16)) == 12_615_680


def test_the_anatomy_is_drawn_to_scale():
    from qlora_lib.figures.talk import draw_memory_anatomy

    predicted = {"one": {"weights": 2**30, "logits": 3 * 2**30}, "other": {"weights": 2**30, "gradients": 0}}
    figure = draw_memory_anatomy(predicted, {"one": {"weights": 2**30, "step, metered": 2**30}}, limit=2**31)
    axes = figure.axes[0]
    assert [round(bar.get_width(), 6) for bar in axes.patches] == [1, 3, 1, 1, 1]  # GiB; nothing is no bar
    assert axes.get_xlabel().endswith("GiB") and [t.get_text() for t in axes.get_yticklabels()] == ["one", "other"]
    assert [t.get_text() for t in axes.texts] == ["4.00 computed", "2.00 measured", "1.00"]
    names = [t.get_text() for t in figure.legends[0].get_texts()]
    assert names == ["weights", "logits", "step, metered", "there is"]


# --- answers -------------------------------------------------------------------------------------

MIB = 2**20

WRONG_NUMBERS = [
    ("04.1", 4_884_480 * 4 / MIB, "One average was counted"),
    ("04.1", 134_515_008 * 8 / MIB, "The averages of the frozen weights"),
    ("04.1", 210 * (16 * 576 + 576 * 16) * 8 / MIB, "Both matrices were given the width of the hidden state"),
    ("04.1", 4_884_480 * 12 / MIB, "Gradients were counted too"),
    ("04.1", 39.08, "A MiB is 2^20 bytes"),
    ("04.3", 8 * 256 * 49152 * 4 / MIB, "One tensor was counted"),
    ("04.3", 2 * 384, "Two tensors were counted"),
    ("04.3", 3 * 256 * 49152 * 4 / MIB, "One sequence was counted"),
    ("04.3", 3 * 8 * 256 * 49152 * 2 / MIB, "Numbers of 16 bits"),
    ("04.3", 3 * 8 * 256 * 49152 / MIB, "Numbers were counted, and not bytes"),
    ("04.5", 4 * 512 * 2048 * 4 / MIB, "The input of one block"),
    ("04.5", 22**0.5 * 16, "The square root of the number of blocks"),
    ("04.5", 22 * 512 * 2048 * 4 / MIB, "One sequence was counted"),
    ("04.5", 22 * 4 * 512 * 2048 * 2 / MIB, "Numbers of 16 bits"),
    ("04.4", 538_060_032 / (44_588 * 30 + 6_948 + 3 * 196_608), "The tied embedding's two further gradients"),
    ("04.4", 764_552_448 / (44_588 * 30 + 6_948 + 196_608), "The two gradients of the logits"),
    ("04.4", 4 * 538_060_032 / (44_588 * 30 + 6_948 + 3 * 196_608), "Weights and states were set against"),
    ("04.4", 286, "LoRA's activations were taken"),
]


@pytest.mark.parametrize("key, answer, said", WRONG_NUMBERS)
def test_wrong_numbers_are_named(key, answer, said):
    verdict = check(key, answer)
    assert not verdict.correct and verdict.message.startswith(said), verdict
    assert verdict.picture is not None


RIGHT_NUMBERS = [
    ("04.1", 37.27),
    ("04.3", 1152),
    ("04.5", 22 * 4 * 512 * 2048 * 4 / MIB),
    # a block of SmolLM2, trained: 6 x 576 (norms), 2 x 576 + 2 x 192 (attention), 4 x 1,536 (MLP), 11
    (
        "04.4",
        764_552_448 / (4 * (6 * 576 + 2 * 576 + 2 * 192 + 4 * 1536 + 11) * 30 + 4 * (3 * 576 + 1) + 16 + 3 * 4 * 49152),
    ),
    ("04.4", 395),
]


@pytest.mark.parametrize("key, answer", RIGHT_NUMBERS)
def test_right_numbers(key, answer):
    verdict = check(key, answer)
    assert verdict.correct and verdict.picture is not None, verdict


def saves(tokens, n_in, n_out, trained, rank, dropout):
    layer = 4 * tokens * n_in if trained else 0
    of_a = 4 * tokens * n_in * (1 + dropout) if rank else 0
    return [layer, of_a, 4 * tokens * rank]


def keeps_every_input(tokens, n_in, n_out, trained, rank, dropout):
    return [4 * tokens * n_in, *saves(tokens, n_in, n_out, trained, rank, dropout)[1:]]


def keeps_outputs(tokens, n_in, n_out, trained, rank, dropout):
    return [4 * tokens * n_out if trained else 0, *saves(tokens, n_in, n_out, trained, rank, dropout)[1:]]


def frozen_means_nothing(tokens, n_in, n_out, trained, rank, dropout):
    return [4 * tokens * n_in, 0, 0] if trained else [0, 0, 0]


def no_b(tokens, n_in, n_out, trained, rank, dropout):
    return [*saves(tokens, n_in, n_out, trained, rank, dropout)[:2], 0]


def no_dropout(tokens, n_in, n_out, trained, rank, dropout):
    return saves(tokens, n_in, n_out, trained, rank, 0)


def byte_mask(tokens, n_in, n_out, trained, rank, dropout):
    layer, _, of_b = saves(tokens, n_in, n_out, trained, rank, dropout)
    return [layer, (tokens * n_in * 4 + tokens * n_in * dropout) if rank else 0, of_b]


@pytest.mark.parametrize(
    "answer, said",
    [
        (keeps_every_input, "A frozen layer keeps its input here"),
        (keeps_outputs, "The output was kept in place of the input"),
        (frozen_means_nothing, "The adapter was forgotten"),
        (no_b, "The output of A was forgotten"),
        (no_dropout, "The dropout was forgotten"),
        (byte_mask, "The mask was counted as one byte"),
        (lambda *args: [n // 4 for n in saves(*args)], "Numbers were counted, and not bytes"),
        (lambda *args: sum(saves(*args)), "a trained layer"),
    ],
)
def test_wrong_savings_of_a_linear_layer(answer, said):
    verdict = check("04.2", answer)
    assert not verdict.correct and said in verdict.message


def test_savings_of_a_linear_layer_are_what_autograd_saves():
    assert check("04.2", saves).correct and check("04.2", saves).picture is not None
    layer = torch.nn.Linear(96, 32, bias=False)
    for trained in (True, False):
        layer.requires_grad_(trained)
        with SavedTensors(layer) as saved:
            layer(torch.ones(10, 96, requires_grad=True))
        assert saved.bytes == sum(saves(10, 96, 32, trained, 0, False))


def test_paging():
    right = lambda sizes, on: [0 if n < 1e5 or on != "cuda" else n + n for n in sizes]  # noqa: E731
    assert check("04.6", right).correct and check("04.6", right).picture is not None
    for answer, said in (
        (lambda sizes, on: [2 * n if on == "cuda" else 0 for n in sizes], "Every tensor was paged"),
        (
            lambda sizes, on: [2 * n if on == "cuda" and sum(sizes) >= 1e5 else 0 for n in sizes],
            "The limit was held against all",
        ),
        (lambda sizes, on: [2 * n if n >= 1e5 else 0 for n in sizes], "A CPU pages here"),
        (lambda sizes, on: [8 * n if n >= 1e5 and on == "cuda" else 0 for n in sizes], "States of 32 bits"),
        (lambda sizes, on: [2 * n if n > 1e5 and on == "cuda" else 0 for n in sizes], "A tensor of exactly 100,000"),
        (
            lambda sizes, on: [2 * n if 2 * n >= 1e5 and on == "cuda" else 0 for n in sizes],
            "The limit was held against bytes",
        ),
    ):
        verdict = check("04.6", answer)
        assert not verdict.correct and verdict.message.startswith(said), verdict


def test_the_cheapest_change():
    assert check("04.7", "no LoRA dropout").correct
    for wrong, said in (
        ("rank 4", "smallest parts"),
        ("paged optimizer", "no matrix of this adapter"),
        ("gradient checkpointing", "second forward pass"),
    ):
        verdict = check("04.7", wrong)
        assert not verdict.correct and said in verdict.message and "2,100 MiB" in verdict.picture.alt
    totals = {name: a.anatomy(SMOLLM2, m, 4, 256).total / MIB for name, m in exercise_changes().items()}
    assert [name for name, total in totals.items() if total < 2100] == ["no LoRA dropout", "gradient checkpointing"]


def exercise_changes():
    from qlora_lib.course.exercises.memory import CHANGES

    return CHANGES


def test_every_mistake_is_told_apart():
    for e in EXERCISES:
        for mistake in e.mistakes:
            verdict = exercise(e.key).judge(mistake.answer() if hasattr(e, "unit") else mistake.answer)
            assert verdict.message.lower().startswith(mistake.name.lower()), (e.key, mistake.name)
