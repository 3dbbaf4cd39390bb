"""Finished pictures for the page: how alike two are, the difference heat map, thumbnails. Which pictures are compared
is decided by the caller; files of finished pictures never change, so results are remembered by path.
"""

from __future__ import annotations

import base64
import io
from functools import lru_cache

from PIL import Image, ImageDraw

from distri_engine.evaluation.likeness import pixels, psnr, ssim

HEAT = ("#05070d", "#3b1d6e", "#a3268d", "#f0603a", "#ffc46b", "#fff3c4")


@lru_cache(maxsize=256)
def likeness(picture: str, reference: str) -> dict[str, float]:
    """PSNR in dB and SSIM of two picture files of one size."""
    a, b = pixels(picture), pixels(reference)
    return {"psnr": psnr(a, b), "ssim": ssim(a, b)}


@lru_cache(maxsize=32)
def heat_map(picture: str, reference: str, boxes: tuple[tuple[int, int, int, int], ...]) -> str:
    """|a - b| of two picture files as a PNG data URI, dark where they agree; `boxes` are the patches, whose inner
    borders are marked.
    """
    import numpy as np

    difference = np.abs(pixels(picture) - pixels(reference)).max(axis=2)
    # Half of the range is a glaring difference already; the root lifts the faint ones.
    level = np.sqrt(np.clip(difference / 128, 0, 1)) * (len(HEAT) - 1)
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in HEAT], dtype=np.float64)
    low = np.minimum(level.astype(int), len(HEAT) - 2)
    blend = (level - low)[..., None]
    heat = Image.fromarray((anchors[low] * (1 - blend) + anchors[low + 1] * blend).round().astype(np.uint8))
    draw = ImageDraw.Draw(heat)
    for left, top, right, bottom in boxes:
        if top:
            draw.line([(left, top), (right, top)], fill="#22d3ee", width=1)
        if left:
            draw.line([(left, top), (left, bottom)], fill="#22d3ee", width=1)
    return _data_uri(heat, "PNG")


@lru_cache(maxsize=512)
def thumbnail(path: str, side: int = 192) -> str:
    """The picture at `path`, at most `side` pixels a side, as a JPEG data URI."""
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((side, side))
    return _data_uri(small, "JPEG")


def _data_uri(picture: Image.Image, kind: str) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=85)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
