"""`qlora plan --calibrate`: what it measures is kept, whole, where a later plan finds it."""

import json

import pytest

from qlora_lib.calibration import calibrate, described, tiny
from qlora_lib.cost import flops, plan
from qlora_lib.cost.calibrated import calibration_file, read_calibration, this_machine
from qlora_lib.errors import QloraError


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache folder of its own, with a calibration at the tiny size."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QLORA_CACHE", str(folder))
        calibrate(tiny(), budget=60.0)
        yield folder


def test_what_is_kept_is_whole_and_found_again(cache):
    found = read_calibration()
    assert found.machine == this_machine() and calibration_file().parent == cache
    assert [path.name for path in cache.glob("*")] == ["calibration.json"]  # no half-written neighbour
    assert {(s.method, s.fast) for s in found.steps} == {(m, f) for m in flops.METHODS for f in (False, True)}
    assert {d.quantization for d in found.decodes} == {"none", "nf4"}
    assert all(0 < s.share(found.gemm_flops_per_second) < 1 for s in found.steps)
    assert all(0 < d.share(found.bytes_per_second) < 1.5 for d in found.decodes)  # so small a model lies in the cache


def test_flops_are_those_of_the_step_that_was_timed(cache):
    for step in read_calibration().steps:
        assert step.hardware_flops == plan(step.model, step.method, step.length, step.batch, gpus=["cpu"], search=False)["flops"]["hardware"]


def test_a_later_plan_uses_it_and_says_so(cache):
    found = read_calibration()
    answer = plan("smollm2-135m", "qlora", gpus=["cpu"], search=False)["gpus"]["cpu"]
    (step,) = [s for s in found.steps if (s.method, s.fast) == ("qlora", False)]
    assert answer["calibrated"] == found.measured_at and "measured here" in answer["step"]["peak"]
    assert answer["step"]["compute_seconds"] == pytest.approx(plan("smollm2-135m", "qlora", gpus=["cpu"], search=False)["flops"]["hardware"] / found.gemm_flops_per_second)
    assert answer["step"]["estimate_seconds"]["low"] == pytest.approx(answer["step"]["compute_seconds"] / step.share(found.gemm_flops_per_second))


def test_it_is_told_in_words(cache):
    lines = list(described(read_calibration()))
    assert "GFLOP/s" in lines[0] and len(lines) == 1 + 6 + len(read_calibration().decodes)
    json.loads(read_calibration().to_json())


def test_a_machine_that_takes_too_long_leaves_methods_out(tmp_path, capfd):
    found = calibrate(tiny(), budget=0.0, file=tmp_path / "c.json")
    assert {s.method for s in found.steps} == {"qlora"} and "lora is left out" in capfd.readouterr().err
    assert read_calibration(tmp_path / "c.json") == found


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(QloraError, match="QLORA_CACHE"):
        calibrate(tiny(), file=tmp_path / "file" / "calibration.json")
