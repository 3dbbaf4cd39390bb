"""What the heat map marks, and what thumbnails are. PSNR and SSIM are tested in tests/engine/test_metrics.py."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from PIL import Image

from launcher.web import pictures


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
