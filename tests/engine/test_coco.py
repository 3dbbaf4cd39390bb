"""The captions of the quality protocol: which sentence belongs to which picture, and parts that cover all of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from distri_engine.evaluation.coco import part, read_captions


def written(folder: Path, text: str | dict[str, Any], name: str = "captions.json") -> Path:
    file = folder / name
    file.write_text(text if isinstance(text, str) else json.dumps(text), encoding="utf-8")
    return file


def test_sentence_i_modulo_their_number_of_picture_i(tmp_path: Path) -> None:
    # Ids are in no order, annotations are mixed, and pictures have different numbers of sentences.
    images = [{"id": 30, "file_name": "c.jpg"}, {"id": 10, "file_name": "a.jpg"}, {"id": 20, "file_name": "b.jpg"}]
    said = [(10, "a0"), (20, "b0"), (30, "c0"), (30, "c1"), (20, " b1\n of two "), (10, "a1"), (99, "nobody's")]
    annotations = [{"image_id": image, "caption": text} for image, text in said]
    images.append({"id": 31, "file_name": "c.jpg"})
    captions = read_captions(written(tmp_path, {"images": images, "annotations": annotations}))
    assert [(one.picture, one.text) for one in captions] == [
        ("c.jpg", "c0"),  # 0 of 2
        ("a.jpg", "a1"),  # 1 of 2
        ("b.jpg", "b0"),  # 2 of 2
        ("c.jpg", ""),  # has none, which is refused when it is asked for
    ]


def test_karpathys_file_counts_the_validation_split_alone(tmp_path: Path) -> None:
    def image(name: str, split: str, *raw: str) -> dict[str, Any]:
        return {"filename": name, "split": split, "sentences": [{"raw": text} for text in raw]}

    images = [
        image("t.jpg", "train", "t0"),
        image("a.jpg", "val", "a0", "a1"),
        image("r.jpg", "restval", "r0"),
        image("b.jpg", "val", "b0", "b1", "b2"),
    ]
    captions = read_captions(written(tmp_path, {"images": images}))
    assert [(one.picture, one.text) for one in captions] == [("a.jpg", "a0"), ("b.jpg", "b1")]


def test_one_caption_a_line(tmp_path: Path) -> None:
    captions = read_captions(written(tmp_path, "\ufeffeine Möwe\r\n a  red\thouse \n\n{\n\n", "captions.txt"))
    assert [one.text for one in captions] == ["eine Möwe", "a red house", "", "{"]
    assert {one.picture for one in captions} == {None}
    assert captions[2].where == f"line 3 of {tmp_path}/captions.txt"


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("captions.json", "[]", 'is not JSON with "images" and "annotations"'),
        ("captions.json", "{", 'is not JSON with "images" and "annotations"'),
        ("captions.json", '{"images": [{"id": 1}], "annotations": []}', "is not JSON with"),
        ("captions.json", '{"images": [{"id": 1, "file_name": 5}], "annotations": []}', "is not JSON with"),
        ("captions.json", '{"images": [{"id": 1, "file_name": "../x"}], "annotations": []}', "lies outside of"),
        ("captions.json", '{"images": [], "annotations": []}', "has none"),
        ("captions.txt", " \n\n", "has none"),
    ],
)
def test_other_files_are_refused(name: str, text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        read_captions(written(tmp_path, text, name))


@pytest.mark.parametrize(("count", "parts"), [(5000, 8), (10, 4), (3, 5), (1, 1)])
def test_parts_cover_everything_once_and_are_alike(count: int, parts: int) -> None:
    ranges = [part(count, (index, parts)) for index in range(parts)]
    assert [index for one in ranges for index in one] == list(range(count))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
    assert part(count, None) == range(count)
    for split in ((parts, parts), (-1, parts), (0, 0)):
        with pytest.raises(ValueError, match="out of range"):
            part(count, split)
