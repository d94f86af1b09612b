"""Exercises of notebook 01: right answers by other ways than the library's, wrong ones as they are made."""

import math
from statistics import NormalDist

import bitsandbytes.functional as bnb
import pytest
import torch
from scipy.stats import norm

from qlora_lib.course.answers import check
from qlora_lib.quantization import dequantize_4bit, quantize_4bit


def rejected(key, answer, mistake, **given):
    verdict = check(key, answer, **given)
    assert not verdict.correct and verdict.picture is not None
    assert mistake.lower() in verdict.message.lower(), verdict.message


def accepted(key, answer, **given):
    verdict = check(key, answer, **given)
    assert verdict.correct, verdict.message
    assert verdict.message and verdict.picture is not None


# --- 01.1: a block by absmax ---------------------------------------------------------------------


def test_a_block_by_absmax():
    def quantize_block(x):
        absmax = max(abs(v) for v in x.tolist())
        return torch.tensor([float(round(7 * v / absmax)) for v in x.tolist()]), torch.tensor(absmax)

    accepted("01.1", quantize_block)


def largest_with_its_sign(x):
    absmax = x.max()
    codes = torch.round(x * 7 / absmax)
    return codes, absmax


def cut_off(x):
    absmax = torch.max(torch.abs(x))
    return (x / absmax * 7).to(torch.int8), absmax


def rounded_down(x):
    absmax = x.abs().max()
    return x.div(absmax).mul(7).floor(), absmax


def eighths(x):
    absmax = x.abs().max()
    return (x / absmax * 8).round(), absmax


def by_range(x):
    span = x.max() - x.min()
    return (7 * x / span).round(), span


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (largest_with_its_sign, "sign of the largest weight was kept"),
        (cut_off, "cut off"),
        (rounded_down, "rounded down"),
        (eighths, "eighths"),
        (by_range, "range was used"),
    ],
)
def test_wrong_blocks(answer, mistake):
    rejected("01.1", answer, mistake)


# --- 01.2: the levels for any number of bits -----------------------------------------------------


def end(bits):
    return ((1 - 1 / (2 * (2**bits - 1))) + (1 - 1 / (2 * 2**bits))) / 2


def test_levels_from_scipys_quantiles():
    def normal_levels(bits):
        half = 2 ** (bits - 1)
        p = torch.linspace(end(bits), 0.5, half + 1, dtype=torch.float64)
        n = torch.linspace(end(bits), 0.5, half, dtype=torch.float64)
        levels = [*norm.ppf(p[:-1]), 0.0, *(-norm.ppf(n[:-1]))]
        return torch.tensor(sorted(levels)) / max(levels)

    accepted("01.2", normal_levels)
    assert torch.allclose(normal_levels(4).float(), bnb.get_4bit_type("nf4", device="cpu"), atol=1e-5)


def without_zero(bits):
    p = torch.linspace(1 - end(bits), end(bits), 2**bits, dtype=torch.float64)
    levels = torch.tensor(norm.ppf(p))
    return levels / levels.max()


def even(bits):
    return torch.tensor([-1 + 2 * i / (2**bits - 1) for i in range(2**bits)])


def not_scaled(bits):
    half = 2 ** (bits - 1)
    upper = norm.ppf(torch.linspace(end(bits), 0.5, half + 1, dtype=torch.float64)[:-1])
    lower = norm.ppf(torch.linspace(end(bits), 0.5, half, dtype=torch.float64)[:-1])
    return torch.tensor([*(-lower), 0.0, *upper[::-1]])


def extra_level_below(bits):
    half = 2 ** (bits - 1)
    upper = norm.ppf(torch.linspace(0.5, end(bits), half, dtype=torch.float64)[1:])
    lower = norm.ppf(torch.linspace(1 - end(bits), 0.5, half + 1, dtype=torch.float64)[:-1])
    levels = torch.tensor([*lower, 0.0, *upper])
    return levels / levels.abs().max()


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (without_zero, "no level is zero"),
        (even, "evenly spaced"),
        (not_scaled, "largest level is not 1"),
        (extra_level_below, "extra level is on the negative side"),
    ],
)
def test_wrong_levels(answer, mistake):
    rejected("01.2", answer, mistake)


def test_rounded_probability_is_not_close_enough_for_all_bits():
    def for_four_bits_only(bits):
        half = 2 ** (bits - 1)
        upper = norm.ppf(torch.linspace(0.9677083, 0.5, half + 1, dtype=torch.float64)[:-1])
        lower = norm.ppf(torch.linspace(0.9677083, 0.5, half, dtype=torch.float64)[:-1])
        return torch.tensor([*(-lower), 0.0, *upper[::-1]]) / max(upper)

    verdict = check("01.2", for_four_bits_only)
    assert not verdict.correct and "3 bits" in verdict.message


# --- 01.3: the nearest level ---------------------------------------------------------------------


def test_nearest_level_by_trying_all():
    accepted("01.3", lambda scaled, levels: (scaled[:, None] - levels[None, :]).abs().argmin(1))


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (lambda scaled, levels: torch.searchsorted(levels, scaled), "among the levels themselves"),
        (lambda scaled, levels: torch.tensor([int((levels <= v).sum()) - 1 for v in scaled]), "level below"),
        (lambda scaled, levels: ((scaled + 1) * 7.5).round(), "evenly spaced"),
        (lambda scaled, levels: levels[(scaled[:, None] - levels).abs().argmin(1)], "levels were returned"),
    ],
)
def test_wrong_codes(answer, mistake):
    rejected("01.3", answer, mistake)


# --- 01.4: two codes a byte ----------------------------------------------------------------------


def test_packed_codes_are_bitsandbytes():
    def pack(codes):
        return torch.tensor([16 * a + b for a, b in zip(codes[::2].tolist(), codes[1::2].tolist())], dtype=torch.uint8)

    accepted("01.4", pack)
    levels = bnb.get_4bit_type("nf4", device="cpu")
    codes = torch.tensor([15, 2, 3, 0, 7, 9], dtype=torch.uint8)
    packed, _ = bnb.quantize_4bit(levels[codes.int()], blocksize=64, quant_type="nf4")
    assert pack(codes).tolist() == packed.view(-1).tolist()


@pytest.mark.parametrize(
    "answer, mistake",
    [
        (lambda codes: codes[::2] + 16 * codes[1::2], "halves are swapped"),
        (lambda codes: 16 * codes[: len(codes) // 2] + codes[len(codes) // 2 :], "first half of the codes"),
        (lambda codes: codes.view(-1, 2).sum(1), "without a shift"),
        (lambda codes: 256 * codes[::2].int() + codes[1::2].int(), "8 bits"),
    ],
)
def test_wrong_bytes(answer, mistake):
    rejected("01.4", answer, mistake)


# --- 01.5: which formula -------------------------------------------------------------------------


def test_which_formula():
    accepted("01.5", "quantiles")
    rejected("01.5", "affine", "affine INT4")
    rejected("01.5", "integer", "symmetric INT4")
    rejected("01.5", "minifloat", "FP4")
    rejected("01.5", "ranks", "sixteen numbers")
    assert "none of the options" in check("01.5", "nf4").message


# --- 01.6: one outlier ---------------------------------------------------------------------------


def block():
    return torch.tensor([NormalDist().inv_cdf((i + 0.5) / 64) for i in range(64)])


def others_error(x, quant_type="nf4"):
    """By bitsandbytes, and by hand where it has no such type."""
    if quant_type == "int4":
        restored = (7 * x / x.abs().max()).round() / 7 * x.abs().max()
    else:
        restored = bnb.dequantize_4bit(*bnb.quantize_4bit(x, blocksize=64, quant_type=quant_type)).view(-1)
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(restored.tolist()[:63], x.tolist())) / 63)


@pytest.fixture
def errors():
    spoiled = block()
    spoiled[63] = 20.0
    return {t: (others_error(block(), t), others_error(spoiled, t)) for t in ("nf4", "int4")}


def test_one_outlier(errors):
    before, after = errors["nf4"]
    accepted("01.6", after / before)


def test_wrong_growths(errors):
    before, after = errors["nf4"]
    rejected("01.6", 20 / block().max().item(), "how the step grows")
    rejected("01.6", (after / before) ** 2, "root is missing")
    rejected("01.6", before / after, "upside down")
    rejected("01.6", errors["int4"][1] / errors["int4"][0], "INT4")
    spoiled = block()
    spoiled[-1] = 20

    def relative(x):
        e = dequantize_4bit(quantize_4bit(x, double_quant=False)) - x
        return (e.norm() / x.norm()).item()

    rejected("01.6", relative(spoiled) / relative(block()), "outlier included")


# --- what is no answer ---------------------------------------------------------------------------


@pytest.mark.parametrize("key", [f"01.{i}" for i in range(1, 7)])
def test_open_and_impossible_answers(key):
    assert "No answer yet" in check(key, ...).message

    def empty(*args): ...

    if key in ("01.1", "01.2", "01.3", "01.4"):
        assert "No answer yet" in check(key, empty).message
        assert "stopped" in check(key, lambda *args: 1 / 0).message
