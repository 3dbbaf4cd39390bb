"""How busy a rank is said to be: its own CPU time against the clock, and on a GPU what the driver says, if anything."""

from __future__ import annotations

import time

import pytest
import torch

from distri_engine.load import CpuLoad, GpuLoad, load_of


def test_a_busy_process_uses_a_core_and_a_sleeping_one_does_not() -> None:
    load = load_of(torch.device("cpu"))
    assert isinstance(load, CpuLoad)
    spent = time.process_time()
    while time.process_time() < spent + 0.3:  # CPU time, however long that takes on a busy machine
        pass
    busy = load.percent()
    time.sleep(0.3)
    resting = load.percent()
    load.start()
    time.sleep(0.2)
    fresh = load.percent()
    assert busy is not None
    assert resting is not None
    assert fresh is not None
    assert busy > resting > fresh
    assert fresh < 50


def test_a_gpu_is_asked_at_every_step_and_not_again_once_it_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: list[int | Exception] = [90, 70, 100, RuntimeError("no rights"), 50]

    def utilization(device: torch.device) -> int:
        assert device == torch.device("cuda", 1)
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    load = load_of(torch.device("cuda", 1))
    assert isinstance(load, GpuLoad)
    assert [load.percent(), load.percent()] == [90, 80]
    load.start()
    assert [load.percent(), load.percent(), load.percent()] == [100, None, None]
    assert answers == [50]
