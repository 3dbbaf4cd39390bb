"""The engine's only notion of time: which step of which picture runs, and whether it is synchronous. One writer
(ParallelUNet), no counters in layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """What a step does with its peers' activations (DistriFusion, section 4.1)."""

    SYNC = "sync"  # warm-up: waits for the peers' fresh activations in every layer
    STALE = "stale"  # displaced: uses the peers' activations of the previous step


@dataclass(frozen=True)
class Step:
    """One denoising step."""

    index: int
    phase: Phase


class StepClock:
    """Counts the UNet evaluations of one picture: steps 0..warmup_steps are SYNC, the rest STALE."""

    def __init__(self) -> None:
        self.picture = 0  # how many pictures have begun; caches that live for one picture compare it
        self.adaptive = False  # whether the warm-up goes on until somebody calls `settle`
        self._next = 0
        self._warmup_steps: int | None = None
        self.step = Step(0, Phase.SYNC)

    def begin(self, warmup_steps: int | None, *, adaptive: bool = False) -> None:
        """Rewind: the next `tick` is step 0 of a new picture. None: no step of it is stale, unless `adaptive`."""
        self.picture += 1
        self.adaptive = adaptive
        self._next = 0
        self._warmup_steps = None if adaptive else warmup_steps
        self.step = Step(0, Phase.SYNC)

    @property
    def stale_may_follow(self) -> bool:
        """Whether this step is synchronous and the one after it may be the first stale one."""
        return self.step.phase is Phase.SYNC and (self.adaptive or self.step.index == self._warmup_steps)

    def settle(self) -> None:
        """End an adaptive warm-up: the next step is stale."""
        self._warmup_steps = self.step.index

    def resume(self) -> None:
        """Begin a warm-up of one step in the middle of a picture: the next step is synchronous, those after it are as
        they would have been.
        """
        if self._warmup_steps is not None:
            self._warmup_steps = max(self._warmup_steps, self._next)

    def tick(self) -> Step:
        """Enter the next step and return it."""
        warm = self._warmup_steps is None or self._next <= self._warmup_steps
        phase = Phase.SYNC if warm else Phase.STALE
        self.step = Step(self._next, phase)
        self._next += 1
        return self.step
