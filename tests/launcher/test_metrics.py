"""`python -m launcher metrics`: what it refuses, what it compares, and that table and JSON say the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.__main__ import main
from launcher.model import DEMO_SCENES

CAPTIONS = DEMO_SCENES.parent
TRUTH = CAPTIONS / "pictures"
COUNT = 6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Six of the embedded model's captions with their true pictures, as a run of theirs would leave them."""
    made = tmp_path / "made"
    made.mkdir()
    for index in range(COUNT):
        shutil.copy(TRUTH / f"{index:04d}.png", made)
    lines = (CAPTIONS / "captions.txt").read_text().splitlines()[:COUNT]
    (made / "captions.txt").write_text("\n".join(lines))
    return made


def measured(file: Path, *words: object) -> dict[str, Any]:
    """The report of a command, its rows by name."""
    main(["metrics", *map(str, words), "--json", str(file)])
    report = json.loads(file.read_text())
    return report | {"rows": {row["metric"]: row for row in report["rows"]}}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["{made}", "/no/such"], "folder /no/such cannot be read: No such file or directory"),
        (["{made}", "{empty}"], "empty holds no pictures (.png, .jpg, .jpeg, .webp); give the folder that they are in"),
        (["{made}", "{fewer}"], "1 of 6 pictures in {made} have no counterpart of the same name in {fewer}, the first"),
        (["{fewer}", "{made}"], "1 of 6 pictures in {made} have no counterpart of the same name in {fewer}, the first"),
        (["{made}", "{fewer}", "--is-gt", "--judge"], "is 0003.png; make the missing ones, or give folders of the"),
        (["{made}", "{larger}"], "0001.png is 256 x 256 in {made} and 64 x 32 in {larger}; make both at one size, or"),
        (["{made}", "{broken}"], "broken/0000.png cannot be read as a picture; make it anew"),
        (["{one}", "{made}", "--is-gt"], "one picture has no distribution; give folders of many"),
        (
            ["{one}", "{one}", "--judge"],
            "one has a captions.txt, by which --judge knows what pictures should show",
        ),
        (["{other}", "{other}", "--judge"], "what caption 0, 'a zebra', means is not in"),
        (["{made}", "{made}", "--judge", "--scenes", "{made}/captions.txt"], "captions.txt is not what assets.demo_tr"),
        (["{made}", "{made}", "--judge", "--scenes", "/no/such"], "scenes /no/such cannot be read: No such file"),
        (["{made}", "{made}", "--json", "/no/such/x.json"], "the folder /no/such does not exist"),
    ],
)
def test_bad_arguments_are_one_sentence(
    words: list[str], sentence: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = {"made": folder, **{name: tmp_path / name for name in ("fewer", "larger", "broken", "other")}}
    folders |= {name: tmp_path / "apart" / name for name in ("one", "empty")}
    for name, path in folders.items():
        if name in ("fewer", "larger", "broken", "other"):
            shutil.copytree(folder, path)
    for name in ("one", "empty"):
        folders[name].mkdir(parents=True)
    (folders["fewer"] / "0003.png").unlink()
    Image.new("RGB", (64, 32)).save(folders["larger"] / "0001.png")
    (folders["broken"] / "0000.png").write_bytes(b"no picture")
    (folders["other"] / "captions.txt").write_text("a zebra\n" * COUNT)
    shutil.copy(TRUTH / "0000.png", folders["one"])
    with pytest.raises(SystemExit) as end:
        main(["metrics", *(word.format(**folders) for word in words)])
    assert end.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence.format(**folders) in captured.err
    assert len(captured.err.splitlines()) == 1


def test_pairs_as_table_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    darker = tmp_path / "darker"
    darker.mkdir()
    for index, path in enumerate(sorted(folder.glob("*.png"))):
        Image.open(path).point(lambda value, index=index: max(0, value - 4 * (index + 1))).save(darker / path.name)
    report = measured(tmp_path / "m.json", darker, folder)
    assert (report["a"], report["b"], report["pictures"], report["is_gt"]) == (str(darker), str(folder), COUNT, False)
    assert list(report["rows"]) == ["PSNR", "SSIM", "LPIPS", "FID"]
    peak = report["rows"]["PSNR"]
    assert peak["worst"] < peak["value"] < 40
    assert peak["of"] == COUNT
    lines = capsys.readouterr().out.splitlines()
    cells = next(line.split() for line in lines if line.startswith("PSNR"))
    assert cells[1:4] == [f"{peak[name]:.2f}" for name in ("value", "mean", "worst")]
    for name in ("LPIPS", "FID"):  # by a package or by weights: both are absent where tests run
        assert report["rows"][name]["value"] is None
        assert f"{name} is missing: {report['rows'][name]['missing']}" in lines


def test_equal_pictures_have_a_line_of_their_own(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    Image.open(folder / "0001.png").point(lambda value: max(0, value - 9)).save(other / "0001.png")
    peak = measured(tmp_path / "m.json", folder, other)["rows"]["PSNR"]
    lines = capsys.readouterr().out.splitlines()
    assert next(line.split() for line in lines if line.startswith("PSNR "))[1:5] == [
        *("∞", "∞", f"{peak['worst']:.2f}", "dB"),
    ]  # fmt: skip
    assert "PSNR: 5 of 6 pictures are equal, and their PSNR infinite" in lines


def test_ground_truth_is_compared_as_a_whole(folder: Path, tmp_path: Path) -> None:
    """Names and sizes may differ, and nothing is said of pairs."""
    truth = tmp_path / "photographs"
    truth.mkdir()
    for name in ("x.jpg", "y.JPG", "z.jpeg"):
        Image.new("RGB", (80, 60)).save(truth / name)
    report = measured(tmp_path / "m.json", folder, truth, "--is-gt")
    assert list(report["rows"]) == ["FID"]
    assert (report["pictures"], report["pictures_b"], report["is_gt"]) == (COUNT, 3, True)


def test_the_judge_of_the_embedded_model(folder: Path, tmp_path: Path) -> None:
    """True pictures are all right; with two of them swapped, and one stacked twice, as many answers are wrong."""
    worse = tmp_path / "worse"
    shutil.copytree(folder, worse)
    lines = (folder / "captions.txt").read_text().splitlines()
    assert "mushroom" in lines[2]
    assert "mountains" in lines[2]
    assert "white snow" in lines[3]
    shutil.copy(folder / "0002.png", worse / "0003.png")
    shutil.copy(folder / "0003.png", worse / "0002.png")
    twice, picture = Image.new("RGB", (256, 256)), Image.open(folder / "0000.png").crop((0, 70, 256, 256))
    for top in (0, 128):
        twice.paste(picture.resize((256, 128)), (0, top))
    twice.save(worse / "0000.png")
    rows = measured(tmp_path / "m.json", worse, folder, "--judge")["rows"]
    for name in ("attributes right", "subject right", "its colour right", "time of day right", "ground right"):
        assert rows[name]["b"] == 100, name
    assert rows["subject right"]["value"] == pytest.approx(100 * 4 / 6)
    assert rows["ground right"]["value"] == pytest.approx(100 * 4 / 6)
    assert rows["its colour right"]["of"] == 4  # captions 3 and 4 name no subject
    doubled = rows["doubled subjects"]
    assert (doubled["value"], doubled["b"], doubled["of"]) == (pytest.approx(25), 0, 4)
    assert rows["Fréchet distance (demo judge features)"]["value"] > 0.1
    same = measured(tmp_path / "same.json", folder, folder, "--judge", "--is-gt")["rows"]
    assert list(same)[:2] == ["FID", "Fréchet distance (demo judge features)"]
    assert same["Fréchet distance (demo judge features)"]["value"] == pytest.approx(0, abs=1e-4)
    assert "PSNR" not in same


def test_a_picture_that_was_cut_short_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = folder / "0002.png"
    cut.write_bytes(cut.read_bytes()[:5000])
    with pytest.raises(SystemExit) as end:
        main(["metrics", str(folder), str(folder)])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert f"error: {cut} cannot be read as a picture: " in error
    assert len(error.splitlines()) == 1
