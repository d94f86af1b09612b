"""Win rate of one model's answers against a baseline's, by a judge.

How it works: the baseline's answer is output 1 and ours output 2, as AlpacaEval has it. Which of them the judge sees first is
a coin of the instruction and the seed; its verdict is turned back. Equal answers are a draw that no judge is asked about. A
comparison without a verdict is left out of the rate and counted by reason; too many in a row stop the run with one line.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from itertools import compress
from pathlib import Path

from qlora_lib.errors import QloraError, UsageError
from qlora_lib.judges.alpaca_eval import is_swapped
from qlora_lib.judges.annotations import read_annotations, write_annotations
from qlora_lib.judges.base import Judge, Verdict
from qlora_lib.judges.judged import Judged, total
from qlora_lib.judges.settings import JudgeSettings
from qlora_lib.metrics.length_controlled import Gamed, length_controlled_win_rate

NO_OUTPUT, NO_BASELINE = "no answer of the model", "no answer of the baseline"


def make_judge(settings: JudgeSettings) -> Judge:
    if settings.kind == "endpoint":
        from qlora_lib.judges.endpoint import EndpointJudge

        return EndpointJudge(settings)
    if settings.kind == "local":
        from qlora_lib.evaluation import load_for_use
        from qlora_lib.judges.local import LocalJudge

        model, tokenizer, asset, _ = load_for_use(settings.model, None, settings.quantization, True, "auto")
        return LocalJudge(model, tokenizer, asset.name)
    from qlora_lib.judges.offline import ReferenceOverlapJudge

    return ReferenceOverlapJudge(settings.margin)


def judge_pairs(
    instructions: Sequence[str],
    outputs: Sequence[str | None],
    baseline_outputs: Sequence[str | None],
    judge: Judge,
    *,
    references: Sequence[str | None] | None = None,
    seed: int = 0,
    model: str = "model",
    baseline: str = "baseline",
    failures_in_a_row: int = 10,
    progress: bool = False,
) -> Judged:
    """Every pair judged once.

    Args:
        outputs: the model's answers; None where it has none.
        references: for judges that need them.
        failures_in_a_row: comparisons without a verdict after which the run stops.

    Raises:
        UsageError: where the numbers of entries differ, or references are needed and not given.
        QloraError: from a judge that can never answer, and after too many failures in a row.
    """
    n = len(instructions)
    for name, values in (("outputs", outputs), ("baseline_outputs", baseline_outputs), ("references", references)):
        if values is not None and len(values) != n:
            raise UsageError(f"{n} instructions and {len(values)} {name} were given; one an instruction was expected")
    if not n:
        raise UsageError("there are no instructions to judge; at least one was expected")
    if judge.needs_reference and references is None:
        raise UsageError(
            f"the judge {judge.name} needs reference answers; none were given", "Use another judge, or data with references"
        )
    pairs = list(zip(instructions, outputs, baseline_outputs, references or [None] * n, strict=True))
    annotations, preferences, verdicts, in_a_row = [], [], [], 0
    bar = _bar(n, judge.name, progress)
    with closing(bar), closing(_verdicts(pairs, judge, seed)) as coming:
        for pair, (verdict, seconds) in zip(pairs, coming, strict=True):
            preference, failure = _outcome(pair, verdict, seed)
            in_a_row = 0 if preference is not None else in_a_row + (verdict is not None)
            annotations.append(_annotation(pair, preference, failure, verdict, seconds, judge.name, model, baseline))
            preferences.append(preference)
            verdicts.append(verdict)
            _advance(bar, verdicts)
            if in_a_row >= failures_in_a_row:
                _stop(judge, verdict, in_a_row, preferences, n)
    lengths = [[len(pair[which] or "") for pair in pairs] for which in (1, 2)]
    return Judged(annotations, preferences, *lengths, verdicts, [is_swapped(text, seed) for text in instructions])


def evaluate_pairs(
    instructions: Sequence[str],
    outputs: Sequence[str | None],
    baseline_outputs: Sequence[str | None],
    judge: Judge | JudgeSettings,
    *,
    references: Sequence[str | None] | None = None,
    seed: int = 0,
    model: str = "model",
    adapter: str | None = None,
    baseline: str = "baseline",
    data: str = "",
    difficulty: Sequence[float] | None = None,
    gamed: Gamed | None = None,
    failures_in_a_row: int | None = None,
    annotations_to: Path | None = None,
    progress: bool = True,
) -> dict:
    """The document of `qlora eval --task winrate --json` for answers that are ready.

    `annotations_to` also writes the comparisons as AlpacaEval's annotations.json. Raises what `judge_pairs` raises, and
    QloraError where no comparison got a verdict.
    """
    if isinstance(judge, JudgeSettings):
        failures_in_a_row = failures_in_a_row or judge.failures_in_a_row
        judge = make_judge(judge)
    generator = f"{model} + {adapter}" if adapter else model
    judged = judge_pairs(
        instructions, outputs, baseline_outputs, judge, references=references, seed=seed, model=generator, baseline=baseline,
        failures_in_a_row=failures_in_a_row or 10, progress=progress,
    )  # fmt: skip
    if annotations_to is not None:
        write_annotations(annotations_to, judged.annotations)
    if all(p is None for p in judged.preferences):
        raise QloraError(f"no comparison got a verdict: {_listed(judged.missing)}", "The rate of nothing is not reported")
    cost = judged.cost
    return {
        "task": "winrate", "model": model, "adapter": adapter, "baseline": baseline, "data": data,
        "protocol": f"{judge.protocol}; order of the answers random by instruction, seed {seed}",
        **_rates(*_answered(judged, difficulty), gamed),
        "missing": judged.missing,
        "judge": judge.describe() | {k: v for k, v in cost.items() if k != "cost_usd"},
        "cost_usd": cost["cost_usd"],
        "position_bias": judged.position_bias,
    }  # fmt: skip


def evaluate_annotations(path: Path, difficulty: Sequence[float] | None = None, gamed: Gamed | None = None) -> dict:
    """The same document from an AlpacaEval annotation file; what a file does not tell is None."""
    read = read_annotations(path)
    missing = sum(p is None for p in read.preferences)
    if missing == len(read.preferences):
        raise QloraError(f"no entry of {path} has a preference")
    return {
        "task": "winrate", "model": read.model, "adapter": None, "baseline": read.baseline, "data": str(path),
        "protocol": f"preferences of {read.annotator or 'an unnamed judge'} as the file has them",
        **_rates(read.preferences, read.lengths, read.baseline_lengths, difficulty, gamed),
        "missing": {"no preference in the file": missing} if missing else {},
        "judge": {"kind": "annotations", "name": read.annotator},
        "cost_usd": None,
        "position_bias": None,
    }  # fmt: skip


def _answered(judged: Judged, difficulty: Sequence[float] | None) -> list:
    """Preferences, lengths and difficulties of the pairs that have both answers: an answer that is not there has no length."""
    there = [a.get("failure") not in (NO_OUTPUT, NO_BASELINE) for a in judged.annotations]
    columns = (judged.preferences, judged.lengths, judged.baseline_lengths, difficulty)
    return [None if column is None else list(compress(column, there)) for column in columns]


def _rates(preferences, lengths, baseline_lengths, difficulty, gamed) -> dict:
    found = length_controlled_win_rate(preferences, lengths, baseline_lengths, difficulty, gamed)
    rate, error = found["win_rate"], found["standard_error"]
    reach = None if error is None else statistics.NormalDist().inv_cdf(0.975) * error
    return {
        **{k: found[k] for k in ("n", "win_rate", "standard_error")},
        "confidence_interval": None if reach is None else [max(0.0, rate - reach), min(100.0, rate + reach)],
        **{k: found[k] for k in ("wins", "draws", "losses", "length_controlled_win_rate")},
        "length_controlled": {
            "standard_error": found["length_controlled_standard_error"],
            **{k: found[k] for k in ("predictions_standard_error", "glm", "terms", "absent")},
            **{k: found[k] for k in ("mean_length", "mean_baseline_length", "longer", "warnings")},
        },
    }  # fmt: skip


def _verdicts(pairs: list[tuple], judge: Judge, seed: int) -> Iterator[tuple[Verdict | None, float | None]]:
    """(verdict, seconds) in the order of the pairs, `judge.parallel` at once and no further ahead."""

    def work(pair) -> tuple[Verdict | None, float | None]:
        instruction, output, baseline, reference = pair
        if output is None or baseline is None or output == baseline:
            return None, None
        seen = (output, baseline) if is_swapped(instruction, seed) else (baseline, output)
        begun = time.monotonic()
        try:
            return judge.compare(instruction, *seen, reference), time.monotonic() - begun
        except QloraError:  # nothing will be answered any more: the others need not wait for it
            close()
            raise

    def close() -> None:
        if hasattr(judge, "close"):
            judge.close()

    if judge.parallel == 1:
        yield from map(work, pairs)
        return
    pool, waiting, coming = ThreadPoolExecutor(judge.parallel), deque[Future](), iter(pairs)
    try:
        for pair in coming:
            waiting.append(pool.submit(work, pair))
            if len(waiting) >= judge.parallel:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:  # also when the run stops half-way: what is on its way is paid for and kept, and nothing new is asked
        for future in waiting:
            future.cancel()
        if waiting:
            close()
        pool.shutdown(cancel_futures=True)


def _outcome(pair: tuple, verdict: Verdict | None, seed: int) -> tuple[float | None, str | None]:
    """(preference as output 1 and 2 stand in the annotation, why there is none)"""
    instruction, output, baseline, _ = pair
    if verdict is None:
        if output is None or baseline is None:
            return None, NO_OUTPUT if output is None else NO_BASELINE
        return 1.5, None
    if verdict.preference is None:
        return None, verdict.why
    return (3 - verdict.preference if is_swapped(instruction, seed) else verdict.preference), None


def _annotation(pair, preference, failure, verdict, seconds, annotator, model, baseline) -> dict:
    entry = {
        "instruction": pair[0], "output_1": pair[2] or "", "generator_1": baseline, "output_2": pair[1] or "",
        "generator_2": model, "annotator": annotator, "preference": preference,
        "raw_completion": verdict.raw if verdict else None, "price_per_example": verdict.cost_usd if verdict else None,
        "time_per_example": seconds,
    }  # fmt: skip
    return entry if failure is None else entry | {"failure": failure}


def _stop(judge: Judge, verdict: Verdict, in_a_row: int, preferences: list, n: int):
    done = sum(p is not None for p in preferences)
    said = f" ({verdict.detail})" if verdict.detail else ""
    raise QloraError(
        f"the judge {judge.name} failed {in_a_row} times in a row, last for: {verdict.why}{said}; {done} of {n} were judged",
        "What an endpoint answered is kept in the cache: run again to go on from there",
    )


def _listed(missing: dict[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in missing.items())


def _bar(n: int, name: str, show: bool):
    from tqdm.auto import tqdm

    return tqdm(total=n, desc=name, unit="pair", mininterval=1.0, disable=not show)


def _advance(bar, verdicts: list) -> None:
    cost = total(v.cost_usd for v in verdicts if v is not None and not v.cached)
    if cost is not None:
        bar.set_postfix_str(f"${cost:.4f}", refresh=False)
    bar.update()
