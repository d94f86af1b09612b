"""What an arm scores before and after its training: perplexity of a text, or a task's own metric.

How it works: both kinds of data have one face here. `before` takes the score of an earlier arm where that scored the very
same base on the same data; `after` is on the same windows or examples; `result` is what the record holds.
"""

import sys
from pathlib import Path

import torch

from qlora_lib.config import Settings
from qlora_lib.data import LanguageData, prepare
from qlora_lib.errors import QloraError
from qlora_lib.metrics.perplexity import perplexity, token_nll
from qlora_lib.metrics.tasks import Scores, score_task, task_result
from qlora_lib.records import RECORD_NAME, Perplexity, RunRecord, read_record
from qlora_lib.task_data import TaskTokens, prepare_task
from qlora_lib.tasks.load import is_task


def prepare_data(s: Settings, tokenizer) -> LanguageData | TaskTokens:
    """The arm's data as tokens; `data.name` says which kind they are."""
    if is_task(s.data.name):
        return prepare_task(s.data.name, s.data.window_length, tokenizer)
    return prepare(s.data.name, s.data.text_column, s.data.window_length, tokenizer)


def make_scoring(data: LanguageData | TaskTokens, s: Settings, tokenizer) -> "TextScoring | TaskScoring":
    return TextScoring(data, s) if isinstance(data, LanguageData) else TaskScoring(data, s, tokenizer)


def finite_loss(model, data: LanguageData | TaskTokens) -> bool:
    """Whether the model's loss on one validation window or example is a finite number."""
    if isinstance(data, LanguageData):
        ids = data.windows("validation")[0].astype("int64")
    else:
        ids = data.encoded["validation"][0].ids
    window = torch.as_tensor(ids, device=model.device).unsqueeze(0)
    return bool(torch.isfinite(token_nll(model, window)).all())


class TextScoring:
    """Perplexity over the first whole windows of the evaluation split.

    Only whole ones, so that each weighs the same in paired comparisons.
    """

    def __init__(self, data: LanguageData, s: Settings) -> None:
        e, self.s = s.evaluation, s
        tokens = data.tokens[e.split]
        if e.perplexity and len(tokens) < 2:
            raise QloraError(f"the {e.split} split of '{data.info.name}' holds {len(tokens)} tokens", "Give more text")
        whole = 1 + max(0, len(tokens) - e.context) // e.stride
        self.tokens = tokens[: e.context + (min(whole, e.windows or whole) - 1) * e.stride]
        self.record: Perplexity | None = None

    def take(self, earlier: RunRecord) -> bool:
        """The base's score from the arm that has measured it, if it has."""
        if earlier.perplexity is not None:
            self.record = earlier.perplexity.model_copy(update={"after": None, "window_nll_after": []})
        return self.record is not None

    def before(self, model) -> None:
        found, e = self._score(model), self.s.evaluation
        self.record = Perplexity(
            before=found["perplexity"],
            after=None,
            protocol=f"{found['protocol']}, {e.split} split",
            context=e.context,
            stride=e.stride,
            tokens_scored=found["tokens_scored"],
            window_nll_before=found["window_nll"],
        )

    def after(self, model) -> None:
        found = self._score(model)
        self.record.after, self.record.window_nll_after = found["perplexity"], found["window_nll"]

    def _score(self, model) -> dict:
        e = self.s.evaluation
        return perplexity(model, self.tokens, e.context, e.stride, e.batch_size, progress=sys.stderr.isatty(), fast=self.s.runtime.fast)

    def result(self) -> dict:
        return {"perplexity": self.record}


class TaskScoring:
    """The task's metric over the first test examples."""

    def __init__(self, data: TaskTokens, s: Settings, tokenizer) -> None:
        e, self.s, self.task, self.tokenizer = s.evaluation, s, data.task, tokenizer
        self.examples = (data.test if e.split == "test" else data.validation)[: e.windows]
        self.first: Scores | None = None
        self.last: Scores | None = None

    def take(self, earlier: RunRecord) -> bool:
        """The base's score from the arm that has measured it, if it has."""
        if (known := earlier.task) is None or known.n != len(self.examples):
            return False
        weights = next(iter(known.metrics.values())).weights or None
        answers = [sample.before for sample in known.samples] + [None] * (known.n - len(known.samples))
        each = {name: metric.before_each for name, metric in known.metrics.items()}
        self.first = Scores(each, weights, answers, known.prompts_cut, known.protocol)
        return True

    def before(self, model) -> None:
        self.first = self._score(model)

    def after(self, model) -> None:
        self.last = self._score(model)

    def _score(self, model) -> Scores:
        return score_task(
            model, self.tokenizer, self.task, self.examples, self.s.evaluation, sys.stderr.isatty(), self.s.runtime.fast
        )

    def result(self) -> dict:
        if self.first is None:
            return {}
        return {"task": task_result(self.task, self.examples, self.first, self.last, self.s.evaluation.samples)}


def scored_before(folder: Path | None, dtype: str, method: str) -> RunRecord | None:
    """The record of the arm that scored this very base, where its weights were the same."""
    if folder is None:
        return None
    record = read_record(folder / RECORD_NAME)
    same = record.provenance.dtype == dtype and (method != "full" or dtype == "fp32")  # full's weights are fp32
    return record if same else None
