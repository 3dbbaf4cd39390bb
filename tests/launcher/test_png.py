"""Pictures on disk: the same settings give the same bytes, and no half picture is ever seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import png

REQUEST = GenerationRequest(prompt="a Möwe", negative_prompt="rain", height=64, width=96, steps=7, seed=5)


def test_settings_are_in_the_file_as_other_programs_read_them(tmp_path: Path) -> None:
    text = png.parameters(REQUEST, DistriConfig(mode="no_sync"), model="demo", ranks=3)
    png.save(Image.new("RGB", (96, 64)), tmp_path / "x.png", text)
    with Image.open(tmp_path / "x.png") as image:
        lines = image.info["parameters"].split("\n")
    assert lines[:2] == ["a Möwe", "Negative prompt: rain"]
    assert lines[2].startswith("Steps: 7, Sampler: DDIM, CFG scale: 5, Seed: 5, Size: 96x64, Model: demo, ")
    assert "Mode: no_sync, Warm-up: 4" in lines[2]
    assert lines[2].endswith("Ranks: 3")


def test_same_settings_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        png.save(Image.new("RGB", (96, 64), (3, 4, 5)), tmp_path / name, "text")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failing_save_leaves_nothing_and_keeps_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"old")

    class Broken:
        def save(self, file: object, **_: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        png.save(Broken(), tmp_path / "x.png", "")
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_a_batch_gets_numbered_names(tmp_path: Path) -> None:
    paths = png.save_all([Image.new("RGB", (8, 8))] * 3, tmp_path / "x.png", "")
    assert [path.name for path in paths] == ["x.png", "x-2.png", "x-3.png"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in paths)
