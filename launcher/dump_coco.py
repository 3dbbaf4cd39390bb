"""`python -m launcher dump-coco`: the photographs that captions belong to, in a folder of the form that `coco` makes,
so that both can be compared. Nothing is resized: who compares decides how.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from distri_engine.evaluation.coco import Caption, part
from launcher import picture_folder as pictures
from launcher.coco import add_captions_options, chosen
from launcher.files import check_target, whole_file, write_json
from launcher.options import named

KINDS = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16")


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = "The photographs of captions as 0000.png, ..., unchanged. The same command again goes on."
    add_captions_options(parser)
    parser.add_argument(
        "--pictures",
        required=True,
        type=Path,
        metavar="FOLDER",
        help="where the photographs are; those of a file of lines in the order of their names",
    )
    parser.add_argument("--output", required=True, type=named, metavar="FOLDER", help="0000.png, ... go there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was done there")


def run(words: argparse.Namespace) -> None:
    """Check, write what is missing, and say what was written."""
    if words.json is not None:
        check_target(words.json, "dump.json")
    captions = chosen(words)
    report = dump(captions, sources(captions, words.pictures), words.output, words.split)
    if words.json is not None:
        write_json(report, words.json)
    print(f"{words.output}: {report['made']} of {report['count']} photographs, {report['written']} of them now")


def sources(captions: Sequence[Caption], folder: Path) -> list[Path]:
    """The photograph of each caption. Raises ValueError if one is not there."""
    if not folder.is_dir():
        raise ValueError(f"the folder {str(folder)[:200]} of --pictures does not exist")
    if captions[0].picture is not None:
        files = [folder / str(caption.picture) for caption in captions]
        for caption, file in zip(captions, files, strict=True):
            if not file.is_file():
                raise ValueError(f"{caption.where} is not in {folder}; give the folder that holds it with --pictures")
        return files
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in KINDS and file.is_file())
    if len(files) < len(captions):
        raise ValueError(
            f"{folder} holds {len(files)} pictures for {len(captions)} captions; every line needs one, in the order of "
            "their names, or a smaller --count"
        )
    return files[: len(captions)]


def dump(
    captions: Sequence[Caption], files: Sequence[Path], folder: Path, split: Sequence[int] | None
) -> dict[str, Any]:
    """Write the photographs that are not in `folder` yet. Raises ValueError for a folder of something else, and
    OSError for a photograph that cannot be read.
    """
    texts = [caption.text for caption in captions]
    if (folder / pictures.RUN).exists():
        raise ValueError(f"{folder} holds pictures that `coco` made; choose another --output")
    pictures.check_texts(folder, texts, pictures.CAPTIONS)
    pictures.make_folder(folder)
    with pictures.at_work(folder, split) as via:
        pictures.write_texts(folder, texts, via)
        todo = pictures.missing(folder, part(len(captions), split))
        for index in todo:
            with whole_file(pictures.picture(folder, index), via=via) as file:
                write_png(files[index], file)
    return {
        "count": len(pictures.read_texts(folder)),
        "made": len(pictures.numbers(folder)),
        "written": len(todo),
    }


def write_png(photograph: Path, file: IO[bytes]) -> None:
    """The pixels of `photograph` as PNG: grey stays grey, as in the original's dump, and what PNG does not have, such
    as CMYK, becomes RGB. Raises OSError.
    """
    from PIL import Image

    try:
        with Image.open(photograph) as pixels:
            (pixels if pixels.mode in PNG_MODES else pixels.convert("RGB")).save(file, format="PNG")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise OSError(f"{photograph} cannot be written as PNG: {error}") from None
