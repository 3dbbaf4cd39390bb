"""What the ranks of one guidance branch tell each other inside a model, through one slot a patched layer (slots.py:
halo, gather, statistics). How payloads share messages is buckets.py's business.

Life of a step. SYNC: every slot swaps its payload with its peers and waits, inside the layer. STALE: a slot first
joins the message that was started one step earlier, hands out what it brought, and posts its own payload;
`comm_checkpoint` posted payloads leave together, asynchronously, while the layers go on computing (DistriFusion,
section 4.1 and figure 4). In mode extrapolated a slot posts not its payload but what it foresees for the next step,
from this step's payload and the one before; so the last synchronous step's foresight leaves when the first stale step
begins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch

from distri_engine.bands import Box
from distri_engine.boards import BoardBucket
from distri_engine.buckets import Bucket, Parcel, pack
from distri_engine.config import DistriConfig, SyncMode, check_factors
from distri_engine.ledger import Ledger, fits_ledger
from distri_engine.mesh import Axes, Mesh, Pending
from distri_engine.slots import SLOT_KINDS, AverageSlot, GatherSlot, HaloSlot, Slot, StatsSlot
from distri_engine.step import Phase, StepClock

AnySlot = TypeVar("AnySlot", bound=Slot)
Action = Callable[[], None]
Memory = dict[AverageSlot | str, torch.Tensor]  # what the exchange holds of a step, for the next one or for who asks
_SAMPLE = 64  # tokens of one layer's keys that are kept from step to step, to tell how far they moved
_FAR = 1e6  # relative to keys of zero everything is infinitely far


class Exchange:
    """All slots of one model on one mesh."""

    def __init__(self, mesh: Mesh, clock: StepClock) -> None:
        self.mesh = mesh
        self.clock = clock
        self.config = DistriConfig()
        self.axes = Axes(rank=0, cfg_size=1, patch_size=1)
        self.patch, self.patches = 0, 1  # index of this rank on the patch axis, and the axis's length
        self.peers: tuple[int, ...] = ()  # the other patch indices of this guidance branch
        self._boxes: tuple[Box, ...] = ()
        self.box = Box(0, 0, 0, 0)  # this rank's band
        self.rows: tuple[int, ...] = (1,)  # rows of every band
        self.weights: tuple[float, ...] = (1.0,)  # share of every band
        self.reach: tuple[float, ...] = (0.0, 0.0, 0.0)  # extrapolation factors, by kind of slot
        self.memory: tuple[float, ...] = (0.0, 0.0, 0.0)
        self._slots: list[Slot] = []
        self._parcels: list[Parcel] = []  # what a synchronous step sent, in order: so stale steps will pack it
        self._buckets: list[Bucket] = []
        self._full: Bucket | None = None  # a bucket that waits for the next layer before it leaves
        self._act: Callable[[Action], None] = _now  # how messages of stale steps start and end
        self.layout = 0  # changes with the memory in which messages are packed and arrive
        self._changes: list[torch.Tensor] = []  # relative change of what was sent, for an adaptive warm-up
        self._witness: Slot | None = None  # keys of a layer in the middle, which stand for all when that is only shown
        self._sample: torch.Tensor | None = None  # some of them in the previous step
        self._moved: torch.Tensor | None = None  # how far they moved in this one

    def halo(self, above: int, below: int) -> HaloSlot:
        """A slot for `above` and `below` neighbouring rows."""
        return self._add(HaloSlot(self, above, below))

    def gather(self) -> GatherSlot:
        """A slot for keys or values."""
        return self._add(GatherSlot(self))

    def stats(self) -> StatsSlot:
        """A slot for GroupNorm moments."""
        return self._add(StatsSlot(self))

    def average(self) -> AverageSlot:
        """A slot for other averages over the picture."""
        return self._add(AverageSlot(self))

    def _add(self, slot: AnySlot) -> AnySlot:
        self._slots.append(slot)
        return slot

    def begin(self, config: DistriConfig, axes: Axes, boxes: Sequence[Box]) -> None:
        """A new picture, cut into `boxes`, one a patch index. Buffers of the previous one serve again if they fit."""
        self.drain()
        if axes != self.axes or tuple(boxes) != self._boxes:
            self.forget()
            self.mesh.trim()
        self._boxes = tuple(boxes)
        self.config, self.axes, self.reach = config, axes, check_factors("extrapolation", config.extrapolation, 2)
        self.memory = check_factors("extrapolation_memory", config.extrapolation_memory, 1)
        self.patch, self.patches = axes.patch, axes.patch_size
        self.peers = tuple(patch for patch in range(self.patches) if patch != self.patch)
        self.box = boxes[self.patch]
        self.rows = tuple(box.rows for box in boxes)
        self.weights = tuple(rows / sum(self.rows) for rows in self.rows)
        gathers = [slot for slot in self._slots if isinstance(slot, GatherSlot)]
        self._witness = gathers[len(gathers) // 4 * 2] if gathers else None  # keys and values take turns
        for slot in self._slots:
            if isinstance(slot, StatsSlot) and slot.begin is not None:
                slot.begin()

    def start_step(self) -> None:
        """Before the first layer of a step."""
        self._moved = None
        if self.clock.step.phase is Phase.SYNC:
            self._parcels, self._changes = [], []
            return
        extrapolates = self.config.mode is SyncMode.EXTRAPOLATED
        if self._changes and not extrapolates:  # the adaptive warm-up is over
            self._forget_sent()
        self._changes = []
        if self._parcels:
            self._lay_out()
            if extrapolates and self.clock.step.index > 1:  # two steps are behind us: something was foreseen
                self._send_ahead()
            for slot in self._slots:
                slot.ahead = []
        for board in self._boards:
            board.open()

    def finish_step(self) -> None:
        """After the last layer: a message that is still waiting leaves now and travels while the scheduler works."""
        self._launch_full()
        for board in self._boards:
            board.shut()

    def drain(self) -> None:
        """Wait for all messages in flight, so that no buffer is written behind our back. Every rank must get here."""
        self._launch_full()
        for bucket in self._buckets:
            bucket.join()
            bucket.reset()
        self._forget_sent()  # the next picture has no previous step
        self._sample = None

    # --- steps that are recorded in place of being run (graphs.py)

    @contextmanager
    def recorded(self, leave: Callable[[Action], None]) -> Iterator[None]:
        """While the layers of a stale step are recorded and nothing happens: what starts and ends messages goes to
        `leave`, which does it when the step is replayed. After an exception it is as if the step had not begun.
        """
        before = self.carried()
        self._act = leave
        try:
            yield
        except BaseException:
            self._full = None
            for bucket in self._buckets:
                bucket.reset()
            self.carry(before)
            raise
        finally:
            self._act = _now

    def carried(self) -> Memory:
        """What one step leaves for the next one as Python objects, where a replayed step would not find it: own moments
        of every layer, a sample of the watched keys, and how far these moved.
        """
        own: Memory = {slot: slot.own for slot in self._slots if isinstance(slot, AverageSlot) and slot.own is not None}
        watched = {"sample": self._sample, "moved": self._moved}
        return own | {name: tensor for name, tensor in watched.items() if tensor is not None}

    def carry(self, memory: Memory) -> None:
        """The way back: `memory` is what the last step has left."""
        for slot, own in memory.items():
            if isinstance(slot, AverageSlot):
                slot.own = own
        self._sample, self._moved = memory.get("sample"), memory.get("moved")

    def _forget_sent(self) -> None:
        for slot in self._slots:
            slot.sent, slot.moved, slot.ahead = [], [], []

    def forget(self) -> None:
        """Free all buffers: the next picture has another shape, or the mesh is gone."""
        self._close_buckets()
        self._parcels, self._full, self._sample = [], None, None
        self._forget_sent()
        for slot in self._slots:
            slot.received, slot.borrowed, slot.bucket = {}, False, None

    def close_slots(self) -> None:
        """The layers that traded here are gone."""
        self.drain()
        self.forget()
        self._slots = []

    def drop_buckets(self) -> None:
        """The messages of stale steps no longer fit the slots; the next stale step lays them out anew."""
        if self._buckets:
            self._close_buckets()
            for slot in self._slots:
                slot.bucket = None
            self.mesh.trim()

    def _close_buckets(self) -> None:
        self.layout += 1
        for bucket in self._buckets:
            bucket.close()
        self._buckets = []

    def buffer_bytes(self) -> dict[str, int]:
        """Bytes of message buffers by kind of slot: what arrived last, what stale steps send from, and what they
        extrapolate from.
        """
        held = dict.fromkeys(SLOT_KINDS.values(), 0)
        for slot in self._slots:
            tensors = (*(() if slot.borrowed else slot.received.values()), *slot.sent, *slot.moved, *slot.ahead)
            held[SLOT_KINDS[type(slot)]] += sum(tensor.nbytes for tensor in tensors)
            held[SLOT_KINDS[type(slot)]] += sum(bucket.outgoing_bytes(slot) for bucket in self._buckets)
        return held

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised buffer where messages are made."""
        # Not an inference tensor, whoever asks: the buffers serve pictures in and out of inference mode.
        with torch.inference_mode(False):
            return torch.empty(shape, dtype=dtype, device=self.mesh.wire_device)

    def swap(self, sends: dict[int, torch.Tensor], receives: dict[int, torch.Tensor]) -> Pending:
        """`Mesh.swap` with patch indices of this guidance branch in place of ranks."""
        return self.mesh.swap(
            {self.rank_of(peer): tensor for peer, tensor in sends.items()},
            {self.rank_of(peer): tensor for peer, tensor in receives.items()},
        )

    def rank_of(self, peer: int) -> int:
        """The rank that has patch index `peer` in this guidance branch."""
        return self.axes.rank_at(self.axes.cfg, peer)

    def all_reduce(self, partial: torch.Tensor) -> torch.Tensor:
        """The sum of everybody's `partial` over the ranks of this guidance branch, fresh at every step."""
        axes = self.axes
        return self.mesh.all_reduce(partial, [axes.rank_at(axes.cfg, patch) for patch in range(self.patches)])

    def note(self, slot: Slot, payload: torch.Tensor) -> None:
        """Remember in a synchronous step what `slot` needs to know if the next one is stale."""
        if self.clock.adaptive and isinstance(slot, GatherSlot):
            if slot.sent:
                self._changes.append(relative_change(slot.sent[0], payload))
            if self.config.mode is not SyncMode.EXTRAPOLATED:
                slot.sent = [payload.clone()]
        if self.config.mode in slot.fresh_in | slot.silent_in:
            return
        if self.clock.stale_may_follow:
            self._parcels.append(Parcel.of(slot, payload))
        if self.config.mode is SyncMode.EXTRAPOLATED:
            slot.ahead = slot.message(payload)

    def change(self) -> float:
        """Relative change of this rank's keys and values since the previous step, mean over layers; 0 if it has no
        peers to tell them to, infinite if there was no previous step.
        """
        if not self._changes:
            return 0.0 if self.patches == 1 and self.clock.step.index else math.inf
        return float(torch.stack(self._changes).mean())

    def watch(self, slot: Slot, payload: torch.Tensor) -> None:
        """Tell by one layer in the middle how far activations move. payload: [B, tokens, C].

        A small copy and two norms a step, whatever the picture's size, and nobody waits for the numbers here.
        """
        if slot is not self._witness:
            return
        before, self._sample = self._sample, payload[:, :: max(1, payload.shape[1] // _SAMPLE)].clone()
        if before is not None:
            self._moved = relative_change(before, self._sample)

    def moved(self) -> float | None:
        """Relative change of the watched keys from the step before to this one; None in the first step, and where
        nothing is traded. After the step: reading it waits for the device.
        """
        return None if self._moved is None else min(float(self._moved), _FAR)

    def post(self, slot: Slot, message: list[torch.Tensor]) -> None:
        """Join the message that brought `slot.received`, and put `message` into the next one."""
        bucket = slot.bucket
        assert bucket is not None, "a slot trades in synchronous steps first"
        if self._full is not None or bucket.fresh:
            self._act(partial(self._turn, self._full, bucket))
            self._full = None
        if bucket.put(slot, message):
            # Not before the next layer asks: the layer that filled the bucket is about to read what the previous
            # message brought, and the new one arrives in the same place.
            self._full = bucket

    def _turn(self, full: Bucket | None, following: Bucket) -> None:
        if full is not None:
            full.launch(self.swap)
        following.join()

    @property
    def _keeps_ledger(self) -> bool:
        """Whether layers compute in the memory that peers read."""
        return self.mesh.has_boards and self.mesh.device == self.mesh.wire_device

    @property
    def _boards(self) -> list[BoardBucket]:
        return [bucket for bucket in self._buckets if isinstance(bucket, BoardBucket)]

    def _send_ahead(self) -> None:
        """Start the messages that carry what the last synchronous step foresaw for this one."""
        for bucket in self._buckets:
            for parcel in bucket.parcels:
                bucket.put(parcel.slot, parcel.slot.ahead)
            bucket.launch(self.swap, awaited=True)

    def _launch_full(self) -> None:
        if self._full is not None:
            self._act(partial(self._full.launch, self.swap))
            self._full = None

    def _lay_out(self) -> None:
        """Share out the noted parcels to messages of `comm_checkpoint`; the old buffers stay if they fit."""
        moments = [parcel for parcel in self._parcels if isinstance(parcel.slot, StatsSlot)]
        if not self._keeps_ledger or not fits_ledger(moments):
            moments = []
        others = [parcel for parcel in self._parcels if not (moments and isinstance(parcel.slot, StatsSlot))]
        groups = [*([moments] if moments else []), *pack(others, self.config.comm_checkpoint)]
        self._parcels = []
        if [bucket.parcels for bucket in self._buckets] != groups:
            self._close_buckets()
            kinds = [Ledger if group is moments else BoardBucket for group in groups]
            self._buckets = [
                kind(group, self) if self.mesh.has_boards else Bucket(group, self.empty)
                for kind, group in zip(kinds, groups, strict=True)
            ]
            packed = {parcel.slot for parcels in groups for parcel in parcels}
            for slot in self._slots:  # those that have nothing to send let go of the old messages
                if slot not in packed:
                    slot.bucket = None
                    slot.received = {peer: tensor.clone() for peer, tensor in slot.received.items()}
                    slot.borrowed = False


def _now(action: Action) -> None:
    action()


def relative_change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """|new - old| / |new|, L2 norms in float32; 0 where both are zero."""
    new = new.float()
    return torch.nan_to_num((new - old.float()).norm() / new.norm())
