"""A Pillow picture whose unit of length is its shorter side, (0, 0) top left, and the colours that go on it. What is
drawn is decided by landscapes.py and subjects.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, ...]
Point: TypeAlias = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (214, 44, 48),
    "orange": (240, 128, 36),
    "yellow": (248, 206, 60),
    "green": (66, 160, 78),
    "blue": (48, 104, 204),
    "purple": (128, 72, 178),
    "pink": (240, 132, 178),
    "white": (246, 246, 242),
    "brown": (134, 86, 54),
    "grey": (132, 138, 148),
    "black": (40, 40, 46),
}


def tint(colour: Colour, light: float | Sequence[float]) -> Colour:
    """`colour` under `light`: one factor, or one a channel."""
    factors = (light,) * 3 if isinstance(light, (int, float)) else light
    return tuple(int(max(0, min(255, value * factor))) for value, factor in zip(colour, factors, strict=True))


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """`first` with a `share` of `second` in it."""
    return tuple(int(a + (b - a) * share) for a, b in zip(first, second, strict=True))


def darker(colour: Colour) -> Colour:
    """The side that the light does not reach."""
    return tint(colour, 0.78)


class Canvas:
    """Draws on a picture whose shorter side has `side` pixels."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.side = min(picture.size)
        self._draw = ImageDraw.Draw(picture)

    def polygon(self, points: Sequence[Point], colour: Colour) -> None:
        """A filled polygon."""
        self._draw.polygon(self._pixels(points), fill=colour)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle."""
        side = self.side
        self._draw.rectangle([left * side, top * side, right * side, bottom * side], fill=colour)

    def rounded(self, left: float, top: float, right: float, bottom: float, *, radius: float, colour: Colour) -> None:
        """A filled rectangle with round corners."""
        side = self.side
        corners = [left * side, top * side, right * side, bottom * side]
        self._draw.rounded_rectangle(corners, radius=radius * side, fill=colour)

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour) -> None:
        """A filled ellipse around (x, y)."""
        side = self.side
        corners = [(x - radius_x) * side, (y - radius_y) * side, (x + radius_x) * side, (y + radius_y) * side]
        self._draw.ellipse(corners, fill=colour)

    def line(self, points: Sequence[Point], colour: Colour, width: int) -> None:
        """A line, `width` pixels wide."""
        self._draw.line(self._pixels(points), fill=colour, width=width)

    def glaze(self, points: Sequence[Point], colour: Colour, opacity: int) -> None:
        """A see-through polygon; `opacity` from 0 to 255."""
        mask = Image.new("L", self.picture.size, 0)
        ImageDraw.Draw(mask).polygon(self._pixels(points), fill=opacity)
        self.picture.paste(colour, (0, 0), mask)

    def streaks(self, lines: Sequence[Sequence[Point]], colour: Colour, width: int, opacity: int) -> None:
        """See-through lines, `width` pixels wide; `opacity` from 0 to 255."""
        mask = Image.new("L", self.picture.size, 0)
        draw = ImageDraw.Draw(mask)
        for line in lines:
            draw.line(self._pixels(line), fill=opacity, width=width)
        self.picture.paste(colour, (0, 0), mask)

    def veil(self, rows: np.ndarray, colour: Colour) -> None:
        """`colour` over everything, as dense as `rows` says from the top to the bottom, each from 0 to 1."""
        column = Image.fromarray((rows.clip(0, 1) * 255).astype(np.uint8)[:, None])
        self.picture.paste(colour, (0, 0), column.resize(self.picture.size, Image.Resampling.BILINEAR))

    def uncover(self, below: Image.Image, x: float, y: float, radius: float) -> None:
        """Show `below` again in a circle around (x, y)."""
        mask = Image.new("L", self.picture.size, 0)
        side = self.side
        corners = [(x - radius) * side, (y - radius) * side, (x + radius) * side, (y + radius) * side]
        ImageDraw.Draw(mask).ellipse(corners, fill=255)
        self.picture.paste(below, (0, 0), mask)

    def colour_at(self, x: float, y: float) -> Colour:
        """The colour of the pixel at (x, y)."""
        pixel = self.picture.getpixel((int(x * self.side), int(y * self.side)))
        assert isinstance(pixel, tuple)
        return pixel

    def _pixels(self, points: Sequence[Point]) -> list[Point]:
        return [(x * self.side, y * self.side) for x, y in points]
