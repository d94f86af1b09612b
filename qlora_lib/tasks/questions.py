"""wikipedia-questions: extractive questions, made by rule from Wikipedia paragraphs; the stand-in for SQuAD v1.1.

How it works: a passage is a run of whole sentences of one paragraph, short enough for a context of 256 tokens. The forms of
`question_forms` are tried on each sentence, and at most three questions are kept of a passage, of different forms first;
with fill-the-blank questions there are two where there were fewer. An answer stands in its passage, and not in its question. What
these questions are not: written by people, or in need of more than one sentence.
"""

from collections import Counter

from qlora_lib.tasks.articles import Article
from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.published import question
from qlora_lib.tasks.question_forms import FORMS
from qlora_lib.tasks.question_grammar import About, Asked
from qlora_lib.tasks.splits import normalized

MOST_WORDS, MOST_CHARACTERS = 100, 640  # of a passage
MOST_QUESTIONS = 3  # of a passage
CLOZE = "fill the blank"


def make_questions(articles: list[Article]) -> list[Example]:
    """Every question of some articles; ids name the article."""
    found, seen = [], set()
    for article in articles:
        for number, (passage, first) in enumerate(passages(article)):
            for asked in _questions(passage, About(article.name, article.is_person, first)):
                if (key := normalized(asked.question)) not in seen:
                    seen.add(key)
                    place = f"{article.number}-{number}-{len(found)}"
                    answers = tuple(dict.fromkeys((asked.answer, *asked.also)))
                    found.append(question(place, " ".join(passage), asked.question.replace("??", "?"), answers, asked.form))
    return found


def passages(article: Article) -> list[tuple[list[str], bool]]:
    """[(sentences, whether they stand in the first paragraph)], each within the limits."""
    cut = []
    for paragraph in article.paragraphs:
        first, run = paragraph is article.paragraphs[0] and not paragraph.section, []
        for sentence in paragraph.sentences:
            longer = " ".join([*run, sentence])
            if run and (len(longer.split()) > MOST_WORDS or len(longer) > MOST_CHARACTERS):
                cut.append((run, first))
                run = []
            run = [*run, sentence]
        cut.append((run, first))
    return [
        (run, first) for run, first in cut if len(" ".join(run)) <= MOST_CHARACTERS and len(" ".join(run).split()) <= MOST_WORDS
    ]


def _questions(passage: list[str], about: About) -> list[Asked]:
    """At most MOST_QUESTIONS, in the order of the forms and sentences, but a second of a form after all first ones."""
    text = " ".join(passage)
    fit = []
    for number, form in enumerate(FORMS):
        for place, sentence in enumerate(passage):
            for asked in form(sentence, about):
                if (
                    asked.answer in text
                    and not _gives_away(asked)
                    and not asked.answer.endswith(("'s", "’s"))
                    and len(asked.question) <= 260
                ):
                    fit.append((number, place, asked))
    plain = [asked for _, _, asked in fit if asked.form != CLOZE]
    blanks = {place: asked for _, place, asked in reversed(fit) if asked.form == CLOZE}  # one of a sentence
    plain += [blanks[place] for place in sorted(blanks)][: max(0, 2 - len(plain))]
    kept, forms, answers = [], Counter(), set()
    for turn in range(MOST_QUESTIONS):
        for asked in plain:
            if len(kept) < MOST_QUESTIONS and forms[asked.form] == turn and normalized(asked.answer) not in answers:
                kept.append(asked)
                forms[asked.form] += 1
                answers.add(normalized(asked.answer))
    return kept


def _gives_away(asked: Asked) -> bool:
    """Whether the answer stands in its question, word for word."""
    return f" {normalized(asked.answer)} " in f" {normalized(asked.question)} "
