"""Stand-ins: made by rule, the same each time, apart by article, and true to what they claim."""

import re
from collections import Counter

import pytest

from qlora_lib.errors import QloraError
from qlora_lib.metrics.squad import normalize_answer
from qlora_lib.tasks.articles import _article, is_heading, is_whole, mended, read_articles, sentences
from qlora_lib.tasks.question_forms import FORMS
from qlora_lib.tasks.question_grammar import About, Asked
from qlora_lib.tasks.questions import MOST_CHARACTERS, MOST_QUESTIONS, MOST_WORDS, make_questions
from qlora_lib.tasks.reviews import make_reviews
from qlora_lib.tasks.splits import SPLITS, by_hash, normalized, share
from qlora_lib.tasks.wiki_instructions import make_instructions

BODY = """Ada Wolf (3 May 1820 – 7 June 1891) was a Danish chemist and writer who worked on salts.
Wolf was born in Odense, Denmark. In 1841, she moved to Paris and studied the flame of lithium. She wrote 12 books, and \
she won the Royal Prize in 1866. The laboratory was founded by Carl Berg in 1870. It held 1,200 bottles of pure glass.
Career.
In 1872, she joined the Danish Chemical Society (DCS) as its first secretary. She married Hans Lund. The society has 31 \
members. It is based in Copenhagen, and its meetings are open to all who care for salts.
Death.
She died in Aarhus. Her letters, among them "On Lithium" and "A Late Reply", were published by Nordic Press in 1899."""


def article(number: int = 1, title: str = "Ada Wolf", body: str = BODY):
    return _article(str(number), f"{title}\n\n{body}")


def asked(sentence: str, name="Ada Wolf", person=True, first=True) -> list[Asked]:
    return [a for form in FORMS for a in form(sentence, About(name, person, first)) if a.form != "fill the blank"]


# --- splits ----------------------------------------------------------------------------------------


def test_the_split_is_by_the_text_alone():
    assert normalized("The  Rock's — GREAT!") == normalized("the rock s great") == "the rock s great"
    assert share("a") == share("a") != share("b")
    numbers = [str(i) for i in range(4000)]
    splits = by_hash(numbers, lambda s: s, validation=0.1, test=0.1)
    assert sum(map(len, splits.values())) == 4000 and [len(splits[s]) / 4000 for s in SPLITS] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)
    assert by_hash(numbers[::-1], lambda s: s, validation=0.1, test=0.1) == {s: v[::-1] for s, v in splits.items()}


# --- film reviews ----------------------------------------------------------------------------------


def reviews(tmp_path, *rows):
    path = tmp_path / "reviews.txt"
    path.write_text("".join(f"{n}\t{rating}\t{text}\r\n" for n, (rating, text) in enumerate(rows, 1)), encoding="utf-8")
    splits, left_out = make_reviews(path)
    return [e for s in SPLITS for e in splits[s]], left_out


def test_labels_are_signs_and_the_unsure_and_the_double_are_left_out(tmp_path):
    found, left_out = reviews(
        tmp_path, (1.0, "Just  good."), (-1.0, "Just bad."), (0.99, "Meh."), (-0.5, "Hm."), (2, "just GOOD"), (3, "Both ways"), (-3, "both ways!")
    )
    assert {e.messages[0].content.split("\n")[0]: e.response for e in found} == {"Just good.": " positive", "Just bad.": " negative"}
    assert left_out == {"mean rating between -1 and 1": 2, "same sentence again": 1, "same sentence with the other sign": 2}


def test_the_prompt_is_the_protocols(tmp_path):
    (example,), _ = reviews(tmp_path, (2.5, "A gripping film"))
    assert example.messages[0].content == "A gripping film\nQuestion: Is this sentence positive or negative?\nAnswer:"
    assert example.choices == (" negative", " positive") and example.plain and example.response == " positive"


def test_no_reviews_at_all(tmp_path):
    with pytest.raises(QloraError, match="no rated sentences"):
        reviews(tmp_path, (0, "Meh."))


# --- articles --------------------------------------------------------------------------------------


def test_sentences_are_not_cut_at_abbreviations():
    assert sentences('Dr. J. R. Wolf (b. 1820) lived in the U.S. Senate. He said "Yes." Then he left! 12 stayed.') == [
        "Dr. J. R. Wolf (b. 1820) lived in the U.S. Senate.", 'He said "Yes."', "Then he left!", "12 stayed.",
    ]  # fmt: skip


@pytest.mark.parametrize("sentence", ["It has of water , and so on.", "He said (in 1820.", 'The "end is here.', "it begins small here.", "It has no end", "Only three words."])
def test_broken_sentences(sentence):
    assert not is_whole(sentence)


def test_holes_and_headings():
    assert mended("Zakhm () is a film (; 1 June  1990) made (or ) here") == "Zakhm is a film (1 June 1990) made here"
    assert is_heading("Early life.") and not is_heading("He was born here.") and not is_heading("Nobody moved or replied.")
    read = article()
    assert [p.section for p in read.paragraphs] == ["", "", "Career", "Death"]
    assert read.is_person and not article(body="Ada Wolf is a ship of the Danish fleet.").is_person
    assert article(title="Frame (nautical)").name == "Frame"


def test_articles_keep_the_split_of_the_texts_and_those_alike_go(tmp_path):
    from qlora_lib.texts import parse_articles, split_by_article

    def doc(number, title, body):
        return f'<doc id="{number}" url="u" title="{title}">\n{title}\n\n{body}\n\n</doc>\n'

    path = tmp_path / "wiki.utf8"
    docs = [doc(i, f"Name{i} Wolf", f"{BODY}\nIn all, {i} letters were found in the house of Wolf.") for i in range(60)]
    snails = [doc(100 + i, f"Pusia s{i}a", f"Pusia s{i}a is a species of small sea snail in the family Costellariidae.") for i in range(20)]
    path.write_text("".join([*docs, *snails, doc(200, "List", "Nothing whole")]), encoding="utf-8")
    found, left_out = read_articles(path)
    assert left_out == {"short article that begins as another does": 19, "article without a whole sentence": 1}
    texts = split_by_article(parse_articles(path))
    for split in SPLITS:
        titles = [t.partition("\n")[0] for t in texts[split]]
        assert [a.title for a in found[split] if "Wolf" in a.title] == [t for t in titles if "Wolf" in t]


# --- questions -------------------------------------------------------------------------------------


@pytest.mark.parametrize("sentence, question, answer", [
    ("Ada Wolf (3 May 1820 – 7 June 1891) was a Danish chemist and writer who worked on salts.", "Who was Ada Wolf?", "a Danish chemist and writer"),
    ("Ada Wolf (3 May 1820 – 7 June 1891) was a Danish chemist and writer who worked on salts.", "When did Ada Wolf die?", "7 June 1891"),
    ("Wolf was born in Odense, Denmark.", "Where was Ada Wolf born?", "Odense, Denmark"),
    ("She was born in New York City and lived in Rome.", "Where was Ada Wolf born?", "New York City"),
    ("In 1841, she joined the club and studied flames.", "In which year did Ada Wolf join the club?", "1841"),
    ("She succeeded her father in 1699 and inherited all.", "In which year did Ada Wolf succeed her father?", "1699"),
    ("The old laboratory was founded by Carl Berg in 1870.", "By whom was the old laboratory founded?", "Carl Berg"),
    ("The society has 31 members of the house.", "How many members of the house does the society have?", "31"),
    ("She joined the Danish Chemical Society (DCS) then.", "What does DCS stand for?", "Danish Chemical Society"),
    ("She married Hans Lund, a baker.", "Whom did Ada Wolf marry?", "Hans Lund"),
    ("On 3 May 1850, she was elected to the council.", "On which date was Ada Wolf elected to the council?", "3 May 1850"),
    ("She attended Odense Grammar School and left.", "Which school or university did Ada Wolf attend?", "Odense Grammar School"),
    ("Carl Berg won the first race of the season.", "Who or what won the first race of the season?", "Carl Berg"),
])  # fmt: skip
def test_a_sentence_asks_what_it_answers(sentence, question, answer):
    found = {a.question: a.answer for a in asked(sentence)}
    assert found.get(question) == answer, found


@pytest.mark.parametrize("sentence, question, answer", [
    ("Odense is a village in Fyn, Denmark with a church.", "Where is Odense?", "Fyn, Denmark"),
    ("The Odense is a species of small sea snail in the family Costellariidae.", "To which family does Odense belong?", "Costellariidae"),
    ("Odense is a 1998 drama film directed by Carl Berg.", "By whom was Odense directed?", "Carl Berg"),
    ("Its population was 16,007 in all.", "What population is given for Odense?", "16,007"),
])  # fmt: skip
def test_a_thing(sentence, question, answer):
    found = {a.question: a.answer for a in asked(sentence, "Odense", person=False)}
    assert found.get(question) == answer, found


@pytest.mark.parametrize("sentence", [
    "In 1841, they moved to Paris.",  # who?
    "Eventually Escher received the Wagenaar Prize.",
    "She defeated Ann Berg, Eva Lund, and Ida Holm.",  # any of three
    "In 1870, she designed and started the new building.",
    "It was a name traditionally used for a hall.",
])  # fmt: skip
def test_a_sentence_that_would_ask_badly_asks_nothing(sentence):
    assert asked(sentence, first=False) == []


def test_questions_of_an_article():
    found = make_questions([article()])
    assert found and len({e.id for e in found}) == len(found)
    passages = Counter()
    for example in found:
        text, _, question = example.messages[0].content.partition("\n\nQuestion: ")
        context = text.partition("Text: ")[2]
        passages[context] += 1
        assert example.response == example.answers[0] and example.response in context
        assert len(context.split()) <= MOST_WORDS and len(context) <= MOST_CHARACTERS
        assert all(f" {normalized(a)} " not in f" {normalized(question)} " for a in example.answers[:1])
    assert max(passages.values()) <= MOST_QUESTIONS
    assert make_questions([article()]) == found
    golds = {e.messages[0].content.rpartition("Question: ")[2]: e.answers for e in found}
    assert golds["Where was Ada Wolf born?"] == ("Odense, Denmark", "Odense")


# --- instructions ----------------------------------------------------------------------------------


def test_instructions_of_an_article():
    found = make_instructions([article()])
    whole = " ".join(p.text for p in article().paragraphs)
    kinds = {e.category for e in found}
    assert {"open_qa", "general_qa", "closed_qa", "creative_writing", "classification", "information_extraction"} <= kinds
    for example in found:
        own = example.response.removeprefix("A person. ")
        if example.category != "information_extraction":
            assert all(s in whole for s in sentences(own)) and 10 <= len(example.response.split()) <= 123
    by_kind = {e.category: e for e in found}
    assert by_kind["open_qa"].messages[0].content == "Who was Ada Wolf?"
    assert by_kind["information_extraction"].response == 'The text quotes "On Lithium" and "A Late Reply".'
    question, _, context = by_kind["closed_qa"].messages[0].content.partition("\n\n")
    assert by_kind["closed_qa"].response in context and "?" in question
    assert make_instructions([article()]) == found


# --- the real ones ---------------------------------------------------------------------------------


@pytest.mark.demo
def test_the_reviews_are_those_of_the_source():
    from qlora_lib.tasks.load import load_task

    data = load_task("film-reviews")
    assert (data.stand_in_for, data.task) == ("sst2", "classification")
    every = [e for s in SPLITS for e in data.splits[s]]
    assert data.left_out == {"mean rating between -1 and 1": 1432, "same sentence again": 2}
    assert len(every) == 9173 - 2
    sentences_ = {s: {normalized(e.messages[0].content) for e in data.splits[s]} for s in SPLITS}
    assert len(set().union(*sentences_.values())) == len(every)
    for split in SPLITS:
        assert 0.48 < sum(e.response == " positive" for e in data.splits[split]) / len(data.splits[split]) < 0.52


@pytest.mark.demo
def test_the_wikipedia_stand_ins():
    from qlora_lib.tasks.load import load_task
    from qlora_lib.texts import load_texts

    titles = {s: [t.partition("\n")[0] for t in d] for s, d in load_texts("wikipedia-sample").splits.items()}
    questions, instructions, alpaca = map(load_task, ("wikipedia-questions", "wikipedia-instructions", "wikipedia-alpaca"))
    assert (questions.stand_in_for, instructions.stand_in_for, alpaca.stand_in_for) == ("squad", "dolly-15k", "alpaca-eval")
    assert len(questions.splits["train"]) > 3000 and len(questions.splits["test"]) > 100
    for split in SPLITS:
        forms = Counter(e.category for e in questions.splits[split])
        assert len(forms) >= 6
        for example in questions.splits[split]:
            text, _, question = example.messages[0].content.partition("\n\nQuestion: ")
            assert all(a in text or re.fullmatch(r"\d+|[a-z]+", a) for a in example.answers)
            assert normalize_answer(example.answers[0])
    numbers = {s: {e.id.split("-")[0] for d in (questions, instructions) for e in d.splits[s]} for s in SPLITS}
    assert not numbers["train"] & numbers["test"] and not numbers["train"] & numbers["validation"] and not numbers["validation"] & numbers["test"]
    assert {e.id.split("-")[0] for e in alpaca.splits["test"]} <= numbers["test"]
    taught = {e.messages for s in ("train", "validation") for e in instructions.splits[s]}
    assert len(alpaca.splits["test"]) >= 100 and not taught & {e.messages for e in alpaca.splits["test"]}
    assert alpaca.splits["train"] == alpaca.splits["validation"] == [] and sum(map(len, titles.values())) > 1000
    assert len({e.category for e in instructions.splits["test"]}) == 7
