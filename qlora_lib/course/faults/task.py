"""A made-up task that a small chat model learns in a minute: a person becomes a filing card.

How it works: the question is "Anna, 34, Bern", the answer "age=34; city=Bern; card=731;" and then the
end-of-sequence token. The form is unmistakable, every field closes alike, so that only the end token
says where to stop, and the card's number follows from nothing: on people it has not seen, a model
can do no better than a guess of three digits. Nothing is downloaded.
"""

import random
from dataclasses import dataclass

import torch
from transformers import DataCollatorForLanguageModeling

SYSTEM = "File the person."
NAMES = (
    "Adam Anna Ben Carl David Emma Frank Grace Henry Jack Kate "
    "Laura Mark Max Nina Oscar Paul Peter Rosa Sam Sara Tom Will Zoe"
).split()
CITIES = (
    "Athens Berlin Bern Boston Cairo Denver Dublin Lima Lisbon "
    "London Madrid Miami Milan Oslo Paris Prague Rome Seoul Tokyo Vienna"
).split()


@dataclass(frozen=True)
class Example:
    question: str
    answer: str


@dataclass(frozen=True)
class Splits:
    """What is trained on, what the run itself validates on, and what nobody looked at."""

    train: list[Example]
    validation: list[Example]
    unseen: list[Example]


def people(count: int, seed: int) -> list[Example]:
    """`count` different people, each with a card number that cannot be guessed."""
    rng = random.Random(seed)
    found: dict[str, Example] = {}
    while len(found) < count:
        age, city = rng.randint(20, 79), rng.choice(CITIES)
        question = f"{rng.choice(NAMES)}, {age}, {city}"
        found[question] = Example(question, f"age={age}; city={city}; card={rng.randint(100, 999)};")
    return list(found.values())


def in_prose(example: Example) -> Example:
    """The same person answered as a model would that has never seen a card."""
    name, age, city = example.question.split(", ")
    return Example(example.question, f"{name} is {age}, from {city}.")


def register(examples: list[Example]) -> str:
    """Cards one after another, as they stand in a file: none of them ends the text."""
    return " ".join(e.answer for e in examples)


def make_splits(rows: int, held_out: int, seed: int, leaked: bool = False) -> Splits:
    """`rows` training examples in training order, and two held-out sets of `held_out` people each.

    With `leaked`, as if each person had stood in the file several times and its *rows* had been
    split: the people of the validation set are among those trained on, again and again.
    """
    everyone = people(rows + 2 * held_out, seed)
    validation, unseen, train = everyone[:held_out], everyone[held_out : 2 * held_out], everyone[2 * held_out :]
    if leaked:
        few = validation + train[: held_out // 2]
        rng = random.Random(seed)
        train = [e for _ in range(-(-rows // len(few))) for e in rng.sample(few, len(few))][:rows]
    return Splits(train, validation, unseen)


# --- tokens --------------------------------------------------------------------------------------


def prompt_text(question: str, tokenizer, template: bool = True) -> str:
    """All that stands before the answer: in the model's chat template, or as bare text."""
    if not template:
        return f"{SYSTEM} {question} ->"
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def encode(example: Example, tokenizer, template: bool = True) -> dict:
    """{"input_ids", "prompt_length"}: prompt, answer, end-of-sequence token; nothing padded."""
    prompt = tokenizer(prompt_text(example.question, tokenizer, template), add_special_tokens=False).input_ids
    answer = tokenizer(example.answer, add_special_tokens=False).input_ids
    return {"input_ids": [*prompt, *answer, tokenizer.eos_token_id], "prompt_length": len(prompt)}


class AnswerCollator(DataCollatorForLanguageModeling):
    """transformers' stock collator, and then the prompt's labels taken out.

    The stock part copies the ids into the labels and takes out whatever equals the padding token.
    """

    def __init__(self, tokenizer, score_prompt: bool = False):
        super().__init__(tokenizer, mlm=False)
        self.score_prompt = score_prompt

    def torch_call(self, examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = super().torch_call([{"input_ids": e["input_ids"]} for e in examples])
        for row, example in zip(batch["labels"], examples):
            row[: 1 if self.score_prompt else example["prompt_length"]] = -100  # nothing predicts the first token
        return batch


class Encoded(torch.utils.data.Dataset):
    """Examples of one split, encoded, in the order given."""

    def __init__(self, examples: list[Example], tokenizer, template: bool = True):
        self.rows = [encode(e, tokenizer, template) for e in examples]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]
