"""The fault lab: every signature holds for its own mistake and for no other run."""

import math
from dataclasses import fields, replace

import pytest
import tiny
import torch
from transformers import DataCollatorForLanguageModeling

from qlora_lib.course.faults import drawing, settings, signatures, task
from qlora_lib.course.faults.advice import ADVICE, checklist
from qlora_lib.course.faults.run import Lab
from qlora_lib.course.faults.settings import FAULTS, HEALTHY, PATIENTS, RECIPES, Recipe
from qlora_lib.style import render

one_thread = tiny.one_thread
EVERY_RUN = (HEALTHY, *FAULTS)


@pytest.fixture(scope="module")
def lab():
    return Lab("tiny-random")


@pytest.fixture(scope="module")
def symptoms(lab):
    return lab.all()


# --- signatures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", FAULTS)
def test_a_signature_holds_for_its_mistake(symptoms, fault):
    found = signatures.finding(fault, symptoms[fault], symptoms[HEALTHY])
    assert found.holds, found.sentence
    assert found.fault == fault and any(c.isdigit() for c in found.sentence)


@pytest.mark.parametrize("run", EVERY_RUN)
def test_no_other_signature_holds(symptoms, run):
    expected = [] if run == HEALTHY else [run]
    assert signatures.confusion(symptoms)[run] == expected


def test_a_rate_ten_times_too_high_has_the_same_signature(symptoms):
    healthy = symptoms[HEALTHY]
    high = replace(healthy, update=replace(healthy.update, norm=10 * healthy.update.norm))
    assert signatures.confusion({HEALTHY: healthy, "high": high})["high"] == ["learning rate ten times off"]


def test_a_run_whose_log_tells_of_nan_is_not_silent(symptoms):
    healthy, broken = symptoms[HEALTHY], symptoms["fp16 overflow"]
    told = replace(broken, curves=replace(broken.curves, logged_loss=broken.curves.true_loss))
    assert not signatures.finding("fp16 overflow", told, healthy).holds


# --- what the signatures rest on -----------------------------------------------------------------


def test_the_healthy_run_learns_the_card_and_stops(symptoms, lab):
    healthy = symptoms[HEALTHY]
    assert healthy.deployed.loss < 0.3 * healthy.before.loss
    assert healthy.ended == 1
    assert all(text.startswith("age=") and "card=" in text for text in healthy.generations)
    assert healthy.deployed.loss == pytest.approx(healthy.unseen.loss, abs=1e-5)
    assert (healthy.update.size, healthy.update.cosine) == (pytest.approx(1, abs=1e-4), pytest.approx(1, abs=1e-6))
    assert healthy.unseen.loss > math.log(900) / healthy.curves.answer_tokens  # nobody can guess the number
    assert healthy.curves.logged_loss == pytest.approx(healthy.curves.true_loss, abs=1e-4)  # the log rounds
    assert healthy.curves.eval_loss[-1] == pytest.approx(healthy.validation.loss, rel=1e-4)


def test_pad_is_eos_never_stops(symptoms):
    assert symptoms["pad = eos"].ended <= 0.25


def test_the_nan_is_hidden_by_trainers_own_default(symptoms):
    c = symptoms["fp16 overflow"].curves
    assert math.isfinite(c.true_loss[0]) and not any(map(math.isfinite, c.true_loss[1:]))
    assert c.logged_loss[1:] == [0.0] * (len(c.true_loss) - 1)
    assert not math.isfinite(c.eval_loss[-1])


def test_merging_into_4_bits_rounds_and_another_alpha_stretches(symptoms):
    healthy, rounded, stretched = (symptoms[n].update for n in (HEALTHY, "merged onto the wrong base", "alpha/r wrong"))
    assert rounded.norm == stretched.norm == healthy.norm
    assert rounded.cosine < 0.99 < 0.9999 < stretched.cosine
    assert stretched.size == pytest.approx(RECIPES["alpha/r wrong"].deployed_alpha, rel=1e-4)


def test_patients_that_were_spoiled_after_training_share_the_healthy_one(symptoms):
    for name in ("merged onto the wrong base", "alpha/r wrong"):
        assert symptoms[name].curves is symptoms[HEALTHY].curves


def test_the_lab_leaves_its_base_as_it_was(lab, symptoms):
    """Also after the run whose weights are no numbers."""
    from qlora_lib.course.faults.symptoms import score

    people = task.make_splits(lab.settings.rows, lab.settings.held_out, lab.settings.seed).unseen
    assert score(lab.base.plain, lab.base.tokenizer, people) == lab.before
    again = Lab("tiny-random", replace(lab.settings, steps=2))
    assert again.before == lab.before  # and one seed makes one base


def test_each_patient_differs_from_the_healthy_recipe_in_one_choice():
    healthy = Recipe()
    for how in RECIPES.values():
        assert sum(getattr(how, f.name) != getattr(healthy, f.name) for f in fields(Recipe)) == 1
    assert sorted(PATIENTS.values()) == sorted(FAULTS) and list(PATIENTS) == list("ABCDEFGH")
    assert list(PATIENTS.values()) != list(FAULTS)


# --- the task ------------------------------------------------------------------------------------


def test_splits_share_no_people_unless_they_leak():
    parts = task.make_splits(40, 8, 0)
    train, validation, unseen = ({e.question for e in p} for p in (parts.train, parts.validation, parts.unseen))
    assert (len(train), len(validation), len(unseen)) == (40, 8, 8)
    assert not train & validation and not train & unseen and not validation & unseen
    leaked = task.make_splits(40, 8, 0, leaked=True)
    train = [e.question for e in leaked.train]
    assert validation == {e.question for e in leaked.validation} <= set(train) and len(train) == 40
    assert leaked.unseen == parts.unseen and not unseen & set(train)


def test_an_answer_has_the_cards_form_and_its_question_does_not_tell_the_number():
    for e in task.people(50, 3):
        name, age, city = e.question.split(", ")
        form, number = e.answer.rsplit("=", 1)
        assert form == f"age={age}; city={city}; card" and number[-1] == ";" and 100 <= int(number[:-1]) <= 999
    assert task.people(5, 3) != task.people(5, 4)


def test_the_prompt_is_what_the_template_makes(tiny_tokenizer):
    example = task.people(1, 0)[0]
    row = task.encode(example, tiny_tokenizer)
    messages = [{"role": "system", "content": task.SYSTEM}, {"role": "user", "content": example.question}]
    asked = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tiny_tokenizer.decode(row["input_ids"]) == asked + example.answer + tiny_tokenizer.eos_token
    assert tiny_tokenizer.decode(row["input_ids"][: row["prompt_length"]]) == asked
    bare = tiny_tokenizer.decode(task.encode(example, tiny_tokenizer, template=False)["input_ids"])
    assert "user" not in bare and bare.endswith(example.answer + tiny_tokenizer.eos_token)


def test_what_each_collator_scores(tiny_tokenizer):
    rows = [task.encode(e, tiny_tokenizer) for e in task.people(3, 0)]
    texts = lambda batch: [tiny_tokenizer.decode(labels[labels != -100]) for labels in batch["labels"]]  # noqa: E731
    answers = [e.answer for e in task.people(3, 0)]
    eos = tiny_tokenizer.eos_token
    assert texts(task.AnswerCollator(tiny_tokenizer)(rows)) == [a + eos for a in answers]
    scored = task.AnswerCollator(tiny_tokenizer, score_prompt=True)(rows)
    stock = DataCollatorForLanguageModeling(tiny_tokenizer, mlm=False)([{"input_ids": r["input_ids"]} for r in rows])
    assert torch.equal(scored["labels"][:, 1:], stock["labels"][:, 1:]) and (scored["labels"][:, 0] == -100).all()
    tiny_tokenizer = type(tiny_tokenizer).from_pretrained(tiny_tokenizer.name_or_path)
    tiny_tokenizer.pad_token = eos
    assert texts(task.AnswerCollator(tiny_tokenizer)(rows)) == answers  # the end is gone, nothing else


def test_settings_go_by_the_models_size():
    assert settings.settings_for(100_000) is settings.TINY and settings.settings_for(135_000_000) is settings.CHAT


# --- what a reader sees --------------------------------------------------------------------------


def test_every_patient_is_drawn(symptoms):
    healthy = symptoms[HEALTHY]
    for run in symptoms.values():
        picture = drawing.curves(run, healthy, "patient X")
        assert len(render(picture.figure, "png")) > 5000 and "patient X" in picture.alt
        table = drawing.sheet(run, healthy)
        assert table.text.count("\n") == len(drawing.SHEET) and "nan" not in table.text
        assert len(drawing.answers(run, healthy).text.splitlines()) == 4


def test_the_curves_do_not_name_the_mistake(symptoms):
    for fault in FAULTS:
        shown = [of(symptoms[fault], symptoms[HEALTHY]).text for of in (drawing.sheet, drawing.answers)]
        assert not any(name in text for name in FAULTS for text in shown)


@pytest.mark.parametrize("fault", FAULTS)
def test_evidence_says_yes_to_the_mistake_and_no_to_another(symptoms, fault):
    other, healthy = FAULTS[FAULTS.index(fault) - 1], symptoms[HEALTHY]
    for suspected, says in ((fault, "yes"), (other, "no")):
        figure, words = drawing.evidence(symptoms[fault], healthy, suspected, fault)
        titles = "\n".join(axes.get_title(loc="left") for axes in figure.axes)
        assert f"{suspected}: {says}" in titles and words.startswith(f"{suspected}, {says}")
        assert ("what decides" in titles) == (suspected != fault)
        assert render(figure, "png")


def test_the_tables_have_a_row_for_every_mistake(symptoms):
    assert drawing.table(symptoms).text.count("nowhere") == len(FAULTS)
    text = checklist().text
    assert list(ADVICE) == list(FAULTS) and all(fault in text for fault in FAULTS)
