"""The training recipe: the generator still draws the pictures and captions of the embedded model's training set, and
the two trainings learn, go on after an interruption and save a pipeline that opens.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image

from assets.demo_training import train_decoder, train_unet
from assets.demo_training.captions import caption
from assets.demo_training.grammar import FULL, LITE, Grammar, sample_scene
from assets.demo_training.hand_set_vae import analytic_latents, build_vae
from assets.demo_training.painter import paint
from assets.demo_training.scenes import open_scenes
from assets.demo_training.text import PADS, build_tokenizers

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "assets" / "demo_model"


@pytest.mark.parametrize(("grammar", "first_row", "count"), [(FULL, 0, 32), (LITE, 4, 8)])
def test_same_pictures(grammar: Grammar, first_row: int, count: int) -> None:
    """Against pictures that the generator of the embedded model's training drew."""
    sheet = np.asarray(Image.open(HERE / "scenes.png")).astype(int)
    rng = np.random.default_rng(11)
    for index in range(count):
        top, left = (first_row + index // 8) * 64, index % 8 * 64
        difference = np.abs(paint(sample_scene(rng, grammar), 64) - sheet[top : top + 64, left : left + 64])
        # Another processor may round a gradient's sine or exponential the other way.
        assert difference.max() <= 1, f"scene {index}"
        assert (difference > 0).mean() < 0.001, f"scene {index}"


@pytest.mark.parametrize(("grammar", "digest"), [(FULL, "7b1cb00121f88b36"), (LITE, "3c9922151dbf29b9")])
def test_same_captions(grammar: Grammar, digest: str) -> None:
    scene_rng, rng = np.random.default_rng(11), np.random.default_rng(12)
    scenes = [sample_scene(scene_rng, grammar) for _ in range(300)]
    captions = "\n".join(caption(scene, rng) for scene in scenes)
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == digest


def test_same_vocabulary_as_the_model(tmp_path: Path) -> None:
    build_tokenizers(tmp_path)
    for name in PADS:
        made, shipped = tmp_path / name, MODEL / name
        assert json.loads((made / "vocab.json").read_text()) == json.loads((shipped / "vocab.json").read_text())
        assert (made / "merges.txt").read_text() == (shipped / "merges.txt").read_text()


def test_hand_set_encoder_is_an_average_pooling() -> None:
    pictures = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    shipped = AutoencoderKL.from_pretrained(MODEL, subfolder="vae")
    for vae in (build_vae(), shipped):
        with torch.no_grad():
            torch.testing.assert_close(
                vae.encode(pictures).latent_dist.mean, analytic_latents(pictures), atol=3e-3, rtol=0
            )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[list[float]]]:
    """A folder after a decoder training of two steps and a UNet training of 36, interrupted once."""
    folder = tmp_path_factory.mktemp("demo")
    common = ["--folder", str(folder), "--pictures", "32", "--lite", "--threads", "1", "--minutes", "5"]
    threads = torch.get_num_threads()
    try:
        train_decoder.train(train_decoder.parse_options([*common, "--steps", "2"]))
        train_unet.train(train_unet.parse_options([*common, "--batch", "4", "--lr", "0.01", "--steps", "4"]))
        rows = train_unet.train(train_unet.parse_options([*common, "--batch", "4", "--lr", "0.01", "--steps", "36"]))
    finally:
        torch.set_num_threads(threads)
    return folder, rows


@pytest.mark.timeout(120)
def test_training_learns_and_resumes(trained: tuple[Path, list[list[float]]]) -> None:
    _, rows = trained
    assert [row[0] for row in rows] == [4, 36], "the second run went on where the first one stopped"
    assert rows[1][1] >= rows[0][1], "the clock went on too"
    assert rows[1][2] < 0.9 * rows[0][2], "v-MSE fell"


def test_trained_pipeline_opens_plainly(trained: tuple[Path, list[list[float]]]) -> None:
    folder, _ = trained
    pipeline = StableDiffusionXLPipeline.from_pretrained(folder / "pipeline")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red house", num_inference_steps=1).images[0].size == (256, 256)
    files = {path.relative_to(folder / "pipeline") for path in (folder / "pipeline").rglob("*") if path.is_file()}
    assert files == {path.relative_to(MODEL) for path in MODEL.rglob("*") if path.is_file()} - {Path("README.md")}
    for path in files:
        if path.parts[0] == "scheduler":
            assert (folder / "pipeline" / path).read_text() == (MODEL / path).read_text()


def test_another_training_set_is_refused(trained: tuple[Path, list[list[float]]]) -> None:
    with pytest.raises(ValueError, match="holds 32 pictures of the lite grammar"):
        open_scenes(trained[0], 64, lite=True)
