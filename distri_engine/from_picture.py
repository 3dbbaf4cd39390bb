"""Where a picture begins that starts from another one: its latents, as noisy as the first of the timesteps that are
left (SDEdit, Meng et al., ICLR 2022), by diffusers' own image-to-image pipeline. What happens then is engine.py's
business.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from PIL import Image, ImageOps

from distri_engine.loading import share_components
from distri_engine.request import GenerationRequest


@torch.no_grad()
def noisy_latents(pipe: Any, request: GenerationRequest, timesteps: torch.Tensor) -> torch.Tensor:
    """Latents [images, 4, H/8, W/8] to walk timesteps: [T] of `pipe.scheduler` from. Raises ValueError if the file of
    the resolved `request` is no picture.
    """
    assert request.image is not None
    assert request.width is not None
    assert request.height is not None
    picture = fitted(request.image, request.width, request.height)
    from_picture = share_components(StableDiffusionXLImg2ImgPipeline, pipe, {})
    return from_picture.prepare_latents(
        from_picture.image_processor.preprocess(picture),
        timesteps[:1].repeat(request.images),
        1,
        request.images,
        pipe.unet.dtype,
        pipe.device,
        torch.Generator().manual_seed(request.seed or 0),  # on the CPU: the same noise on any device
    )


def fitted(path: str, width: int, height: int) -> Image.Image:
    """The picture in the file, scaled to fill `width` x `height` pixels and cut evenly where it is too long.

    Raises ValueError.
    """
    try:
        with Image.open(path) as image:
            upright = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("the picture to start from cannot be read; send it again") from None
    return ImageOps.fit(upright, (width, height), Image.Resampling.LANCZOS)
