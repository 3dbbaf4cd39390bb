"""Folders of numbered pictures, one a caption: 0000.png, ..., captions.txt, and where pictures were made run.json and
seconds.jsonl. What is there is whole and is never made again; who makes it is the business of the commands.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from launcher.files import whole_file

CAPTIONS, RUN, SECONDS = "captions.txt", "run.json", "seconds.jsonl"
STAGES = ("text", "denoise", "decode", "save")
_PNG_END = b"\x00\x00\x00\x00IEND\xaeB`\x82"  # the last chunk, its checksum included


def picture(folder: Path, index: int) -> Path:
    """The file of caption `index`."""
    return folder / f"{index:04d}.png"


def missing(folder: Path, indices: Iterable[int]) -> list[int]:
    """Those of `indices` whose picture is not there, or not whole."""
    return [index for index in indices if not _is_whole(picture(folder, index))]


def _is_whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def numbers(folder: Path) -> list[int]:
    """The numbers of the pictures in `folder`, in order."""
    stems = (path.stem for path in folder.glob("*.png"))
    return sorted(int(stem) for stem in stems if stem.isascii() and stem.isdigit() and stem == f"{int(stem):04d}")


# --- captions.txt


def read_texts(folder: Path) -> list[str]:
    """The captions of a folder; none if it has no list of them."""
    try:
        return (folder / CAPTIONS).read_text(encoding="utf-8").rstrip("\n").split("\n")
    except FileNotFoundError:
        return []


def check_texts(folder: Path, texts: Sequence[str], marker: str) -> None:
    """Raise ValueError if `folder` holds pictures of something else than `texts`, or pictures without `marker`, the
    file that says what they are, or if it is no folder.
    """
    _check_place(folder)
    there = numbers(folder)
    own = (folder / marker).exists()
    if marker == CAPTIONS and not there:  # the list alone: of a run that had not begun, or of something else
        shared = list(zip(read_texts(folder), texts, strict=False))
        own = all(old == new for old, new in shared)
    if (folder / CAPTIONS).exists() and not own:
        raise ValueError(
            f"{folder / CAPTIONS} is not of a run of this command, which would replace it; choose another --output"
        )
    if there and not (folder / marker).exists():
        raise ValueError(f"{folder} holds pictures, and no {marker} that says what they are; choose another --output")
    for index, (old, new) in enumerate(zip(read_texts(folder), texts, strict=False)):
        if old != new and index in there:
            raise ValueError(
                f"{folder} holds pictures of other captions: {picture(folder, index).name} is of {old!r:.80} there and "
                f"of {new!r:.80} in the file of captions; give the same file, or choose another --output"
            )


def _check_place(folder: Path) -> None:
    try:
        there = next(place for place in (folder, *folder.parents) if place.exists())
    except OSError as error:
        raise ValueError(
            f"the folder {str(folder)[:200]} cannot be: {error.strerror}; choose another --output"
        ) from None
    if not there.is_dir():
        raise ValueError(f"{there} is a file, and pictures go into a folder; choose another --output")


def write_texts(folder: Path, texts: Sequence[str], via: Path) -> None:
    """Write the captions, one a line, and those after them that the folder has already. Without pictures of theirs a
    folder with other captions begins anew.
    """
    old = read_texts(folder)
    if not numbers(folder):
        (folder / SECONDS).unlink(missing_ok=True)
    if numbers(folder) or old[: len(texts)] == list(texts):
        texts = [*texts, *old[len(texts) :]]
    if texts != old:
        with whole_file(folder / CAPTIONS, via=via) as file:
            file.write("".join(f"{text}\n" for text in texts).encode())


# --- run.json


def read_run(folder: Path) -> dict[str, Any] | None:
    """What made the pictures of a folder, as run.json says; None without one. Raises ValueError if it is damaged."""
    file = folder / RUN
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        settings(run)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{file} cannot be read, so what made its pictures is unknown; choose another folder"
        ) from None
    return dict(run)


def settings(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the bytes of a run's pictures depend on: name -> value. Raises KeyError or TypeError for something else."""
    return {**run["config"], **run["request"], **{name: run[name] for name in ("model", "device", "ranks")}}


def check_settings(folder: Path, run: Mapping[str, Any]) -> None:
    """Raise ValueError if the pictures in `folder` were made with other settings than those of `run`."""
    if not numbers(folder) or (before := read_run(folder)) is None:
        return
    old, new = settings(before), settings(run)
    # A name that only one of the two versions knows is no difference that anybody could mend.
    differences = [
        f"{name} {_shown(old[name])}, not {_shown(new[name])}" for name in new if name in old and old[name] != new[name]
    ]
    if differences:
        raise ValueError(
            f"{folder} was made with {' and '.join(differences)}; ask for the same, or choose another --output"
        )


def _shown(value: Any) -> str:
    return (repr(value) if isinstance(value, str) and (not value or " " in value) else str(value))[:80]


# --- seconds.jsonl


def add_seconds(folder: Path, index: int, seconds: Mapping[str, float]) -> None:
    """Append what picture `index` took, by stage, as one line."""
    entry = {"picture": index, **{stage: round(seconds[stage], 6) for stage in STAGES}}
    with (folder / SECONDS).open("a+b") as lines:
        size = lines.seek(0, os.SEEK_END)
        lines.seek(max(0, size - 1))
        # A run that was killed may have left half a line: it is ended here, and skipped by who reads.
        torn = lines.read() not in (b"", b"\n")
        lines.write(b"\n" * torn + json.dumps(entry).encode() + b"\n")


def median_seconds(folder: Path) -> dict[str, float]:
    """Median seconds a picture by stage, and "total"; empty if none was measured."""
    try:
        lines = (folder / SECONDS).read_bytes().split(b"\n")
    except FileNotFoundError:
        return {}
    taken: dict[int, list[float]] = {}
    for line in lines:
        try:
            entry = json.loads(line)
            taken[entry["picture"]] = [float(entry[stage]) for stage in STAGES]
        except (ValueError, KeyError, TypeError):
            continue
    if not taken:
        return {}
    columns = dict(zip(STAGES, zip(*taken.values(), strict=True), strict=True))
    medians = {stage: round(median(column), 6) for stage, column in columns.items()}
    return {**medians, "total": round(median(map(sum, taken.values())), 6)}


# --- work


def make_folder(folder: Path) -> None:
    """Raise ValueError if `folder` cannot be made or written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        name = str(folder)[:200]
        raise ValueError(f"the folder {name} cannot be made: {error.strerror}; choose another --output") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the folder {folder} cannot be written to; choose another --output")


@contextmanager
def at_work(folder: Path, split: Sequence[int] | None) -> Iterator[Path]:
    """A folder inside `folder` for files that are not whole yet, this run's alone; gone at the end. What a killed run
    of the same part left in it is removed.

    Raises ValueError if another run is making the same part.
    """
    place = folder / (".part" if split is None else ".part-{}-of-{}".format(*split))
    place.mkdir(exist_ok=True)
    lock = os.open(place, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is making these pictures in {folder}; wait for its end") from None
        except OSError:
            pass  # a file system without locks
        for old in place.iterdir():
            old.unlink()
        try:
            yield place
        finally:
            shutil.rmtree(place, ignore_errors=True)
    finally:
        os.close(lock)
