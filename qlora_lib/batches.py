"""What training reads: equally long windows of a text, or a task's examples of their own lengths.

How it works: both are a data set of tokens and labels in training order, which the seed alone decides, so that every arm
sees the same batches. Windows are all scored but for their first token. Of an example only the response is; examples of
a batch are padded on the right to the longest of them, which causal attention never sees, and stand together by length
so that little is padded.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from qlora_lib.data import LanguageData, training_order
from qlora_lib.fast.loss import IGNORED
from qlora_lib.task_data import TaskTokens

SORTED_TOGETHER = 16  # batches: within so many, examples are ordered by length


class Windows(torch.utils.data.Dataset):
    """Windows in training order; the first token is no label, so that every label is scored."""

    def __init__(self, windows: np.ndarray, order: np.ndarray) -> None:
        self.windows, self.order = windows, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.windows[self.order[index]].astype(np.int64))
        labels = ids.clone()
        labels[0] = IGNORED  # Trainer divides by the number of labels, the model scores all but the first
        return {"input_ids": ids, "labels": labels}

    def tokens(self, index: int) -> tuple[int, int]:
        """(tokens, of these learned) of one window."""
        length = self.windows.shape[1]
        return length, length - 1


class Responses(torch.utils.data.Dataset):
    """Encoded examples in training order."""

    def __init__(self, encoded: list, order: np.ndarray) -> None:
        self.encoded, self.order = encoded, order

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = self.encoded[self.order[index]]
        return {"input_ids": torch.tensor(example.ids), "labels": torch.tensor(example.labels)}

    def tokens(self, index: int) -> tuple[int, int]:
        """(tokens, of these learned) of one example."""
        example = self.encoded[self.order[index]]
        return len(example.ids), sum(label != IGNORED for label in example.labels)


@dataclass(frozen=True)
class Batches:
    """Training and validation sets, and how examples become a batch."""

    train: Windows | Responses
    validation: Windows | Responses
    collate: Callable | None  # None: all are equally long

    def tokens_by_step(self, per_step: int) -> list[tuple[int, int]]:
        """(tokens, of these learned) of each optimizer step; padding is no token."""
        counts = np.array([self.train.tokens(i) for i in range(len(self.train))]).reshape(-1, per_step, 2)
        return [tuple(step) for step in counts.sum(1).tolist()]

    def longest_step(self, per_step: int, first: int) -> int:
        """The number, from 1, of the step with the longest example, the first such from step `first` on."""
        lengths = [self.train.tokens(i)[0] for i in range(len(self.train))]
        by_step = np.array(lengths).reshape(-1, per_step).max(1)
        return first + int(by_step[first - 1 :].argmax()) if len(by_step) >= first else first

    def learned_per_example(self) -> float:
        """Learned tokens in a validation example, on average."""
        return sum(self.validation.tokens(i)[1] for i in range(len(self.validation))) / len(self.validation)


def training_examples(data: LanguageData | TaskTokens) -> int:
    """Windows or examples in the training split."""
    return len(data.windows("train") if isinstance(data, LanguageData) else data.encoded["train"])


def make_batches(data: LanguageData | TaskTokens, wanted: int, together: int, validation: int, seed: int) -> Batches:
    """`wanted` training examples in the order of `seed`, of which `together` make a batch, and the first `validation` ones."""
    if isinstance(data, LanguageData):
        train, held_out = data.windows("train"), data.windows("validation")[:validation]
        order = training_order(len(train), wanted, seed)
        return Batches(Windows(train, order), Windows(held_out, np.arange(len(held_out))), None)
    train, held_out = data.encoded["train"], data.encoded["validation"][:validation]
    order = order_by_length([len(e.ids) for e in train], wanted, together, seed)
    sets = Responses(train, order), Responses(held_out, np.arange(len(held_out)))
    return Batches(*sets, partial(pad_right, padding=data.padding))


def order_by_length(lengths: list[int], wanted: int, together: int, seed: int) -> np.ndarray:
    """[wanted] indices: each epoch a random permutation, in which neighbours of `together` are of similar length."""
    rng = np.random.default_rng(seed)
    lengths, order = np.asarray(lengths), []
    for _ in range(-(-wanted // len(lengths))):
        epoch = rng.permutation(len(lengths))
        stretch = together * SORTED_TOGETHER
        for some in (epoch[i : i + stretch] for i in range(0, len(epoch), stretch)):
            some = some[np.argsort(lengths[some], kind="stable")]
            whole = len(some) // together * together
            groups = some[:whole].reshape(-1, together)
            order += [*rng.permutation(groups).reshape(-1), *some[whole:]]
    return np.array(order[:wanted])


def pad_right(examples: list[dict], padding: int) -> dict[str, torch.Tensor]:
    """{"input_ids", "labels"} [B, longest]; padding is never learned, and needs no mask behind causal attention."""
    longest = max(len(e["input_ids"]) for e in examples)

    def padded(key: str, value: int) -> torch.Tensor:
        return torch.stack([torch.nn.functional.pad(e[key], (0, longest - len(e[key])), value=value) for e in examples])

    return {"input_ids": padded("input_ids", padding), "labels": padded("labels", IGNORED)}
