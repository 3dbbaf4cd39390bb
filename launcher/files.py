"""Files that appear whole or not at all, and whether they could be written."""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

_PART = ".part-"  # what a file is called until it is whole
_NAME = 40  # characters of its own name in that


@contextmanager
def whole_file(path: Path, mode: int = 0o644, *, via: Path | None = None) -> Iterator[IO[bytes]]:
    """A file to write to, which takes the place of `path` at the end, safely on disk. Raises OSError.

    It is written in the folder `via`, on the same file system, or beside `path`; a killed process leaves it there.
    What a link points to is replaced, not the link; what is no file, such as a pipe, is written to as it is.
    """
    if is_stream(path):
        with path.open("wb") as stream:
            yield stream
        return
    path = path.resolve()
    with tempfile.NamedTemporaryFile(
        dir=via or path.parent, prefix=f".{_short(path.name)}{_PART}", delete=False
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
        place = file if is_stream(file) else file.resolve().parent
    except OSError as error:
        raise ValueError(f"{str(file)[:200]} cannot be written: {error.strerror}; choose another name") from None
    except RuntimeError:
        raise ValueError(f"{file} is a link to itself; choose another name") from None
    if not os.access(place, os.W_OK) or (file.exists() and not os.access(file, os.W_OK)):
        raise ValueError(f"{file} cannot be written to; choose another place")


def check_apart(**targets: Path | None) -> None:
    """Raise ValueError if two options name the same file, whose first content would be lost. Pipes take both."""
    seen: dict[Path, str] = {}
    for option, target in targets.items():
        if target is None or is_stream(target):
            continue
        if (place := target.resolve()) in seen:
            raise ValueError(f"--{seen[place]} and --{option} both name {target}; choose another name for one of them")
        seen[place] = option


def is_stream(path: Path) -> bool:
    """Whether this is a pipe, a terminal or a device, or a file that is already open, by the name of its descriptor."""
    opened = re.match(r"/dev/(fd/|stdin$|stdout$|stderr$)|/proc/[^/]+/fd/", str(path.absolute()))
    return path.exists() and (opened is not None or not path.is_file())


def _short(name: str) -> str:
    """Room for the rest of a name beside it: file systems take 255 bytes."""
    return name if len(name) <= _NAME else f"{name[:_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what writers of `name` left behind who were killed. The caller knows that none is at work."""
    for part in folder.glob(f".{name if name == '*' else glob.escape(_short(name))}{_PART}*"):
        part.unlink(missing_ok=True)
