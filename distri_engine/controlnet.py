"""ControlNets beside a ParallelUNet: their encoder half runs on the same patches, by the same plan, at the same pace,
and hands over residuals of this rank's patch. T2I-Adapters need nothing of this: they run once a picture, on the whole
condition, and the UNet cuts what they made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ControlNetModel, MultiControlNetModel
from diffusers.models.controlnets.controlnet import ControlNetOutput
from torch import nn

from distri_engine.bands import Box
from distri_engine.config import DistriConfig
from distri_engine.errors import UnsupportedError
from distri_engine.mesh import Mesh
from distri_engine.methods import Method
from distri_engine.parallel_model import ParallelModel
from distri_engine.plan import Rule
from distri_engine.slots import AverageSlot
from distri_engine.unet import ParallelUNet


def parallel_controlnet(
    controlnet: ControlNetModel | MultiControlNetModel | Sequence[ControlNetModel], unet: ParallelUNet
) -> ControlNetModel | MultiControlNetModel:
    """What a ControlNet pipeline takes in place of `controlnet`: it runs on the ranks of `unet`, begins and ends
    pictures with it, and shares all weights with what it was made from.

    Raises UnsupportedError for other kinds of ControlNet.
    """
    if isinstance(controlnet, MultiControlNetModel | list | tuple):
        nets = controlnet.nets if isinstance(controlnet, MultiControlNetModel) else controlnet
        return MultiControlNetModel([parallel_controlnet(net, unet) for net in nets])
    net = controlnet.model if isinstance(controlnet, ParallelControlNet) else controlnet
    if not isinstance(net, ControlNetModel):
        raise UnsupportedError(
            f"{type(net).__name__} is not supported beside a parallel UNet; use ControlNetModel, or plain diffusers"
        )
    parallel = ParallelControlNet(net, unet.parallel_config, unet.mesh)
    parallel.unit = unet.unit  # the same patches, whatever the net's own depth
    parallel.begin(guided=unet.guided)
    unet.followers.add(parallel)
    return parallel


class ParallelControlNet(ParallelModel):
    """Wraps a `ControlNetModel`: same arguments, and of the same result this rank's patch and guidance branch."""

    _pool: AverageSlot | None = None  # of a net whose residuals are averages over the picture

    def __init__(self, controlnet: ControlNetModel, config: DistriConfig, mesh: Mesh) -> None:
        super().__init__(controlnet, config, mesh)

    def begin(self, config: DistriConfig | None = None, *, guided: bool | None = None) -> None:
        """Start of a picture; the ParallelUNet calls it."""
        self.halved: int | None = None  # the batch that was shared out to the guidance branches
        super().begin(config, guided=guided)

    @torch.no_grad()
    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        class_labels: torch.Tensor | None = None,
        *,
        guess_mode: bool = False,
        return_dict: bool = True,
        **conditions: Any,
    ) -> ControlNetOutput | tuple[list[torch.Tensor], torch.Tensor]:
        """sample: [B, 4, H, W] latents, controlnet_cond: [B, 3, 8 H, 8 W] in [0, 1] -> residuals [b, C, h, w] of the
        rows and columns that this rank owns at each level.

        b is B, or B / 2 where the guidance branches have ranks of their own. In guess_mode the batch is the conditional
        branch alone, as pipelines pass it, and every rank runs all of it.
        """
        box = self._start_step(sample)[self.axes.patch]
        given = (sample, timestep, encoder_hidden_states, controlnet_cond, conditions | {"class_labels": class_labels})
        if not guess_mode:  # take
            batch = sample.shape[0]
            given = self._half(batch, given)
            self.halved = batch if self.split else None
        sample, timestep, encoder_hidden_states, controlnet_cond, conditions = given
        patch, image = self._cut(sample, controlnet_cond, box)
        down, mid = self._tree(  # run
            patch,
            timestep,
            encoder_hidden_states,
            image,
            conditioning_scale,
            guess_mode=guess_mode,
            return_dict=False,
            **conditions,
        )
        if self.model.config.global_pool_conditions:
            *down, mid = self._average([*down, mid])
        self._exchange.finish_step()
        return ControlNetOutput(down_block_res_samples=down, mid_block_res_sample=mid) if return_dict else (down, mid)

    def _cut(self, sample: torch.Tensor, image: torch.Tensor, box: Box) -> tuple[torch.Tensor, torch.Tensor]:
        scale = 2 ** (len(self.model.config.conditioning_embedding_out_channels) - 1)  # pixels a latent cell
        height, width = sample.shape[2] * scale, sample.shape[3] * scale
        if image.shape[2:] != (height, width):
            raise ValueError(
                f"the conditioning image is {image.shape[3]} x {image.shape[2]} pixels, "
                f"the picture {width} x {height}; give both the same size"
            )
        pixels = Box(box.top * scale, box.bottom * scale, box.left * scale, box.right * scale)
        return self.method.feed(sample, box), self.method.feed(image, pixels)

    def _average(self, own: list[torch.Tensor]) -> list[torch.Tensor]:
        """own: averages [b, C, 1, 1] over this rank's patch -> over the picture, as fresh as GroupNorm's moments."""
        if self._pool is None or self._pool.alone or self._pool.silent or not self._rules(self.method):
            return own
        lengths = [residual.shape[1] for residual in own]
        average, corrected = self._pool.trade(torch.cat(own, dim=1).float())
        total = average if corrected is None else corrected
        return [part.to(residual.dtype) for part, residual in zip(total.split(lengths, dim=1), own, strict=True)]

    def _rules(self, method: Method) -> tuple[Rule, ...]:
        return method.condition_rules

    def _plant(self, rules: tuple[Rule, ...]) -> nn.Module:
        tree = super()._plant(rules)
        self._pool = self._exchange.average()
        return tree
