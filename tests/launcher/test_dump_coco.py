"""`python -m launcher dump-coco`: the photographs keep their pixels, and a second run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.__main__ import main


def photograph(file: Path, mode: str, size: tuple[int, int]) -> Path:
    file.parent.mkdir(exist_ok=True)
    noise = np.random.default_rng(len(file.name) + size[0]).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).convert(mode).save(file)
    return file


def coco(folder: Path, count: int = 5) -> tuple[list[Path], list[str]]:
    """Photographs, and words of the command that dumps them."""
    modes = ["RGB", "L", "CMYK", "RGB", "RGB"]
    files = [photograph(folder / "val" / f"{9 - i}.jpg", mode, (40 + i, 30)) for i, mode in enumerate(modes)]
    images = [{"id": i, "file_name": file.name} for i, file in enumerate(files)]
    annotations = [{"image_id": i, "caption": f"{k} of {i}"} for k in range(3) for i in range(count)]
    (folder / "captions.json").write_text(json.dumps({"images": images, "annotations": annotations}))
    words = ["--captions", str(folder / "captions.json"), "--pictures", str(folder / "val")]
    return files, ["dump-coco", *words, "--output", str(folder / "gt")]


def same_pixels(made: Path, photograph: Path) -> bool:
    with Image.open(made) as one, Image.open(photograph) as other:
        assert one.format == "PNG"
        assert one.mode == ("RGB" if other.mode == "CMYK" else other.mode)
        return bool(np.array_equal(np.asarray(one), np.asarray(other.convert(one.mode))))


def test_pixels_stay_and_a_second_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files, words = coco(tmp_path)
    whole = files[3].read_bytes()
    files[3].write_bytes(whole[:400])
    with pytest.raises(SystemExit) as ended:
        main([*words, "--split", "1", "2"])
    assert ended.value.code == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {files[3]} cannot be written as PNG: ")
    assert len(captured.err.splitlines()) == 1
    out = tmp_path / "gt"
    assert [path.name for path in out.iterdir()] == ["captions.txt"]
    files[3].write_bytes(whole)
    for split in ("0", "1"):
        main([*words, "--split", split, "2"])
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.png")}
    main([*words, "--json", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text()) == {"count": 5, "made": 5, "written": 0}
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.png")} == times
    assert sorted(path.name for path in out.iterdir()) == [*(f"000{i}.png" for i in range(5)), "captions.txt"]
    assert (out / "captions.txt").read_text() == "0 of 0\n1 of 1\n2 of 2\n0 of 3\n1 of 4\n"
    for index, file in enumerate(files):
        assert same_pixels(out / f"000{index}.png", file)
    assert capsys.readouterr().out.splitlines()[0] == f"{out}: 3 of 5 photographs, 3 of them now"


def test_lines_belong_to_pictures_in_the_order_of_names(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "c.webp"):
        photograph(tmp_path / "val" / name, "RGB", (32, 32))
    (tmp_path / "val" / "notes.txt").touch()
    (tmp_path / "captions.txt").write_text("one\ntwo\n")
    words = ["--captions", str(tmp_path / "captions.txt"), "--pictures", str(tmp_path / "val")]
    main(["dump-coco", *words, "--output", str(tmp_path / "gt")])
    for index, name in enumerate(("a.jpg", "b.png")):
        assert same_pixels(tmp_path / "gt" / f"000{index}.png", tmp_path / "val" / name)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--pictures", "/no/such/folder"], "the folder /no/such/folder of --pictures does not exist"),
        (["--pictures", "{folder}"], "picture 0 (9.jpg) of {folder}/captions.json is not in {folder}"),
        (["--captions", "{folder}/six.txt"], "holds 5 pictures for 6 captions"),
        (["--output", "{folder}/six.txt"], "{folder}/six.txt is a file, and pictures go into a folder; choose another"),
        (["--output", ""], "argument --output: an empty name is none"),
        (["--output", "{folder}/made"], "holds pictures that `coco` made"),
        (
            ["--output", "{folder}/other"],
            "0000.png is of 'something else' there and of '0 of 0' in the file of captions",
        ),
    ],
)
def test_bad_arguments_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _, words = coco(tmp_path)
    (tmp_path / "six.txt").write_text("x\n" * 6)
    for name in ("made", "other"):
        photograph(tmp_path / name / "0000.png", "RGB", (8, 8))
        (tmp_path / name / "captions.txt").write_text("something else\n")
    (tmp_path / "made" / "run.json").write_text("{}")
    with pytest.raises(SystemExit) as ended:
        main([*words, *(word.format(folder=tmp_path) for word in options)])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert sentence.format(folder=tmp_path) in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "gt").exists()
