"""Previews: of every second step, never of an old one, small, and never the end of a picture."""

from __future__ import annotations

import base64
import io
import threading

import pytest
from PIL import Image

from launcher import preview
from launcher.preview import Previewer
from tests.support.processes import until


def test_every_second_step_and_only_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preview, "PERIOD_S", 0.0)
    busy, seen, published = threading.Event(), list[str](), list[tuple[str, str]]()

    def picture(latents: str) -> Image.Image:
        seen.append(latents)
        busy.wait(60)
        if latents == "bad":
            raise RuntimeError("no colours")
        return Image.new("RGB", (640, 320))

    previews = Previewer(picture, lambda req, uri: published.append((req, uri)))
    previews.offer("r", 2, "two")
    until(lambda: seen)
    previews.offer("r", 3, "three")
    assert previews._offered is None
    previews.offer("r", 4, "bad")
    previews.clear()
    assert previews._offered is None
    for step in (6, 8):
        previews.offer("r", step, f"{step}")
    busy.set()
    until(lambda: len(published) == 2)
    previews.offer("r", 10, "bad")
    until(lambda: seen[-1] == "bad")
    previews.offer("r", 12, "12")
    until(lambda: len(published) == 3)
    assert seen == ["two", "8", "bad", "12"]
    req, uri = published[0]
    assert req == "r"
    with Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")))) as small:
        assert (small.format, small.size) == ("JPEG", (320, 160))
