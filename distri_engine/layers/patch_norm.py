"""GroupNorm on a band of rows: normalises by the moments of the whole picture, which a statistics slot combines."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from distri_engine.slots import StatsSlot


class PatchGroupNorm:
    """GroupNorm whose moments come from all bands (DistriFusion, section 4.2, "corrected asynchronous GroupNorm")."""

    def __init__(self, norm: nn.GroupNorm, slot: StatsSlot) -> None:
        self.norm = norm
        self.slot = slot

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, rows, W] or [B, C, tokens], own rows -> the same shape, normalised."""
        norm = self.norm
        if self.slot.alone or self.slot.silent:
            return F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
        own = moments(x, norm.num_groups)
        total = self.slot.trade(own)
        mean, variance = total[0], total[1] - total[0] * total[0]
        # Only a corrected average can leave a variance below zero; the own slice's then stands in, the mean stays.
        variance = torch.where(variance < 0, own[1] - own[0] * own[0], variance)
        if self.slot.exchange.config.bessel_correction:
            count = x[0].numel() // norm.num_groups  # of the own slice, as the original has it
            variance = variance * (count / (count - 1))
        return normalise(x, mean, variance, norm)


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
    mean, deviation = mean.double(), rstd.double().reciprocal()
    return torch.stack([mean, deviation * deviation + mean * mean])


def normalise(x: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor, norm: nn.GroupNorm) -> torch.Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias in one pass. mean, variance: [B, groups]."""
    batch, channels = x.shape[:2]
    # Each channel of each picture has a scale and a shift: what BatchNorm's inference kernel computes.
    by_group = torch.stack([mean, variance]).float()[..., None]  # [2, B, groups, 1]
    by_channel = by_group.expand(-1, -1, -1, channels // norm.num_groups).reshape(2, batch * channels)
    weight, bias = (
        None if p is None else p.float().expand(batch, channels).reshape(-1) for p in (norm.weight, norm.bias)
    )
    flat = F.batch_norm(x.reshape(1, batch * channels, -1), by_channel[0], by_channel[1], weight, bias, eps=norm.eps)
    return flat.view(x.shape)
