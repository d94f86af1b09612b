"""Eight signatures: for each mistake, a relation between a run and the healthy one that gives it away.

How it works: each compares a few numbers that anybody can measure of their own run, decides, and says in one
sentence what it saw. A signature reads only what its mistake must change, so that it stays silent for
the seven others; whatever is not a number (a run that broke) satisfies no comparison.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from qlora_lib.course.faults.settings import FAULTS, HEALTHY
from qlora_lib.course.faults.symptoms import Symptoms

# Margins: far above rounding and the spread of a few people, far below what the mistakes do.
NATS = 0.08  # a token
TOKENS = 0.5  # an example
STOPS = math.log(0.1)  # an end token less likely than that is as good as unlearned
LEAK = 0.12  # of the validation loss, by which unseen people may cost more
TURNED = 0.99  # cosine of the angle between the trained and the deployed update
STRETCHED = 1.1  # their ratio in size, or its inverse
RATE = 3.0  # adapters this many times larger or smaller than the healthy one


@dataclass(frozen=True)
class Finding:
    """Whether a signature holds for a run, and what it saw."""

    fault: str
    holds: bool
    sentence: str
    evidence: str  # name of a picture of `drawing`


def pad_is_eos(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    c, end = run.curves, run.unseen.end_logprob
    holds = c.scored_tokens < c.answer_tokens - TOKENS and end < STOPS < healthy.unseen.end_logprob
    return holds, (
        f"{c.scored_tokens:.1f} of an answer's {c.answer_tokens:.1f} tokens are scored, and the end token after a "
        f"right answer has probability {probability(end)} (healthy {probability(healthy.unseen.end_logprob)})"
    )


def prompt_loss(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    c = run.curves
    return c.scored_tokens > c.answer_tokens + TOKENS, (
        f"{c.scored_tokens:.1f} tokens of an example are scored, and its answer has {c.answer_tokens:.1f}; "
        f"the first loss is {c.true_loss[0]:.2f} (healthy {healthy.curves.true_loss[0]:.2f})"
    )


def no_template(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    own, chat = run.curves.eval_loss[-1], run.validation.loss
    same_tokens = abs(run.curves.scored_tokens - run.curves.answer_tokens) < TOKENS
    return same_tokens and chat - own > NATS, (
        f"the same validation answers cost {own:.2f} nats a token as the run rendered them "
        f"and {chat:.2f} in the chat template (healthy {healthy.curves.eval_loss[-1]:.2f} and "
        f"{healthy.validation.loss:.2f})"
    )


def wrong_base(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    changed = abs(run.deployed.loss - run.unseen.loss)
    return run.update.cosine < TURNED and changed > 1e-4, (
        f"the change of the deployed weights lies at cosine {run.update.cosine:.3f} to the trained update "
        f"(healthy {healthy.update.cosine:.3f}); loss {run.unseen.loss:.3f} as trained, "
        f"{run.deployed.loss:.3f} as deployed"
    )


def wrong_alpha(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    u = run.update
    stretched = not 1 / STRETCHED <= u.size <= STRETCHED
    return u.cosine >= TURNED and stretched and run.deployed.loss - run.unseen.loss > NATS, (
        f"the deployed update points the right way (cosine {u.cosine:.3f}) and is {u.size:.2f} times as large as "
        f"the trained one; loss {run.unseen.loss:.3f} as trained, {run.deployed.loss:.3f} as deployed"
    )


def leaked(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    gap, usual = (r.unseen.loss / r.validation.loss - 1 for r in (run, healthy))
    return gap - usual > LEAK, (
        f"validation loss {run.validation.loss:.3f}, but {run.unseen.loss:.3f} on people that nobody looked at "
        f"(healthy {healthy.validation.loss:.3f} and {healthy.unseen.loss:.3f})"
    )


def overflow(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    broken = [step for step, loss in enumerate(run.curves.true_loss, 1) if not math.isfinite(loss)]
    shown = all(math.isfinite(loss) for loss in run.curves.logged_loss)
    if not broken:
        return False, f"all {len(run.curves.true_loss)} losses are finite"
    last = run.curves.logged_loss[-1]
    return shown, (
        f"the loss is no number from step {broken[0]} of {len(run.curves.true_loss)} on, while the log "
        f"{f'shows {last:g}' if shown else 'says so'}; validation says {run.curves.eval_loss[-1]:.3g}"
    )


def wrong_rate(run: Symptoms, healthy: Symptoms) -> tuple[bool, str]:
    ratio = run.update.norm / healthy.update.norm
    return 0 < ratio < 1 / RATE or RATE < ratio < math.inf, (
        f"after the same steps the trained update is {ratio:.2f} times as large as the healthy one; "
        f"training loss {run.curves.true_loss[-1]:.2f} at the end (healthy {healthy.curves.true_loss[-1]:.2f})"
    )


SIGNATURES: dict[str, tuple[Callable[[Symptoms, Symptoms], tuple[bool, str]], str]] = dict(
    zip(FAULTS, (
        (pad_is_eos, "labels"), (prompt_loss, "labels"), (no_template, "losses"), (wrong_base, "update"),
        (wrong_alpha, "update"), (leaked, "losses"), (overflow, "curves"), (wrong_rate, "curves"),
    ), strict=True)
)  # fmt: skip


def finding(fault: str, run: Symptoms, healthy: Symptoms) -> Finding:
    """Does the signature of `fault` hold for this run?"""
    signature, evidence = SIGNATURES[fault]
    holds, sentence = signature(run, healthy)
    return Finding(fault, bool(holds), sentence, evidence)


def confusion(symptoms: dict[str, Symptoms]) -> dict[str, list[str]]:
    """Run -> the faults whose signatures hold for it."""
    healthy = symptoms[HEALTHY]
    return {name: [f for f in FAULTS if finding(f, run, healthy).holds] for name, run in symptoms.items()}


def probability(log_probability: float) -> str:
    """Of a token, from its logarithm: 0.98, 0.0002, under 1e-9."""
    p = math.exp(log_probability)
    return f"{p:.2f}" if p >= 0.095 else f"{p:.1g}" if p > 1e-9 else "under 1e-9" if p == p else "not a number"
