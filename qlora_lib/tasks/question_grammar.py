"""Words and patterns of which the question forms are built: names, places, numbers, verbs, and whom a pronoun means."""

import re
from dataclasses import dataclass

MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"
YEAR = r"(?:1[0-9]|20)\d{2}"
DATE = rf"(?:\d{{1,2}} {MONTH} {YEAR}|{MONTH} \d{{1,2}}, {YEAR})"
WORD = r"[A-Z][\w'’.-]*"
LITTLE = r"(?:of|de|da|do|del|di|van|von|der|den|the|al|la|le|bin|ibn)"
NAME = rf"(?:{WORD}(?: {LITTLE})*(?: {WORD}| (?:{LITTLE} )+{WORD})*)"
PLACE = rf"(?:the )?{NAME}(?:, {NAME})*"
NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)"
SUBJECT = rf"(?P<s>[Hh]e|[Ss]he|[Ii]t|[Tt]hey|(?:[Tt]he )?{NAME}|[Tt]he [a-z]+(?: [a-z]+)?)"
LISTED = r"(?!(?:, [A-Z][\w'’.-]+ ?[A-Z]?[\w'’.-]*)(?:,| and| or))"  # not the first of several
STOP = LISTED + r"(?=[.,;:]|$| \(| (?:and|but|which|who|where|while|when|as|because|after|before|although|until|since|with)\b)"
PLURAL = r"(?:[a-z]+[- ]){0,2}(?:[a-z]+[^s\W]s|people|men|women|children|species)"
IRREGULAR = {
    "won": "win", "became": "become", "began": "begin", "wrote": "write", "took": "take", "made": "make", "held": "hold",
    "built": "build", "left": "leave", "led": "lead", "met": "meet", "sold": "sell", "bought": "buy", "ran": "run",
    "lost": "lose", "gave": "give", "got": "get", "went": "go", "came": "come", "set": "set", "fought": "fight", "fell": "fall",
    "married": "marry", "studied": "study", "had": "have", "rose": "rise", "grew": "grow", "sang": "sing", "taught": "teach",
    "moved": "move", "received": "receive", "released": "release", "retired": "retire", "died": "die", "served": "serve",
    "acquired": "acquire", "produced": "produce", "introduced": "introduce", "arrived": "arrive", "resigned": "resign",
    "changed": "change", "merged": "merge", "closed": "close", "celebrated": "celebrate", "created": "create", "used": "use",
    "dissolved": "dissolve", "competed": "compete", "graduated": "graduate", "replaced": "replace", "completed": "complete",
    "debuted": "debut", "included": "include", "purchased": "purchase", "decided": "decide", "continued": "continue",
    "ceased": "cease", "announced": "announce", "invented": "invent", "expanded": "expand", "acted": "act", "voted": "vote", "issued": "issue", "donated": "donate", "relocated": "relocate", "promoted": "promote",
}  # fmt: skip
REGULAR = (  # they take -ed and nothing else
    "join return publish found open appear play sign establish launch start form record attend visit defeat finish reach"
    " gain enter perform present develop adopt appoint elect convert travel cover settle accept reject pass attack claim"
    " obtain work direct report host design discover conduct succeed follow sponsor destroy conquer protest support"
    " happen own kill capture command award order earn turn help offer add extend"
).split()
PAST = IRREGULAR | {verb + "ed": verb for verb in REGULAR} | {"starred": "star", "transferred": "transfer"}
PARTICIPLES = {  # what a passive asks: they stand as they are in the question
    "born", "built", "made", "held", "sold", "founded", "established", "released", "published", "opened", "closed", "created",
    "elected", "appointed", "named", "renamed", "formed", "launched", "introduced", "completed", "demolished", "destroyed",
    "incorporated", "promoted", "awarded", "inducted", "converted", "dissolved", "abolished", "acquired", "ordained",
    "described", "discovered", "recorded", "commissioned", "constructed", "designed", "directed", "produced", "written",
    "composed", "painted", "developed", "invented", "killed", "arrested", "executed", "married", "adopted", "adapted",
    "replaced", "transferred", "nominated", "buried", "drafted", "signed", "educated", "knighted", "baptized", "consecrated",
    "elevated", "expelled", "restored", "rebuilt", "purchased", "bought", "given", "taken", "led", "owned", "operated",
    "edited", "illustrated", "performed", "organized", "organised", "presented", "hosted", "defeated", "captured", "annexed",
}  # fmt: skip
PREPOSITION = re.compile(r"(?:^| )(?:in|at|on|of|to|for|from|by|the|a|an|and|or|with|as|his|her|its)$")


@dataclass(frozen=True)
class Asked:
    form: str
    question: str
    answer: str
    also: tuple[str, ...] = ()  # other right answers


@dataclass(frozen=True)
class About:
    """Whom pronouns mean: the article's subject."""

    name: str
    person: bool
    first: bool  # whether the sentence stands in the article's first paragraph, where "it" is its subject

    def subject(self, words: str) -> str | None:
        """The subject as it stands inside a question; None where it is not known whom a pronoun means."""
        low = words.lower()
        if low in ("he", "she"):
            return self.name if self.person else None
        if low == "it":
            return self.name if self.first and not self.person else None
        if low in ("they", "this", "there", "these", "those", "its", "his", "her", "in", "on", "at", "after", "during", "as"):
            return None
        if low.split()[0] in (
            "in",
            "on",
            "at",
            "after",
            "before",
            "during",
            "by",
            "since",
            "from",
            "for",
            "as",
            "when",
            "while",
            "with",
            "however",
            "although",
        ):
            return None
        if low.split()[0].endswith("ly"):
            return None
        article = re.match(r"(?:The|An?) ", words)
        return article[0].lower() + words[article.end() :] if article else words


def clause(text: str) -> str:
    """A predicate up to where its clause ends, without what would hang."""
    if re.match(r"(?:and|or|but)\b", text := text.strip()):
        return ""
    verb = r"(?=[a-z]+ed\b|was|were|is|has|had|became|won|began|then|later|he\b|she\b|it\b|they\b|also|wrote|made|took|left|held|ran|lost)"
    text = re.split(
        rf"[;:(]|,(?!\d)| and {verb}| (?:but|which|who|where|while|when|because|although|before|after|until|as)\b", text
    )[0].strip(" .")
    while PREPOSITION.search(text):
        text = text.rpartition(" ")[0]
    return text


def first_place(place: str) -> tuple[str, ...]:
    """The town of "town, country": right as well."""
    return (place.split(",")[0],) if "," in place else ()


WORDS = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), map(str, range(2, 13))))


def same_number(number: str) -> tuple[str, ...]:
    """Other ways to write a number: 1,200 as 1200, nine as 9."""
    if "," in number:
        return (number.replace(",", ""),)
    if number in WORDS:
        return (WORDS[number],)
    return tuple(word for word, digits in WORDS.items() if digits == number)
