"""Several processes that train the same weights: each takes steps of its own, and now and then they meet and take the
mean of all. Nobody waits for anybody at a step, so cores that are shared with other work are used as they come.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import distributed

MEETING_SECONDS = 20.0
T = TypeVar("T")


class Crew:
    """The processes of a torchrun group, or this one alone."""

    def __init__(self) -> None:
        self.size, self.rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
        if self.size > 1:
            distributed.init_process_group("gloo")
        self._met = time.monotonic()

    def first(self, make: Callable[[], T]) -> T:
        """What `make` returns, on rank 0 before it begins on the others: what it writes, they find."""
        if self.rank == 0:
            made = make()
        if self.size > 1:
            distributed.barrier()
        return made if self.rank == 0 else make()

    @property
    def due(self) -> bool:
        """Whether it is time to meet; a process alone is always ready."""
        return self.size == 1 or time.monotonic() - self._met > MEETING_SECONDS

    def meet(self, tensors: Iterable[torch.Tensor], *, end: bool, done: int) -> tuple[bool, int]:
        """Replace `tensors` by their means; returns rank 0's `end`, and the sum of what all have `done`."""
        if self.size == 1:
            return end, done
        flat = list(tensors)
        whole = torch.cat([tensor.detach().reshape(-1).float() for tensor in flat])
        distributed.all_reduce(whole)
        parts = (whole / self.size).split([tensor.numel() for tensor in flat])
        with torch.no_grad():
            for tensor, part in zip(flat, parts, strict=True):
                tensor.copy_(part.view_as(tensor))
        word = torch.tensor([float(end) if self.rank == 0 else 0.0, float(done)], dtype=torch.float64)
        distributed.all_reduce(word)
        self._met = time.monotonic()
        return bool(word[0]), int(word[1])

    def close(self) -> None:
        """Leave the group."""
        if self.size > 1:
            distributed.destroy_process_group()
