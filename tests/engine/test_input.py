"""Bad input in Python: one sentence with the number, the rule and the remedy, and nothing started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from distri_engine import DistriConfig, DistriSDXLPipeline, Engine, GenerationRequest, ModelError, UnsupportedError
from distri_engine.loading import load_pipeline
from tests.support.pipelines import tiny_pipeline


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"prompt": "  "}, "the prompt is empty"),
        ({"prompt": "x" * 2001}, "prompt has 2001 characters, the limit is 2000"),
        ({"prompt": "x", "steps": 9999}, "steps 9999 is out of range; give a number from 1 to 1000"),
        ({"prompt": "x", "steps": 0}, "steps 0 is out of range"),
        ({"prompt": "x", "steps": 2.5}, "steps 2.5 is not a whole number"),
        ({"prompt": "x", "height": 1000}, "height 1000 is not a multiple of 32; nearest: 992 or 1024"),
        ({"prompt": "x", "width": 8}, "width 8 is not a multiple of 32; nearest: 32"),
        ({"prompt": "x", "width": -64}, "width -64 is not a positive multiple of 32"),
        ({"prompt": "x", "seed": -1}, "seed -1 is out of range"),
        ({"prompt": "x", "guidance_scale": float("nan")}, "guidance_scale nan is not a finite number"),
        ({"prompt": "x", "scheduler": "heun"}, "unknown scheduler 'heun'; choose one of: ddim, euler, dpm-solver"),
        ({"prompt": "x", "images": 99}, "images 99 is out of range"),
        ({"prompt": None}, "prompt None is not text"),
        ({"prompt": "a\ud800"}, "prompt holds half a character"),
    ],
)
def test_requests(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        GenerationRequest(**fields)
    assert str(raised.value).startswith(sentence)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"height": 1000}, "height 1000 is not a multiple of 32; nearest: 992 or 1024"),
        ({"width": 0}, "width 0 is not a positive multiple of 32"),
        ({"mode": "async"}, "unknown mode 'async'; choose one of: full_sync, sync_gn"),
        (
            {"parallelism": "magic"},
            "unknown parallelism 'magic'; choose one of: single, naive_patch, patch, paradigms, tensor",
        ),
        ({"split_scheme": "diagonal"}, "unknown split_scheme 'diagonal'; choose one of: row, col, alternate"),
        ({"warmup_steps": -1}, "warmup_steps -1 is out of range"),
        ({"comm_checkpoint": 0}, "comm_checkpoint 0 is out of range"),
        ({"split_batch": "no"}, "split_batch 'no' is not True or False"),
    ],
)
def test_configs(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as raised:
        DistriConfig(**fields)
    assert str(raised.value).startswith(sentence)


def test_numpy_numbers_are_numbers() -> None:
    """What a loop over np.arange or np.linspace passes."""
    plain = GenerationRequest(prompt="x", height=64, steps=3, seed=5, guidance_scale=2.5)
    numpy = GenerationRequest(
        prompt="x", height=np.int64(64), steps=np.int32(3), seed=np.uint8(5), guidance_scale=np.float32(2.5)
    )
    assert repr(numpy) == repr(plain)
    config = DistriConfig(height=np.int64(512), warmup_steps=np.int64(2), ranks=np.int64(2), picard_window=np.int8(3))
    assert repr(config) == repr(DistriConfig(height=512, warmup_steps=2, ranks=2, picard_window=3))
    with pytest.raises(ValueError, match="steps True is not a whole number"):
        GenerationRequest(prompt="x", steps=True)
    with pytest.raises(ValueError, match=r"is not a whole number"):
        GenerationRequest(prompt="x", steps=np.float64(3))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "unet", "vae"])
def test_weights_that_a_file_lacks_are_no_random_numbers(tmp_path: Path, part: str) -> None:
    tiny_pipeline("sdxl", own=True).save_pretrained(tmp_path)
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    lost = sorted(weights)[:2]
    save_file({name: weight for name, weight in weights.items() if name not in lost}, file, {"format": "pt"})
    with pytest.raises(ModelError) as raised:
        Engine(str(tmp_path), device="cpu")
    said = str(raised.value)
    assert f"{part} lack {lost[0]} and 1 others; the file is incomplete, or of another model" in said
    assert "\n" not in said


def test_a_variant_of_some_parts_alone(tmp_path: Path) -> None:
    """As in diffusers, the others have their plain files."""
    tiny_pipeline("sdxl", own=True).save_pretrained(tmp_path)
    (file,) = (tmp_path / "unet").glob("*.safetensors")
    file.rename(file.with_suffix(".fp16.safetensors"))
    loaded = load_pipeline(str(tmp_path), torch.device("cpu"), variant="fp16")
    assert loaded.text_encoder is not None


def test_distilled_guidance_is_not_taken_for_the_usual_one(tmp_path: Path) -> None:
    pipeline = tiny_pipeline("sdxl", own=True)
    config = {name: value for name, value in pipeline.unet.config.items() if not name.startswith("_")}
    pipeline.unet = type(pipeline.unet)(**config | {"time_cond_proj_dim": 8})
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes the guidance scale as an input, which is not supported here"):
        Engine(str(tmp_path), device="cpu")


def test_compile_is_refused_in_a_sentence() -> None:
    pipeline = DistriSDXLPipeline(tiny_pipeline("sdxl", own=True), DistriConfig())
    with pytest.raises(UnsupportedError, match="cannot be compiled; leave compile"):
        pipeline.unet.compile()


def test_models_that_cannot_be_opened(tmp_path: Any) -> None:
    with pytest.raises(ModelError, match=r"has no model_index.json; give a diffusers SDXL folder"):
        Engine(str(tmp_path), device="cpu")
    (tmp_path / "model_index.json").write_text("{not json")
    with pytest.raises(ModelError, match="cannot be opened as an SDXL pipeline") as raised:
        Engine(str(tmp_path), device="cpu")
    assert "\n" not in str(raised.value)
    with pytest.raises(ModelError):
        DistriSDXLPipeline.from_pretrained(str(tmp_path), distri_config=DistriConfig())
    with pytest.raises(ValueError, match="unknown device 'tpu'"):
        Engine(str(tmp_path), device="tpu")
