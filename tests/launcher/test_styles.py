"""Styles: what is stored is what was used, and the way back from it."""

from __future__ import annotations

import json

import pytest

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import png, styles


@pytest.mark.parametrize("style", styles.STYLES)
@pytest.mark.parametrize("prompt", ["a red house", "a {{house}}, at sunset", "x, warm golden light"])
def test_a_style_is_words_after_the_prompt_and_comes_back(prompt: str, style: str) -> None:
    used = styles.join(prompt, style)
    assert used.startswith(prompt)
    assert styles.split(used) == (prompt, style)
    request = GenerationRequest(prompt=used, height=64, width=64, seed=1)
    chunks = png.chunks(request, DistriConfig(), model="demo", device="CPU", ranks=2)
    said = json.loads(chunks["distrifusion"])
    assert (said["request"]["prompt"], said["style"]) == (used, style)
    assert chunks["parameters"].startswith(used)


def test_there_are_six_and_no_picture_of_a_style_alone() -> None:
    assert len(styles.STYLES) == 1 + 6
    assert set(styles.EVERYWHERE) < set(styles.STYLES)
    assert styles.join("  ", "Winter").strip() == ""
    assert styles.join("a house \n", "Winter") == f"a house, {styles.STYLES['Winter']}"
    with pytest.raises(ValueError, match="unknown style 'Baroque'; choose one of: None, Photograph"):
        styles.join("x", "Baroque")
