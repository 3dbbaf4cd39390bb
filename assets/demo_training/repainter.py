"""Latents as the UNet leaves them: those of a drawn picture, hidden in noise and painted anew from its caption. What
they show stands where it stands in the picture, worn and bent as the UNet wears and bends it. The decoder learns to
mend that; and how worn it is can be measured, with guidance and without:

    python -m assets.demo_training.repainter --pipeline build/demo/pipeline
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from assets.demo_training import start
from assets.demo_training.captions import caption
from assets.demo_training.hand_set_vae import analytic_latents
from assets.demo_training.scenes import AREA, SHAPES, as_tensor, make_scenes
from assets.demo_training.text import encode_text, load_tokenizers, token_ids

FROM, TO = 100, 450  # time steps between which the painting of a 256 x 256 picture begins: its places are settled
STEPS = 3  # of such a painting, for the decoder
MEASURED_SEED = 20_240_407  # no multiple of scenes.CHUNK


class Repainter:
    """The UNet and the text encoders of a pipeline folder."""

    def __init__(self, pipeline: Path, device: str) -> None:
        def opened(kind: type, part: str) -> torch.nn.Module:
            return kind.from_pretrained(pipeline / part, torch_dtype=torch.float32).to(device).eval()

        self._device = device
        self._unet = opened(UNet2DConditionModel, "unet")
        self._encoders = opened(CLIPTextModel, "text_encoder"), opened(CLIPTextModelWithProjection, "text_encoder_2")
        self._tokenizers = load_tokenizers(pipeline)
        scheduler = DDIMScheduler.from_pretrained(pipeline, subfolder="scheduler")
        self._signal = scheduler.alphas_cumprod.to(device)

    def some_time(self, latents: torch.Tensor, rng: np.random.Generator) -> int:
        """A time step to begin at, the noisier the larger `latents` are, of which the same noise hides less."""
        noise_to_signal = ((1 - self._signal) / self._signal).sqrt()
        begin = float(noise_to_signal[int(rng.integers(FROM, TO))])
        return int(torch.searchsorted(noise_to_signal, begin * (latents[0, 0].numel() / AREA) ** 0.5))

    @torch.no_grad()
    def repaint(
        self, latents: torch.Tensor, words: str, begin: int, *, steps: int = STEPS, guidance: float = 1
    ) -> torch.Tensor:
        """`latents` of one picture, [1, 4, H / 8, W / 8], with the noise of time step `begin`, denoised by DDIM."""
        height, width = (8 * side for side in latents.shape[2:])
        ids = [token_ids(tokenizer, [words]).to(self._device).long() for tokenizer in self._tokenizers]
        context, pooled = encode_text(*self._encoders, *ids)
        if guidance != 1:
            context, pooled = (torch.cat([torch.zeros_like(text), text]) for text in (context, pooled))
        sizes = torch.tensor([[height, width, 0, 0, height, width]] * len(pooled), dtype=torch.float32)
        given = {"text_embeds": pooled, "time_ids": sizes.to(self._device)}
        times = [begin * (steps - step) // steps for step in range(steps)]
        power = self._signal[begin]
        noisy = power.sqrt() * latents + (1 - power).sqrt() * torch.randn_like(latents)
        for time, then in zip(times, [*times[1:], None], strict=True):
            batch = noisy.expand(len(pooled), -1, -1, -1).contiguous()
            with torch.autocast(self._device, torch.bfloat16, enabled=start.has_fast_bfloat16(self._device)):
                made = self._unet(batch, time, context, added_cond_kwargs=given).sample.float()
            velocity = made[:1] + guidance * (made[-1:] - made[:1]) if guidance != 1 else made
            power = self._signal[time]
            clean = power.sqrt() * noisy - (1 - power).sqrt() * velocity
            if then is not None:
                noise = power.sqrt() * velocity + (1 - power).sqrt() * noisy
                noisy = self._signal[then].sqrt() * clean + (1 - self._signal[then]).sqrt() * noise
        return clean


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure how far from a drawn picture the UNet ends that begins at it."
    )
    parser.add_argument("--pipeline", type=Path, default=Path("assets/demo_model"))
    parser.add_argument("--count", type=int, default=24, help="pictures of 256 x 256, which no training has seen")
    parser.add_argument("--times", type=int, nargs="+", default=[132, 332, 532, 732], help="time steps to begin at")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1, 5])
    return parser.parse_args(arguments)


def main(options: argparse.Namespace) -> None:
    """Measure, print."""
    repainter, rng = Repainter(options.pipeline, "cpu"), np.random.default_rng(0)
    scenes, pictures = make_scenes(MEASURED_SEED, options.count, SHAPES[0])
    exact = [analytic_latents(as_tensor(one[None], "cpu")) for one in pictures]
    words = [caption(scene, rng) for scene in scenes]
    for begin in options.times:
        for guidance in options.guidance:
            torch.manual_seed(0)
            steps = max(1, round(begin * 30 / 1000))  # of a picture's 30
            errors = [
                (repainter.repaint(latents, text, begin, steps=steps, guidance=guidance) - latents).square().mean()
                for latents, text in zip(exact, words, strict=True)
            ]
            apart = float(torch.stack(errors).mean().sqrt())
            print(f"from step {begin}, guidance {guidance:g}: {apart:.3f} (RMS) from the picture's latents", flush=True)


if __name__ == "__main__":
    main(parse_options())
