"""A task's examples as tokens: what training learns from, and what evaluation asks.

How it works: examples longer than the limit are left out of training and validation and counted, never cut: a response
that breaks off teaches to break off. Test examples all stay; a prompt that is too long for the evaluation's context is
cut at its beginning, and that is counted too.
"""

from dataclasses import dataclass

from qlora_lib.errors import QloraError
from qlora_lib.records import DataInfo, SplitStatistics
from qlora_lib.tasks.chat import Encoded, fit
from qlora_lib.tasks.examples import Example, Task, TaskData
from qlora_lib.tasks.load import is_task, load_task, task_names
from qlora_lib.texts import SPLITS, check_source


@dataclass(frozen=True)
class TaskTokens:
    """Encoded training and validation examples, plain test examples, and what is known of them."""

    task: Task
    encoded: dict[str, list[Encoded]]  # train, validation
    test: list[Example]
    validation: list[Example]  # the same as encoded, in words
    padding: int  # token id
    info: DataInfo


def prepare_task(name: str, max_length: int, tokenizer) -> TaskTokens:
    """Load and encode a task's data set; examples of more than `max_length` tokens are left out and counted."""
    data = load_task(name)
    encoded, left_out = {}, dict(data.left_out)
    for split in ("train", "validation"):
        encoded[split], reasons = fit(data.splits[split], tokenizer, max_length)
        for why, count in reasons.items():
            left_out[f"{split}: {why}"] = count
        if not encoded[split]:
            raise QloraError(
                f"the {split} split of '{name}' has no example of at most {max_length} tokens (it has {len(data.splits[split])} in all)",
                "Set data.window_length higher, or give more examples",
            )
    padding = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    info = _describe(data, encoded, left_out, max_length, len(tokenizer))
    return TaskTokens(data.task, encoded, data.splits["test"], data.splits["validation"], padding or 0, info)


def check_data(name: str, text_column: str) -> None:
    """Raise now what reading local data would raise, a text's or a task's; what is registered is left for later."""
    if name in task_names():
        return
    if is_task(name):
        load_task(name)
    else:
        check_source(name, text_column)


def _describe(data: TaskData, encoded: dict, left_out: dict[str, int], max_length: int, vocabulary_size: int) -> DataInfo:
    def statistics(split: str) -> SplitStatistics:
        examples = data.splits[split]
        kept = encoded.get(split, [])
        return SplitStatistics(
            documents=len(examples),
            characters=sum(len(m.content) for e in examples for m in e.messages),
            tokens=sum(len(e.ids) for e in kept),
            windows=len(kept),
        )

    splits = {split: statistics(split) for split in SPLITS}
    return DataInfo(
        name=data.name,
        source=data.source,
        revision=data.revision,
        license=data.license,
        attribution=data.attribution,
        stand_in_for=data.stand_in_for,
        train_tokens=splits["train"].tokens,
        eval_tokens=None,  # test prompts are cut or not by the evaluation's own limit
        vocabulary_size=vocabulary_size,
        window_length=max_length,
        splits=splits,
        task=data.task,
        left_out={why: count for why, count in left_out.items() if count},
    )
