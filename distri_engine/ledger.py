"""GroupNorm's moments of all layers in the stale steps of one host: written where the peers read them, and what a layer
needs of the previous step summed up for all layers at once, when a step begins. What a message or a step is is
boards.py's and exchange.py's business; slots.py does the same for one layer, over messages and on any device.

A few dozen numbers a layer, of thirty layers: what can wait for the step's end is done for all of them at once, and
what cannot takes as few calls as possible, each of which finds its code gone from the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from distri_engine.boards import BoardBucket
from distri_engine.buckets import Parcel
from distri_engine.config import SyncMode
from distri_engine.slots import CORRECTING, StatsSlot

if TYPE_CHECKING:
    from distri_engine.exchange import Exchange


class Desk:
    """What all layers share in a step: how moments are combined, and where that is put down for one of them."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        """shape: [2, B, groups]."""
        with torch.inference_mode(False):  # it serves pictures in and out of inference mode
            total = torch.empty(shape, dtype=torch.float32)
            self.mean, self.variance = total.unbind()
            self.total = total.unsqueeze(-1)
        self.share = 1.0  # of the picture's rows that are the own ones
        self.weight = 1.0  # by which own moments count: that share, or 1 if the correction is added
        self.corrects = False  # whether it is
        self.bessel = False


class Page:
    """One layer's moments in this step: rows of tables that hold all layers'."""

    def __init__(self, desk: Desk, sums: torch.Tensor, rest: torch.Tensor, peers: torch.Tensor) -> None:
        """sums: [2, B, groups], to be written: mean(x) and |x| of this rank's rows. rest: what is added to the mean and
        to mean(x^2); peers: the part of it that is an average's. All float32.
        """
        self.desk = desk
        self.mean, self.norm = sums.unbind()
        self.rest_mean, self.rest_square = rest.unbind()
        self.peers = peers
        self.count = 1  # numbers that a mean is of
        self._groups = (*self.norm.shape, -1)

    def combine(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, ...], own rows -> [2, B, groups, 1]: mean and variance to normalise by, until the next call."""
        desk, norm = self.desk, self.norm
        mean, variance = desk.mean, desk.variance
        flat = x.reshape(self._groups)
        self.count = count = flat.shape[2]
        # Two passes that read. The squares are added up in float32, which costs digits of the variance where the mean
        # is many deviations away from zero: a stale step is no exact one anyway.
        torch.mean(flat, 2, dtype=torch.float32, out=self.mean)
        torch.linalg.vector_norm(flat, dim=2, dtype=torch.float32, out=norm)
        torch.add(self.rest_mean, self.mean, alpha=desk.weight, out=mean)
        torch.addcmul(self.rest_square, norm, norm, value=desk.weight / count, out=variance)
        variance.addcmul_(mean, mean, value=-1)
        if desk.corrects:  # PatchGroupNorm says why this is looked at
            excess = torch.addcmul(variance, norm, norm, value=-desk.share / count)
            if excess.addcmul_(self.mean, self.mean, value=desk.share).min().item() < 0:
                torch.where(excess < 0, self._plain_variance(), variance, out=variance)
        elif variance.min().item() < 0:  # by rounding
            variance.clamp_(min=0)
        if desk.bessel:  # of the own slice, as the original has it
            variance.mul_(count / (count - 1))
        return desk.total

    def _plain_variance(self) -> torch.Tensor:
        """[B, groups], without the correction."""
        mean, square = self.peers
        mean = torch.add(mean, self.mean, alpha=self.desk.share)
        square = torch.addcmul(square, self.norm, self.norm, value=self.desk.share / self.count)
        return square.addcmul_(mean, mean, value=-1).clamp_(min=0)


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
        with torch.inference_mode(False):
            tables = torch.zeros(3, *self._outs[0].shape, dtype=torch.float32)
        self._sums, self._rest, self._peers = tables.numpy()
        self._desk = Desk(self._outs[0].shape[1:])
        self._pages = [Page(self._desk, *rows) for rows in zip(*tables, strict=True)]

    def _show(self) -> None:
        """Sum up what layers add to their own moments."""
        exchange, desk = self._exchange, self._desk
        mode = exchange.config.mode
        desk.share = desk.weight = exchange.weights[exchange.patch]
        desk.corrects, desk.bessel = mode in CORRECTING, exchange.config.bessel_correction
        rest = sum(exchange.weights[peer] * table for peer, table in self._ins[1 - self._side].items())
        if desk.corrects:  # as StatsSlot.trade
            self._peers[...] = rest
            rest += (desk.share - 1) * self._outs[1 - self._side]
            desk.weight = 1.0
        self._rest[...] = rest
        for slot, page in zip(self._slots, self._pages, strict=True):
            slot.page = page
            if slot.ready is not None:
                slot.ready()

    def shut(self) -> None:
        """The layers are done: the peers may read."""
        if self._open:
            now = self._sums.astype(np.float64)
            now[:, 1] = np.square(now[:, 1]) / np.array([page.count for page in self._pages]).reshape(-1, 1, 1)
            exchange = self._exchange
            extrapolates = exchange.config.mode is SyncMode.EXTRAPOLATED and exchange.reach[StatsSlot.kind]
            self._outs[self._side][...] = self._ahead(now) if extrapolates else now
        super().shut()

    def _ahead(self, now: np.ndarray) -> np.ndarray:
        """What `StatsSlot` does, for all layers at once. now: [layers, 2, B, groups]."""
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
        return np.stack([mean, deviation * deviation + mean * mean], 1)

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
