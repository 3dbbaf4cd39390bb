"""Messages of the stale steps: the payloads of many slots packed into one flat buffer a peer, sent asynchronously and
joined one step later. What a payload means is exchange.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import torch

from distri_engine.mesh import Pending

if TYPE_CHECKING:
    from distri_engine.slots import Slot

_ALIGN = 64  # bytes; payloads of different types share a message

Empty = Callable[[tuple[int, ...], torch.dtype], torch.Tensor]
Swap = Callable[[dict[int, torch.Tensor], dict[int, torch.Tensor]], Pending]


@dataclass(frozen=True, eq=True)
class Parcel:
    """What one slot sends and receives in a stale step; equal parcels fit the same place in a message."""

    slot: Slot
    dtype: torch.dtype
    out: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]  # (patch indices, shape) of every outgoing tensor
    into: tuple[tuple[int, tuple[int, ...]], ...]  # (patch index, shape) of every incoming tensor

    @classmethod
    def of(cls, slot: Slot, payload: torch.Tensor) -> Parcel:
        """The parcel that `slot` makes of `payload`."""
        return cls(
            slot=slot,
            dtype=payload.dtype,
            out=tuple((peers, tuple(tensor.shape)) for peers, tensor in slot.outgoing(payload)),
            into=tuple(sorted(slot.incoming(payload).items())),
        )


def pack(parcels: Sequence[Parcel], size: int) -> list[list[Parcel]]:
    """Groups of at most `size` parcels, in order."""
    return [list(parcels[start : start + size]) for start in range(0, len(parcels), size)]


class Bucket:
    """Payloads that travel together. A payload for everybody is packed once, one for a neighbour beside it."""

    def __init__(self, parcels: list[Parcel], empty: Empty) -> None:
        self.parcels = parcels
        self._posted = 0
        self._pending: list[Pending] = []
        self._outbox: dict[Slot, list[torch.Tensor]] = {parcel.slot: [] for parcel in parcels}
        self._messages: list[tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]] = []

        everybody = [parcel for parcel in parcels if parcel.slot.to_everybody]
        neighbours = [parcel for parcel in parcels if not parcel.slot.to_everybody]
        for members in (everybody, neighbours):
            if members:
                self._messages.append((self._make_sends(members, empty), self._make_receives(members, empty)))

    def _make_sends(self, parcels: list[Parcel], empty: Empty) -> dict[int, torch.Tensor]:
        destinations = {peers for parcel in parcels for peers, _ in parcel.out}
        sends: dict[int, torch.Tensor] = {}
        for peers in sorted(destinations):
            items = [(p, shape) for p in parcels for to, shape in p.out if to == peers]
            flat, views = _flat([(shape, p.dtype) for p, shape in items], empty)
            for (parcel, _), view in zip(items, views, strict=True):
                self._outbox[parcel.slot].append(view)
            sends |= dict.fromkeys(peers, flat)
        return sends

    def _make_receives(self, parcels: list[Parcel], empty: Empty) -> dict[int, torch.Tensor]:
        receives: dict[int, torch.Tensor] = {}
        inboxes: dict[Slot, dict[int, torch.Tensor]] = {parcel.slot: {} for parcel in parcels}
        for peer in sorted({peer for parcel in parcels for peer, _ in parcel.into}):
            items = [(p, shape) for p in parcels for sender, shape in p.into if sender == peer]
            receives[peer], views = _flat([(shape, p.dtype) for p, shape in items], empty)
            for (parcel, _), view in zip(items, views, strict=True):
                view.copy_(parcel.slot.received[peer])  # what the last synchronous step brought
                inboxes[parcel.slot][peer] = view
        for slot, inbox in inboxes.items():
            slot.received, slot.bucket = inbox, self
        return receives

    def put(self, slot: Slot, message: Sequence[torch.Tensor]) -> bool:
        """Pack what `slot` sends, one tensor for each of its outgoing ones; True when the bucket is full."""
        for view, tensor in zip(self._outbox[slot], message, strict=True):
            view.copy_(tensor)
        self._posted += 1
        return self._posted == len(self.parcels)

    def launch(self, swap: Swap) -> None:
        """Start the messages."""
        self._posted = 0
        self._pending = [swap(sends, receives) for sends, receives in self._messages]

    def reset(self) -> None:
        """Forget what was put in since the last launch: a step that failed half-way left it."""
        self._posted = 0

    def join(self) -> None:
        """Wait for the messages that are under way, if any."""
        for pending in self._pending:
            pending.wait()
        self._pending = []

    def outgoing_bytes(self, slot: Slot) -> int:
        """Bytes kept here for what `slot` sends; a payload for everybody is kept once."""
        return sum(view.nbytes for view in self._outbox.get(slot, []))


def _flat(
    items: Sequence[tuple[tuple[int, ...], torch.dtype]], empty: Empty
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """One byte buffer and a view into it for every (shape, dtype), each aligned."""
    sizes = [prod(shape) * dtype.itemsize for shape, dtype in items]
    starts, end = [], 0
    for size in sizes:
        starts.append(end)
        end += -(-size // _ALIGN) * _ALIGN
    flat = empty((end,), torch.uint8)
    views = [
        flat[start : start + size].view(dtype).view(shape)
        for start, size, (shape, dtype) in zip(starts, sizes, items, strict=True)
    ]
    return flat, views
