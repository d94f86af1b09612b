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
from qlora_lib.study import run_arm, say

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
    tried: dict[str, list[dict]] = {}
    described = None  # the record that the protocol is taken from
    for method, rates in profile.search.rates.items():
        arm = profile.arm_of_method(method)
        tried[method] = []
        for rate in rates:
            say(f"{method} at {rate:g}")
            steps = profile.settings(arm, overrides).train.max_steps
            settings = LEAN | {"train.eval_every": steps} | (overrides or {}) | {"train.learning_rate": rate}
            record = run_arm(profile, arm, results_dir(f"{profile.name}-search") / f"{method}-{rate:g}", settings).record
            finished = record.status == "complete"
            described = record if finished or described is None else described  # a run that diverged is shorter
            tried[method].append(
                {
                    "learning_rate": rate,
                    "validation_loss": record.train.eval_loss[-1] if finished else None,
                    "validation_loss_before": record.train.eval_loss[0] if record.train.eval_loss else None,
                    "train_loss": record.train.loss,
                    "status": record.status_reason or "complete",
                }
            )
    outcome = {
        "schema": 1,
        "profile": profile.name,
        "protocol": (
            f"last validation loss after {described.train.steps} steps of {described.train.tokens_per_step} tokens, "
            f"on {described.settings['train']['eval_windows']} windows of {described.data.window_length} of the validation split; seed {described.seed}"
        ),
        "model": {"name": described.model.name, "revision": described.model.revision},
        "data": {"name": described.data.name, "revision": described.data.revision},
        "hardware": described.provenance.cpu if described.provenance.device == "cpu" else described.provenance.device,
        "finished": described.provenance.finished,
        "versions": described.provenance.versions,
        "tried": tried,
        "best": {method: best_rate(rows) for method, rows in tried.items()},
    }
    write_atomic(path, json.dumps(outcome, indent=1) + "\n")
    return outcome


def best_rate(rows: list[dict]) -> float | None:
    """The rate with the lowest validation loss; None when every run diverged."""
    finished = [r for r in rows if r["validation_loss"] is not None]
    return min(finished, key=lambda r: r["validation_loss"])["learning_rate"] if finished else None
