"""Exercises of notebook 02: right answers by hand or by bitsandbytes, wrong ones as they are made."""

import bitsandbytes.functional as bnb
import pytest
import torch

from qlora_lib.course.answers import check


def rejected(key, answer, mistake):
    verdict = check(key, answer)
    assert not verdict.correct and verdict.picture is not None
    assert mistake.lower() in verdict.message.lower(), verdict.message


def accepted(key, answer):
    verdict = check(key, answer)
    assert verdict.correct, verdict.message
    assert verdict.message and verdict.picture is not None


# --- 02.1: other block sizes ---------------------------------------------------------------------


def test_other_block_sizes():
    accepted("02.1", 0.2578125)
    accepted("02.1", (128 * 8 + 32) / (128 * 32))


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (0.25, "second absmax is missing"),
        (1.0, "without double quantization"),
        (0.5, "too few weights"),
        (0.2578125 / 8, "bytes"),
        (4.2578125, "four bits of the code"),
        (0.127, "too small"),
    ],
)
def test_wrong_bits(answer, mistake):
    rejected("02.1", answer, mistake)


# --- 02.2: double quantization, written ----------------------------------------------------------


def nearest(values, levels):
    """Of a tensor, by trying all levels."""
    return levels[(values[:, None] - levels[None, :]).abs().argmin(1)]


def restored(absmax, levels):
    mean = absmax.mean()
    scale = max(abs(v) for v in (absmax - mean).tolist())
    return nearest((absmax - mean) / scale, levels) * scale + mean


def test_double_quantization_written():
    accepted("02.2", restored)


def test_it_is_what_bitsandbytes_does_but_for_its_table_of_bins():
    absmax = 0.5 + 0.1 * torch.randn(256, generator=torch.Generator().manual_seed(7)).abs()
    x = absmax.repeat_interleave(64)
    _, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    theirs = bnb.dequantize_blockwise(state.absmax, state.state2) + state.offset
    assert ((theirs - restored(absmax, state.state2.code)).abs() < 1e-6).float().mean() > 0.98


def no_shift(absmax, levels):
    return nearest(absmax / absmax.max(), levels) * absmax.max()


def not_put_back(absmax, levels):
    shifted = absmax - absmax.mean()
    scale = shifted.abs().max()
    return nearest(shifted / scale, levels) * scale


def largest_value(absmax, levels):
    shifted = absmax - absmax.mean()
    scale = shifted.max()
    return nearest(shifted / scale, levels) * scale + absmax.mean()


def searched_among_levels(absmax, levels):
    shifted = absmax - absmax.mean()
    scale = shifted.abs().max()
    at = torch.searchsorted(levels, shifted / scale)
    return levels[at.clamp(0, 255)] * scale + absmax.mean()


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (no_shift, "mean was not taken off"),
        (not_put_back, "mean was not put back"),
        (largest_value, "largest magnitude"),
        (searched_among_levels, "rounded up"),
    ],
)
def test_wrong_double_quantization(answer, mistake):
    rejected("02.2", answer, mistake)


# --- 02.3: one matrix, to the byte ---------------------------------------------------------------


def test_one_matrix_is_what_bitsandbytes_holds():
    x = torch.randn(300_000)
    codes, state = bnb.quantize_4bit(x, blocksize=64, quant_type="nf4", compress_statistics=True)
    held = codes.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes + state.offset.nbytes
    assert held == 150_000 + 4_688 + 4 * 19 + 4
    accepted("02.3", held)


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (150_000 + 4_687 + 4 * 18 + 4, "partial blocks were dropped"),
        (150_000 + 4_688 + 4 * 18 + 4, "the last second absmax"),
        (150_000 + 4_688 + 4 * 19, "missing: the offset"),
        (150_000 + 5_000 + 4 * 20 + 4, "anew in each row"),
        (150_000 + 4 * 4_688, "32 bits"),
        (300_000 * 4.126953125 / 8, "bits a parameter times parameters"),
    ],
)
def test_wrong_bytes(answer, mistake):
    rejected("02.3", answer, mistake)


# --- 02.4: from a share to a factor --------------------------------------------------------------


def test_from_a_share_to_a_factor():
    accepted("02.4", 16 / (0.25 * 16 + 0.75 * 4.127))
    accepted("02.4", 2.26)


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (16 / 4.127, "all parameters were quantized"),
        (0.25 * 1 + 0.75 * 16 / 4.127, "factors were averaged"),
        (16 / (0.25 * 16 + 0.75 * 4), "scales were left out"),
        (32 / (0.25 * 16 + 0.75 * 4.127), "32 bits"),
        ((0.25 * 16 + 0.75 * 4.127) / 16, "upside down"),
    ],
)
def test_wrong_factors(answer, mistake):
    rejected("02.4", answer, mistake)


# --- 02.5: what stays ----------------------------------------------------------------------------


def test_what_stays(tiny_model):
    accepted("02.5", "head")
    rejected("02.5", "nothing", "linear layers only")
    rejected("02.5", "norms", "not alone")
    rejected("02.5", "embedding", "output head")
    rejected("02.5", "attention", "projections")


def test_it_is_so_in_a_model_with_untied_embeddings():
    from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
    from transformers.integrations import replace_with_bnb_linear
    from transformers.quantizers.auto import AutoHfQuantizer

    config = LlamaConfig(
        vocab_size=32, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    quantizer = AutoHfQuantizer.from_config(BitsAndBytesConfig(load_in_4bit=True))
    kept = quantizer.get_modules_to_not_convert(model, None)
    replace_with_bnb_linear(model, modules_to_not_convert=kept, quantization_config=quantizer.quantization_config)
    stays = {name for name, p in model.named_parameters() if type(p).__name__ != "Params4bit"}
    assert {name.split(".")[-2] for name in stays} == {
        "embed_tokens", "lm_head", "norm", "input_layernorm", "post_attention_layernorm",
    }  # fmt: skip


# --- what is no answer ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", [f"02.{i}" for i in range(1, 6)])
def test_open_answers(key):
    assert "No answer yet" in check(key, ...).message
    assert not check(key, object()).correct
