"""Claims about `qlora bench`'s ratios, and the cases in which they were measured.

How it works: a case is a setting of the allocator and, in training, a shape of a step. Every case goes one way, by the
quartiles of its paired repeats; `outcome` takes the sentence for the way that all go, marks the cases that show no
difference, and has a sentence of its own for cases that go both ways.
"""

from qlora_lib.report import reading
from qlora_lib.report.values import Store

ALLOCATOR = {"default": "with the default allocator", "keep": "with freed memory kept"}
STACK = {"stock": "the stock stack", "fast": "this library"}


def cases(s: Store, ratio: str) -> list[tuple[str, str, str]]:
    """(which way, key of the ratio, where in words) of every case; `ratio` may hold {shape}."""
    return [case for a in s.benches for case in _cases_of(s, a, ratio)]


def _cases_of(s: Store, a: str, ratio: str) -> list[tuple[str, str, str]]:
    shapes = list(enumerate(s.benches[a].shapes)) if "{shape}" in ratio else [(None, "")]
    out = []
    for i, shape in shapes:
        name = ratio.replace("{shape}", shape)
        if way := reading.bench(s, a, name):
            key = f"bench.{a}.ratio_details.{name}.value@times"
            out.append((way, key, "" if i is None else f" at {{bench.{a}.settings.shapes.{i}@shape}}"))
    return out


def amounts(s: Store, ratio: str, mark: bool = False) -> str:
    """The ratio of every case, with where it was found; `mark` those that show no difference."""
    parts = []
    for a in s.benches:
        if of_one := _cases_of(s, a, ratio):
            unclear = {"same": " (no difference shown)"} if mark else {}
            listed = " and ".join(f"{{{key}}}{where}{unclear.get(way, '')}" for way, key, where in of_one)
            parts.append(f"{listed} {ALLOCATOR[a]}")
    return "; ".join(parts)


def outcome(s: Store, ratio: str, higher: str, lower: str, same: str, mixed: str) -> str | None:
    """The sentence for the way that the cases go, or the one for cases that go both ways; {how} is filled with amounts."""
    ways = {way for way, *_ in cases(s, ratio)}
    if not ways:
        return None
    shown = ways - {"same"} or ways
    text = {"higher": higher, "lower": lower, "same": same}[shown.pop()] if len(shown) == 1 else mixed
    return text.replace("{how}", amounts(s, ratio, mark=len(ways) > 1))


def against_stock(s: Store, ratio: str, what: str) -> str | None:
    """How this library does `what` in place of the stock stack."""
    return outcome(
        s, ratio,
        f"{what} this library is faster than the stock stack: {{how}}.",
        f"{what} this library is slower than the stock stack: {{how}}.",
        f"{what} no difference between this library and the stock stack is shown: {{how}}.",
        f"{what} it depends on the case which of the two is faster: {{how}}.",
    )  # fmt: skip


def turned_round(s: Store) -> bool:
    """Whether QLoRA trains slower than full fine-tuning with the stock stack and faster with this library, somewhere."""
    stock, fast = ({way for way, *_ in cases(s, f"training.{{shape}}.{who}.qlora_over_full")} for who in STACK)
    return "lower" in stock and "higher" in fast


def with_part(s: Store, part: str) -> str | None:
    """The allocator of the first record that holds `scaling` or `causes`."""
    return next((a for a, record in s.benches.items() if getattr(record, part)), None)
