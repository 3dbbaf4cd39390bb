"""The training set: pictures and the scenes behind them, drawn once into a folder and reused. Captions are made
afresh by the trainings, several a picture.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import torch

from assets.demo_training.grammar import FULL, LITE, Scene, sample_scene
from assets.demo_training.painter import paint

CHUNK = 500  # pictures a process draws at a time; part of the recipe, because each chunk has its own seed
SIZE = 256


def make_scenes(seed: int, count: int, lite: bool) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes and their pictures, [count, 256, 256, 3], uint8."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng, LITE if lite else FULL) for _ in range(count)]
    return scenes, np.stack([paint(scene, SIZE) for scene in scenes])


def open_scenes(
    folder: Path, count: int, *, lite: bool, seed: int = 0, processes: int = 1
) -> tuple[list[Scene], np.ndarray]:
    """The scenes and pictures of `folder`, drawn now if they are not there. Pictures are mapped, not read.

    Raises ValueError if the folder holds another number of pictures or the other grammar.
    """
    pictures_file, scenes_file = folder / "scenes.npy", folder / "scenes.json"
    if not scenes_file.exists():
        _draw(pictures_file, scenes_file, count, lite, seed, processes)
    content = json.loads(scenes_file.read_text(encoding="utf-8"))
    if (len(content["scenes"]), content["lite"]) != (count, lite):
        raise ValueError(
            f"{folder} holds {len(content['scenes'])} pictures of the {'lite' if content['lite'] else 'full'} grammar; "
            "ask for those, or choose another folder"
        )
    return [Scene(**scene) for scene in content["scenes"]], np.load(pictures_file, mmap_mode="r")


def as_tensor(pictures: np.ndarray, device: str) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return tensor.contiguous(memory_format=torch.channels_last)


def _draw(pictures_file: Path, scenes_file: Path, count: int, lite: bool, seed: int, processes: int) -> None:
    folder = pictures_file.parent
    folder.mkdir(parents=True, exist_ok=True)
    drawing = folder / f"scenes.{os.getpid()}.npy"
    pictures = np.lib.format.open_memmap(drawing, "w+", np.uint8, (count, SIZE, SIZE, 3))
    jobs = [(seed * 100003 + first, min(CHUNK, count - first), lite) for first in range(0, count, CHUNK)]
    scenes: list[Scene] = []
    with multiprocessing.get_context("spawn").Pool(min(processes, len(jobs))) as pool:
        for some, painted in pool.imap(_make_chunk, jobs):
            pictures[len(scenes) : len(scenes) + len(some)] = painted
            scenes += some
    pictures.flush()
    drawing.replace(pictures_file)
    content = {"lite": lite, "scenes": [dataclasses.asdict(scene) for scene in scenes]}
    scenes_file.write_text(json.dumps(content), encoding="utf-8")


def _make_chunk(job: tuple[int, int, bool]) -> tuple[list[Scene], np.ndarray]:
    return make_scenes(*job)
