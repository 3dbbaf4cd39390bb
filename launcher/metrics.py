"""`python -m launcher metrics`: what two folders of pictures are worth to each other, as a table and as JSON. Here is
which files are compared and what they should show; the numbers are made by the engine's evaluation package.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from launcher.files import check_target, write_json
from launcher.metrics_table import table
from launcher.model import DEMO_JUDGE, DEMO_SCENES

if TYPE_CHECKING:
    from distri_engine.evaluation.metrics import Row

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTIONS = "captions.txt"
SCENE = ("subject", "colour", "accent", "striped", "time", "ground", "weather", "orb")  # what is read of a scene


@dataclass(frozen=True)
class Folders:
    """Two folders and their pictures. With a counterpart for each, a[i] and b[i] have one name."""

    a: tuple[Path, ...]
    b: tuple[Path, ...]


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.description = (
        "How the pictures of folder A compare with those of folder B: PSNR, SSIM and LPIPS of pictures of one name, "
        "and FID. A metric whose weights are not on this machine is reported as missing."
    )
    parser.add_argument("a", type=Path, metavar="A", help="folder of pictures that are measured")
    parser.add_argument("b", type=Path, metavar="B", help="folder of pictures that they are held against")
    parser.add_argument(
        "--is-gt",
        action="store_true",
        help="B holds ground truth, not pictures of the same seeds: distances of the whole sets only",
    )
    parser.add_argument(
        "--judge",
        action="store_true",
        help="the pictures are of the embedded model's world: also ask its judge what they show",
    )
    parser.add_argument(
        "--scenes",
        type=Path,
        default=DEMO_SCENES,
        metavar="FILE",
        help="what the captions mean, for --judge (default: those of assets/demo_captions)",
    )
    parser.add_argument("--download", action="store_true", help="fetch weights that LPIPS and FID want")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")


def run(words: argparse.Namespace) -> None:
    """Check, measure, print. Raises ValueError for what makes no sense."""
    if words.json is not None:
        check_target(words.json, "metrics.json")
    folders = open_folders(words.a, words.b, paired=words.judge or not words.is_gt, one_size=not words.is_gt)
    scenes = scenes_of(folders, words.scenes) if words.judge else None
    rows = measure(folders, scenes, is_gt=words.is_gt, download=words.download)
    report = {
        "a": str(words.a),
        "b": str(words.b),
        "pictures": len(folders.a),
        "pictures_b": len(folders.b),
        "is_gt": words.is_gt,
        "rows": [row.as_json() for row in rows],
    }
    if words.json is not None:
        write_json(report, words.json)
    print(table(report))


def open_folders(a: Path, b: Path, *, paired: bool, one_size: bool) -> Folders:
    """The pictures of both folders by name. Raises ValueError if they cannot be compared as asked for."""
    ours, theirs = _pictures(a), _pictures(b)
    if paired:
        for some, others, here, there in ((ours, theirs, a, b), (theirs, ours, b, a)):
            if lone := sorted(set(some) - set(others)):
                raise ValueError(
                    f"{len(lone)} of {len(some)} pictures in {here} have no counterpart of the same name in {there}, "
                    f"the first is {lone[0]}; make the missing ones, or give folders of the same captions"
                )
    elif min(len(ours), len(theirs)) < 2:
        raise ValueError("one picture has no distribution; give folders of many")
    sizes = {path: _size(path) for path in (*ours.values(), *theirs.values())}
    for name in ours if one_size else ():
        one, other = sizes[ours[name]], sizes[theirs[name]]
        if one != other:
            raise ValueError(
                f"{name} is {one[0]} x {one[1]} in {a} and {other[0]} x {other[1]} in {b}; make both at one size, "
                "or give --is-gt if B holds ground truth"
            )
    return Folders(tuple(ours[name] for name in sorted(ours)), tuple(theirs[name] for name in sorted(theirs)))


def _pictures(folder: Path) -> dict[str, Path]:
    try:
        found = {path.name: path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
    except OSError as error:
        raise ValueError(f"folder {str(folder)[:200]} cannot be read: {error.strerror}; give another") from None
    found = {name: path for name, path in found.items() if not name.startswith(".")}
    if not found:
        raise ValueError(f"{folder} holds no pictures ({', '.join(SUFFIXES)}); give the folder that they are in")
    return found


def _size(path: Path) -> tuple[int, int]:
    try:
        with Image.open(path) as picture:
            return picture.size
    except (OSError, Image.DecompressionBombError):
        raise ValueError(f"{path} cannot be read as a picture; make it anew") from None


def scenes_of(folders: Folders, file: Path) -> list[dict[str, Any]]:
    """What each picture should show: its name is the number of its caption, and `file` knows what captions mean.

    Captions are in captions.txt, in A, in B or one folder above. Raises ValueError if anything is not there.
    """
    try:
        known = {
            scene["caption"]: {name: scene[name] for name in SCENE}
            for scene in json.loads(file.read_text(encoding="utf-8"))
        }
    except OSError as error:
        raise ValueError(f"scenes {str(file)[:200]} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{file} is not what assets.demo_training.held_out writes as scenes.json") from None
    a, b = (paths[0].parent.resolve() for paths in (folders.a, folders.b))
    places = [folder / CAPTIONS for folder in (a, b, a.parent, b.parent) if (folder / CAPTIONS).is_file()]
    if not places:
        raise ValueError(f"neither {a} nor {b} has a {CAPTIONS}, by which --judge knows what pictures should show")
    texts = places[0].read_text(encoding="utf-8").splitlines()
    scenes = []
    for path in folders.a:
        number = int(path.stem) if path.stem.isascii() and path.stem.isdigit() else len(texts)
        if number >= len(texts):
            raise ValueError(f"{path.name} is the number of no caption in {places[0]}, which has {len(texts)}")
        if texts[number] not in known:
            raise ValueError(
                f"what caption {number}, {texts[number]!r:.80}, means is not in {file}; give --scenes the file that "
                "was written with the captions"
            )
        scenes.append(known[texts[number]])
    return scenes


def measure(folders: Folders, scenes: Sequence[dict[str, Any]] | None, *, is_gt: bool, download: bool) -> list[Row]:
    """The rows that make sense: of pairs unless B is ground truth, of whole sets, the judge's if there are scenes."""
    from distri_engine.evaluation.judge import load_judge
    from distri_engine.evaluation.metrics import fid_row, judge_rows, likeness_rows

    rows = []
    if not is_gt:
        rows += likeness_rows(folders.a, folders.b, download=download, done=_Progress(len(folders.a)))
    instead = "" if scenes is not None else "pictures of the embedded model have a distance of their own with --judge"
    rows.append(fid_row(folders.a, folders.b, download=download, instead=instead))
    if scenes is not None:
        rows += judge_rows(load_judge(DEMO_JUDGE), folders.a, folders.b, scenes)
    return rows


class _Progress:
    """Counts pictures on a terminal."""

    def __init__(self, count: int) -> None:
        self._count, self._done, self._shown = count, 0, sys.stderr.isatty()

    def __call__(self) -> None:
        self._done += 1
        if self._shown:
            text = f"picture {self._done} / {self._count} " if self._done < self._count else "\033[K"
            print(f"\r{text}", end="", file=sys.stderr, flush=True)
