"""The held-out captions: the generator still makes them, their scenes and their pictures, and training cannot have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from assets.demo_training.held_out import COUNT, SEED, described, held_out, write
from assets.demo_training.painter import paint
from assets.demo_training.scenes import CHUNK

FOLDER = Path(__file__).parents[2] / "assets" / "demo_captions"


def test_captions_and_scenes_come_out_again() -> None:
    made = held_out()
    lines = (FOLDER / "captions.txt").read_text(encoding="utf-8").splitlines()
    assert lines == [text for text, _ in made]
    assert json.loads((FOLDER / "scenes.json").read_text(encoding="utf-8")) == [
        described(text, scene) for text, scene in made
    ]
    assert [path.name for path in sorted((FOLDER / "pictures").iterdir())] == [f"{i:04d}.png" for i in range(COUNT)]
    assert len(lines) == COUNT == 40
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1_500_000


@pytest.mark.parametrize("index", [0, 9, 22, 39])
def test_pictures_come_out_again(index: int) -> None:
    _, scene = held_out()[index]
    kept = np.asarray(Image.open(FOLDER / "pictures" / f"{index:04d}.png")).astype(int)
    difference = np.abs(paint(scene) - kept)
    # Another processor may round a gradient's sine or exponential the other way.
    assert kept.shape == (256, 256, 3)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.001


def test_training_drew_other_scenes() -> None:
    """Trainings seed their chunks with 0, CHUNK, 2 CHUNK, ...; the same seed would give the same scenes."""
    assert SEED % CHUNK


def test_weather_is_asked_for_where_the_caption_says_it() -> None:
    said = [(text, scene, described(text, scene)["weather"]) for text, scene in held_out(300)]
    for text, scene, weather in said:
        assert weather in (None, scene.weather), text
        assert weather or scene.weather in ("clear", "cloudy"), f"{text} hides its {scene.weather}"
    assert np.mean([weather is not None for _, _, weather in said]) > 0.75


def test_captions_leave_nothing_out() -> None:
    words = {
        "house": ("house", "cottage"),
        "sailboat": ("boat",),
        "lighthouse": ("lighthouse",),
        "sea": ("sea", "ocean"),
        "hills": ("hills", "fields"),
        "snow": ("snow", "winter"),
        "mountains": ("mountains",),
        "night": ("night",),
        "sunset": ("sunset", "dusk", "evening"),
        "dawn": ("dawn", "sunrise", "morning"),
        "storm": ("storm", "dark clouds", "grey cloudy sky"),
        "day": ("day", "noon", "blue sky", "white clouds"),
        "desert": ("desert", "sand"),
    }
    for text, scene in held_out(400):
        for attribute in ("subject", "ground", "time"):
            value = getattr(scene, attribute)
            assert value == "none" or any(word in text for word in words.get(value, (value,))), text
        assert scene.subject == "none" or scene.colour in text, text
        assert scene.orb is None or (scene.orb in text and scene.orb_colour in text), text


def test_script_writes_the_same(tmp_path: Path) -> None:
    write(tmp_path, 2)
    assert (tmp_path / "captions.txt").read_text() == "".join(f"{text}\n" for text, _ in held_out(2))
    kept, made = (Image.open(folder / "pictures" / "0001.png") for folder in (FOLDER, tmp_path))
    assert np.abs(np.asarray(kept).astype(int) - np.asarray(made)).max() <= 1
