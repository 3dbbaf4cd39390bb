"""All pictures of a run and their report as one zip, written when somebody asks for it and kept nowhere. Which address
serves it is the business of routes.py.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from launcher import png
from launcher.client import Client
from launcher.web.endpoints import comparison_report
from launcher.web.take import Take, by_method

NAMES = {"single": "one-device", "naive_patch": "naive", "patch": "distrifusion"}  # in this order, others after them
MOST = 8  # pictures
_WHEN = (1980, 1, 1, 0, 0, 0)  # the oldest time that a zip knows: same pictures, same report, same bytes


def find(client: Client, ids: Sequence[str]) -> dict[str, Take]:
    """The finished pictures among these requests, by method. Raises ValueError if there are none, or too many."""
    if len(ids) > MOST:
        raise ValueError(f"{len(ids)} pictures are asked for, the limit is {MOST}")
    takes = by_method([next(client.updates(id)) for id in ids])
    if not takes:
        raise ValueError("none of these pictures is there")
    return {method: takes[method] for method in sorted(takes, key=_place)}


def write(takes: Mapping[str, Take], file: IO[bytes]) -> None:
    """`one-device.png`, `naive.png`, `distrifusion.png`, as far as they were made, and `report.json`, which names them
    so and not by where they lie on this machine. Pictures that carry settings carry their timings, too. Raises OSError
    if a picture is gone.
    """
    report: dict[str, Any] = comparison_report(takes)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:  # pictures are compressed already
        for method, take in takes.items():
            name = f"{NAMES.get(method, method)}.png"
            picture = png.timed(Path(take.picture).read_bytes(), take.report)
            archive.writestr(zipfile.ZipInfo(name, _WHEN), picture)
            report[method] = {**take.report, "image": name}
        text = f"{json.dumps(report, indent=2)}\n"
        archive.writestr(zipfile.ZipInfo("report.json", _WHEN), text, zipfile.ZIP_DEFLATED)


def _place(method: str) -> int:
    return list(NAMES).index(method) if method in NAMES else len(NAMES)
