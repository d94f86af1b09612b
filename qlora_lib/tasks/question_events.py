"""Questions about what happened: in which year, on which date, by whom, how many, where to; and blanks to fill."""

import re
from collections.abc import Iterator

from qlora_lib.tasks.question_grammar import (
    DATE,
    MONTH,
    NAME,
    NUMBER,
    PARTICIPLES,
    PAST,
    PLACE,
    PLURAL,
    STOP,
    SUBJECT,
    WORD,
    YEAR,
    About,
    Asked,
    clause,
    first_place,
    same_number,
)


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
            tail = clause(rest.strip())
            helper = verb
        elif verb in PAST:
            tail, helper = f"{PAST[verb]} {clause(rest)}".strip(), "did"
        else:
            continue
        if (
            len(tail.split()) > 14
            or tail.endswith("ing")
            or "between" in tail
            and " and " not in tail
            or re.search(r"begin \w+ing", tail)
            or re.search(r"\d{4}", tail)
            or len(tail.split()) < (1 if helper != "did" else 2)
        ):
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
                tail, helper = clause(rest), verb
            elif verb in PAST:
                tail, helper = f"{PAST[verb]} {clause(rest)}".strip(), "did"
            else:
                continue
            if len(tail.split()) <= 14 and not re.search(r"\d{4}", tail):
                yield Asked("date", f"On which date {helper} {subject} {tail}?", m["y"])
                return


def agent(sentence: str, about: About) -> Iterator[Asked]:
    """The film was directed by N. -> By whom was the film directed?"""
    m = re.search(
        rf"^{SUBJECT} (?P<v>is|was|were) (?:[a-z]+ly )?(?P<p>[a-z]+)(?P<r> (?:in|at|for|on) [^,.;]{{3,40}}?)? by"
        rf" (?P<a>(?:the )?{NAME})(?:{STOP}|(?= (?:in|on|at|for|to|from|during|under|between)\b))",
        sentence,
    )
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
    m = re.search(
        rf"^(?:[^,]{{3,40}}, )?{SUBJECT} (?:also )?(?P<v>{'|'.join(verbs)}) (?:a total of |about |approximately |over "
        rf"|more than )?(?P<n>{NUMBER}) (?P<t>{PLURAL}(?: of [a-z][a-z -]{{2,30}})?){STOP}",
        sentence,
    )
    if m and (subject := about.subject(m["s"])):
        helper, base = verbs[m["v"]]
        yield Asked("how many", f"How many {m['t']} {helper} {subject} {base}?", m["n"], same_number(m["n"]))
        return
    m = re.search(
        rf"(?:^|, )[Tt]here (?P<v>are|were) (?:about |approximately |over |more than )?(?P<n>{NUMBER})"
        rf" (?P<t>{PLURAL})(?P<r> (?:in|on|at) [^,.;]{{3,40}})?(?=[.,;])",
        sentence,
    )
    if m:
        yield Asked("how many", f"How many {m['t']} {m['v']} there{m['r'] or ''}?", m["n"], same_number(m["n"]))


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
        if (
            (m := re.search(rf"{begin}{pattern}{end}", sentence))
            and (subject := about.subject(m["s"]))
            and not re.match(MONTH, m["p"])
        ):
            yield Asked("whom", asked.format(s=subject), m["p"].rstrip("."))


def went(sentence: str, about: About) -> Iterator[Asked]:
    """He moved to Turin -> Where did N. move?"""
    verbs = {"moved": "move", "relocated": "relocate", "emigrated": "emigrate", "immigrated": "immigrate", "fled": "flee"}
    m = re.search(
        rf"(?:^|, |and ){SUBJECT} (?:then |later |also )?(?P<v>{'|'.join(verbs)}) (?:back )?to (?P<p>{PLACE})(?=[.,;]|"
        rf" (?:in|on|to|and|as|where|with|at|when|for|from|after|because)\b)",
        sentence,
    )
    if m and (subject := about.subject(m["s"])):
        yield Asked("where", f"Where did {subject} {verbs[m['v']]}?", m["p"].rstrip("."), first_place(m["p"]))
    m = re.search(
        rf"^(?:[^,]{{0,40}}, )?{SUBJECT} (?:currently |now )?(?P<v>lives|resides|is based|was based|is headquartered"
        rf"|was headquartered|is located|was located|grew up|lived) in (?P<p>{PLACE})(?=[.,;]| (?:with|and|on|at|where"
        rf"|from|until|as|near)\b)",
        sentence,
    )
    if m and (subject := about.subject(m["s"])) and not re.match(MONTH, m["p"]):
        verb = m["v"]
        asked = {
            "lives": "does {s} live",
            "resides": "does {s} reside",
            "grew up": "did {s} grow up",
            "lived": "did {s} live",
        }.get(verb) or f"{verb.split()[0]} {{s}} {verb.split()[1]}"
        yield Asked("where", f"Where {asked.format(s=subject)}?", m["p"].rstrip("."), first_place(m["p"]))


def doer(sentence: str, about: About) -> Iterator[Asked]:
    """Dan Connor led the defence. -> Who or what led the defence?"""
    m = re.match(rf"(?P<a>(?:The )?{WORD}(?: {WORD})+) (?P<v>[a-z]+)(?P<r> [^.;:()\"]{{8,90}})\.$", sentence)
    if not m or not (m["v"] in PAST or m["v"] in ("was", "were", "is") and m["r"].split()[0] in PARTICIPLES):
        return
    if m["a"].split()[0].endswith("ly") or m["a"].split()[0] in (
        "In",
        "On",
        "At",
        "After",
        "As",
        "By",
        "During",
        "For",
        "Since",
        "When",
        "While",
        "With",
        "His",
        "Her",
        "Their",
        "This",
        "Thus",
        "Then",
        "Also",
        "However",
        "Later",
        "Both",
        "Fellow",
    ):
        return
    rest = clause(m["r"])
    if len(rest.split()) >= 3 and not re.search(r"\b(?:his|her|its|their|also|then|he|she|they|it)\b", rest):
        yield Asked("who or what", f"Who or what {'was' if m['v'] == 'were' else m['v']} {rest}?", m["a"])


def cloze(sentence: str, about: About) -> Iterator[Asked]:
    """A sentence with a blank where a name, a year or a number stood."""
    if (
        not 8 <= len(sentence.split()) <= 32
        or re.search(r"[\"(;:]", sentence)
        or not re.search(r"\b(?:is|are|was|were|has|had|[a-z]+ed)\b", sentence)
    ):
        return
    for kind, pattern in (
        ("name", rf"(?<=[a-z,] )(?P<a>(?!The |In |Mr ){WORD}(?: {WORD})+)(?=[ ,.])"),
        ("number", rf"(?<=[a-z] )(?P<a>\d{{1,3}}(?:,\d{{3}})+|(?!{YEAR})\d{{2,4}}|[2-9])(?= (?!to\b|or\b|and\b)[a-z])"),
        ("year", rf"(?<=\bin )(?P<a>{YEAR})(?=[ ,.])"),
    ):
        for m in re.finditer(pattern, sentence):
            answer, after = m["a"].rstrip("."), sentence[m.end() :]
            before = (sentence[: m.start()].split() or [""])[-1]
            apart = re.search(r"['’]s? |\b(?:Mr|Dr|St|Jr|Sr|[A-Z])$", answer) or re.match(
                r" (?:of|for|and [A-Z]|or [A-Z]|&)", after
            )
            if kind == "name" and (apart or re.search(r"['’]s?$|^of$", before) or m["a"] != answer and after):
                continue
            if (
                sentence.count(answer) == 1
                and not re.search(MONTH, answer)
                and not re.search(MONTH, before)
                and before.islower()
            ):
                also = same_number(answer) if kind == "number" else ()
                yield Asked("fill the blank", f"Which {kind} fills the blank? {sentence.replace(answer, '____')}", answer, also)
                break
