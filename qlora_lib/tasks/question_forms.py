"""Rules that turn a sentence of an encyclopaedia into a question whose answer stands in it.

How it works: each form is a generator over (sentence, subject): where its pattern fits it yields a question and the answer,
a span of the sentence. Patterns are narrow on purpose: a sentence that fits none asks nothing. Pronouns become the
article's name; a past tense becomes an infinitive by a table of verbs (no verb outside it is asked about).
"""

import re
from collections.abc import Callable, Iterator
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
        if low.split()[0] in ("in", "on", "at", "after", "before", "during", "by", "since", "from", "for", "as", "when", "while", "with", "however", "although"):
            return None
        if low.split()[0].endswith("ly"):
            return None
        article = re.match(r"(?:The|An?) ", words)
        return article[0].lower() + words[article.end() :] if article else words


Form = Callable[[str, About], Iterator[Asked]]


def _clause(text: str) -> str:
    """A predicate up to where its clause ends, without what would hang."""
    if re.match(r"(?:and|or|but)\b", text := text.strip()):
        return ""
    verb = r"(?=[a-z]+ed\b|was|were|is|has|had|became|won|began|then|later|he\b|she\b|it\b|they\b|also|wrote|made|took|left|held|ran|lost)"
    text = re.split(rf"[;:(]|,(?!\d)| and {verb}| (?:but|which|who|where|while|when|because|although|before|after|until|as)\b", text)[0].strip(" .")
    while PREPOSITION.search(text):
        text = text.rpartition(" ")[0]
    return text


def year(sentence: str, about: About) -> Iterator[Asked]:
    """In 1951, he won the title -> In which year did N. win the title?"""
    ways = (
        (rf"^In (?P<y>{YEAR}),? {SUBJECT} (?P<v>[a-z]+)(?P<r> [^.]*)\.$", "r"),
        (rf"^{SUBJECT} (?P<v>[a-z]+)(?P<r> [^.,;()]*?) in (?P<y>{YEAR})(?=[.,;]| (?:and|but|with|at|by|as)\b)", "r"),
    )
    for pattern, _ in ways:
        if not (m := re.search(pattern, sentence)):
            continue
        subject, verb, rest = about.subject(m["s"]), m["v"], m["r"]
        if subject is None:
            continue
        if verb in ("was", "were"):
            participle = rest.split()[0] if rest.split() else ""
            if participle not in PARTICIPLES:
                continue
            tail = _clause(rest.strip())
            helper = verb
        elif verb in PAST:
            tail, helper = f"{PAST[verb]} {_clause(rest)}".strip(), "did"
        else:
            continue
        if len(tail.split()) > 14 or tail.endswith("ing") or "between" in tail and " and " not in tail or re.search(r"begin \w+ing", tail) or re.search(r"\d{4}", tail) or len(tail.split()) < (1 if helper != "did" else 2):
            continue
        yield Asked("year", f"In which year {helper} {subject} {tail}?", m["y"])
        return


def date(sentence: str, about: About) -> Iterator[Asked]:
    """On 16 July 2017, X was named the next Doctor -> On which date was X named the next Doctor?"""
    ways = (
        rf"^On (?P<y>{DATE}),? {SUBJECT} (?P<v>[a-z]+)(?P<r> [^.]*)\.$",
        rf"^{SUBJECT} (?P<v>[a-z]+)(?P<r> [^.,;()]*?) on (?P<y>{DATE})(?=[.,;]| (?:and|but|with|at|by|as|in)\b)",
    )
    for pattern in ways:
        if (m := re.search(pattern, sentence)) and (subject := about.subject(m["s"])):
            rest, verb = m["r"], m["v"]
            if verb in ("was", "were") and rest.split() and rest.split()[0] in PARTICIPLES:
                tail, helper = _clause(rest), verb
            elif verb in PAST:
                tail, helper = f"{PAST[verb]} {_clause(rest)}".strip(), "did"
            else:
                continue
            if len(tail.split()) <= 14 and not re.search(r"\d{4}", tail):
                yield Asked("date", f"On which date {helper} {subject} {tail}?", m["y"])
                return


def life(sentence: str, about: About) -> Iterator[Asked]:
    """Dates behind the name of a person, and places of birth and death."""
    if not about.person:
        return
    if m := re.match(rf"[^()]{{3,60}} \((?:[^()]*?[;,] )?(?:born )?(?P<b>{DATE})(?: in [^()–]*?)? ?[–-] ?(?P<d>{DATE})", sentence):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
        yield Asked("born or died", f"When did {about.name} die?", m["d"])
    elif m := re.match(rf"[^()]{{3,60}} \([^()]*?\b(?:born|b\.)(?: on)? (?P<b>{DATE})", sentence):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
    elif m := re.search(rf"\b(?:[Hh]e|[Ss]he|{re.escape(about.name.split()[-1])}) was born on (?P<b>{DATE})", sentence):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
    who = rf"\b(?:[Hh]e|[Ss]he|{re.escape(about.name.split()[-1])})"
    if m := re.search(rf"{who} was born (?:on [^,;.]*?,? |[^,;.]*? )??(?:in|at) (?P<p>{PLACE})(?=[.,;]| (?:in|on|to|and|as|where|into|with)\b)", sentence):
        yield Asked("where", f"Where was {about.name} born?", m["p"].rstrip("."), _first_place(m["p"]))
    if m := re.search(rf"{who} died (?:on [^,;.]*?,? |[^,;.]*? )??(?:in|at) (?P<p>{PLACE})(?=[.,;]| (?:in|on|and|at|of|from|where)\b)", sentence):
        if not re.match(MONTH, m["p"]):
            yield Asked("where", f"Where did {about.name} die?", m["p"].rstrip("."), _first_place(m["p"]))


def _first_place(place: str) -> tuple[str, ...]:
    return (place.split(",")[0],) if "," in place else ()


def definition(sentence: str, about: About) -> Iterator[Asked]:
    """X is a municipality in ... -> What is X? a municipality; Who was X? an English chemist."""
    last = re.escape(about.name.split()[-1])
    m = re.match(
        rf"(?P<the>The )?[^,;:]{{0,60}}?{last}\"?(?: \([^)]*\))?,? (?P<v>is|are|was|were) (?P<np>(?:an?|the) [^.;:]+)", sentence
    )
    if not (about.first and m):
        return
    np = re.split(
        r"[,(\"]| (?:that|which|who|whose|where|when|in|known|used|based|located|situated|written|directed|produced|released"
        r"|published|founded|from|by|for|at|on|during|between|near|to|as|made|held|first|created|set|starring|featuring"
        r"|consisting|with|designed|built|developed|and (?:is|was|the|a|an)|within|under|about|against|living|active|best"
        r"|formed|established|operated|owned|composed|born|than|currently|played|off|via|it|he|she|given)\b",
        m["np"],
    )[0].strip()
    if not 2 <= len(np.split()) <= 9 or PREPOSITION.search(np) or np.endswith("ly") or np.split()[-1] in ("one", "name", "part", "member", "only", "time"):
        return
    longer = re.split(r"[,(\";]", m["np"])[0].strip()
    thing = ("the " if m["the"] and not about.name.startswith("The ") else "") + about.name
    word = "Who" if about.person else "What"
    yield Asked("definition", f"{word} {m['v']} {thing}?", np, (longer,) if len(longer.split()) <= 14 else ())


def agent(sentence: str, about: About) -> Iterator[Asked]:
    """The film was directed by N. -> By whom was the film directed?"""
    m = re.search(rf"^{SUBJECT} (?P<v>is|was|were) (?:[a-z]+ly )?(?P<p>[a-z]+)(?P<r> (?:in|at|for|on) [^,.;]{{3,40}}?)? by (?P<a>(?:the )?{NAME})(?:{STOP}|(?= (?:in|on|at|for|to|from|during|under|between)\b))", sentence)
    if not m or m["p"] not in PARTICIPLES or re.match(MONTH, m["a"]):
        return
    subject = about.subject(m["s"])
    if subject and " and " not in sentence[m.end("a") : m.end("a") + 5]:
        yield Asked("by whom", f"By whom {m['v']} {subject} {m['p']}{m['r'] or ''}?", m["a"].rstrip("."))


def count(sentence: str, about: About) -> Iterator[Asked]:
    """The club has 18 members -> How many members does the club have?"""
    verbs = {"has": ("does", "have"), "have": ("do", "have"), "had": ("did", "have"), "won": ("did", "win"), "scored": ("did", "score"),
             "contains": ("does", "contain"), "contained": ("did", "contain"), "includes": ("does", "include"), "played": ("did", "play"),
             "published": ("did", "publish"), "wrote": ("did", "write"), "released": ("did", "release"), "made": ("did", "make"),
             "received": ("did", "receive"), "recorded": ("did", "record"), "served": ("did", "serve")}  # fmt: skip
    m = re.search(rf"^(?:[^,]{{3,40}}, )?{SUBJECT} (?:also )?(?P<v>{'|'.join(verbs)}) (?:a total of |about |approximately |over |more than )?(?P<n>{NUMBER}) (?P<t>{PLURAL}(?: of [a-z][a-z -]{{2,30}})?){STOP}", sentence)
    if m and (subject := about.subject(m["s"])):
        helper, base = verbs[m["v"]]
        yield Asked("how many", f"How many {m['t']} {helper} {subject} {base}?", m["n"], _same_number(m["n"]))
        return
    m = re.search(rf"(?:^|, )[Tt]here (?P<v>are|were) (?:about |approximately |over |more than )?(?P<n>{NUMBER}) (?P<t>{PLURAL})(?P<r> (?:in|on|at) [^,.;]{{3,40}})?(?=[.,;])", sentence)
    if m:
        yield Asked("how many", f"How many {m['t']} {m['v']} there{m['r'] or ''}?", m["n"], _same_number(m["n"]))


WORDS = dict(zip("two three four five six seven eight nine ten eleven twelve".split(), map(str, range(2, 13))))


def _same_number(number: str) -> tuple[str, ...]:
    if "," in number:
        return (number.replace(",", ""),)
    if number in WORDS:
        return (WORDS[number],)
    return tuple(word for word, digits in WORDS.items() if digits == number)


def measure(sentence: str, about: About) -> Iterator[Asked]:
    """Populations, areas, lengths: What is the population of X?"""
    if m := re.search(r"\bpopulation (?:of|was|is|stood at) (?:about |approximately |around |some )?(?P<n>\d{1,3}(?:,\d{3})+|\d{3,})\b(?! (?:in the|households))", sentence):
        if about.first and len(re.findall(r"\bpopulation\b", sentence)) == 1:
            yield Asked("measure", f"What population is given for {about.name}?", m["n"], _same_number(m["n"]))
    if m := re.search(r"\b(?P<w>length|size|height|diameter) of (?:the|its) (?P<t>shell|wingspan|body|forewings?) (?:attains|reaches|is|varies between|is between) (?P<n>\d[\d.]* ?(?:mm|cm|m)(?: and \d[\d.]* ?(?:mm|cm|m))?)", sentence):
        yield Asked("measure", f"What is the {m['w']} of the {m['t']} of {about.name}?", m["n"])
    if m := re.search(r"\b[Tt]he (?P<t>shell size|wingspan) (?:is|attains|varies between|reaches) (?:about )?(?P<n>\d[\d.–-]* ?(?:mm|cm)(?: and \d[\d.]* ?(?:mm|cm))?)", sentence):
        yield Asked("measure", f"What is the {m['t']} of {about.name}?", m["n"])
    if m := re.search(r"\barea (?:of|is|was) (?:about |approximately )?(?P<n>\d[\d,.]* ?(?:km²|km2|square kilometers|square kilometres|square miles|hectares|acres))", sentence):
        if about.first:
            yield Asked("measure", f"What area is given for {about.name}?", m["n"])


def located(sentence: str, about: About) -> Iterator[Asked]:
    """X is a village in Y -> Where is X? Species: Where is it found?"""
    last = re.escape(about.name.split()[-1])
    m = re.match(
        rf"[^,;:]{{0,60}}?{last}(?: \([^)]*\))?,? is an? [^,.;]{{0,50}}?\b(?:village|town|city|municipality|commune|suburb|neighbou?rhood|district|river|lake"
        rf"|mountain|island|hamlet|parish|county|airport|airstrip|station|school|church|museum|bridge|road|castle|locality|creek|settlement|community)"
        rf" (?:located |situated )?(?:in|on|near) (?P<p>(?:the )?[^.;]{{3,70}}?)(?=[.;(]|, (?:and|which|with|that|it|the)\b| (?:and|that|which|with|where|on|near|about)\b)",
        sentence,
    )
    if m and about.first and not about.person:
        yield Asked("where", f"Where is {about.name}?", m["p"].strip(" ,"), _first_place(m["p"].strip(" ,")))
    m = re.search(r"(?:[Tt]h(?:is|e) (?:marine )?species|^It|\w+) (?:is found|occurs|is distributed|is endemic|lives|is native) (?:in|off|to|along|from) (?P<p>(?:the )?[A-Z][^;.:(]{2,70}?)(?=[.;(]|, where\b| where\b| and (?:is|has|was)\b)", sentence)
    if m and not about.person and len(m["p"].split()) <= 10 and not re.search(rf"{MONTH}|{YEAR}", m["p"]):
        yield Asked("where", f"Where is {about.name} found?", m["p"].strip(" ,"))


def belongs(sentence: str, about: About) -> Iterator[Asked]:
    """... in the family Costellariidae -> To which family does X belong?"""
    if m := re.search(r"\b(?:in|of|to) the (?P<w>family|genus|subfamily|order|tribe) (?P<f>[A-Z][a-z]+)", sentence):
        if about.first and not about.person and m["f"] != about.name:
            yield Asked("belongs to", f"To which {m['w']} does {about.name} belong?", m["f"])


def fame(sentence: str, about: About) -> Iterator[Asked]:
    if about.first and (m := re.search(r"\b(?P<b>best|mainly|primarily|most) known for (?P<k>[^.;(]{5,90}?)(?=[.;(]|, (?:and|which|but)\b)", sentence)):
        if 2 <= len(m["k"].split()) <= 12:
            yield Asked("known for", f"What is {about.name} {m['b']} known for?", m["k"].strip(" ,"))


def acronym(sentence: str, about: About) -> Iterator[Asked]:
    for m in re.finditer(r"\((?P<a>[A-Z]{3,6})\)", sentence):
        words = [w for w in re.findall(r"[\w'-]+", sentence[: m.start()])]
        for size in range(len(m["a"]), len(m["a"]) + 4):
            long = words[-size:]
            initials = "".join(w[0] for w in long if w[0].isupper())
            if len(long) == size and initials == m["a"] and long[0][0] == m["a"][0]:
                at = sentence.rfind(long[0], 0, m.start())
                span = sentence[at : m.start()].strip()
                if re.findall(r"[\w'-]+", span) == long:
                    yield Asked("stands for", f"What does {m['a']} stand for?", span)
                break


def education(sentence: str, about: About) -> Iterator[Asked]:
    m = re.search(
        rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:also )?(?P<v>attended|graduated from|studied at|was educated at|received (?:his|her) [A-Za-z. ]{{2,30}} from|earned (?:his|her|a|an) [A-Za-z.' ]{{2,40}} from)"
        rf" (?P<p>(?:the )?{NAME}){STOP}",
        sentence,
    )
    if m and about.person and (subject := about.subject(m["s"])) and re.search(r"Universit|College|School|Academy|Institute|Conservator", m["p"]):
        verb = m["v"]
        asked = {"attended": "did {s} attend", "studied at": "did {s} study at", "graduated from": "did {s} graduate from", "was educated at": "was {s} educated at"}
        if verb in asked:
            yield Asked("education", f"Which school or university {asked[verb].format(s=subject)}?", m["p"].rstrip("."))
        else:
            what = verb.split(" ", 2)[2].removesuffix(" from")
            yield Asked("education", f"From which school or university did {subject} {'receive' if verb.startswith('received') else 'earn'} {verb.split()[1]} {what}?", m["p"].rstrip("."))


def doer(sentence: str, about: About) -> Iterator[Asked]:
    """Dan Connor led the defence. -> Who or what led the defence?"""
    m = re.match(rf"(?P<a>(?:The )?{WORD}(?: {WORD})+) (?P<v>[a-z]+)(?P<r> [^.;:()\"]{{8,90}})\.$", sentence)
    if not m or not (m["v"] in PAST or m["v"] in ("was", "were", "is") and m["r"].split()[0] in PARTICIPLES):
        return
    if m["a"].split()[0].endswith("ly") or m["a"].split()[0] in ("In", "On", "At", "After", "As", "By", "During", "For", "Since", "When", "While", "With", "His", "Her", "Their", "This", "Thus", "Then", "Also", "However", "Later", "Both", "Fellow"):
        return
    rest = _clause(m["r"])
    if len(rest.split()) >= 3 and not re.search(r"\b(?:his|her|its|their|also|then|he|she|they|it)\b", rest):
        yield Asked("who or what", f"Who or what {'was' if m['v'] == 'were' else m['v']} {rest}?", m["a"])


def went(sentence: str, about: About) -> Iterator[Asked]:
    """He moved to Turin -> Where did N. move?"""
    verbs = {"moved": "move", "relocated": "relocate", "emigrated": "emigrate", "immigrated": "immigrate", "fled": "flee"}
    m = re.search(rf"(?:^|, |and ){SUBJECT} (?:then |later |also )?(?P<v>{'|'.join(verbs)}) (?:back )?to (?P<p>{PLACE})(?=[.,;]| (?:in|on|to|and|as|where|with|at|when|for|from|after|because)\b)", sentence)
    if m and (subject := about.subject(m["s"])):
        yield Asked("where", f"Where did {subject} {verbs[m['v']]}?", m["p"].rstrip("."), _first_place(m["p"]))
    m = re.search(rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:currently |now )?(?P<v>lives|resides|is based|was based|is headquartered|was headquartered|is located|was located|grew up|lived) in (?P<p>{PLACE})(?=[.,;]| (?:with|and|on|at|where|from|until|as|near)\b)", sentence)
    if m and (subject := about.subject(m["s"])) and not re.match(MONTH, m["p"]):
        verb = m["v"]
        asked = {"lives": "does {s} live", "resides": "does {s} reside", "grew up": "did {s} grow up", "lived": "did {s} live"}.get(verb) or f"{verb.split()[0]} {{s}} {verb.split()[1]}"
        yield Asked("where", f"Where {asked.format(s=subject)}?", m["p"].rstrip("."), _first_place(m["p"]))


def whom(sentence: str, about: About) -> Iterator[Asked]:
    """He married N. -> Whom did he marry? Likewise whom he succeeded, what he is named after, for whom he played."""
    begin = rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:then |later |also |first )?"
    end = rf" (?P<p>(?:the )?{NAME}){STOP}"
    for pattern, asked in (
        (r"married", "Whom did {s} marry?"),
        (r"(?:succeeded|replaced)", "Whom did {s} succeed?"),
        (r"(?:defeated|beat)", "Whom did {s} defeat?"),
        (r"(?:is|was) named (?:after|for|in honou?r of)", "After whom or what was {s} named?"),
        (r"(?:played|plays) for", "For whom did {s} play?"),
        (r"(?:signed with|signed for|signed a contract with)", "With whom did {s} sign?"),
        (r"(?:worked for|worked at)", "For whom did {s} work?"),
        (r"(?:studied under|studied with)", "With whom did {s} study?"),
    ):
        if (m := re.search(rf"{begin}{pattern}{end}", sentence)) and (subject := about.subject(m["s"])) and not re.match(MONTH, m["p"]):
            yield Asked("whom", asked.format(s=subject), m["p"].rstrip("."))


def award(sentence: str, about: About) -> Iterator[Asked]:
    """He received the Pour le Mérite Medal -> Which award did he receive?"""
    m = re.search(
        rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:also |has |later )?(?P<v>won|received|earned|was awarded) (?:the|an?) (?P<p>(?:[A-Z0-9][\w'’.-]* )+(?:Award|Prize|Medal|Cross|Trophy|Championship|Cup|Fellowship|Title|Heart|Star))s?(?=[.,;]| (?:in|for|at|from|and|by|with|as|on)\b)",
        sentence,
    )
    if m and (subject := about.subject(m["s"])):
        asked = {"won": "did {s} win", "received": "did {s} receive", "earned": "did {s} earn", "was awarded": "was {s} awarded"}[m["v"]]
        yield Asked("award", f"Which award or title {asked.format(s=subject)}?", m["p"])


def maker(sentence: str, about: About) -> Iterator[Asked]:
    """X is a 2003 film directed by N. -> By whom was X directed?"""
    if not about.first or about.person or not re.match(rf"(?:The )?[\"']?{re.escape(about.name)}", sentence):
        return
    for m in re.finditer(rf"\b(?P<p>directed|written|produced|composed|recorded|published|released|founded|created|developed|designed|painted|built|manufactured|edited|owned|operated|hosted) (?:and (?P<q>[a-z]+ed) )?by (?P<a>(?:the )?{NAME})(?=[.,;]| (?:and (?:starring|is|was|the|its)|in|for|on|from|as|that|which|starring|featuring|with|at|between|under|during)\b)", sentence):
        yield Asked("by whom", f"By whom was {about.name} {m['p']}?", m["a"].rstrip("."))


def cloze(sentence: str, about: About) -> Iterator[Asked]:
    """A sentence with a blank where a name, a year or a number stood."""
    if not 8 <= len(sentence.split()) <= 32 or re.search(r"[\"(;:]", sentence) or not re.search(r"\b(?:is|are|was|were|has|had|[a-z]+ed)\b", sentence):
        return
    for kind, pattern in (
        ("name", rf"(?<=[a-z,] )(?P<a>(?!The |In |Mr ){WORD}(?: {WORD})+)(?=[ ,.])"),
        ("number", rf"(?<=[a-z] )(?P<a>\d{{1,3}}(?:,\d{{3}})+|(?!{YEAR})\d{{2,4}}|[2-9])(?= (?!to\b|or\b|and\b)[a-z])"),
        ("year", rf"(?<=\bin )(?P<a>{YEAR})(?=[ ,.])"),
    ):
        for m in re.finditer(pattern, sentence):
            answer, after = m["a"].rstrip("."), sentence[m.end() :]
            before = (sentence[: m.start()].split() or [""])[-1]
            apart = re.search(r"['’]s? |\b(?:Mr|Dr|St|Jr|Sr|[A-Z])$", answer) or re.match(r" (?:of|for|and [A-Z]|or [A-Z]|&)", after)
            if kind == "name" and (apart or re.search(r"['’]s?$|^of$", before) or m["a"] != answer and after):
                continue
            if sentence.count(answer) == 1 and not re.search(MONTH, answer) and not re.search(MONTH, before) and before.islower():
                also = _same_number(answer) if kind == "number" else ()
                yield Asked("fill the blank", f"Which {kind} fills the blank? {sentence.replace(answer, '____')}", answer, also)
                break


# In the order in which they are tried: what asks in plain words comes before the blanks.
FORMS: tuple[Form, ...] = (
    definition, life, located, measure, belongs, fame, acronym, education, award, whom, went, maker, agent, count, date, year,
    doer, cloze,
)  # fmt: skip
