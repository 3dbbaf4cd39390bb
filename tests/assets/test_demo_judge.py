"""The judge of the embedded model's world: right about scenes that it has not seen, about doubled subjects and about
seams without any; and its training script still makes one.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from assets.demo_judge import train
from assets.demo_judge.drawing import ANSWERS, UNKNOWN, draw, stack
from assets.demo_judge.flaws import flawed
from assets.demo_training.grammar import sample_scene
from assets.demo_training.painter import paint
from distri_engine.evaluation.judge import FEATURES, SIDE, Judge, as_input, judged, load_judge

FOLDER = Path(__file__).parents[2] / "assets" / "demo_judge"
PICTURES = FOLDER.parent / "demo_captions" / "pictures"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return load_judge(FOLDER / "judge.safetensors")


def batch(pictures: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255


def test_size() -> None:
    assert (FOLDER / "judge.safetensors").stat().st_size < 1_500_000


@pytest.mark.parametrize("flaws", [False, True])
def test_right_about_fresh_scenes(judge: Judge, flaws: bool) -> None:
    rng = np.random.default_rng(2026)
    scenes = [sample_scene(rng) for _ in range(60)]
    pictures = batch([draw(scene).picture for scene in scenes])
    torch.manual_seed(0)
    given = train.said(judge, torch.cat([flawed(one) for one in pictures.split(1)]) if flaws else pictures)
    least_right = {"subject": 0.95, "colour": 0.9, "time": 0.95, "ground": 0.95, "weather": 0.9, "orb": 0.9}
    for head, least in least_right.items():
        truth = [getattr(scene, head) or "none" for scene in scenes]
        truth = ["none" if head == "colour" and s.subject == "none" else t for s, t in zip(scenes, truth, strict=True)]
        answers = [ANSWERS[head][number] for number in given[head]]
        assert np.mean([a == t for a, t in zip(answers, truth, strict=True)]) >= least, head
    assert np.mean(given["subjects"] == [scene.subject != "none" for scene in scenes]) >= 0.95


def test_its_lessons_show_what_the_model_is_taught() -> None:
    """Rain and snow before the subject included: a judge that has never seen them takes them for a second subject."""
    rng = np.random.default_rng(2028)
    scenes = [scene for scene in (sample_scene(rng) for _ in range(60)) if scene.subject != "none"]
    assert {"rain", "snowfall", "fog"} <= {scene.weather for scene in scenes}
    for scene in scenes:
        assert np.array_equal(draw(scene).picture, paint(scene, SIDE)), scene


def test_sees_doubled_subjects_and_not_seams(judge: Judge) -> None:
    rng = np.random.default_rng(2027)
    stacks = [stack(sample_scene(rng), rng, bands=2) for _ in range(120)]
    truth = np.array([answers[list(ANSWERS).index("subjects")] for _, answers in stacks])
    found = train.said(judge, batch([picture for picture, _ in stacks]))["subjects"] == 2
    assert min((truth == 2).sum(), (truth == 1).sum(), (truth == 0).sum()) >= 15
    assert found[truth == 2].mean() >= 0.9
    assert found[truth < 2].mean() <= 0.1


def test_any_size_is_judged_alike(judge: Judge, tmp_path: Path) -> None:
    path = PICTURES / "0002.png"
    Image.open(path).resize((512, 384), Image.Resampling.LANCZOS).save(tmp_path / "wide.png")
    small, large = judged(judge, [path]), judged(judge, [tmp_path / "wide.png"])
    assert small.answers == large.answers
    assert small.features.shape == (1, FEATURES)
    assert as_input(tmp_path / "wide.png").shape == as_input(path).shape


def test_training_script_makes_a_judge(tmp_path: Path) -> None:
    words = ["--folder", str(tmp_path), "--pictures", "12", "--batch", "6", "--epochs", "1"]
    made = train.train(train.parse_options(words))
    pictures, answers = train.lessons(tmp_path, "training", train.TRAINING_SEED, 12)
    assert answers.shape == (12, len(ANSWERS))
    assert set(answers[:, :-1].ravel()) <= {UNKNOWN, *range(11)}
    x = batch(list(pictures))
    with torch.no_grad():
        before = made.logits(made(x))
        train.standardise(made, pictures)
        features = made(x)
        after = made.logits(features)
    for name, scores in before.items():
        torch.testing.assert_close(after[name], scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(features.std(0), torch.ones(FEATURES), atol=1e-3, rtol=0)
    train.save(made, tmp_path / "judge.safetensors")
    again = load_judge(tmp_path / "judge.safetensors")
    assert again.answers == ANSWERS
    with torch.no_grad():
        torch.testing.assert_close(again(x), features, atol=0.25, rtol=0)  # float16; other weights are 1 off or more
