"""The training recipe: the generator still draws the pictures and captions of the embedded model's training set, and
the two trainings learn, go on after an interruption and save a pipeline that opens.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file, save_file

from assets.demo_training import mean, train_decoder, train_unet
from assets.demo_training.captions import caption
from assets.demo_training.crew import Crew
from assets.demo_training.critic import STRENGTH, Critic
from assets.demo_training.grammar import SUBJECTS, WEATHERS, sample_scene
from assets.demo_training.hand_set_vae import analytic_latents, build_vae
from assets.demo_training.lessons import Lessons
from assets.demo_training.painter import backdrop, paint
from assets.demo_training.repainter import Repainter
from assets.demo_training.scenes import SHAPES, Lot, Shape, as_tensor, make_scenes, open_scenes
from assets.demo_training.text import PADS, build_tokenizers
from tests.support.gang import run_on_ranks

HERE = Path(__file__).parent
MODEL = HERE.parents[1] / "assets" / "demo_model"


def test_same_pictures() -> None:
    """Against pictures that the generator of the embedded model's training drew."""
    sheet = np.asarray(Image.open(HERE / "scenes.png")).astype(int)
    rng = np.random.default_rng(11)
    for index in range(40):
        top, left = index // 8 * 64, index % 8 * 64
        difference = np.abs(paint(sample_scene(rng), 64) - sheet[top : top + 64, left : left + 64])
        # Another processor may round a gradient's sine or exponential the other way.
        assert difference.max() <= 1, f"scene {index}"
        assert (difference > 0).mean() < 0.001, f"scene {index}"


def test_same_captions() -> None:
    scene_rng, rng = np.random.default_rng(11), np.random.default_rng(12)
    scenes = [sample_scene(scene_rng) for _ in range(300)]
    captions = "\n".join(caption(scene, rng) for scene in scenes)
    assert hashlib.sha256(captions.encode()).hexdigest()[:16] == "5e4acc310c073807"


@pytest.mark.parametrize("shape", [(256, 256), (256, 384), (384, 256), (512, 512)])
def test_things_stand_on_the_grid_of_latents(shape: tuple[int, int]) -> None:
    """Eight pixels apart, the encoder's patches."""
    rng = np.random.default_rng(3)
    for scene in (sample_scene(rng) for _ in range(8)):
        painting = backdrop(scene, shape, supersampling=1)
        places = [painting.horizon, painting.orb_x, painting.orb_y]
        if scene.subject != "none":
            painting.place_subject()
            places += [painting.x, painting.standing(0.05)]
        pixels = np.array(places) * min(shape)
        assert np.allclose(pixels / 8, np.round(pixels / 8)), scene


@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_every_subject_and_weather_in_every_shape(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(5)
    drawn: dict[str, set[str]] = {"subject": set(), "weather": set()}
    for scene in (sample_scene(rng) for _ in range(120)):
        if {scene.subject} <= drawn["subject"] and {scene.weather} <= drawn["weather"]:
            continue
        picture = paint(scene, shape)
        assert picture.shape == (*shape, 3)
        assert (picture == paint(scene, shape)).all(), "the same scene is the same picture"
        plain = {"subject": {"subject": "none"}, "weather": {"weather": "clear", "clouds": False}}
        for name, seen in drawn.items():
            changed = dataclasses.replace(scene, **plain[name])
            assert changed == scene or (picture != paint(changed, shape)).any(), scene
            seen.add(getattr(scene, name))
    assert drawn == {"subject": set(SUBJECTS), "weather": set(WEATHERS)}


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
    """A folder after a decoder training of two steps, a UNet training of 36, interrupted once, and four more steps of
    the decoder, with latents of that UNet and a critic.
    """
    folder = tmp_path_factory.mktemp("demo")
    common = ["--folder", str(folder), "--pictures", "32", "--threads", "1", "--minutes", "5"]
    threads = torch.get_num_threads()
    try:
        train_decoder.train(train_decoder.parse_options([*common, "--steps", "2"]))
        words = [*common, "--preset", "xs", "--batch", "4", "--lr", "0.01"]
        train_unet.train(train_unet.parse_options([*words, "--steps", "4"]))
        rows = train_unet.train(train_unet.parse_options([*words, "--steps", "36"]))
        last = [*common, "--steps", "6", "--details", "1", "--critic-from", "0"]
        train_decoder.train(train_decoder.parse_options(last))
    finally:
        torch.set_num_threads(threads)
    return folder, rows


@pytest.mark.timeout(400)  # half a minute on a machine of its own
def test_training_learns_and_resumes(trained: tuple[Path, list[list[float]]]) -> None:
    _, rows = trained
    assert [row[0] for row in rows] == [4, 36], "the second run went on where the first one stopped"
    assert rows[1][1] >= rows[0][1], "the clock went on too"
    assert rows[1][2] < 0.96 * rows[0][2], "v-MSE fell"
    assert 4 * 4 < rows[0][-1] < rows[1][-1], "the first lessons have more small pictures than large ones"


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


def test_the_pipeline_has_the_last_decoder(trained: tuple[Path, list[list[float]]]) -> None:
    file = "diffusion_pytorch_model.safetensors"
    last, shipped = (load_file(trained[0] / part / "vae" / file) for part in (".", "pipeline"))
    assert all(torch.equal(last[key].half(), shipped[key]) for key in last | shipped)


def test_the_mean_of_a_model_and_its_negative_is_zero(trained: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    first, out = trained[0] / "pipeline", tmp_path / "out"
    second = shutil.copytree(first, tmp_path / "second")
    for part in mean.PARTS:
        (file,) = (second / part).glob("*.safetensors")
        weights = load_file(file)
        save_file({name: -weight if weight.is_floating_point() else weight for name, weight in weights.items()}, file)
    mean.main(mean.parse_options([str(first), str(second), "--output", str(out)]))
    for part in mean.PARTS:
        (file,) = (out / part).glob("*.safetensors")
        weights, given = load_file(file), load_file(first / part / file.name)
        assert all(not weight.any() for weight in weights.values() if weight.is_floating_point())
        assert {name: weight.dtype for name, weight in weights.items()} == {
            name: weight.dtype for name, weight in given.items()
        }
    assert StableDiffusionXLPipeline.from_pretrained(out) is not None
    with pytest.raises(FileExistsError):
        mean.main(mean.parse_options([str(first), str(second), "--output", str(out)]))


def test_repainted_details_show_what_their_latents_show() -> None:
    """Against the latents of the details themselves: the UNet changed them, but neither moved nor replaced them."""
    scenes, pictures = make_scenes(3, 4, SHAPES[0])
    lot = Lot(shape=SHAPES[0], scenes=scenes, latents=np.empty(0), pictures=pictures)
    repainter, rng = Repainter(MODEL, "cpu"), np.random.default_rng(0)
    torch.manual_seed(0)
    for look_closely, count, side in ((True, train_decoder.DETAILS, train_decoder.DETAIL), (False, 1, 256)):
        targets, latents = train_decoder.repainted(lot, repainter, "cpu", rng, look_closely)
        assert targets.shape == (count, 3, side, side)
        exact = analytic_latents(targets)
        apart = (latents - exact)[:, :3].square().mean().sqrt()
        assert 0.02 < apart < 0.5 * exact[:, :3].std(), look_closely


def test_the_critic_prefers_edges_to_blurs(tmp_path: Path) -> None:
    _, pictures = make_scenes(4, 2, Shape(height=64, width=64, pictures=1, kept=1, first=1, then=1, last=1, batch=1))
    drawn = as_tensor(pictures, "cpu")
    blurred = F.avg_pool2d(drawn, 5, stride=1, padding=2, count_include_pad=False)
    torch.manual_seed(0)
    critic = Critic(tmp_path / "critic.safetensors", "cpu")
    for _ in range(30):
        critic.learn(drawn, blurred)
    critic.save()
    share = torch.nn.Parameter(torch.tensor(0.0))  # of the edge in what was made: the critic wants more of it
    for one in (critic, Critic(tmp_path / "critic.safetensors", "cpu")):
        made = blurred + share * (drawn - blurred)
        (gradient,) = torch.autograd.grad(one.loss(made, -2 * share, share), share)
        assert float(gradient) == pytest.approx(-2 * STRENGTH, rel=0.01), "half as strong as the other losses"


def test_a_training_starts_from_another_pipeline(trained: tuple[Path, list[list[float]]], tmp_path: Path) -> None:
    """No step changes nothing; one step makes batches of every shape and leaves a model that is nearly the first."""
    for part in trained[0].iterdir():
        if part.suffix in (".json", ".npy"):
            (tmp_path / part.name).symlink_to(part)
    words = ["--folder", str(tmp_path), "--pictures", "32", "--threads", "1", "--batch", "2"]
    rows = train_unet.train(train_unet.parse_options([*words, "--steps", "1", "--start-from", str(MODEL)]))
    assert rows[0][2] < 0.5, "a model that begins anew would have a v-MSE of about 1"
    for name in ("unet", "vae"):
        file = Path(name, "diffusion_pytorch_model.safetensors")
        ours, theirs = load_file(tmp_path / "pipeline" / file), load_file(MODEL / file)
        assert ours.keys() == theirs.keys()
        assert max(float((ours[key].float() - theirs[key].float()).abs().max()) for key in ours) < 0.02, name


def test_lessons_come_in_every_shape_and_tell_their_size(trained: tuple[Path, list[list[float]]]) -> None:
    lots = open_scenes(trained[0], 32)
    lessons = Lessons(trained[0], lots, "cpu", 0)
    drawn, true = set(), []
    for batch in (lessons.draw(8, share) for share in np.linspace(0, 1, 200)):
        height, width = (8 * side for side in batch.latents.shape[2:])
        drawn.add((height, width))
        assert torch.equal(batch.sizes[:, 2:4], torch.zeros(len(batch.latents), 2))
        true += [bool((sizes[[0, 1, 4, 5]] == torch.tensor([height, width] * 2)).all()) for sizes in batch.sizes]
    assert drawn == {(shape.height, shape.width) for shape in SHAPES}
    assert 0.75 < np.mean(true) < 0.95
    for lot in lots:  # what is kept are the pictures behind the latents
        latents = analytic_latents(as_tensor(lot.pictures[:1], "cpu"))
        assert latents.shape[1:] == lot.latents.shape[1:]
        torch.testing.assert_close(latents, torch.from_numpy(lot.latents[:1].copy()).float(), atol=2e-3, rtol=2e-3)


def test_another_training_set_is_refused(trained: tuple[Path, list[list[float]]]) -> None:
    with pytest.raises(ValueError, match="holds 32 pictures"):
        open_scenes(trained[0], 64)


def test_processes_that_train_together_end_with_one_model() -> None:
    weights = run_on_ranks(2, meetings)
    for tensor, other in zip(*(given for given, _, _ in weights), strict=True):
        torch.testing.assert_close(tensor, torch.full_like(tensor, 0.5), atol=0, rtol=0)
        assert torch.equal(tensor, other)
    assert [end for _, end, _ in weights] == [True, True], "rank 0 says when it is over"
    assert [done for _, _, done in weights] == [11, 11]


def meetings() -> tuple[list[torch.Tensor], bool, int]:
    """On a rank: two tensors full of its number, after a meeting."""
    crew = Crew()
    tensors = [torch.full((2, 3), float(crew.rank)), torch.full((4,), float(crew.rank))]
    end, done = crew.meet(tensors, end=crew.rank == 0, done=5 + crew.rank)
    crew.close()
    return tensors, end, done
