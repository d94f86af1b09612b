"""What the README promises is what tests cause, and its table is what they found."""

import ast
import json
from collections import defaultdict

from promises import PROMISES, RECORD, ROOT, in_readme, table


def marked() -> dict[str, set[str]]:
    """{promise: tests that carry its mark}, read from the tests' source."""
    found = defaultdict(set)
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for mark in getattr(function, "decorator_list", []):
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.promise":
                    found[mark.args[0].value].add(f"{path.relative_to(ROOT).as_posix()}::{function.name}")
    return found


def test_each_promise_has_tests_and_the_record_is_of_these():
    recorded = {key: set(tests) for key, tests in json.loads(RECORD.read_text())["promises"].items()}
    assert recorded == marked(), "run `make faults`"
    assert list(recorded) == list(PROMISES)


def test_all_that_was_caused_held():
    for key, tests in json.loads(RECORD.read_text())["promises"].items():
        for test, found in tests.items():
            assert 0 < found["held"] == found["caused"], (key, test)


def test_twenty_kills():
    record = json.loads(RECORD.read_text())["promises"]
    kills = [key for key in PROMISES if key.startswith("killed-")]
    assert len(kills) == 7
    assert sum(test["caused"] for key in kills for test in record[key].values()) >= 20


def test_the_readmes_table_is_of_the_record():
    text, record = (ROOT / "README.md").read_text(encoding="utf-8"), json.loads(RECORD.read_text())
    assert table(record) in text and in_readme(text, record) == text
    record["promises"]["network"] = {"one": {"caused": 17, "held": 16}}
    assert "| 16 of 17 |" in in_readme(text, record)
