"""What a step costs, what a machine sustains, and the seconds that follow. Plain arithmetic, free of torch; counting is
profile.py's business, choosing that of planner.py.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distri_engine.evaluation.profile import Profile


@dataclass(frozen=True, kw_only=True)
class Work:
    """One step of one rank. Counts, but not always whole numbers: a closed form may have made them."""

    macs: float = 0.0  # multiply-accumulates of matrix products, convolutions and attention
    moved: float = 0.0  # bytes that all other operations read and write
    operations: float = 0.0  # operations that the device is asked for, of either kind
    waits: float = 0.0  # messages that a layer, or the step's end, waits for
    waited: float = 0.0  # their bytes, in the busier direction of this rank's link
    posts: float = 0.0  # messages that are under way while layers compute
    posted: float = 0.0  # their bytes
    moments: float = 0.0  # those of them that carry GroupNorm's moments
    moments_size: float = 0.0  # their bytes

    @property
    def fresh_moments(self) -> Work:
        """The same if layers wait for GroupNorm's moments: what mode sync_gn does after warm-up."""
        return dataclasses.replace(
            self,
            waits=self.waits + self.moments,
            waited=self.waited + self.moments_size,
            posts=self.posts - self.moments,
            posted=self.posted - self.moments_size,
            moments=0.0,
            moments_size=0.0,
        )

    @property
    def silent(self) -> Work:
        """The same without the messages under way: what mode no_sync does after warm-up, bar its copies."""
        return dataclasses.replace(self, posts=0.0, posted=0.0, moments=0.0, moments_size=0.0)


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What each device sustains. With the defaults, two figures give a lower bound: nothing else takes time."""

    flops: float  # FLOP/s of matrix products, convolutions and attention; two a MAC
    bandwidth: float  # bytes/s of a device's link to the others, in each direction at once
    memory: float = math.inf  # bytes/s of all other operations, which read and write and hardly compute
    launch_s: float = 0.0  # seconds an operation takes however small it is: what stays when work is shared out
    message_s: float = 0.0  # seconds a message takes however small it is
    overlap: float = 0.0  # share of a message's time that is felt although layers compute meanwhile

    def computing_seconds(self, work: Work) -> float:
        """Of a step in which no message is waited for: operations, slowed by the messages under way."""
        operations = 2 * work.macs / self.flops + work.moved / self.memory + work.operations * self.launch_s
        return operations + self.overlap * self._messages(work.posts, work.posted)

    def step_seconds(self, work: Work) -> float:
        """Of a step: computing, never done before the messages under way are, and then the messages waited for."""
        under_way = self._messages(work.posts, work.posted)
        return max(self.computing_seconds(work), under_way) + self._messages(work.waits, work.waited)

    def _messages(self, count: float, size: float) -> float:
        return count * self.message_s + size / self.bandwidth


def picture_seconds(profile: Profile, machine: Machine) -> float:
    """Denoising: all steps, each as long as its slowest rank takes. Without text encoding and VAE."""
    return sum(
        alike[0].times * max(machine.step_seconds(cost.work) for cost in alike)
        for alike in zip(*(cost.steps for cost in profile.costs), strict=True)
    )
