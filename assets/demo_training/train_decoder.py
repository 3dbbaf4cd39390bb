"""Trains the decoder of the hand-set autoencoder: whole pictures and details of them, L1 on pixels and on their
differences. The encoder is never trained, so latents cost an average pooling, and train_unet.py can run at the same
time. Once there is a pipeline, half of the latents are painted anew by its UNet, and in the end a critic looks at
those.

    python -m assets.demo_training.train_decoder --folder build/demo --minutes 28 --start-from assets/demo_model

Stop it at will: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from assets.demo_training import checkpoint, start
from assets.demo_training.captions import caption
from assets.demo_training.critic import Critic
from assets.demo_training.export import save_decoder
from assets.demo_training.hand_set_vae import analytic_latents, build_vae, protect_constants
from assets.demo_training.repainter import Repainter
from assets.demo_training.scenes import SHAPES, Lot, as_tensor, make_scenes, open_scenes

SAVE_SECONDS = 240.0
HELD_OUT = 40  # pictures, 256 x 256, that the decoder is measured on and never sees
HELD_OUT_SEED = 20_240_301  # no multiple of scenes.CHUNK
DETAIL = 128  # side of a detail in pixels
DETAILS, PLACES = 3, 3  # details that stand for a whole picture; places to choose from
REPAINTED = 0.5  # share of the steps whose latents are the UNet's, once there is one
THIN, LINES = 5, 4.0  # pixels that a line is thinner than; how much more its pixels count


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model's decoder.")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="everything is read and written here")
    parser.add_argument("--pictures", type=int, default=40000, help="size of the training set")
    parser.add_argument("--square", action="store_true", help="256 x 256 only, and none of the other shapes")
    parser.add_argument("--start-from", type=Path, help="a pipeline folder, whose decoder is trained further")
    parser.add_argument("--minutes", type=float, default=28, help="of training, all runs together")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps even if time is left")
    parser.add_argument("--batch", type=int, default=1, help="whole pictures a step")
    parser.add_argument("--details", type=float, default=0.75, help="share of the steps that look at details instead")
    parser.add_argument("--lr", type=float, default=3e-4, help="1e-3 destroys the hand-set decoder at once")
    parser.add_argument("--decay-from", type=float, default=0.5, help="share of the time after which the rate falls")
    parser.add_argument("--critic-from", type=float, default=0.8, help="share of the time after which a critic helps")
    parser.add_argument("--bfloat16", action="store_true", help="where the machine is quick at it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args(arguments)


def difference_loss(made: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """L1 between the vertical and horizontal differences of two pictures, [B, 3, H, W]: sharp edges."""
    error = made - target
    vertical, horizontal = error[..., 1:, :] - error[..., :-1, :], error[..., 1:] - error[..., :-1]
    return vertical.abs().mean() + horizontal.abs().mean()


def thin_lines(pictures: torch.Tensor) -> torch.Tensor:
    """How far each pixel stands out, brighter or darker, from what is wider than THIN. pictures: [B, 3, H, W] ->
    [B, 3, H, W]; the difference to a morphological opening or closing (top-hats).
    """

    def largest(x: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(x, THIN, stride=1, padding=THIN // 2)

    opened, closed = largest(-largest(-pictures)), -largest(-largest(pictures))
    return torch.maximum(pictures - opened, closed - pictures)


def details(pictures: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """`count` squares of `pictures`, [count, DETAIL, DETAIL, 3]: of every picture, of a few places the busiest."""
    squares = []
    for index in np.sort(rng.integers(0, len(pictures), count)):
        top, left = busiest_place(pictures[index], rng)
        squares.append(pictures[index, top : top + DETAIL, left : left + DETAIL])
    return np.stack(squares)


def busiest_place(picture: np.ndarray, rng: np.random.Generator, grid: int = 1) -> tuple[int, int]:
    """Top and left of a square of `picture`, [H, W, 3], multiples of `grid` pixels."""
    places = grid * rng.integers(0, (np.array(picture.shape[:2]) - DETAIL) // grid + 1, (PLACES, 2))
    tries = [picture[top : top + DETAIL : 2, left : left + DETAIL : 2].astype(np.int16) for top, left in places]
    top, left = places[int(np.argmax([np.abs(np.diff(square, axis=1)).sum() for square in tries]))]
    return int(top), int(left)


def drawn(
    lot: Lot, options: argparse.Namespace, rng: np.random.Generator, look_closely: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures or details of them, [B, 3, H, W], and their latents, [B, 4, H / 8, W / 8], with noise."""
    pictures = lot.pictures
    if look_closely:
        chosen = details(pictures, DETAILS * options.batch, rng)
    else:
        chosen = pictures[np.sort(rng.integers(0, len(pictures), options.batch))]
    target = as_tensor(chosen[:, :, ::-1] if rng.random() < 0.5 else chosen, options.device)
    latents = analytic_latents(target)
    # The UNet's latents are never exact: learn to decode them with a little noise, of varying strength.
    strength = 0.1 * torch.rand(len(latents), 1, 1, 1, device=options.device).square()
    return target, latents + 0.02 * torch.randn_like(latents) + strength * torch.randn_like(latents)


def repainted(
    lot: Lot, repainter: Repainter, device: str, rng: np.random.Generator, look_closely: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `drawn`, with latents that the UNet made of one picture."""
    index = int(rng.integers(len(lot.pictures)))
    picture = lot.pictures[index]
    target = as_tensor(picture[None], device)
    exact = analytic_latents(target)
    latents = repainter.repaint(exact, caption(lot.scenes[index], rng), repainter.some_time(exact, rng))
    if not look_closely:
        return target, latents
    squares = []
    for _ in range(DETAILS):
        top, left = busiest_place(picture, rng, 8)
        place = slice(top, top + DETAIL), slice(left, left + DETAIL)
        cells = slice(top // 8, (top + DETAIL) // 8), slice(left // 8, (left + DETAIL) // 8)
        squares.append((target[..., *place], latents[..., *cells]))
    return torch.cat([square for square, _ in squares]), torch.cat([some for _, some in squares])


def train(options: argparse.Namespace) -> AutoencoderKL:
    """Train, save to `folder`/vae, return the averaged autoencoder."""
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    folder, device = options.folder, options.device
    shapes = SHAPES[:1] if options.square else SHAPES
    lots = open_scenes(folder, options.pictures, processes=options.threads, shapes=shapes)
    weights = np.array([len(lot.pictures) for lot in lots]) / sum(len(lot.pictures) for lot in lots)
    _, unseen = make_scenes(HELD_OUT_SEED, HELD_OUT, SHAPES[0])
    vae = build_vae().to(device).train()
    if options.start_from:
        start.copy_weights(options.start_from, {"vae": vae})
    for part in (vae.encoder, vae.quant_conv):
        part.requires_grad_(False)
    vae.to(memory_format=torch.channels_last)
    protect_constants(vae)
    params = [param for param in vae.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=options.lr, betas=(0.9, 0.99), weight_decay=1e-3)
    modules = {"vae": vae}
    average = checkpoint.Average(modules)
    state = folder / "decoder_state.safetensors"
    step, spent = 0, 0.0
    if state.exists():
        progress = checkpoint.load(state, modules, average, [optimizer])
        step, spent = progress["step"], progress["seconds"]
    low_precision = start.has_fast_bfloat16(device)
    pipeline = folder / "pipeline"
    repainter = Repainter(pipeline, device) if pipeline.exists() else None
    critic = Critic(folder / "critic_state.safetensors", device)

    def save() -> AutoencoderKL:
        averaged = copy.deepcopy(vae).eval()
        average.copy_to({"vae": averaged})
        averaged.save_pretrained(folder / "vae")
        checkpoint.save(state, modules, average, [optimizer], {"step": step, "seconds": time.monotonic() - began})
        critic.save()
        print(f"step {step}: {psnr(averaged, unseen, device):.2f} dB on {HELD_OUT} unseen pictures", flush=True)
        return averaged

    torch.manual_seed(step)  # a resumed training must not see the same noise again
    rng = np.random.default_rng(step)
    began = time.monotonic() - spent
    saved, smoothed = time.monotonic(), 0.0
    while (share := (time.monotonic() - began) / (options.minutes * 60)) < 1 and step < options.steps:
        if start.stopping.is_set():
            break
        decay = 1 if share < options.decay_from else max(0.02, (1 - share) / (1 - options.decay_from))
        optimizer.param_groups[0]["lr"] = options.lr * min(1, (step + 1) / 100) * decay
        lot, look_closely = lots[int(rng.choice(len(lots), p=weights))], bool(rng.random() < options.details)
        by_unet = repainter is not None and rng.random() < REPAINTED
        if repainter and by_unet:
            target, latents = repainted(lot, repainter, device, rng, look_closely)
        else:
            target, latents = drawn(lot, options, rng, look_closely)
        with torch.autocast(device, torch.bfloat16, enabled=options.bfloat16 and low_precision):
            made = vae.decode(latents).sample.float()
        pixel_loss = ((made - target).abs() * (1 + LINES * thin_lines(target))).mean()
        loss = pixel_loss + 0.5 * difference_loss(made, target)
        if by_unet and look_closely and share >= options.critic_from:
            critic.learn(target, made)
            loss = loss + critic.loss(made, loss, vae.decoder.conv_out.weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        step += 1
        average.update(min(0.995, step / (step + 10)))
        smoothed += (pixel_loss.item() - smoothed) * max(0.03, 1 / step)
        if step % 25 == 0:
            print(f"step {step}, {time.monotonic() - began:.0f} s, L1 {smoothed:.4f}", flush=True)
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            save()
    averaged = save()
    if pipeline.exists():
        save_decoder(pipeline, averaged)
    return averaged


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray, device: str) -> float:
    """Of decoded latents against the pictures, in dB, the mean of all."""
    values = []
    for one in pictures:
        target = as_tensor(one[None], device)
        made = vae.decode(analytic_latents(target)).sample.clamp(-1, 1)
        values.append(-10 * torch.log10(((made - target) / 2).pow(2).mean()))
    return float(torch.stack(values).mean())


if __name__ == "__main__":
    start.listen()
    train(parse_options())
