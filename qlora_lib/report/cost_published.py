"""Memory on GPUs as others have published it, beside what the planner says of their settings.

How it works: one block a source, with the settings that all its figures share and with what is known to differ in that
program, each difference by a letter; below it a row a figure, with its own settings, those that the source leaves open
and we assume, and, of an error above the limit, the letters that explain it, with bytes where they can be counted. Published,
predicted and measured have columns of their own; nothing here was measured by this project.
"""

from functools import cache
from string import ascii_lowercase
from typing import Any

from qlora_lib.report.formats import NBSP, NOT_MEASURED
from qlora_lib.report.grid import Table
from qlora_lib.report.values import Store
from qlora_lib.validation.errors import LIMIT
from qlora_lib.validation.published_gpu import UNITS, Compared, PublishedErrors, Source, compare_all, errors_of_published

BOUND = {"more than": "more than ", "less than": "less than ", "equals": ""}


@cache
def compared() -> tuple[Compared, ...]:
    return tuple(compare_all())


@cache
def found_errors() -> PublishedErrors:
    return errors_of_published(list(compared()))


def groups(s: Store) -> Table:
    """How large the errors are, apart for what is stated of the settings and for the format of the base."""
    rows, found = [], found_errors()
    for name, errors in found.groups.items():
        more = found.with_differences[name]

        def put(what: str, number, form: str, name=name) -> str:
            return s.put(f"gpu.errors.{name}.{what}", number, form, "predicted", {"published": "errors", "group": name, "path": what})

        rows.append((
            name[:1].upper() + name[1:], put("cases", errors.cases, "count"), put("mean", errors.mean_absolute, "percent"),
            put("worst", errors.worst, "percent_signed"), put("counted.mean", more.mean_absolute, "percent"),
            put("counted.worst", more.worst, "percent_signed"),
        ))  # fmt: skip
    columns = [("", "Figures"), ("As predicted", "Mean error"), ("As predicted", "Worst"), ("Differences counted in", "Mean error"),
               ("Differences counted in", "Worst")]  # fmt: skip
    return Table(
        "cost-published-groups", "Errors of what the planner says of published GPU memory. Predicted and published; nothing here was measured by this "
        "project.", columns, rows,
        "Error: predicted over published. Mean error: of absolute values. Left out: bounds, and figures below what the stated settings need in any case.",
        label="Figures of others", label_width=5.4,
    )  # fmt: skip


def blocks(s: Store) -> list[dict[str, Any]]:
    """By source: what all its figures share, and a row for each; every leaf is a list of pieces."""
    by_source: dict[Source, list[Compared]] = {}
    for c in compared():
        by_source.setdefault(c.figure.source, []).append(c)
    return [_block(s, i, source, rows) for i, (source, rows) in enumerate(by_source.items())]


def _block(s: Store, i: int, source: Source, rows: list[Compared]) -> dict[str, Any]:
    shared = {name: _shared(rows, name) if len(rows) > 1 else () for name in ("stated", "assumed")}
    letters = _letters(rows)
    key = f"gpu.source.{i}"
    words = f"{source.authors}: {source.title}. {source.where}. {source.date}"
    units = dict.fromkeys(f"{c.figure.unit}: {c.figure.unit_because}" for c in rows if c.figure.unit_because)
    return {
        "source": _text(s, f"{key}.name", words, source.title),
        **{name: _text(s, f"{key}.{name}", _listed(values), source.title) for name, values in shared.items()},
        "differs": _text(s, f"{key}.differs", _listed(tuple(f"({letter}) {words}" for words, letter in letters.items())), source.title),
        "unit": _text(s, f"{key}.unit", _listed(tuple(units)), source.title),
        "rows": [_row(s, c, shared, letters, above) for c, above in zip(rows, [None, *rows])],
    }


def _letters(rows: list[Compared]) -> dict[str, str]:
    """Words of a difference -> its letter, in the order in which the rows bring them."""
    words = dict.fromkeys(w for c in rows for w in (*(d.words for d in c.figure.differs), *(w for w, _ in c.differences), *c.figure.because))
    return dict(zip(words, ascii_lowercase))


def _row(s: Store, c: Compared, shared: dict[str, tuple[str, ...]], letters: dict[str, str], above: Compared | None) -> dict[str, Any]:
    f, key = c.figure, f"gpu.{c.figure.key}"
    again = above is not None and (above.figure.stated, above.figure.assumed) == (f.stated, f.assumed) != ((), ())
    own = {name: tuple(w for w in getattr(f, name) if w not in shared[name]) * (not again) for name in shared}
    printed = f"{BOUND[f.bound]}{f.value:,g}{NBSP}{f.printed or f.unit}"

    def put(what: str, number, form: str, kind: str = "predicted") -> list[dict[str, str]]:
        return [{"value": s.use(s.put(f"{key}.{what}", number, form, kind, {"published": f.key, "path": what})).key}]

    error = put("error", c.error, "percent_signed") if c.holds is None else [{"text": "holds" if c.holds else "does not hold"}]
    return {
        "what": _text(s, f"{key}.what", f.what, f.source.title),
        "stated": _text(s, f"{key}.stated", _listed(own["stated"]), f.source.title),
        "assumed": _text(s, f"{key}.assumed", _listed(own["assumed"]), f.source.title),
        "again": again,
        "why": put("why", why, "text") if (why := _why(c, letters)) else [],
        "published": _text(s, f"{key}.published", printed, f.source.title),
        "predicted": put("predicted", f"{c.predicted_bytes / UNITS[f.unit]:,.2f}{NBSP}{f.unit}", "text"),
        "error": error,
        "counted": put("with_differences", c.with_differences, "percent_signed") if c.with_differences is not None else [],
        "measured": [{"text": NOT_MEASURED}],
        "miss": c.error is not None and abs(c.error) > LIMIT,
    }


def _why(c: Compared, letters: dict[str, str]) -> str:
    """Of an error above the limit: what the settings say of it, by the letters of the source's differences."""
    if c.error is None or abs(c.error) <= LIMIT:
        return ""
    counted = [f"({letters[words]}) {n / UNITS[c.figure.unit]:+.2f}{NBSP}{c.figure.unit}".replace("-", "\u2212") for words, n in c.differences if n]
    named = " and ".join(f"({letters[words]})" for words in c.figure.because)
    parts = [c.impossible, ", ".join(counted), f"{named}, not counted" if named else None]
    parts.append("what had to be assumed" if c.figure.assumed else None)
    return _listed(tuple(part for part in parts if part)) or "not explained by the settings"


def _shared(rows: list[Compared], name: str) -> tuple[str, ...]:
    first, *rest = (getattr(c.figure, name) for c in rows)
    return tuple(word for word in first if all(word in other for other in rest))


def _listed(words: tuple[str, ...]) -> str:
    return "; ".join(words)


def _text(s: Store, key: str, words: str, document: str) -> list[dict[str, str]]:
    if not words:
        return []
    return [{"value": s.use(s.put(key, words, "text", "published", {"document": document})).key}]
