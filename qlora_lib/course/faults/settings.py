"""What a healthy run looks like on a model of which size, and what each patient does differently.

How it works: a `Recipe` holds one choice for each mistake, and its defaults are the right ones. A
patient is a recipe in which exactly one choice is wrong, so that whatever differs has one cause.
The labels of the patients are shuffled once and for all, from a seed.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True)
class LabSettings:
    """One short training, and what is measured of it. Lengths are in tokens, rates per step."""

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    eval_every: int
    held_out: int  # people in the validation set, and as many that nobody looked at
    new_tokens: int  # a card's tokens and a few more
    rank: int = 8
    alpha: float = 32
    seed: int = 0
    pretraining_steps: int = 0  # of a model that starts at random and knows nothing yet

    @property
    def rows(self) -> int:
        return self.steps * self.batch_size


# A chat model of 100 million parameters or more learns the form of a card in half a dozen steps.
CHAT = LabSettings(steps=16, batch_size=4, learning_rate=1e-3, warmup_steps=2, eval_every=8, held_out=6, new_tokens=22)
# A byte-level model of two layers takes more of them, each a hundred times shorter.
TINY = LabSettings(
    steps=20,
    batch_size=4,
    learning_rate=7e-3,
    warmup_steps=2,
    eval_every=10,
    held_out=8,
    new_tokens=36,
    pretraining_steps=80,
)


def settings_for(parameters: int) -> LabSettings:
    """The settings for a model with this many parameters."""
    return TINY if parameters < 10_000_000 else CHAT


@dataclass(frozen=True)
class Recipe:
    """How a run is prepared, trained and deployed; one choice for each of the eight mistakes."""

    pad_is_eos: bool = False
    score_prompt: bool = False
    template: bool = True
    merge_into_4bit: bool = False  # else: into the dequantized weights that the adapter was trained on
    deployed_alpha: float = 1.0  # times the alpha of the training
    leaked: bool = False
    half_adapter: bool = False  # what is trained, and so its gradients and optimizer states, in fp16
    learning_rate: float = 1.0  # times the healthy one

    @property
    def training(self) -> tuple:
        """What the training depends on: recipes that agree in it share one."""
        return (self.pad_is_eos, self.score_prompt, self.template, self.leaked, self.half_adapter, self.learning_rate)


HEALTHY = "healthy"
RECIPES = {
    "pad = eos": Recipe(pad_is_eos=True),
    "loss on the prompt": Recipe(score_prompt=True),
    "no chat template": Recipe(template=False),
    "merged onto the wrong base": Recipe(merge_into_4bit=True),
    "alpha/r wrong": Recipe(deployed_alpha=1 / 4),
    "leaked split": Recipe(leaked=True),
    "fp16 overflow": Recipe(half_adapter=True),
    "learning rate ten times off": Recipe(learning_rate=1 / 10),
}
FAULTS = tuple(RECIPES)


def recipe(name: str) -> Recipe:
    return Recipe() if name == HEALTHY else RECIPES[name]


def _labelled(seed: int) -> dict[str, str]:
    return dict(zip("ABCDEFGH", random.Random(seed).sample(FAULTS, len(FAULTS))))


PATIENTS = _labelled(7)  # label -> fault
