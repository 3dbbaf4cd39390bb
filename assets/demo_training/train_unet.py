"""Trains the UNet and both text encoders together, from scratch or from another pipeline: v-prediction on SDXL's noise
schedule made to end in nothing but noise, Muon for matrices and AdamW for the rest, and saves a pipeline with whatever
decoder train_decoder.py has by then.

    python -m assets.demo_training.train_unet --folder build/demo --minutes 52 --start-from assets/demo_model

Stop it at will: the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor

from assets.demo_training import checkpoint, start
from assets.demo_training.crew import Crew
from assets.demo_training.export import noise_schedule, save_pipeline
from assets.demo_training.hand_set_vae import build_vae
from assets.demo_training.lessons import Batch, Lessons
from assets.demo_training.muon import Muon
from assets.demo_training.scenes import AREA, SHAPES, open_scenes
from assets.demo_training.text import build_encoders, build_tokenizers, encode_text, load_tokenizers

EMPTY, ZEROS = 0.03, 0.08  # shares of prompts replaced by the encoded empty prompt, and by zeros
GUIDANCE = 5.0  # that the pictures are sampled with
CLEAR = 0.64  # signal / noise power from which on a prompt tells nothing that cannot be seen
TWICE = 0.5  # share of the pictures so clear that are shown without their prompt, too


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Widths of a UNet of three levels; text widths are 64 and 128."""

    channels: tuple[int, int, int]
    heads: tuple[int, int, int]
    layers: int = 1  # residual blocks a level


PRESETS = {
    "xs": Preset(channels=(32, 48, 96), heads=(1, 2, 3)),  # 2.6 M parameters
    "small": Preset(channels=(32, 64, 128), heads=(1, 2, 4)),
    "mid": Preset(channels=(32, 96, 192), heads=(1, 3, 6)),
    "base": Preset(channels=(64, 128, 192), heads=(2, 4, 6)),  # 11.2 M: the embedded model
}


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the demo model's UNet and text encoders.")
    parser.add_argument("--folder", type=Path, default=Path("build/demo"), help="everything is read and written here")
    parser.add_argument("--pictures", type=int, default=40000, help="size of the training set")
    parser.add_argument("--square", action="store_true", help="256 x 256 only, and none of the other shapes")
    parser.add_argument("--start-from", type=Path, help="a pipeline folder: its UNet, encoders and tokenizers")
    parser.add_argument("--preset", choices=PRESETS, default="base")
    parser.add_argument("--minutes", type=float, default=52, help="of training, all runs together")
    parser.add_argument("--steps", type=int, default=10**9, help="stop after so many steps even if time is left")
    parser.add_argument("--batch", type=int, default=16, help="pictures a step")
    parser.add_argument("--lr", type=float, default=3e-3, help="of Muon")
    parser.add_argument("--lr-adamw", type=float, default=1e-3)
    parser.add_argument("--decay-from", type=float, default=0.5, help="share of the time after which the rates fall")
    parser.add_argument("--average", type=float, default=0.998, help="decay of the weights' running average")
    parser.add_argument("--save-minutes", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compile", action="store_true", help="torch.compile the UNet")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    return parser.parse_args(arguments)


def build_unet(preset: Preset, text_width: int = 64, text_width_2: int = 128) -> UNet2DConditionModel:
    """An untrained UNet with SDXL's conditioning; it begins by predicting zero."""
    unet = UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=preset.channels,
        layers_per_block=preset.layers,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=preset.heads,
        cross_attention_dim=text_width + text_width_2,
        use_linear_projection=True,
        norm_num_groups=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + text_width_2,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    return unet


def signal_power(device: str) -> torch.Tensor:
    """The cumulative product of alphas of the schedule that the pipeline samples with, [1000]."""
    return DDIMScheduler.from_config(noise_schedule().config).alphas_cumprod.to(device)


class Learner:
    """UNet, text encoders, their optimisers and the running average."""

    def __init__(self, options: argparse.Namespace, vocabulary: int) -> None:
        self.options, self.device = options, options.device
        encoder, encoder_2 = build_encoders(vocabulary)
        self.unet, self.encoder, self.encoder_2 = build_unet(PRESETS[options.preset]), encoder, encoder_2
        self.modules: dict[str, torch.nn.Module] = {
            "unet": self.unet,
            "text_encoder": encoder,
            "text_encoder_2": encoder_2,
        }
        if options.start_from:
            start.copy_weights(options.start_from, self.modules)
        for module in self.modules.values():
            module.to(self.device).train()
        self.low_precision = start.has_fast_bfloat16(self.device)
        # oneDNN's bfloat16 convolutions are faster in the plain layout.
        plain = self.low_precision and self.device == "cpu"
        self.layout = torch.contiguous_format if plain else torch.channels_last
        self.unet.to(memory_format=self.layout)
        if self.device == "cpu":  # where the backward pass of fused attention is slower than plain products
            self.unet.set_attn_processor(AttnProcessor())
        self.run_unet = torch.compile(self.unet) if options.compile else self.unet
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for module in self.modules.values():
            for name, param in module.named_parameters():
                special = any(word in name for word in ("embedding", "conv_in", "conv_out"))
                (matrices if param.ndim >= 2 and not special else others).append(param)
        self.params = matrices + others
        adamw = torch.optim.AdamW(others, lr=options.lr_adamw, betas=(0.9, 0.98), weight_decay=1e-3)
        self.optimizers = [adamw, Muon(matrices, lr=options.lr, low_precision=self.low_precision)]
        self.average = checkpoint.Average(self.modules)
        self.signal = signal_power(self.device)

    def losses(self, batch: Batch, empty: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What to descend, a scalar; mean squared error of v for each picture, [B], and the time steps at which it was
        taken, [B].
        """
        latents, count = batch.latents, len(batch.latents)
        # Stratified: every batch covers all noise levels. The same noise hides less of a larger picture (Hoogeboom et
        # al., "simple diffusion", 2023, section 2.1): it is decided at noisier steps, and has more of them here.
        scale = AREA / latents[0, 0].numel()  # 1 for 256 x 256, whose noise levels are evenly spread
        strata = (torch.arange(count, device=self.device) + torch.rand(count, device=self.device)) / count
        times = (strata**scale**0.5 * 1000).long().clamp(0, 999)
        noise = torch.randn_like(latents)
        power = self.signal[times].view(-1, 1, 1, 1)
        noisy = power.sqrt() * latents + (1 - power).sqrt() * noise
        velocity = power.sqrt() * noise - (1 - power).sqrt() * latents
        luck = torch.rand(count, device=self.device)
        without_words = (luck < EMPTY)[:, None]
        without_prompt = ((luck >= EMPTY) & (luck < EMPTY + ZEROS)).float()
        context, pooled = encode_text(
            self.encoder,
            self.encoder_2,
            torch.where(without_words, empty[0], batch.ids),
            torch.where(without_words, empty[1], batch.ids_2),
        )
        context, pooled = context * (1 - without_prompt[:, None, None]), pooled * (1 - without_prompt[:, None])
        # Guidance multiplies the difference that a prompt makes. Late, when the picture shows all that the prompt says,
        # that difference is error alone, and wears edges away: some are shown with no prompt, too, and learn to agree.
        clear = (power / (1 - power)).flatten() > CLEAR * scale
        again = (clear & (torch.rand(count, device=self.device) < TWICE)).nonzero().flatten()
        rows = torch.cat([torch.arange(count, device=self.device), again])
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low_precision):
            made = self.run_unet(
                noisy[rows].contiguous(memory_format=self.layout),
                times[rows],
                torch.cat([context, torch.zeros_like(context[again])]),
                added_cond_kwargs={
                    "text_embeds": torch.cat([pooled, torch.zeros_like(pooled[again])]),
                    "time_ids": batch.sizes[rows],
                },
            ).sample.float()
        errors = (made[:count] - velocity).square().mean((1, 2, 3))
        apart = (made[again] - made[count:]).square().mean((1, 2, 3))
        return (errors.sum() + (GUIDANCE - 1) ** 2 * apart.sum()) / count, errors, times

    def learn(self, loss: torch.Tensor, step: int, share: float) -> None:
        """One step of both optimisers; `share` of the time is over."""
        fade = 1 if share < self.options.decay_from else max(0.01, (1 - share) / (1 - self.options.decay_from))
        factor = min(1, (step + 1) / 60) * fade
        for optimizer, rate in zip(self.optimizers, (self.options.lr_adamw, self.options.lr), strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        if step % 2:  # every other step, with the decay of two
            self.average.update(min(self.options.average, (step + 2) / (step + 16)) ** 2)


class History:
    """Running mean loss for each quarter of the noise schedule."""

    def __init__(self, rows: list[list[float]]) -> None:
        self.rows = rows  # step, minutes, mean, the four quarters from little to much noise, pictures seen
        self._sums = np.zeros((4, 2))

    def add(self, errors: torch.Tensor, times: torch.Tensor) -> None:
        """Take in one batch."""
        values, quarters = errors.detach().cpu().numpy(), times.cpu().numpy() // 250
        for quarter in np.unique(quarters):
            chosen = values[quarters == quarter]
            self._sums[quarter] = self._sums[quarter] * 0.97 + [chosen.sum(), len(chosen)]

    def note(self, step: int, minutes: float, seen: int) -> list[float]:
        """Append and return a row."""
        means = self._sums[:, 0] / np.maximum(self._sums[:, 1], 1e-9)
        self.rows.append([step, round(minutes, 2), *(round(float(mean), 4) for mean in (means.mean(), *means)), seen])
        return self.rows[-1]


def _make_tokenizers(options: argparse.Namespace) -> None:
    if options.start_from:
        start.copy_tokenizers(options.start_from, options.folder)
    elif not (options.folder / "tokenizer_2" / "tokenizer_config.json").exists():
        build_tokenizers(options.folder)


def train(options: argparse.Namespace) -> list[list[float]]:
    """Train, save to `folder`/pipeline, return the history's rows. In a torchrun group all processes train together,
    and rank 0 keeps the books.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    folder, crew = options.folder, Crew()
    shapes = SHAPES[:1] if options.square else SHAPES
    lots = crew.first(lambda: open_scenes(folder, options.pictures, processes=options.threads, shapes=shapes))
    crew.first(lambda: _make_tokenizers(options))
    learner = Learner(options, len(load_tokenizers(folder)[0]))
    state = folder / "unet_state.safetensors"
    progress: dict[str, Any] = {"step": 0, "seen": 0, "minutes": 0.0, "history": []}
    if state.exists():
        progress = checkpoint.load(state, learner.modules, learner.average, learner.optimizers)
    history, step, seen, fresh = History(progress["history"]), progress["step"], progress["seen"], 0
    # A resumed training must not see the first batches and their noise again, nor a process those of another.
    torch.manual_seed(options.seed + step + 1_000_003 * crew.rank)
    lessons = Lessons(folder, lots, options.device, options.seed + step + 1_000_003 * crew.rank)

    def minutes() -> float:
        return (time.monotonic() - began) / 60

    def save() -> None:
        now = {"step": step, "seen": seen, "minutes": minutes(), "history": history.rows}
        checkpoint.save(state, learner.modules, learner.average, learner.optimizers, now)
        (folder / "losses.json").write_text(json.dumps(history.rows), encoding="utf-8")
        averaged = {name: copy.deepcopy(module).eval() for name, module in learner.modules.items()}
        learner.average.copy_to(averaged)
        has_decoder = (folder / "vae" / "config.json").exists()
        vae = AutoencoderKL.from_pretrained(folder / "vae") if has_decoder else build_vae()
        if options.start_from and not has_decoder:
            start.copy_weights(options.start_from, {"vae": vae})
        save_pipeline(folder / "pipeline", vae=vae, tokenizer_folder=folder, **averaged)

    began = time.monotonic() - progress["minutes"] * 60
    saved, end = time.monotonic(), False
    while not end:
        share = min(1, minutes() / options.minutes)
        batch = lessons.draw(options.batch, share)
        loss, errors, times = learner.losses(batch, lessons.empty)
        learner.learn(loss, step, share)
        step, fresh = step + 1, fresh + len(batch.latents)
        history.add(errors, times)
        over = minutes() >= options.minutes or step >= options.steps or start.stopping.is_set()
        if crew.due:
            end, some = crew.meet(learner.params, end=over, done=fresh)
            seen, fresh = seen + some, 0
        if crew.rank == 0 and (step % 50 == 0 or end):
            row = history.note(step, minutes(), seen)
            print(f"step {step}, {row[1]} min, {seen} pictures seen, v-MSE {row[2]} {row[3:7]}", flush=True)
        if crew.rank == 0 and (end or time.monotonic() - saved > options.save_minutes * 60):
            saved = time.monotonic()
            save()
    crew.close()
    return history.rows


if __name__ == "__main__":
    start.listen()
    train(parse_options())
