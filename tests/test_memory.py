"""The memory meters on allocations that are known beforehand."""

import sys

import bitsandbytes as bnb
import pytest
import torch

from qlora_lib.metrics.memory import (
    StepMeter,
    gradient_bytes,
    optimizer_bytes,
    peak_memory,
    peak_resident_bytes,
    reset_peak,
    resident_bytes,
    training_resident_bytes,
)
from qlora_lib.metrics.sizes import model_bytes

MB = 2**20


def block(megabytes: float) -> torch.Tensor:
    return torch.empty(int(megabytes * MB), dtype=torch.uint8)


def metered(work) -> int:
    meter = StepMeter()
    meter.start()
    work()
    return meter.stop()


def test_the_step_meter_finds_the_highest_sum_not_the_last():
    def work():
        a = block(10)
        b = block(30)  # 40
        del a
        c = block(5)  # 35
        del b
        d = block(20)  # 25
        return c, d

    assert metered(work) == pytest.approx(40 * MB, rel=0.001)


def test_what_was_there_before_is_not_counted():
    before = [block(50)]
    assert metered(lambda: block(8)) == pytest.approx(8 * MB, rel=0.001)

    def work():
        before.clear()
        return block(20)

    assert metered(work) == pytest.approx(20 * MB, rel=0.001)  # its freeing is not seen


def test_it_sees_buffers_inside_operators_and_in_backward():
    """relu's gradient mask is no operator's output, yet x must live until backward."""
    x = torch.ones(MB, requires_grad=True)  # 4 MiB

    def work():
        (x.relu() * 2).sum().backward()

    # relu's output, its product, and in backward the gradients: four fp32 copies at most, two at least
    assert 2 * 4 * MB <= metered(work) <= 4 * 4 * MB + MB


def test_the_meter_writes_nothing_to_the_terminal(capfd):
    metered(lambda: block(1))
    sys.stderr.write("still there\n")
    sys.stderr.flush()
    out, err = capfd.readouterr()
    assert (out, err) == ("", "still there\n")


def stepped(optimizer_class, shape=(64, 100), **kwargs):
    layer = torch.nn.Linear(shape[1], shape[0])
    optimizer = optimizer_class(layer.parameters(), **kwargs)
    layer(torch.ones(1, shape[1])).sum().backward()
    optimizer.step()
    return layer, optimizer


def test_adamw_keeps_eight_bytes_a_parameter_and_a_step_count():
    layer, optimizer = stepped(torch.optim.AdamW)
    assert optimizer_bytes(optimizer) == 8 * (6400 + 64) + 2 * 4
    assert gradient_bytes(layer) == 4 * (6400 + 64)
    assert training_resident_bytes(layer, optimizer) == model_bytes(layer).total + 12 * 6464 + 8
    optimizer.zero_grad()
    assert gradient_bytes(layer) == 0


def test_before_the_first_step_there_is_no_state():
    layer = torch.nn.Linear(3, 2)
    assert optimizer_bytes(torch.optim.AdamW(layer.parameters())) == 0


def test_8bit_adamw_keeps_two_bytes_a_parameter_and_shares_its_tables():
    """Two one-byte moments; an fp32 scale for each block of 256; two tables of 256 fp32 for all.
    A tensor of fewer than 4,096 values (the bias) keeps two fp32 moments."""
    layer = torch.nn.Sequential(torch.nn.Linear(100, 64), torch.nn.Linear(64, 128, bias=False))
    optimizer = bnb.optim.AdamW8bit(layer.parameters())
    layer(torch.ones(1, 100)).sum().backward()
    optimizer.step()
    moments = 2 * (6400 + 8192)
    scales = 2 * 4 * (6400 // 256 + 8192 // 256)
    tables = 2 * 256 * 4
    small = 2 * 4 * 64
    steps = sum(t.nbytes for s in optimizer.state.values() for k, t in s.items() if k == "step" and torch.is_tensor(t))
    assert optimizer_bytes(optimizer) == moments + scales + tables + small + steps


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can reset the peak")
def test_the_resident_peak_is_reset_and_found_again():
    """256 MiB that are touched and freed: seen by the peak, not by what is resident afterwards."""
    reset_peak("cpu")
    start = peak_resident_bytes()
    assert start == pytest.approx(resident_bytes(), abs=16 * MB)
    torch.ones(256 * MB // 4).sum()
    high = peak_resident_bytes()
    assert high - start == pytest.approx(256 * MB, abs=24 * MB)
    reset_peak("cpu")
    assert peak_resident_bytes() <= high
    assert peak_memory("cpu")[1] == "peak resident set of the process"


def test_on_a_gpu_the_allocator_is_asked(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: asked.append("reset"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    reset_peak("cuda")
    assert asked == ["reset"] and peak_memory("cuda") == (123, "CUDA allocator, peak bytes allocated")
