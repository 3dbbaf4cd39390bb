"""What a rank tells its peers, counted: a mesh of any size on the meta device, on which nothing moves, and an exchange
that knows what each message is for. The engine runs on them unchanged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from distri_engine.buckets import Parcel
from distri_engine.exchange import Exchange
from distri_engine.mesh import Mesh, Pending
from distri_engine.slots import SLOT_KINDS, HaloSlot, Slot
from distri_engine.step import StepClock

REDUCE = "reduce"  # sums over all ranks, inside layers
OUTPUT = "output"  # every rank's patch of the noise prediction, after the last layer
KINDS = (*SLOT_KINDS.values(), REDUCE, OUTPUT)


@dataclass(frozen=True)
class Traffic:
    """What one rank hears and says in one step. Payloads only: no headers, no padding between them."""

    elements: int = 0  # received
    received: int = 0  # bytes
    sent: int = 0  # bytes; what goes to three peers counts three times
    messages: int = 0  # exchanges with all peers at once; in stale steps several of them travel as one

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.elements + other.elements,
            self.received + other.received,
            self.sent + other.sent,
            self.messages + other.messages,
        )

    @property
    def link(self) -> int:
        """Bytes that the busier direction of the rank's link carries; the directions do not disturb each other."""
        return max(self.received, self.sent)


class CountingMesh(Mesh):
    """Rank `rank` of `size` on the meta device. Messages are written down instead of sent."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__(0, 1, torch.device("meta"))  # one rank: there is no process group to ask
        self.rank, self.size = rank, size
        self.kind = OUTPUT  # of what is sent without a slot
        self.reset()

    def reset(self) -> None:
        """Start of a step."""
        self.waited: dict[str, Traffic] = defaultdict(Traffic)  # by kind: a layer, or the step's end, waits for it
        self.overlapped: dict[str, Traffic] = defaultdict(Traffic)  # by kind: under way while layers compute
        self.halos_of_the_original = 0  # elements that would arrive if halos went to everybody, from both edges

    def swap(self, sends: Mapping[int, torch.Tensor], receives: Mapping[int, torch.Tensor]) -> Pending:
        """Count messages that no slot of the exchange sends."""
        into, out = list(receives.values()), list(sends.values())
        self.waited[self.kind] += Traffic(
            elements=sum(tensor.numel() for tensor in into),
            received=sum(tensor.nbytes for tensor in into),
            sent=sum(tensor.nbytes for tensor in out),
            messages=int(bool(into or out)),
        )
        return Pending([], self.meter)


class CountingExchange(Exchange):
    """Counts by kind of layer. In stale steps payloads of all kinds share a message, so slots are counted."""

    mesh: CountingMesh

    def __init__(self, mesh: CountingMesh, clock: StepClock) -> None:
        super().__init__(mesh, clock)

    def start_step(self) -> None:
        """Layers follow."""
        self.mesh.kind = REDUCE
        super().start_step()

    def finish_step(self) -> None:
        """No more layers in this step."""
        super().finish_step()
        self.mesh.kind = OUTPUT

    def note(self, slot: Slot, payload: torch.Tensor) -> None:
        """A slot swaps its payload at once, and waits."""
        self._count(Parcel.of(slot, payload), self.mesh.waited)
        super().note(slot, payload)

    def post(self, slot: Slot, payload: Any) -> None:
        """A slot puts its payload into the next message."""
        assert slot.bucket is not None, "a slot trades in synchronous steps first"
        self._count(next(parcel for parcel in slot.bucket.parcels if parcel.slot is slot), self.mesh.overlapped)
        super().post(slot, payload)

    def swap(self, sends: dict[int, torch.Tensor], receives: dict[int, torch.Tensor]) -> Pending:
        """Nothing moves; what would have has been counted above."""
        return Pending([], self.mesh.meter)

    def _count(self, parcel: Parcel, ledger: dict[str, Traffic]) -> None:
        size = parcel.dtype.itemsize
        elements = sum(prod(shape) for _, shape in parcel.into)
        sent = sum(len(peers) * prod(shape) for peers, shape in parcel.out)
        ledger[SLOT_KINDS[type(parcel.slot)]] += Traffic(elements, elements * size, sent * size, messages=1)
        if isinstance(parcel.slot, HaloSlot):
            batch, channels, _, width = next(shape for _, shape in (*parcel.into, *parcel.out))
            rows = 2 * parcel.slot.above * len(self.peers)
            self.mesh.halos_of_the_original += batch * channels * rows * width
