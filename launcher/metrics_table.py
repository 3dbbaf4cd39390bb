"""The report of the metrics command as a table for people."""

from __future__ import annotations

import math
from typing import Any


def table(report: dict[str, Any]) -> str:
    """The report for people."""
    rows = report["rows"]
    head = [
        f"A: {report['a']}, {report['pictures']} pictures",
        f"B: {report['b']}, {report['pictures_b']} pictures{' of ground truth' * report['is_gt']}",
        "value: of pairs of pictures the median; of attributes and doubled subjects that of A",
    ]
    lines = [["metric", "value", "mean", "worst", "B's own", ""]]
    lines += [_cells(row) for row in rows if _measured(row)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]).rstrip()
        for line in lines
    ]
    notes = [f"{row['metric']}: {row['note']}" for row in rows if row.get("note")]
    notes += [
        f"{row['metric']}{'' if _measured(row) else ' is missing'}: {row['missing']}"
        for row in rows
        if row.get("missing")
    ]
    return "\n".join([*head, "", *body, "", *notes]).rstrip()


def _measured(row: dict[str, Any]) -> bool:
    return row["value"] is not None or "value" in row.get("infinite", ())


def _cells(row: dict[str, Any]) -> list[str]:
    places = {"dB": 2, "%": 1}.get(row.get("unit", ""), 3)
    infinite = dict.fromkeys(row.get("infinite", ()), math.inf)
    numbers = [(row | infinite).get(name) for name in ("value", "mean", "worst", "b")]
    unit = row.get("unit", "")
    more = f"{unit} ({row['better']} is better)".strip()
    return [row["metric"], *("" if number is None else _figure(number, places) for number in numbers), more]


def _figure(number: float, places: int) -> str:
    return "∞" if math.isinf(number) else f"{number:.{places}f}"
