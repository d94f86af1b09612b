"""Made-up records of the sweeps of `demo-long` and of task arms, with an outcome that a test chooses.

How it works: each arm of the profile takes the example record of its method and the settings that the profile gives it;
`loss` is a function of settings and seed, so a test says what the sweep finds. Nothing here was measured.
"""

import math
from collections.abc import Callable

import numpy as np
from example_records import SHAPES, example_records

from qlora_lib.config import Settings, load_profile
from qlora_lib.figures import DrawnFigure
from qlora_lib.records import Metric, RunRecord, Sample, TaskResult

def stubs(folder, names):
    """Pictures that take no time to draw; tests/test_sweeps.py draws them."""
    made = [DrawnFigure(name, folder / f"{name}.svg", alt=f"{name}, in words", caption="") for name in names]
    for figure in made:
        figure.path_svg.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="400" height="150"/>')
    return made


BEST = {"full": 1e-4, "lora": 2e-3, "qlora": 2e-3}
START = {"full": 3.25, "lora": 3.25, "qlora": 3.48}
FLOOR = {"full": 2.98, "lora": 3.00, "qlora": 3.07}
CURVATURE = {"full": 0.02, "lora": 0.02, "qlora": 0.02}  # nats for each factor of two off the best rate, squared
SEED_SPREAD = 0.006


def loss_of(method: str, settings: Settings, seed: int, best=BEST, curvature=CURVATURE, floor=FLOOR, spread=SEED_SPREAD) -> float:
    """A parabola in log2 of the rate, a little less with rank, and seeds that differ by `spread` about it."""
    steps = math.log2(settings.train.learning_rate / best[method])
    adapter = 0.0 if method == "full" else -0.004 * math.log2(settings.lora.rank / 16)
    attention = 0.03 if method != "full" and settings.lora.target_modules != "all-linear" else 0.0
    batch = settings.train.batch_size * settings.train.gradient_accumulation_steps
    batching = 0.02 * math.log2(batch / 4) ** 2 if batch != 4 else 0.0
    return floor[method] + curvature[method] * steps**2 + adapter + attention + batching + spread * (seed - 0.5)


def example_sweeps(loss: Callable[[str, Settings, int], float | None] = loss_of) -> dict[str, RunRecord]:
    """Every arm of `demo-long`, by name; where `loss` gives None the arm stopped."""
    profile, made_up = load_profile("demo-long"), example_records("demo")
    found = {}
    for entry in profile.arms:
        settings = profile.settings(entry)
        if settings.data.name != profile.data.name:
            continue  # a task's
        source = entry.method if entry.method != "base" else "base-nf4dq" if settings.quantization.format == "nf4" else "base"
        record = made_up[source].model_copy(deep=True)
        record.profile, record.arm, record.label, record.seed = "demo-long", entry.name, entry.label, settings.seed
        record.settings = settings.model_dump(exclude={"seed"})
        if entry.method != "base":
            _trained(record, settings, loss(entry.method, settings, settings.seed))
        found[entry.name] = record
    return found


def _trained(record: RunRecord, settings: Settings, end: float | None) -> None:
    train, start = record.train, START[record.method]
    train.steps = settings.train.max_steps
    train.tokens_per_step = settings.train.batch_size * settings.train.gradient_accumulation_steps * settings.data.window_length
    train.tokens = train.steps * train.tokens_per_step
    train.eval_steps = [0, settings.train.eval_every, train.steps]
    if record.method != "full":
        shape = SHAPES["demo"]
        linears = shape.linears if settings.lora.target_modules == "all-linear" else shape.linears[:4]
        added = shape.layers * settings.lora.rank * sum(i + o for i, o in linears)
        record.parameters.trainable, record.parameters.total = added, record.parameters.base + added
        record.size_bytes.adapter = 4 * added
        record.size_bytes.total = record.size_bytes.base + 4 * added
        train.peak_tensor_bytes += 12 * added
    if end is None:
        record.status, record.status_reason, record.perplexity = "stopped", "the loss became NaN at step 5", None
        train.eval_steps, train.eval_loss = [0], [start]
        return
    train.eval_loss = [start, (start + 2 * end) / 3, end]
    noise = np.random.default_rng(settings.seed).normal(0, 0.05, SHAPES["demo"].windows)
    record.perplexity.window_nll_after = [float(end + 0.02 + x - noise.mean()) for x in noise]
    record.perplexity.after = math.exp(end + 0.02)


# --- tasks ------------------------------------------------------------------------------------------

TASKS = {  # arm -> data, what it stands in for, task, metrics: name -> (before, after)
    "task-reviews": ("film-reviews", "SST-2", "classification", {"accuracy": (58.0, 84.5)}),
    "task-questions": ("wikipedia-questions", "SQuAD v1.1", "qa", {"exact_match": (12.0, 41.0), "f1": (28.5, 60.25)}),
    "task-instructions": ("wikipedia-instructions", "Dolly-15K", "instructions", {"response_perplexity": (18.9, 14.2)}),
}
RANKS = (4, 8, 16, 64)


def example_tasks(outcome: dict | None = None) -> dict[str, RunRecord]:
    """The demo's task arms; `outcome` replaces (before, after) by metric name."""
    qlora = example_records("demo")["qlora"]
    return {arm: _task(qlora, arm, *rest, outcome or {}) for arm, rest in ((a, t) for a, t in TASKS.items())}


def example_task_sweeps(accuracy: Callable[[int, int], float] = lambda rank, seed: 80 + rank / 16 + seed) -> dict[str, RunRecord]:
    """Rank against accuracy on film reviews, in `demo-long`."""
    qlora, found = example_records("demo")["qlora"], {}
    for rank in RANKS:
        for seed in (0, 1):
            arm = f"reviews-rank-{rank}-s{seed}"
            r = _task(qlora, arm, *TASKS["task-reviews"], {"accuracy": (58.0, accuracy(rank, seed))})
            r.profile, r.seed = "demo-long", seed
            r.settings["lora"]["rank"] = rank
            r.parameters.trainable = rank * 305_280
            found[arm] = r
    return found


def _task(qlora: RunRecord, arm: str, data: str, stand_in: str, task: str, metrics: dict, outcome: dict) -> RunRecord:
    r = qlora.model_copy(deep=True)
    r.arm, r.label, r.perplexity = arm, f"QLoRA on {data}", None
    r.settings = load_profile("demo").settings(load_profile("demo").arm("qlora")).model_dump(exclude={"seed"})
    r.settings["data"]["name"] = data
    r.data.name, r.data.stand_in_for, r.data.task, r.data.left_out = data, stand_in, task, {"longer than 256 tokens": 3}
    r.train.response_tokens = r.train.tokens // 3
    r.task = TaskResult(
        task=task, protocol="greedy, chat template of the model", n=200, prompts_cut=0,
        metrics={name: _metric(name, *outcome.get(name, values)) for name, values in metrics.items()},
        samples=[Sample(prompt=f"Prompt {i} of {data}? #panic() *x* $y$", expected=f"Expected {i}", before=f"Before {i}",
                        after=f"After {i}" if i else None) for i in range(2)],
    )  # fmt: skip
    return r


def _metric(name: str, before: float | None, after: float | None) -> Metric:
    lower = name == "response_perplexity"
    half = 0.8 if lower else 6.0
    known = before is not None and after is not None
    return Metric(
        unit="perplexity" if lower else "%", higher_is_better=not lower, before=before, after=after,
        before_interval=(before - half, before + half) if before is not None else None,
        after_interval=(after - half, after + half) if after is not None else None,
        difference=after - before if known else None,
        difference_interval=(after - before - half, after - before + half) if known else None,
    )  # fmt: skip
