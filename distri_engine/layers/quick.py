"""Blocks of diffusers in fewer operations, where to find a small kernel takes longer than to run it: the same
arithmetic to the bit, for what diffusers' blocks usually are. What is out of the ordinary runs as diffusers
has it.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.activations import GEGLU
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.resnet import ResnetBlock2D
from torch import nn


def quicken(tree: nn.Module) -> None:
    """Give blocks of `tree` that nobody has patched their quick forwards, in place; make `tree` with `share` first."""
    for module in tree.modules():
        quick = _QUICK.get(type(module))
        if quick is not None and "forward" not in module.__dict__:
            module.forward = partial(quick, module)


def can_quicken(model: nn.Module) -> bool:
    """Whether `model` runs its modules' own forwards: no hook is wrapped around one, and none is compiled."""
    return all("forward" not in module.__dict__ and module._compiled_call_impl is None for module in model.modules())


def _resnet(block: ResnetBlock2D, x: torch.Tensor, temb: torch.Tensor | None = None, **others: Any) -> torch.Tensor:
    """x: [B, C, H, W], temb: [B, C_t] -> [B, C_out, H, W]. Sums and activations in place, no division by one."""
    usual = (
        not others
        and not torch.is_grad_enabled()
        and not block.training
        and block.upsample is None
        and block.downsample is None
        and block.time_embedding_norm == "default"
        and block.output_scale_factor == 1
        and type(block.nonlinearity) is nn.SiLU
        and (temb is None) == (block.time_emb_proj is None)
        # Nobody looks at what is about to be overwritten.
        and not any(layer._forward_hooks for layer in (block.norm1, block.conv1, block.norm2, block.conv2))
    )
    if not usual:
        return ResnetBlock2D.forward(block, x, temb, **others)
    y = block.conv1(F.silu(block.norm1(x), inplace=True))
    if temb is not None:
        y += block.time_emb_proj(temb if block.skip_time_act else F.silu(temb))[:, :, None, None]
    y = block.conv2(F.silu(block.norm2(y), inplace=True))
    y += x if block.conv_shortcut is None else block.conv_shortcut(x)
    return y


def _attention(
    block: Attention,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor | None = None,
    attention_mask: torch.Tensor | None = None,
    **others: Any,
) -> torch.Tensor:
    """hidden_states: [B, tokens, C], encoder_hidden_states: [B, words, C_text] -> [B, tokens, C]. What arguments its
    processor takes is not looked up.
    """
    usual = (
        type(block.processor) is AttnProcessor2_0
        and not others
        and attention_mask is None
        and hidden_states.ndim == 3
        and not block.training
        and not block.residual_connection
        and block.rescale_output_factor == 1
        and all(getattr(block, name) is None for name in ("spatial_norm", "group_norm", "norm_q", "norm_k"))
        and not (block.norm_cross and encoder_hidden_states is not None)
    )
    if not usual:
        return Attention.forward(block, hidden_states, encoder_hidden_states, attention_mask, **others)
    source = hidden_states if encoder_hidden_states is None else encoder_hidden_states
    query, key, value = (
        each.view(each.shape[0], each.shape[1], block.heads, -1).transpose(1, 2)
        for each in (block.to_q(hidden_states), block.to_k(source), block.to_v(source))
    )
    y = F.scaled_dot_product_attention(query, key, value)
    return block.to_out[0](y.transpose(1, 2).flatten(2))


def _geglu(block: GEGLU, x: torch.Tensor, *others: Any, **more: Any) -> torch.Tensor:
    """x: [..., C] -> [..., C_out]."""
    if others or more or torch.is_grad_enabled():
        return GEGLU.forward(block, x, *others, **more)
    hidden, gate = block.proj(x).chunk(2, dim=-1)
    return block.gelu(gate).mul_(hidden)


_QUICK: dict[type[nn.Module], Any] = {ResnetBlock2D: _resnet, Attention: _attention, GEGLU: _geglu}
