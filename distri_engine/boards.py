"""Stale steps on one host, without messages: payloads are written where the peers read them one step later, in memory
that all ranks have mapped. What a payload means is exchange.py's business.

Every place is there twice, for even and odd steps, so that nobody writes what somebody reads: a rank writes in step t
what its peers read in step t + 1, and writes there again in step t + 2. Nobody says when it may be read, because every
step ends with a meeting: a rank's output leaves when its layers are done, and the next step begins when all outputs
have met. So what was written in step t is there in step t + 1, and what is read in step t + 1 has been read when step
t + 2 begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from distri_engine.buckets import Bucket, Letter, Parcel, Swap, letters, room, views
from distri_engine.mesh import Pending

if TYPE_CHECKING:
    from distri_engine.exchange import Exchange
    from distri_engine.slots import Slot

_SIDES = (0, 1)


class BoardBucket(Bucket):
    """Payloads that are written together."""

    def __init__(self, parcels: list[Parcel], exchange: Exchange) -> None:
        self.parcels = parcels
        self._exchange = exchange
        self._posted = 0
        self._open = False
        self._mesh = exchange.mesh
        self._places: list[tuple[int, int]] = []  # (offset, bytes) on this rank's board
        self._written = 0  # bytes that peers read after a launch
        self._outboxes: tuple[dict[Slot, list[torch.Tensor]], ...] = tuple(
            {parcel.slot: [] for parcel in parcels} for _ in _SIDES
        )
        self._inboxes: tuple[dict[Slot, dict[int, torch.Tensor]], ...] = tuple(
            {parcel.slot: {} for parcel in parcels} for _ in _SIDES
        )
        self._side = 0  # that is written in this step
        self._news: int | None = None  # the side that was launched and not yet shown to the slots
        self._signals: list[Pending] = []
        for letter in letters(parcels):
            self._hang(letter, exchange)
        for parcel in parcels:
            parcel.slot.bucket = self

    def _hang(self, letter: Letter, exchange: Exchange) -> None:
        """Take places on the board, and learn those of the peers."""
        offsets: dict[int, torch.Tensor] = {}
        for peers, items in letter.out.items():
            size = room(items)
            offset, flat = self._mesh.take_place(2 * size)
            self._places.append((offset, 2 * size))
            self._written += len(peers) * size
            for side, outbox in zip(_SIDES, self._outboxes, strict=True):
                for slot, view in views(flat[side * size :], items):
                    outbox[slot].append(view)
            offsets |= dict.fromkeys(peers, torch.tensor([offset]))
        theirs = {peer: torch.empty(1, dtype=torch.int64) for peer in letter.into}
        metered = self._mesh.meter.sent_bytes
        exchange.swap(offsets, theirs).wait()
        self._mesh.meter.sent_bytes = metered  # that was no payload
        for peer, items in letter.into.items():
            size = room(items)
            flat = self._mesh.look(exchange.rank_of(peer), int(theirs[peer]), 2 * size)
            for side, inbox in zip(_SIDES, self._inboxes, strict=True):
                for slot, view in views(flat[side * size :], items):
                    inbox[slot][peer] = view

    def open(self) -> None:
        """A stale step begins. If the peers have written for it, slots write by themselves until `shut`; in a picture's
        first one they have not, unless it was foreseen.
        """
        if self._news is None:
            return
        self.join()
        self._open = True
        self._show()

    def _show(self) -> None:
        for slot, places in self._outboxes[self._side].items():
            slot.outbox = places

    def shut(self) -> None:
        """The layers are done: the peers may read."""
        if self._open:
            self._clear()
            self.launch(self._exchange.swap)

    def _clear(self) -> None:
        self._open = False
        for parcel in self.parcels:
            parcel.slot.outbox = None

    def put(self, slot: Slot, message: Sequence[torch.Tensor]) -> bool:
        """Write what `slot` says, one tensor for each of its outgoing ones; True when everything is written."""
        for view, tensor in zip(self._outboxes[self._side][slot], message, strict=True):
            view.copy_(tensor)
        self._posted += 1
        return self._posted == len(self.parcels)

    def launch(self, swap: Swap, *, awaited: bool = False) -> None:
        """It is written. `awaited`: for this step, in which no output has been assembled yet, so that ranks must tell
        each other.
        """
        self._posted = 0
        self._news, self._side = self._side, 1 - self._side
        self._mesh.meter.sent_bytes += self._written
        if awaited:
            peers = {peer for parcel in self.parcels for peer, _ in parcel.into}
            listeners = {peer for parcel in self.parcels for to, _ in parcel.out for peer in to}
            signals = {peer: torch.empty(1, dtype=torch.uint8) for peer in peers}
            self._signals = [swap(dict.fromkeys(listeners, torch.zeros(1, dtype=torch.uint8)), signals)]

    def reset(self) -> None:
        """The picture is over, perhaps half-way through a step."""
        self._posted, self._side, self._news, self._signals = 0, 0, None, []
        self._clear()

    def join(self) -> None:
        """Show the slots what was written for this step, if anything was."""
        if self._news is None:
            return
        for signal in self._signals:
            signal.wait()
        for slot, inbox in self._inboxes[self._news].items():
            slot.received, slot.borrowed = inbox, True
        self._news, self._signals = None, []

    def close(self) -> None:
        """Give the places back."""
        for offset, size in self._places:
            self._mesh.give_place(offset, size)
        self._places = []
        self._clear()

    def outgoing_bytes(self, slot: Slot) -> int:
        """Bytes written here for what `slot` sends, of even and odd steps; a payload for everybody is kept once."""
        return sum(view.nbytes for outbox in self._outboxes for view in outbox.get(slot, []))
