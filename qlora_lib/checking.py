"""Checking settings: YAML that is strict, dotted keys, and errors of one line that name the key.

How it works: pydantic checks a settings class; what it finds is told in the words of whoever wrote
the file: the dotted key, what was expected, what stood there, and the nearest valid key or value.
"""

import copy
import re
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from qlora_lib.errors import UsageError, nearest


MOST_VALUES = 100_000  # of a file with its aliases written out: a few lines of aliases of aliases can stand for billions
MOST_BITS = 1024  # of a whole number


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number; a key given twice, a value within itself and a bomb of aliases are errors."""

    def compose_document(self):
        node = super().compose_document()
        if _written_out(node, {}) > MOST_VALUES:
            raise yaml.composer.ComposerError(None, None, f"its aliases stand for more than {MOST_VALUES} values", node.start_mark)
        return node

    def construct_yaml_int(self, node):
        value = super().construct_yaml_int(node)
        if value.bit_length() > MOST_BITS:
            raise yaml.constructor.ConstructorError(None, None, "a whole number has too many digits", node.start_mark)
        return value

    def compose_mapping_node(self, anchor):
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (k for k, _ in node.value if isinstance(k, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key '{key.value}' is given twice", key.start_mark)
            seen.add(key.value)
        return node


def _written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node stands for; each node is looked at once."""
    if id(node) not in known:
        known[id(node)] = -1  # being looked at
        inside = [n for pair in node.value for n in pair] if isinstance(node, yaml.MappingNode) else node.value
        many = isinstance(node, yaml.CollectionNode)
        known[id(node)] = 1 + (sum(_written_out(n, known) for n in inside) if many else 0)
    elif known[id(node)] < 0:
        raise yaml.composer.ComposerError(None, None, "a value holds itself", node.start_mark)
    return known[id(node)]


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str, where: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line} is not valid YAML: {getattr(e, 'problem', e)}") from None
    except (ValueError, RecursionError) as e:  # e.g. an impossible date
        raise UsageError(f"{where} is not valid YAML: {e}") from None


def dotted_keys(model: type[BaseModel], prefix: str = "", of_type=None) -> list[str]:
    """Every settable key of a settings class (of one type), `train.max_steps` and the like."""
    keys = []
    for name, field in model.model_fields.items():
        if sub := _section_of(field.annotation):
            keys += dotted_keys(sub, f"{prefix}{name}.", of_type)
        elif of_type in (None, field.annotation):
            keys.append(prefix + name)
    return keys


def _section_of(annotation) -> type[BaseModel] | None:
    """The section class of a field that is one, optional or not; a list of sections is none."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _entry_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The class of a list's entries, where the field `name` is a list of sections."""
    field = model.model_fields.get(name)
    inside = get_args(field.annotation) if field and get_origin(field.annotation) is list else ()
    return next((k for k in inside if isinstance(k, type) and issubclass(k, BaseModel)), None)


def set_dotted(model: type[BaseModel], values: dict, key: str, value: Any, where: str) -> None:
    """Set `a.b` in nested dictionaries, refusing keys that the settings class does not have."""
    known = dotted_keys(model)
    inside = [k for k in known if k.startswith(f"{key}.")]
    if inside:
        raise UsageError(f"'{key}' in {where} is a section", f"Set its keys one by one: {', '.join(inside)}")
    if key not in known:
        raise UsageError(f"unknown key '{key}' in {where}", nearest(key, known))
    *path, last = key.split(".")
    for part in path:
        values = values[part]
    values[last] = copy.deepcopy(value)


def validate(model: type[BaseModel], values: dict, where: str):
    """The settings object, or a UsageError of one line that names the key."""
    try:
        return model.model_validate(values)
    except ValidationError as e:
        # A misspelt key is often also a missing one: the misspelling is the cause, so it is told first.
        error = min(e.errors(), key=lambda error: error["type"] != "extra_forbidden")
        loc = [str(p) for p in error["loc"] if p != "[key]"]
        key = ".".join(_by_name(model, loc, values))
        if error["type"] == "extra_forbidden":
            raise UsageError(f"unknown key '{key}' in {where}", _nearest_key(model, loc)) from None
        if error["type"] == "missing":
            raise UsageError(f"'{key}' is missing in {where}") from None
        message, hint = error["msg"].removeprefix("Value error, "), ""
        message = message[:1].lower() + message[1:]
        if error["type"] in ("model_type", "dict_type"):
            message = "expected keys and values"
        if error["type"] == "literal_error":
            close = nearest(error["input"], re.findall(r"'([^']+)'", error["ctx"]["expected"]))
            hint = close if close.startswith("Did") else ""
        shown = f", got {error['input']!r:.60}" if not isinstance(error["input"], dict) else ""
        named = f"'{key}' in {where}" if key else where
        raise UsageError(f"{named}: {message}{shown}", hint) from None


def _by_name(model: type[BaseModel], loc: list[str], values: dict) -> list[str]:
    """`arms.2.label` with the entry's name in place of its number, where it has one."""
    if len(loc) < 2 or _entry_of(model, loc[0]) is None:
        return loc
    entry = values[loc[0]][int(loc[1])]
    name = entry.get("name") if isinstance(entry, dict) else None
    return [loc[0], str(name or loc[1]), *loc[2:]]


def _nearest_key(model: type[BaseModel], loc: list[str]) -> str:
    *parents, last = loc
    prefix = ".".join(parents)
    if parents and (entry := _entry_of(model, parents[0])):
        return nearest(last, entry.model_fields)
    keys = [*dotted_keys(model), *model.model_fields]
    if misplaced := [k for k in keys if k.endswith(f".{last}")]:  # right, but for its section
        return nearest(last, misplaced)
    here = [k for k in keys if k.startswith(prefix + ".")] if prefix else list(model.model_fields)
    hint = nearest(".".join(loc), here or keys)
    return hint if hint.startswith("Did") else nearest(".".join(loc), keys)
