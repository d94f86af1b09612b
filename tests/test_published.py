"""The printed tables, against themselves: the study's own arithmetic must come out of the constants."""

import math

import pytest

from qlora_lib.published import AUTHORS, REFERENCES, TABLES, TITLE, Cell, published


def number(table, row, column="value"):
    return published(table, row, column).number


def test_twelve_tables_each_with_a_cell_for_every_column():
    assert list(TABLES) == list(range(1, 13))
    for table in TABLES.values():
        assert table.rows and all(len(cells) == len(table.columns) for cells in table.rows.values())


def test_a_cell_knows_where_it_stands():
    cell = published(10, "perplexity", "qlora")
    assert cell == Cell(10, "perplexity", "qlora", "21.87", TITLE)
    assert cell.number == 21.87
    assert AUTHORS == ("Amine Idrissi", "Zakaria Choukri")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,100,048,384", 1_100_048_384), ("2 × 10⁻⁵", 2e-5), ("3.82x savings", 3.82),
        ("98.85% fewer", 98.85), ("−37.3%", -37.3), ("+18.73%", 18.73), ("1.00x", 1.0),
        ("AdamW", None), ("—", None), ("4-bit NormalFloat4", None),
    ],
)  # fmt: skip
def test_numbers_are_read_from_the_print(text, expected):
    assert Cell(0, "", "", text).number == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("wrong", [(10, "perplexity", "lora"), (10, "loss", "qlora"), (13, "x", "y")])
def test_a_cell_that_is_not_printed_is_an_error(wrong):
    with pytest.raises((KeyError, ValueError)):
        published(*wrong)


def test_figures_printed_in_two_tables_agree():
    """Table 12 repeats the tables before it; a slip in copying one of them would part them."""
    same = {
        "total parameters": (2, "total parameters", "value"),
        "trainable parameters": (6, "trainable parameters", None),
        "model size": (5, "total", None),
        "flops per step": (7, "flops per step", None),
        "mfu": (8, "mfu", None),
        "training time": (9, "total training time", None),
        "inference time": (11, "inference time", None),
        "tokens per second": (11, "tokens per second", None),
        "perplexity": (10, "perplexity", None),
    }
    for row, (table, other, column) in same.items():
        for method in ("standard", "qlora"):
            assert number(12, row, method) == number(table, other, column or method), row


def test_the_studys_own_quotients_come_out():
    def quotient(table, row):
        return number(table, row, "qlora") / number(table, row, "standard")

    steps = number(3, "maximum steps", "qlora")
    assert 1 / quotient(5, "total") == pytest.approx(number(12, "compression ratio", "qlora"), abs=0.01)
    assert 100 * (1 - quotient(12, "model size")) == pytest.approx(number(12, "model size", "improvement"), abs=0.06)
    assert 100 * quotient(6, "trainable parameters") == pytest.approx(number(6, "percentage", "qlora"), abs=0.01)
    assert 100 * (quotient(10, "perplexity") - 1) == pytest.approx(number(10, "change", "qlora"), abs=0.01)
    for method in ("standard", "qlora"):
        assert number(9, "total training time", method) / steps == pytest.approx(
            number(9, "time per step", method), abs=0.006
        )
        assert 50 / number(11, "inference time", method) == pytest.approx(
            number(11, "tokens per second", method), abs=0.03
        )


def test_tinyllamas_widths_give_its_parameters():
    n = {key.removeprefix("tinyllama."): cell.number for key, cell in REFERENCES.items() if "tinyllama" in key}
    h, kv = n["hidden"], n["hidden"] / n["heads"] * n["kv_heads"]
    layer = 2 * h * h + 2 * h * kv + 3 * h * n["intermediate"] + 2 * h
    assert n["layers"] * layer + 2 * n["vocabulary"] * h + h == n["total"]
    assert math.isclose(n["total"], number(2, "total parameters"))
