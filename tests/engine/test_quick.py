"""Blocks in fewer operations: diffusers' own bits; what is out of the ordinary runs as diffusers has it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

from distri_engine.layers.quick import quicken
from distri_engine.plan import share
from tests.support.models import sdxl_inputs, tiny_sdxl_unet


def as_it_is(unet: UNet2DConditionModel) -> None:
    """What most models are."""


def out_of_the_ordinary(unet: UNet2DConditionModel) -> None:
    """Every block in one way or another."""
    unet.set_attn_processor(AttnProcessor())
    for module in unet.modules():
        if isinstance(module, ResnetBlock2D):
            module.output_scale_factor = 2.0
        if isinstance(module, Attention):
            module.rescale_output_factor = 3.0


@pytest.mark.parametrize("change", [as_it_is, out_of_the_ordinary])
def test_quick_blocks_give_the_same_bits(change: Callable[[UNet2DConditionModel], None]) -> None:
    unet = tiny_sdxl_unet()
    change(unet)
    tree = share(unet)
    quicken(tree)
    quick = [module for module in tree.modules() if "forward" in module.__dict__]
    assert len(quick) > 20
    assert not any("forward" in module.__dict__ for module in unet.modules())
    with torch.no_grad():
        expected = unet(**sdxl_inputs(2, 16, 16), timestep=500).sample
        with torch.autograd.profiler.profile() as profile:
            found = tree(**sdxl_inputs(2, 16, 16), timestep=500).sample
    assert torch.equal(found, expected)
    divisions = [event for event in profile.function_events if event.name == "aten::div"]
    blocks = sum(isinstance(module, ResnetBlock2D | Attention) for module in unet.modules())
    assert (len(divisions) < blocks) == (change is as_it_is)  # not one for every block, unless there is need of it


def test_a_hook_sees_what_it_would_see() -> None:
    unet = tiny_sdxl_unet()
    seen: list[torch.Tensor] = []
    block = unet.mid_block.resnets[0]
    block.norm1.register_forward_hook(lambda module, args, output: seen.append(output))
    tree = share(unet)
    quicken(tree)
    with torch.no_grad():
        unet(**sdxl_inputs(2, 16, 16), timestep=500)
        tree(**sdxl_inputs(2, 16, 16), timestep=500)
    plain, quick = seen
    assert torch.equal(plain, quick)
    assert isinstance(block.norm1, nn.GroupNorm)
