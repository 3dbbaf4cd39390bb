"""What `python -m launcher metrics --json` measured, for the heads of the columns. Measuring is not done here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOTABLE = ("PSNR", "SSIM", "LPIPS", "FID")  # what readers look for first; other metrics have long names
MISSING = "–"


@dataclass(frozen=True, kw_only=True)
class Score:
    """One figure of one folder."""

    metric: str
    value: str  # "31.2 dB", or a dash where it could not be measured
    against: str  # the other folder; empty for what is the folder's own
    told: str  # in full, one sentence
    worst: str = ""  # of all pictures

    @property
    def measured(self) -> bool:
        return self.value != MISSING


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """One file of figures, of two folders."""

    a: str  # what was measured
    b: str  # what it was held against
    rows: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, file: Path) -> Metrics:
        """Raises ValueError for a file of something else."""
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
            rows = tuple({**row, "metric": f"{row['metric']}"} for row in data["rows"])
            if not isinstance(data["a"], str) or not isinstance(data["b"], str):
                raise TypeError
            for row in rows:
                _value(row)
            return cls(a=data["a"], b=data["b"], rows=rows)
        except OSError as error:
            raise ValueError(f"metrics {str(file)[:200]} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{file} is not what `python -m launcher metrics --json` writes; make it anew") from None

    def is_about(self, folder: Path) -> tuple[bool, bool]:
        """Whether `folder` is a, and whether it is b."""
        where = folder.resolve()
        return Path(self.a).resolve() == where, Path(self.b).resolve() == where

    def scores(self, against: str) -> tuple[Score, ...]:
        """The figures, for a folder that is compared with `against`."""
        return tuple(
            Score(
                metric=row["metric"],
                value=_value(row),
                against=against if row.get("b") is None else "",
                told=_told(row, against),
                worst="" if row.get("worst") is None else _figure(row["worst"]),
            )
            for row in self.rows
        )


def _value(row: Mapping[str, Any]) -> str:
    value = math.inf if "value" in row.get("infinite", ()) else row.get("value")
    return MISSING if value is None else f"{_figure(value)} {row.get('unit') or ''}".strip()


def _figure(value: float) -> str:
    """Three figures, as of 0.034, 2.41, 31.2 and 120."""
    if value == 0 or math.isinf(value):
        return "∞" if value else "0"
    decimals = next(decimals for least, decimals in ((100, 0), (10, 1), (1, 2), (0, 3)) if abs(value) >= least)
    return f"{value:.{decimals}f}"


def _told(row: Mapping[str, Any], against: str) -> str:
    against = f" against {against}" if row.get("b") is None else ""
    if row.get("value") is None:
        return f"{row['metric']}{against}: {row.get('missing') or 'not measured'}"
    more = "".join(f", {name} {_figure(row[name])}" for name in ("mean", "worst") if row.get(name) is not None)
    better = f"; {row['better']} is better" if row.get("better") else ""
    note = f"; {row['note']}" if row.get("note") else ""
    return f"{row['metric']} {_value(row)}{against}{more}{better}{note}"


def notable(scores: Sequence[Score]) -> list[Score]:
    """The few of a folder's figures for its head: those that readers look for, or else the first one."""
    measured = [score for score in scores if score.measured]
    return [score for score in measured if score.metric in NOTABLE] or measured[:1]
