"""The chapters on tasks and instructions: what moved is decided by intervals, and text from data stays text."""

import json
import re

import pytest
from example_records import example_records
from example_sweeps import example_task_sweeps, example_tasks, stubs
from test_report import TEMPLATE, digits_left, recompute, text_of

from qlora_lib.report import build_report
from qlora_lib.report.build import compile_pdf, lay_out, report_data
from qlora_lib.report.derive import FUNCTIONS
from qlora_lib.report.formats import NOT_MEASURED, show
from qlora_lib.studies import Studies


@pytest.fixture(scope="module")
def records():
    return example_records("demo")


@pytest.fixture(scope="module")
def studies():
    return Studies({}, example_tasks(), example_task_sweeps())


@pytest.fixture(scope="module")
def built(records, studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    drawn = stubs(folder, ["task-metrics", "task-rank", "throughput"])
    pdf = build_report("demo", records, drawn, folder / "r.pdf", data_json=folder / "r.json", studies=studies)
    return text_of(pdf), json.loads((folder / "r.json").read_text()), drawn


def read(data, pieces) -> str:
    return "".join(data["values"][p["value"]]["text"] if "value" in p else p.get("text", "") for p in pieces)


def said(records, slot, studies) -> str:
    data = report_data("demo", records, [], TEMPLATE, studies=studies)
    return " ".join(read(data, p["pieces"]) for p in data["say"][slot])


def test_every_value_is_computed_again_from_the_records(built, studies, records):
    values = built[1]["values"]
    stored = {
        "task": {a: json.loads(r.to_json()) for a, r in studies.tasks.items()},
        "swept": {a: json.loads(r.to_json()) for a, r in studies.swept_tasks.items()},
        "arm": {a: json.loads(r.to_json()) for a, r in records.items()},
    }

    def field(number, path):
        for part in path.split("."):
            number = number[int(part)] if isinstance(number, list) else number and number.get(part)
        return number

    def again(key):
        source = values[key]["source"]
        if "function" in source:
            inputs = [again(k) for k in source["inputs"]]
            return None if None in inputs else FUNCTIONS[source["function"]](*inputs)
        study = next((name for name in stored if name in source), None)
        return field(stored[study][source[study]], source["path"]) if study else recompute(key, values, {})

    mine = [k for k in values if re.match(r"task\.|swept\.|rank-point", k)]
    assert len(mine) > 100
    for key in mine:
        number = again(key)
        assert (NOT_MEASURED if number is None else show(number, values[key]["source"]["format"])) == values[key]["text"], key


def test_the_metrics_and_their_intervals_are_on_the_page(built):
    text = built[0]
    for words in ("accuracy rises from 58.0 to 84.5", "exact match rises from 12.0 to 41.0", "response perplexity falls from 18.90 to 14.20",
                  "[+20.5, +32.5]", "[\u22125.50, \u22123.90]"):  # fmt: skip
        assert words in text, words
    for title in ("Each task before and after QLoRA", "What training on each task took", "Rank against the tasks’ metrics",
                  "The instruction task before and after", "Test examples of the tasks", "Instructions of the test split"):  # fmt: skip
        assert re.search(rf"Table \d+\. {title}", text), title


def test_stand_ins_are_named_wherever_a_number_shows(built):
    data = built[1]
    captions = {n: t["caption"] for n, t in data["tables"].items() if n.startswith("task")} | {
        n: c for n, c in data["captions"].items() if n.startswith("task")
    }
    assert len(captions) == 6
    for name, pieces in captions.items():
        text = read(data, pieces)
        shown = [d for d in ("film-reviews", "wikipedia-questions", "wikipedia-instructions") if d in text]
        assert shown and all(f"{d} (a stand-in for " in text for d in shown) and "smollm2-135m" in text, name
    for sentence in ("On film-reviews, a stand-in for SST-2,", "wikipedia-questions, a stand-in for SQuAD v1.1,"):
        assert sentence in built[0]


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ({"accuracy": (80.0, 60.0)}, "accuracy falls from 80.0 to 60.0, a difference of \u221220.0, 95% interval [\u221226.0,\u00a0\u221214.0]. Training made it worse."),
        ({"accuracy": (80.0, 83.0)}, "no change of accuracy is shown: 80.0 to 83.0"),
        ({"accuracy": (None, 83.0)}, "the change of accuracy was not measured"),
        ({"response_perplexity": (10.0, 14.0)}, "response perplexity rises from 10.00 to 14.00"),
        ({"response_perplexity": (10.0, 10.5)}, "no change of response perplexity is shown"),
    ],
)  # fmt: skip
def test_what_moved_is_decided_by_the_interval_of_the_difference(records, outcome, expected):
    text = said(records, "task-moved", Studies({}, example_tasks(outcome)))
    assert expected in text
    if "response_perplexity" in outcome:
        assert expected in said(records, "instructions-moved", Studies({}, example_tasks(outcome)))


def test_rank_counts_only_beyond_the_interval_of_the_best(records):
    flat = Studies({}, {}, example_task_sweeps())
    assert "accuracy is highest at rank 64 (84.5), and no rank is shown to be worse" in said(records, "task-rank", flat)
    steep = Studies({}, {}, example_task_sweeps(lambda rank, seed: 60 + (25 if rank >= 16 else 0) + seed))
    assert "lower beyond the interval of the best: rank 4 (60.5), 8 (60.5)." in said(records, "task-rank", steep)


def test_text_from_data_is_never_markup_and_a_long_one_is_cut(records, tmp_path):
    text = "#panic(\"x\") *bold* $x$ _i_ `r` [b] @ref <l> \\ // c </svg> & ~ -- '' {qlora.seed}\n= Heading\n- item\n/ T: u 42"
    tasks = example_tasks()
    for r in tasks.values():
        for sample in r.task.samples:
            sample.prompt, sample.expected, sample.before, sample.after = text, text, None, "word " * 400
        r.task.protocol = r.data.attribution = r.data.name = text
        r.data.left_out = {text: 1}
    pdf = build_report("demo", records, [], tmp_path / "h.pdf", data_json=tmp_path / "h.json", studies=Studies({}, tasks))
    flat = re.sub(r"\s|\u00ad|-", "", text_of(pdf))
    assert flat.count(re.sub(r"\s|-", "", text)) >= 6
    assert "[…]" in text_of(pdf)


def test_no_figure_is_typed(records, studies, built, tmp_path):
    data = report_data("demo", records, built[2], TEMPLATE, studies=studies)
    lay_out(tmp_path, TEMPLATE, json.dumps(data), built[2])
    audited = text_of(compile_pdf(tmp_path, timestamp=0, audit=True))
    assert "plans SST-2 by accuracy" in audited and digits_left(audited) == []


def test_times_come_from_the_profile_and_never_from_sweeps(built):
    data = built[1]
    swept = [v["source"]["path"] for v in data["values"].values() if "swept" in v["source"]]
    assert swept and not [p for p in swept if "second" in p or "peak_memory" in p]
    assert "task.task-reviews.train.tokens_per_second@rate" in data["values"]


@pytest.mark.parametrize("keep", [(), ("task-reviews",), ("task-instructions",), ("task-questions",)])
def test_any_subset_builds_and_says_what_is_missing(records, keep, tmp_path):
    some = Studies({}, {a: r for a, r in example_tasks().items() if a in keep})
    text = text_of(build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json", studies=some))
    assert ("Tasks were not measured" in text) == (not keep)
    assert ("Instruction tuning was not measured" in text) == ("task-instructions" not in keep)
    assert "How rank and the tasks’ metrics go together was not measured" in text


def test_a_task_that_trained_and_was_not_scored(records, tmp_path):
    tasks = example_tasks()
    for r in tasks.values():
        r.task = None
    text = text_of(build_report("demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "r.json", studies=Studies({}, tasks)))
    assert "No task’s metric was measured before and after" in text and "What training on each task took" in text


def test_gpu_memory_is_called_so(records):
    tasks = example_tasks()
    data = report_data("demo", records, [], TEMPLATE, studies=Studies({}, tasks))
    assert "no GPU memory" in read(data, data["tables"]["task-costs"]["note"])
    for r in tasks.values():
        r.provenance.device = "Tesla T4"
    data = report_data("demo", records, [], TEMPLATE, studies=Studies({}, tasks))
    titles = [read(data, c["title"]) for c in data["tables"]["task-costs"]["columns"]]
    assert "GPU memory’s peak (MiB)" in titles
