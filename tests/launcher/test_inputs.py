"""Pictures that callers send: what is taken, what of it is kept, and until when."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from launcher.inputs import MAX_BYTES, SIDE, Inputs, as_png
from launcher.schema import Refused


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    image.save(file := io.BytesIO(), kind, **options)
    return file.getvalue()


def text_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_only_the_picture_is_kept() -> None:
    said = PngInfo()
    said.add_text("parameters", "my own prompt")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "where I live"
    sent = Image.new("RGBA", (40, 20), "red")
    for data in (file_of(sent, pnginfo=said, exif=exif), file_of(sent, "WEBP", exif=exif, lossless=True)):
        kept = Image.open(io.BytesIO(as_png(data)))
        assert (kept.format, kept.mode, kept.size, dict(kept.info)) == ("PNG", "RGB", (20, 40), {})
    assert as_png(file_of(sent)) == as_png(file_of(sent, pnginfo=said))


def test_large_ones_are_kept_smaller() -> None:
    kept = Image.open(io.BytesIO(as_png(file_of(Image.new("L", (2 * SIDE, SIDE))))))
    assert kept.size == (SIDE, SIDE // 2)


def test_what_is_no_picture_is_refused(tmp_path: Path) -> None:
    inputs = Inputs(tmp_path, set)
    whole = file_of(Image.effect_noise((64, 64), 90))
    bomb = file_of(Image.new("1", (20_000, 20_000)))
    assert len(bomb) < 100_000
    for text, sentence in {
        text_of(whole)[:-1]: "image is not base64",
        "../../etc/passwd": "image is not base64",
        "data:text/html,<script>": "image is no whole PNG, JPEG or WEBP picture; send one",
        "A" * (MAX_BYTES * 4 // 3 + 5): f"the limit is {MAX_BYTES}; send a smaller one",
        text_of(whole[:2000]): "image is no whole PNG",
        text_of(file_of(Image.new("P", (8, 8)), "GIF")): "image is no whole PNG",
        text_of(b"%!PS-Adobe-3.0 EPSF-3.0\n"): "image is no whole PNG",
        text_of(bomb): "image ",
    }.items():
        with pytest.raises(ValueError, match=sentence), inputs.kept(text):
            pass
    assert list(tmp_path.rglob("*.png")) == []


def test_it_stays_as_long_as_somebody_needs_it(tmp_path: Path) -> None:
    needed: set[str] = set()
    inputs = Inputs(tmp_path, lambda: needed)
    text = text_of(file_of(Image.new("RGB", (8, 8))))
    with inputs.kept(text) as name, inputs.kept(f"data:image/png;base64,{text}") as same:
        assert name == same
        inputs.forget()
        assert inputs.path(name).stat().st_mode & 0o777 == 0o600
        needed.add(name)
    assert inputs.path(name).exists()
    needed.clear()
    inputs.forget()
    for absent in (name, "../journal.jsonl", "/etc/passwd", ""):
        with pytest.raises(ValueError, match="the picture to start from is not here"):
            inputs.path(absent)


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    (tmp_path / "inputs").write_text("no folder")
    with (
        pytest.raises(Refused, match="Nothing can be accepted: File exists"),
        Inputs(tmp_path, set).kept(text_of(file_of(Image.new("RGB", (8, 8))))),
    ):
        pass
