"""Pictures on disk: the same settings give the same bytes, and no half picture is ever seen."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import png
from launcher.schema import as_config, as_request

REQUEST = GenerationRequest(prompt="a Möwe", negative_prompt="rain", height=64, width=96, steps=7, seed=5)
ABOUT = {"model": "demo", "device": "CPU", "ranks": 3}


def written(path: Path, request: GenerationRequest, config: DistriConfig) -> dict[str, str]:
    """The text chunks of a file of ours, as Pillow finds them."""
    png.save(Image.new("RGB", (96, 64)), path, png.chunks(request, config, **ABOUT))
    with Image.open(path) as image:
        return dict(image.info)


def test_settings_are_in_the_file_as_other_programs_read_them(tmp_path: Path) -> None:
    lines = written(tmp_path / "x.png", REQUEST, DistriConfig(mode="no_sync"))["parameters"].split("\n")
    assert lines[:2] == ["a Möwe", "Negative prompt: rain"]
    assert lines[2].startswith("Steps: 7, Sampler: DDIM, CFG scale: 5, Seed: 5, Size: 96x64, Model: demo, ")
    assert "Mode: no_sync, Warm-up: 4" in lines[2]
    assert lines[2].endswith("Ranks: 3")


def test_the_file_carries_everything_that_makes_it_again(tmp_path: Path) -> None:
    config = DistriConfig(mode="extrapolated", extrapolation=(0.4, 0.5, 0.6), warmup_steps="auto", ranks=2)
    ours = json.loads(written(tmp_path / "x.png", REQUEST, config)["distrifusion"])
    assert (as_request(ours["request"]), as_config(ours["config"])) == (REQUEST, config)
    assert ours["topology"] == {"model": "demo", "device": "CPU", "ranks": 3, "used": 2}


def test_no_settings_where_none_are_wanted(tmp_path: Path) -> None:
    assert written(tmp_path / "x.png", REQUEST.replace(metadata=False), DistriConfig()) == {}


def test_same_settings_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        png.save(Image.new("RGB", (96, 64), (3, 4, 5)), tmp_path / name, {"parameters": "text"})
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_failing_save_leaves_nothing_and_keeps_the_old_picture(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"old")

    class Broken:
        def save(self, file: object, **_: object) -> None:
            file.write(b"half")  # type: ignore[attr-defined]
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        png.save(Broken(), tmp_path / "x.png", {})
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert (tmp_path / "x.png").read_bytes() == b"old"


def test_a_batch_gets_numbered_names(tmp_path: Path) -> None:
    paths = png.save_all([Image.new("RGB", (8, 8))] * 3, tmp_path / "x.png", {})
    assert [path.name for path in paths] == ["x.png", "x-2.png", "x-3.png"]
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in paths)
