"""What this project promises to survive, as rows of the README's table.

How it works: a test that really causes a fault carries `@pytest.mark.promise(KEY)`. `make faults` runs all of them (`make
test` leaves out those marked `only_in_make_faults`), and at its end this plugin writes what each promise's tests came to
into `report/records/faults.json`; `python tests/promises.py` makes the README's table of that. `tests/test_promises.py`
holds the three together: no promise without a test, no row that the tests did not fill.
"""

import json
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "report" / "records" / "faults.json"
ALL = "QLORA_FAULTS"  # "all": also the tests that `make test` leaves out
BLOCK = re.compile(r"(?<=<!-- promises: made by `make faults` -->\n).*?(?=<!-- end of promises -->)", re.DOTALL)


@dataclass(frozen=True)
class Promise:
    what: str  # happens
    kept: str  # of what was computed
    then: str  # what you do


SAME = "the same command goes on"

PROMISES = {
    "killed-download": Promise("SIGKILL in a download", "the cache holds whole files or none", SAME),
    "killed-conversion": Promise("SIGKILL while weights are converted, quantized or exported", "no half-written model is ever taken for a whole one", SAME),
    "killed-training": Promise("SIGKILL in training", "all but the work since the last checkpoint (`train.save_every`)", SAME),
    "killed-checkpoint": Promise("SIGKILL while a checkpoint is written", "the checkpoint before it", SAME),
    "killed-record": Promise("SIGKILL while a record or adapter is saved", "the record is whole or absent, never twice", SAME),
    "killed-notebook": Promise("SIGKILL in a notebook", "all arms, all notebooks before it", SAME),
    "killed-pages": Promise("SIGKILL while figures, PDF or HTML are made", "all records; each page is the old or the new one", SAME),
    "asked-to-leave": Promise("Ctrl-C, SIGTERM, a closed terminal", "a checkpoint of the step that was running; all notebooks before the one that was", SAME),
    "resumed": Promise("a training that was broken off is resumed", "each loss and weight is that of the run that nobody broke off, bit for bit (CPU, equal threads)", "nothing"),
    "kernel-dies": Promise("a notebook's kernel dies", "the other notebooks; what its cells had shown, and a log; it is not taken for finished", SAME),
    "disk-full": Promise("the disk is full", "records, checkpoints, models and pages that were whole", "free some space; " + SAME),
    "memory-limit": Promise("memory runs out", "the other arms", "make the change that the message names"),
    "damaged-file": Promise("a cached model, checkpoint, record, adapter or page is truncated or altered", "everything else; what is damaged is made again, passed over, or refused by name", SAME),
    "network": Promise("the network hangs, breaks off, or serves other bytes", "what was fetched and verified", SAME),
    "two-runs": Promise("two runs in one folder, one of them killed", "each arm runs once; the other run ends the work", "nothing"),
    "read-only": Promise("a folder that cannot be written", "everything in it", "mend the folder that the message names, or name another"),
    "process-dies": Promise("one of several training processes dies", "all but the work since the last checkpoint", SAME),
    "diverges": Promise("the loss is no number, or diverges", "the last good checkpoint; the study goes on with the other arms and says so", "a lower learning rate"),
    "hostile-file": Promise("pickled code in a checkpoint, links or `..` in an archive, markup in data or model output", "your machine: nothing of it runs, nothing is written outside", "nothing"),
}  # fmt: skip


# --- the plugin ----------------------------------------------------------------------------------

_caused: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))


def pytest_collection_modifyitems(config, items):
    kept, left_out = [], []
    for item in items:
        for mark in item.iter_markers("promise"):
            if mark.args[0] not in PROMISES:
                raise pytest.UsageError(f"{item.nodeid}: no promise is called {mark.args[0]!r}")
            item.user_properties.append(("promise", mark.args[0]))
        slow = item.get_closest_marker("only_in_make_faults") and os.environ.get(ALL) != "all"
        (left_out if slow else kept).append(item)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = kept


def pytest_runtest_logreport(report):
    """`record_property("caused", n)` in a test says that it causes its fault n times; else it is once."""
    if report.when == "call" and not report.skipped or report.failed:
        properties = [*report.user_properties]
        times = next((value for name, value in properties if name == "caused"), 1)
        test = report.nodeid.split("[")[0]
        for key in (value for name, value in properties if name == "promise"):
            _caused[key][test] += [report.passed] * times


def pytest_sessionfinish(session):
    config = session.config
    whole = os.environ.get(ALL) == "all" and not config.option.keyword and not config.option.collectonly
    if not whole or hasattr(config, "workerinput"):
        return
    if missing := PROMISES.keys() - _caused.keys():
        print(f"\n{RECORD.name} is not written: no test of {', '.join(sorted(missing))} ran")
        return
    from qlora_lib import hardware
    from qlora_lib.paths import write_atomic

    record = {
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": hardware.cpu_name(),
        "platform": hardware.platform_name(),
        "versions": hardware.versions(),
        "promises": {
            key: {test: {"caused": len(held), "held": sum(held)} for test, held in sorted(_caused[key].items())} for key in PROMISES
        },
    }
    write_atomic(RECORD, json.dumps(record, indent=1) + "\n")


# --- the README's table --------------------------------------------------------------------------


def table(record: dict) -> str:
    """Markdown: what happens, what is kept, what you do, how often the tests caused it and found it so."""
    lines = ["| what happens | what is kept | what you do | caused, held |", "|---|---|---|---|"]
    for key, promise in PROMISES.items():
        tests = record["promises"][key].values()
        caused, held = (sum(test[count] for test in tests) for count in ("caused", "held"))
        lines.append(f"| {promise.what} | {promise.kept} | {promise.then} | {held} of {caused} |")
    return "\n".join([*lines, "", f"Caused by `make faults` on {record['finished'][:10]}: {record['cpu']}, {record['platform']}.", ""])


def in_readme(text: str, record: dict) -> str:
    """The README with its table made anew."""
    return BLOCK.sub(lambda _: table(record), text)


if __name__ == "__main__":
    from qlora_lib.paths import write_atomic

    readme = ROOT / "README.md"
    write_atomic(readme, in_readme(readme.read_text(encoding="utf-8"), json.loads(RECORD.read_text())))
