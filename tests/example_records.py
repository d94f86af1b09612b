"""Made-up run records with plausible values, so that pages can be drawn and tested without a run.

How it works: a `Shape` (the architecture and the times of one profile) fixes sizes, parameters and
FLOPs by arithmetic; a table gives each arm its perplexity and speed; seeded noise makes the curves
and the windows. `demo` is close to what a 2-core CPU measures, `smoke` is tiny and untrained.
Nothing here was measured: never commit these records as results.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from qlora_lib.records import (
    DataInfo,
    Generation,
    ModelInfo,
    Optimizer,
    Parameters,
    Peak,
    Perplexity,
    Provenance,
    RunRecord,
    SizeBytes,
    SplitStatistics,
    Train,
)

FP32 = 4  # bytes
BLOCK, SECOND_BLOCK = 64, 256  # weights to an absmax, absmax to a second absmax


@dataclass(frozen=True)
class Shape:
    name: str
    source: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    rank: int
    steps: int
    batch: int
    length: int
    windows: int
    context: int
    spread: float  # of the windows' difficulty, nats a token
    pair_noise: float  # of a window's difference between two arms, nats a token
    perplexity: dict[str, float]  # deployed, by arm
    seconds_per_step: dict[str, float]
    decode: dict[str, float]  # tokens per second
    process_bytes: int  # interpreter and libraries, before any tensor
    peak_flops: float

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.length

    @property
    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the quantized matrices of one layer."""
        h, kv, m = self.hidden, self.hidden // self.heads * self.kv_heads, self.intermediate
        return [(h, h), (h, kv), (h, kv), (h, h), (h, m), (h, m), (m, h)]

    @property
    def linear_parameters(self) -> int:
        return self.layers * sum(i * o for i, o in self.linears)

    @property
    def other_parameters(self) -> int:
        """Tied embedding and norms."""
        return self.vocabulary * self.hidden + (2 * self.layers + 1) * self.hidden

    @property
    def total(self) -> int:
        return self.linear_parameters + self.other_parameters

    @property
    def adapter_parameters(self) -> int:
        return self.layers * self.rank * sum(i + o for i, o in self.linears)


SHAPES = {
    "demo": Shape(
        name="smollm2-135m", source="package index: example (made-up values)",
        layers=30, hidden=576, heads=9, kv_heads=3, intermediate=1536, vocabulary=49_152,
        rank=16, steps=32, batch=4, length=128, windows=20, context=256,
        spread=0.27, pair_noise=0.035,
        perplexity={
            "base": 21.86, "base-nf4dq": 27.25, "base-nf4": 27.23, "base-fp4": 33.00,
            "base-int8": 21.94, "full": 19.71, "lora": 20.02, "qlora": 21.63,
            "full-nf4dq": 24.42, "lora-nf4dq": 24.80,
        },
        seconds_per_step={"full": 4.02, "lora": 3.74, "qlora": 4.16, "qlora-checkpointing": 5.88},
        decode={"base": 15.8, "base-nf4dq": 6.4, "full": 15.7, "lora": 9.8, "qlora": 4.9},
        process_bytes=620 * 2**20, peak_flops=1.41e11,
    ),
    "smoke": Shape(
        name="tiny-random-llama", source="made on the spot",
        layers=2, hidden=64, heads=4, kv_heads=2, intermediate=128, vocabulary=259,
        rank=4, steps=8, batch=2, length=32, windows=6, context=64,
        spread=0.05, pair_noise=0.004,
        perplexity={
            "base": 262.4, "base-nf4dq": 262.9, "base-nf4": 262.2, "base-fp4": 263.3,
            "base-int8": 262.4, "full": 251.8, "lora": 258.9, "qlora": 263.1,
            "full-nf4dq": 252.3, "lora-nf4dq": 259.3,
        },
        seconds_per_step={"full": 0.021, "lora": 0.027, "qlora": 0.041, "qlora-checkpointing": 0.052},
        decode={"base": 410.0, "base-nf4dq": 260.0, "full": 405.0, "lora": 240.0, "qlora": 170.0},
        process_bytes=540 * 2**20, peak_flops=1.32e11,
    ),
}

LABELS = {
    "base": "Base fp32", "base-nf4dq": "Base NF4 + DQ", "base-nf4": "Base NF4",
    "base-fp4": "Base FP4", "base-int8": "Base int8", "full": "Full", "lora": "LoRA",
    "qlora": "QLoRA", "qlora-checkpointing": "QLoRA + checkpointing",
    "full-nf4dq": "Full, then NF4 + DQ", "lora-nf4dq": "LoRA merged, then NF4 + DQ",
}
METHOD = {
    "full": "full", "lora": "lora", "qlora": "qlora", "qlora-checkpointing": "qlora",
}  # every other arm trains nothing: "base"
DERIVED_FROM = {"full-nf4dq": "full", "lora-nf4dq": "lora"}
STARTS_AT = {"full": "base", "lora": "base", "qlora": "base-nf4dq"}
STORAGE = {  # how the linear weights are held; fp32 where not named
    "base-nf4dq": "nf4dq", "base-nf4": "nf4", "base-fp4": "fp4", "base-int8": "int8",
    "qlora": "nf4dq", "qlora-checkpointing": "nf4dq", "full-nf4dq": "nf4dq", "lora-nf4dq": "nf4dq",
}
LEARNING_RATE = {"full": 3e-5, "lora": 5e-4, "qlora": 5e-4, "qlora-checkpointing": 5e-4}


def example_records(profile: str = "demo", seed: int = 0) -> dict[str, RunRecord]:
    """A full set of made-up records of `profile` ("demo" or "smoke"), by arm."""
    shape = SHAPES[profile]
    difficulty = np.random.default_rng(seed).normal(0.0, shape.spread, shape.windows)
    return {arm: _record(profile, shape, arm, seed, difficulty) for arm in LABELS}


def write_example(folder: Path, profile: str = "demo", seed: int = 0) -> Path:
    """Write `<arm>/record.json` for every arm under `folder`; returns `folder`."""
    folder = Path(folder)
    for arm, record in example_records(profile, seed).items():
        record.write(folder / arm)
    return folder


def _noise(seed: int, arm: str) -> np.random.Generator:
    return np.random.default_rng([seed, *arm.encode()])


def _record(profile, shape: Shape, arm, seed, difficulty) -> RunRecord:
    method = METHOD.get(arm, "base")
    size, parameters = _size(shape, arm, method), _parameters(shape, method)
    train = _train(shape, arm, method, seed, size) if method != "base" else None
    flops = _flops(shape, method) if train else None
    recomputed = round(flops * 4 / 3) if arm == "qlora-checkpointing" else flops
    rate = shape.peak_flops
    return RunRecord(
        status="complete", profile=profile, arm=arm, label=LABELS[arm], method=method,
        derived_from=DERIVED_FROM.get(arm), seed=seed,
        model=ModelInfo(
            name=shape.name, source=shape.source, license="Apache-2.0",
            note="made-up record: nothing was measured", parameters_total=shape.total,
            architecture={
                "layers": shape.layers, "hidden_size": shape.hidden, "heads": shape.heads,
                "kv_heads": shape.kv_heads, "intermediate_size": shape.intermediate,
                "vocabulary_size": shape.vocabulary, "tied_embeddings": True,
            },
        ),
        data=DataInfo(
            name="wikipedia-sample", source="package index: example (made-up values)",
            license="CC BY-SA", attribution="Wikipedia contributors",
            stand_in_for="wikitext-2-raw-v1", train_tokens=463_000, eval_tokens=58_000,
            vocabulary_size=shape.vocabulary, window_length=shape.length,
            splits={
                name: SplitStatistics(
                    documents=docs, characters=tokens * 3, tokens=tokens,
                    windows=tokens // shape.length,
                )
                for name, docs, tokens in [
                    ("train", 1879, 463_000), ("validation", 235, 57_900), ("test", 235, 58_000)
                ]
            },
        ),
        settings={
            "model": {"name": shape.name}, "data": {"name": "wikipedia-sample"},
            "train": {
                "steps": train.steps if train else 0, "learning_rate": LEARNING_RATE.get(arm),
                "batch_size": shape.batch, "sequence_length": shape.length,
                "gradient_checkpointing": arm == "qlora-checkpointing",
            },
            "lora": {"rank": shape.rank, "alpha": 2 * shape.rank, "dropout": 0.05},
            "storage": STORAGE.get(arm, "fp32"),
        },
        parameters=parameters, size_bytes=size,
        flops_per_step=flops, hardware_flops_per_step=recomputed, train=train,
        mfu=flops / train.seconds_per_step / rate if train else None,
        hfu=recomputed / train.seconds_per_step / rate if train else None,
        peak=Peak(flops_per_second=rate, what="measured GEMM, fp32, 2 threads") if train else None,
        perplexity=_perplexity(shape, arm, seed, difficulty), generation=_generation(shape, arm),
        provenance=Provenance(
            cache_key=f"example-{profile}-{arm}-{seed}", finished="2026-01-02T03:04:05+00:00",
            device="cpu", cpu="Example CPU, AVX2", threads=2, memory_bytes=24 * 2**30,
            platform="Linux-x86_64", dtype="float32",
            dtype_reason="this CPU has neither AVX512-BF16 nor AMX",
            versions={"python": "3.11", "torch": "2.13.0", "transformers": "5.23.0",
                      "peft": "0.21.2", "bitsandbytes": "0.50.2"},
            git_commit=None, wall_seconds=train.seconds + 60 if train else 45.0,
            peak_resident_bytes=(
                train.peak_memory_bytes if train else shape.process_bytes + size.total
            ),
        ),
    )


def _size(shape: Shape, arm, method) -> SizeBytes:
    storage, linear = STORAGE.get(arm, "fp32"), shape.linear_parameters
    matrices = shape.layers * len(shape.linears)
    blocks = linear // BLOCK
    unquantized = shape.other_parameters * FP32
    if storage == "fp32":
        quantized, state, unquantized = 0, 0, shape.total * FP32
    elif storage == "int8":
        quantized, state = linear, shape.layers * sum(o for _, o in shape.linears) * FP32
    elif storage == "nf4dq":
        second = -(-blocks // SECOND_BLOCK) * FP32
        quantized, state = linear // 2, blocks + second + matrices * (256 + 16 + 1) * FP32
    else:
        quantized, state = linear // 2, blocks * FP32 + matrices * 16 * FP32
    base = quantized + state + unquantized
    adapter = shape.adapter_parameters * FP32 if method in ("lora", "qlora") else 0
    return SizeBytes(
        base=base, adapter=adapter, total=base + adapter, quantization_state=state,
        quantized_weights=quantized, unquantized=unquantized, on_disk=base + adapter + 9_000,
        footprint_reported=base + adapter - state,
    )


def _parameters(shape: Shape, method) -> Parameters:
    adapter = shape.adapter_parameters if method in ("lora", "qlora") else 0
    trainable = {"base": 0, "full": shape.total}.get(method, adapter)
    return Parameters(total=shape.total + adapter, base=shape.total, trainable=trainable)


def _flops(shape: Shape, method) -> int:
    products = shape.linear_parameters + shape.vocabulary * shape.hidden
    attention = 12 * shape.layers * shape.hidden * shape.length
    per_token = (6 if method == "full" else 4) * products + attention
    if method != "full":
        per_token += 6 * shape.adapter_parameters
    return per_token * shape.tokens_per_step


def _train(shape: Shape, arm, method, seed, size: SizeBytes) -> Train:
    noise = _noise(seed, arm)
    only_timed = arm == "qlora-checkpointing"
    steps = 6 if only_timed else shape.steps
    twin = "qlora" if only_timed else arm
    start = math.log(shape.perplexity[STARTS_AT[twin]])
    end = math.log(shape.perplexity[twin])
    fast = 9.0 if method == "full" else 12.0  # steps in which the gain grows by a factor e

    def curve(step):
        return end + (start - end) * np.exp(-np.asarray(step, float) / fast * 60 / shape.steps)

    eval_steps = [] if only_timed else sorted({*range(0, steps, max(1, steps // 6)), steps})
    warmup = max(1, steps // 10)
    seconds = shape.seconds_per_step[arm]
    trainable = _parameters(shape, method).trainable
    state = trainable * (2 if method == "qlora" else 8)
    gradients = trainable * FP32
    # Activations: the logits (kept thrice) and some twenty hidden vectors a layer and token.
    kept_layers = 1 if only_timed else shape.layers
    activations = shape.tokens_per_step * FP32 * (
        3 * shape.vocabulary + 20 * shape.hidden * kept_layers
    )
    peak_tensors = size.total + state + gradients + activations
    ran = "adamw_8bit" if method == "qlora" else "adamw_torch"
    return Train(
        steps=steps, tokens=steps * shape.tokens_per_step, seconds=steps * seconds * 1.03,
        seconds_per_step=seconds, seconds_per_step_quartiles=(seconds * 0.97, seconds * 1.06),
        tokens_per_second=shape.tokens_per_step / seconds, tokens_per_step=shape.tokens_per_step,
        timed_steps=steps - 2, peak_memory_bytes=shape.process_bytes + round(peak_tensors * 1.08),
        peak_memory_meter="peak resident set of the process", peak_tensor_bytes=peak_tensors,
        loss=(curve(range(steps)) + noise.normal(0, 0.12, steps)).round(5).tolist(),
        eval_loss=[float(x) for x in curve(eval_steps).round(5)], eval_steps=eval_steps,
        learning_rate=[
            LEARNING_RATE[arm] * min((s + 1) / warmup, (steps - s) / (steps - warmup))
            for s in range(steps)
        ],
        grad_norm=(1.2 + noise.gamma(2.0, 0.2, steps)).round(4).tolist(),
        optimizer=Optimizer(
            requested="paged_adamw_8bit" if method == "qlora" else ran, ran=ran,
            why="paging needs CUDA" if method == "qlora" else "as requested", state_bytes=state,
        ),
        gradient_bytes=gradients,
    )


def _windows(shape: Shape, arm, seed, difficulty) -> tuple[float, list[float]]:
    """(perplexity, mean nats a token of each window); the windows' mean gives the perplexity."""
    offset = _noise(seed, arm).normal(0.0, shape.pair_noise, shape.windows) + difficulty
    nll = math.log(shape.perplexity[arm]) + offset - offset.mean()
    return math.exp(nll.mean()), nll.round(6).tolist()


def _perplexity(shape: Shape, arm, seed, difficulty) -> Perplexity | None:
    if arm not in shape.perplexity:
        return None  # there only for its time
    start = STARTS_AT.get(arm)
    before, window_before = _windows(shape, start or arm, seed, difficulty)
    after, window_after = _windows(shape, arm, seed, difficulty) if start else (None, [])
    return Perplexity(
        before=before, after=after, context=shape.context, stride=shape.context,
        protocol=f"disjoint windows of {shape.context} tokens, no BOS, held-out articles",
        tokens_scored=shape.windows * (shape.context - 1),
        window_nll_before=window_before, window_nll_after=window_after,
    )


def _generation(shape: Shape, arm) -> Generation | None:
    if arm not in shape.decode:
        return None
    latency = 50 / shape.decode[arm]
    return Generation(
        tokens_per_second=shape.decode[arm], latency_seconds=latency,
        first_token_seconds=latency / 20, new_tokens=50, prompt_tokens=32,
        repeats=[latency * f for f in (0.99, 1.0, 1.02)],
        protocol="greedy, KV cache, median of 3, one warm-up left out",
        sample="The river rises in the hills and flows south to the sea.",
    )


if __name__ == "__main__":
    print(write_example(Path(sys.argv[1]), *sys.argv[2:3]))
