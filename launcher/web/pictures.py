"""Arithmetic on finished pictures: PSNR, SSIM, the difference heat map, thumbnails. Which pictures are compared is
decided by the caller; files of finished pictures never change, so results are remembered by path.
"""

from __future__ import annotations

import base64
import io
import math
from functools import lru_cache
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.float64]

# The window of Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
SIGMA, RADIUS = 1.5, 5
HEAT = ("#05070d", "#3b1d6e", "#a3268d", "#f0603a", "#ffc46b", "#fff3c4")


def psnr(a: Pixels, b: Pixels) -> float:
    """Peak signal-to-noise ratio in dB of two [H, W, 3] pictures of 0..255; infinite for equal ones."""
    error = float(((a - b) ** 2).mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ssim(a: Pixels, b: Pixels) -> float:
    """Mean structural similarity of two [H, W, 3] pictures of 0..255, channel by channel, Gaussian window."""
    stable_mean, stable_spread = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = _blur(a), _blur(b)
    spread_a, spread_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    shared = _blur(a * b) - mean_a * mean_b
    score = (2 * mean_a * mean_b + stable_mean) * (2 * shared + stable_spread)
    score /= (mean_a**2 + mean_b**2 + stable_mean) * (spread_a + spread_b + stable_spread)
    return float(score.mean())


def _blur(x: Pixels) -> Pixels:
    """Gaussian mean around every pixel that has a whole window: [H, W, 3] -> [H - 10, W - 10, 3]."""
    weights = [math.exp(-((i / SIGMA) ** 2) / 2) for i in range(-RADIUS, RADIUS + 1)]
    weights = [weight / sum(weights) for weight in weights]
    for axis in (0, 1):
        length = x.shape[axis] - 2 * RADIUS
        x = sum(weight * x.take(range(i, i + length), axis) for i, weight in enumerate(weights))  # type: ignore[assignment]
    return x


def pixels(path: str) -> Pixels:
    """The picture at `path` as [H, W, 3] of 0..255."""
    import numpy as np  # with torch loaded this costs nothing, at import it would

    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"), dtype=np.float64)


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
