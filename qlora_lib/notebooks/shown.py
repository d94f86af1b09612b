"""Pieces of a notebook's page: HTML or a picture where there is a browser, plain text elsewhere."""

import html
from dataclasses import dataclass

from qlora_lib import style


@dataclass(frozen=True)
class Shown:
    """A piece of a page: HTML where there is a browser, plain text elsewhere."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Picture:
    """A figure of `style.new_figure` with the words for a reader who cannot see it."""

    figure: style.Figure
    alt: str

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"image/png": style.render(self.figure, "png"), "text/plain": self.alt}
        return bundle, {"image/png": {"alt": self.alt}}


def as_table(head: list[str], rows: list[list[str]], numbers: bool = True) -> Shown:
    """Rows of texts; with `numbers`, all columns but the first are set flush right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *rows]]

    def tr(row: list[str], tag: str) -> str:
        kinds = ("", *([' class="number" style="text-align:right"' if numbers else ""] * (len(row) - 1)))
        cells = (f"<{tag}{kind}>{html.escape(c)}</{tag}>" for c, kind in zip(row, kinds))
        return f"<tr>{''.join(cells)}</tr>"

    body = "\n".join(tr(row, "td") for row in rows)
    page = f"<table>\n<thead>{tr(head, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return Shown(page, "\n".join(lines))


def paragraphs(texts: list[str], leads: list[str] | None = None) -> Shown:
    leads = leads or [""] * len(texts)
    bold = [f"<strong>{html.escape(lead)}</strong> " if lead else "" for lead in leads]
    page = "\n".join(f"<p>{b}{html.escape(text)}</p>" for b, text in zip(bold, texts))
    return Shown(page, "\n".join(f"{lead} {text}".strip() for lead, text in zip(leads, texts)))
