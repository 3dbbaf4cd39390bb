"""A sheet of pictures of the same captions, one row a caption, one column a way of making it: those of measure.py, or
of any runs of `python -m launcher coco` beside each other.

    python -m assets.demo_training.contact_sheet --folder outputs/measured --output contact.jpg
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from PIL import Image, ImageDraw

COLUMNS = ("single", "patch-2", "patch-4", "naive-2", "naive-4")
TITLES = ("one device", "DistriFusion, 2", "DistriFusion, 4", "naive, 2", "naive, 4")
HEADER, GAP = 16, 2  # pixels


def parse_options(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Paste measured pictures into one sheet.")
    parser.add_argument("--folder", type=Path, default=Path("outputs/measured"))
    parser.add_argument("--output", type=Path, default=Path("contact.jpg"))
    parser.add_argument("--columns", nargs="+", default=COLUMNS, help="folders in --folder")
    parser.add_argument("--titles", nargs="+", help="of the columns (default: the folders' names)")
    parser.add_argument("--count", type=int, default=32, help="captions, the first ones")
    parser.add_argument("--blocks", type=int, default=2, help="captions beside each other")
    parser.add_argument("--side", type=int, default=124, help="pixels of a picture on the sheet")
    parser.add_argument("--quality", type=int, default=76)
    options = parser.parse_args(arguments)
    if options.titles is None:
        options.titles = TITLES if tuple(options.columns) == COLUMNS else options.columns
    if len(options.titles) != len(options.columns):
        parser.error(f"{len(options.titles)} titles for {len(options.columns)} columns; give one a column")
    if options.output.suffix.lower() not in (".jpg", ".jpeg"):
        parser.error(f"{options.output} is not named as a JPEG; give a name that ends with .jpg")
    return options


def sheet(options: argparse.Namespace) -> Image.Image:
    """The sheet: `blocks` blocks of columns beside each other, each with its header."""
    side, wide = options.side, len(options.columns)
    rows = -(-options.count // options.blocks)
    block = wide * side + GAP * 4
    whole = Image.new("RGB", (options.blocks * block, HEADER + rows * (side + GAP)), "white")
    draw = ImageDraw.Draw(whole)
    for index in range(options.count):
        left, top = index // rows * block, HEADER + index % rows * (side + GAP)
        for column, name in enumerate(options.columns):
            if index % rows == 0:
                draw.text((left + column * side + 4, 2), options.titles[column], fill="black")
            picture = Image.open(options.folder / name / f"{index:04d}.png").convert("RGB")
            picture = picture.resize((side - GAP, side), Image.Resampling.LANCZOS)
            whole.paste(picture, (left + column * side, top))
    return whole


def main(options: argparse.Namespace) -> None:
    """Write the sheet."""
    writing = options.output.with_suffix(f".{os.getpid()}.jpg")
    sheet(options).save(writing, quality=options.quality, optimize=True, progressive=True)
    writing.replace(options.output)


if __name__ == "__main__":
    main(parse_options())
