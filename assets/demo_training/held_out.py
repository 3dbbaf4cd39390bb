"""Captions, and pictures of them, that the embedded model's training has not seen: what its own pictures are measured
against. The same scenes, captions and pictures come out every time.

    python -m assets.demo_training.held_out --folder assets/demo_captions
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
from assets.demo_training.grammar import LITE, Scene, sample_scene
from assets.demo_training.painter import paint

COUNT = 40
# Trainings draw their scenes with multiples of scenes.CHUNK as seeds, beginning with 0; this is none.
SEED = 20_240_229


def held_out(count: int = COUNT) -> list[tuple[str, Scene]]:
    """The first `count` captions and scenes. Captions leave nothing out, so that a picture can be held to them."""
    rng, words = np.random.default_rng(SEED), np.random.default_rng(SEED + 1)
    scenes = [sample_scene(rng, LITE) for _ in range(count)]
    return [(caption(scene, words, complete=1.0), scene) for scene in scenes]


def write(folder: Path, count: int = COUNT) -> None:
    """captions.txt, one a line; scenes.json, each caption with its scene; pictures/0000.png and so on, 256 x 256."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    described: list[dict[str, Any]] = []
    for index, (text, scene) in enumerate(held_out(count)):
        Image.fromarray(paint(scene)).save(pictures / f"{index:04d}.png", optimize=True)
        described.append({"caption": text, **dataclasses.asdict(scene)})
    (folder / "captions.txt").write_text("".join(f"{one['caption']}\n" for one in described), encoding="utf-8")
    lines = ",\n".join(json.dumps(one) for one in described)
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
