"""Tiny random models with the real architectures, made from fixed seeds, and the embedded model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, DDIMScheduler, StableDiffusionXLPipeline, UNet2DConditionModel

DEMO_MODEL = Path(__file__).resolve().parents[2] / "assets" / "demo_model"


def copied(make: Callable[..., Any]) -> Callable[..., Any]:
    """`make`, but a model is made once a process, and every caller gets a copy of his own, which is quicker."""
    made = cache(make)

    @wraps(make)
    def copies(seed: int = 0, **options: Any) -> Any:
        model = made(seed, **options)
        torch.manual_seed(seed)  # what the caller draws next is the same whoever came first
        return copy.deepcopy(model)

    return copies


@copied
def tiny_sdxl_unet(seed: int = 0) -> UNet2DConditionModel:
    """SDXL's block types, three levels, text_time embeddings, GroupNorm and biases drawn at random."""
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 2),
        attention_head_dim=(1, 2, 4),
        cross_attention_dim=48,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,
        norm_num_groups=8,
    )
    for name, parameter in unet.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
    return unet.eval()


@copied
def tiny_sd15_unet(seed: int = 0) -> UNet2DConditionModel:
    """SD 1.5's block types: four levels, convolutional projections, no added conditions."""
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=32, block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=48,
        attention_head_dim=4, norm_num_groups=8,
    ).eval()  # fmt: skip


def tiny_controlnet(unet: UNet2DConditionModel, seed: int = 7) -> ControlNetModel:
    """A ControlNet for `unet` with weights of its own, none of them zero; 8 pixels of the condition a latent cell."""
    kind = (str(sorted(unet.config.items())), seed)
    if kind not in _CONTROLNETS:
        _CONTROLNETS[kind] = _controlnet(unet, seed)
    torch.manual_seed(seed)  # as above
    return copy.deepcopy(_CONTROLNETS[kind])


_CONTROLNETS: dict[tuple[str, int], ControlNetModel] = {}


def _controlnet(unet: UNet2DConditionModel, seed: int) -> ControlNetModel:
    torch.manual_seed(seed)
    net = ControlNetModel.from_unet(
        unet, conditioning_embedding_out_channels=(8, 8, 16, 16), load_weights_from_unet=False
    )
    for name, parameter in net.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(parameter, 1.0 if name.endswith("weight") else 0.0, 0.2)
        elif name.startswith(("controlnet_down_blocks", "controlnet_mid_block", "controlnet_cond_embedding.conv_out")):
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return net.eval()


@copied
def tiny_vae(seed: int = 0, *, attention: bool = True) -> AutoencoderKL:
    """SDXL's autoencoder, narrow: three upsamplings and attention in the middle."""
    torch.manual_seed(seed)
    return AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        mid_block_add_attention=attention,
        scaling_factor=0.13,
    ).eval()


def sdxl_inputs(batch: int, height: int, width: int, seed: int = 1) -> dict[str, object]:
    """Inputs of `tiny_sdxl_unet` for latents of height x width cells."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "sample": draw(batch, 4, height, width),
        "encoder_hidden_states": draw(batch, 7, 48),
        "added_cond_kwargs": {"text_embeds": draw(batch, 32), "time_ids": draw(batch, 6).abs() * 100},
    }


def demo_pipeline() -> StableDiffusionXLPipeline:
    """The embedded model by plain diffusers, float32, DDIM."""
    pipe = StableDiffusionXLPipeline.from_pretrained(DEMO_MODEL, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    return pipe


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative L2 distance of `a` from `b`."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def tiny_sdxl_pipeline(prediction_type: str = "epsilon") -> StableDiffusionXLPipeline:
    """A random SDXL pipeline without text encoders: call it with embeddings."""
    return StableDiffusionXLPipeline(
        vae=tiny_vae(), text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=tiny_sdxl_unet(),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
                                set_alpha_to_one=False, steps_offset=1, prediction_type=prediction_type),
        add_watermarker=False,
    )  # fmt: skip


def tiny_embeddings() -> dict[str, torch.Tensor]:
    """Text embeddings for `tiny_sdxl_pipeline`."""
    generator = torch.Generator().manual_seed(5)
    shapes = {
        "prompt_embeds": (1, 7, 48),
        "negative_prompt_embeds": (1, 7, 48),
        "pooled_prompt_embeds": (1, 32),
        "negative_pooled_prompt_embeds": (1, 32),
    }
    return {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}


PROMPTS = (
    "a red sun setting over blue mountains at sunset",
    "a white lighthouse on green hills under a starry night sky",
    "a yellow sailboat on the sea at sunset with an orange sun",
    "a red house with a blue roof in a snowy field on a clear day",
    "a blue house on green hills at sunset",
    "a red lighthouse by the sea on a clear day with a yellow sun",
    "a white moon over purple mountains at night",
    "a blue sailboat on a calm sea at night with a white moon",
    "a green house on yellow hills on a clear day",
    "an orange lighthouse in a snowy field at night",
    "a red sailboat on the sea on a clear day",
    "a yellow sun over green mountains on a clear day",
    "a white house in a snowy field under a starry night sky",
    "a yellow lighthouse on green hills at sunset with a red sun",
    "an orange sailboat on the sea at night with a yellow moon",
    "a blue lighthouse by the sea at sunset",
)
