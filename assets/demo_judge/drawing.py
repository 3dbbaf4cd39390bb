"""What the judge learns from: true scenes, scenes with two subjects, and stacks of bands such as patches that never
talk would leave, with the right answers. Scenes and their looks are assets/demo_training's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from PIL import Image

from assets.demo_training.grammar import (
    COLOURS,
    GROUNDS,
    POSITIONS,
    SUBJECT_COLOURS,
    SUBJECTS,
    TIMES,
    WEATHERS,
    Scene,
    sample_scene,
)
from assets.demo_training.painter import backdrop, finished
from assets.demo_training.subjects import SUBJECTS as DRAW
from assets.demo_training.weather import in_front
from distri_engine.evaluation.judge import SIDE

# What each head can answer.
ANSWERS = {
    "subject": SUBJECTS,
    "colour": ("none", *dict.fromkeys([*COLOURS, *(name for some in SUBJECT_COLOURS.values() for name in some)])),
    "time": TIMES,
    "ground": GROUNDS,
    "weather": WEATHERS,
    "orb": ("none", "sun", "moon"),
    "subjects": ("0", "1", "2+"),
}
UNKNOWN = -100  # the answer to what a picture does not show; cross_entropy ignores it
SEEN, UNSEEN = 0.45, 0.12  # shares of a thing's area from which on it is there, and up to which it is not
LEAST_AREA = 0.006  # of the picture, of a subject that is there
CRESCENT = 0.4  # its share of a full moon
EMPTY_BANDS = 0.25  # share of bands without their subject: a seam must not be taken for a second one


@dataclass(frozen=True)
class Drawn:
    """One painted scene, and which pixels are what: masks [SIDE, SIDE] of 0 and 1."""

    picture: np.ndarray  # [SIDE, SIDE, 3], uint8
    subject: np.ndarray
    orb: np.ndarray  # what is to be seen of the sun or moon
    orb_area: float  # of all of it, in pixels
    ground: np.ndarray  # all below the horizon


def draw(scene: Scene, columns: Sequence[str] = ()) -> Drawn:
    """Paint `scene` with its subject, at its position or in each of `columns`."""
    painting = backdrop(scene, SIDE)
    empty = finished(painting).astype(int)
    if scene.subject != "none":
        for column in columns or (scene.position,):
            painting.place_at(column)
            DRAW[scene.subject](painting)
    picture = finished(painting)  # before rain or snow falls over it: what things cover is seen here
    y, x = (np.mgrid[0:SIDE, 0:SIDE] + 0.5) / SIDE
    orb = np.hypot(x - painting.orb_x, y - painting.orb_y) < painting.orb_radius
    orb &= (np.abs(picture - np.array(painting.orb_colour)) < 14).all(2) & (scene.orb is not None)
    in_front(painting)
    return Drawn(
        picture=finished(painting),
        subject=(np.abs(picture - empty).max(2) > 12).astype(float),
        orb=orb.astype(float),
        orb_area=np.pi * (painting.orb_radius * SIDE) ** 2 * (CRESCENT if scene.crescent else 1),
        ground=(y > painting.horizon).astype(float),
    )


def example(rng: np.random.Generator) -> tuple[np.ndarray, list[int]]:
    """One picture, [SIDE, SIDE, 3], uint8, and the number of the right answer of every head."""
    scene = sample_scene(rng)
    kind = rng.random()
    if kind < 0.5:
        return alone(scene)
    if kind < 0.58 and scene.subject != "none":
        return alone(scene, ("left", "right"))
    return stack(scene, rng, bands=int(rng.choice((2, 2, 2, 3, 4))), columns=rng.random() < 0.2)


def alone(scene: Scene, columns: Sequence[str] = ()) -> tuple[np.ndarray, list[int]]:
    """A whole scene, with its subject in each of `columns`, and its answers."""
    drawn = draw(scene, columns)
    subjects = 0 if scene.subject == "none" else max(1, len(columns))
    return drawn.picture, answers(scene, subjects, orb=_is_there(drawn.orb.sum(), drawn.orb_area))


def answers(scene: Scene, subjects: int, *, ground: bool = True, orb: bool | None = True) -> list[int]:
    """The number of every head's right answer, for what is there of `scene`; UNKNOWN where one cannot say."""
    right = {
        "subject": scene.subject if subjects else "none",
        "colour": scene.colour if subjects else "none",
        "time": scene.time,
        "ground": scene.ground if ground else None,
        "weather": scene.weather,
        "orb": None if orb is None else scene.orb if orb and scene.orb else "none",
        "subjects": ANSWERS["subjects"][min(subjects, 2)],
    }
    return [UNKNOWN if right[name] is None else options.index(right[name]) for name, options in ANSWERS.items()]


def _is_there(shown: float, area: float) -> bool | None:
    """Whether a thing of `area` is to be seen, by what is `shown` of it; None if one might argue."""
    return True if shown >= SEEN * area else False if shown <= UNSEEN * area else None


def stack(scene: Scene, rng: np.random.Generator, *, bands: int, columns: bool = False) -> tuple[np.ndarray, list[int]]:
    """Bands of the same prompt one above the other, or side by side, each squeezed, cropped or both."""
    parts, subjects, orbs, grounds = [], 0, [], 0.0
    edges = [round(SIDE * index / bands) for index in range(bands + 1)]
    for top, bottom in pairwise(edges):
        part, subject, orb = _band(scene, rng, bottom - top, turned=columns)
        parts.append(part.picture)
        subjects += subject
        orbs.append(orb)
        grounds += part.ground.mean() / bands
    orb = True if True in orbs else None if None in orbs else False
    return np.concatenate(parts, int(columns)), answers(scene, subjects, ground=grounds > 0.1, orb=orb)


def _band(scene: Scene, rng: np.random.Generator, height: int, *, turned: bool) -> tuple[Drawn, bool, bool | None]:
    """`height` rows, or columns if `turned`, of the prompt drawn anew; whether its subject and its sun or moon are in
    them. Drawn until there is no doubt about the subject.
    """
    if rng.random() < EMPTY_BANDS:
        scene = dataclasses.replace(scene, subject="none")
    while True:
        places, seed = rng.choice(POSITIONS, 2), int(rng.integers(1 << 31))
        again = dataclasses.replace(scene, seed=seed, position=str(places[0]), orb_position=str(places[1]))
        length = int(rng.uniform(height, SIDE + 1)) if rng.random() < 0.7 else SIDE
        whole = _squeezed(draw(again), length, turned)
        start = int(rng.integers(0, length - height + 1))
        box = (slice(None), slice(start, start + height)) if turned else (slice(start, start + height),)
        part = dataclasses.replace(
            whole, **{name: getattr(whole, name)[box] for name in ("picture", "subject", "orb", "ground")}
        )
        area, shown = whole.subject.sum(), part.subject.sum()
        subject = area > 0 and _is_there(shown, area)
        if subject is not None and not (subject and shown < LEAST_AREA * SIDE * SIDE):
            return part, subject, _is_there(part.orb.sum(), whole.orb_area)


def _squeezed(drawn: Drawn, length: int, turned: bool) -> Drawn:
    """`drawn` with `length` rows, or columns if `turned`."""
    size = (length, SIDE) if turned else (SIDE, length)

    def resized(array: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(array).resize(size, Image.Resampling.BILINEAR))

    masks = {name: resized(getattr(drawn, name).astype(np.float32)) for name in ("subject", "orb", "ground")}
    return Drawn(picture=resized(drawn.picture), orb_area=drawn.orb_area * length / SIDE, **masks)


def examples(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures, [count, SIDE, SIDE, 3], uint8, and their answers, [count, heads]."""
    rng = np.random.default_rng(seed)
    pictures, right = zip(*(example(rng) for _ in range(count)), strict=True)
    return np.stack(pictures), np.array(right)
