"""Captions, and pictures of them, that the embedded model's training has not seen: what its own pictures are measured
against. The same scenes, captions and pictures come out every time.

    python -m assets.demo_training.held_out --folder assets/demo_captions
    python -m assets.demo_training.held_out --folder outputs/captions --count 200
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from assets.demo_training.captions import caption
from assets.demo_training.grammar import Scene, sample_scene
from assets.demo_training.painter import paint

COUNT = 40
# Trainings draw their scenes with multiples of scenes.CHUNK as seeds, beginning with 0; this is none.
SEED = 20_240_229


# What a caption says of the weather. Dusk, dawn and night may leave it open whether there are clouds.
SAYS = {
    "clear": ("clear", "sunny", "blue sky", "noon", "star"),
    "cloudy": ("cloud",),
    "rain": ("rain",),
    "snowfall": ("snowy day", "snowy evening", "snowy early", "snowy night", "falling snow", "snow falling"),
    "fog": ("fog", "mist"),
}


def held_out(count: int = COUNT) -> list[tuple[str, Scene]]:
    """The first `count` captions and scenes. Captions leave nothing out, so that a picture can be held to them."""
    rng, words = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    scenes = [sample_scene(rng) for _ in range(count)]
    return [(caption(scene, words, complete=1.0), scene) for scene in scenes]


def described(text: str, scene: Scene) -> dict[str, Any]:
    """A caption and what a picture of it is held to; the weather is None if the caption does not say it."""
    said = any(word in text for word in SAYS[scene.weather])
    return {"caption": text, **dataclasses.asdict(scene), "weather": scene.weather if said else None}


def write(folder: Path, count: int = COUNT) -> None:
    """captions.txt, one a line; scenes.json, each caption with its scene; pictures/0000.png and so on, 256 x 256."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    listed: list[dict[str, Any]] = []
    for index, (text, scene) in enumerate(held_out(count)):
        Image.fromarray(paint(scene)).save(pictures / f"{index:04d}.png", optimize=True)
        listed.append(described(text, scene))
    (folder / "captions.txt").write_text("".join(f"{one['caption']}\n" for one in listed), encoding="utf-8")
    lines = ",\n".join(json.dumps(one) for one in listed)
    (folder / "scenes.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


def main() -> None:
    """Write a folder."""
    parser = argparse.ArgumentParser(description="Draw held-out scenes of the embedded model's world.")
    parser.add_argument("--folder", type=Path, default=Path("assets/demo_captions"))
    parser.add_argument("--count", type=int, default=COUNT)
    words = parser.parse_args()
    write(words.folder, words.count)


if __name__ == "__main__":
    main()
