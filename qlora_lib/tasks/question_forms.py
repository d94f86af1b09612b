"""Rules that turn a sentence of an encyclopaedia into a question whose answer stands in it.

How it works: each form is a generator over (sentence, subject): where its pattern fits it yields a question and the answer,
a span of the sentence. Patterns are narrow on purpose: a sentence that fits none asks nothing. Pronouns become the
article's name; a past tense becomes an infinitive by a table of verbs (no verb outside it is asked about).
"""

import re
from collections.abc import Callable, Iterator

from qlora_lib.tasks.question_events import agent, cloze, count, date, doer, went, whom, year
from qlora_lib.tasks.question_grammar import (
    DATE,
    MONTH,
    NAME,
    PLACE,
    PREPOSITION,
    STOP,
    SUBJECT,
    YEAR,
    About,
    Asked,
    first_place,
    same_number,
)

Form = Callable[[str, About], Iterator[Asked]]


def life(sentence: str, about: About) -> Iterator[Asked]:
    """Dates behind the name of a person, and places of birth and death."""
    if not about.person:
        return
    if m := re.match(
        rf"[^()]{{3,60}} \((?:[^()]*?[;,] )?(?:born )?(?P<b>{DATE})(?: in [^()–]*?)? ?[–-] ?(?P<d>{DATE})", sentence
    ):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
        yield Asked("born or died", f"When did {about.name} die?", m["d"])
    elif m := re.match(rf"[^()]{{3,60}} \([^()]*?\b(?:born|b\.)(?: on)? (?P<b>{DATE})", sentence):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
    elif m := re.search(rf"\b(?:[Hh]e|[Ss]he|{re.escape(about.name.split()[-1])}) was born on (?P<b>{DATE})", sentence):
        yield Asked("born or died", f"When was {about.name} born?", m["b"])
    who = rf"\b(?:[Hh]e|[Ss]he|{re.escape(about.name.split()[-1])})"
    if m := re.search(
        rf"{who} was born (?:on [^,;.]*?,? |[^,;.]*? )??(?:in|at) (?P<p>{PLACE})(?=[.,;]| (?:in|on|to|and|as|where|into|with)\b)",
        sentence,
    ):
        yield Asked("where", f"Where was {about.name} born?", m["p"].rstrip("."), first_place(m["p"]))
    if m := re.search(
        rf"{who} died (?:on [^,;.]*?,? |[^,;.]*? )??(?:in|at) (?P<p>{PLACE})(?=[.,;]| (?:in|on|and|at|of|from|where)\b)",
        sentence,
    ):
        if not re.match(MONTH, m["p"]):
            yield Asked("where", f"Where did {about.name} die?", m["p"].rstrip("."), first_place(m["p"]))


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
    if (
        not 2 <= len(np.split()) <= 9
        or PREPOSITION.search(np)
        or np.endswith("ly")
        or np.split()[-1] in ("one", "name", "part", "member", "only", "time")
    ):
        return
    longer = re.split(r"[,(\";]", m["np"])[0].strip()
    thing = ("the " if m["the"] and not about.name.startswith("The ") else "") + about.name
    word = "Who" if about.person else "What"
    yield Asked("definition", f"{word} {m['v']} {thing}?", np, (longer,) if len(longer.split()) <= 14 else ())


def measure(sentence: str, about: About) -> Iterator[Asked]:
    """Populations, areas, lengths: What is the population of X?"""
    if m := re.search(
        r"\bpopulation (?:of|was|is|stood at) (?:about |approximately |around |some )?(?P<n>\d{1,3}(?:,\d{3})+"
        r"|\d{3,})\b(?! (?:in the|households))",
        sentence,
    ):
        if about.first and len(re.findall(r"\bpopulation\b", sentence)) == 1:
            yield Asked("measure", f"What population is given for {about.name}?", m["n"], same_number(m["n"]))
    if m := re.search(
        r"\b(?P<w>length|size|height|diameter) of (?:the|its) (?P<t>shell|wingspan|body|forewings?) (?:attains|reaches"
        r"|is|varies between|is between) (?P<n>\d[\d.]* ?(?:mm|cm|m)(?: and \d[\d.]* ?(?:mm|cm|m))?)",
        sentence,
    ):
        yield Asked("measure", f"What is the {m['w']} of the {m['t']} of {about.name}?", m["n"])
    if m := re.search(
        r"\b[Tt]he (?P<t>shell size|wingspan) (?:is|attains|varies between|reaches) (?:about )?(?P<n>\d[\d.–-]* ?(?:mm"
        r"|cm)(?: and \d[\d.]* ?(?:mm|cm))?)",
        sentence,
    ):
        yield Asked("measure", f"What is the {m['t']} of {about.name}?", m["n"])
    if m := re.search(
        r"\barea (?:of|is|was) (?:about |approximately )?(?P<n>\d[\d,.]* ?(?:km²|km2|square kilometers|square"
        r" kilometres|square miles|hectares|acres))",
        sentence,
    ):
        if about.first:
            yield Asked("measure", f"What area is given for {about.name}?", m["n"])


def located(sentence: str, about: About) -> Iterator[Asked]:
    """X is a village in Y -> Where is X? Species: Where is it found?"""
    last = re.escape(about.name.split()[-1])
    m = re.match(
        rf"[^,;:]{{0,60}}?{last}(?: \([^)]*\))?,? is an? [^,.;]{{0,50}}?\b(?:village|town|city|municipality|commune"
        rf"|suburb|neighbou?rhood|district|river|lake"
        rf"|mountain|island|hamlet|parish|county|airport|airstrip|station|school|church|museum|bridge|road|castle"
        rf"|locality|creek|settlement|community)"
        rf" (?:located |situated )?(?:in|on|near) (?P<p>(?:the )?[^.;]{{3,70}}?)(?=[.;(]|, (?:and|which|with|that|it"
        rf"|the)\b| (?:and|that|which|with|where|on|near|about)\b)",
        sentence,
    )
    if m and about.first and not about.person:
        yield Asked("where", f"Where is {about.name}?", m["p"].strip(" ,"), first_place(m["p"].strip(" ,")))
    m = re.search(
        r"(?:[Tt]h(?:is|e) (?:marine )?species|^It|\w+) (?:is found|occurs|is distributed|is endemic|lives|is native)"
        r" (?:in|off|to|along|from) (?P<p>(?:the )?[A-Z][^;.:(]{2,70}?)(?=[.;(]|, where\b| where\b| and (?:is|has"
        r"|was)\b)",
        sentence,
    )
    if m and not about.person and len(m["p"].split()) <= 10 and not re.search(rf"{MONTH}|{YEAR}", m["p"]):
        yield Asked("where", f"Where is {about.name} found?", m["p"].strip(" ,"))


def belongs(sentence: str, about: About) -> Iterator[Asked]:
    """... in the family Costellariidae -> To which family does X belong?"""
    if m := re.search(r"\b(?:in|of|to) the (?P<w>family|genus|subfamily|order|tribe) (?P<f>[A-Z][a-z]+)", sentence):
        if about.first and not about.person and m["f"] != about.name:
            yield Asked("belongs to", f"To which {m['w']} does {about.name} belong?", m["f"])


def fame(sentence: str, about: About) -> Iterator[Asked]:
    if about.first and (
        m := re.search(
            r"\b(?P<b>best|mainly|primarily|most) known for (?P<k>[^.;(]{5,90}?)(?=[.;(]|, (?:and|which|but)\b)", sentence
        )
    ):
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
        rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:also )?(?P<v>attended|graduated from|studied at|was educated at|received"
        rf" (?:his|her) [A-Za-z. ]{{2,30}} from|earned (?:his|her|a|an) [A-Za-z.' ]{{2,40}} from)"
        rf" (?P<p>(?:the )?{NAME}){STOP}",
        sentence,
    )
    if (
        m
        and about.person
        and (subject := about.subject(m["s"]))
        and re.search(r"Universit|College|School|Academy|Institute|Conservator", m["p"])
    ):
        verb = m["v"]
        asked = {
            "attended": "did {s} attend",
            "studied at": "did {s} study at",
            "graduated from": "did {s} graduate from",
            "was educated at": "was {s} educated at",
        }
        if verb in asked:
            yield Asked("education", f"Which school or university {asked[verb].format(s=subject)}?", m["p"].rstrip("."))
        else:
            what = verb.split(" ", 2)[2].removesuffix(" from")
            yield Asked(
                "education",
                f"From which school or university did {subject} {'receive' if verb.startswith('received') else 'earn'}"
                f" {verb.split()[1]} {what}?",
                m["p"].rstrip("."),
            )


def award(sentence: str, about: About) -> Iterator[Asked]:
    """He received the Pour le Mérite Medal -> Which award did he receive?"""
    m = re.search(
        rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:also |has |later )?(?P<v>won|received|earned|was awarded) (?:the|an?)"
        rf" (?P<p>(?:[A-Z0-9][\w'’.-]* )+(?:Award|Prize|Medal|Cross|Trophy|Championship|Cup|Fellowship|Title|Heart"
        rf"|Star))s?(?=[.,;]| (?:in|for|at|from|and|by|with|as|on)\b)",
        sentence,
    )
    if m and (subject := about.subject(m["s"])):
        asked = {
            "won": "did {s} win",
            "received": "did {s} receive",
            "earned": "did {s} earn",
            "was awarded": "was {s} awarded",
        }[m["v"]]
        yield Asked("award", f"Which award or title {asked.format(s=subject)}?", m["p"])


def maker(sentence: str, about: About) -> Iterator[Asked]:
    """X is a 2003 film directed by N. -> By whom was X directed?"""
    if not about.first or about.person or not re.match(rf"(?:The )?[\"']?{re.escape(about.name)}", sentence):
        return
    for m in re.finditer(
        rf"\b(?P<p>directed|written|produced|composed|recorded|published|released|founded|created|developed|designed"
        rf"|painted|built|manufactured|edited|owned|operated|hosted) (?:and (?P<q>[a-z]+ed) )?by (?P<a>(?:the"
        rf" )?{NAME})(?=[.,;]| (?:and (?:starring|is|was|the|its)|in|for|on|from|as|that|which|starring|featuring|with"
        rf"|at|between|under|during)\b)",
        sentence,
    ):
        yield Asked("by whom", f"By whom was {about.name} {m['p']}?", m["a"].rstrip("."))


# In the order in which they are tried: what asks in plain words comes before the blanks.
FORMS: tuple[Form, ...] = (
    definition, life, located, measure, belongs, fame, acronym, education, award, whom, went, maker, agent, count, date, year,
    doer, cloze,
)  # fmt: skip
