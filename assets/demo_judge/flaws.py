"""The flaws of made pictures, laid over drawn ones, so that the judge looks at what a picture shows and not at how
cleanly it is drawn: soft shapes, blur, blotches, noise, tinted light, JPEG's blocks, and what the embedded model's
decoder makes of latents that are not quite right.
"""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image

from assets.demo_training.hand_set_vae import analytic_latents

ENLARGED = 160  # side at which pictures are encoded
UNSURE = 0.08  # most that latents are off by, standard deviation


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    """`picture`, [H, W, 3], uint8, after JPEG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@torch.no_grad()
def decoded(vae: AutoencoderKL, pictures: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """`pictures`, [B, H, W, 3], uint8, as latents of theirs come back from `vae`: flakes of snow and drops of rain are
    larger and softer in pictures that the model makes.
    """
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = analytic_latents(F.interpolate(x, (ENLARGED, ENLARGED), mode="bicubic", align_corners=False).clamp(-1, 1))
    strength = torch.from_numpy(rng.uniform(0, UNSURE, (len(x), 1, 1, 1))).float()
    noise = torch.from_numpy(rng.standard_normal(latents.shape)).float()
    made = vae.decode(latents + strength * noise).sample
    made = F.interpolate(made, x.shape[-2:], mode="area").clamp(-1, 1)
    return ((made + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def flawed(pictures: torch.Tensor) -> torch.Tensor:
    """`pictures`, [B, 3, H, W] in [0, 1], each with flaws of its own; blur is the batch's."""
    count, _, height, width = pictures.shape
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(3)
    x = F.grid_sample(pictures, _bent(count, height, width), padding_mode="reflection", align_corners=False)
    if torch.rand(()) < 0.3:  # as coarse as latents
        x = F.interpolate(x, scale_factor=float(torch.rand(())) * 0.4 + 0.3, mode="area")
        x = F.interpolate(x, (height, width), mode="bilinear", align_corners=False)
    elif torch.rand(()) < 0.7:
        sigma = float(torch.rand(())) * 1.2 + 0.2
        taps = torch.exp(-((torch.arange(-3, 4) / sigma) ** 2) / 2)
        taps = (taps / taps.sum()).expand(3, 1, 7)
        x = F.conv2d(F.pad(x, (3, 3, 3, 3), mode="reflect"), taps[:, :, None, :], groups=3)
        x = F.conv2d(x, taps[:, :, :, None], groups=3)
    # Light, depth of colour and tint, all smaller than what lies between two colours of the palette.
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * _uniform(count, 0.85, 1.3, channels=1)
    x = x * _uniform(count, 0.85, 1.15, channels=1) * _uniform(count, 0.94, 1.06) + _uniform(count, -0.03, 0.03)
    blotches = torch.randn(count, 3, height // 8, width // 8) * _uniform(count, 0, 0.06, channels=1)
    x = x + F.interpolate(blotches, (height, width), mode="bilinear", align_corners=False)
    x = x + torch.randn_like(x) * _uniform(count, 0, 0.025, channels=1)
    return x.clamp(0, 1)


def _uniform(count: int, low: float, high: float, channels: int = 3) -> torch.Tensor:
    return torch.empty(count, channels, 1, 1).uniform_(low, high)


def _bent(count: int, height: int, width: int) -> torch.Tensor:
    """Where to sample: a little shifted, scaled and bent, [B, H, W, 2]."""
    scale = torch.empty(count, 2).uniform_(0.9, 1.05)
    matrix = torch.zeros(count, 2, 3)
    matrix[:, 0, 0], matrix[:, 1, 1] = scale.T
    matrix[:, :, 2] = torch.empty(count, 2).uniform_(-0.06, 0.06)
    grid = F.affine_grid(matrix, [count, 3, height, width], align_corners=False)
    for cells in (6, 20):
        bends = torch.randn(count, 2, cells, cells) * _uniform(count, 0, 0.03, channels=1)
        bends = F.interpolate(bends, (height, width), mode="bilinear", align_corners=False)
        grid = grid + bends.permute(0, 2, 3, 1)
    return grid
