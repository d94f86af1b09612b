"""Three small tasks of a toy grammar, made on the spot: what tests and the `smoke` profile learn from."""

import random
from collections.abc import Callable

from qlora_lib.tasks.examples import Example, Message, Task, TaskData

GOOD = ("bright", "warm", "clever", "lively")
BAD = ("dull", "cold", "clumsy", "empty")
THINGS = ("film", "plot", "cast", "scene", "ending", "score")
COLOURS = ("red", "green", "blue", "grey")
QUESTION = "{sentence}\nQuestion: Is this sentence positive or negative?\nAnswer:"


def _review(rng: random.Random, number: str) -> Example:
    good = rng.random() < 0.5
    first, second = rng.sample(GOOD if good else BAD, 2)
    sentence = f"a {first} {rng.choice(THINGS)} and a {second} {rng.choice(THINGS)} ."
    messages = Message("user", QUESTION.format(sentence=sentence)), Message("assistant", " positive" if good else " negative")
    return Example(number, messages, choices=(" negative", " positive"), plain=True)


def _question(rng: random.Random, number: str) -> Example:
    things = rng.sample(THINGS, 2)
    colours = rng.sample(COLOURS, 2)
    text = " ".join(f"The {thing} is {colour}." for thing, colour in zip(things, colours))
    asked = rng.randrange(2)
    prompt = f"{text}\n\nWhat colour is the {things[asked]}?"
    return Example(number, (Message("user", prompt), Message("assistant", colours[asked])), answers=(colours[asked],))


def _instruction(rng: random.Random, number: str) -> Example:
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS + GOOD + BAD)
    kind = rng.choice(("open_qa", "summarization"))
    prompt = f"Say that the {thing} is {colour}." if kind == "open_qa" else f"Sum up.\n\nThe {thing}, as all can see, is {colour}."
    return Example(number, (Message("user", prompt), Message("assistant", f"The {thing} is {colour}.")), category=kind)


MADE: dict[str, tuple[Task, Callable[[random.Random, str], Example]]] = {
    "tiny-reviews": ("classification", _review),
    "tiny-questions": ("qa", _question),
    "tiny-instructions": ("instructions", _instruction),
}


def make(name: str) -> TaskData:
    """One of the three, the same on every machine."""
    task, one = MADE[name]
    rng = random.Random(name)
    made = [one(rng, f"{name}-{i}") for i in range(240)]
    different = list({e.messages: e for e in made}.values())
    third = len(different) // 10
    splits = {"train": different[2 * third :], "validation": different[:third], "test": different[third : 2 * third]}
    return TaskData(name, task, "made on the spot from a toy grammar", splits, license="CC0-1.0")
