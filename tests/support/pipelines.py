"""Tiny random pipelines of every kind that the engine wraps, text encoders and tokenizers included. Their UNets have
two levels, which is enough for what pipelines do; the tests of layers have UNets of three and four.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import diffusers
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tests.support.models import DEMO_MODEL, tiny_controlnet, tiny_vae

# kind -> (diffusers' prefix, what is special about the UNet, options of the pipeline, prediction type)
KINDS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "sdxl": ("StableDiffusionXL", {}, {}, "epsilon"),
    "sdxl-9": ("StableDiffusionXL", {"in_channels": 9}, {}, "epsilon"),
    "sdxl-distilled": ("StableDiffusionXL", {"time_cond_proj_dim": 16}, {}, "epsilon"),
    "refiner": (
        "StableDiffusionXL",
        {"projection_class_embeddings_input_dim": 8 * 5 + 32},
        {"requires_aesthetics_score": True},
        "epsilon",
    ),
    "sd15": ("StableDiffusion", {}, {}, "epsilon"),
    "sd15-9": ("StableDiffusion", {"in_channels": 9}, {}, "epsilon"),
    "sd15-distilled": ("StableDiffusion", {"time_cond_proj_dim": 16}, {}, "epsilon"),
    "sd21": ("StableDiffusion", {"use_linear_projection": True, "attention_head_dim": (2, 4)}, {}, "v_prediction"),
}


def tiny_pipeline(kind: str, task: str = "", dtype: torch.dtype = torch.float32, *, own: bool = False) -> Any:
    """A pipeline of `kind` (see KINDS) for `task`: "" for text to picture, "Img2Img", "Inpaint" or "ControlNet".

    Weights depend on the kind alone; in float32 all pipelines of a process share them, unless one needs its `own`.
    """
    prefix, _, options, prediction = KINDS[kind]
    components = dict(_components(kind))
    if task == "ControlNet":
        components["controlnet"] = tiny_controlnet(components["unet"])
    if own or dtype != torch.float32:  # copies are quicker than to make them again
        components = {
            name: copy.deepcopy(part) if isinstance(part, torch.nn.Module) else part
            for name, part in components.items()
        }
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type=prediction,
    )  # fmt: skip
    options = {name: value for name, value in options.items() if task in ("Img2Img", "Inpaint")}
    options |= {"add_watermarker": False} if prefix.endswith("XL") else {"requires_safety_checker": False}
    pipe = getattr(diffusers, f"{prefix}{task}Pipeline")(**components, scheduler=scheduler, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe if dtype == torch.float32 else pipe.to(dtype=dtype)


@cache
def _components(kind: str) -> dict[str, Any]:
    prefix, special, _, _ = KINDS[kind]
    torch.manual_seed(0)
    common: dict[str, Any] = {
        "sample_size": 16, "block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 48,
        "attention_head_dim": 4, "norm_num_groups": 8,
    }  # fmt: skip
    if not prefix.endswith("XL"):
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        unet = UNet2DConditionModel(**(common | blocks | special)).eval()
        parts = {"text_encoder": _clip(CLIPTextModel, 48), "tokenizer": _tokenizer()}
        return parts | {"vae": tiny_vae(), "unet": unet, "safety_checker": None, "feature_extractor": None}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "use_linear_projection": True, "attention_head_dim": (2, 4), "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 8 * 6 + 32,
    }  # fmt: skip
    unet = UNet2DConditionModel(**(common | blocks | special)).eval()
    alone = kind == "refiner"
    return {
        "text_encoder": None if alone else _clip(CLIPTextModel, 16),
        "text_encoder_2": _clip(CLIPTextModelWithProjection, 48 if alone else 32),
        "tokenizer": None if alone else _tokenizer(),
        "tokenizer_2": _tokenizer(),
        "vae": tiny_vae(),
        "unet": unet,
    }


def _clip(model: Any, width: int) -> Any:
    torch.manual_seed(width)
    config = CLIPTextConfig(
        vocab_size=len(_tokenizer()), hidden_size=width, intermediate_size=32, projection_dim=32, num_hidden_layers=3,
        num_attention_heads=2, bos_token_id=0, eos_token_id=2, pad_token_id=1,
    )  # fmt: skip
    return model(config).eval()


@cache
def _tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(DEMO_MODEL / "tokenizer")


def tiny_safety_checker() -> tuple[Any, Any]:
    """A safety checker that finds every picture unsafe, and what prepares pictures for it."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 32, "patch_size": 16, "projection_dim": 16}
    torch.manual_seed(0)
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=16)).eval()
    checker.concept_embeds_weights.data.fill_(-1)
    size = {"height": 32, "width": 32}
    return checker, CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size)
