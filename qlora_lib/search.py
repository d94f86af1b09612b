"""Learning-rate search: each method at each of its rates, compared on the validation split.

How it works: the arm that a profile runs for a method is run once a rate, with the same steps, data
and seed as in the comparison, and scored by its last validation loss; the test split is never
touched. The outcome is one small record under `report/records`, which the profile names and whose
best rates its arms use.
"""

import json
from typing import Any

from qlora_lib.config import Profile
from qlora_lib.errors import UsageError
from qlora_lib.paths import committed_records, results_dir, write_atomic
from qlora_lib.progress import say
from qlora_lib.records import RunRecord
from qlora_lib.study import run_arm

# What a search leaves out of an arm, and a validation on more windows than the arms' curves need.
LEAN = {
    "evaluation.perplexity": False,
    "evaluation.new_tokens": 0,
    "train.keep_model": False,
    "train.eval_windows": 24,
    "runtime.meter_tensors": False,
}


def search_record_path(profile: Profile):
    if profile.search is None:
        raise UsageError(f"profile '{profile.name}' names no learning rates to search", "Add a `search` section to it")
    return committed_records(profile.name).parent / profile.search.record


def run_search(profile: Profile, overrides: dict[str, Any] | None = None) -> dict:
    """Run every rate of every method and write the record; returns it."""
    path = search_record_path(profile)
    records: dict[str, dict[float, RunRecord]] = {}
    for method, rates in profile.search.rates.items():
        arm = profile.arm_of_method(method)
        steps = profile.settings(arm, overrides).train.max_steps
        records[method] = {}
        for rate in rates:
            say(f"{method} at {rate:g}")
            settings = LEAN | {"train.eval_every": steps} | (overrides or {}) | {"train.learning_rate": rate}
            out = results_dir(f"{profile.name}-search") / f"{method}-{rate:g}"
            records[method][rate] = run_arm(profile, arm, out, settings).record
    outcome = summarize(profile.name, records)
    write_atomic(path, json.dumps(outcome, indent=1) + "\n")
    return outcome


def summarize(profile: str, records: dict[str, dict[float, RunRecord]]) -> dict:
    """The outcome of a search from its runs' records, by method and rate."""
    tried = {
        method: [
            {
                "learning_rate": rate,
                "validation_loss": r.train.eval_loss[-1] if r.status == "complete" else None,
                "validation_loss_before": r.train.eval_loss[0] if r.train.eval_loss else None,
                "train_loss": r.train.loss,
                "status": r.status_reason or "complete",
            }
            for rate, r in by_rate.items()
        ]
        for method, by_rate in records.items()
    }
    runs = [r for by_rate in records.values() for r in by_rate.values()]
    described = next((r for r in runs if r.status == "complete"), runs[0])  # one that diverged is shorter
    device = described.provenance.device
    return {
        "schema": 1,
        "profile": profile,
        "protocol": (
            f"last validation loss after {described.train.steps} steps of {described.train.tokens_per_step} tokens, on "
            f"{described.settings['train']['eval_windows']} windows of {described.data.window_length} of the "
            f"validation split; seed {described.seed}"
        ),
        "model": {"name": described.model.name, "revision": described.model.revision},
        "data": {"name": described.data.name, "revision": described.data.revision},
        "hardware": described.provenance.cpu if device == "cpu" else device,
        "finished": max(r.provenance.finished for r in runs),
        "versions": described.provenance.versions,
        "tried": tried,
        "best": {method: best_rate(rows) for method, rows in tried.items()},
    }


def best_rate(rows: list[dict]) -> float | None:
    """The rate with the lowest validation loss; None when every run diverged."""
    finished = [r for r in rows if r["validation_loss"] is not None]
    return min(finished, key=lambda r: r["validation_loss"])["learning_rate"] if finished else None
