"""Messages of the stale steps: the payloads of many slots packed into one flat buffer a peer, sent asynchronously and
joined one step later. What a payload means is exchange.py's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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


Item = tuple[Parcel, tuple[int, ...]]  # a tensor of this shape, of the slot of this parcel


@dataclass(frozen=True)
class Letter:
    """Parcels that travel alike: a payload for everybody is packed once, one for a neighbour beside it."""

    out: dict[tuple[int, ...], list[Item]]  # patch indices -> what is packed for them, in order
    into: dict[int, list[Item]]  # patch index -> what it packs for this rank, in order

    @classmethod
    def of(cls, parcels: Sequence[Parcel]) -> Letter:
        """What `parcels` send and receive."""
        destinations = sorted({peers for parcel in parcels for peers, _ in parcel.out})
        senders = sorted({peer for parcel in parcels for peer, _ in parcel.into})
        return cls(
            out={to: [(p, shape) for p in parcels for at, shape in p.out if at == to] for to in destinations},
            into={peer: [(p, shape) for p in parcels for at, shape in p.into if at == peer] for peer in senders},
        )


def letters(parcels: Sequence[Parcel]) -> list[Letter]:
    """One for payloads that go to everybody, and one for those that do not, as far as there are any."""
    everybody = [parcel for parcel in parcels if parcel.slot.to_everybody]
    neighbours = [parcel for parcel in parcels if not parcel.slot.to_everybody]
    return [Letter.of(members) for members in (everybody, neighbours) if members]


def room(items: Sequence[Item]) -> int:
    """Bytes that `items` take, each aligned."""
    return sum(_aligned(prod(shape) * parcel.dtype.itemsize) for parcel, shape in items)


def views(flat: torch.Tensor, items: Sequence[Item]) -> Iterator[tuple[Slot, torch.Tensor]]:
    """Where each of `items` stands in `flat`: bytes, [room(items)]."""
    start = 0
    for parcel, shape in items:
        size = prod(shape) * parcel.dtype.itemsize
        with torch.inference_mode(False):  # like `flat`, which serves pictures in and out of inference mode
            view = flat[start : start + size].view(parcel.dtype).view(shape)
        yield parcel.slot, view
        start += _aligned(size)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class Bucket:
    """Payloads that travel together, as messages."""

    def __init__(self, parcels: list[Parcel], empty: Empty) -> None:
        self.parcels = parcels
        self._posted = 0
        self._pending: list[Pending] = []
        self._outbox: dict[Slot, list[torch.Tensor]] = {parcel.slot: [] for parcel in parcels}
        self._messages = [(self._sends(letter, empty), self._receives(letter, empty)) for letter in letters(parcels)]
        for parcel in parcels:
            parcel.slot.bucket = self

    def _sends(self, letter: Letter, empty: Empty) -> dict[int, torch.Tensor]:
        sends: dict[int, torch.Tensor] = {}
        for peers, items in letter.out.items():
            flat = empty((room(items),), torch.uint8)
            for slot, view in views(flat, items):
                self._outbox[slot].append(view)
            sends |= dict.fromkeys(peers, flat)
        return sends

    def _receives(self, letter: Letter, empty: Empty) -> dict[int, torch.Tensor]:
        receives: dict[int, torch.Tensor] = {}
        for peer, items in letter.into.items():
            receives[peer] = empty((room(items),), torch.uint8)
            for slot, view in views(receives[peer], items):
                view.copy_(slot.received[peer])  # what the last synchronous step brought
                slot.received[peer] = view
        return receives

    @property
    def fresh(self) -> bool:
        """Whether nothing has been put in since the last launch: what that brought may not have been joined yet."""
        return self._posted == 0

    def put(self, slot: Slot, message: Sequence[torch.Tensor]) -> bool:
        """Pack what `slot` sends, one tensor for each of its outgoing ones; True when the bucket is full."""
        for view, tensor in zip(self._outbox[slot], message, strict=True):
            view.copy_(tensor)
        self._posted += 1
        return self._posted == len(self.parcels)

    def launch(self, swap: Swap, *, awaited: bool = False) -> None:
        """Start the messages. `awaited`: they are for this step, in which no output has been assembled yet."""
        self._posted = 0
        self._pending = [swap(sends, receives) for sends, receives in self._messages]

    def reset(self) -> None:
        """Forget what was put in since the last launch: a step that failed half-way left it."""
        self._posted = 0

    def join(self) -> None:
        """Wait for the messages that are under way, if any, and show them to the slots."""
        for pending in self._pending:
            pending.wait()
        self._pending = []

    def close(self) -> None:
        """Nobody will ask for it any more."""

    def outgoing_bytes(self, slot: Slot) -> int:
        """Bytes kept here for what `slot` sends; a payload for everybody is kept once."""
        return sum(view.nbytes for view in self._outbox.get(slot, []))
