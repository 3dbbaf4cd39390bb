"""The gallery of a visitor: one tile a run, newest first. Which records there are is the history's business."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher import styles
from launcher.schema import Record
from launcher.web.names import method_name
from launcher.web.pictures import thumbnail

SIZE = 24
PREFERRED = ("patch", "tensor", "paradigms", "naive_patch", "single")


def runs(records: Sequence[Record]) -> list[list[Record]]:
    """The records with a picture, those of one comparison together, in the order of the history."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        if record.state == "done" and record.picture and Path(record.picture).is_file():
            grouped.setdefault(record.comparison or record.id, []).append(record)
    return list(grouped.values())


def tiles(records: Sequence[Record]) -> list[dict[str, Any]]:
    """What the gallery shows: a thumbnail, the prompt, the seed and which methods were compared."""
    shown = []
    for run in runs(records)[:SIZE]:
        methods = [str(record.config.get("parallelism")) for record in run]
        prompt = str(run[0].request.get("prompt", ""))
        best = min(run, key=lambda record: _rank(str(record.config.get("parallelism"))))
        shown.append(
            {
                "id": best.id,
                "src": thumbnail(str(best.picture)),
                "prompt": prompt,
                "style": "" if (style := styles.split(prompt)[1]) == styles.NONE else style,
                "seed": str(best.request.get("seed", "")),
                "methods": [method_name(method) for method in sorted(methods, key=_rank)],
            }
        )
    return shown


def _rank(method: str) -> int:
    return PREFERRED.index(method) if method in PREFERRED else len(PREFERRED)
