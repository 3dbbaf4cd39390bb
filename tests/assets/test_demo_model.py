"""The embedded model is a plain SDXL folder: small, safetensors only, opened by stock diffusers, fond of any prompt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionXLPipeline
from safetensors import safe_open

from assets.demo_training.reconstructions import reconstruct, strip
from assets.demo_training.train_decoder import HELD_OUT

FOLDER = Path(__file__).parents[2] / "assets" / "demo_model"
LINES = 0.4  # of the contrast of thin lines, what is left
UNKNOWN_WORDS = "a zebra in Zürich, 日本! 42"


def draw(pipeline: StableDiffusionXLPipeline, prompt: str, **options: object) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "generator": torch.Generator().manual_seed(0), **options}
    return np.asarray(pipeline(prompt, **options).images[0])


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(FOLDER, dtype=torch.float32)


def test_size_and_formats() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 40_000_000
    assert {path.suffix for path in files} == {".json", ".txt", ".md", ".safetensors"}


def test_text_encoders_are_float32() -> None:
    for name in ("text_encoder", "text_encoder_2"):
        with safe_open(FOLDER / name / "model.safetensors", "pt") as file:
            assert {file.get_slice(key).get_dtype() for key in file.keys()} == {"F32"}  # noqa: SIM118


def test_no_trace_of_the_machine_that_saved_it() -> None:
    for path in FOLDER.rglob("*.json"):
        if path.name.endswith("config.json"):
            assert not {"_name_or_path", "is_local", "local_files_only"} & json.loads(path.read_text()).keys(), path


def test_opens_with_dtype_and_draws_unknown_words(pipeline: StableDiffusionXLPipeline) -> None:
    picture = draw(pipeline, UNKNOWN_WORDS)
    assert picture.shape == (256, 256, 3)
    assert picture.std() > 10


def test_opens_without_dtype() -> None:
    draw(StableDiffusionXLPipeline.from_pretrained(FOLDER), "a red house", num_inference_steps=1)


def test_ddim_keeps_the_schedule(pipeline: StableDiffusionXLPipeline) -> None:
    scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    assert scheduler.config.prediction_type == "v_prediction"
    assert not scheduler.config.clip_sample
    assert not scheduler.config.set_alpha_to_one
    assert scheduler.alphas_cumprod[-1] == 0  # it was trained to begin with nothing but noise
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999


def test_follows_the_prompt(pipeline: StableDiffusionXLPipeline) -> None:
    day = draw(pipeline, "a house in a snowy field on a clear day", num_inference_steps=8)
    night = draw(pipeline, "a lighthouse on green hills at night", num_inference_steps=8)
    assert day[:64].mean() > night[:64].mean() + 50, "the sky of a clear day is brighter than the night's"


def test_tokenizers_pad_as_sdxl(pipeline: StableDiffusionXLPipeline) -> None:
    assert pipeline.tokenizer.pad_token_id == pipeline.tokenizer.eos_token_id == len(pipeline.tokenizer) - 1
    assert pipeline.tokenizer_2.pad_token_id == 0
    assert len(pipeline.tokenizer(UNKNOWN_WORDS).input_ids) > 10, "unknown words become bytes"


def test_the_autoencoder_keeps_scenes_and_their_lines(pipeline: StableDiffusionXLPipeline) -> None:
    result = reconstruct(pipeline.vae, HELD_OUT)
    assert result.psnr > 32
    assert result.lines > LINES
    assert strip(result, 3).size == (3 * 256, 2 * 256)


def test_model_card() -> None:
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    for said in ("license: apache-2.0", "lighthouse", "sailboat", "256", "from_pretrained", "demo_training"):
        assert said in card
