"""What a careless or malicious file and argument look like: values, trees, bytes and words for hypothesis to draw from.

How it works: most inputs are good ones spoiled in one to three places, since what is wrong everywhere is refused at the first
byte and tests nothing behind it.
"""

import copy
import json
import os

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

WANTED = int(
    os.environ.get("QLORA_FUZZ") or 300
)  # inputs in all; `make fuzz` asks for 10,000 and new ones each time
LONG = "9" * 5000  # as an integer more digits than Python turns into one
MARK = "@a long number@"
DEPTHS = (50, 900, 3000, 100_000)


def inputs(share: float) -> hypothesis.settings:
    """Settings for a test that takes `share` of all inputs; the shares of all tests add up to a little more than 1."""
    fresh = "QLORA_FUZZ" in os.environ
    return settings(
        max_examples=max(3, round(WANTED * share)), deadline=None, derandomize=not fresh, print_blob=True,
        phases=(Phase.explicit, Phase.generate, Phase.shrink) if fresh else (Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip


# --- values ----------------------------------------------------------------------------------------

TEXTS = (
    "", " ", "\n", "\0", "a\0b", "\ud800", "x\udcff", "x" * 70_000, "<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>",
    '#import "/etc/passwd"', "#panic()", "$x^2$", "](javascript:alert(1))", "$(id)", "`id`", "{0.__class__}", "%s%n", "../../../etc/passwd",
    "/proc/self/environ", "/dev/zero", "~nosuchuser/x", "~", "--help", "-", "\x1b]0;title\x07", "\x1b[2J", "\u202egnp.exe", "\ufeff", "é" * 300,
    "𝕏", "1e400", "nan", "null", "true", "0x" + "f" * 5000, MARK,
)  # fmt: skip
NUMBERS = (
    0,
    -1,
    1,
    2**31,
    2**63,
    2**64,
    -(2**63),
    10**30,
    10**400,
    0.5,
    -0.0,
    1e308,
    5e-324,
    float("nan"),
    float("inf"),
    float("-inf"),
)
OTHERS = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"": 0},
    {"a": {"b": []}},
    ["x", 1, None],
)
values = st.one_of(
    st.sampled_from(TEXTS), st.sampled_from(NUMBERS), st.sampled_from(OTHERS).map(copy.deepcopy), st.integers(), st.floats(),
    st.text(max_size=20), st.sampled_from((5, 80)).map(lambda depth: nested(depth)),
)  # fmt: skip


def nested(depth: int):
    value: object = []
    for _ in range(depth):
        value = [value]
    return value


# --- trees -----------------------------------------------------------------------------------------


def places(tree, at=()) -> list[tuple]:
    """The way to each value of a tree of lists and dictionaries."""
    inside = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    return [
        way for key, value in inside for way in ((*at, key), *places(value, (*at, key)))
    ]


@st.composite
def spoiled(draw, tree, most: int = 3):
    """The tree with one to `most` values replaced, left out, renamed, doubled, wrapped or exchanged."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        ways = places(tree)
        if not ways:
            break
        way = draw(st.sampled_from(ways))
        holder = tree
        for key in way[:-1]:
            holder = holder[key]
        key, act = way[-1], draw(st.integers(0, 8))
        if act <= 3:
            holder[key] = draw(values)
        elif act == 4:
            del holder[key]
        elif act == 5 and isinstance(holder, dict):
            holder[draw(st.sampled_from([*TEXTS, str(key).upper(), f"{key}s"]))] = (
                holder.pop(key)
            )
        elif act == 6:
            holder[key] = [holder[key]] * draw(st.integers(1, 3))
        elif act == 7:
            other = tree
            for step in draw(st.sampled_from(ways)):
                other = (
                    other[step]
                    if not isinstance(other, dict) or step in other
                    else None
                )
                if not isinstance(other, dict | list):
                    break
            holder[key] = copy.deepcopy(other)
        else:
            holder[key] = {draw(st.sampled_from(TEXTS)): holder[key]}
    return tree


def as_json(tree, **how) -> bytes:
    """JSON's text of a tree, also of what JSON does not have: numbers of 5000 digits, NaN, half characters."""
    return (
        json.dumps(tree, **how)
        .replace(json.dumps(MARK), LONG)
        .encode("utf-8", "surrogatepass")
    )


# --- bytes -----------------------------------------------------------------------------------------

BITS = (
    b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"\xff", b"\xed\xa0\x80", b"\r", b"\r\n", b"\n", b"\t", b'"', b"\\", b"{", b"[", b",", b"\x1b[2J",
    b"\\ud800", b"NaN", b"1e999", b"-0", b"\x1a", b"\xe2\x80\xa8", b"\x85", b"}\n{", LONG.encode(), b"x" * 200_000,
)  # fmt: skip


@st.composite
def damaged(draw, data: bytes, most: int = 3) -> bytes:
    """The bytes cut off, flipped, doubled, left out, or with something put in."""
    for _ in range(draw(st.integers(1, most))):
        size = len(data)
        at, act = draw(st.integers(0, size)), draw(st.integers(0, 8))
        end = min(size, at + draw(st.sampled_from((1, 2, 7, 40, 1000))))
        if act == 0:
            data = data[:at]
        elif act <= 3:
            data = data[:at] + draw(st.sampled_from(BITS)) + data[at:]
        elif act == 4 and size:
            data = (
                data[:at]
                + draw(st.binary(min_size=1, max_size=8))
                + data[min(size, at + 8) :]
            )
        elif act == 5:
            data = data[:at] + data[end:]
        elif act == 6:
            data = data[:end] + data[at:]
        elif act == 7:
            lines = data.split(b"\n")
            line = lines[draw(st.integers(0, len(lines) - 1))]
            data = b"\n".join([*lines, *[line] * draw(st.sampled_from((1, 50)))])
        else:
            depth = draw(st.sampled_from(DEPTHS))
            opens, closes = draw(
                st.sampled_from(((b"[", b"]"), (b'{"a":', b"}"), (b"{", b"}")))
            )
            data = (
                data[:at]
                + opens * depth
                + closes * draw(st.sampled_from((0, depth)))
                + data[at:]
            )
    return data


nothing = st.sampled_from(
    (
        b"",
        b" ",
        b"\n",
        b"\0",
        b"\xef\xbb\xbf",
        b"\x1f\x8b\x08\0",
        b"PK\x03\x04",
        b"\x80\x04\x95",
        b"null",
        b"[]",
        b"{}",
        b"0",
    )
)
anything = (
    nothing
    | st.binary(max_size=200)
    | st.text(max_size=200).map(lambda s: s.encode("utf-8", "surrogatepass"))
)


def files(tree, text: bytes | None = None, **how):
    """A file of this tree, spoiled as a tree, damaged as bytes, or something else altogether."""
    good = as_json(tree, **how) if text is None else text
    return st.one_of(
        spoiled(tree).map(lambda t: as_json(t, **how)), spoiled(tree).map(lambda t: as_json(t, **how)), damaged(good), anything,
    )  # fmt: skip


def lines(rows: list, **how):
    """JSON Lines of these rows, one or more of them spoiled."""
    good = b"\n".join(as_json(row, **how) for row in rows) + b"\n"
    return st.one_of(
        spoiled(rows).map(lambda t: b"\n".join(as_json(row, **how) for row in t)),
        damaged(good),
        anything,
    )
