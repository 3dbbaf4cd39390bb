"""A picture in the making: its scene, its light and where things stand. Shared by the sky, the grounds and the
subjects, which draw on its canvas in this order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from assets.demo_training.canvas import PALETTE, Canvas, Colour, mix, tint
from assets.demo_training.grammar import Scene

SKIES: dict[str, list[tuple[float, Colour]]] = {  # (offset, colour) from the zenith to the horizon
    "day": [(0, (64, 148, 226)), (1, (206, 234, 250))],
    "sunset": [(0, (74, 48, 122)), (0.5, (222, 88, 98)), (1, (255, 194, 96))],
    "dawn": [(0, (128, 166, 226)), (0.55, (236, 184, 214)), (1, (255, 224, 196))],
    "night": [(0, (8, 12, 38)), (1, (42, 58, 112))],
    "storm": [(0, (62, 68, 82)), (1, (156, 162, 172))],
}
GROUND_LIGHT = {
    "day": (1, 1, 1),
    "sunset": (0.86, 0.66, 0.64),
    "dawn": (0.96, 0.9, 0.94),
    "night": (0.34, 0.4, 0.62),
    "storm": (0.68, 0.72, 0.76),
}
SUBJECT_LIGHT = {  # brighter than the ground, so that colours can be told apart at night
    "day": (1, 1, 1),
    "sunset": (0.96, 0.86, 0.84),
    "dawn": (1, 0.97, 0.97),
    "night": (0.68, 0.7, 0.82),
    "storm": (0.86, 0.88, 0.9),
}
AIR: dict[str, tuple[Colour, float]] = {  # what weather puts between us and the sky, and how much of it
    "rain": ((104, 116, 138), 0.6),
    "snowfall": ((138, 152, 178), 0.55),
    "fog": ((206, 210, 214), 0.72),
}
SEA = {"blue": (36, 110, 190), "green": (40, 150, 140)}
COLUMNS = {"left": 0.24, "center": 0.5, "right": 0.76}


@dataclass
class Painting:
    """State of one picture while it is drawn."""

    scene: Scene
    rng: np.random.Generator
    width: float  # of the picture; its shorter side is 1, and the unit of all lengths
    height: float
    horizon: float
    cell: float  # side of what one latent sees; things stand on a grid of such cells
    canvas: Canvas = field(init=False)
    orb_x: float = 0.0
    orb_y: float = 0.0
    orb_radius: float = 0.0
    orb_colour: Colour = ()
    footing: Callable[[float], float] = field(init=False)  # height of the ground on which a subject at x stands
    x: float = 0.0  # of the subject

    def column(self, position: str) -> float:
        """Where left, center and right are."""
        return COLUMNS[position] * self.width

    def place_subject(self) -> None:
        """Draw the subject's column."""
        self.place_at(self.scene.position)

    def place_at(self, position: str) -> None:
        """A column near `position`: left, center or right."""
        self.x = self.snap(self.column(position) + self.rng.uniform(-0.05, 0.05))

    def snap(self, length: float) -> float:
        """The nearest line of the grid. A shape that always cuts the cells in the same way is easier to learn."""
        return round(length / self.cell) * self.cell

    def standing(self, depth: float) -> float:
        """The line of the grid on which the subject stands, about `depth` below the edge of the ground."""
        return self.snap(self.footing(self.x) + depth)

    def dot(self, bottom: float) -> tuple[float, float]:
        """The middle of any cell above `bottom`."""
        x, y = self.rng.uniform(0, self.width), self.rng.uniform(0, bottom)
        return (x // self.cell + 0.5) * self.cell, (y // self.cell + 0.5) * self.cell

    @property
    def haze(self) -> Colour:
        """The sky's colour at the horizon, into which distance fades."""
        return self.weathered(SKIES[self.scene.time][-1][1])

    @property
    def ground_colour(self) -> Colour:
        """The ground's own colour, without light."""
        return PALETTE[self.scene.ground_colour]

    @property
    def sea_colour(self) -> Colour:
        """The water under the light of the day."""
        return self.on_ground(SEA[self.scene.ground_colour])

    def weathered(self, colour: Colour) -> Colour:
        """A colour of the sky as the weather shows it."""
        if self.scene.weather not in AIR:
            return colour
        air, share = AIR[self.scene.weather]
        return mix(colour, self.on_ground(air), share)

    def on_ground(self, colour: Colour) -> Colour:
        """`colour` as the light of the hour shows it on the ground."""
        return tint(colour, GROUND_LIGHT[self.scene.time])

    def on_subject(self, colour: Colour | str) -> Colour:
        """`colour` as the light of the hour shows it on the subject."""
        return tint(PALETTE[colour] if isinstance(colour, str) else colour, SUBJECT_LIGHT[self.scene.time])

    @property
    def window(self) -> Colour:
        """Lit when it is dark outside."""
        return (255, 226, 120) if self.scene.time in ("night", "sunset", "storm") else (84, 116, 150)
