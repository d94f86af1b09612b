"""One schema for every task: messages, of which the assistant's are what training teaches."""

from dataclasses import dataclass, field
from typing import Literal

Task = Literal["instructions", "classification", "qa", "chat"]
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """One exercise and its right answer.

    The last message is the assistant's: the response. In a chat of several turns each of the assistant's messages is
    learned and counts in the perplexity of responses; the last one is what the model is asked for.
    """

    id: str
    messages: tuple[Message, ...]
    answers: tuple[str, ...] = ()  # of a question: every right answer; else nothing, and the response is the one
    choices: tuple[str, ...] = ()  # of a classification: what the response is chosen among, as written after the prompt
    plain: bool = False  # the prompt stands as it is, without the model's chat template: a protocol that says so
    category: str | None = None

    @property
    def prompt(self) -> tuple[Message, ...]:
        return self.messages[:-1]

    @property
    def response(self) -> str:
        return self.messages[-1].content


@dataclass(frozen=True)
class TaskData:
    """Examples by split (train, validation, test), and where they come from."""

    name: str
    task: Task
    source: str
    splits: dict[str, list[Example]]
    revision: str | None = None
    license: str | None = None
    attribution: str | None = None
    stand_in_for: str | None = None
    left_out: dict[str, int] = field(default_factory=dict)  # why -> rows that hold no example, e.g. "empty answer"
