"""Finished pictures for the page: how alike two are, the difference heat map, thumbnails. Which pictures are compared
is decided by the caller; files of finished pictures never change, so results are remembered by path.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from functools import cache, lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw

from distri_engine.evaluation.likeness import pixels, psnr, ssim

LPIPS_SIDE = 64  # pixels; its network takes none smaller
# Colours of a difference: none, ..., of RANGE levels in one channel, or more. style.css draws the same scale.
HEAT = ("#05070d", "#3b1d6e", "#a3268d", "#f0603a", "#ffc46b", "#fff3c4")
RANGE = 128  # of 255


@lru_cache(maxsize=256)
def likeness(picture: str, reference: str) -> dict[str, float]:
    """PSNR in dB and SSIM of two picture files of one size; LPIPS, too, where it can be had."""
    a, b = pixels(picture), pixels(reference)
    alike = {"psnr": psnr(a, b), "ssim": ssim(a, b)}
    if (lpips := _lpips()) and min(a.shape[:2]) >= LPIPS_SIDE:
        alike["lpips"] = lpips(Path(picture), Path(reference))
    return alike


@cache
def _lpips() -> Callable[[Path, Path], float] | None:
    """LPIPS of two files, on the CPU, as devices belong to the engine. None where packages or weights are missing."""
    if not all(map(find_spec, ("torchvision", "torchmetrics"))):
        return None
    from distri_engine.evaluation.perceptual import MissingError, lpips_metric  # torch, torchvision: seconds

    try:
        return lpips_metric(LPIPS_SIDE, download=False, device="cpu")
    except MissingError:
        return None


@lru_cache(maxsize=32)
def heat_map(picture: str, reference: str, boxes: tuple[tuple[int, int, int, int], ...]) -> str:
    """|a - b| of two picture files as a PNG data URI, dark where they agree; `boxes` are the patches, whose inner
    borders are marked.
    """
    import numpy as np

    difference = np.abs(pixels(picture) - pixels(reference)).max(axis=2)
    # Half of the range is a glaring difference already; the root lifts the faint ones.
    level = np.sqrt(np.clip(difference / RANGE, 0, 1)) * (len(HEAT) - 1)
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
