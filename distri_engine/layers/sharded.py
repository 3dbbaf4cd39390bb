"""Tensor parallelism: the modules of a UNet computed from this rank's share of their weights, with one all-reduce each
(DistriFusion, section 5, "synchronous tensor parallelism"; Megatron-LM, section 3).

Each module keeps its own forward and its own settings. That forward runs on a stand-in, in which the layers that widen
give this rank's channels only, and the layer that narrows them again adds up what all ranks have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from distri_engine.bands import spread
from distri_engine.errors import UnsupportedError
from distri_engine.exchange import Exchange
from distri_engine.layers.slices import REMEDY, Slices

# They use nothing of an Attention but what a stand-in has.
_PROCESSORS = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)

_GRAIN = 8  # single channels are shared out by so many, where they can be: what fast half-precision kernels ask for

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True)
class Share:
    """This rank's units of a layer: heads, groups, or a few channels."""

    units: range  # never empty
    idle: bool  # more ranks than units: this one computes somebody else's unit, and contributes zeros

    def channels(self, per_unit: int, start: int = 0) -> range:
        """The channels of these units, counted from `start`."""
        return range(start + self.units.start * per_unit, start + self.units.stop * per_unit)


def share_of(units: int, exchange: Exchange) -> Share:
    """What this rank takes of `units`. Shares differ by at most one unit, so that an idle rank, which keeps no kernel
    waiting with empty tensors, computes for as long as the others do.
    """
    mine = spread(units, exchange.patches)[exchange.patch]
    return Share(units=mine or range(1), idle=not mine)


def stand_in(module: AnyModule, **parts: Any) -> AnyModule:
    """`module` with other `parts`, for one call: of the same class, over the same weights, with the same settings."""
    twin = object.__new__(type(module))
    twin.__dict__.update({name: value for name, value in module.__dict__.items() if name != "forward"} | parts)
    return twin


def narrow(layer: Slices, share: Share, channels: range, exchange: Exchange) -> Callable[[torch.Tensor], torch.Tensor]:
    """`layer`, fed with `channels` here and with the others elsewhere: a module's one all-reduce, then the bias."""

    def summed(x: torch.Tensor) -> torch.Tensor:
        mine = layer.inputs(channels, x)
        return layer.add_bias(exchange.all_reduce(torch.zeros_like(mine) if share.idle else mine))

    return summed


class ShardedAttention:
    """Self- or cross-attention by heads, run by the module's own processor."""

    def __init__(self, path: str, attention: Attention, exchange: Exchange) -> None:
        self.path = path
        self.attention = attention
        self.exchange = exchange
        _check_projections(path, attention)
        self.projections = {
            name: Slices(f"{path}.{name}", getattr(attention, name)) for name in ("to_q", "to_k", "to_v")
        }
        self.to_out = Slices(f"{path}.to_out.0", attention.to_out[0])

    def __call__(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """hidden_states: [B, tokens, C] or [B, C, H, W] -> the same shape. attention_mask: [B, 1 or tokens, keys]."""
        attention = self.attention
        _check_processor(self.path, attention)
        if attention_mask is not None and attention_mask.shape[0] > hidden_states.shape[0]:
            raise UnsupportedError(
                f"{self.path} got an attention mask a head, which tensor parallelism cannot share out; pass one mask a "
                "picture, or use parallelism single"
            )
        share = share_of(attention.heads, self.exchange)
        channels = share.channels(self.projections["to_q"].out_channels // attention.heads)
        stand = stand_in(
            attention,
            heads=len(share.units),
            **{name: partial(layer.outputs, [channels]) for name, layer in self.projections.items()},
            to_out=[narrow(self.to_out, share, channels, self.exchange), attention.to_out[1]],
        )
        return stand.forward(hidden_states, encoder_hidden_states, attention_mask, **kwargs)


class ShardedFeedForward:
    """GEGLU and the linear layer after it, by hidden channels."""

    def __init__(self, path: str, feed: FeedForward, exchange: Exchange) -> None:
        self.feed = feed
        self.exchange = exchange
        if type(feed.net[0]) is not GEGLU:
            raise UnsupportedError(
                f"{path} has the activation {type(feed.net[0]).__name__}, and tensor parallelism knows GEGLU only; "
                f"{REMEDY}"
            )
        self.wide = Slices(f"{path}.net.0.proj", feed.net[0].proj)
        self.out = Slices(f"{path}.net.2", feed.net[2])

    def __call__(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """hidden_states: [B, tokens, C] -> the same shape."""
        activation, dropout, _, *rest = self.feed.net
        hidden = self.out.in_channels
        grain = math.gcd(hidden, _GRAIN)
        share = share_of(hidden // grain, self.exchange)
        channels, gates = share.channels(grain), share.channels(grain, start=hidden)
        geglu = stand_in(activation, proj=partial(self.wide.outputs, [channels, gates]))
        net = [geglu, dropout, narrow(self.out, share, channels, self.exchange), *rest]
        return stand_in(self.feed, net=net).forward(hidden_states, *args, **kwargs)


class ShardedResnet:
    """A ResNet block by the channels between its two convolutions, in whole groups of the norm that stands there."""

    def __init__(self, path: str, block: ResnetBlock2D, exchange: Exchange) -> None:
        self.block = block
        self.exchange = exchange
        if block.time_embedding_norm != "default" or type(block.norm2) is not nn.GroupNorm:
            raise UnsupportedError(
                f"{path} applies the time embedding by {block.time_embedding_norm} and {type(block.norm2).__name__}, "
                f"and tensor parallelism knows default and GroupNorm only; {REMEDY}"
            )
        wide = ("conv1",) if block.time_emb_proj is None else ("conv1", "time_emb_proj")
        self.wide = {name: Slices(f"{path}.{name}", getattr(block, name)) for name in wide}
        self.conv2 = Slices(f"{path}.conv2", block.conv2)

    def __call__(
        self, input_tensor: torch.Tensor, temb: torch.Tensor | None, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """input_tensor: [B, C_in, H, W], temb: [B, C_time] -> [B, C_out, H, W]."""
        norm = self.block.norm2
        share = share_of(norm.num_groups, self.exchange)
        channels = share.channels(norm.num_channels // norm.num_groups)
        own = slice(channels.start, channels.stop)

        def own_groups(x: torch.Tensor) -> torch.Tensor:
            return F.group_norm(x, len(share.units), norm.weight[own], norm.bias[own], norm.eps)

        stand = stand_in(
            self.block,
            **{name: partial(layer.outputs, [channels]) for name, layer in self.wide.items()},
            norm2=own_groups,
            conv2=narrow(self.conv2, share, channels, self.exchange),
        )
        return stand.forward(input_tensor, temb, *args, **kwargs)


class ShardedConv:
    """The convolution of an up- or downsampler, by input channels."""

    def __init__(self, path: str, conv: nn.Module, exchange: Exchange) -> None:
        self.conv = Slices(path, conv)
        self.exchange = exchange

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, C, H, W] -> [B, C_out, H / stride, W / stride]."""
        grain = math.gcd(self.conv.in_channels, _GRAIN)
        share = share_of(self.conv.in_channels // grain, self.exchange)
        channels = share.channels(grain)
        return narrow(self.conv, share, channels, self.exchange)(x[:, channels.start : channels.stop])


def _check_projections(path: str, attention: Attention) -> None:
    """Raise UnsupportedError unless queries, keys and values have the same heads, and nothing is done across heads."""
    wrong = None
    if attention.norm_q is not None or attention.norm_k is not None:
        wrong = "normalises queries or keys"
    elif attention.added_kv_proj_dim is not None:
        wrong = "has added key and value projections"
    elif attention.inner_kv_dim != attention.inner_dim:
        wrong = "has fewer heads of keys than of queries"
    elif attention.to_out is None:
        wrong = "has no output projection"
    if wrong:
        raise UnsupportedError(f"{path} {wrong}, which has no form by heads; {REMEDY}")


def _check_processor(path: str, attention: Attention) -> None:
    """Raise UnsupportedError for a processor that may use more than this rank's heads."""
    if type(attention.processor) not in _PROCESSORS:
        raise UnsupportedError(
            f"{path} has the attention processor {type(attention.processor).__name__}, and tensor parallelism knows "
            "diffusers' plain ones only; call set_default_attn_processor() (or unload_ip_adapter()), or use "
            "parallelism patch or single"
        )
