"""Latents as the UNet leaves them: those of a drawn picture, hidden in noise and painted anew from its caption. What
they show stands where it stands in the picture, worn and bent as the UNet wears and bends it; the decoder learns to
mend that.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from assets.demo_training import start
from assets.demo_training.captions import caption
from assets.demo_training.grammar import Scene
from assets.demo_training.text import encode_text, load_tokenizers, token_ids

FROM, TO = 100, 450  # time steps between which the painting of a 256 x 256 picture begins: its places are settled
STEPS = 3
AREA = 32 * 32  # of such a picture's latents


class Repainter:
    """The UNet and the text encoders of a pipeline folder, without guidance."""

    def __init__(self, pipeline: Path, device: str) -> None:
        def opened(kind: type, part: str) -> torch.nn.Module:
            return kind.from_pretrained(pipeline / part, torch_dtype=torch.float32).to(device).eval()

        self._device = device
        self._unet = opened(UNet2DConditionModel, "unet")
        self._encoders = opened(CLIPTextModel, "text_encoder"), opened(CLIPTextModelWithProjection, "text_encoder_2")
        self._tokenizers = load_tokenizers(pipeline)
        signal = DDIMScheduler.from_pretrained(pipeline, subfolder="scheduler").alphas_cumprod
        self._signal = signal.to(device)
        self._noise_to_signal = ((1 - self._signal) / self._signal).sqrt()

    @torch.no_grad()
    def repaint(self, latents: torch.Tensor, scene: Scene, rng: np.random.Generator) -> torch.Tensor:
        """`latents` of the picture of `scene`, [1, 4, H / 8, W / 8], painted anew from a random step on."""
        height, width = (8 * side for side in latents.shape[2:])
        words = [caption(scene, rng)]
        ids = [token_ids(tokenizer, words).to(self._device).long() for tokenizer in self._tokenizers]
        context, pooled = encode_text(*self._encoders, *ids)
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=self._device)
        begin = float(self._noise_to_signal[int(rng.integers(FROM, TO))])
        # The same noise hides less of a larger picture.
        first = int(torch.searchsorted(self._noise_to_signal, begin * (latents[0, 0].numel() / AREA) ** 0.5))
        times = [first * (STEPS - step) // STEPS for step in range(STEPS)]
        power = self._signal[times[0]]
        noisy = power.sqrt() * latents + (1 - power).sqrt() * torch.randn_like(latents)
        for time, then in zip(times, [*times[1:], None], strict=True):
            with torch.autocast(self._device, torch.bfloat16, enabled=start.has_fast_bfloat16(self._device)):
                velocity = self._unet(
                    noisy.contiguous(), time, context, added_cond_kwargs={"text_embeds": pooled, "time_ids": sizes}
                ).sample.float()
            power = self._signal[time]
            clean = power.sqrt() * noisy - (1 - power).sqrt() * velocity
            if then is not None:  # DDIM
                noise = power.sqrt() * velocity + (1 - power).sqrt() * noisy
                noisy = self._signal[then].sqrt() * clean + (1 - self._signal[then]).sqrt() * noise
        return clean
