"""One real pass on the default model: what it weighs in four bits, what it scores, and that it trains."""

import math
import subprocess
import sys

import pytest

from qlora_lib.config import load_profile, parse_overrides
from qlora_lib.evaluation import evaluate_perplexity
from qlora_lib.study import run_arm

pytestmark = pytest.mark.demo

LAYERS, HIDDEN, KV, INTERMEDIATE, VOCABULARY = 30, 576, 192, 1536, 49_152
MATRICES = [(HIDDEN, HIDDEN), (HIDDEN, KV), (HIDDEN, KV), (HIDDEN, HIDDEN), *[(HIDDEN, INTERMEDIATE)] * 3]
FP32 = 4


def nf4_double_quantized_bytes() -> int:
    """Resident bytes of the base, recounted from its shape: codes, their scales, the rest in fp32."""
    packed = state = 0
    for rows, columns in MATRICES:
        blocks = rows * columns // 64
        packed += rows * columns // 2
        state += blocks + math.ceil(blocks / 256) * FP32 + FP32  # 8-bit scales, their own scales, the offset
        state += (16 + 256) * FP32  # the two tables of values
    rest = (VOCABULARY * HIDDEN + (2 * LAYERS + 1) * HIDDEN) * FP32  # tied embedding, norms
    rotary = 2 * (HIDDEN // 9 // 2) * FP32  # frequencies, and their copy that long contexts are scaled from
    return LAYERS * (packed + state) + rest + rotary


def test_the_default_model_in_four_bits(tmp_path):
    scored = evaluate_perplexity("smollm2-135m", "wikipedia-sample", quantization="nf4", context=512, windows=2, dtype="fp32")
    assert scored["n"] == 2 * 511
    # 27 over many windows; two windows are a rough guess, and a broken head or scale is far outside.
    assert 12 < scored["perplexity"] < 60

    profile = load_profile("demo")
    overrides = parse_overrides([
        "train.max_steps=2", "train.batch_size=2", "data.window_length=64", "train.warmup_steps=0", "train.eval_windows=2",
        "train.keep_model=false", "evaluation.perplexity=false", "evaluation.new_tokens=0",
    ])  # fmt: skip
    record = run_arm(profile, profile.arm("qlora"), tmp_path / "run", overrides).record
    size, train = record.size_bytes, record.train
    assert size.base == nf4_double_quantized_bytes()
    assert size.base / 2**20 == pytest.approx(160.6, abs=0.05)
    assert size.quantized_weights == LAYERS * sum(r * c for r, c in MATRICES) // 2
    adapter = LAYERS * sum(16 * (r + c) for r, c in MATRICES)
    assert (record.parameters.base, record.parameters.trainable) == (134_515_008, adapter)
    assert size.adapter == adapter * FP32
    assert train.steps == 2 and train.tokens == 2 * 2 * 64
    assert all(2.5 < loss < 4.5 for loss in train.loss)  # nats a token: the base is near log 29 = 3.4
    assert (train.optimizer.requested, record.provenance.dtype) == ("paged_adamw_8bit", "fp32")
    assert size.total < train.peak_tensor_bytes < train.peak_memory_bytes < 3 * 2**30
    assert not (tmp_path / "run" / "adapter").exists()


def test_generate_ends_as_a_command_should():
    """The thread that writes is joined: an interpreter that ends before it is aborted by torch."""
    command = [sys.executable, "-m", "qlora_lib", "generate", "--model", "smollm2-135m", "--max-new-tokens", "4"]
    done = subprocess.run([*command, "--prompt", "The capital of France"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
