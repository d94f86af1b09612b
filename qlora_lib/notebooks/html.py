"""An executed notebook as one HTML file that reads the same with no network.

How it works: nbconvert renders the cells; the page around them is ours, so there is no script, no
font and no style to load. Formulas become MathML, which browsers draw by themselves; pictures are
inside the file; a remote picture (the Colab badge) becomes its own text, and a link to another
notebook leads to that notebook's HTML.
"""

import html
import re
from pathlib import Path

import nbformat
from jinja2 import pass_context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter

from qlora_lib.errors import QloraError

REMOTE = re.compile(r"[a-z][a-z0-9+.-]*:|//", re.IGNORECASE)

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; max-width: 47rem; padding: 1.5rem 1.2rem 4rem; color: #1a1a1a;
  background: #fff; font: 1rem/1.6 system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: .4rem 0 1rem; }
h2 { font-size: 1.35rem; margin: 2.6rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid #d9d9d9; }
h3 { font-size: 1.08rem; margin: 1.6rem 0 .4rem; }
a { color: #0a5a9c; }
pre, code { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
code { font-size: .87em; background: #f3f4f6; padding: .08em .3em; border-radius: 3px; }
pre { font-size: .8rem; line-height: 1.45; margin: 0; overflow-x: auto; }
pre code { background: none; padding: 0; font-size: inherit; }
.prompt { display: none; }
.input_area { background: #f6f7f9; border-left: 3px solid #0072b2; border-radius: 3px;
  padding: .65rem .9rem; margin: .7rem 0; }
.text_cell_render .highlight, .text_cell_render > pre { background: #f6f7f9;
  padding: .65rem .9rem; border-radius: 3px; }
.output_area { margin: .5rem 0; overflow-x: auto; }
.output_text pre, .output_stream pre { white-space: pre-wrap; overflow-wrap: anywhere;
  max-height: 34rem; overflow-y: auto; padding: .1rem .9rem; border-left: 3px solid #d9d9d9; }
.output_stderr pre { color: #5f5f5f; }
.output_error pre { color: #a40000; border-left-color: #d55e00; }
.output_html { border-left: 3px solid #d9d9d9; padding: .05rem .9rem; }
.output_png { padding: .2rem 0; }
.output_png img { max-width: 100%; height: auto; }
table { border-collapse: collapse; margin: .6rem 0; font-size: .87rem; line-height: 1.4; }
th, td { padding: .28rem .7rem .28rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1.5px solid #8c8c8c; font-weight: 600; }
th.number, td.number { text-align: right; padding: .28rem 0 .28rem .9rem;
  font-variant-numeric: tabular-nums; }
td.number { white-space: nowrap; }
th.number { vertical-align: bottom; }
caption { caption-side: bottom; text-align: left; color: #5f5f5f; font-size: .82rem;
  padding-top: .4rem; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; background: #fff8e6;
  border-left: 3px solid #e69f00; }
math[display="block"] { margin: .9rem 0; font-size: 1.08rem; overflow-x: auto; }
@media print { .input_area, .output_area { break-inside: avoid; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def to_html(path: Path) -> str:
    """The page of one executed notebook; its title is the first heading."""
    notebook = nbformat.read(path, as_version=4)
    heading = next((m[1] for c in notebook.cells if (m := re.match(r"# (.+)", c.source))), path.stem)
    body, _ = _Exporter(template_name="basic").from_notebook_node(notebook)
    style = STYLE + HtmlFormatter(style="default").get_style_defs(".highlight")
    style = style.replace(".highlight { background: #f8f8f8; }", "")
    return PAGE.format(title=html.escape(heading), style=style, body=body)


class _Exporter(HTMLExporter):
    """nbconvert's exporter with our rendering of Markdown."""

    @pass_context
    def markdown2html(self, context, source: str) -> str:
        return MarkdownWithMath(renderer=_Renderer(escape=False, exclude_anchor_links=True)).render(source)


class _Renderer(IPythonRenderer):
    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def image(self, text: str, url: str, title: str | None = None) -> str:
        return html.escape(text) if REMOTE.match(url) else super().image(text, url, title)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        if not REMOTE.match(url):
            url = re.sub(r"\.ipynb(?=$|#)", ".html", url)
        return super().link(text, url, title)


def _mathml(latex: str, display: str) -> str:
    latex = latex.strip()
    try:
        mathml = convert(latex, display=display)
    except Exception as e:  # latex2mathml raises a family of its own, and IndexError
        raise QloraError(f"a formula cannot be turned into MathML: {latex!r} ({type(e).__name__})") from None
    if unknown := re.search(r"\\[A-Za-z]+", mathml):  # a command that it does not know is passed through
        raise QloraError(f"a formula cannot be turned into MathML: {latex!r} (unknown {unknown[0]})")
    return mathml
