"""A rough picture of unfinished latents by one linear map, cheap enough to make at every step. The real decode is
vae.py's.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKL
from PIL import Image

from distri_engine.vae import unscale

_PROBE = 4  # latent cells a side of the flat latents that show what a channel looks like


class LatentPreview:
    """Latent channels -> RGB, as picture = latents @ factors + bias."""

    def __init__(self, factors: torch.Tensor, bias: torch.Tensor) -> None:
        self.factors = factors.float().cpu()  # [4, 3]
        self.bias = bias.float().cpu()  # [3]

    @classmethod
    @torch.no_grad()
    def of(cls, vae: AutoencoderKL) -> LatentPreview:
        """The map that fits `vae`: decodes flat latents of one channel each and takes the colour in the middle.

        Nothing is looked up by name, so that every VAE that can be decoded can be previewed.
        """
        channels = vae.config.latent_channels
        probes = torch.cat([torch.eye(channels), -torch.eye(channels)])[:, :, None, None]
        flat = probes.expand(-1, -1, _PROBE, _PROBE).to(next(vae.parameters()).device)
        decoded = vae.decode(unscale(vae, flat), return_dict=False)[0].float()
        middle = decoded.shape[2] // 2
        colours = decoded[:, :, middle - 2 : middle + 2, middle - 2 : middle + 2].mean(dim=(2, 3)).cpu()  # [2C, 3]
        plus, minus = colours.chunk(2)
        return cls((plus - minus) / 2, (plus + minus).mean(dim=0) / 2)

    def __call__(self, latents: torch.Tensor) -> Any:
        """latents: [B, 4, H, W] -> PIL picture of the first, W x H pixels."""
        first = latents[0].float().cpu()
        picture = torch.einsum("chw,cr->hwr", first, self.factors) + self.bias  # [-1, 1]
        pixels = ((picture.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return Image.fromarray(pixels.numpy())
