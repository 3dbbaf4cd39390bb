"""Paints a scene as a flat travel poster of any shape: sky, sun or moon, clouds, then ground, subject and weather.
These three live in landscapes.py, subjects.py and weather.py.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from assets.demo_training.canvas import PALETTE, Canvas, mix, tint
from assets.demo_training.grammar import Scene
from assets.demo_training.landscapes import GROUNDS
from assets.demo_training.painting import SKIES, Painting
from assets.demo_training.subjects import SUBJECTS
from assets.demo_training.weather import behind, in_front

CELL = 8  # pixels of one latent
Shape = int | tuple[int, int]  # a side, or height and width, in pixels

# The horizon lies between these heights.
HORIZONS = {
    "sea": (0.56, 0.66),
    "mountains": (0.66, 0.74),
    "hills": (0.62, 0.7),
    "desert": (0.64, 0.72),
    "snow": (0.66, 0.74),
}
# Puffs of a cloud: offset and radius, as shares of the cloud's half width.
PUFFS = ((-0.8, 0.45), (-0.25, 0.75), (0.4, 0.6), (0.95, 0.35))


def paint(scene: Scene, size: Shape = 256, supersampling: int = 3) -> np.ndarray:
    """The picture of `scene`: [height, width, 3], uint8. The same scene is always the same picture."""
    painting = backdrop(scene, size, supersampling)
    painting.place_subject()
    if scene.subject != "none":
        SUBJECTS[scene.subject](painting)
    in_front(painting)
    return finished(painting, supersampling)


def backdrop(scene: Scene, size: Shape = 256, supersampling: int = 3) -> Painting:
    """Everything but the subject and the weather before it, on a canvas `supersampling` times as large as `size`."""
    rows, columns = (size, size) if isinstance(size, int) else size
    unit = min(rows, columns)
    rng = np.random.default_rng(scene.seed)
    # One draw for every ground, used or not, keeps the pictures of a seed what they are.
    horizon = {ground: rng.uniform(*bounds) for ground, bounds in HORIZONS.items()}[scene.ground]
    height = rows / unit
    painting = Painting(
        scene=scene, rng=rng, width=columns / unit, height=height, horizon=horizon * height, cell=CELL / unit
    )
    painting.horizon = painting.snap(painting.horizon)
    _place_orb(painting)
    sky = Image.fromarray(_sky(painting, rows, columns))
    sky = sky.resize((columns * supersampling, rows * supersampling), Image.Resampling.BILINEAR)
    painting.canvas = Canvas(sky)
    _stars_and_orb(painting)
    if scene.clouds:
        _clouds(painting)
    GROUNDS[scene.ground](painting)
    behind(painting)
    return painting


def finished(painting: Painting, supersampling: int = 3) -> np.ndarray:
    """What is on the canvas, at the size that was asked for: [height, width, 3], uint8."""
    picture = painting.canvas.picture
    return np.asarray(picture.reduce(supersampling) if supersampling > 1 else picture)


def _place_orb(painting: Painting) -> None:
    scene, rng, horizon = painting.scene, painting.rng, painting.horizon
    painting.orb_x = painting.snap(painting.column(scene.orb_position) + rng.uniform(-0.07, 0.07))
    painting.orb_radius = 0.125 if scene.subject == "none" else 0.095
    low = scene.time in ("sunset", "dawn")
    if low and scene.ground == "sea":
        orb_y = rng.uniform(horizon - 0.12, horizon - 0.02)
    else:
        orb_y = (rng.uniform(0.3, 0.42) if low else rng.uniform(0.15, 0.26)) * painting.height
    painting.orb_y = painting.snap(orb_y)
    colour = PALETTE[scene.orb_colour]
    painting.orb_colour = colour if scene.orb == "sun" else mix(colour, (255, 255, 255), 0.35)


def _sky(painting: Painting, rows: int, columns: int) -> np.ndarray:
    """A gradient from the zenith to the horizon, with a glow around the sun or moon: [rows, columns, 3], uint8."""
    scene = painting.scene
    heights = np.linspace(0, painting.height, rows, dtype=np.float32) / painting.horizon
    colours = [painting.weathered(colour) for _, colour in SKIES[scene.time]]
    offsets = [offset for offset, _ in SKIES[scene.time]]
    channels = [np.interp(heights, offsets, [colour[channel] for colour in colours]) for channel in range(3)]
    sky = np.repeat(np.stack(channels, -1)[:, None, :], columns, 1).astype(np.float32)
    if scene.orb:
        ys, xs = np.mgrid[0:rows, 0:columns].astype(np.float32) / min(rows, columns)
        distance = np.sqrt((xs - painting.orb_x) ** 2 + (ys - painting.orb_y) ** 2)
        strength = 0.5 if scene.orb == "sun" else 0.3
        glow = (np.exp(-np.maximum(distance - painting.orb_radius, 0) / 0.11) * strength)[..., None]
        sky = sky * (1 - glow) + glow * np.array(mix(painting.orb_colour, (255, 255, 255), 0.25), np.float32)
    return sky.clip(0, 255).astype(np.uint8)


def _stars_and_orb(painting: Painting) -> None:
    scene, rng, canvas = painting.scene, painting.rng, painting.canvas
    empty_sky = canvas.picture.copy() if scene.crescent else None
    if scene.stars:
        for _ in range(int(rng.integers(18, 34))):
            x, y = painting.dot(painting.horizon - 0.05)
            canvas.ellipse(x, y, 0.006, 0.006, (250, 248, 225))
    if scene.orb:
        x, y, radius = painting.orb_x, painting.orb_y, painting.orb_radius
        canvas.ellipse(x, y, radius, radius, painting.orb_colour)
        if empty_sky is not None:
            canvas.uncover(empty_sky, x + radius * rng.choice([-0.5, 0.5]), y - radius * 0.2, radius * 0.9)


def _clouds(painting: Painting) -> None:
    scene, rng, canvas = painting.scene, painting.rng, painting.canvas
    storm = scene.time == "storm" or scene.weather == "rain"
    base = {"storm": (92, 98, 110), "sunset": (250, 170, 150)}.get(scene.time, (252, 252, 252))
    if scene.weather == "rain":
        base = painting.on_ground((92, 98, 110))
    count = int(rng.integers(4, 7)) if storm else int(rng.integers(2, 4))
    for _ in range(round(count * painting.width)):
        x, y = rng.uniform(0.02, 0.98) * painting.width, rng.uniform(0.06, painting.horizon * 0.5)
        x, y, half = painting.snap(x), painting.snap(y), float(rng.choice([0.11, 0.15]))
        colour = tint(base, float(rng.choice([0.88, 1.0])))
        for offset, radius in PUFFS:
            canvas.ellipse(x + offset * half, y - radius * half * 0.25, radius * half, radius * half * 0.55, colour)
        canvas.rounded(x - 1.2 * half, y, x + 1.25 * half, y + 0.25 * half, radius=0.12 * half, colour=colour)
