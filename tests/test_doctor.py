"""`qlora doctor`: what stands in the way is told, and what does not is not."""

import json
import os
from dataclasses import replace

import pytest

from qlora_lib import doctor, hardware
from qlora_lib.config import load_profile
from qlora_lib.doctor import GIB, _advice, examine, fits_here, gpu_memory

WELL = doctor.Findings(
    device="cuda", device_name="NVIDIA T4", dtype="fp16", dtype_reason="because", cpu="A CPU", cpu_threads=2,
    memory_bytes=16 * GIB, memory_available_bytes=12 * GIB, gpu_memory_bytes=15 * GIB, disk_free_bytes=50 * GIB,
    cache_folder="/", cache_bytes=3 * GIB, cached_assets=["tiny-random"], bitsandbytes={"bitsandbytes": "0.50 on cuda", "layers": "NF4"},
    versions={"torch": "2.13.0"}, platform="Linux", hub="used for hub models only",
)  # fmt: skip


@pytest.fixture
def writable(monkeypatch):
    """Folders that do not exist yet under one that does; the checks run as any user."""
    monkeypatch.setattr(doctor, "_writable", lambda path: True)


def test_what_is_found_here(tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "yes")
    found = examine()
    assert found.device in ("cpu", "cuda") and found.dtype in ("fp32", "fp16", "bf16") and found.dtype_reason
    assert 0 < found.memory_available_bytes <= found.memory_bytes and found.disk_free_bytes > 0
    assert "tiny-random" in found.cached_assets and "smollm2-135m" not in found.cached_assets
    assert found.cache_bytes >= (tiny_model / "model.safetensors").stat().st_size
    assert found.versions.keys() >= {"torch", "transformers", "peft", "bitsandbytes"}
    assert found.hub == "offline by HF_HUB_OFFLINE"
    assert json.loads(json.dumps(found.to_dict()))["dtype"] == found.dtype
    text = found.to_text()
    for shown in (found.device_name, found.dtype_reason, found.cache_folder, found.versions["torch"], *found.advice):
        assert shown in text


def test_a_machine_with_nothing_in_the_way(writable):
    text = WELL.to_text()
    assert _advice(WELL) == [] and text.endswith("Nothing stands in the way.")
    assert "15.0 GiB" in text and "12.0 of 16.0 GiB free" in text and "fp16: because" in text


@pytest.mark.parametrize(
    "change, said",
    [
        ({"memory_available_bytes": 5 * GIB}, "Less than 6 GiB of memory"),
        ({"disk_free_bytes": 4 * GIB}, "Less than 5 GiB of disk"),
        ({"device": "cpu", "gpu_memory_bytes": None}, "No CUDA GPU"),
    ],
)
def test_each_shortage_is_one_piece_of_advice(writable, change, said):
    found = replace(WELL, **change)
    (advice,) = found.advice = _advice(found)
    assert said in advice and f"! {advice}" in found.to_text() and "Nothing stands" not in found.to_text()


def test_folders_that_cannot_be_made_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "new" / "results"))
    assert _advice(replace(WELL, cache_folder=str(tmp_path / "new" / "cache"))) == []
    monkeypatch.setenv("QLORA_RESULTS", str(tmp_path / "file"))
    cache, results = _advice(replace(WELL, cache_folder=str(tmp_path / "file" / "cache")))
    assert "set QLORA_CACHE" in cache and "set QLORA_RESULTS" in results
    if os.geteuid():  # the superuser may write anywhere
        tmp_path.chmod(0o500)
        assert len(_advice(replace(WELL, cache_folder=str(tmp_path / "new")))) == 2
        tmp_path.chmod(0o700)


def test_a_cache_that_cannot_be_there_does_not_stop_the_doctor(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("QLORA_CACHE", str(tmp_path / "file" / "cache"))
    found = examine()
    assert found.cache_bytes == 0 and found.cached_assets == [] and any("QLORA_CACHE" in a for a in found.advice)
    assert "empty" in found.to_text()


# --- whether a profile fits ----------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch):
    def machine(memory: float, disk: float, gpu: float | None):
        monkeypatch.setattr(hardware, "total_memory", lambda: int(memory * GIB))
        monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": int(disk * GIB)}))
        monkeypatch.setattr(doctor, "gpu_memory", lambda: None if gpu is None else int(gpu * GIB))

    return machine


@pytest.mark.parametrize(
    "profile, has, fits, said",
    [
        ("demo", (24, 50, None), True, "memory: 6 GiB of 24.0; disk: 5 GiB of 50.0"),
        ("demo", (6, 5, None), True, "memory: 6 GiB of 6.0"),
        ("demo", (5.9, 50, None), False, "memory: 6 GiB of 5.9"),
        ("demo", (24, 4.9, None), False, "disk: 5 GiB of 4.9"),
        ("t4-tinyllama-wikitext2", (24, 50, None), False, "no CUDA GPU; memory"),
        ("t4-tinyllama-wikitext2", (24, 50, 15), True, "GPU memory: 14 GiB of 15.0"),
        ("t4-tinyllama-wikitext2", (24, 50, 8), False, "GPU memory: 14 GiB of 8.0"),
        ("t4-tinyllama-wikitext2", (8, 50, 15), False, "memory: 12 GiB of 8.0"),
    ],
)
def test_a_profile_fits_where_each_need_is_met(machine, profile, has, fits, said):
    machine(*has)
    found, why = fits_here(load_profile(profile))
    assert found is fits and said in why


@pytest.mark.parametrize("says, bytes_", [("15360\n", 15360 * 2**20), ("81559\n81559\n", 81559 * 2**20), ("", None), ("[N/A]\n", None)])
def test_the_memory_of_a_gpu_is_what_the_driver_says(monkeypatch, tmp_path, says, bytes_):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\nprintf '{says}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert gpu_memory() == bytes_


def test_no_driver_no_gpu(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpu_memory() is None
