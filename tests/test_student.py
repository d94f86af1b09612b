"""The copy of the course that a student gets, and the list of lessons."""

import json
import re

import nbformat
import pytest

from qlora_lib.course import student
from qlora_lib.course.student import lessons, write_student_copy
from qlora_lib.errors import UsageError
from qlora_lib.notebooks.runner import choose


def test_the_copy_has_every_lesson_and_no_solution(tmp_path):
    written = write_student_copy(tmp_path / "handout")
    assert sorted(p.name for p in written) == sorted([*(p.name for p in choose()), "README.md"])
    assert sorted(p for p in (tmp_path / "handout").rglob("*")) == sorted(written)
    for path in written:
        text = path.read_text()
        assert "solutions/" not in text and "<!-- teacher" not in text, path.name
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            assert link.startswith(("https://", "#")) or (path.parent / link).is_file(), f"{path.name}: {link}"
        if path.suffix == ".ipynb":
            nbformat.validate(nbformat.read(path, as_version=4))


def test_links_out_of_the_copy_lead_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    lesson = tmp_path / "notebooks" / "01_a.ipynb"
    lesson.write_text('{"cells": [{"source": ["# A\\n", "[how](../docs/INSTALL.md)"]}]}')
    (tmp_path / "notebooks" / "README.md").write_text("a\n<!-- teacher -->\nsecret\n<!-- /teacher -->\nb\n")
    monkeypatch.setattr(student, "choose", lambda: [lesson])
    write_student_copy(tmp_path / "out")
    assert re.search(r"\[how\]\(https://github.com/[\w/-]+/blob/main/docs/INSTALL.md\)", (tmp_path / "out" / "01_a.ipynb").read_text())
    assert (tmp_path / "out" / "README.md").read_text() == "a\nb\n"
    json.loads((tmp_path / "out" / "01_a.ipynb").read_text())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(UsageError, match="is there already, and not an empty folder. Give a new folder"):
        write_student_copy(tmp_path / "full")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is there already"):
        write_student_copy(tmp_path / "file")
    with pytest.raises(UsageError, match="lies inside the course"):
        write_student_copy(choose()[0].parent / "handout")
    assert write_student_copy(tmp_path / "new" / "deep")


def test_lessons_are_listed_with_their_exercises():
    found = {lesson.number: lesson for lesson in lessons()}
    assert found["00"].title and [n for n in found] == sorted(found)
    for path in choose():
        number = path.name.split("_")[0]
        text = path.read_text()
        assert found[number].exercises == len(set(re.findall(rf'check\(\\"({number}\.\d+)', text))), path.name
