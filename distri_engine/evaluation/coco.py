"""The captions of the paper's quality protocol (section 5.1): which sentence belongs to which picture, and who makes
which part of them. Making pictures from them, and their folders, are the launcher's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from distri_engine.bands import spread
from distri_engine.config import check_int

COUNT = 5000  # captions of the protocol
VALIDATION = "val"  # Karpathy's name of the split that the original takes


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What one picture is to show. Its index in the list is its seed and its file's number."""

    text: str  # one line
    picture: str | None  # file name of the photograph that it describes; None where the file of captions names none
    where: str  # for people: where in the file it stands


def read_captions(file: Path) -> tuple[Caption, ...]:
    """The captions of `file`, in the order of its pictures: JSON if its name ends so, else one caption a line.

    JSON is COCO's own (`captions_val2014.json`) or Karpathy's (`dataset_coco.json`), of which the pictures of the
    split "val" count: the 5,000 of the original, in its order. Caption i is sentence i modulo the number of sentences
    of picture i. Raises ValueError if the file cannot be read or is none of these.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"captions {str(file)[:200]} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"captions {file} are not in UTF-8; convert them") from None
    captions = tuple(_of_json(text, file) if file.suffix.lower() == ".json" else _of_lines(text, file))
    if not captions:
        raise ValueError(f"captions {file} has none; write one a line, or give a file of COCO captions")
    return captions


def part(count: int, split: Sequence[int] | None) -> range:
    """The captions of part I of N, counted from 0 as in the original; None is all. Parts differ by at most one.

    Raises ValueError if there is no such part.
    """
    if split is None:
        return range(count)
    index, parts = split
    check_int("the number of parts in split", parts, 1, 100_000)
    if not 0 <= index < parts:
        raise ValueError(f"split {index} {parts} is out of range; parts are numbered from 0 to {parts - 1}")
    return spread(count, parts)[index]


def _of_lines(text: str, file: Path) -> Iterator[Caption]:
    for number, line in enumerate(text.rstrip().split("\n") if text.strip() else [], 1):
        yield Caption(text=" ".join(line.split()), picture=None, where=f"line {number} of {file}")


def _of_json(text: str, file: Path) -> Iterator[Caption]:
    try:
        pictures = _pictures(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(
            f'captions {file} is not JSON with "images" and "annotations", as COCO has it, nor Karpathy\'s; '
            "one caption a line needs another name than .json"
        ) from None
    for index, (name, sentences) in enumerate(pictures):
        where = f"picture {index} ({name}) of {file}"
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{where} lies outside of the pictures' folder; give it a plain name")
        sentence = sentences[index % len(sentences)] if sentences else ""
        # One line, so that a list of captions is a file of lines; CLIP's tokenizers join white space, too.
        yield Caption(text=" ".join(sentence.split()), picture=name, where=where)


def _pictures(data: Any) -> list[tuple[str, list[str]]]:
    """File name and sentences of every picture. Raises KeyError, TypeError or AttributeError for other shapes."""
    images = data["images"]
    if "annotations" not in data:  # Karpathy's
        return [
            (_text(image["filename"]), [_text(sentence["raw"]) for sentence in image["sentences"]])
            for image in images
            if image["split"] == VALIDATION
        ]
    sentences: dict[Any, list[str]] = {image["id"]: [] for image in images}
    for annotation in data["annotations"]:
        if annotation["image_id"] in sentences:
            sentences[annotation["image_id"]].append(_text(annotation["caption"]))
    return [(_text(image["file_name"]), sentences[image["id"]]) for image in images]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is not text")
    return value
