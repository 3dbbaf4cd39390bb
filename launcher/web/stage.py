"""The stage: the picture while it grows and when it is done, what happens meanwhile, and the views of a comparison.
Files are named by path, page.js turns them into addresses.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.schema import Lane, Update
from launcher.web.names import method_name, milliseconds
from launcher.web.pictures import RANGE, heat_map
from launcher.web.take import Take

BASELINES = ("single", "naive_patch")
VIEWS = ("slider", "sides", "difference")

IDLE = {
    "state": "idle",
    "title": "Ready when you are",
    "text": "Write a prompt and press Generate (Ctrl+Enter). "
    "The picture appears here while the devices draw it together.",
}


def pairs(main: str = "patch") -> tuple[tuple[str, str], ...]:
    """Which two pictures of a run can be looked at; `main` made the one that was asked for."""
    if main in BASELINES:
        main = "patch"
    return (("naive_patch", main), ("single", main), ("single", "naive_patch"))


def pair_name(pair: tuple[str, str]) -> str:
    """ "Naive | DistriFusion"."""
    return " | ".join(side_name(side) for side in pair)


def side_name(method: str) -> str:
    """The short name that fits a tab."""
    return "Naive" if method == "naive_patch" else method_name(method)


def live(update: Update, first: Take | None = None) -> dict[str, Any]:
    """The stage while a request is on its way. With `first` that finished picture keeps the stage, and what runs now
    is drawn in an inset.
    """
    name = method_name(str(update.config.get("parallelism", "patch")))
    value: dict[str, Any] = {"state": update.state, "label": name, "ratio": _ratio(update.request)}
    if update.preview:
        value["image"] = {"src": update.preview, "alt": f"Preview of step {update.step}"}
        value["strip"] = strip(update.lanes, update.request)
    if update.state in ("running", "decoding"):
        value["progress"] = _progress(update, name if first else "")
    else:
        value.update(_words(update, name if first else ""))
    if first is None:
        return value
    inset = {"src": update.preview or "", "label": name, "strip": value.get("strip", [])}
    shown = done(first)
    return shown | {"state": update.state, "inset": inset, "progress": value.get("progress") or _progress(update, name)}


def done(take: Take) -> dict[str, Any]:
    """One finished picture."""
    return {
        "state": "done",
        "label": method_name(take.method),
        "ratio": _ratio(take.request),
        "image": _picture(take),
        "strip": _segments(list(enumerate(take.boxes())), take.request),
    }


def compare(takes: Mapping[str, Take], pair: tuple[str, str], view: str) -> dict[str, Any] | None:
    """Two finished pictures in one of the VIEWS; None if one of them is missing."""
    if any(side not in takes for side in pair):
        return None
    left, right = (takes[side] for side in pair)
    if left.request.get("height") != right.request.get("height") or left.request.get("width") != right.request.get(
        "width"
    ):
        return None
    value = done(right) | {"view": view, "labels": [method_name(left.method), method_name(right.method)], "strip": []}
    if view == "sides":
        value["sides"] = [_picture(each) | {"label": method_name(each.method)} for each in (left, right)]
        value |= {"label": "", "labels": []}
    elif view == "difference":
        heat = heat_map(left.picture, right.picture, right.boxes() or left.boxes())
        words = f"Heat map of the difference between {method_name(left.method)} and {method_name(right.method)}"
        value |= {"image": {"src": heat, "alt": words}, "label": f"Difference: {pair_name(pair)}", "labels": []}
        value["scale"] = {"most": f"≥ {RANGE} of 255", "border": "patch border"}
    return value


def ended(update: Update) -> dict[str, Any]:
    """A request that ended without a picture."""
    if update.state == "cancelled":  # "Stopped at step 13. Your prompt and seed are kept."
        title, _, text = update.message.partition(".")
        text = text.strip() or "Your prompt and seed are kept."
    else:
        title = {"failed": "That did not work", "lost": "A device was lost"}.get(update.state, "")
        text = update.message.removeprefix(f"{title}: ")
    return {"state": update.state, "title": title, "text": text[:1].upper() + text[1:]}


def strip(lanes: tuple[Lane, ...], request: Mapping[str, Any]) -> list[dict[str, float]]:
    """Which device draws which part of the picture, as segments along its left or top edge."""
    return _segments([(lane.rank, lane.box) for lane in lanes if lane.box and lane.branch != "none"], request)


def _segments(boxes: list[tuple[int, tuple[int, int, int, int]]], request: Mapping[str, Any]) -> list[dict[str, float]]:
    height, width = float(request.get("height") or 1), float(request.get("width") or 1)
    segments: list[dict[str, float]] = []
    for rank, (left, top, right, bottom) in boxes:
        columns = bottom - top >= height and right - left < width
        start, length = (left / width, (right - left) / width) if columns else (top / height, (bottom - top) / height)
        segments.append({"rank": rank, "start": start, "length": length, "columns": columns})
    return segments


def _picture(take: Take) -> dict[str, str]:
    return {"path": take.picture, "alt": f"{method_name(take.method)}: {take.request.get('prompt', '')}"}


def _ratio(request: Mapping[str, Any]) -> float:
    return float(request.get("width") or 1) / float(request.get("height") or 1)


def _progress(update: Update, name: str) -> dict[str, Any]:
    prefix = f"{name} · " if name else ""
    if update.state == "decoding":
        text, detail = "Decoding the picture", ""
    elif update.state in ("running", "lost") and update.steps:
        text = f"Step {update.step} / {update.steps}"
        detail = f"{milliseconds(update.ms_per_step)} ms/step · {update.seconds_left:.1f} s left" if update.step else ""
    else:
        text, detail = update.message, ""
    share = update.step / update.steps if update.steps else 0.0
    # "S" steps wait for fresh activations of the peers; the bar shows how far that warm-up reached.
    warm = update.phases.count("S") / update.steps if update.steps and "d" in update.phases else 0.0
    return {"text": prefix + text, "detail": detail, "share": share, "warm": warm}


def _words(update: Update, name: str) -> dict[str, Any]:
    if update.state == "queued":
        ahead = f"You are number {update.position} in the line. " if update.position else ""
        return {"title": "In the queue", "text": f"{ahead}The devices draw one picture at a time.", "spin": True}
    if update.state == "starting":
        return {"title": "Waking the peers", "text": "The text is encoded and every device gets ready.", "spin": True}
    if update.state == "lost":
        return ended(update) | {"spin": True}
    return ended(update)
