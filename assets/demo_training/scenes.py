"""The training set: scenes, their latents, and the pictures of some of them, drawn once into a folder and reused, in
every shape that the UNet shall know. Captions are made afresh by the trainings, several a picture.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from assets.demo_training.grammar import Scene, sample_scene
from assets.demo_training.hand_set_vae import analytic_latents
from assets.demo_training.painter import paint

CHUNK = 100  # pictures a process draws at a time; part of the recipe, because each chunk has its own seed
LOT_SEEDS = 10_000_000  # between the seeds of two shapes; a multiple of CHUNK


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A size of pictures, and its part in the training set and the trainings."""

    height: int  # pixels
    width: int
    pictures: float  # share of the training set
    kept: float  # share of those whose pixels are kept, for the decoder
    first: float  # share of the UNet's steps in its first lessons
    then: float  # after them
    last: float  # in the last lessons
    batch: float  # share of a batch, so that steps cost about the same

    @property
    def name(self) -> str:
        """As file names say it: height x width."""
        return f"{self.height}x{self.width}"


AREA = 32 * 32  # cells of the latents of a 256 x 256 picture, by which noise levels of other sizes are scaled
# The first lessons are about small pictures: what words mean and where things stand costs a quarter there. The last
# ones are about the largest, where a subject is most easily drawn twice.
SHAPES = (
    Shape(height=256, width=256, pictures=0.35, kept=0.3, first=0.35, then=0.3, last=0.25, batch=1),
    Shape(height=256, width=384, pictures=0.08, kept=0.1, first=0, then=0.1, last=0.07, batch=0.65),
    Shape(height=384, width=256, pictures=0.08, kept=0.1, first=0, then=0.1, last=0.07, batch=0.65),
    Shape(height=384, width=384, pictures=0.1, kept=0.1, first=0, then=0.15, last=0.11, batch=0.4),
    Shape(height=512, width=512, pictures=0.12, kept=0.1, first=0, then=0.35, last=0.5, batch=0.25),
    Shape(height=128, width=128, pictures=0.27, kept=0.05, first=0.65, then=0, last=0, batch=3),
)


@dataclass(frozen=True, kw_only=True)
class Lot:
    """What there is of one shape; arrays are mapped, not read."""

    shape: Shape
    scenes: list[Scene]
    latents: np.ndarray  # [scenes, 4, height / 8, width / 8], float16
    pictures: np.ndarray  # of the first scenes: [kept, height, width, 3], uint8


def make_scenes(seed: int, count: int, shape: Shape) -> tuple[list[Scene], np.ndarray]:
    """`count` scenes and their pictures, [count, height, width, 3], uint8."""
    rng = np.random.default_rng(seed)
    scenes = [sample_scene(rng) for _ in range(count)]
    fine = 3 if min(shape.height, shape.width) <= 256 else 2
    return scenes, np.stack([paint(scene, (shape.height, shape.width), fine) for scene in scenes])


def open_scenes(
    folder: Path, count: int, *, seed: int = 0, processes: int = 1, shapes: Sequence[Shape] = SHAPES
) -> list[Lot]:
    """The training set of `folder`, `count` scenes of all SHAPES together; what is not there of `shapes` is drawn now.

    Raises ValueError if the folder holds another number of pictures.
    """
    lots = []
    for shape in shapes:
        file = folder / f"scenes-{shape.name}.json"
        if not file.exists():
            _draw(folder, shape, count, seed, processes)
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["count"] != count:
            raise ValueError(f"{folder} holds {content['count']} pictures; ask for those, or choose another folder")
        lots.append(
            Lot(
                shape=shape,
                scenes=[Scene(**scene) for scene in content["scenes"]],
                latents=np.load(folder / f"latents-{shape.name}.npy", mmap_mode="r"),
                pictures=np.load(folder / f"pictures-{shape.name}.npy", mmap_mode="r"),
            )
        )
    return lots


def as_tensor(pictures: np.ndarray, device: str) -> torch.Tensor:
    """uint8 [B, H, W, 3] to float [B, 3, H, W] in [-1, 1]."""
    tensor = torch.from_numpy(np.array(pictures)).to(device).permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
    return tensor.contiguous(memory_format=torch.channels_last)


def _draw(folder: Path, shape: Shape, count: int, seed: int, processes: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = max(1, round(count * shape.pictures))
    kept = max(1, round(wanted * shape.kept))
    size = (wanted, 4, shape.height // 8, shape.width // 8)
    latents, keep_latents = _open_array(folder / f"latents-{shape.name}.npy", np.float16, size)
    size = (kept, shape.height, shape.width, 3)
    pictures, keep_pictures = _open_array(folder / f"pictures-{shape.name}.npy", np.uint8, size)
    base = seed * 100_003 * CHUNK + SHAPES.index(shape) * LOT_SEEDS
    firsts = range(0, wanted, CHUNK)
    jobs = [(base + first, min(CHUNK, wanted - first), shape, max(0, kept - first)) for first in firsts]
    scenes: list[Scene] = []
    with ExitStack() as stack:
        run: Callable[..., Iterable[Any]] = map
        if processes > 1:
            context = multiprocessing.get_context("spawn")
            run = stack.enter_context(context.Pool(processes, torch.set_num_threads, (1,))).imap
        for drawn, some_latents, some_pictures in run(_make_chunk, jobs):
            latents[len(scenes) : len(scenes) + len(drawn)] = some_latents
            pictures[len(scenes) : len(scenes) + len(some_pictures)] = some_pictures
            scenes += drawn
    keep_latents()
    keep_pictures()
    content = {"count": count, "scenes": [dataclasses.asdict(scene) for scene in scenes]}
    writing = folder / f"scenes-{shape.name}.{os.getpid()}.json"
    writing.write_text(json.dumps(content), encoding="utf-8")
    writing.replace(folder / f"scenes-{shape.name}.json")


def _open_array(file: Path, dtype: type, size: tuple[int, ...]) -> tuple[np.ndarray, Callable[[], None]]:
    """An array to fill, and what to call when it is full: only then it has its name."""
    writing = file.with_suffix(f".{os.getpid()}.npy")
    array = np.lib.format.open_memmap(writing, "w+", dtype, size)

    def keep() -> None:
        array.flush()
        writing.replace(file)

    return array, keep


def _make_chunk(job: tuple[int, int, Shape, int]) -> tuple[list[Scene], np.ndarray, np.ndarray]:
    seed, count, shape, kept = job
    scenes, pictures = make_scenes(seed, count, shape)
    latents = torch.cat([analytic_latents(as_tensor(pictures[at : at + 10], "cpu")) for at in range(0, count, 10)])
    return scenes, latents.half().numpy(), pictures[:kept]
