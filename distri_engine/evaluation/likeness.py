"""How alike two pictures are, pixel by pixel: PSNR and SSIM. Whole folders are compared by metrics.py, and likeness as
trained networks see it is perceptual.py's.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.float64]

# The window of Wang et al., "Image quality assessment: from error visibility to structural similarity" (2004).
SIGMA, RADIUS = 1.5, 5


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


def pixels(path: str | Path) -> Pixels:
    """The picture at `path` as [H, W, 3] of 0..255. Raises ValueError, as `opened`."""
    import numpy as np  # with torch loaded this costs nothing, at import it would

    return np.asarray(opened(path), dtype=np.float64)


def opened(path: str | Path) -> Image.Image:
    """The picture at `path` in RGB. Raises ValueError with its name if it is none, or cut short."""
    try:
        with Image.open(path) as picture:
            return picture.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read as a picture: {error}; make it anew") from None
