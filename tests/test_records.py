"""Records: what is written is read back, and what is no record is one clear line."""

import json
import math
import os

import pytest
from pydantic import ValidationError

from example_records import example_records, write_example
from qlora_lib import records as records_module
from qlora_lib.errors import QloraError
from qlora_lib.records import RunRecord, finite, read_record, read_records, records_of

EXAMPLES = example_records("smoke")


@pytest.fixture
def qlora() -> RunRecord:
    return EXAMPLES["qlora"].model_copy(deep=True)


@pytest.mark.parametrize("arm", EXAMPLES)
def test_a_record_comes_back_as_it_was_written(tmp_path, arm):
    path = EXAMPLES[arm].write(tmp_path)
    assert path == tmp_path / "record.json" and read_record(path) == EXAMPLES[arm]
    assert list(tmp_path.iterdir()) == [path]  # no part of a file is left beside it
    first = path.read_bytes()
    read_record(path).write(tmp_path)
    assert path.read_bytes() == first


def test_the_names_that_readers_rely_on(qlora):
    values = json.loads(qlora.to_json())
    promised = {
        "schema": None, "profile": None, "method": None, "seed": None, "settings": None, "mfu": None, "flops_per_step": None,
        "model": ["name", "parameters_total"], "data": ["name", "revision", "train_tokens", "eval_tokens"],
        "parameters": ["total", "trainable"], "size_bytes": ["base", "adapter", "total"],
        "train": ["steps", "tokens", "seconds", "seconds_per_step", "tokens_per_second", "peak_memory_bytes", "loss", "eval_loss"],
        "perplexity": ["before", "after", "protocol"], "generation": ["tokens_per_second", "latency_seconds"], "provenance": [],
    }  # fmt: skip
    for name, parts in promised.items():
        assert name in values and all(part in values[name] for part in parts or []), name
    assert values["schema"] == 1 and "schema_version" not in values


def test_what_was_not_measured_is_null(tmp_path):
    base = EXAMPLES["base"]
    values = json.loads(base.to_json())
    assert values["train"] is None and values["mfu"] is None and values["perplexity"]["after"] is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_json_cannot_hold_is_refused(qlora, value):
    values = qlora.model_dump(by_alias=True)
    values["train"]["loss"][1] = value
    with pytest.raises(ValidationError):
        RunRecord.model_validate(values)
    qlora.settings = {"train": {"learning_rate": value}}  # untyped: written as null
    assert json.loads(qlora.to_json(), parse_constant=pytest.fail)["settings"] == {"train": {"learning_rate": None}}
    assert finite(value) is None and finite(1.5) == 1.5 and finite(None) is None


def test_a_failed_write_keeps_the_record_that_was_there(tmp_path, qlora, monkeypatch):
    path = qlora.write(tmp_path)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError):
        EXAMPLES["lora"].write(tmp_path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def broken(path, content: bytes) -> str:
    path.write_bytes(content)
    with pytest.raises(QloraError) as e:
        read_record(path)
    assert "\n" not in str(e.value) and str(path) in str(e.value)
    return str(e.value)


def test_a_damaged_or_foreign_file_is_one_line(tmp_path, qlora):
    path, whole = tmp_path / "record.json", qlora.to_json().encode()
    values = json.loads(whole)
    for content in (b"", b"{", whole[: len(whole) // 2], whole.replace(b'"loss"', b'"lost"'), b"\xff" + whole, b"[]", b"[" * 100_000):
        assert "is not a readable record" in broken(path, content)
    assert "schema" in broken(path, json.dumps(values | {"schema": 2}).encode())
    assert "train.steps" in broken(path, json.dumps(values | {"train": values["train"] | {"steps": None}}).encode())
    assert "finite" in broken(path, whole.replace(b'"mfu": ' + json.dumps(values["mfu"]).encode(), b'"mfu": NaN'))
    with pytest.raises(QloraError, match="no record at .*qlora train"):
        read_record(tmp_path / "none.json")
    with pytest.raises(QloraError, match="is not a readable record"):
        read_record(tmp_path)


def test_records_are_read_from_a_results_folder_and_from_the_committed_ones(tmp_path):
    write_example(tmp_path / "own", "smoke")
    (tmp_path / "own" / "unfinished").mkdir()
    (tmp_path / "flat").mkdir()
    for arm, record in EXAMPLES.items():
        (tmp_path / "flat" / f"{arm}.json").write_text(record.to_json())
    assert read_records(tmp_path / "own") == read_records(tmp_path / "flat") == EXAMPLES
    assert read_records(tmp_path / "none") == {}


def test_own_records_come_before_the_committed_ones_and_each_says_what_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "results"))
    monkeypatch.setattr(records_module, "committed_records", lambda profile: tmp_path / "committed" / profile)
    with pytest.raises(QloraError, match="no records for profile 'smoke'. Make them with"):
        records_of("smoke")
    EXAMPLES["base"].write(tmp_path / "committed" / "smoke" / "base")
    found, source = records_of("smoke")
    assert list(found) == ["base"] and "the repository carries" in source
    with pytest.raises(QloraError):
        records_of("smoke", "own")
    write_example(tmp_path / "results" / "smoke", "smoke")
    found, source = records_of("smoke")
    assert set(found) == set(EXAMPLES) and "on this machine" in source
    assert list(records_of("smoke", "committed")[0]) == ["base"]


def test_one_damaged_record_is_named_among_the_others(tmp_path, monkeypatch):
    write_example(tmp_path / "smoke", "smoke")
    (tmp_path / "smoke" / "lora" / "record.json").write_text("{")
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path))
    with pytest.raises(QloraError, match="lora/record.json is not a readable record"):
        records_of("smoke")
