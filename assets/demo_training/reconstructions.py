"""What the autoencoder of a pipeline makes of scenes that it has not seen: PSNR, how much of thin lines is left, and a
strip to look at, originals above.

    python -m assets.demo_training.reconstructions --pipeline build/demo/pipeline --output reconstructions.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image

from assets.demo_training.hand_set_vae import analytic_latents
from assets.demo_training.scenes import SHAPES, as_tensor, make_scenes
from assets.demo_training.train_decoder import HELD_OUT, HELD_OUT_SEED, THIN, psnr, thin_lines

VISIBLE = 0.1  # of 1, by how much a pixel of a line differs from what is beside it


@dataclass(frozen=True, kw_only=True)
class Reconstructions:
    """Pictures, what became of them, and how like they are."""

    originals: np.ndarray  # [N, H, W, 3], uint8
    made: np.ndarray
    psnr: float  # dB, mean over pictures
    lines: float  # contrast of thin lines, as a share of the original's


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Look at what the autoencoder keeps.")
    parser.add_argument("--pipeline", type=Path, default=Path("assets/demo_model"))
    parser.add_argument("--output", type=Path, help="a strip of the first pictures, originals above")
    parser.add_argument("--count", type=int, default=HELD_OUT, help="pictures to measure")
    parser.add_argument("--shown", type=int, default=8, help="pictures in the strip")
    return parser.parse_args(arguments)


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, count: int) -> Reconstructions:
    """`count` scenes of 256 x 256 that no training has seen, encoded and decoded."""
    _, originals = make_scenes(HELD_OUT_SEED, count, SHAPES[0])
    made, wanted, kept = [], 0.0, 0.0
    for one in originals:
        target = as_tensor(one[None], "cpu")
        decoded = vae.decode(analytic_latents(target)).sample.clamp(-1, 1)
        before, after = (thin_lines((tensor + 1) / 2) for tensor in (target, decoded))
        lines = before > VISIBLE
        wanted, kept = wanted + float(before[lines].sum()), kept + float(after[lines].sum())
        made.append(((decoded[0].permute(1, 2, 0) + 1) * 127.5).round().byte().numpy())
    return Reconstructions(
        originals=originals, made=np.stack(made), psnr=psnr(vae, originals, "cpu"), lines=kept / wanted
    )


def strip(result: Reconstructions, shown: int) -> Image.Image:
    """The first `shown` pictures, originals above."""
    rows = [np.concatenate(list(pictures[:shown]), axis=1) for pictures in (result.originals, result.made)]
    return Image.fromarray(np.concatenate(rows))


def main(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    vae = AutoencoderKL.from_pretrained(options.pipeline, subfolder="vae", dtype=torch.float32)
    result = reconstruct(vae, options.count)
    print(
        f"{len(result.made)} unseen pictures: {result.psnr:.2f} dB; "
        f"{result.lines:.0%} of the contrast of lines thinner than {THIN} pixels"
    )
    if options.output:
        strip(result, options.shown).save(options.output)


if __name__ == "__main__":
    main(parse_options())
