"""What every exercise's tests ask of its checker: a mistake is named, a right answer is accepted, and both are drawn."""

from qlora_lib.course.answers import check


def rejected(key, answer, mistake, **given):
    verdict = check(key, answer, **given)
    assert not verdict.correct and verdict.picture is not None
    assert verdict.message.startswith(mistake), verdict.message


def accepted(key, answer, **given):
    verdict = check(key, answer, **given)
    assert verdict.correct and verdict.message and verdict.picture is not None, verdict
