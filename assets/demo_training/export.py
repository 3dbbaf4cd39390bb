"""Writes the trained parts as an SDXL pipeline folder that plain diffusers opens, and knows the traps of doing so."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from assets.demo_training.text import PADS, load_tokenizers

# As in SDXL's own scheduler file, although Euler has no use for them: DDIM made from a configuration without
# `clip_sample: false` clips the latents, and then seems to ignore the prompt.
FOR_OTHER_SCHEDULERS = {
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "sample_max_value": 1.0,
}
# What the libraries note about the machine that saved.
MACHINE_KEYS = ("_name_or_path", "is_local", "local_files_only")


def noise_schedule() -> EulerDiscreteScheduler:
    """SDXL's, rescaled to end in nothing but noise (Lin et al., "Common diffusion noise schedules and sample steps are
    flawed", 2024, sections 3.1 and 3.3): else the last step of the training shows where things are, the more clearly
    the larger the picture is, and the first step of a picture, which sees noise only, makes out several of them.
    """
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        num_train_timesteps=1000,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
    )


def save_pipeline(
    out: Path,
    *,
    vae: AutoencoderKL,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    text_encoder_2: CLIPTextModelWithProjection,
    tokenizer_folder: Path,
) -> None:
    """Save copies of the parts to `out`: UNet and VAE as float16, the text encoders as float32.

    transformers 5 loads a file in its own dtype, diffusers in float32: a folder that is float16 throughout, opened
    without `dtype=`, would mix the two and fail.
    """
    tokenizer, tokenizer_2 = load_tokenizers(tokenizer_folder)
    pipeline = StableDiffusionXLPipeline(
        vae=copy.deepcopy(vae).cpu().half(),
        text_encoder=copy.deepcopy(text_encoder).cpu(),
        text_encoder_2=copy.deepcopy(text_encoder_2).cpu(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer_2,
        unet=copy.deepcopy(unet).cpu().half(),
        scheduler=noise_schedule(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
    )
    pipeline.save_pretrained(out, safe_serialization=True)
    _amend(out / "scheduler" / "scheduler_config.json", FOR_OTHER_SCHEDULERS)
    save_decoder(out, vae)
    for name in PADS:
        for file in (
            "vocab.json",
            "merges.txt",
            "special_tokens_map.json",
        ):  # which SDXL ships and transformers 5 omits
            shutil.copy(tokenizer_folder / name / file, out / name / file)
        _amend(out / name / "tokenizer_config.json", {})


def save_decoder(out: Path, vae: AutoencoderKL) -> None:
    """Save a copy of `vae` to the pipeline folder `out`, as float16."""
    copy.deepcopy(vae).cpu().half().save_pretrained(out / "vae")
    _amend(out / "vae" / "config.json", {})


def _amend(path: Path, changes: dict) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | changes
    for key in MACHINE_KEYS:
        content.pop(key, None)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
