"""GroupNorm's moments of all layers in the stale steps of one host: written where the peers read them, and what a layer
needs of the previous step summed up for all layers at once, when a step begins. What a message or a step is is
boards.py's and exchange.py's business; slots.py does the same for one layer, over messages and on any device.

A few dozen numbers a layer: NumPy is at them and done before torch has found its kernel, and a step has thirty such
layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from distri_engine.boards import BoardBucket
from distri_engine.buckets import Parcel
from distri_engine.config import SyncMode
from distri_engine.slots import StatsSlot

if TYPE_CHECKING:
    from distri_engine.exchange import Exchange


class Desk:
    """What all layers share in a step: how moments are combined, and where a layer's sums are put down for that."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """shape: [2, B, groups]."""
        with torch.inference_mode(False):  # it serves pictures in and out of inference mode
            self.sums = torch.empty(shape, dtype=torch.float32)
        self.mean, self.norm = self.sums.unbind()
        self.seen = self.sums.numpy()
        self.share = 1.0  # by which own moments count
        self.corrects = False  # whether the previous average is corrected, which may leave a variance below zero
        self.bessel = False


class Page:
    """One layer's moments in this step: rows of tables that hold all layers'."""

    def __init__(self, desk: Desk, own: np.ndarray, rest: np.ndarray) -> None:
        """own: [2, B, groups], to be written: mean(x) and mean(x^2) of this rank's rows. rest: what is added to it."""
        self.desk, self.own, self.rest = desk, own, rest
        self.mean, self.square = own

    def combine(self, x: torch.Tensor) -> np.ndarray:
        """x: [B, C, ...], own rows -> [2, B, groups], float64: mean and variance to normalise by."""
        desk, square = self.desk, self.square
        flat = x.reshape(*self.mean.shape, -1)
        # Two passes that read. The squares are added up in float32, which costs digits of the variance where the mean
        # is many deviations away from zero: a stale step is no exact one anyway.
        torch.mean(flat, 2, dtype=torch.float32, out=desk.mean)
        torch.linalg.vector_norm(flat, dim=2, dtype=torch.float32, out=desk.norm)
        self.own[...] = desk.seen
        square *= square
        square /= flat.shape[2]
        total: np.ndarray = self.own + self.rest if desk.share == 1 else self.own * desk.share + self.rest
        mean, variance = total
        variance -= mean * mean
        if variance.min() < 0:  # by rounding, or by the correction: the own slice's then stands in, the mean stays
            own = np.maximum(square - self.mean * self.mean, 0) if desk.corrects else 0
            np.copyto(variance, own, where=variance < 0)
        if desk.bessel:  # of the own slice, as the original has it
            variance *= flat.shape[2] / (flat.shape[2] - 1)
        return total


def fits_ledger(parcels: Sequence[Parcel]) -> bool:
    """Whether the moments of all layers are alike, so that they make a table."""
    return len({(parcel.dtype, parcel.out, parcel.into) for parcel in parcels}) == 1


class Ledger(BoardBucket):
    """The moments of all layers: tables of [layers, 2, B, groups], two that peers read and two of every peer's."""

    def __init__(self, parcels: list[Parcel], exchange: Exchange) -> None:
        super().__init__(parcels, exchange)
        self._slots = [parcel.slot for parcel in parcels if isinstance(parcel.slot, StatsSlot)]
        self._outs = [_table([outbox[slot][0] for slot in self._slots]) for outbox in self._outboxes]
        self._ins = [
            {peer: _table([inbox[slot][peer] for slot in self._slots]) for peer in exchange.peers}
            for inbox in self._inboxes
        ]
        self._rest, self._now = np.zeros_like(self._outs[0]), np.zeros_like(self._outs[0])
        self._desk = Desk(self._rest.shape[1:])
        # For even steps, odd ones, and those in which peers read something else than own moments.
        self._pages = [
            [Page(self._desk, own, rest) for own, rest in zip(table, self._rest, strict=True)]
            for table in (*self._outs, self._now)
        ]

    def _show(self) -> None:
        """Sum up what layers add to their own moments."""
        exchange, desk = self._exchange, self._desk
        mode, desk.share = exchange.config.mode, exchange.weights[exchange.patch]
        desk.corrects, desk.bessel = mode is SyncMode.CORRECTED_ASYNC_GN, exchange.config.bessel_correction
        self._rest[...] = sum(exchange.weights[peer] * table for peer, table in self._ins[1 - self._side].items())
        if desk.corrects:  # previous average + (own fresh - own previous)
            self._rest += (desk.share - 1) * self._outs[1 - self._side]
            desk.share = 1.0
        pages = self._pages[2 if mode is SyncMode.EXTRAPOLATED else self._side]
        for slot, page in zip(self._slots, pages, strict=True):
            slot.page = page

    def shut(self) -> None:
        """The layers are done: the peers may read."""
        if self._open and self._exchange.config.mode is SyncMode.EXTRAPOLATED:
            self._foresee(self._now, self._outs[self._side])
        super().shut()

    def _foresee(self, now: np.ndarray, out: np.ndarray) -> None:
        """What `StatsSlot.message` does, for all layers at once."""
        reach, memory = (factors[StatsSlot.kind] for factors in (self._exchange.reach, self._exchange.memory))
        mean, square = now[:, 0], now[:, 1]
        new = np.stack([mean, np.sqrt(np.maximum(square - mean * mean, 0))], 1)  # mean and deviation
        moved = new - np.stack([slot.sent[0].numpy() for slot in self._slots])
        ahead = new + reach * moved
        if all(slot.moved for slot in self._slots):
            ahead += reach * memory * np.stack([slot.moved[0].numpy() for slot in self._slots])
        for slot, sent, difference in zip(self._slots, torch.from_numpy(new), torch.from_numpy(moved), strict=True):
            slot.sent, slot.moved = [sent], [difference] if memory else []
        mean, deviation = ahead[:, 0], np.maximum(ahead[:, 1], 0)
        out[:, 0], out[:, 1] = mean, deviation * deviation + mean * mean

    def _clear(self) -> None:
        super()._clear()
        for parcel in self.parcels:
            if isinstance(parcel.slot, StatsSlot):
                parcel.slot.page = None


def _table(rows: Sequence[torch.Tensor]) -> np.ndarray:
    """Rows of one message, which stand at equal distances, as one array over the same memory."""
    first = rows[0]
    step = rows[1].storage_offset() - first.storage_offset() if len(rows) > 1 else first.numel()
    return first.as_strided((len(rows), *first.shape), (step, *first.stride())).numpy()
