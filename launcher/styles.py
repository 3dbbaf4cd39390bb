"""Styles: words that follow a prompt, by name. A picture is stored with the prompt that was really used, words
included; its style is told from that, so that there is nothing else to keep.
"""

from __future__ import annotations

NONE = "None"
# The last three are made of words that the embedded model knows, too.
STYLES = {
    NONE: "",
    "Photograph": "photograph, natural light, fine detail",
    "Watercolour": "watercolour painting, soft washes on rough paper",
    "Travel poster": "vintage travel poster, flat colours, clean shapes",
    "Golden hour": "at sunset, warm golden light",
    "Starry night": "under a starry night sky, deep blue light",
    "Winter": "in a winter landscape, soft cold light",
}
EVERYWHERE = ("Golden hour", "Starry night", "Winter")


def join(prompt: str, style: str) -> str:
    """The prompt that is used. An empty one stays empty: a style alone is no picture. Raises ValueError."""
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r:.80}; choose one of: {', '.join(STYLES)}")
    words, typed = STYLES[style], prompt.rstrip()
    return f"{typed}, {words}" if words and typed else prompt


def split(prompt: str) -> tuple[str, str]:
    """(what was typed, style) of a prompt that was used. Words of a style that somebody typed are that style, too."""
    for style, words in STYLES.items():
        if words and prompt.endswith(f", {words}"):
            return prompt.removesuffix(f", {words}"), style
    return prompt, NONE
