"""PSNR and SSIM against scikit-image, and what the heat map marks."""

from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.web import pictures

metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")


def _noisy(seed: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = np.asarray(Image.fromarray(rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)).resize((120, 96)))
    other = np.clip(smooth + rng.normal(0, spread, smooth.shape), 0, 255).round()
    return smooth.astype(float), other


@pytest.mark.parametrize("spread", [1, 10, 60])
def test_psnr_and_ssim_equal_the_library(spread: float) -> None:
    a, b = _noisy(1, spread)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    assert pictures.psnr(a, b) == pytest.approx(metrics.peak_signal_noise_ratio(a, b, data_range=255), abs=1e-9)
    assert pictures.ssim(a, b) == pytest.approx(
        metrics.structural_similarity(a, b, data_range=255, **options), abs=1e-9
    )


def test_equal_pictures() -> None:
    a, _ = _noisy(1, 1)
    assert math.isinf(pictures.psnr(a, a))
    assert pictures.ssim(a, a) == pytest.approx(1)


def test_heat_map_is_dark_where_pictures_agree_and_marks_the_border(tmp_path: Path) -> None:
    first, second = tmp_path / "a.png", tmp_path / "b.png"
    Image.new("RGB", (64, 64), (40, 90, 160)).save(first)
    changed = Image.new("RGB", (64, 64), (40, 90, 160))
    changed.paste((240, 90, 160), (0, 0, 64, 16))
    changed.save(second)
    uri = pictures.heat_map(str(first), str(second), ((0, 0, 64, 32), (0, 32, 64, 64)))
    heat = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB")).astype(int)
    assert heat[8].sum() > 10 * heat[50].sum()  # changed rows glow, equal ones do not
    assert (heat[32] == (0x22, 0xD3, 0xEE)).all()  # the border of the two bands
    assert (heat[0] != (0x22, 0xD3, 0xEE)).any()  # the picture's own edge is none


def test_thumbnail_is_a_small_jpeg(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.effect_noise((640, 320), 60).convert("RGB").save(path)
    small = Image.open(io.BytesIO(base64.b64decode(pictures.thumbnail(str(path)).split(",")[1])))
    assert (small.format, small.size) == ("JPEG", (192, 96))
