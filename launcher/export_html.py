"""`python -m launcher export-html`: folders of numbered pictures side by side, as one page that needs nothing else.
Here is what is read and how pictures are packed; the markup is the business of side_by_side/.
"""

from __future__ import annotations

import argparse
import base64
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distri_engine.config import check_int
from distri_engine.evaluation.coco import read_captions
from distri_engine.evaluation.likeness import opened
from launcher import picture_folder as pictures
from launcher.files import check_apart, check_target, whole_file, write_json
from launcher.options import named
from launcher.side_by_side.page import Column, Picture, Row, page
from launcher.side_by_side.scores import Metrics, Score
from launcher.web.names import method_name, seconds_text

WIDTH = 512  # pixels: what a picture is reduced to
SUFFIXES = (".html", ".htm")
QUALITY = 90  # of WebP: its own faults must not be taken for the picture's
TITLE = "Pictures side by side"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = "Folders of 0000.png, ... side by side, as one HTML file without any reference to others."
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="as coco and dump-coco make them")
    parser.add_argument("--output", required=True, type=named, metavar="HTML", help="where the page goes")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="as for coco (default: the folders' own)")
    parser.add_argument("--count", type=int, help="the first so many captions (default: all)")
    parser.add_argument("--metrics", nargs="+", type=Path, default=[], metavar="JSON", help="written by metrics --json")
    parser.add_argument("--title", default=TITLE, help="(default: %(default)s)")
    parser.add_argument("--width", type=int, help=f"pixels that pictures are reduced to (default: {WIDTH})")
    parser.add_argument("--full", action="store_true", help="the PNG files as they are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what the page holds there")


def run(words: argparse.Namespace) -> None:
    """Check, write the page, say what it holds."""
    check_target(words.output, "page.html")
    if words.output.suffix.lower() not in SUFFIXES:  # a picture's name, say, which the page would replace
        raise ValueError(f"{words.output} is not named as a page; give a name that ends with {' or '.join(SUFFIXES)}")
    if words.json is not None:
        check_target(words.json, "export.json")
        check_apart(output=words.output, json=words.json)
    if words.full and words.width is not None:
        raise ValueError("--full leaves pictures as they are, and --width reduces them; give one of the two")
    width = None if words.full else check_int("width", WIDTH if words.width is None else words.width, 16, 16384)
    report = export(
        words.folders,
        words.output,
        captions=words.captions,
        metrics=words.metrics,
        title=words.title,
        count=words.count,
        width=width,
    )
    if words.json is not None:
        write_json(report, words.json)
    print(f"{words.output}: {report['rows']} captions, {len(words.folders)} folders, {report['bytes'] / 1e6:.1f} MB")


def export(
    folders: Sequence[Path],
    output: Path,
    *,
    captions: Path | None = None,
    metrics: Sequence[Path] = (),
    title: str = TITLE,
    count: int | None = None,
    width: int | None = WIDTH,
) -> dict[str, Any]:
    """Write the page and return what it holds. Pictures are reduced to `width` pixels; None: left as they are.

    Raises ValueError for folders without pictures, captions that do not agree, files of something else, and pictures
    that cannot be read.
    """
    have = [set(numbers_of(folder)) for folder in folders]
    texts = texts_of(folders, captions)
    indices = sorted(set().union(*have))
    if count is not None:
        indices = [index for index in indices if index < check_int("count", count, 1, 10**6)]
    columns = columns_of(folders, [Metrics.read(file) for file in metrics])
    rows = rows_of(folders, have, indices, texts, width)
    with whole_file(output) as file:
        for piece in page(title, columns, rows, len(indices)):
            file.write(piece.encode())
    return {
        "output": str(output),
        "folders": [str(folder) for folder in folders],
        "rows": len(indices),
        "pictures": sum(index in there for there in have for index in indices),
        "bytes": output.stat().st_size,
    }


def numbers_of(folder: Path) -> list[int]:
    """The numbers of a folder's pictures. Raises ValueError if it has none."""
    if not folder.is_dir():
        raise ValueError(f"the folder {str(folder)[:200]} does not exist")
    if not (numbers := pictures.numbers(folder)):
        raise ValueError(f"{folder} has no pictures named 0000.png, 0001.png, ...; give the folder of a coco run")
    return numbers


def texts_of(folders: Sequence[Path], captions: Path | None) -> list[str]:
    """The captions: of the file, or the longest list that a folder has, or that lies beside one without.

    Raises ValueError if the folders' lists disagree.
    """
    if captions is not None:
        return [caption.text for caption in read_captions(captions)]
    longest: list[str] = []
    source = folders[0]
    for folder in folders:
        texts = pictures.read_texts(folder) or pictures.read_texts(folder.resolve().parent)
        for index, (one, other) in enumerate(zip(longest, texts, strict=False)):
            if one != other:
                raise ValueError(
                    f"{source} and {folder} are of different captions: {pictures.picture(folder, index).name} is of "
                    f"{one!r:.80} and of {other!r:.80}; choose folders of the same, or give --captions"
                )
        if len(texts) > len(longest):
            longest, source = texts, folder
    return longest


def columns_of(folders: Sequence[Path], metrics: Sequence[Metrics]) -> list[Column]:
    """What stands above each folder. Figures of A held against B stand above A, or above B if A is not shown."""
    names = [folder.resolve().name for folder in folders]
    names = [name if names.count(name) == 1 else str(folder) for name, folder in zip(names, folders, strict=True)]
    scores: list[tuple[Score, ...]] = [() for _ in folders]
    for one in metrics:
        a, b = (
            next((column for column, folder in enumerate(folders) if one.is_about(folder)[side]), None)
            for side in (0, 1)
        )
        if a is not None:
            scores[a] += one.scores(Path(one.b).name if b is None else names[b])
        elif b is not None:
            scores[b] += one.scores(Path(one.a).name)
        else:
            print(f"note: figures of {one.a} and {one.b} are left out; neither is on the page", file=sys.stderr)
    return [
        Column(name=name, **_about(pictures.read_run(folder)), scores=figures)
        for name, folder, figures in zip(names, folders, scores, strict=True)
    ]


def _about(run: dict[str, Any] | None) -> dict[str, str]:
    """What made a folder's pictures, in words: the text of a Column."""
    if run is None:
        return {}
    settings = pictures.settings(run)
    method, mode, ranks = (settings.get(name) for name in ("parallelism", "mode", "ranks"))
    words = [method_name(f"{method}"), *([f"{mode}"] if method == "patch" else [])]
    if method != "single":
        words.append(f"{ranks} {'CPU ranks' if run['device'] == 'cpu' else 'GPUs'}")
    words.append(f"{settings.get('steps')} steps")
    total = run.get("seconds", {}).get("total")
    return {"about": " · ".join(words), "pace": "" if total is None else f"{seconds_text(total)} s a picture"}


def rows_of(
    folders: Sequence[Path], have: Sequence[set[int]], indices: Sequence[int], texts: Sequence[str], width: int | None
) -> Iterator[Row]:
    """One row after another: a page of thousands of pictures is never in memory."""
    for index in indices:
        yield Row(
            number=index,
            caption=texts[index] if index < len(texts) else f"picture {index}",
            pictures=tuple(
                packed(pictures.picture(folder, index), width) if index in there else None
                for folder, there in zip(folders, have, strict=True)
            ),
        )


def packed(file: Path, width: int | None) -> Picture:
    """A picture for the page: reduced to `width` pixels as WebP, or the file's own bytes. Raises ValueError."""
    small = opened(file)
    if width is None:
        return _picture(file.read_bytes(), "png", small.size)
    small.thumbnail((width, small.height))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=QUALITY)
    return _picture(buffer.getvalue(), "webp", small.size)


def _picture(data: bytes, kind: str, size: tuple[int, int]) -> Picture:
    uri = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(uri=uri, width=size[0], height=size[1])
