"""The markup of the page: one row a caption, one column a folder. Nothing is fetched, and the browser is told to refuse
it; what is shown is gathered by export_html.py.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from launcher.side_by_side.scores import Score, notable

_HERE = Path(__file__).parent
_COLOURS = 6  # of columns, in style.css; then they begin again


@dataclass(frozen=True, kw_only=True)
class Column:
    """One folder."""

    name: str
    about: str = ""  # what made its pictures
    pace: str = ""  # how long one took
    scores: tuple[Score, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture as it goes into the page."""

    uri: str  # data:image/...
    width: int  # pixels
    height: int


@dataclass(frozen=True, kw_only=True)
class Row:
    """One caption and its picture in every folder, None where it has none."""

    number: int
    caption: str
    pictures: tuple[Picture | None, ...]


def page(title: str, columns: Sequence[Column], rows: Iterable[Row], count: int) -> Iterator[str]:
    """The page in pieces, in order; `count` is the number of rows, which may be many and are made one by one."""
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    style = f":root {{ --columns: {len(columns)}; }}\n" + (_HERE / "style.css").read_text(encoding="utf-8")
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}"
    yield f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1, viewport-fit=cover">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{style}</style>
</head>
<body>
<header class="top">
  <h1>{escape(title)}</h1>
  <p class="count" role="status">{_count(count)}</p>
  <input class="filter" type="search" placeholder="Filter captions" aria-label="Filter captions" autocomplete="off">
</header>
<main class="scroller" tabindex="0" aria-label="Pictures side by side">
<div class="grid" role="table" aria-label="One row a caption, one column a folder">
<div class="row head" role="row">
<div class="corner" role="columnheader">Caption</div>
{"".join(_head(number, column) for number, column in enumerate(columns))}</div>
{_about(columns)}{_figures(columns)}"""
    for row in rows:
        yield _row(row, columns)
    yield f"""</div>
<p class="nothing" hidden>No caption holds these words.</p>
</main>
{_large(columns)}
<script>{script}</script>
</body>
</html>
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _count(count: int) -> str:
    return f"{count} caption{'s' if count != 1 else ''}"


def _head(number: int, column: Column) -> str:
    scores, shown = "", notable(column.scores)
    for against in dict.fromkeys(score.against for score in shown):
        figures = "".join(
            f'<li title="{escape(score.told)}">{escape(score.metric)} <b>{escape(score.value)}</b></li>'
            for score in shown
            if score.against == against
        )
        scores += f'<p class="against">{_against(against)}</p><ul class="scores">{figures}</ul>'
    return (
        f'<div class="name" role="columnheader" data-colour="{number % _COLOURS}"><h2>{escape(column.name)}</h2>'
        f"{scores}</div>\n"
    )


def _about(columns: Sequence[Column]) -> str:
    """The row under the head, which scrolls away: what made the pictures."""
    if not any(column.about or column.pace for column in columns):
        return ""
    cells = "".join(
        f'<div class="about" role="cell"><p>{escape(column.about)}</p><p>{escape(column.pace)}</p></div>\n'
        for column in columns
    )
    return f'<div class="row made" role="row"><div class="made-by" role="rowheader">Made by</div>\n{cells}</div>\n'


def _figures(columns: Sequence[Column]) -> str:
    """All figures as a table that can be opened, and why some are missing."""
    of = {
        (score.metric, score.against, number): score for number, column in enumerate(columns) for score in column.scores
    }
    if not of:
        return ""
    shown = sorted({number for _, _, number in of})
    names = "".join(f'<th scope="col">{escape(columns[number].name)}</th>' for number in shown)
    lines = "".join(
        f'<tr><th scope="row">{escape(metric)} <small>{_against(against)}</small></th>'
        + "".join(_figure(of.get((metric, against, number))) for number in shown)
        + "</tr>\n"
        for metric, against in dict.fromkeys((metric, against) for metric, against, _ in of)
    )
    why = dict.fromkeys(score.told for score in of.values() if not score.measured)
    return (
        '<div class="row figures" role="row"><div role="cell"><details><summary>All figures</summary>\n'
        f"<table><thead><tr><td></td>{names}</tr></thead><tbody>\n{lines}</tbody></table>"
        f"<ul>{''.join(f'<li>{escape(one)}</li>' for one in why)}</ul></details></div></div>\n"
    )


def _against(folder: str) -> str:
    return f"against {escape(folder)}" if folder else ""


def _figure(score: Score | None) -> str:
    if score is None:
        return "<td></td>"
    worst = f" <small>worst {escape(score.worst)}</small>" if score.worst else ""
    return f'<td title="{escape(score.told)}">{escape(score.value)}{worst}</td>'


def _row(row: Row, columns: Sequence[Column]) -> str:
    cells = "".join(_cell(row, column, shown) for column, shown in zip(columns, row.pictures, strict=True))
    return (
        f'<div class="row" role="row"><div class="caption" role="rowheader"><p><b>{row.number}</b> '
        f"<span>{escape(row.caption)}</span></p></div>\n{cells}</div>\n"
    )


def _cell(row: Row, column: Column, shown: Picture | None) -> str:
    if shown is None:
        return '<div class="cell" role="cell"><p class="none">no picture</p></div>\n'
    alt = escape(f"{column.name}, {row.number}: {row.caption}")
    return (
        f'<div class="cell" role="cell"><button type="button" title="Show it large"><img src="{shown.uri}" '
        f'width="{shown.width}" height="{shown.height}" decoding="async" alt="{alt}"></button></div>\n'
    )


def _large(columns: Sequence[Column]) -> str:
    tabs = "".join(
        f'<button type="button" data-colour="{number % _COLOURS}" aria-pressed="false">{escape(column.name)}</button>'
        for number, column in enumerate(columns)
    )
    return f"""<dialog class="large" aria-label="Large view">
<div class="bar"><p class="large-caption" role="status"></p>
<button type="button" class="zoom" aria-pressed="false">Zoom</button>
<button type="button" class="close" aria-label="Close">×</button></div>
<div class="stage"><div class="pan" tabindex="0" aria-label="Picture"><div class="stack"></div></div></div>
<div class="bar"><button type="button" class="back" aria-label="Caption above">↑</button>
<div class="tabs" role="group" aria-label="Folders">{tabs}</div>
<button type="button" class="on" aria-label="Caption below">↓</button></div>
<p class="keys">← → flip between the folders · ↑ ↓ captions · Z or a click zooms · Esc closes</p>
</dialog>"""
