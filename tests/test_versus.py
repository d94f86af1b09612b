"""`qlora eval --task winrate`: whose answers, kept where, against whose."""

import json
from contextlib import contextmanager

import pytest
import tiny
import torch

from qlora_lib import models
from qlora_lib.config import Lora
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.judges import JudgeSettings
from qlora_lib.metrics import answers
from qlora_lib.metrics.win_rate import win_rate
from qlora_lib.tasks.made import make
from qlora_lib.versus import evaluate_win_rate

one_thread = tiny.one_thread
ARGUMENTS = {"model": "tiny-random", "data": "tiny-instructions", "quantization": "nf4", "examples": 4, "answer_tokens": 6, "dtype": "fp32"}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """An adapter that changes what the model says."""
    model = models.attach_lora(tiny.base(tiny.FORMATS["nf4dq"]), Lora(rank=4, alpha=64), seed=0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_(generator=torch.Generator().manual_seed(len(name)))
    folder = tmp_path_factory.mktemp("adapter")
    models.save_adapter(model, folder)
    return folder


def counting(made: list, stop_after: int | None = None):
    """`answering` that notes each answer in `made`, and is interrupted after so many."""

    @contextmanager
    def answering(*args, **kwargs):
        with answers.answering(*args, **kwargs) as answer:

            def noted(prompt):
                if len(made) == stop_after:
                    raise KeyboardInterrupt
                made.append(1)
                return answer(prompt)

            yield noted

    return answering


def test_an_adapter_against_its_own_base(adapter, tmp_path, monkeypatch):
    found = evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    ours, theirs = (json.loads((tmp_path / name).read_text()) for name in ("outputs.json", "baseline.json"))
    rows = json.loads((tmp_path / "annotations.json").read_text())
    assert [r["output_2"] for r in rows] == [r["output"] for r in ours] and [r["output_1"] for r in rows] == [r["output"] for r in theirs]
    assert [r["instruction"] for r in ours] == [e.prompt[-1].content for e in make("tiny-instructions").splits["test"][:4]]
    assert [r["output"] for r in ours] != [r["output"] for r in theirs]
    assert found["win_rate"] == win_rate([r["preference"] for r in rows])["win_rate"]
    assert (found["baseline"], found["n"], found["adapter"]) == ("base", 4, str(adapter))
    assert "no judge of quality" in found["protocol"] and json.dumps(found)

    plain = models.load_base(tiny.folder(), tiny.FORMATS["nf4dq"], torch.float32, "cpu")  # never had an adapter on it
    tokenizer = models.load_tokenizer(tiny.folder())
    from qlora_lib.tasks.chat import prompt_ids

    prompts = [prompt_ids(e, tokenizer) for e in make("tiny-instructions").splits["test"][:4]]
    assert [r["output"] for r in theirs] == answers.greedy_answers(plain, tokenizer, prompts, 6)

    monkeypatch.setattr("qlora_lib.versus.answering", counting(made := []))
    assert evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)["win_rate"] == found["win_rate"]
    assert not made  # nothing was answered again


def test_answers_that_were_made_before_an_interruption_are_kept(adapter, tmp_path, monkeypatch):
    monkeypatch.setattr("qlora_lib.versus.answering", counting([], stop_after=3))
    with pytest.raises(KeyboardInterrupt):
        evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    assert len(json.loads((tmp_path / "outputs.json").read_text())) == 3
    monkeypatch.setattr("qlora_lib.versus.answering", counting(count := []))
    evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    assert len(count) == 1 + 4  # the last of ours, and the baseline's


def test_answers_of_another_adapter_are_not_taken(adapter, tmp_path):
    evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    rows = json.loads((tmp_path / "outputs.json").read_text())
    for row in rows:
        row["generator"], row["output"] = "another", "said by another"
    (tmp_path / "outputs.json").write_text(json.dumps(rows))
    evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    said = [(row["generator"] == "another", row["output"] == "said by another") for row in json.loads((tmp_path / "outputs.json").read_text())]
    assert said == [(True, True)] * 4 + [(False, False)] * 4  # and none of theirs is lost
    (tmp_path / "outputs.json").write_text("{broken")
    with pytest.raises(UsageError, match="no answers"):
        evaluate_win_rate(**ARGUMENTS, adapter=adapter, out=tmp_path)
    assert (tmp_path / "outputs.json").read_text() == "{broken"


def test_a_file_of_answers_is_a_baseline(tmp_path):
    asked = make("tiny-instructions").splits["test"][:4]
    theirs = tmp_path / "theirs.json"
    theirs.write_text(json.dumps([{"instruction": e.prompt[-1].content, "output": e.response} for e in asked[:3]]))
    found = evaluate_win_rate(**ARGUMENTS, baseline=str(theirs))
    assert found["win_rate"] == 0 and found["n"] == 3  # the reference's own words cannot be beaten by noise
    assert found["missing"] == {"no answer of the baseline": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "cannot also be the baseline"),
        ({"baseline": "base"}, "there is no adapter"),
        ({"baseline": "no-such.json"}, "no baseline"),
        ({"data": "tiny-reviews"}, "needs instructions"),
        ({"context": 6, "judge": JudgeSettings(kind="local", model="tiny-random")}, "leave no room"),
    ],
)
def test_what_cannot_be_compared_is_one_line(arguments, says):
    with pytest.raises(UsageError, match=says):
        evaluate_win_rate(**ARGUMENTS | arguments)


@pytest.mark.parametrize("text", ["nonsense", '{"a": 1}', '[{"instruction": "x"}]', '[{"instruction": "unknown", "output": "x"}]'])
def test_files_that_are_no_answers_are_one_line(tmp_path, text):
    (tmp_path / "theirs.json").write_text(text)
    with pytest.raises(QloraError, match="theirs.json"):
        evaluate_win_rate(**ARGUMENTS, baseline=str(tmp_path / "theirs.json"))
