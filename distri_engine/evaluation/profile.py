"""What one picture costs each device: the engine itself runs, on the meta device and a mesh that counts, rank by rank.
Of steps that are alike, and of ranks that are alike, one is run. What the figures mean in seconds is machine.py's
business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Any

from diffusers import UNet2DConditionModel

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.evaluation.comm import KINDS, OUTPUT, CountingExchange, CountingMesh, Traffic
from distri_engine.evaluation.machine import Work
from distri_engine.evaluation.models import unet_inputs
from distri_engine.evaluation.work import work_of
from distri_engine.methods import METHODS, Method
from distri_engine.slots import SLOT_KINDS, HaloSlot, StatsSlot
from distri_engine.step import Phase, Step, StepClock
from distri_engine.unet import ParallelUNet


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """One step of one rank."""

    times: int  # steps of the picture that are like this one
    phase: Phase
    macs: int
    moved: int  # bytes that operations other than matrix products read and write
    operations: int
    waited: Mapping[str, Traffic]  # by kind: a layer, or the step's end, waits for it
    overlapped: Mapping[str, Traffic]  # by kind: under way while layers compute
    halos_of_the_original: int  # elements that would be received as halos if those went to everybody

    @property
    def traffic(self) -> dict[str, Traffic]:
        """By kind, waited for or not."""
        nothing = Traffic()
        sums = {kind: self.waited.get(kind, nothing) + self.overlapped.get(kind, nothing) for kind in KINDS}
        return {kind: traffic for kind, traffic in sums.items() if traffic != nothing}

    @property
    def comm(self) -> int:
        """Elements received, as the paper counts them ("Comm."): by layers, without the output."""
        return sum(traffic.elements for kind, traffic in self.traffic.items() if kind != OUTPUT)

    @property
    def comm_of_the_original(self) -> int:
        """The same if halos went to everybody, as the original has it."""
        return self.comm + self.halos_of_the_original - self.traffic.get(SLOT_KINDS[HaloSlot], Traffic()).elements

    @property
    def total(self) -> Traffic:
        """Of all kinds."""
        return sum(self.traffic.values(), Traffic())

    @property
    def work(self) -> Work:
        """All of it in sums, for predictions."""
        waited, posted = (sum(kinds.values(), Traffic()) for kinds in (self.waited, self.overlapped))
        moments = self.overlapped.get(SLOT_KINDS[StatsSlot], Traffic())
        return Work(
            macs=self.macs,
            moved=self.moved,
            operations=self.operations,
            waits=waited.messages,
            waited=waited.link,
            posts=posted.messages,
            posted=posted.link,
            moments=moments.messages,
            moments_size=moments.link,
        )


@dataclass(frozen=True, kw_only=True)
class RankCost:
    """One picture on one rank."""

    rank: int
    steps: tuple[StepCost, ...]  # one of each kind, in the picture's order
    buffers: Mapping[str, int]  # bytes of message buffers by kind, at the picture's end

    @property
    def macs(self) -> int:
        """Of the whole picture."""
        return sum(step.times * step.macs for step in self.steps)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One picture on `ranks` ranks."""

    config: DistriConfig
    ranks: int
    branches: int  # guidance branches that run on ranks of their own
    costs: tuple[RankCost, ...]  # one rank of each kind, not at the edge if possible; those that rest are left out
    weights: int  # bytes of the UNet's weights, on every rank

    @property
    def busiest(self) -> RankCost:
        """The rank that computes most."""
        return max(self.costs, key=lambda cost: cost.macs)

    @property
    def least(self) -> RankCost:
        """The rank that computes least, of those that work."""
        return min(self.costs, key=lambda cost: cost.macs)

    @property
    def loudest(self) -> RankCost:
        """The rank that receives most in the last step."""
        return max(self.costs, key=lambda cost: cost.steps[-1].total.elements)

    @property
    def buffers(self) -> Mapping[str, int]:
        """Bytes of message buffers by kind, on the rank that has most."""
        return max((cost.buffers for cost in self.costs), key=lambda buffers: sum(buffers.values()))


def profile(
    unet: UNet2DConditionModel, config: DistriConfig, ranks: int, *, size: tuple[int, int], steps: int, guided: bool
) -> Profile:
    """Count one picture of size (rows, columns) of latents. `unet` is on the meta device.

    Raises ValueError if the ranks cannot share the picture, UnsupportedError or ModelError if the UNet has no form on
    bands.
    """
    method = METHODS[config.parallelism]
    axes = CountingMesh(0, ranks).axes(config, guided=guided)
    unit = 2 ** (len(unet.config.block_out_channels) - 1)
    # Naive patches may be rows in even steps and columns in odd ones.
    cuts = [method.boxes(config, Step(index, Phase.SYNC), size, unit, axes.patch_size) for index in (0, 1)]
    inputs = unet_inputs(unet, 2 if guided else 1, *size)
    costs = []
    for rank in _unlike(method, cuts, size):  # both guidance branches cost the same: the first one stands for both
        counted = CountedUNet(unet, config, CountingMesh(rank, ranks))
        costs.append(counted.picture(inputs, steps, guided=guided))
    weights = sum(parameter.nbytes for parameter in unet.parameters())
    return Profile(config=config, ranks=ranks, branches=axes.cfg_size, costs=tuple(costs), weights=weights)


def _unlike(method: Method, cuts: list[tuple[Box, ...]], size: tuple[int, int]) -> list[int]:
    """One patch index of each kind: bands of one size cost the same, a halo less at the picture's edges."""
    patches = range(1 if method.alone else len(cuts[0]))
    if all((box.rows, box.cols) == size for boxes in cuts for box in boxes):
        return sorted({patches[0], patches[-1]})  # it is no picture that is shared out; larger shares come first
    kinds: dict[Any, int] = {}
    for patch in sorted(patches, key=lambda patch: patch in (0, patches[-1])):  # the busier ones first: inside
        kinds.setdefault(tuple((boxes[patch].rows, boxes[patch].cols) for boxes in cuts), patch)
    return sorted(kinds.values())


class CountedUNet(ParallelUNet):
    """The engine's UNet on a counting mesh."""

    mesh: CountingMesh

    def __init__(self, unet: UNet2DConditionModel, config: DistriConfig, mesh: CountingMesh) -> None:
        super().__init__(unet, config, mesh)
        self._exchange = CountingExchange(mesh, self.clock)

    def picture(self, inputs: dict[str, Any], steps: int, *, guided: bool) -> RankCost:
        """Run the last step of each kind, and let the clock tick in place of the others."""
        self.begin(guided=guided)
        sample = inputs["sample"]
        alike = self._alike(steps, (int(sample.shape[2]), int(sample.shape[3])))
        costs = []
        for index in range(steps):
            if index in alike:
                costs.append(self.counted(inputs, alike[index]))
            else:
                self.clock.tick()
        return RankCost(rank=self.mesh.rank, steps=tuple(costs), buffers=self._exchange.buffer_bytes())

    def counted(self, inputs: dict[str, Any], times: int = 1) -> StepCost:
        """Run the next step and count it."""
        self.mesh.reset()
        work = work_of(lambda: self(**inputs))
        return StepCost(
            times=times,
            phase=self.clock.step.phase,
            macs=work.macs,
            moved=work.moved,
            operations=work.operations,
            waited=dict(self.mesh.waited),
            overlapped=dict(self.mesh.overlapped),
            halos_of_the_original=self.mesh.halos_of_the_original,
        )

    def _alike(self, steps: int, size: tuple[int, int]) -> dict[int, int]:
        """Last step of each kind -> how many there are. The last synchronous step is one: it plans the stale ones."""
        clock: StepClock = copy(self.clock)
        counts: Counter[Any] = Counter()
        last: dict[Any, int] = {}
        for index in range(steps):
            step = clock.tick()
            boxes = self.method.boxes(self.parallel_config, step, size, self.unit, self.axes.patch_size)
            kind = (step.phase, boxes, index == 0 and bool(self.method.rules))  # patched layers project the text once
            counts[kind] += 1
            last[kind] = index
        return {index: counts[kind] for kind, index in last.items()}
