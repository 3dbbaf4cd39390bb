"""Which part of a picture each rank owns: uneven bands, for any rank count and any size. Pure integers; moving the
rows between ranks is exchange.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from distri_engine.config import SIZE_MULTIPLE, DistriConfig, Parallelism, SplitScheme
from distri_engine.request import GenerationRequest, Scheduler


@dataclass(frozen=True)
class Box:
    """A rectangle of latent cells: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def rows(self) -> int:
        return self.bottom - self.top

    @property
    def cols(self) -> int:
        return self.right - self.left

    def pixels(self, scale: int) -> tuple[int, int, int, int]:
        """The same rectangle in picture pixels, as (left, top, right, bottom); `scale` pixels a latent cell."""
        return self.left * scale, self.top * scale, self.right * scale, self.bottom * scale


def split_units(units: int, ranks: int, lines: str = "rows") -> tuple[int, ...]:
    """Share `units` among `ranks`; shares differ by at most one, the larger ones come first.

    Raises ValueError if a rank would stay empty.
    """
    if ranks > units:
        raise ValueError(f"{ranks} ranks cannot share {units} units of {lines}; use at most {units} ranks")
    share, larger = divmod(units, ranks)
    return tuple(share + (rank < larger) for rank in range(ranks))


def spread(units: int, ranks: int) -> tuple[range, ...]:
    """Share `units` among `ranks` as ranges; they differ by at most one unit, and some are empty if units are few."""
    share, larger = divmod(units, ranks)
    starts = [rank * share + min(rank, larger) for rank in range(ranks + 1)]
    return tuple(range(start, stop) for start, stop in pairwise(starts))


def cut_rows(height: int, width: int, unit: int, ranks: int) -> tuple[Box, ...]:
    """Cut a latent of `height` x `width` cells into `ranks` bands of whole rows, each a multiple of `unit` rows."""
    edges = _edges(height, unit, ranks, "rows")
    return tuple(Box(top, bottom, 0, width) for top, bottom in pairwise(edges))


def cut_cols(height: int, width: int, unit: int, ranks: int) -> tuple[Box, ...]:
    """Cut a latent into `ranks` bands of whole columns, each a multiple of `unit` columns."""
    edges = _edges(width, unit, ranks, "columns")
    return tuple(Box(0, height, left, right) for left, right in pairwise(edges))


def _edges(length: int, unit: int, ranks: int, lines: str) -> list[int]:
    if length % unit:
        raise ValueError(f"{length} latent {lines} are not a multiple of {unit}, the unit of this UNet")
    edges = [0]
    for share in split_units(length // unit, ranks, lines):
        edges.append(edges[-1] + share * unit)
    return edges


def used_ranks(config: DistriConfig, ranks: int) -> int:
    """How many of `ranks` make the picture. Raises ValueError if `config` asks for more than there are."""
    if config.ranks is not None and config.ranks > ranks:
        raise ValueError(f"{config.ranks} ranks are asked for and {ranks} are there; give a number from 1 to {ranks}")
    return 1 if config.parallelism is Parallelism.SINGLE else config.ranks or ranks


def patch_ranks(request: GenerationRequest, config: DistriConfig, ranks: int) -> int:
    """How many of `ranks` share one guidance branch of `request`: the length of the patch axis."""
    used = used_ranks(config, ranks)
    return used // branch_ranks(guided=request.guided, config=config, ranks=used)


def branch_ranks(*, guided: bool, config: DistriConfig, ranks: int) -> int:
    """Length of the cfg axis: 2 if guidance is on and the ranks can be halved between its branches, else 1."""
    if config.parallelism is Parallelism.PARADIGMS:  # ranks share timesteps, and run both branches of their own
        return 1
    return 2 if guided and config.split_batch and ranks % 2 == 0 else 1


def check_bands(request: GenerationRequest, config: DistriConfig, ranks: int, multiple: int = SIZE_MULTIPLE) -> None:
    """Raise ValueError if `ranks` cannot share the picture, by size or by scheduler, with the rule and the remedy.

    `multiple` is the model's: 8 x 2^(UNet levels - 1) pixels. Sizes that the request leaves to the model pass.
    """
    if config.parallelism is Parallelism.PARADIGMS and request.scheduler is not Scheduler.DDIM:
        raise ValueError(
            f"parallelism paradigms needs the steps of DDIM and does not work with scheduler {request.scheduler}; "
            "choose scheduler ddim, or another parallelism"
        )
    check_cut(request.height, request.width, patch_ranks(request, config, ranks), config, multiple)


def check_cut(height: int | None, width: int | None, patches: int, config: DistriConfig, multiple: int) -> None:
    """Raise ValueError if a picture of height x width pixels cannot be cut into `patches`, with the remedy."""
    if config.parallelism not in (Parallelism.PATCH, Parallelism.NAIVE_PATCH):
        return
    sides: list[tuple[str, int | None, str]] = []
    scheme = config.split_scheme if config.parallelism is Parallelism.NAIVE_PATCH else SplitScheme.ROW
    if scheme in (SplitScheme.ROW, SplitScheme.ALTERNATE):
        sides.append(("height", height, "rows"))
    if scheme in (SplitScheme.COL, SplitScheme.ALTERNATE):
        sides.append(("width", width, "columns"))
    for name, pixels, lines in sides:
        if pixels is not None and pixels // multiple < patches:
            units = pixels // multiple
            raise ValueError(
                f"{patches} ranks cannot share {units} units of {lines} "
                f"({name} {pixels} is {units} x {multiple} pixels); "
                f"use at most {units} ranks or a {name} of at least {patches * multiple}"
            )
