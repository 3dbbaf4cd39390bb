"""The report of the metrics command as a table for people."""

from __future__ import annotations

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
    lines += [_cells(row) for row in rows if row["value"] is not None]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    body = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:-1], widths[1:-1]), line[-1]]).rstrip()
        for line in lines
    ]
    notes = [f"{row['metric']}: {row['note']}" for row in rows if row.get("note")]
    notes += [f"{row['metric']} is missing: {row['missing']}" for row in rows if row.get("missing")]
    return "\n".join([*head, "", *body, "", *notes]).rstrip()


def _cells(row: dict[str, Any]) -> list[str]:
    places = {"dB": 2, "%": 1}.get(row.get("unit", ""), 3)
    numbers = [row.get(name) for name in ("value", "mean", "worst", "b")]
    unit = row.get("unit", "")
    more = f"{unit} ({row['better']} is better)".strip()
    return [row["metric"], *("" if number is None else f"{number:.{places}f}" for number in numbers), more]
