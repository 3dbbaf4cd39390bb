"""The slots of the patched layers: who sends what to whom, and whether what a layer sees is fresh, one step old, or was
foreseen one step ago. That is decided here and nowhere else; layers call `slot.trade(x)` and compute. Pictures, steps
and messages are exchange.py's business.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from distri_engine.config import SyncMode
from distri_engine.errors import ModelError
from distri_engine.step import Phase

if TYPE_CHECKING:
    from distri_engine.buckets import Bucket
    from distri_engine.exchange import Exchange
    from distri_engine.ledger import Page


# Modes that correct what there is of averages by how far the own ones were off.
CORRECTING = frozenset({SyncMode.CORRECTED_ASYNC_GN, SyncMode.EXTRAPOLATED})


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
        self.borrowed = False  # whether `received` is memory that the peers write
        self.bucket: Bucket | None = None  # the message that this slot's payload shares in stale steps
        self.outbox: list[torch.Tensor] | None = None  # where peers will read, while `received` is up to date

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
        if self.outbox is not None:
            for view, tensor in zip(self.outbox, self.message(payload), strict=True):
                view.copy_(tensor)
            return
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
        fits = held == {peer: (shape, payload.dtype) for peer, shape in shapes.items()}
        if not fits:
            exchange.drop_buckets()  # the old buffers may be views into them
        if self.borrowed or not fits:
            exchange.layout += 1
            self.received = {peer: exchange.empty(shape, payload.dtype) for peer, shape in shapes.items()}
            self.borrowed = False
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
        exchange = self.exchange
        exchange.watch(self, x)
        self.update(x)
        return torch.cat([x if p == exchange.patch else self.arrived(p, x) for p in range(exchange.patches)], dim=1)


class AverageSlot(Slot):
    """The average over the picture of what each band has an average of, combined as the mode says for GroupNorm's
    moments (DistriFusion, section 4.2).
    """

    kind = 2
    fresh_in = frozenset({SyncMode.FULL_SYNC, SyncMode.SYNC_GN})
    silent_in = frozenset({SyncMode.SEPARATE_GN, SyncMode.NO_SYNC})

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.own: torch.Tensor | None = None  # what peers have of this rank in this step: what it sent last

    def outgoing(self, payload: torch.Tensor) -> list[tuple[tuple[int, ...], torch.Tensor]]:
        return [(self.exchange.peers, payload)]

    def incoming(self, payload: torch.Tensor) -> dict[int, tuple[int, ...]]:
        return dict.fromkeys(self.exchange.peers, tuple(payload.shape))

    def message(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """For the next step, in which `own` is what was sent, whether foreseen or not."""
        (self.own,) = message = self._foresee(payload)
        return message

    def _foresee(self, payload: torch.Tensor) -> list[torch.Tensor]:
        if self.exchange.config.mode is SyncMode.EXTRAPOLATED and not self.exchange.reach[self.kind]:
            return [payload]
        return super().message(payload)

    @property
    def share(self) -> float:
        """Share of the picture's rows that are this rank's."""
        return self.exchange.weights[self.exchange.patch]

    @property
    def silent(self) -> bool:
        """Whether this step's mode takes the own band's average, so that there is nothing to trade."""
        return self.exchange.clock.step.phase is Phase.STALE and self.exchange.config.mode in self.silent_in

    @property
    def stale(self) -> bool:
        """Whether what there is of the peers was sent one step ago."""
        exchange = self.exchange
        return exchange.clock.step.phase is Phase.STALE and exchange.config.mode not in self.fresh_in

    @property
    def corrects(self) -> bool:
        """Whether this step corrects the average by how far this rank's part of it was off."""
        return self.stale and self.exchange.config.mode in CORRECTING

    def trade(self, own: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """own: this rank's averages, of any shape -> the picture's, the peers' part as fresh as the mode has it, and
        the same as a correcting mode corrects it; None in other modes, and if everything is fresh.

        Weighted by rows where bands are uneven.
        """
        exchange = self.exchange
        sent, self.own = self.own, own
        self.update(own)
        average = own * self.share
        for peer in exchange.peers:
            average.add_(self.arrived(peer, own), alpha=exchange.weights[peer])
        if not self.corrects:
            return average, None
        assert sent is not None, "the first step of a picture is synchronous"
        # Together: the average of what everybody sent for this step + (own fresh - what this rank sent).
        return average, torch.add(average, own - sent, alpha=1 - self.share)


class StatsSlot(AverageSlot):
    """GroupNorm's moments: payloads [2, B, groups], mean(x) and mean(x^2)."""

    def __init__(self, exchange: Exchange) -> None:
        super().__init__(exchange)
        self.page: Page | None = None  # in a step for which the exchange's ledger has one: instead of `trade`
        self.ready: Callable[[], None] | None = None  # to be called before such a step: what the layer can do by then
        self.begin: Callable[[], None] | None = None  # to be called before the first step of a picture

    def _foresee(self, payload: torch.Tensor) -> list[torch.Tensor]:
        """What is extrapolated is mean and deviation: mean(x^2) by itself might end up below mean(x)^2, or near it, and
        a variance near zero spoils the picture.
        """
        if self.exchange.config.mode is not SyncMode.EXTRAPOLATED or not self.exchange.reach[self.kind]:
            return super()._foresee(payload)
        mean, square = payload
        deviation = (square - mean * mean).clamp(min=0).sqrt()
        ((mean, deviation),) = super()._foresee(torch.stack([mean, deviation]))
        deviation = deviation.clamp(min=0)
        return [torch.stack([mean, deviation * deviation + mean * mean])]


# What a kind of slot is called in figures.
SLOT_KINDS: dict[type[Slot], str] = {HaloSlot: "halo", GatherSlot: "gather", AverageSlot: "stats", StatsSlot: "stats"}
