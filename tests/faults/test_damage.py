"""Files that are not as they were written: adapters, records, the ledger, executed notebooks.

Of checkpoints it stands in test_training.py, of results that are taken from the cache in test_study.py, and of cached models and
texts in test_assets.py.
"""

import json
import os
import re
from pathlib import Path

import pytest
import tiny
from example_records import example_records

from qlora_lib.errors import QloraError
from qlora_lib.models import save_adapter
from qlora_lib.notebooks import runner
from qlora_lib.notebooks.ledger import Ledger
from qlora_lib.records import read_record

one_thread = tiny.one_thread

# --- adapters -------------------------------------------------------------------------------------


def altered(path: Path) -> None:
    """One byte of the header, which says where each tensor lies."""
    data = bytearray(path.read_bytes())
    data[20] ^= 0x20
    path.write_bytes(data)


ADAPTERS = {
    "truncated weights": lambda folder: os.truncate(folder / "adapter_model.safetensors", 3000),
    "no bytes at all": lambda folder: os.truncate(folder / "adapter_model.safetensors", 0),
    "an altered header": lambda folder: altered(folder / "adapter_model.safetensors"),
    "another file in its place": lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"PK\x03\x04" + bytes(5000)),
    "a truncated configuration": lambda folder: os.truncate(folder / "adapter_config.json", 40),
    "an empty configuration": lambda folder: (folder / "adapter_config.json").write_text("{}"),
    "a rank that is not its own": lambda folder: (folder / "adapter_config.json").write_text(
        (folder / "adapter_config.json").read_text().replace('"r": 4', '"r": 8')
    ),
}
COMMANDS = {
    "generate": ("generate", "--model", "tiny-random", "--prompt", "x", "--max-new-tokens", "1"),
    "eval": ("eval", "--model", "tiny-random", "--data", "FILE", "--context", "32"),
    "merge": ("merge", "--model", "tiny-random", "--out", "OUT"),
}


@pytest.fixture
def adapter(tmp_path) -> Path:
    _, settings = tiny.arm("lora")
    save_adapter(tiny.trainable("lora", settings), tmp_path / "adapter")
    return tmp_path / "adapter"


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("damage", ADAPTERS)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_damaged_adapter_is_refused_and_named(call, tmp_path, tiny_model, adapter, command, damage):
    (tmp_path / "text.txt").write_text("A few words about nothing.\n" * 40)
    places = {"FILE": tmp_path / "text.txt", "OUT": tmp_path / "merged"}
    words = [places.get(word, word) for word in COMMANDS[command]] + ["--adapter", adapter]
    ADAPTERS[damage](adapter)
    damaged = {p.name: p.read_bytes() for p in adapter.iterdir()}
    code, out, err = call(*words)
    (said,) = (line for line in err.splitlines() if line.startswith("error:"))
    assert code in (1, 2) and out == "" and "Traceback" not in err
    assert str(adapter) in said and "not foreseen" not in said, said
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob(".*"))
    assert {p.name: p.read_bytes() for p in adapter.iterdir()} == damaged  # not mended behind the user's back


# --- the ledger, and executed notebooks -------------------------------------------------------------


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("damage", ["truncated", "not text", "of another form"])
def test_a_damaged_ledger_is_put_aside_and_a_new_one_kept(tmp_path, damage):
    path = tmp_path / "predictions.json"
    Ledger(path).note("01 a", 1.0, 2.0, "times", "Measured")
    spoil = {
        "truncated": lambda: os.truncate(path, 30),
        "not text": lambda: path.write_bytes(b"\xff\xfe\x00"),
        "of another form": lambda: path.write_text("[1]"),
    }
    spoil[damage]()
    damaged = path.read_bytes()
    Ledger(path).note("01 b", 3.0, 4.0, "times", "Measured")
    assert [e.name for e in Ledger(path).entries] == ["01 b"]
    assert (tmp_path / "predictions.damaged.json").read_bytes() == damaged


NOTEBOOKS = {
    "a truncated page": lambda output: os.truncate(output, 100),
    "an altered page": lambda output: output.write_text(output.read_text().replace("it was 41", "it was 42")),
    "a truncated HTML": lambda output: os.truncate(output.with_suffix(".html"), 100),
    "a truncated stamp": lambda output: os.truncate(output.with_suffix(".stamp.json"), 20),
    "a stamp of another": lambda output: output.with_suffix(".stamp.json").write_text('{"key": "0"}'),
}


@pytest.mark.promise("damaged-file")
def test_a_damaged_page_of_a_notebook_is_made_again(course, tmp_path, monkeypatch, record_property):
    (done,) = course({"01_made": ["print('it was', 41)"]})
    paths = [p for p in done.output.parent.iterdir()]
    whole = {path: path.read_bytes() for path in paths}
    record_property("caused", len(NOTEBOOKS))
    for damage, spoil in NOTEBOOKS.items():
        assert course({})[0].cached
        spoil(done.output)
        with monkeypatch.context() as instead:
            made = []
            instead.setattr(runner, "make_pages", lambda source, *rest: made.append(source.stem))
            course({})
        assert made == ["01_made"], damage
        if damage != list(NOTEBOOKS)[-1]:
            for path, data in whole.items():
                path.write_bytes(data)
    (again,) = course({})
    assert not again.cached and "it was 41" in again.output.read_text() and again.html.read_text().endswith("</html>\n")


# --- records --------------------------------------------------------------------------------------


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("place", range(0, 100, 10))
def test_a_truncated_record_is_one_line_that_names_it(tmp_path, place):
    path = example_records("smoke")["lora"].write(tmp_path)
    os.truncate(path, path.stat().st_size * place // 100)
    with pytest.raises(QloraError, match=f"{re.escape(str(path))} is not a readable record .*Remove that file and run the arm again"):
        read_record(path)


@pytest.mark.promise("damaged-file")
@pytest.mark.parametrize("old, new", [('"steps": ', '"steps": 1'), ('"seed": ', '"seed": 1'), ('"method": "lora"', '"method": "full"')])
def test_a_record_that_was_altered_after_it_was_written_is_not_taken(tmp_path, old, new):
    path = example_records("smoke")["lora"].write(tmp_path)
    before = path.read_text()
    assert old in before
    path.write_text(before.replace(old, new, 1))
    with pytest.raises(QloraError, match="is not as it was written.*run the arm again"):
        read_record(path)
    path.write_text(json.dumps(json.loads(before)))  # another layout of the same content
    assert read_record(path).train.loss == example_records("smoke")["lora"].train.loss


def test_a_record_without_a_seal_is_read(tmp_path):
    """Those written before there were any, and those of other programs."""
    path = example_records("smoke")["lora"].write(tmp_path)
    values = json.loads(path.read_text())
    del values["seal"]
    path.write_text(json.dumps(values))
    assert read_record(path).arm == "lora"
