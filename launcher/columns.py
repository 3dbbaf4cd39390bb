"""Cells of text, laid out in columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def columns(lines: Sequence[Sequence[str]], *, words: int = 1) -> list[str]:
    """The lines of a table, as long as each other: the first `words` columns are text and start at the left, the others
    are figures and end at the right. All lines have as many cells.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join([*map(str.ljust, line[:words], widths), *map(str.rjust, line[words:], widths[words:])])
        for line in lines
    ]
