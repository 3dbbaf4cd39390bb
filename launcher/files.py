"""Files that appear whole or not at all, and whether they could be written."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_PART = ".part-"  # what a file is called until it is whole
_NAME = 40  # characters of its own name in that: file systems take 255 bytes


@contextmanager
def whole_file(path: Path, mode: int = 0o644, *, via: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end, safely on disk. Raises OSError.

    It is written in the folder `via`, on the same file system, or beside `path`; a killed process leaves it there.
    What a link points to is replaced, not the link; what is no file, such as a pipe, is written to as it is.
    """
    if _is_stream(path):
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()
    with tempfile.NamedTemporaryFile(
        dir=via or path.parent, prefix=f".{path.name[:_NAME]}{_PART}", delete=False
    ) as file:
        try:
            yield file
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def write_json(value: Any, path: Path, *, via: Path | None = None) -> None:
    """Write `value`, indented. Raises OSError."""
    with whole_file(path, via=via) as file:
        file.write(f"{json.dumps(value, indent=2)}\n".encode())


def check_target(file: Path, example: str) -> None:
    """Raise ValueError if `file` could not be written at the end."""
    try:
        if not file.parent.is_dir():
            raise ValueError(f"the folder {file.parent} does not exist; make it first")
        if file.is_dir():
            raise ValueError(f"{file} is a folder; give the name of a file, such as {file / example}")
    except OSError as error:
        raise ValueError(f"{str(file)[:200]} cannot be written: {error.strerror}; choose another name") from None
    if not os.access(file if _is_stream(file) else file.resolve().parent, os.W_OK) or (
        file.exists() and not os.access(file, os.W_OK)
    ):
        raise ValueError(f"{file} cannot be written to; choose another place")


def check_apart(**targets: Path | None) -> None:
    """Raise ValueError if two options name the same file, whose first content would be lost. Pipes take both."""
    seen: dict[Path, str] = {}
    for option, target in targets.items():
        if target is None or _is_stream(target):
            continue
        if (place := target.resolve()) in seen:
            raise ValueError(f"--{seen[place]} and --{option} both name {target}; choose another name for one of them")
        seen[place] = option


def _is_stream(path: Path) -> bool:
    """Whether this is a pipe, a terminal or a device, also by its name of an open file."""
    return path.exists() and (not path.is_file() or path.absolute().parts[1:2] in (("dev",), ("proc",)))


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what writers of `name` left behind who were killed. The caller knows that none is at work."""
    for part in folder.glob(f".{name if name == '*' else glob.escape(name[:_NAME])}{_PART}*"):
        part.unlink(missing_ok=True)
