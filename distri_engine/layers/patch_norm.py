"""GroupNorm on a band of rows: normalises by the moments of the whole picture, which a statistics slot combines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distri_engine.layers.once import version
from distri_engine.slots import StatsSlot


class PatchGroupNorm:
    """GroupNorm whose moments come from all bands (DistriFusion, section 4.2, "corrected asynchronous GroupNorm")."""

    def __init__(self, norm: nn.GroupNorm, slot: StatsSlot) -> None:
        self.norm = norm
        self.slot = slot
        self._scaled = ScaledByChannel(norm)
        slot.ready, slot.begin = self._scaled.refresh, self._scaled.renew

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, rows, W] or [B, C, tokens], own rows -> the same shape, normalised."""
        norm, slot = self.norm, self.slot
        if (page := slot.page) is not None:
            self._scaled.statistics_for(x).copy_(page.combine(x))
            return self._scaled.apply(x)
        if slot.alone or slot.silent:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        own = (quick_moments if slot.stale else moments)(x, norm.num_groups)
        average, corrected = slot.trade(own)  # tensors of our own
        total = average if corrected is None else corrected
        mean, variance = total.unbind()
        variance.addcmul_(mean, mean, value=-1)
        if corrected is not None:
            # The own rows alone account for so much of a picture's variance. What the correction leaves below that, or
            # below zero, is no variance, and to divide by it would blow noise up: the plain one stands in.
            least = torch.addcmul(own[1], own[0], own[0], value=-1).mul_(slot.share)
            plain = torch.addcmul(average[1], average[0], average[0], value=-1)
            torch.where(variance < least, plain, variance, out=variance)
        if slot.exchange.config.bessel_correction:
            count = x[0].numel() // norm.num_groups  # of the own slice, as the original has it
            variance.mul_(count / (count - 1))
        self._scaled.statistics_for(x).copy_(total.unsqueeze(-1))
        return self._scaled(x)

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """Memory of this layer's own that it reads or writes at every step."""
        return self._scaled.kept


class ScaledByChannel:
    """(x - mean) / sqrt(variance + eps) * weight + bias in one pass, by statistics that somebody else writes: each
    channel of each picture has a scale and a shift, which is what BatchNorm's inference kernel computes.
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        self.norm = norm
        self._statistics = torch.empty(0)  # [2, B, groups, channels of a group], float32: mean and variance, by channel
        self._flat: tuple[torch.Tensor, ...] = ()  # the same, [B C] each
        self._known: tuple[object, ...] = ()
        self._affine: tuple[torch.Tensor | None, ...] = (None, None)  # weight and bias, [B C], as `_known` says

    def statistics_for(self, x: torch.Tensor) -> torch.Tensor:
        """Where to write them for x: [B, C, ...]."""
        batch, channels = x.shape[:2]
        groups = self.norm.num_groups
        shape = (2, batch, groups, channels // groups)
        if self._statistics.shape != shape or self._statistics.device != x.device:
            with torch.inference_mode(False):  # it serves pictures in and out of inference mode
                self._statistics = torch.empty(shape, dtype=torch.float32, device=x.device)
                self._flat = self._statistics.view(2, -1).unbind()
            self.refresh()
        return self._statistics

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, ...] -> the same shape."""
        self.refresh()
        return self.apply(x)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """The same, with weight and bias as `refresh` has found them."""
        mean, variance = self._flat
        weight, bias = self._affine
        cudnn = torch.backends.cudnn.enabled  # as F.batch_norm calls it
        flat = x.reshape(1, len(mean), -1)
        return torch.batch_norm(flat, weight, bias, mean, variance, False, 0.0, self.norm.eps, cudnn).view(x.shape)

    @property
    def kept(self) -> tuple[torch.Tensor, ...]:
        """Memory that a call reads."""
        return (self._statistics, *(each for each in self._affine if each is not None))

    def refresh(self) -> None:
        """Read weight and bias if one of them is not what it was."""
        weight, bias = self.norm._parameters["weight"], self.norm._parameters["bias"]
        if weight is None or bias is None:
            return  # GroupNorm has both or neither
        batch = self._statistics.shape[1] if self._flat else 0
        known = (batch, weight.data_ptr(), version(weight), weight.dtype, bias.data_ptr(), version(bias))
        if self._known != known:
            self._known = known
            self.renew()

    def renew(self) -> None:
        """Repeat weight and bias for every picture of the batch, in float32. At the beginning of each picture, because
        what is written through `.data`, as by diffusers' EMAModel, leaves no trace.
        """
        weight, bias = self.norm._parameters["weight"], self.norm._parameters["bias"]
        if weight is None or bias is None or not self._flat:
            return
        batch = self._statistics.shape[1]
        affine = tuple(each.detach().float().repeat(batch) for each in (weight, bias))
        for old, new in zip(self._affine, affine, strict=True):
            if old is None or old.shape != new.shape or old.device != new.device:
                with torch.inference_mode(False):  # it serves pictures in and out of inference mode
                    self._affine = tuple(each.clone() for each in affine)
                return
            old.copy_(new)  # in place: a graph reads it there


def moments(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Own mean(x) and mean(x^2). x: [B, C, ...] -> [2, B, groups], float64.

    Computed in float32, so that float16 cannot overflow, as mean and deviation; kept in float64, because the difference
    mean(x^2) - mean(x)^2 of float32 numbers loses the digits that exactness needs.
    """
    batch, channels = x.shape[:2]
    # GroupNorm's own kernel, for its statistics: 20 times faster on a CPU than torch.var_mean.
    _, mean, rstd = torch.native_group_norm(
        x.float().contiguous(), None, None, batch, channels, x[0, 0].numel(), groups, 0.0
    )
    mean = mean.double()
    return torch.stack([mean, torch.addcmul(rstd.double().pow_(-2), mean, mean)])


def quick_moments(x: torch.Tensor, groups: int) -> torch.Tensor:
    """The same for steps that are no exact ones anyway, without the pass that writes: the squares are added up in
    float32, which costs digits of the variance where the mean is many deviations away from zero.
    """
    flat = x.reshape(x.shape[0], groups, -1)
    mean = flat.mean(dim=2, dtype=torch.float32)
    norm = torch.linalg.vector_norm(flat, dim=2, dtype=torch.float32)
    own = torch.stack([mean, norm]).double()
    mean, square = own.unbind()
    square.square_().div_(flat.shape[2])
    torch.maximum(square, mean * mean, out=square)  # rounding must not leave a variance below zero
    return own
