"""How busy a rank kept its core or its GPU while it made a picture: a figure to look at, which may be missing. Nothing
depends on it.
"""

from __future__ import annotations

import time
from statistics import fmean

import psutil
import torch


class CpuLoad:
    """This process's CPU time against the clock. Rank 0's process also serves the page."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.start()

    def start(self) -> None:
        """A picture begins."""
        self._spent, self._clock = self._seconds(), time.perf_counter()

    def percent(self) -> float | None:
        """Of one core, since the start: 200 is two threads at work all the time."""
        wall = time.perf_counter() - self._clock
        return 100 * (self._seconds() - self._spent) / wall if wall > 0 else None

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


class GpuLoad:
    """The driver's utilisation of one GPU, by everybody who uses it; torch asks it through nvidia-ml-py."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._known = True
        self.start()

    def start(self) -> None:
        """A picture begins."""
        self._samples: list[float] = []

    def percent(self) -> float | None:
        """Of the time, mean of what the driver said at every call since the start; None where it cannot be asked."""
        if self._known:
            try:
                self._samples.append(float(torch.cuda.utilization(self._device)))
            except Exception:  # no package, no right, a part of a GPU: whatever it is, it must not cost the picture
                self._known, self._samples = False, []
        return fmean(self._samples) if self._samples else None


def load_of(device: torch.device) -> CpuLoad | GpuLoad:
    """The meter for a rank that computes on `device`."""
    return GpuLoad(device) if device.type == "cuda" else CpuLoad()
