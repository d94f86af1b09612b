"""Wikipedia articles as sections, paragraphs and sentences: what the stand-ins are made of.

How it works: the articles and their splits are those of `wikipedia-sample`, so nothing that one stand-in teaches is tested
by another. A line is a heading where it is short and ends in a full stop without being a sentence. The extractor that made
the text left holes where templates stood (empty brackets, a comma after a space): brackets are mended, and sentences with
any other hole are left out.
"""

import html
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from qlora_lib import texts

ABBREVIATIONS = frozenset(
    "Mr Mrs Ms Dr St Sr Jr Prof Rev Hon Gen Col Capt Lt Sgt Maj Gov Sen Rep Pres No Nos Vol vol vs etc ca c cf Inc Ltd Co Corp Bros"
    " approx est fl b d p pp ed eds al Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec U.S U.K U.N D.C Res a.k.a i.e e.g Mt Ft Ave".split()
)
HOLE = re.compile(
    r"\s[,;.:)]|[(]\s|[(][,;]|formula_|&|<|>|\{|\}|\||=|page\(s\)|_|\(s\)|\*|\bISBN\b|https?:|www\.|\x22\x22|\b(?:over"
    r"|about|approximately|nearly|than|around|contributes|some|up to|at least) of\b|,,|\.\.|\u200b|\[|\]|--"
)
SHORT = 80  # words
VERB = re.compile(r"\b(is|are|was|were|has|had|have|be|can|may|will|did|does)\b")


@dataclass(frozen=True)
class Paragraph:
    section: str  # its heading; "" before the first
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        return " ".join(self.sentences)


@dataclass(frozen=True)
class Article:
    number: str
    title: str  # as published
    paragraphs: tuple[Paragraph, ...]

    @property
    def name(self) -> str:
        """The title without what tells it from others of that name: "Frame" of "Frame (nautical)"."""
        return re.sub(r" \([^)]*\)$", "", self.title)

    @property
    def lead(self) -> str:
        """The first sentence, or nothing where the article does not begin with one about its subject."""
        first = self.paragraphs[0] if self.paragraphs else None
        return first.sentences[0] if first and not first.section else ""

    @property
    def is_person(self) -> bool:
        """Born, or of some kind "who" did something, or with dates behind the name and a "he" or "she" that follows."""
        lead = self.lead[:250]
        if re.search(r"\((?:[^()]*[;, ])?(?:born|née) [^()]*\)", lead) or re.match(
            r"[^.,]*? (?:is|was) an? [^.,]*? who ", lead
        ):
            return True
        begins = " ".join(p.text for p in self.paragraphs[:3])
        dated = re.search(r"\([^()]*\b\d{3,4}\b[^()]*\)", lead)
        return bool(dated and re.search(r"\b(?:[Hh]e|[Ss]he|[Hh]is|[Hh]er)\b", begins))


def read_articles(path: Path) -> tuple[dict[str, list[Article]], dict[str, int]]:
    """(articles by split, in the split's own order; how many were left out and why).

    Left out are articles without a whole sentence, and short ones that say of another thing what an earlier one says (the
    sample holds several hundred sea snails): else what is learned of one would be asked of the next.
    """
    parsed = texts.parse_articles(path)
    numbers = {text: number for number, text in reversed(parsed)}
    found, seen, left_out = {}, set(), Counter()
    for split, documents in texts.split_by_article(parsed).items():
        found[split] = []
        for article in (_article(numbers[text], text) for text in documents):
            like = re.sub(r"\b(?:[A-Z]\S*|\S*\d\S*)", "#", article.lead.replace(article.name, "#"))
            like = re.sub(r"^[#\s()]*\S* (is|are|was)", r"# \1", like)
            if not article.paragraphs:
                left_out["article without a whole sentence"] += 1
            elif like in seen and sum(len(p.text.split()) for p in article.paragraphs) < SHORT:
                left_out["short article that begins as another does"] += 1
            else:
                found[split].append(article)
                seen.add(like)
    return found, dict(left_out)


def _article(number: str, text: str) -> Article:
    title, _, body = html.unescape(text).partition("\n\n")
    section, paragraphs = "", []
    for line in body.split("\n"):
        line = mended(line)
        if is_heading(line):
            section = line.rstrip(".")
        elif kept := tuple(s for s in sentences(line) if is_whole(s)):
            paragraphs.append(Paragraph(section, kept))
    return Article(number, title.strip(), tuple(paragraphs))


def mended(line: str) -> str:
    """Without the brackets that are empty, or begin with what parted them from a template."""
    line = re.sub(r"\(\s*[;,:]\s*", "(", " ".join(line.split()))
    line = re.sub(r"[;,]\s*\)", ")", line)
    return re.sub(r"\s*\(\s*(?:or|and|also)?\s*\)", "", line)


def is_heading(line: str) -> bool:
    return line.endswith(".") and len(line.split()) <= 8 and not VERB.search(line) and not re.search(r"[a-z]{3,}ed\b", line)


def sentences(paragraph: str) -> list[str]:
    """Cut after a full stop, question or exclamation mark, but not after an abbreviation or an initial."""
    cuts = [0]
    for match in re.finditer(r"[.!?][\"')\]]*\s+(?=[\"'(]?[A-Z0-9])", paragraph):
        before = paragraph[cuts[-1] : match.start()].rpartition(" ")[2].lstrip("(\"'")
        if before in ABBREVIATIONS or re.fullmatch(r"[A-Z](?:\.[A-Z])*", before):
            continue
        cuts.append(match.end())
    return [paragraph[a:b].strip() for a, b in zip(cuts, [*cuts[1:], len(paragraph)]) if paragraph[a:b].strip()]


def is_whole(sentence: str) -> bool:
    """Begins and ends as a sentence does, with a verb's worth of words, balanced, and without a hole."""
    return (
        bool(re.match(r"[\"'(]?[A-Z0-9]", sentence))
        and sentence.rstrip("\"')")[-1:] in ".!?"
        and len(sentence.split()) >= 4
        and sentence.count("(") == sentence.count(")")
        and sentence.count('"') % 2 == 0
        and not HOLE.search(sentence)
    )
