"""Synchronous tensor parallelism: every rank sees the whole picture and computes a share of every large layer
(DistriFusion, section 5). Exact at every step; what it sends is what displaced patches are measured against.
"""

from __future__ import annotations

from diffusers.models.attention import FeedForward
from diffusers.models.attention_processor import Attention
from diffusers.models.downsampling import Downsample2D
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D

from distri_engine.exchange import Exchange
from distri_engine.layers.sharded import ShardedAttention, ShardedConv, ShardedFeedForward, ShardedResnet
from distri_engine.methods.base import WholePicture
from distri_engine.plan import Forward, Rule, Site


def _is_sampling_conv(site: Site) -> bool:
    return isinstance(site.parent, Upsample2D | Downsample2D) and site.parent.use_conv and site.name == "conv"


def _shard_attention(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, Attention)
    return ShardedAttention(site.path, site.module, exchange)


def _shard_feed_forward(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, FeedForward)
    return ShardedFeedForward(site.path, site.module, exchange)


def _shard_resnet(site: Site, exchange: Exchange) -> Forward:
    assert isinstance(site.module, ResnetBlock2D)
    return ShardedResnet(site.path, site.module, exchange)


# Whatever no rule takes, every rank computes in full.
TENSOR_RULES: tuple[Rule, ...] = (
    Rule("attention", lambda site: isinstance(site.module, Attention), _shard_attention),
    Rule("feed-forward", lambda site: isinstance(site.module, FeedForward), _shard_feed_forward),
    Rule("ResNet block", lambda site: isinstance(site.module, ResnetBlock2D), _shard_resnet),
    Rule(
        "sampling convolution",
        _is_sampling_conv,
        lambda site, exchange: ShardedConv(site.path, site.module, exchange),
    ),
)


class TensorParallel(WholePicture):
    """The paper's baseline. Ranks on the patch axis share the weights instead of the picture."""

    rules = TENSOR_RULES
