"""The rows of a benchmark: which of the combinations that were asked for differ in what is computed. Making their
pictures is the business of benchmark_crew.py.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from distri_engine.bands import branch_ranks, patch_ranks
from distri_engine.config import DistriConfig, Parallelism, SyncMode
from distri_engine.request import GenerationRequest

STOCK = "diffusers"  # in place of a parallelism: the baseline


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way to make the picture."""

    config: DistriConfig | None  # None: the baseline
    ranks: int  # processes that work
    threads: int  # of each
    mode: SyncMode | None = None  # where there are peers whose values could be fresh or not
    split: bool = False  # whether each guidance branch has ranks of its own

    @property
    def parallelism(self) -> str:
        """The method, or STOCK."""
        return STOCK if self.config is None else self.config.parallelism.value

    @property
    def name(self) -> str:
        """For people, and for files: `patch-no_sync-2`, `diffusers-1-thread`."""
        if self.config is None:
            return f"{STOCK}-{self.threads}-thread{'s' if self.threads > 1 else ''}"
        return "-".join([self.parallelism, *([self.mode] if self.mode else []), *self._split, str(self.ranks)])

    @property
    def _split(self) -> list[str]:
        return ["split"] if self.split else []


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What was asked for: every combination of it."""

    methods: Sequence[Parallelism]
    modes: Sequence[SyncMode]
    splits: Sequence[bool]
    ranks: Sequence[int]


def stock_rows(threads: int, cores: int) -> list[Row]:
    """The baseline with as many threads as a rank has, and with all cores."""
    return [Row(config=None, ranks=1, threads=number) for number in dict.fromkeys((threads, max(threads, cores)))]


def engine_rows(wish: Wish, request: GenerationRequest, config: DistriConfig, threads: int) -> list[Row]:
    """Of all combinations those that differ, by rank counts. What they have in common comes from `config`.

    `single` is one rank. On one rank the others are the same, but for `patch`, whose layers are its own; without either
    of these `single` stands for them. Modes are of patches that have peers. Where two ranks take a guidance branch
    each, nothing is cut, and all methods that cut are the same.
    """
    rows: dict[Hashable, Row] = {}
    for one in _combinations(wish, config):
        ranks = one.ranks or 1
        branches = branch_ranks(guided=request.guided, config=one, ranks=ranks)
        peers = patch_ranks(request, one, ranks) > 1
        mode = one.mode if peers and one.parallelism is Parallelism.PATCH else None
        method = one.parallelism if peers or ranks == 1 else None
        row = Row(config=one, ranks=ranks, threads=threads, mode=mode, split=branches == 2)
        rows.setdefault((ranks, method, mode, row.split), row)
    return sorted(rows.values(), key=lambda row: row.ranks)  # and as they were asked for where that is equal


def _combinations(wish: Wish, config: DistriConfig) -> Iterator[DistriConfig]:
    alone = {Parallelism.SINGLE, Parallelism.PATCH}  # what there is to measure on one rank
    for method, count in product(wish.methods, wish.ranks):
        if method is Parallelism.SINGLE:
            count = 1
        elif count == 1 and method not in alone:
            if alone & set(wish.methods):
                continue
            method = Parallelism.SINGLE
        for split, mode in product(wish.splits, wish.modes):
            yield config.replace(parallelism=method, ranks=count, split_batch=split, mode=mode)
