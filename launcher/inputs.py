"""Pictures that callers send to start from: taken as bytes, judged, and kept as files of our own making beside the
journal until no request needs them. What is made of them is the engine's business.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import io
import re
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from launcher.files import whole_file
from launcher.schema import Refused

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_BYTES = 2_900_000  # of the file; as base64 in JSON it is below the 4 MiB of limits.BODY_BYTES
MAX_PIXELS = 4096 * 4096
SIDE = 2048  # pixels; what is larger is kept smaller
_FOLDER = "inputs"  # in the data folder; nothing of it is served
_NAME = re.compile(r"[0-9a-f]{32}\.png")


class Inputs:
    """The pictures of one data folder, by names that say what they show. Thread-safe."""

    def __init__(self, folder: Path, needed: Callable[[], Collection[str]]) -> None:
        """`needed`: the names that requests have which are not finished."""
        self._folder, self._needed = folder / _FOLDER, needed
        self._lock = threading.Lock()
        self._held: Counter[str] = Counter()

    @contextlib.contextmanager
    def kept(self, text: str) -> Iterator[str]:
        """The name of the picture that `text`, a data URI or the base64 of a file, holds; it stays meanwhile, and then
        as long as a request needs it.

        Raises ValueError for what is no picture or too large, and Refused if it cannot be kept.
        """
        png = as_png(decoded(text))
        name = f"{hashlib.sha256(png).hexdigest()[:32]}.png"
        with self._lock:
            self._held[name] += 1
        try:
            self._write(name, png)
            yield name
        finally:
            with self._lock:
                self._held[name] -= 1
            self.forget()

    def path(self, name: str) -> Path:
        """Where the picture is. Raises ValueError if there is none of that name."""
        if not _NAME.fullmatch(name) or not (self._folder / name).is_file():
            raise ValueError("the picture to start from is not here; send it as a data URI")
        return self._folder / name

    def forget(self) -> None:
        """Remove what nobody needs any more."""
        with self._lock, contextlib.suppress(OSError):
            needed = self._needed()
            for path in self._folder.glob("*"):
                if path.name not in needed and not self._held[path.name]:
                    path.unlink(missing_ok=True)

    def _write(self, name: str, png: bytes) -> None:
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock, whole_file(self._folder / name, 0o600) as file:
                file.write(png)
        except OSError as error:
            raise Refused(f"Nothing can be accepted: {error.strerror or error}") from None


def decoded(text: str) -> bytes:
    """The bytes of a data URI, or of plain base64. Raises ValueError."""
    if not isinstance(text, str):
        raise ValueError("image is not text; send the picture as a data URI: data:image/png;base64,...")
    body = text.partition(";base64,")[2] if text.startswith("data:") else text
    if len(body) > MAX_BYTES * 4 // 3 + 4:
        raise ValueError(f"image has about {len(body) * 3 // 4} bytes, the limit is {MAX_BYTES}; send a smaller one")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("image is not base64; send the picture as a data URI: data:image/png;base64,...") from None


def as_png(data: bytes) -> bytes:
    """The picture alone, upright, in RGB, its long side at most SIDE pixels: same picture, same bytes.

    Raises ValueError if `data` is no whole picture of FORMATS, or one of more than MAX_PIXELS.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(
                    f"image has {width} x {height} pixels, the limit is {MAX_PIXELS} in all; send a smaller one"
                )
            picture = ImageOps.exif_transpose(image).convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):
        raise ValueError(f"image is no whole {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture; send one") from None
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    picture.info.clear()
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
