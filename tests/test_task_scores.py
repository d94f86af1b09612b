"""What a model scores on tasks, against one example at a time by transformers, and intervals against closed forms."""

import json
import math

import numpy as np
import pytest
import tiny
import torch

from qlora_lib import models
from qlora_lib.config import Evaluation, load_profile
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.evaluation import evaluate_task
from qlora_lib.metrics.squad import squad_em_f1
from qlora_lib.metrics.tasks import Scores, estimate, score_task, task_result
from qlora_lib.records import read_record, records_of, task_records_of
from qlora_lib.study import run_profile
from qlora_lib.tasks.chat import choice_ids, encode, prompt_ids
from qlora_lib.tasks.made import make

one_thread = tiny.one_thread
SETTINGS = Evaluation(context=300, stride=300, batch_size=3, answer_tokens=6, samples=2)


@pytest.fixture(scope="module")
def model():
    return tiny.base(tiny.FORMATS["nf4dq"])


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer(tiny.folder())


@torch.no_grad()
def log_likelihood(model, prompt, choice) -> float:
    logp = model(input_ids=torch.tensor([[*prompt, *choice]])).logits[0].double().log_softmax(-1)
    return sum(logp[len(prompt) - 1 + k, token].item() for k, token in enumerate(choice))


def test_a_classification_is_the_choice_of_the_higher_log_likelihood(model, tokenizer):
    examples = make("tiny-reviews").splits["test"]
    scores = score_task(model, tokenizer, "classification", examples, SETTINGS)
    for example, right, said in zip(examples, scores.each["accuracy"], scores.answers):
        both = [log_likelihood(model, prompt_ids(example, tokenizer), c) for c in choice_ids(example, tokenizer)]
        chosen = example.choices[int(np.argmax(both))]
        assert (right, said) == (100.0 * (chosen == example.response), chosen.strip())


@pytest.mark.parametrize("fast", [True, False])
def test_questions_are_answered_greedily(model, tokenizer, fast):
    examples = make("tiny-questions").splits["test"][:4]
    scores = score_task(model, tokenizer, "qa", examples, SETTINGS, fast=fast)
    for i, example in enumerate(examples):
        ids = torch.tensor([prompt_ids(example, tokenizer)])
        made = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)[0, ids.shape[1] :]
        answer = tokenizer.decode(made, skip_special_tokens=True).strip()
        assert scores.answers[i] == answer
        assert (scores.each["exact_match"][i], scores.each["f1"][i]) == squad_em_f1(answer, example.answers)


def test_the_perplexity_of_responses_is_that_of_the_models_own_loss(model, tokenizer):
    examples = make("tiny-instructions").splits["test"]
    scores = score_task(model, tokenizer, "instructions", examples, SETTINGS)
    for example, nll, count in zip(examples, scores.each["response_perplexity"], scores.weights):
        encoded = encode(example, tokenizer)
        labels = torch.tensor([encoded.labels])
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([encoded.ids]), labels=labels).loss.item()
        assert nll == pytest.approx(loss, rel=1e-5)
        assert count == (labels[0, 1:] >= 0).sum()
    assert [a is not None for a in scores.answers] == [True, True] + [False] * (len(examples) - 2)  # as many as samples


def test_prompts_that_are_too_long_are_cut_at_their_beginning_and_counted(model, tokenizer):
    examples = make("tiny-questions").splits["test"][:3]
    lengths = [len(prompt_ids(e, tokenizer)) for e in examples]
    short = Evaluation(context=min(lengths) + 6, stride=1, answer_tokens=6)
    scores = score_task(model, tokenizer, "qa", examples, short)
    assert scores.prompts_cut == sum(length > min(lengths) for length in lengths)
    whole = score_task(model, tokenizer, "qa", examples, SETTINGS)
    same = lengths.index(min(lengths))
    assert scores.answers[same] == whole.answers[same]


def test_kept_answers_are_judged_against_those_before():
    examples = make("tiny-instructions").splits["test"][:4]
    right, wrong = [e.response for e in examples], ["no idea at all"] * 4
    nll = {"response_perplexity": [1.0] * 4}
    before, after = (Scores(nll, [1] * 4, answers) for answers in ([*wrong[:3], None], [*right[:2], wrong[2], right[3]]))
    won = task_result("instructions", examples, before, after, samples=4).metrics["win_rate"]
    assert won.after == pytest.approx(100 * (1 + 1 + 0.5) / 3) and won.before is None and won.n == 3
    assert "no judge of quality" in won.protocol
    assert "win_rate" not in task_result("instructions", examples, before, None, samples=4).metrics


def test_intervals_cover_what_they_should():
    """Of a proportion about 1.96 standard errors on either side; of a weighted perplexity, the exponential of a mean."""
    each = [100.0] * 60 + [0.0] * 40
    value, (low, high) = estimate(each, None, perplexity=False)
    error = 100 * math.sqrt(0.6 * 0.4 / 100)
    assert value == 60 and low == pytest.approx(60 - 1.96 * error, abs=1.5) and high == pytest.approx(60 + 1.96 * error, abs=1.5)
    value, (low, high) = estimate([1.0, 3.0], [3, 1], perplexity=True)
    assert value == pytest.approx(math.exp(1.5)) and low == pytest.approx(math.e) and high == pytest.approx(math.exp(3))
    assert estimate([5.0], None, False) == (5.0, None)


def test_differences_are_paired_by_example():
    rng = np.random.default_rng(0)
    levels = rng.uniform(0, 100, 200)
    before = Scores({"f1": levels.tolist()}, None, [None] * 200)
    after = Scores({"f1": (levels + rng.uniform(0, 2, 200)).tolist()}, None, [None] * 200)
    metric = task_result("qa", [], before, after, samples=0).metrics["f1"]
    assert metric.difference == pytest.approx(metric.after - metric.before)
    low, high = metric.difference_interval
    assert 0 < low < metric.difference < high < 2
    assert metric.before_interval[1] > metric.after_interval[0]  # levels alone would not tell the two apart


def test_a_task_arm_keeps_what_it_learned_and_said(tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    profile = load_profile("smoke")
    (result,) = run_profile(profile, {"train.max_steps": 3, "train.eval_every": 3}, only=["task-questions"])
    record = result.record
    assert record.perplexity is None and record.mfu is None and record.flops_per_step is None
    assert (record.data.task, record.data.stand_in_for) == ("qa", None)
    assert record.data.splits["train"].windows == record.data.splits["train"].documents  # none too long
    task = record.task
    assert set(task.metrics) == {"exact_match", "f1"} and task.n == 8 == len(task.metrics["f1"].before_each)  # evaluation.windows
    assert len(task.samples) == 4 and all(s.prompt and s.expected and s.after is not None for s in task.samples)
    assert 0 < record.train.response_tokens < record.train.tokens
    assert len(record.train.eval_loss) == 2
    assert run_profile(profile, {"train.max_steps": 3, "train.eval_every": 3}, only=["task-questions"])[0].cached
    assert set(task_records_of("smoke", "own")[0]) == {"task-questions"}
    assert set(records_of("smoke", "own")[0]) == {"task-questions"}  # a profile of tasks alone
    assert read_record(tmp_path / "smoke" / "task-questions" / "record.json") == record


def test_eval_says_protocol_interval_and_what_was_left_out(tmp_path, tiny_model):
    rows = ["sentence\tlabel", "a fine film\t1", "a dull film\t0", "\t1", "bad label\t7"] + [f"film number {i}\t{i % 2}" for i in range(40)]
    path = tmp_path / "mine.tsv"
    path.write_text("\n".join(rows) + "\n")
    found = evaluate_task("tiny-random", "sst2", str(path), context=300)
    assert found["task"] == "sst2" and 0 <= found["accuracy"] <= 100 and found["n"] >= 1
    assert sum(found["left_out"].values()) == 2
    assert json.dumps(found)
    with pytest.raises(UsageError, match="needs data for qa"):
        evaluate_task("tiny-random", "squad", str(path))


def test_no_room_for_a_prompt_is_one_line(model, tokenizer):
    for task, examples in (("qa", make("tiny-questions").splits["test"][:1]), ("instructions", make("tiny-instructions").splits["test"][:1])):
        with pytest.raises(UsageError, match="leave no room"):
            score_task(model, tokenizer, task, examples, Evaluation(context=6, stride=1, answer_tokens=6, samples=1))


def test_a_models_penalty_of_repetitions_does_not_change_greedy_answers(model, tokenizer):
    from qlora_lib.metrics.answers import greedy_answers

    prompts = [prompt_ids(e, tokenizer) for e in make("tiny-questions").splits["test"][:2]]
    plain = [greedy_answers(model, tokenizer, prompts, 8, fast=fast) for fast in (True, False)]
    model.generation_config.repetition_penalty = 5.0
    try:
        assert [greedy_answers(model, tokenizer, prompts, 8, fast=fast) for fast in (True, False)] == plain
    finally:
        model.generation_config.repetition_penalty = None


def test_a_loss_that_is_no_number_is_no_score(tokenizer):
    broken = tiny.base()
    with torch.no_grad():
        broken.model.norm.weight.fill_(float("nan"))
    with pytest.raises(QloraError, match="not a finite number"):
        score_task(broken, tokenizer, "classification", make("tiny-reviews").splits["test"][:2], SETTINGS)


@pytest.mark.parametrize("fast", [True, False])
def test_an_answer_ends_where_training_ends_it(model, tokenizer, fast):
    """A base whose own texts end with another token than its template's turns: the answer stops at either."""
    from qlora_lib.metrics.answers import greedy_answers
    from qlora_lib.tasks.chat import end_of_turn

    prompt = prompt_ids(make("tiny-questions").splits["test"][0], tokenizer)
    with torch.no_grad():
        first = int(model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax())
    kept = model.generation_config.eos_token_id
    assert end_of_turn(tokenizer) == tokenizer.eos_token_id
    try:
        model.generation_config.eos_token_id = first
        assert greedy_answers(model, tokenizer, [prompt], 4, fast=fast) == [""]
        model.generation_config.eos_token_id = None
        assert len(greedy_answers(model, tokenizer, [prompt], 4, fast=fast)) == 1
    finally:
        model.generation_config.eos_token_id = kept
