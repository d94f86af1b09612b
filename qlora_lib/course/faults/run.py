"""One patient after the other: train by its recipe, deploy, write down the symptoms.

How it works: recipes that differ only in how the adapter is deployed share one training. All runs start
from the same base, adapter and order of examples, so that a difference has one cause.
"""

import tempfile
from pathlib import Path

from qlora_lib import hardware, models
from qlora_lib.course.faults import base as bases
from qlora_lib.course.faults import task
from qlora_lib.course.faults.deployment import deployed
from qlora_lib.course.faults.settings import FAULTS, HEALTHY, PATIENTS, LabSettings, Recipe, recipe
from qlora_lib.course.faults.symptoms import Curves, Score, Symptoms, generate, score
from qlora_lib.course.faults.training import train


class Lab:
    """The healthy run and the patients of one model; each is run when it is first asked for."""

    def __init__(self, model: str, settings: LabSettings | None = None):
        self._folder = tempfile.TemporaryDirectory(prefix="qlora-lab-")  # goes with the lab
        self.scratch = Path(self._folder.name)
        hardware.quiet_logs()
        self.base = bases.load(model, hardware.device(), self.scratch, settings)
        self.settings = self.base.settings
        self._trained: dict[tuple, tuple[Path, Curves, Score, Score]] = {}
        self._symptoms: dict[str, Symptoms] = {}
        self.before = score(self.base.plain, self.base.tokenizer, self._splits(Recipe()).unseen)

    @property
    def healthy(self) -> Symptoms:
        return self.run(HEALTHY)

    def patient(self, label: str) -> Symptoms:
        """The symptoms of patient A, B, ... H."""
        return self.run(PATIENTS[label])

    def all(self) -> dict[str, Symptoms]:
        """Symptoms by fault, the healthy run first."""
        return {name: self.run(name) for name in (HEALTHY, *FAULTS)}

    def run(self, name: str) -> Symptoms:
        """The symptoms of the healthy run or of a fault."""
        if name not in self._symptoms:
            self._symptoms[name] = self._run(name, recipe(name))
        return self._symptoms[name]

    def _run(self, name: str, how: Recipe) -> Symptoms:
        if how.training not in self._trained:
            self._trained[how.training] = self._train(how)
        adapter, curves, validation, unseen = self._trained[how.training]
        people = self._splits(how).unseen
        with deployed(self.base, adapter, how, self.scratch) as (model, update):
            after = score(model, self.base.tokenizer, people)
            texts, ended = generate(model, self.base.tokenizer, people, self.settings.new_tokens)
        questions = [e.question for e in people]
        return Symptoms(name, curves, self.before, validation, unseen, after, update, questions, texts, ended)

    def _train(self, how: Recipe) -> tuple[Path, Curves, Score, Score]:
        splits, folder = self._splits(how), self.scratch / f"adapter-{len(self._trained)}"
        model, curves = train(self.base, how, splits, self.scratch / "trainer")
        models.save_adapter(model, folder)
        validation, unseen = (score(model, self.base.tokenizer, p) for p in (splits.validation, splits.unseen))
        model.unload()  # the next run attaches its own
        return folder, curves, validation, unseen

    def _splits(self, how: Recipe) -> task.Splits:
        return task.make_splits(self.settings.rows, self.settings.held_out, self.settings.seed, how.leaked)
