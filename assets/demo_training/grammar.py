"""Which scenes exist: one subject, a sun or a moon, sky, weather and ground, drawn at random from a small grammar. What
they look like is painter.py's business, what one says about them captions.py's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TIMES = ("day", "sunset", "dawn", "night", "storm")
SUBJECTS = ("none", "house", "lighthouse", "sailboat", "tree", "balloon", "castle", "windmill", "rocket", "mushroom")
GROUNDS = ("mountains", "hills", "sea", "desert", "snow")
WEATHERS = ("clear", "cloudy", "rain", "snowfall", "fog")
POSITIONS = ("left", "center", "right")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white")
SUBJECT_COLOURS = {  # subjects that do not come in every colour
    "tree": ("green", "orange", "pink", "red", "yellow", "white"),
    "castle": ("grey", "white", "pink", "brown", "yellow", "blue"),
}
# Where the sun or the moon stands, left, center or right, so that the subject does not hide it.
ORB_WEIGHTS = {"left": (0, 0.3, 0.7), "center": (0.5, 0, 0.5), "right": (0.7, 0.3, 0)}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Everything that a caption may say, and the seed of what it does not."""

    time: str  # of TIMES
    subject: str  # of SUBJECTS
    ground: str  # of GROUNDS
    ground_colour: str
    snowcap: bool  # snow on the mountains
    orb: str | None  # "sun", "moon" or nothing in the sky
    orb_colour: str
    crescent: bool
    stars: bool
    clouds: bool
    position: str  # of the subject
    orb_position: str
    colour: str  # of the subject's walls, sails, leaves
    accent: str  # of its roof, hull, stripes
    striped: bool
    seed: int  # sizes, small offsets, the shape of the hills
    weather: str  # of WEATHERS


@dataclass(frozen=True, kw_only=True)
class Grammar:
    """Weights of the choices; the order is that of the tuples above."""

    times: Sequence[float]
    subjects: Sequence[float]
    grounds: dict[str, Sequence[float]]  # by subject; a sailboat is always on the sea
    mountain_colours: tuple[str, ...]
    hill_weights: Sequence[float]  # green, yellow, purple
    sea_weights: Sequence[float]  # blue, green
    colours: tuple[str, ...]
    stripes: float  # probability, of subjects that can have them
    weathers: Sequence[float]


GRAMMAR = Grammar(
    times=(0.3, 0.24, 0.12, 0.24, 0.1),
    subjects=(0.1,) * 10,
    grounds={
        "none": (0.32, 0.14, 0.24, 0.15, 0.15),
        "lighthouse": (0, 0.4, 0.4, 0.0, 0.2),
        "house": (0.2, 0.4, 0, 0.1, 0.3),
        "tree": (0.2, 0.35, 0, 0.2, 0.25),
        "balloon": (0.25, 0.25, 0.2, 0.15, 0.15),
        "castle": (0.3, 0.4, 0, 0.15, 0.15),
        "windmill": (0.1, 0.6, 0, 0.1, 0.2),
        "rocket": (0.25, 0.25, 0.2, 0.15, 0.15),
        "mushroom": (0.2, 0.4, 0, 0.1, 0.3),
    },
    mountain_colours=("blue", "purple", "grey", "green", "brown"),
    hill_weights=(0.6, 0.2, 0.2),
    sea_weights=(0.8, 0.2),
    colours=COLOURS,
    stripes=0.45,
    weathers=(0.38, 0.2, 0.14, 0.14, 0.14),
)


def pick(rng: np.random.Generator, choices: Sequence[Any], weights: Sequence[float] | None = None) -> Any:
    """One of `choices`, evenly or by `weights`."""
    return choices[int(rng.choice(len(choices), p=weights))]


def sample_scene(rng: np.random.Generator, grammar: Grammar = GRAMMAR) -> Scene:
    """Draw one scene. The order of the draws is part of the recipe: the same `rng` gives the same scenes."""
    time = pick(rng, TIMES, grammar.times)
    subject = pick(rng, SUBJECTS, grammar.subjects)
    ground = "sea" if subject == "sailboat" else pick(rng, GROUNDS, grammar.grounds[subject])
    ground_colour = _ground_colour(rng, ground, grammar)
    snowcap = ground == "mountains" and rng.random() < 0.4
    orb = None
    if time != "storm" and rng.random() <= (0.96 if subject == "none" else 0.6):
        orb = "moon" if time == "night" else "sun"
    if orb == "sun":
        orb_colour = pick(rng, ("red", "orange", "yellow", "white"), (0.35, 0.25, 0.3, 0.1))
    else:
        orb_colour = pick(rng, ("white", "yellow"))
    crescent = orb == "moon" and rng.random() < 0.4
    stars = time == "night" and rng.random() < 0.75
    position = pick(rng, POSITIONS, (0.25, 0.5, 0.25))
    orb_position = pick(rng, POSITIONS, (0.33, 0.34, 0.33) if subject == "none" else ORB_WEIGHTS[position])
    colour = pick(rng, SUBJECT_COLOURS.get(subject, grammar.colours))
    accent = pick(rng, [other for other in grammar.colours if other != colour])
    striped = subject in ("lighthouse", "balloon") and rng.random() < grammar.stripes
    seed = int(rng.integers(1 << 31))
    weather = _weather(rng, grammar, time, ground)
    if weather not in ("clear", "cloudy"):
        orb, crescent, stars = None, False, False
    return Scene(
        time=time,
        subject=subject,
        ground=ground,
        ground_colour=ground_colour,
        snowcap=bool(snowcap),
        orb=orb,
        orb_colour=orb_colour,
        crescent=bool(crescent),
        stars=bool(stars),
        clouds=weather in ("cloudy", "rain"),
        position=position,
        orb_position=orb_position,
        colour=colour,
        accent=accent,
        striped=bool(striped),
        seed=seed,
        weather=weather,
    )


def _weather(rng: np.random.Generator, grammar: Grammar, time: str, ground: str) -> str:
    """Neither rain nor snow in the desert; a storm has clouds or rain, a night no clouds that one could see."""
    weather = str(pick(rng, WEATHERS, grammar.weathers))
    if time == "storm":
        return "rain" if weather == "rain" or rng.random() < 0.3 else "cloudy"
    if (time == "night" and weather == "cloudy") or (ground == "desert" and weather in ("rain", "snowfall")):
        return "clear"
    return weather


def _ground_colour(rng: np.random.Generator, ground: str, grammar: Grammar) -> str:
    if ground == "mountains":
        return str(pick(rng, grammar.mountain_colours))
    if ground == "hills":
        return str(pick(rng, ("green", "yellow", "purple"), grammar.hill_weights))
    if ground == "sea":
        return str(pick(rng, ("blue", "green"), grammar.sea_weights))
    if ground == "desert":
        return str(pick(rng, ("yellow", "orange")))
    return "white"
