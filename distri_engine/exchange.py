"""What the ranks of one guidance branch tell each other inside a model: typed slots (halo, gather, statistics), one
per patched layer. Whether a value is fresh or one step old is decided here and nowhere else; layers call
`slot.trade(x)` and compute. How payloads share messages is buckets.py's business.

Life of a step. SYNC: every slot swaps its payload with its peers and waits, inside the layer. STALE: a slot first
joins the message that was started one step earlier, hands out what it brought, and posts its own payload;
`comm_checkpoint` posted payloads leave together, asynchronously, while the layers go on computing (DistriFusion,
section 4.1 and figure 4). In mode extrapolated a slot posts not its payload but what it foresees for the next step,
from this step's payload and the one before; so the last synchronous step's foresight leaves when the first stale step
begins.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

import torch

from distri_engine.bands import Box
from distri_engine.buckets import Bucket, Parcel, pack
from distri_engine.config import DistriConfig, SyncMode, check_factors
from distri_engine.errors import ModelError
from distri_engine.mesh import Axes, Mesh, Pending
from distri_engine.step import Phase, StepClock


class Slot(ABC):
    """One layer's line to its peers: what this rank sends, and what arrived last."""

    fresh_in: frozenset[SyncMode]  # modes that wait for fresh values at every step
    silent_in: frozenset[SyncMode] = frozenset({SyncMode.NO_SYNC})  # modes that send nothing after warm-up
    to_everybody = True  # whether all peers get the same payload
    kind: int  # place of this kind of slot in DistriConfig.extrapolation

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.sent: list[torch.Tensor] = []  # what this rank had to send in the previous step, where that is needed
        self.moved: list[torch.Tensor] = []  # how that differed from the step before
        self.ahead: list[torch.Tensor] = []  # what it foresaw in a synchronous step
        self.received: dict[int, torch.Tensor] = {}  # patch index of the peer -> its payload, on the wire's device
        self.bucket: Bucket | None = None  # the message that this slot's payload shares in stale steps

    @property
    def alone(self) -> bool:
        """Whether this rank owns the whole picture, so that there is nobody to trade with."""
        return self.exchange.patches == 1

    @abstractmethod
    def outgoing(self, payload: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        """What of `payload` goes to whom: (patch indices, tensor) pairs."""

    @abstractmethod
    def incoming(self, payload: torch.Tensor) -> dict[int, tuple[int, ...]]:
        """Patch indices of the peers that send to this rank, and the shape of what they send."""

    def update(self, payload: torch.Tensor) -> None:
        """Bring `received` to the state that this step's layer must see, and send `payload`."""
        exchange, mode = self.exchange, self.exchange.config.mode
        if exchange.clock.step.phase is Phase.SYNC or mode in self.fresh_in:
            self._swap_now(payload)
        elif mode is not SyncMode.NO_SYNC:  # which leaves `received` frozen as the last synchronous step left it
            exchange.post(self, self.message(payload))

    def message(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """What a peer is to use in the next step: the outgoing tensors of `payload`, extrapolated if the mode says so.

        With x(t) of this step and d(t) = x(t) - x(t-1): x(t) + a (d(t) + m d(t-1)).
        """
        tensors = [tensor for _, tensor in self.outgoing(payload)]
        config = self.exchange.config
        if config.mode is not SyncMode.EXTRAPOLATED:
            return tensors
        before, self.sent = self.sent, [tensor.clone() for tensor in tensors]
        if not before:  # the first step of a picture
            return self.sent
        earlier, moved = self.moved, [new - old for new, old in zip(tensors, before, strict=True)]
        reach, memory = self.exchange.reach[self.kind], self.exchange.memory[self.kind]
        self.moved = moved if memory else []
        ahead = [torch.add(x, d, alpha=reach) for x, d in zip(tensors, moved, strict=True)]
        return (
            [torch.add(x, d, alpha=reach * memory) for x, d in zip(ahead, earlier, strict=True)] if earlier else ahead
        )

    def _swap_now(self, payload: torch.Tensor) -> None:
        exchange = self.exchange
        exchange.note(self, payload)
        shapes = self.incoming(payload)
        held = {peer: (tuple(tensor.shape), tensor.dtype) for peer, tensor in self.received.items()}
        if held != {peer: (shape, payload.dtype) for peer, shape in shapes.items()}:
            exchange.drop_buckets()  # the old buffers may be views into them
            self.received = {peer: exchange.empty(shape, payload.dtype) for peer, shape in shapes.items()}
        sends: dict[int, torch.Tensor] = {}
        for peers, tensor in self.outgoing(payload):
            sends |= dict.fromkeys(peers, tensor.to(exchange.mesh.wire_device).contiguous())
        exchange.swap(sends, self.received).wait()

    def arrived(self, peer: int, like: torch.Tensor) -> torch.Tensor:
        """The last payload of `peer`, on the device of `like`."""
        return self.received[peer].to(like.device)


class HaloSlot(Slot):
    """Rows next to this rank's band, from its neighbours only."""

    kind = 1
    fresh_in = frozenset({SyncMode.FULL_SYNC})
    to_everybody = False

    def __init__(self, exchange: Exchange, above: int, below: int) -> None:
        super().__init__(exchange)
        self.above = above  # rows needed from the band above
        self.below = below  # rows needed from the band below

    def outgoing(self, payload: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        me, last, rows = self.exchange.patch, self.exchange.patches - 1, payload.shape[2]
        messages: list[tuple[tuple[int, ...], torch.Tensor]] = []
        if me > 0 and self.below:
            messages.append(((me - 1,), payload[:, :, : self.below]))
        if me < last and self.above:
            messages.append(((me + 1,), payload[:, :, rows - self.above :]))
        return messages

    def incoming(self, payload: torch.Tensor) -> dict[int, tuple[int, ...]]:
        batch, channels, _, width = payload.shape
        me, last = self.exchange.patch, self.exchange.patches - 1
        needed = {me - 1: self.above, me + 1: self.below}
        return {peer: (batch, channels, rows, width) for peer, rows in needed.items() if rows and 0 <= peer <= last}

    def trade(self, x: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """x: [B, C, rows, W] -> the rows above [B, C, above, W] and below; None at the picture's edge."""
        if self.alone:
            return None, None
        if x.shape[2] < (needed := max(self.above, self.below)):
            raise ModelError(
                f"a band of {x.shape[2]} rows is less than the {needed} that its neighbour's convolution needs; "
                "use fewer ranks or a larger height"
            )
        self.update(x)
        me = self.exchange.patch
        above = self.arrived(me - 1, x) if me - 1 in self.received else None
        below = self.arrived(me + 1, x) if me + 1 in self.received else None
        return above, below


class GatherSlot(Slot):
    """Keys or values of the whole picture, own rows always fresh."""

    kind = 0
    fresh_in = frozenset({SyncMode.FULL_SYNC})

    def outgoing(self, payload: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        return [(self.exchange.peers, payload)]

    def incoming(self, payload: torch.Tensor) -> dict[int, tuple[int, ...]]:
        batch, tokens, channels = payload.shape
        rows, own_rows = self.exchange.rows, self.exchange.rows[self.exchange.patch]
        return {peer: (batch, tokens * rows[peer] // own_rows, channels) for peer in self.exchange.peers}

    def trade(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, own tokens, C] -> [B, all tokens, C] in row order."""
        if self.alone:
            return x
        self.update(x)
        exchange = self.exchange
        return torch.cat([x if p == exchange.patch else self.arrived(p, x) for p in range(exchange.patches)], dim=1)


class StatsSlot(Slot):
    """GroupNorm moments of the whole picture, combined as the mode says (DistriFusion, section 4.2)."""

    kind = 2
    fresh_in = frozenset({SyncMode.FULL_SYNC, SyncMode.SYNC_GN})
    silent_in = frozenset({SyncMode.SEPARATE_GN, SyncMode.NO_SYNC})

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self._own: torch.Tensor | None = None  # own moments of the previous step

    def outgoing(self, payload: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        return [(self.exchange.peers, payload)]

    def incoming(self, payload: torch.Tensor) -> dict[int, tuple[int, ...]]:
        return dict.fromkeys(self.exchange.peers, tuple(payload.shape))

    def message(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """Moments for the next step. What is extrapolated is mean and deviation: mean(x^2) by itself might end up below
        mean(x)^2, or near it, and a variance near zero spoils the picture.
        """
        if self.exchange.config.mode is not SyncMode.EXTRAPOLATED:
            return super().message(payload)
        mean, square = payload
        deviation = (square - mean * mean).clamp(min=0).sqrt()
        ((mean, deviation),) = super().message(torch.stack([mean, deviation]))
        deviation = deviation.clamp(min=0)
        return [torch.stack([mean, deviation * deviation + mean * mean])]

    @property
    def silent(self) -> bool:
        """Whether this step's mode normalises by the own slice's moments, so that there is nothing to trade."""
        return self.exchange.clock.step.phase is Phase.STALE and self.exchange.config.mode in self.silent_in

    def trade(self, moments: torch.Tensor) -> torch.Tensor:
        """moments: [2, B, groups], own mean(x) and mean(x^2) -> the moments to normalise by.

        Weighted by rows where bands are uneven.
        """
        exchange = self.exchange
        previous, self._own = self._own, moments
        self.update(moments)
        stale = exchange.clock.step.phase is Phase.STALE
        if stale and exchange.config.mode is SyncMode.CORRECTED_ASYNC_GN:
            assert previous is not None, "the first step of a picture is synchronous"
            return self._average(previous) + (moments - previous)
        return self._average(moments)

    def _average(self, own: torch.Tensor) -> torch.Tensor:
        exchange = self.exchange
        total = own * exchange.weights[exchange.patch]
        for peer in exchange.peers:
            total = total + self.arrived(peer, own) * exchange.weights[peer]
        return total


# What a kind of slot is called in figures.
SLOT_KINDS: dict[type[Slot], str] = {HaloSlot: "halo", GatherSlot: "gather", StatsSlot: "stats"}

AnySlot = TypeVar("AnySlot", bound=Slot)


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
        self._changes: list[torch.Tensor] = []  # relative change of what was sent, for an adaptive warm-up

    def halo(self, above: int, below: int) -> HaloSlot:
        """A slot for `above` and `below` neighbouring rows."""
        return self._add(HaloSlot(self, above, below))

    def gather(self) -> GatherSlot:
        """A slot for keys or values."""
        return self._add(GatherSlot(self))

    def stats(self) -> StatsSlot:
        """A slot for GroupNorm moments."""
        return self._add(StatsSlot(self))

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

    def start_step(self) -> None:
        """Before the first layer of a step."""
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

    def finish_step(self) -> None:
        """After the last layer: a message that is still waiting leaves now and travels while the scheduler works."""
        self._launch_full()

    def drain(self) -> None:
        """Wait for all messages in flight, so that no buffer is written behind our back. Every rank must get here."""
        self._launch_full()
        for bucket in self._buckets:
            bucket.join()
            bucket.reset()
        self._forget_sent()  # the next picture has no previous step

    def _forget_sent(self) -> None:
        for slot in self._slots:
            slot.sent, slot.moved, slot.ahead = [], [], []

    def forget(self) -> None:
        """Free all buffers: the next picture has another shape, or the mesh is gone."""
        self._buckets, self._parcels, self._full = [], [], None
        self._forget_sent()
        for slot in self._slots:
            slot.received, slot.bucket = {}, None

    def close_slots(self) -> None:
        """The layers that traded here are gone."""
        self.drain()
        self.forget()
        self._slots = []

    def drop_buckets(self) -> None:
        """The messages of stale steps no longer fit the slots; the next stale step lays them out anew."""
        if self._buckets:
            self._buckets = []
            for slot in self._slots:
                slot.bucket = None
            self.mesh.trim()

    def buffer_bytes(self) -> dict[str, int]:
        """Bytes of message buffers by kind of slot: what arrived last, what stale steps send from, and what they
        extrapolate from.
        """
        held = dict.fromkeys(SLOT_KINDS.values(), 0)
        for slot in self._slots:
            tensors = (*slot.received.values(), *slot.sent, *slot.moved, *slot.ahead)
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
        axes = self.axes
        return self.mesh.swap(
            {axes.rank_at(axes.cfg, peer): tensor for peer, tensor in sends.items()},
            {axes.rank_at(axes.cfg, peer): tensor for peer, tensor in receives.items()},
        )

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

    def post(self, slot: Slot, message: list[torch.Tensor]) -> None:
        """Join the message that brought `slot.received`, and put `message` into the next one."""
        self._launch_full()
        assert slot.bucket is not None, "a slot trades in synchronous steps first"
        slot.bucket.join()
        if slot.bucket.put(slot, message):
            # Not before the next layer asks: the layer that filled the bucket is about to read what the previous
            # message brought, and the new one arrives in the same place.
            self._full = slot.bucket

    def _send_ahead(self) -> None:
        """Start the messages that carry what the last synchronous step foresaw for this one."""
        for bucket in self._buckets:
            for parcel in bucket.parcels:
                bucket.put(parcel.slot, parcel.slot.ahead)
            bucket.launch(self.swap)

    def _launch_full(self) -> None:
        if self._full is not None:
            self._full.launch(self.swap)
            self._full = None

    def _lay_out(self) -> None:
        """Share out the noted parcels to messages of `comm_checkpoint`; the old buffers stay if they fit."""
        groups = pack(self._parcels, self.config.comm_checkpoint)
        self._parcels = []
        if [bucket.parcels for bucket in self._buckets] != groups:
            self._buckets = [Bucket(parcels, self.empty) for parcels in groups]
            packed = {parcel.slot for parcels in groups for parcel in parcels}
            for slot in self._slots:  # those that have nothing to send let go of the old messages
                if slot not in packed:
                    slot.bucket = None
                    slot.received = {peer: tensor.clone() for peer, tensor in slot.received.items()}


def relative_change(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """|new - old| / |new|, L2 norms in float32; 0 where both are zero."""
    new = new.float()
    return torch.nan_to_num((new - old.float()).norm() / new.norm())
