"""Hostile records: what a damaged or foreign record.json does to whoever reads it, and what markup in one does to the pages."""

import io
import json

import pypdf
import pytest
from example_costs import example_audit, example_validation
from example_records import example_records
from hostile import as_json, files, inputs, spoiled
from hypothesis import example, given
from hypothesis import strategies as st
from watching import watched

from qlora_lib.claims.record import read_audit
from qlora_lib.errors import QloraError
from qlora_lib.records import read_record, read_records
from qlora_lib.validation.record import read_validation

RECORD = example_records("smoke")["qlora"]
TREE = RECORD.model_dump(by_alias=True, mode="json")
for part, name in (
    ("train", "loss"),
    ("train", "learning_rate"),
    ("train", "grad_norm"),
    ("perplexity", "window_nll_before"),
    ("perplexity", "window_nll_after"),
):
    TREE[part][name] = TREE[part][name][
        :2
    ]  # so that what is spoiled is seldom one of many numbers
SETTINGS = {
    "quantization": {"format": "nf4", "double_quant": True},
    "model": {"name": "tiny-random"},
}
TREE |= {
    "settings": SETTINGS,
    "files": {},
    "provenance": TREE["provenance"] | {"dtype": "fp32"},
}
ADAPTER = {
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["q_proj"],
    "task_type": "CAUSAL_LM",
}
DOORS = (
    ("merge", "--adapter", "adapter", "--out", "merged"), ("merge", "--adapter", "adapter", "--out", "merged", "--model", "tiny-random", "--quantization", "nf4"),
    ("generate", "--model", "tiny-random", "--adapter", "adapter", "--prompt", "x"), ("eval", "--model", "tiny-random", "--adapter", "adapter", "--data", "tiny-text"),
)  # fmt: skip
TRAIN = ("train", "--profile", "smoke", "--method", "qlora", "--out", ".")
VALIDATION = json.loads(example_validation().to_json())
VALIDATION["steps"], VALIDATION["at_rest"] = (
    VALIDATION["steps"][:2],
    VALIDATION["at_rest"][:2],
)
AUDIT = json.loads(example_audit(each=1).to_json())


@pytest.fixture(scope="module")
def cache_key(tiny_model):
    """Under which a record is taken for that of TRAIN."""
    from qlora_lib.config import load_profile
    from qlora_lib.arm_keys import arm_key

    profile = load_profile("smoke")
    arm = profile.arm_of_method("qlora")
    return arm_key(profile, arm, profile.settings(arm), None)


def lay(folder, data: bytes) -> None:
    (folder / "record.json").write_bytes(data)
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(ADAPTER))
    (folder / "adapter" / "adapter_model.safetensors").write_bytes(
        b"\x02\0\0\0\0\0\0\0{}"
    )


def test_the_unspoiled_record_is_good(doors, cache_key):
    data = as_json(TREE | {"provenance": TREE["provenance"] | {"cache_key": cache_key}})
    lay(doors.fresh(), data)
    assert "taken from" in doors.call(*TRAIN).out
    lay(doors.fresh(), data)
    found = doors.call(*DOORS[0])
    assert (
        "another base" in found.err or "stopped by the test" in found.err
    )  # its revision is made up


@inputs(0.06)
@given(data=files(TREE), words=st.sampled_from(DOORS))
@example(data=as_json(TREE | {"settings": {}}), words=DOORS[0])
@example(
    data=as_json(TREE | {"settings": {"quantization": [], "model": 5}}), words=DOORS[0]
)
@example(
    data=as_json(TREE | {"settings": {"quantization": {"format": "x"}, "model": {}}}),
    words=DOORS[0],
)
@example(
    data=as_json(TREE | {"settings": {"quantization": {"format": []}}}), words=DOORS[2]
)
@example(
    data=as_json(TREE | {"provenance": TREE["provenance"] | {"dtype": "fp7"}}),
    words=DOORS[0],
)
@example(
    data=as_json(
        TREE
        | {
            "model": TREE["model"] | {"revision": None},
            "settings": SETTINGS | {"model": {"name": 5}},
        }
    ),
    words=DOORS[0],
)
def test_records_beside_an_adapter(doors, count, data, words):
    lay(doors.fresh(), data)
    count("records")
    doors.call(*words)


@inputs(0.03)
@given(tree=spoiled(TREE))
@example(tree=TREE | {"settings": {}})
@example(tree=TREE | {"files": {"../../beside/precious": "0"}})
@example(tree=TREE | {"files": {"a\0b": "0"}})
@example(tree=TREE | {"files": {"x" * 5000: "0"}})
@example(tree=TREE | {"label": "\x1b]0;x\x07"})
def test_records_of_a_finished_run(doors, count, cache_key, tree):
    """Taken for what `train` would do, or passed over; and what is passed over is removed only where a run wrote it."""
    if isinstance(tree, dict) and isinstance(tree.get("provenance"), dict):
        tree = tree | {"provenance": tree["provenance"] | {"cache_key": cache_key}}
    lay(doors.fresh(), as_json(tree))
    count("records")
    doors.call(*TRAIN)


READERS = {
    "run": (read_record, TREE),
    "validation": (read_validation, VALIDATION),
    "audit": (read_audit, AUDIT),
}


@pytest.mark.parametrize("kind", READERS)
def test_every_reader_refuses_in_one_line(tmp_path, count, kind):
    read, tree = READERS[kind]
    path = tmp_path / "r.json"

    @inputs(0.02)
    @given(data=files(tree))
    @example(data=b"[" * 100_000)
    @example(data=b"\xff")
    def each(data):
        path.write_bytes(data)
        count("records")
        try:
            found = watched(lambda: read(path), inside=tmp_path)
            path.write_text(
                found.to_json()
            )  # what was taken can be written, and is the same when it is read again
            assert read(path) == found
        except QloraError as e:
            assert "\n" not in str(e)

    each()


def test_a_folder_of_records_names_the_bad_one(tmp_path):
    (tmp_path / "a.json").write_text(RECORD.to_json())
    (tmp_path / "b.json").mkdir()
    with pytest.raises(QloraError, match="b.json is not a readable record"):
        read_records(tmp_path)


@inputs(0.01)
@given(
    data=files(
        {
            "schema": 1,
            "machine": {},
            "steps": [],
            "decodes": [],
            "measured_at": "x",
            "gemm_flops_per_second": 1e11,
            "bytes_per_second": 1e10,
        }
    ),
    real=st.booleans(),
    mutate=st.data(),
)
def test_calibrations(doors, count, monkeypatch, data, real, mutate):
    """`plan` takes this machine's figures from the cache, or does without them."""
    from dataclasses import asdict

    from qlora_lib.cost.calibrated import (
        Calibration,
        DecodeTimed,
        StepTimed,
        this_machine,
    )

    steps = tuple(
        StepTimed(method, True, "tiny-random", 1, 32, 0.1, 10**9)
        for method in ("full", "lora", "qlora")
    )
    good = Calibration(
        this_machine(),
        "2026-01-01",
        1e11,
        1e10,
        steps,
        (DecodeTimed("nf4", True, "tiny-random", 10.0, 1000),),
    )
    if real:
        data = as_json(
            mutate.draw(spoiled({"schema": 1} | json.loads(json.dumps(asdict(good)))))
        )
    cache = doors.fresh() / "cache"
    cache.mkdir()
    (cache / "calibration.json").write_bytes(data)
    monkeypatch.setenv("QLORA_CACHE", str(cache))
    count("records")
    doors.call("plan", "--model", "tiny-random", "--gpu", "cpu")


# --- markup ------------------------------------------------------------------------------------------

MARKUP = '#panic("no") #read("/etc/passwd") $x$ *b* _e_ `r` @ref <l> \\ // [c] "q" {d} = h https://example.invalid <script>alert(1)</script>'


def test_markup_in_a_record_is_printed_as_text(tmp_path):
    """Typst takes it from a JSON file, as strings; were one evaluated, the report would not compile or lack its letters."""
    from qlora_lib.report import build_report

    records = example_records("demo")
    for record in records.values():
        record.generation = record.generation and record.generation.model_copy(
            update={"sample": MARKUP}
        )
        record.model.note = record.provenance.cpu = MARKUP
        record.provenance.versions = {"torch": "2.6.0", **record.provenance.versions}
    try:
        pdf = build_report(
            "demo", records, [], tmp_path / "r.pdf", data_json=tmp_path / "data.json"
        )
    except QloraError as e:
        pytest.fail(f"the report does not compile: {e}")
    text = "".join(
        page.extract_text()
        for page in pypdf.PdfReader(io.BytesIO(pdf.read_bytes())).pages
    )
    letters = "".join(text.split())
    for piece in (
        '#panic("no")',
        '#read("/etc/passwd")',
        "$x$*b*_e_`r`",
        "<script>alert(1)</script>",
    ):
        assert piece in letters, piece
