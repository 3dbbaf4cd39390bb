"""Pictures on disk: PNG files that carry their settings and appear whole or not at all. Which name they get is the
caller's business.

A file carries settings only: same picture, same settings, same bytes. What was measured differs from run to run; it
stands in the report, and in the copies that are downloaded together with one.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distri_engine.bands import used_ranks
from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import infotext, styles
from launcher.files import whole_file
from launcher.schema import as_parameters

PICTURES = "pictures"  # in the data folder: where the page's pictures go, and all that it serves of that folder
OURS, COMMON = "distrifusion", "parameters"  # the text chunks: all there is to know, and what other programs read
FORMAT = 1  # of our chunk
MAX_TEXT = 2**16  # characters of a chunk that are read


def chunks(request: GenerationRequest, config: DistriConfig, *, model: str, device: str, ranks: int) -> dict[str, str]:
    """The text chunks of a picture by keyword; none if the request does not want them.

    `model` and `device` as people call them; `ranks` of the group, of which the picture may have used fewer.
    """
    if not request.metadata:
        return {}
    topology = {"model": model, "device": device, "ranks": ranks, "used": used_ranks(config, ranks)}
    settings = {
        "format": FORMAT,
        "request": as_parameters(request),
        "config": as_parameters(config),
        "style": styles.split(request.prompt)[1],
        "topology": topology,
    }
    return {
        COMMON: infotext.write(request, config, model=model, ranks=ranks),
        OURS: json.dumps(settings, separators=(",", ":")),
    }


def read(data: bytes) -> dict[str, str]:
    """The text chunks that stand before the picture in a PNG file, or in the beginning of one. Nobody's word is taken
    for anything in them. Raises ValueError for what is no PNG.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            found = dict(image.info)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise ValueError("this is not a PNG picture; settings are read from PNG files") from None
    return {
        name: str(text) for name in (COMMON, OURS) if isinstance(text := found.get(name), str) and len(text) <= MAX_TEXT
    }


def timed(data: bytes, report: Mapping[str, Any]) -> bytes:
    """A copy of a PNG file of ours whose chunk has `timings`, too: "seconds" of its parts, as in its `report`, and
    "step_ms" of the slowest rank. The same bytes if the file carries no settings.
    """
    from PIL import Image

    settings = read(data)
    if OURS not in settings:
        return data
    slowest = [max(rank["compute_ms"] + rank["wait_ms"] for rank in step["ranks"]) for step in report["steps"]]
    timings = {"seconds": report["seconds"], "step_ms": [round(ms, 1) for ms in slowest]}
    settings[OURS] = json.dumps(json.loads(settings[OURS]) | {"timings": timings}, separators=(",", ":"))
    copy = io.BytesIO()
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        image.save(copy, format="PNG", pnginfo=_texts(settings))
    return copy.getvalue()


def save(image: Any, path: Path, chunks: Mapping[str, str], *, via: Path | None = None) -> None:
    """Write a PIL picture with its text chunks: same picture, same settings, same bytes. `via` as in `whole_file`.

    Raises OSError.
    """
    with whole_file(path, via=via) as file:
        image.save(file, format="PNG", pnginfo=_texts(chunks))


def save_all(images: list[Any], path: Path, chunks: Mapping[str, str]) -> list[Path]:
    """Save a batch as `x.png`, `x-2.png`, ... and return the paths."""
    paths = [path if n == 0 else path.with_name(f"{path.stem}-{n + 1}{path.suffix}") for n in range(len(images))]
    for image, where in zip(images, paths, strict=True):
        save(image, where, chunks)
    return paths


def _texts(chunks: Mapping[str, str]) -> Any:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in chunks.items():
        info.add_text(name, text)
    return info
