"""The grounds: mountains, hills, sea, desert, snow. Each draws itself from the horizon down and says where a subject
would stand.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assets.demo_training.canvas import PALETTE, Colour, darker, mix, tint
from assets.demo_training.painting import GROUND_LIGHT, Painting

Height = Callable[[float], float]


def _wave(painting: Painting, base: float, amplitude: float, colour: Colour, waves: float = 2) -> Height:
    """Fill everything under a wavy line; returns the line's height at x."""
    rng = painting.rng
    shift, frequency = rng.uniform(0, 6.28), 0.9 * waves
    xs = np.linspace(0, painting.width, 48)
    ys = base + amplitude * np.sin(xs * frequency * 3.14 + shift)
    ys = ys + amplitude * 0.35 * np.sin(xs * frequency * 7 + 2 * shift)
    painting.canvas.polygon(
        [(0, painting.height), *zip(xs, ys, strict=True), (painting.width, painting.height)], colour
    )
    return lambda x: float(np.interp(x, xs, ys))


def mountains(painting: Painting) -> None:
    """Two ranges behind a meadow."""
    rng, canvas, horizon = painting.rng, painting.canvas, painting.horizon
    lit = painting.on_ground(painting.ground_colour)
    far = mix(lit, painting.haze, 0.45)
    canvas.rectangle(0, horizon + 0.02, painting.width, painting.height, mix(far, painting.haze, 0.3))
    for near in (False, True):
        count = int(rng.integers(1, 3)) if near else int(rng.integers(2, 4))
        count = round(count * painting.width)
        for x in (np.arange(count) + 0.5) / count * painting.width + rng.uniform(-0.12, 0.12, count):
            height = (rng.uniform(0.26, 0.42) if near else rng.uniform(0.22, 0.32)) * (1 + painting.height) / 2
            _mountain(painting, painting.snap(x), painting.snap(height), tint(lit, 0.95) if near else far)
    meadow = painting.on_ground(mix(painting.ground_colour, PALETTE["green"], 0.75))
    _wave(painting, horizon + 0.05, 0.02, tint(meadow, 0.85))
    painting.footing = _wave(painting, horizon + 0.13, 0.02, tint(meadow, 0.68))


def _mountain(painting: Painting, x: float, height: float, colour: Colour) -> None:
    canvas = painting.canvas
    half = height * 0.88
    top, bottom = painting.horizon + 0.05 - height, painting.horizon + 0.06
    ridge = x + 0.02
    canvas.polygon([(x - half, bottom), (x, top), (x + half, bottom)], colour)
    canvas.polygon([(x, top), (x + half, bottom), (ridge, bottom)], darker(colour))
    if painting.scene.snowcap:
        cap = 0.36
        snow = tint((246, 248, 255), [0.35 + 0.65 * light for light in GROUND_LIGHT[painting.scene.time]])
        shaded_side = [
            (x, top),
            (x + half * cap, top + height * cap),
            (x + half * cap * 0.45, top + height * cap * 0.8),
            (x + (ridge - x) * cap, top + height * cap * 1.15),
        ]
        lit_side = [(x - half * cap * 0.5, top + height * cap * 0.8), (x - half * cap, top + height * cap)]
        canvas.polygon(shaded_side + lit_side, snow)
        canvas.polygon(shaded_side, tint(snow, 0.84))


def hills(painting: Painting) -> None:
    """Three rows of hills; the subject stands on the second."""
    lit, horizon = painting.on_ground(painting.ground_colour), painting.horizon
    _wave(painting, horizon - 0.02, 0.035, mix(lit, painting.haze, 0.35))
    painting.footing = _wave(painting, horizon + 0.06, 0.035, lit, 1.5)
    _wave(painting, horizon + 0.2, 0.03, tint(lit, 0.8), 1.5)


def desert(painting: Painting) -> None:
    """Three rows of dunes."""
    horizon = painting.horizon
    far = painting.on_ground((236, 190, 110))
    _wave(painting, horizon - 0.01, 0.025, mix(far, painting.haze, 0.3))
    sand = painting.on_ground(mix((238, 190, 105), painting.ground_colour, 0.45))
    painting.footing = _wave(painting, horizon + 0.06, 0.03, sand, 1.5)
    _wave(painting, horizon + 0.19, 0.035, tint(sand, 0.84), 1.2)


def snow(painting: Painting) -> None:
    """Three rows of snowy hills."""
    horizon = painting.horizon
    _wave(painting, horizon - 0.02, 0.025, mix(painting.on_ground((214, 226, 244)), painting.haze, 0.3))
    white = tint((240, 246, 254), [0.2 + 0.8 * light for light in GROUND_LIGHT[painting.scene.time]])
    painting.footing = _wave(painting, horizon + 0.05, 0.025, white, 1.5)
    _wave(painting, horizon + 0.19, 0.025, tint(white, 0.9), 1.2)


def sea(painting: Painting) -> None:
    """Four rows of waves and the reflection of the sun or moon."""
    canvas, horizon = painting.canvas, painting.horizon
    water, depth = painting.sea_colour, painting.height - horizon
    canvas.rectangle(0, horizon, painting.width, painting.height, mix(water, painting.haze, 0.3))
    for row in range(1, 5):
        top = horizon + depth * (row / 5) ** 1.3
        amplitude = 0.006 + 0.004 * row * (2.0 if painting.scene.time == "storm" else 0.7)
        colour = mix(tint(water, 1 - 0.07 * row), painting.haze, 0.3 - 0.07 * row)
        _wave(painting, top, amplitude, colour, 6)
    if painting.scene.orb:
        for row in range(7):
            top = horizon + 0.02 + row * depth / 7.5
            half = painting.orb_radius * (0.95 if row % 2 else 0.6) * (1 - 0.05 * row)
            colour = mix(painting.orb_colour, water, 0.22 + 0.04 * row)
            canvas.rounded(painting.orb_x - half, top, painting.orb_x + half, top + 0.014, radius=0.007, colour=colour)
    painting.footing = lambda x: horizon + 0.16


GROUNDS: dict[str, Callable[[Painting], None]] = {
    "mountains": mountains,
    "hills": hills,
    "sea": sea,
    "desert": desert,
    "snow": snow,
}
