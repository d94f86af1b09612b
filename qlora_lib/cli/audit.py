"""The command that audits: every claim of the five documents with its verdict."""

import shutil
import textwrap

import click

from qlora_lib.cli.base import cli, json_option, print_json, use_threads
from qlora_lib.errors import UsageError, nearest

MARKS = {"holds": "ok", "holds under an assumption": "if", "does not hold": "no", "cannot be checked here": "??"}
WIDEST = 110


@cli.command()
@click.option("--document", help="One document only: study, readme, demo, guide, qwen or across.")
@click.option("--verdict", help='One verdict only, e.g. "does not hold", or its beginning.')
@click.option("--only", multiple=True, metavar="ID", help="One claim, or all whose ids begin so, e.g. study-mfu; may be repeated.")
@json_option
def audit(document: str | None, verdict: str | None, only: tuple[str, ...], as_json: bool) -> None:
    """Recompute every claim of the five documents that this project began from, and say which hold.

    Nothing is downloaded. A verdict follows from the quoted figure and the recomputed one.

    \b
    Examples:
      qlora audit
      qlora audit --document guide --verdict "does not hold"
      qlora audit --only study-flops --json
    """
    from qlora_lib import claims

    wanted = _verdict(verdict, claims.VERDICTS)
    ids = _ids(claims.all_claims(), document, only, tuple(claims.DOCUMENTS))
    use_threads()
    found = [a for a in claims.audit(ids) if wanted in (None, a.finding.verdict)]
    if as_json:
        print_json(claims.as_json(found))
        return
    width = min(shutil.get_terminal_size().columns, WIDEST)
    shown = None
    for a in found:
        if a.claim.document != shown:
            shown = a.claim.document
            click.echo(("\n" if a is not found[0] else "") + _heading(claims.DOCUMENTS[shown], width))
        click.echo(_text(a, width))
    click.echo("\n" + _wrapped(summary(claims.counts(found)), width))


def summary(counts: dict[str, int]) -> str:
    """How many claims there are, and how many of each verdict, in one line."""
    parts = "; ".join(f"{verdict}: {n}" for verdict, n in counts.items() if n)
    total = sum(counts.values())
    return f"{total} {'claim' if total == 1 else 'claims'}.{f' {parts[0].upper()}{parts[1:]}.' if parts else ''}"


def _verdict(text: str | None, verdicts: tuple[str, ...]) -> str | None:
    if text is None or text in verdicts:
        return text
    found = [v for v in verdicts if text and v.startswith(text)]
    if len(found) != 1:
        raise UsageError(f"no verdict '{text}'", nearest(text, verdicts))
    return found[0]


def _ids(known: dict, document: str | None, only: tuple[str, ...], documents: tuple[str, ...]) -> list[str]:
    if document is not None and document not in documents:
        raise UsageError(f"no document '{document}'", nearest(document, documents))
    for beginning in only:
        if not any(id.startswith(beginning) for id in known):
            raise UsageError(f"no claim '{beginning}'", nearest(beginning, known))
    return [
        id for id, claim in known.items()
        if document in (None, claim.document) and (not only or any(id.startswith(b) for b in only))
    ]  # fmt: skip


def _heading(document, width: int) -> str:
    by = f"{' and '.join(document.authors)}: " if document.authors else ""
    return _wrapped(f"{by}{document.title} ({document.about})", width) + "\n" + "-" * width


def _text(a, width: int) -> str:
    head = f"{MARKS[a.finding.verdict]}  {a.claim.id}  {a.claim.section}: \"{a.claim.quote}\""
    body = f"{a.finding.verdict}: {a.finding.recomputed}. {a.finding.explanation}"
    return _wrapped(head, width, "    ") + "\n" + _wrapped(body, width, "    ", "    ")


def _wrapped(text: str, width: int, later: str = "", first: str = "") -> str:
    return textwrap.fill(text, max(width, 30), initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
