"""Every figure that the report prints, each with where it came from.

How it works: text and tables name values by key, and the `Store` makes a value when it is first named:

    <arm>.<field path>[@format]          measured, or a setting:   qlora.size_bytes.total@mib
    published.<table>.<row>.<column>     printed by the study:     published.10.perplexity.qlora
    reference.<name>                     printed by another document
    bench.<allocator>.<path>[@format]    of `qlora bench`:         bench.keep.settings.repeats
    sweep.<arm>.<path>, task.<arm>.<path>, swept.<arm>.<path>     of a sweep, a task's arm, a sweep on a task
    <any name given to `derive`>         computed from other keys by a function of derive.py
    <any name given to `put`>            of a page wing that has no records of runs: predicted, validated, audited

An arm that did not run, or a null field, gives a value that prints "not measured". A name that is no
field, no cell and no derived value is an error, so a slip of the pen cannot reach the page.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args, get_origin

from qlora_lib import analysis
from qlora_lib.analysis import Aspect
from qlora_lib.claims.record import AuditRecord
from qlora_lib.errors import QloraError, nearest
from qlora_lib.published import REFERENCES, TABLES, Cell
from qlora_lib.records import RunRecord
from qlora_lib.report.benches import ALLOCATORS, Benches, check_path, flat
from qlora_lib.report.derive import FUNCTIONS
from qlora_lib.report.formats import FORMATS, NOT_MEASURED, show
from qlora_lib.studies import Studies
from qlora_lib.validation.record import ValidationRecord

# predicted: by qlora_lib.cost, an error of it included; audited: words and counts of the audit; named: a name or a count
# of cases beside them
Kind = Literal["measured", "published", "setting", "derived", "predicted", "audited", "named"]

# The arms that the text speaks of. A profile may name its arms otherwise: see `Store.arm`.
ROLES = (
    "base", "base-int8", "base-nf4", "base-nf4dq", "base-fp4", "full", "lora", "qlora",
    "qlora-checkpointing", "full-nf4dq", "lora-nf4dq", "any",
)  # fmt: skip

# How a field prints where the key names no format. Ordered: the first pattern that matches counts.
FIELD_FORMATS = (
    (r"settings\..*", "plain"),
    (r"provenance\.memory_bytes", "gib_unit"),
    (r"(size_bytes\..*|.*_bytes)", "mib"),
    (r"(hardware_)?flops_per_step", "tflop"),
    (r"peak\.flops_per_second", "gflops_unit"),
    (r"(mfu|hfu)", "percent2"),
    (r"perplexity\.(before|after)", "decimal2"),
    (r"train\.(seconds|seconds_per_step)|generation\.(latency|first_token)_seconds", "seconds"),
    (r"(train|generation)\.tokens_per_second", "rate"),
    (r"provenance\.finished", "date"),
    (r"provenance\.(cache_key|git_commit)", "short"),
    (r"provenance\.wall_seconds", "seconds_unit"),
    (r"perplexity\.window_nll_.*|generation\.repeats", "numbers"),
    (r"train\.(loss|eval_loss|eval_steps|seconds_per_step_quartiles)", "numbers"),
    (r"seed", "plain"),
)


@dataclass(frozen=True)
class Value:
    key: str
    text: str
    kind: Kind
    source: dict[str, Any]
    number: Any  # what was formatted; None where nothing was measured

    @property
    def measured(self) -> bool:
        return self.number is not None

    def as_json(self) -> dict[str, Any]:
        return {"text": self.text, "kind": self.kind, "source": self.source}


class Store:
    """The values of one report, by key; `records` by arm name, in the profile's order; `benches` by allocator."""

    def __init__(
        self,
        records: dict[str, RunRecord],
        rates_searched: bool = False,
        benches: Benches | None = None,
        studies: Studies | None = None,
        validation: ValidationRecord | None = None,
        audit: AuditRecord | None = None,
    ):
        self.records = records
        self.validation = validation
        self.audit = audit
        self.benches = benches or {}
        self.studies = studies or Studies()
        self.rates_searched = rates_searched  # whether each method's learning rate was chosen by a search
        self.values: dict[str, Value] = {}
        self.used: set[str] = set()  # keys that the document prints
        self._bench_fields = {allocator: flat(bench) for allocator, bench in self.benches.items()}
        self._fields = {name: r.model_dump(by_alias=True, mode="json") for name, r in records.items()}
        self._studied = {  # the records of the studies, by the prefix of their keys
            prefix: {name: r.model_dump(by_alias=True, mode="json") for name, r in found.items()}
            for prefix, found in (
                ("sweep", self.studies.sweeps), ("task", self.studies.tasks), ("swept", self.studies.swept_tasks)
            )
        }  # fmt: skip

    def arm(self, role: str) -> str | None:
        """The arm that plays `role`: of that name, else the first that trains by that method.
        The role `any` speaks of what all arms share; the first record plays it."""
        if role in self.records:
            return role
        if role == "any":
            return next(iter(self.records))
        same = (r.arm for r in self.records.values() if r.method == role and r.method != "base")
        return next(same, None)

    def record(self, role: str) -> RunRecord | None:
        return self.records.get(self.arm(role))

    def has(self, *keys: str) -> bool:
        """Whether every one of these was measured."""
        return all(self.get(key).measured for key in keys)

    def number(self, key: str) -> Any:
        return self.get(key).number

    def get(self, key: str) -> Value:
        if key not in self.values:
            self.values[key] = self._make(key)
        return self.values[key]

    def derive(
        self,
        key: str,
        function: str,
        inputs: Iterable[str],
        form: str,
        comparing: tuple[str, str, Aspect] | None = None,
    ) -> Value:
        """Name a value computed from others. None where an input is None, or where `comparing`
        names two arms that analysis.py does not let stand beside each other in that aspect."""
        inputs = list(inputs)
        numbers = [self.number(k) for k in inputs]
        missing = any(n is None for n in numbers) or (comparing and self.why_not(*comparing))
        number = None if missing else FUNCTIONS[function](*numbers)
        source = {"function": function, "inputs": inputs, "format": form}
        value = Value(key, show(number, form), "derived", source, number)
        if self.values.setdefault(key, value) != value:
            raise QloraError(f"the report derives '{key}' in two ways")
        return value

    def put(self, key: str, number: Any, form: str, kind: Kind, source: dict[str, Any]) -> str:
        """Name a value that is neither a record's field nor computed from others; `source` says where to find it again.
        Returns the key."""
        value = Value(key, show(number, form), kind, source | {"format": form}, number)
        if self.values.setdefault(key, value) != value:
            raise QloraError(f"the report has two values '{key}'")
        return key

    def use(self, key: str) -> Value:
        """`get`, for printing: only used values go into the report's data."""
        value = self.get(key)
        self.used.add(key)
        return value

    def printed(self) -> dict[str, Value]:
        """The values that the document prints and, so that each can be checked, all that they are
        computed from."""
        found: dict[str, Value] = {}
        waiting = sorted(self.used)
        while waiting:
            value = self.get(waiting.pop())
            if value.key not in found:
                found[value.key] = value
                waiting += value.source.get("inputs", [])
        return dict(sorted(found.items()))

    def alias(self, key: str, candidates: Iterable[str]) -> None:
        """Name the first of `candidates` that was measured, else the first."""
        values = [self.get(c) for c in candidates]
        found = next((v for v in values if v.measured), values[0])
        self.values[key] = replace(found, key=key)

    def fields(self, arm: str) -> dict[str, Any]:
        """An arm's record as plain data, as its JSON holds it."""
        return self._fields[arm]

    def why_not(self, one: str, other: str, aspect: Aspect) -> str | None:
        """Why two arms cannot be compared, or None when they can."""
        a, b = self.record(one), self.record(other)
        if a is None or b is None:
            return f"there is no record of {one if a is None else other}"
        return analysis.why_not(a, b, aspect)

    def deployed(self, role: str) -> str:
        """Key of the perplexity of what the arm delivers: after training, else of the loaded base."""
        record = self.record(role)
        trained = record is None or record.train is not None
        return f"{role}.perplexity.{'after' if trained else 'before'}"

    def windows(self, role: str) -> str:
        """Key of the windows' losses behind `deployed`."""
        return self.deployed(role).replace("perplexity.", "perplexity.window_nll_")

    def _make(self, key: str) -> Value:
        head, _, rest = key.partition(".")
        if head == "published" and (cell := _published(rest)):
            return _printed(key, cell)
        if head == "reference" and rest in REFERENCES:
            return _printed(key, REFERENCES[rest])
        if rest and (head in ROLES or head in self.records):
            return self._field(key, head, rest)
        if arm := _longest(key, self.records):  # a name with a dot in it
            return self._field(key, arm, key[len(arm) + 1 :])
        if arm := _longest(rest, self._studied.get(head, ())):
            return self._of_study(key, head, arm, rest[len(arm) + 1 :])
        allocator, _, path = rest.partition(".")
        if head == "bench" and allocator in ALLOCATORS and path:
            return self._bench(key, allocator, path)
        known = [*self.values, *(f"reference.{k}" for k in REFERENCES)]
        raise QloraError(f"the report has no value '{key}'", nearest(key, known))

    def _bench(self, key: str, allocator: str, path: str) -> Value:
        path, _, form = path.partition("@")
        check_path(key, path)
        number = self._bench_fields.get(allocator, {}).get(path)
        form = form or ("count" if isinstance(number, int | float) else "text")
        if form not in FORMATS:
            raise QloraError(f"the report has no format '{form}' (value '{key}')", nearest(form, FORMATS))
        kind = "setting" if path.startswith("settings.") else "measured"
        source = {"bench": allocator, "path": path, "format": form}
        return Value(key, NOT_MEASURED if number is None else show(number, form), kind, source, number)

    def _field(self, key: str, role: str, path: str) -> Value:
        arm = self.arm(role)
        return self._of_record(key, arm, self._fields.get(arm), path, {"arm": arm or role})

    def _of_study(self, key: str, study: str, arm: str, path: str) -> Value:
        return self._of_record(key, arm, self._studied[study][arm], path, {study: arm})

    def _of_record(self, key: str, arm: str | None, fields: dict | None, path: str, source: dict[str, Any]) -> Value:
        path, _, form = path.partition("@")
        _check_field(key, path)
        form = form or next((f for p, f in FIELD_FORMATS if re.fullmatch(p, path)), None)
        number = follow(fields, path) if arm else None
        form = form or ("count" if isinstance(number, int | float) else "text")
        if form not in FORMATS:
            raise QloraError(f"the report has no format '{form}' (value '{key}')", nearest(form, FORMATS))
        kind = "setting" if path.split(".")[0] in ("settings", "seed") else "measured"
        source = {**source, "path": path, "format": form}
        if number is None and (arm is None or kind == "measured"):
            return Value(key, NOT_MEASURED, kind, source, None)
        return Value(key, show(number, form), kind, source, number)


def _longest(key: str, names: Iterable[str]) -> str | None:
    """The longest name that `key` begins with, before a dot."""
    return max((name for name in names if key.startswith(f"{name}.")), key=len, default=None)


def follow(fields: Any, path: str) -> Any:
    """The field at a dotted path; None where the path ends early. An empty list counts as nothing.
    A whole number is a place in a list."""
    for part in path.split("."):
        if isinstance(fields, list):
            fields = fields[int(part)] if part.isdigit() and int(part) < len(fields) else None
            continue
        if not isinstance(fields, dict):
            return None
        fields = fields.get(part)
    return None if fields == [] else fields


def _check_field(key: str, path: str) -> None:
    """Refuse a path that no record could have; below `settings` and the like anything may stand."""
    model: Any = RunRecord
    for part in path.split("."):
        if part.isdigit():
            continue  # a place in a list
        if get_origin(model) is dict:
            model = get_args(model)[1]
            continue
        fields = getattr(model, "model_fields", None)
        if fields is None:
            return
        if part not in fields:
            raise QloraError(f"no field '{part}' of a record (value '{key}')", nearest(part, fields))
        kind = fields[part].annotation
        kinds = [kind, *(() if get_origin(kind) is dict else get_args(kind))]
        model = next((k for k in kinds if hasattr(k, "model_fields") or get_origin(k) is dict), None)


def _published(path: str) -> Cell | None:
    table, row, *column = path.split(".")
    if not table.isdigit() or int(table) not in TABLES:
        return None
    found = TABLES[int(table)]
    column = column[0] if column else "value"
    return found.cell(row, column) if row in found.rows and column in found.columns else None


def _printed(key: str, cell: Cell) -> Value:
    source = {"document": cell.document, "table": cell.table, "row": cell.row, "column": cell.column}
    return Value(key, cell.text, "published", source, cell.number)
