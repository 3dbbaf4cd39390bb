"""UNets and autoencoders without weights on the meta device, published ones or those of a model folder, and inputs that
fit them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn

from distri_engine.errors import UnsupportedError

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = {"sdxl": "sdxl_base_unet.json", "sd15": "sd15_unet.json"}
PUBLISHED_VAES = {"sdxl": "sdxl_base_vae.json", "sd15": "sd15_vae.json"}
VAE_SCALE = 8  # pixels a latent cell; of every Stable Diffusion VAE
TEXT_TOKENS = 77  # what CLIP's text encoders give
PARTS = {UNet2DConditionModel: "UNet", AutoencoderKL: "autoencoder"}
_TIME_IDS = 6  # of SDXL: original size, crop, target size


def unet_config(model: str) -> dict[str, Any]:
    """The UNet's settings: of `sdxl` or `sd15`, or of a diffusers model folder. Raises ValueError for anything else."""
    return _config(model, "unet", PUBLISHED, UNet2DConditionModel)


def _config(model: str, part: str, published: dict[str, str], kind: type) -> dict[str, Any]:
    file = CONFIGS / published[model] if model in published else Path(model).expanduser() / part / "config.json"
    try:
        config = json.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        names = ", ".join(published)
        raise ValueError(
            f"model {model[:200]} has no {part}/config.json; give one of {names}, or a diffusers model folder"
        ) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; fetch it again") from None
    if not isinstance(config, dict) or config.get("_class_name") != kind.__name__:
        raise ValueError(f"{file} does not describe a {kind.__name__}; give another model")
    return config


def vae_on_meta(model: str, dtype: torch.dtype) -> AutoencoderKL:
    """The autoencoder of `model` without weights; SDXL's own overflows in float16 and is float32 then, as in pipelines.

    Raises ValueError if its settings cannot be read or make none.
    """
    vae: AutoencoderKL = _empty(
        AutoencoderKL, _config(model, "vae", PUBLISHED_VAES, AutoencoderKL), f"vae/config.json of {model}"
    )
    if dtype == torch.float16 and vae.config.force_upcast:
        dtype = torch.float32
    return nn.Module.to(vae, dtype).eval()


def unet_on_meta(model: str, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet of `model` without weights. Raises ValueError if its settings cannot be read or make no UNet."""
    return unet_of(unet_config(model), dtype, name=model)


def unet_of(config: dict[str, Any], dtype: torch.dtype, *, name: str) -> UNet2DConditionModel:
    """A UNet of these settings, those of model `name`, without weights. Raises ValueError if they make none."""
    unet: UNet2DConditionModel = _empty(UNet2DConditionModel, config, f"unet/config.json of {name}")
    return nn.Module.to(unet, dtype).eval()  # diffusers' own `to` prints advice about loading


def _empty(kind: Any, config: dict[str, Any], file: str) -> Any:
    try:
        with torch.device("meta"):
            return kind.from_config(config)
    except Exception as error:  # diffusers checks little of what a file says before it computes with it
        raise ValueError(f"the {file} makes no {PARTS[kind]}: {error}; fetch it again") from None


def unet_inputs(unet: UNet2DConditionModel, batch: int, rows: int, cols: int) -> dict[str, Any]:
    """Arguments of one evaluation, on the meta device, for latents of rows x cols cells.

    Raises UnsupportedError for a UNet that wants other conditions than text and, as SDXL, sizes.
    """
    config = unet.config

    def draw(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=unet.dtype, device="meta")

    inputs: dict[str, Any] = {
        "sample": draw(batch, config.in_channels, rows, cols),
        "timestep": draw(),
        "encoder_hidden_states": draw(batch, TEXT_TOKENS, config.cross_attention_dim),
    }
    strangers = ("class_embed_type", "num_class_embeds", "encoder_hid_dim_type")
    unknown = [name for name in strangers if getattr(config, name, None) is not None]
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - _TIME_IDS * config.addition_time_embed_dim
        inputs["added_cond_kwargs"] = {"text_embeds": draw(batch, pooled), "time_ids": draw(batch, _TIME_IDS)}
    elif config.addition_embed_type is not None:
        unknown.append("addition_embed_type")
    if unknown:
        raise UnsupportedError(
            f"this UNet wants conditions other than text and sizes ({unknown[0]}: {getattr(config, unknown[0])}); "
            "give a Stable Diffusion or SDXL model"
        )
    return inputs
