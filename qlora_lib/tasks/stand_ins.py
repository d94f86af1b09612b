"""Task sets that need no hub: what each is made of, and by which module."""

from pathlib import Path

from qlora_lib.tasks.articles import read_articles
from qlora_lib.tasks.examples import Example
from qlora_lib.tasks.questions import make_questions
from qlora_lib.tasks.reviews import make_reviews
from qlora_lib.tasks.wiki_instructions import make_instructions


def make(name: str, path: Path) -> tuple[dict[str, list[Example]], dict[str, int]]:
    """({split: examples}, rows or articles left out by reason) of a registered stand-in, from its source file."""
    if name == "film-reviews":
        return make_reviews(path)
    articles, left_out = read_articles(path)
    build = make_questions if name == "wikipedia-questions" else make_instructions
    if name == "wikipedia-alpaca":
        return {"test": build(articles["test"])}, {}
    return {split: build(some) for split, some in articles.items()}, left_out
