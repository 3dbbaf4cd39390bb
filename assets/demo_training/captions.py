"""What one says about a scene: captions from templates, with paraphrases, left-out details and the decorations that
people put into prompts. The scene itself comes from grammar.py.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from assets.demo_training.grammar import Scene, pick

OPENINGS = ("a painting of ", "an illustration of ", "a photo of ", "a poster of ", "a picture of ")
ENDINGS = (", highly detailed", ", flat design", ", beautiful", ", 8k, masterpiece", ", digital art", ", landscape")


def caption(scene: Scene, rng: np.random.Generator, complete: float = 0.7) -> str:
    """One caption of `scene`; with probability `complete` it leaves nothing out.

    Every phrase is drawn whether it is used or not: the order of the draws is part of the recipe.
    """
    everything = rng.random() < complete

    def keep(probability: float) -> bool:
        return everything or rng.random() < probability

    orb = _orb(scene, rng)
    ground = _ground(scene, rng)
    when = _weather(scene, rng, _when(scene, rng))
    middle = pick(rng, ("", " in the middle", " in the center"))
    places = {"left": " on the left", "right": " on the right", "center": middle}
    place = places[scene.position] if rng.random() < 0.3 else ""
    orb_place = places[scene.orb_position] if rng.random() < 0.2 else ""
    over = pick(rng, ("over", "above"))

    if scene.subject == "none":
        text = ground
        if orb:
            text = f"{orb}{orb_place} {_orb_verb(scene, rng)}{over} {ground}"
        if keep(0.6):
            text += f" {when}"
    else:
        text = f"{_subject(scene, rng, keep)}{place}"
        preposition = _preposition(scene, rng, ground)
        if keep(0.55):
            text += f" {preposition} {ground}"
        if keep(0.55):
            text += f" {when}"
        if orb and keep(0.3):
            text += pick(rng, (f" with {orb}{orb_place}", f", {orb}{orb_place} in the sky", f" and {orb}{orb_place}"))

    decoration = rng.random()
    if decoration < 0.1:
        return str(pick(rng, OPENINGS)) + text
    if decoration < 0.16:
        return text + str(pick(rng, ENDINGS))
    return text


def _with_article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def _orb(scene: Scene, rng: np.random.Generator) -> str | None:
    if scene.orb is None:
        return None
    if scene.crescent:
        name = "crescent moon"
    else:
        name = pick(rng, ("moon", "full moon", "moon")) if scene.orb == "moon" else "sun"
    return _with_article(f"{scene.orb_colour} {name}")


def _orb_verb(scene: Scene, rng: np.random.Generator) -> str:
    verbs = {"sunset": ("setting ", "going down ", ""), "dawn": ("rising ", "")}
    return str(pick(rng, verbs.get(scene.time, ("shining ", ""))))


def _ground(scene: Scene, rng: np.random.Generator) -> str:
    colour = scene.ground_colour
    weather = ("a stormy sea", "a rough sea") if scene.time == "storm" else ("a calm sea",)
    phrases = {
        "mountains": pick(rng, (f"{colour} mountains", f"{colour} mountains")),
        "hills": pick(rng, (f"{colour} hills", f"rolling {colour} hills", f"{colour} fields")),
        "sea": pick(rng, ("the sea", "the ocean", f"a {colour} sea", *weather)),
        "desert": pick(rng, ("the desert", f"{colour} desert dunes", f"{colour} sand dunes")),
        "snow": pick(rng, ("a snowy field", "snow", "white snow", "a winter landscape")),
    }
    ground = str(phrases[scene.ground])
    return str(pick(rng, ("snowy ", "snow capped "))) + ground if scene.snowcap else ground


def _when(scene: Scene, rng: np.random.Generator) -> str:
    clear = ("on a clear day", "under a blue sky", "in daylight", "on a sunny day", "at noon")
    cloudy = ("under a cloudy blue sky", "on a cloudy day", "under white clouds")
    starry = (
        "at night under a starry sky",
        "on a starry night",
        "under a starry night sky",
        "at night under the stars",
    )
    dark = ("at night", "on a dark night", "under a night sky")
    phrases = {
        "day": pick(rng, cloudy if scene.clouds else clear),
        "sunset": pick(rng, ("at sunset", "at dusk", "at sunset", "under an orange sunset sky", "in the evening")),
        "dawn": pick(rng, ("at dawn", "at sunrise", "in the early morning", "under a pink morning sky")),
        "night": pick(rng, starry if scene.stars else dark),
        "storm": pick(
            rng,
            (
                "in a storm",
                "under a grey stormy sky",
                "on a stormy day",
                "under dark clouds",
                "under a grey cloudy sky",
            ),
        ),
    }
    return str(phrases[scene.time])


# What rain, falling snow and fog are called: before a noun, and after one.
FALLING = {
    "rain": (("rainy",), ("in the rain", "in heavy rain", "and rain")),
    "snowfall": (("snowy",), ("in falling snow", "with falling snow", "and snow falling")),
    "fog": (("foggy", "misty"), ("in fog", "in thick fog", "in the mist")),
}


def _weather(scene: Scene, rng: np.random.Generator, when: str) -> str:
    """The time of day and the weather; `when` is the time alone, which by day also says whether there are clouds."""
    if scene.weather in ("clear", "cloudy"):
        sky = ("", "", " under a clear sky") if scene.weather == "clear" else (" under clouds", " under a cloudy sky")
        if scene.time in ("sunset", "dawn"):
            times = {"sunset": ("at sunset", "at dusk", "in the evening"), "dawn": ("at dawn", "at sunrise")}
            more = str(pick(rng, sky))
            return str(pick(rng, times[scene.time])) + more if more else when
        return when
    before, after = FALLING[scene.weather]
    adjective, rest = pick(rng, before), pick(rng, after)
    phrases = {
        "day": (f"on a {adjective} day", f"in daylight {rest}", f"on a {adjective} day"),
        "sunset": (f"at sunset {rest}", f"at dusk {rest}", f"on a {adjective} evening"),
        "dawn": (f"at dawn {rest}", f"at sunrise {rest}", f"on a {adjective} early morning"),
        "night": (f"at night {rest}", f"on a {adjective} night", f"on a dark {adjective} night"),
        "storm": (f"in a storm {rest}", f"on a stormy {adjective} day", f"under dark clouds {rest}"),
    }
    return str(pick(rng, phrases[scene.time]))


def _subject(scene: Scene, rng: np.random.Generator, keep: Callable[[float], bool]) -> str:
    plain, accent = scene.colour, _with_article(scene.accent)
    colour = _with_article(plain)
    if scene.subject == "house":
        phrases = (
            f"{colour} house with {accent} roof",
            f"{colour} cottage with {accent} roof",
            f"a house with {plain} walls and {accent} roof",
        )
        return str(pick(rng, phrases)) if keep(0.6) else f"{colour} house"
    if scene.subject == "lighthouse":
        if scene.striped:
            striped = f"{colour} and {scene.accent} striped lighthouse"
            return striped if rng.random() < 0.7 else f"a striped lighthouse in {plain} and {scene.accent}"
        return str(pick(rng, (f"{colour} lighthouse", f"{colour} lighthouse with {accent} top")))
    if scene.subject == "sailboat":
        return str(
            pick(
                rng,
                (
                    f"{colour} sailboat",
                    f"a sailboat with {plain} sails",
                    f"a boat with {plain} sails and {accent} hull",
                    f"{colour} sailing boat",
                ),
            )
        )
    if scene.subject == "tree":
        return str(pick(rng, (f"{colour} tree", f"a tree with {plain} leaves", f"a lone {plain} tree")))
    if scene.subject == "balloon":
        stripes = f" and {scene.accent} striped" if scene.striped else ""
        return f"{colour}{stripes} hot air balloon"
    if scene.subject == "castle":
        roofs = (f"{colour} castle with {scene.accent} roofs", f"{colour} castle")
        return str(pick(rng, (*roofs, f"{colour} castle with {scene.accent} towers")))
    if scene.subject == "rocket":
        return str(pick(rng, (f"{colour} rocket", f"{colour} rocket with {accent} nose", f"{colour} space rocket")))
    if scene.subject == "mushroom":
        dots = (f"{colour} mushroom with {scene.accent} dots", f"a giant {plain} mushroom", f"{colour} mushroom")
        return str(pick(rng, dots))
    return str(pick(rng, (f"{colour} windmill", f"{colour} windmill with {accent} roof")))


def _preposition(scene: Scene, rng: np.random.Generator, ground: str) -> str:
    balloon = pick(rng, ("flying over", "floating above", "over", "above"))
    if scene.subject in ("balloon", "rocket"):
        return str(balloon)
    phrases = {
        "mountains": pick(rng, ("in front of", "below", "near")),
        "sea": "on" if scene.subject == "sailboat" else pick(rng, ("by", "on a rock in", "in")),
        "snow": "in",
        "desert": "in" if ground == "the desert" else "on",
        "hills": pick(rng, ("on", "in")) if "field" in ground else "on",
    }
    return str(phrases[scene.ground])
