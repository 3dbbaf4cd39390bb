"""Which method on how many ranks makes a picture fastest: predicted from counted costs and a machine's figures, chosen,
and explained in a sentence. Correcting predictions by what was measured is experience.py's business; this is plain
arithmetic, free of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from distri_engine.bands import branch_ranks, check_bands, used_ranks
from distri_engine.config import AUTO, DistriConfig, Parallelism, SyncMode
from distri_engine.evaluation.costs import GUIDANCE, SINGLE, STALE, SYNC, Costs, Share, tensor
from distri_engine.evaluation.machine import Machine, Work
from distri_engine.request import GenerationRequest

MARGIN = 1.05  # what was chosen last stays, unless something else is faster by more than noise
AUTO_WARMUP = 4  # a warm-up of "auto" is taken to be as long as the default one; it mostly is


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to share a picture out."""

    parallelism: Parallelism
    ranks: int  # that work; the others rest
    split_batch: bool = False  # guidance branches on ranks of their own

    @classmethod
    def of(cls, config: DistriConfig, ranks: int, *, guided: bool) -> Way:
        """How `config` shares a picture out in a group of `ranks`. Raises ValueError if it wants more."""
        used = used_ranks(config, ranks)
        branches = branch_ranks(guided=guided, config=config, ranks=used)
        return cls(parallelism=config.parallelism, ranks=used, split_batch=branches == 2)

    def applied(self, config: DistriConfig, ranks: int) -> DistriConfig:
        """`config` made this way in a group of `ranks`."""
        part = None if self.ranks == ranks or self.parallelism is Parallelism.SINGLE else self.ranks
        return config.replace(parallelism=self.parallelism, split_batch=self.split_batch, ranks=part)

    @property
    def branches(self) -> int:
        """Guidance branches on ranks of their own."""
        return 2 if self.split_batch else 1

    @property
    def patches(self) -> int:
        """Ranks that share a guidance branch."""
        return self.ranks // self.branches

    def words(self, group: int, noun: str) -> str:
        """ "patches on 4 of 8 devices"."""
        if self.parallelism is Parallelism.SINGLE:
            return f"1 of {group} {noun} alone" if group > 1 else f"1 {noun.removesuffix('s')}"
        where = f"{self.ranks} of {group} {noun}"
        if self.parallelism is Parallelism.TENSOR:
            return f"tensor parallelism on {where}"
        if self.patches == 1:
            return f"guidance split over {where}"
        return f"patches{' and guidance split' if self.split_batch else ''} on {where}"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What of a request and a config decides how long denoising takes, however it is shared out."""

    height: int  # pixels
    width: int
    rows: int  # latent cells
    cols: int
    batch: int  # pictures times guidance branches
    guided: bool
    steps: int
    warmup_steps: int
    mode: SyncMode  # of patches

    @classmethod
    def of(cls, request: GenerationRequest, config: DistriConfig, *, cell: int) -> Picture:
        """Of a resolved request; `cell` pixels a latent cell."""
        assert request.height is not None
        assert request.width is not None
        return cls(
            height=request.height,
            width=request.width,
            rows=request.height // cell,
            cols=request.width // cell,
            batch=request.images * (1 + request.guided),
            guided=request.guided,
            steps=request.timesteps,
            warmup_steps=AUTO_WARMUP if config.warmup_steps == AUTO else int(config.warmup_steps),
            mode=config.mode,
        )

    def synchronous(self, way: Way) -> int:
        """Steps in which everything is fresh."""
        displaced = way.parallelism is Parallelism.PATCH and self.mode is not SyncMode.FULL_SYNC
        return min(self.steps, self.warmup_steps + 1) if displaced else self.steps


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds a step."""

    sync_s: float
    stale_s: float

    def seconds(self, picture: Picture, way: Way) -> float:
        """Denoising."""
        fresh = picture.synchronous(way)
        return fresh * self.sync_s + (picture.steps - fresh) * self.stale_s


def works(picture: Picture, way: Way, costs: Costs) -> tuple[Work, Work]:
    """A synchronous step and a displaced one, on the rank with most to do. KeyError if that was not counted."""
    patch = way.parallelism is Parallelism.PATCH and way.patches > 1
    own = costs.own_rows(picture.rows, way.patches) if patch else picture.rows
    share = Share(
        rows=picture.rows, cols=picture.cols, own=own, patches=way.patches, branches=way.branches, batch=picture.batch
    )
    if patch:
        fresh, displaced = costs.work(SYNC, share), costs.work(STALE, share)
        modes = {
            SyncMode.FULL_SYNC: fresh,
            SyncMode.SYNC_GN: displaced.fresh_moments,
            SyncMode.NO_SYNC: displaced.silent,
        }
        return fresh, modes.get(picture.mode, displaced)
    families = {Parallelism.SINGLE: SINGLE, Parallelism.PATCH: GUIDANCE}
    work = costs.work(families.get(way.parallelism) or tensor(way.patches), share)
    return work, work


def predicted(picture: Picture, way: Way, costs: Costs, machine: Machine) -> Pace:
    """Seconds a step on `machine`."""
    fresh, displaced = works(picture, way, costs)
    return Pace(sync_s=machine.step_seconds(fresh), stale_s=machine.step_seconds(displaced))


def ways(request: GenerationRequest, config: DistriConfig, ranks: int, multiple: int, costs: Costs) -> list[Way]:
    """What may be chosen from in a group of `ranks`: one device, and displaced patches and tensor parallelism on any
    number of ranks that can share the picture. Other methods make other pictures. `multiple`: of the picture's sides,
    in pixels.
    """
    found = [Way(parallelism=Parallelism.SINGLE, ranks=1)]
    for method in (Parallelism.PATCH, Parallelism.TENSOR):
        for count in range(2, ranks + 1):
            for split in (False, True) if request.guided and count % 2 == 0 else (False,):
                way = Way(parallelism=method, ranks=count, split_batch=split)
                if method is Parallelism.TENSOR and tensor(way.patches) not in costs.families:
                    continue  # not counted; on one rank a branch it would be the guidance split again
                try:
                    check_bands(request, way.applied(config, ranks), ranks, multiple)
                except ValueError:
                    continue
                found.append(way)
    return found


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How long a picture would take one way."""

    way: Way
    seconds: float  # denoising; text and VAE aside
    pictures: int = 0  # measured ones that this rests on; 0: it is a prediction


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What was chosen, and from what."""

    picture: Picture
    group: int  # ranks that there are
    chosen: Estimate
    estimates: tuple[Estimate, ...]  # of everything that could have been, the fastest first

    def choice(self, noun: str = "devices") -> str:
        """ "patches on 4 of 8 devices"."""
        return self.chosen.way.words(self.group, noun)

    def reason(self, noun: str = "devices") -> str:
        """Why, or what that means: half a sentence."""
        chosen, fastest, one = self.chosen, self.estimates[0], f"one {noun.removesuffix('s')}"
        size = f"at {self.picture.width} x {self.picture.height}"
        alone = self._fastest(lambda way: way.parallelism is Parallelism.SINGLE)
        shared = self._fastest(lambda way: way.parallelism is not Parallelism.SINGLE)
        everybody = self._fastest(lambda way: way.ranks == self.group)
        if fastest.seconds * MARGIN < chosen.seconds:
            other = one if fastest is alone else fastest.way.words(self.group, noun)
            return f"{other} {self._compared(fastest)} {size}"
        if chosen is alone and shared is not None:
            return f"sharing {self._compared(shared)} {size}"
        if chosen.way.ranks < self.group and everybody is not None:
            return f"all {self.group} {self._compared(everybody, plural=True)} {size}"
        if alone is not None and chosen is not alone:
            known = "was measured" if alone.pictures and chosen.pictures else "is expected"
            ratio = alone.seconds / chosen.seconds
            return f"{_times(ratio, most=chosen.way.ranks)} than {one} {known} {size}"
        return "there is nobody to share with" if self.group == 1 else f"nothing else fits {size}"

    def _fastest(self, of: Callable[[Way], bool]) -> Estimate | None:
        return next((estimate for estimate in self.estimates if of(estimate.way)), None)

    def _compared(self, other: Estimate, *, plural: bool = False) -> str:
        known = "measured" if other.pictures and self.chosen.pictures else "expected"
        tense = {"measured": ("was", "were"), "expected": ("is", "are")}[known][plural]
        ranks = max(self.chosen.way.ranks, other.way.ranks)
        return f"{tense} {known} to be {_times(self.chosen.seconds / other.seconds, most=ranks)}"

    def as_json(self, sentence: str) -> dict[str, Any]:
        """For reports."""
        candidates = [
            {
                "parallelism": one.way.parallelism.value,
                "ranks": one.way.ranks,
                "split_batch": one.way.split_batch,
                "seconds": round(one.seconds, 4),
                "measured": one.pictures,
            }
            for one in self.estimates
        ]
        return {"sentence": sentence, "candidates": candidates}


def _times(ratio: float, *, most: float) -> str:
    """How one time relates to another in words: "1.5x faster". More than as many times as there are ranks is what the
    machine did besides while the slower one was measured, and is not told.
    """
    if max(ratio, 1 / ratio) < 1.005:
        return "as fast"
    if ratio > 1.1 * most:  # caches may help a little more
        return "faster"
    text = f"{max(ratio, 1 / ratio):.1f}" if max(ratio, 1 / ratio) >= 1.05 else f"{max(ratio, 1 / ratio):.2f}"
    return f"{text}x {'faster' if ratio > 1 else 'slower'}"


def choose(
    picture: Picture,
    estimates: Iterable[Estimate],
    group: int,
    *,
    allowed: Callable[[Way], bool] = lambda way: True,
    incumbent: Way | None = None,
) -> Plan:
    """The fastest of the `allowed` ways; `incumbent`, what was chosen last, unless another is clearly faster.

    Raises ValueError if none is allowed.
    """
    ranking = sorted(estimates, key=lambda one: (one.seconds, one.way.ranks))
    open_to = [one for one in ranking if allowed(one.way)]
    if not open_to:
        raise ValueError("no way to share this picture out fits; choose a method, and fewer ranks or a larger height")
    kept = [one for one in open_to if one.way == incumbent and one.seconds <= MARGIN * open_to[0].seconds]
    return Plan(picture=picture, group=group, chosen=(kept or open_to)[0], estimates=tuple(ranking))
