"""wikipedia-instructions and wikipedia-alpaca: instructions whose response is an article's own text; stand-ins for Dolly-15K
and for AlpacaEval.

How it works: each form below asks for something that a stretch of an article answers as it stands: its first sentences, a
section, the sentence that holds an answer, what follows in a paragraph. Responses are whole sentences of 10 to 120 words;
in `information_extraction` they are lists of what stands in the context. The wording of an instruction is chosen among a
few by the hash of the article, so that the form is not known by its words. Categories are Dolly's. There is no
`brainstorming`: nothing in an encyclopaedia answers it. A summary is the paragraph's own first sentence, which in Wikipedia
is written to be one.

wikipedia-alpaca is the test split: articles of which wikipedia-instructions trains and validates on nothing.
"""

import hashlib
import re
from collections.abc import Iterator

from qlora_lib.tasks.articles import Article
from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.published import instruction
from qlora_lib.tasks.question_events import cloze
from qlora_lib.tasks.question_forms import FORMS, definition
from qlora_lib.tasks.question_grammar import YEAR, About
from qlora_lib.tasks.questions import passages
from qlora_lib.tasks.splits import normalized

LEAST, MOST = 10, 120  # words in a response

TELL = ("Tell me about {x}.", "Give me a short overview of {x}.", "What can you tell me about {x}?", "Describe {x} briefly.")
FIRST = ("Write the first sentence of an encyclopaedia article about {x}.", "How might an encyclopaedia entry on {x} begin?")
SECTION = ("What is known about the {s} of {x}?", "Describe the {s} of {x}.", "Write a short passage on the {s} of {x}.")
CONTINUE = ("Continue this text in the same style.", "Write what could come next in this passage.", "Carry on from here.")
SUMMARY = (
    "Sum up this text in one sentence.",
    "What is the main point of this text? Answer in one sentence.",
    "Summarize the passage below in a single sentence.",
)
SENTENCE = (
    "{q} Answer with a whole sentence from the text.",
    "Using the text below, answer in a full sentence: {q}",
    "{q} Quote the sentence that says so.",
)
YEARS = ("List the years that the text mentions, in order.", "Which years are mentioned in the passage?")
TITLES = (
    "List the titles and phrases that stand in quotation marks in the text.",
    "Which titles or phrases does the passage quote?",
)
KIND = (
    "Is {x} a person, a place, a living thing or a work of art?",
    "Classify {x}: person, place, living thing or work of art.",
)
KINDS = (
    ("A place",
        r"\b(?:village|town|city|municipality|commune|suburb|neighbou?rhood|district|river|lake|mountain|island|hamlet"
        r"|parish|county)$"),
    ("A living thing", r"^an? (?:species|genus|family|subfamily|flowering plant|moth|beetle|liana)\b"),
    ("A work of art", r"\b(?:film|album|song|novel|single|painting|book|play|opera|television series|sitcom|EP|poem)$"),
)  # fmt: skip
NAMED_SECTIONS = re.compile(
    r"(?:early |later |personal |political |playing |club |military |musical |family )?(?:life|career|history|biography"
    r"|plot|background|description|distribution"
    r"|production|reception|education|geography|design|development|death|legacy|etymology|demographics|origins?|economy"
    r"|taxonomy|habitat|synopsis)",
    re.IGNORECASE,
)


def make_instructions(articles: list[Article]) -> list[Example]:
    """Every instruction on some articles; ids name the article."""
    found, seen = [], set()
    for article in articles:
        for asked, response, context, category in _forms(article):
            key = normalized(f"{asked} {context}")
            if key not in seen and asked != response:
                seen.add(key)
                found.append(instruction(f"{article.number}-{len(found)}", asked, response, context, category))
    return found


def _forms(article: Article) -> Iterator[tuple[str, str, str, str]]:
    """(instruction, response, context, category)."""
    name, about = article.name, About(article.name, article.is_person, True)
    lead = article.paragraphs[0] if not article.paragraphs[0].section else None
    defined = next(definition(article.lead, about), None)
    if lead and defined:
        if short := _run(lead.sentences, 45):
            yield defined.question, short, "", "open_qa"
        if (long := _run(lead.sentences, MOST)) and long != short:
            yield _pick(TELL, article).format(x=name), long, "", "general_qa"
        if LEAST <= len(article.lead.split()) <= 60:
            yield _pick(FIRST, article).format(x=name), article.lead, "", "creative_writing"
            kind = "A person" if article.is_person else next((k for k, p in KINDS if re.search(p, defined.answer)), None)
            if kind:
                yield _pick(KIND, article).format(x=name), f"{kind}. {article.lead}", "", "classification"
    told = set()
    for paragraph in article.paragraphs:
        section = paragraph.section.lower()
        if section not in told and NAMED_SECTIONS.fullmatch(section) and (text := _run(paragraph.sentences, MOST)):
            told.add(section)
            yield _pick(SECTION, article, section).format(s=section, x=name), text, "", "general_qa"
    yield from _with_context(article)


def _with_context(article: Article) -> Iterator[tuple[str, str, str, str]]:
    asked_sentences = 0
    for number, (passage, first) in enumerate(passages(article)):
        context, salt = " ".join(passage), str(number)
        if (
            len(passage) >= 3
            and asked_sentences < 4
            and (found := _asked(passage, About(article.name, article.is_person, first)))
        ):
            asked_sentences += 1
            yield _pick(SENTENCE, article, salt).format(q=found[0]), found[1], context, "closed_qa"
        if first and len(passage) >= 3 and len(context.split()) >= 50 and LEAST <= len(passage[0].split()) <= 45:
            yield _pick(SUMMARY, article, salt), passage[0], context, "summarization"
        years = list(dict.fromkeys(re.findall(rf"(?<![\d–-]){YEAR}(?![\d–-])", context)))
        if len(years) >= 3 and number % 2 == 0:
            yield (
                _pick(YEARS, article, salt),
                f"The text mentions the years {_list(sorted(years))}.",
                context,
                "information_extraction",
            )
        titles = list(dict.fromkeys(re.findall(r'"([^"]+?)[,.;]?"', context)))
        if 2 <= len(titles) <= 6 and all(2 <= len(title) <= 60 for title in titles):
            quoted = _list([f'"{title}"' for title in titles])
            yield _pick(TITLES, article, salt), f"The text quotes {quoted}.", context, "information_extraction"
        if len(passage) >= 4 and number % 3 == 1:
            half = len(passage) // 2
            if rest := _run(tuple(passage[half:]), MOST):
                yield _pick(CONTINUE, article, salt), rest, " ".join(passage[:half]), "creative_writing"


def _asked(passage: list[str], about: About) -> tuple[str, str] | None:
    """(a question in plain words, the sentence that answers it)."""
    for form in FORMS:
        for sentence in passage if form is not cloze else ():
            if LEAST <= len(sentence.split()) <= 45:
                for asked in form(sentence, about):
                    if asked.form != "stands for":
                        return asked.question, sentence
    return None


def _run(sentences: tuple[str, ...], most: int) -> str:
    """As many whole sentences from the first on as `most` words hold; nothing where they are too few."""
    text = ""
    for sentence in sentences:
        longer = f"{text} {sentence}".strip()
        if len(longer.split()) > most:
            break
        text = longer
    return text if len(text.split()) >= LEAST else ""


def _list(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"


def _pick(wordings: tuple[str, ...], article: Article, salt: str = "") -> str:
    place = hashlib.sha256(f"{article.number} {wordings[0]} {salt}".encode()).digest()[0]
    return wordings[place % len(wordings)]
