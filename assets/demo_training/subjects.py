"""The subjects: house, lighthouse, sailboat, tree, balloon, castle, windmill, rocket, mushroom. Each draws itself at
the painting's x, on the ground that landscapes.py left; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from assets.demo_training.canvas import Canvas, Colour, darker, mix, tint
from assets.demo_training.painting import Painting


def house(painting: Painting) -> None:
    """Walls, a pitched roof, a chimney, a door and two windows."""
    canvas, x = painting.canvas, painting.x
    wall, roof, wood = (painting.on_subject(c) for c in (painting.scene.colour, painting.scene.accent, "brown"))
    half, height, base = 0.17, 0.22, painting.standing(0.07)
    top = base - height
    canvas.rectangle(x + half * 0.45, top - 0.17, x + half * 0.68, top - 0.02, darker(wood))
    canvas.rectangle(x - half, top, x + half, base, wall)
    canvas.rectangle(x + half * 0.35, top, x + half, base, darker(wall))
    eaves, ridge = top + 0.005, top - 0.16
    canvas.polygon(
        [(x - half * 1.2, eaves), (x - half * 0.1, ridge), (x + half * 0.35, ridge), (x + half * 1.2, eaves)], roof
    )
    canvas.polygon([(x + half * 0.35, eaves), (x + half * 0.35, ridge), (x + half * 1.2, eaves)], darker(roof))
    canvas.rectangle(x - half * 0.28, base - height * 0.58, x + half * 0.05, base, wood)
    upper, lower = base - height * 0.75, base - height * 0.4
    canvas.rectangle(x - half * 0.8, upper, x - half * 0.46, lower, painting.window)
    canvas.rectangle(x + half * 0.52, upper, x + half * 0.84, lower, painting.window)


def lighthouse(painting: Painting) -> None:
    """A tapering tower, on a rock if it stands in the sea, with a beam when it is dark."""
    scene, rng, canvas, x = painting.scene, painting.rng, painting.canvas, painting.x
    tower, accent = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    height, half = 0.5, 0.075
    base = _rock(painting) if scene.ground == "sea" else painting.standing(0.05)
    top = base - height

    def edge(share: float) -> float:  # half the width at this share of the height
        return half * (1 - 0.42 * share)

    def ring(low: float, high: float, colour: Colour) -> None:
        bottom_y, top_y = base - height * low, base - height * high
        canvas.polygon(
            [(x - edge(low), bottom_y), (x - edge(high), top_y), (x + edge(high), top_y), (x + edge(low), bottom_y)],
            colour,
        )

    canvas.polygon([(x - edge(0), base), (x - edge(1), top), (x + edge(1), top), (x + edge(0), base)], tower)
    if scene.striped:
        for stripe in (0, 2, 4):
            ring(stripe / 5, (stripe + 1) / 5, accent)
    shadow = [(x + edge(0) * 0.25, base), (x + edge(1) * 0.25, top), (x + edge(1), top), (x + edge(0), base)]
    canvas.glaze(shadow, (0, 0, 0), opacity=56)
    canvas.rectangle(x - half * 0.8, top - 0.014, x + half * 0.8, top + 0.006, painting.on_subject((70, 70, 78)))
    lamp = painting.on_subject((210, 226, 236)) if scene.time == "day" else (255, 236, 140)
    canvas.rectangle(x - half * 0.42, top - 0.07, x + half * 0.42, top - 0.014, lamp)
    canvas.polygon([(x - half * 0.65, top - 0.07), (x, top - 0.125), (x + half * 0.65, top - 0.07)], accent)
    if scene.time in ("night", "storm"):
        far = x + rng.choice([-1, 1]) * 0.9
        canvas.glaze([(x, top - 0.045), (far, top - 0.19), (far, top + 0.06)], (255, 240, 170), opacity=90)
    canvas.rectangle(x - 0.018, base - 0.07, x + 0.018, base, painting.on_subject((70, 60, 60)))


def _rock(painting: Painting) -> float:
    """Draw the rock of a lighthouse in the sea; returns the height at which the tower stands."""
    canvas, x, water = painting.canvas, painting.x, painting.horizon + 0.13
    right = [(x + 0.12, water - 0.035), (x + 0.24, water + 0.05)]
    left = [(x - 0.26, water + 0.05), (x - 0.17, water - 0.03), (x - 0.03, water - 0.045)]
    canvas.polygon(left + right, painting.on_ground((104, 98, 96)))
    canvas.polygon([(x + 0.02, water + 0.05), (x + 0.03, water - 0.045), *right], painting.on_ground((82, 76, 76)))
    return water - 0.03


def sailboat(painting: Painting) -> None:
    """A hull with two sails and its reflection."""
    rng, canvas, x = painting.rng, painting.canvas, painting.x
    sail, hull = painting.on_subject(painting.scene.colour), painting.on_subject(painting.scene.accent)
    deck = painting.snap(painting.horizon + rng.uniform(0.14, 0.2))
    height, half, heading = 0.4, 0.17, rng.choice([-1, 1])
    top = deck - height
    canvas.rectangle(x - 0.009, top, x + 0.009, deck, painting.on_subject((96, 70, 50)))
    front, back, bow, stern = (x + heading * offset for offset in (0.016, -0.014, 0.17, -0.12))
    canvas.polygon([(front, top + 0.01), (front, deck - 0.05), (bow, deck - 0.05)], sail)
    canvas.polygon([(back, top + 0.05), (back, deck - 0.05), (stern, deck - 0.05)], mix(sail, (255, 255, 255), 0.25))
    keel = [(x + half * 0.7, deck + 0.05), (x - half * 0.7, deck + 0.05)]
    canvas.polygon([(x - half, deck - 0.03), (x + half, deck - 0.03), *keel], hull)
    canvas.polygon([(x - half * 0.9, deck), (x + half * 0.9, deck), *keel], darker(hull))
    for row in range(3):
        colour = mix(painting.sea_colour, sail if row else hull, 0.45)
        y = deck + 0.062 + row * 0.022
        canvas.ellipse(x + heading * 0.02 * (row - 1), y, half * (0.95 - 0.2 * row), 0.008, colour)


# Leaves of a tree: offset x and y, radius, light.
LEAVES = (
    (-0.62, 0.05, 0.72, 0.84),
    (0.62, 0.08, 0.7, 0.76),
    (0, -0.1, 0.95, 0.94),
    (-0.25, -0.55, 0.7, 1.0),
    (0.3, -0.4, 0.66, 0.9),
)


def tree(painting: Painting) -> None:
    """A trunk and five round tufts of leaves."""
    canvas, x = painting.canvas, painting.x
    leaf = painting.on_subject(painting.scene.colour)
    crown, base = 0.135, painting.standing(0.08)
    top = base - 0.22
    trunk = [(x - 0.032, base), (x - 0.018, top), (x + 0.018, top), (x + 0.032, base)]
    canvas.polygon(trunk, painting.on_subject("brown"))
    for right, down, radius, light in LEAVES:
        colour = tint(leaf, light)
        y = top - crown * 0.35 + down * crown
        canvas.ellipse(x + right * crown, y, radius * crown, radius * crown, colour)


def balloon(painting: Painting) -> None:
    """A hot air balloon with its basket, in the air."""
    scene, rng, canvas, x = painting.scene, painting.rng, painting.canvas, painting.x
    colour, accent = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    y, radius = painting.snap(rng.uniform(0.27, 0.36) * painting.height), 0.17

    def envelope(width: float, paint: Colour) -> None:  # the whole balloon, or a stripe of this share of its width
        canvas.polygon(
            [
                (x - radius * 0.92 * width, y + radius * 0.4),
                (x - radius * 0.2 * width, y + radius * 1.35),
                (x + radius * 0.2 * width, y + radius * 1.35),
                (x + radius * 0.92 * width, y + radius * 0.4),
            ],
            paint,
        )
        canvas.ellipse(x, y, radius * width, radius, paint)

    envelope(1, colour)
    if scene.striped:
        envelope(0.62, accent)
        envelope(0.2, colour)
    basket, top = radius * 0.24, y + radius * 1.62
    rope, width = (70, 50, 40), max(1, canvas.side // 150)
    canvas.line([(x - radius * 0.18, y + radius * 1.34), (x - basket * 0.8, top)], rope, width)
    canvas.line([(x + radius * 0.18, y + radius * 1.34), (x + basket * 0.8, top)], rope, width)
    canvas.rectangle(x - basket, top, x + basket, top + radius * 0.32, painting.on_subject("brown"))


def castle(painting: Painting) -> None:
    """Three towers with pointed roofs, battlements and a gate."""
    scene, canvas, x = painting.scene, painting.canvas, painting.x
    wall, roof = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    half, base = 0.17, painting.standing(0.07)
    top = base - 0.19
    for tower in (x - half, x + half):
        canvas.rectangle(tower - 0.05, top - 0.1, tower + 0.05, base, darker(wall))
        canvas.polygon([(tower - 0.065, top - 0.1), (tower, top - 0.22), (tower + 0.065, top - 0.1)], roof)
        canvas.rectangle(tower - 0.013, top - 0.05, tower + 0.013, top + 0.01, painting.window)
    canvas.rectangle(x - half, top, x + half, base, wall)
    for merlon in range(5):
        left = x - half + 0.05 + merlon * (2 * half - 0.1) / 5
        canvas.rectangle(left, top - 0.025, left + 0.03, top + 0.01, wall)
    canvas.rectangle(x - 0.06, top - 0.17, x + 0.06, top, wall)
    canvas.polygon([(x - 0.08, top - 0.17), (x, top - 0.32), (x + 0.08, top - 0.17)], roof)
    canvas.rectangle(x - 0.015, top - 0.11, x + 0.015, top - 0.04, painting.window)
    gate = painting.on_subject((70, 50, 44))
    canvas.rounded(x - 0.04, base - 0.1, x + 0.04, base + 0.02, radius=0.04, colour=gate)
    canvas.rectangle(x - half, base, x + half, base + 0.02, _earth(painting, canvas, x + half + 0.06, base))


def _earth(painting: Painting, canvas: Canvas, x: float, y: float) -> Colour:
    """What the castle stands on: the hill's colour, or whatever was drawn beside it."""
    if painting.scene.ground == "hills":
        return painting.on_ground(painting.ground_colour)
    return canvas.colour_at(min(painting.width - 0.01, x), min(painting.height - 0.01, y))


def windmill(painting: Painting) -> None:
    """A tapering tower with a cap and four sails."""
    scene, canvas, x = painting.scene, painting.canvas, painting.x
    wall, roof = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    cloth, wood = painting.on_subject((240, 240, 236)), painting.on_subject((90, 70, 60))
    base = painting.standing(0.07)
    top = base - 0.325
    canvas.polygon([(x - 0.1, base), (x - 0.06, top), (x + 0.06, top), (x + 0.1, base)], wall)
    canvas.polygon([(x + 0.02, base), (x + 0.015, top), (x + 0.06, top), (x + 0.1, base)], darker(wall))
    canvas.polygon([(x - 0.075, top + 0.004), (x, top - 0.085), (x + 0.075, top + 0.004)], roof)
    canvas.rectangle(x - 0.022, base - 0.1, x + 0.022, base, painting.on_subject("brown"))
    canvas.rectangle(x - 0.018, top + 0.09, x + 0.018, top + 0.13, painting.window)
    first, length, hub = 0.6, 0.22, top - 0.01
    for sail in range(4):
        angle = first + sail * math.pi / 2
        cosine, sine = math.cos(angle), math.sin(angle)
        # Corners along and across the arm, turned around the hub.
        arm = [(0.02, -0.008), (length, -0.008), (length, 0.058), (0.05, 0.058), (0, 0), (length, 0)]
        turned = [(x + cosine * u - sine * v, hub + sine * u + cosine * v) for u, v in arm]
        canvas.polygon(turned[:4], cloth)
        canvas.line(turned[4:], wood, max(2, canvas.side // 80))
    canvas.ellipse(x, hub, 0.02, 0.02, wood)


# Half of a rocket's outline from the tip down: width and height, as shares of the half width and the height.
OUTLINE = ((0, 0), (0.34, 0.1), (0.66, 0.22), (0.9, 0.38), (1, 0.56), (0.96, 0.76), (0.72, 1))


def rocket(painting: Painting) -> None:
    """A rocket in the air: a pointed hull, two fins, a round window and a flame."""
    scene, rng, canvas, x = painting.scene, painting.rng, painting.canvas, painting.x
    hull, accent = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    height, half = 0.39, 0.0925
    top = painting.snap(rng.uniform(0.1, 0.17) * painting.height)
    bottom = top + height
    flame = [(x - half * 0.6, bottom), (x, bottom + 0.14), (x + half * 0.6, bottom)]
    canvas.polygon(flame, (250, 150, 40))
    canvas.polygon([(x - half * 0.3, bottom), (x, bottom + 0.08), (x + half * 0.3, bottom)], (255, 236, 140))
    for side in (-1, 1):
        fin = [(0.8, 0.62), (1.9, 0.95), (1.9, 1.1), (0.6, 0.98)]
        colour = accent if side < 0 else darker(accent)
        canvas.polygon([(x + side * half * u, top + height * v) for u, v in fin], colour)
    left = [(x - half * u, top + height * v) for u, v in OUTLINE]
    right = [(x + half * u, top + height * v) for u, v in reversed(OUTLINE)]
    canvas.polygon(left + right, hull)
    middle = [(x + half * 0.35 * u, top + height * v) for u, v in OUTLINE]
    canvas.polygon(middle + right, darker(hull))
    nose = [(x + sign * half * u, top + height * v) for sign in (-1, 1) for u, v in OUTLINE[:3][::sign]]
    canvas.polygon(nose, accent)
    canvas.ellipse(x, top + height * 0.45, half * 0.5, half * 0.5, painting.on_subject((70, 70, 78)))
    canvas.ellipse(x, top + height * 0.45, half * 0.36, half * 0.36, painting.window)


# Dots of a mushroom's cap: offset and radius, as shares of its half width; y as a share of its height.
DOTS = ((-0.6, 0.28, 0.12), (-0.18, 0.62, 0.15), (0.28, 0.3, 0.14), (0.66, 0.2, 0.1), (0.36, 0.72, 0.1))


def mushroom(painting: Painting) -> None:
    """A giant mushroom: a pale stem, a domed cap with dots."""
    scene, canvas, x = painting.scene, painting.canvas, painting.x
    cap, dots = painting.on_subject(scene.colour), painting.on_subject(scene.accent)
    stem = painting.on_subject((238, 226, 200))
    half, dome, base = 0.21, 0.185, painting.standing(0.08)
    brim = base - 0.19
    canvas.polygon([(x - 0.075, base), (x - 0.05, brim), (x + 0.05, brim), (x + 0.075, base)], stem)
    canvas.polygon([(x + 0.03, base), (x + 0.02, brim), (x + 0.05, brim), (x + 0.075, base)], darker(stem))
    canvas.ellipse(x, brim, half, 0.035, darker(cap))
    angles = [math.pi * step / 24 for step in range(25)]
    canvas.polygon([(x - half * math.cos(angle), brim - dome * math.sin(angle)) for angle in angles], cap)
    for right, up, radius in DOTS:
        canvas.ellipse(x + right * half, brim - up * dome, radius * half, radius * half * 0.85, dots)


SUBJECTS: dict[str, Callable[[Painting], None]] = {
    "house": house,
    "lighthouse": lighthouse,
    "sailboat": sailboat,
    "tree": tree,
    "balloon": balloon,
    "castle": castle,
    "windmill": windmill,
    "rocket": rocket,
    "mushroom": mushroom,
}
