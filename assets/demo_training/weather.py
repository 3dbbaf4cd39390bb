"""Rain, falling snow and fog: what they lay over a picture, behind the subject and in front of it. What they do to the
sky's colours is painting.py's.
"""

from __future__ import annotations

import numpy as np

from assets.demo_training.canvas import tint
from assets.demo_training.painting import AIR, SUBJECT_LIGHT, Painting

ROWS = 64  # steps of a veil from the top to the bottom
# How dense fog is behind and in front of the subject: everywhere, and on top of that around the horizon.
VEILS = {"behind": (0.3, 0.35), "in front": (0.12, 0.26)}


def behind(painting: Painting) -> None:
    """Fog between the landscape and the subject."""
    if painting.scene.weather == "fog":
        _fog(painting, "behind")


def in_front(painting: Painting) -> None:
    """Fog, drops or flakes between the subject and us."""
    falling = {"rain": _rain, "snowfall": _snowfall}
    if painting.scene.weather == "fog":
        _fog(painting, "in front")
    elif painting.scene.weather in falling:
        falling[painting.scene.weather](painting)


def _fog(painting: Painting, place: str) -> None:
    everywhere, more = VEILS[place]
    heights = np.linspace(0, painting.height, ROWS)
    rows = everywhere + more * np.exp(-(((heights - painting.horizon) / 0.22) ** 2))
    painting.canvas.veil(rows, painting.on_ground(AIR["fog"][0]))


def _rain(painting: Painting) -> None:
    rng, canvas = painting.rng, painting.canvas
    slant, length, lines = rng.choice([-1, 1]) * 0.3, 0.115, []
    for _ in range(round(rng.integers(34, 46) * painting.width * painting.height)):
        x, y = rng.uniform(-0.05, 1.05) * painting.width, rng.uniform(-0.05, 0.98) * painting.height
        x, y = painting.snap(x), painting.snap(y)
        lines.append([(x, y), (x + slant * length, y + length)])
    colour = tint((214, 226, 244), SUBJECT_LIGHT[painting.scene.time])
    canvas.streaks(lines, colour, width=max(1, round(canvas.side * 0.012)), opacity=180)


def _snowfall(painting: Painting) -> None:
    rng, canvas = painting.rng, painting.canvas
    colour = tint((250, 251, 255), [0.3 + 0.7 * light for light in SUBJECT_LIGHT[painting.scene.time]])
    for _ in range(round(rng.integers(50, 70) * painting.width * painting.height)):
        x, y = painting.dot(painting.height)
        canvas.ellipse(x, y, 0.0115, 0.0115, colour)
