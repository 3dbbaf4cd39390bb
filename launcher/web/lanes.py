"""The lanes: what every rank does at this moment, bar by bar."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from launcher.schema import Lane, Status, Update
from launcher.web.names import amount, method_name, milliseconds, percent

TITLE = "Live per-device latency"
# What the drift of activations means, by mode.
MEANING = {
    "full_sync": "Every step waited for fresh values: nothing was off.",
    "no_sync": "The others' values stay as the warm-up left them, and get further off.",
    "extrapolated": "So far off are stale values; foresight makes up for part of it.",
}
OFF = "So far off is what a stale step uses of the others."
# What lanes without a picture say: one by one, and together.
RESTING = {
    "loading": ("loading", "Every device loads the weights."),
    "ready": ("sleeping", "Devices sleep between pictures."),
    "busy": ("at work for somebody else", "The devices draw one picture at a time."),
    "starting": ("waking", "Every device gets ready."),
    "lost": ("restarting", "The workers are being started again."),
    "dead": ("stopped", "The workers cannot start."),
}
WORDS = {"lost": "restarting", "queued": "waiting", "cancelled": "stopped"}


def resting(status: Status, state: str) -> dict[str, Any]:
    """The lanes of a group that does nothing for this page; `state` is its mood, or that of the page's own request."""
    word, foot = RESTING[state]
    rows = [
        {"rank": rank, "name": _name(rank, status.device), "state": "rest", "status": word}
        for rank in range(status.ranks)
    ]
    drift = _no_drift("Told while displaced patches are at work.")
    return {"title": TITLE, "lanes": rows, "drift": drift, "foot": foot}


def live(update: Update) -> dict[str, Any]:
    """The lanes of a running or finished picture."""
    paces = [lane.median_ms for lane in update.lanes if lane.branch != "none"]
    told = len(paces) > 1 and any(paces)
    return {
        "title": TITLE,
        "method": method_name(str(update.config.get("parallelism", "patch"))),
        "lanes": [_lane(lane, update) for lane in update.lanes],
        "steps": max([_slots(lane, update.steps) for lane in update.lanes], default=update.steps),
        "phases": update.phases if _warms_up(update.config) else "",
        "drift": _drift(update),
        "foot": f"Slowest device sets the pace: {milliseconds(max(paces))} ms a step" if told else "",
    }


def _drift(update: Update) -> dict[str, Any]:
    """How far activations moved in every step, which is what stale values are off by."""
    if update.config.get("parallelism", "patch") != "patch":
        return _no_drift("This method passes no activations on.")
    meaning = MEANING.get(str(update.config.get("mode")), OFF)
    known = [change for change in update.changes if change is not None]
    if not known:
        return _no_drift(meaning)
    stale = [change for change, phase in zip(update.changes, update.phases, strict=True) if change and phase == "d"]
    now = f"{percent(median(stale))} in stale steps" if stale else percent(known[-1])
    return {
        "values": [None if change is None else round(change, 5) for change in update.changes],
        "text": now,
        "meaning": meaning,
        "alt": f"Activations moved by {percent(known[0])} from the first step to the second, lately by {now}",
    }


def _no_drift(meaning: str) -> dict[str, Any]:
    return {"values": [], "text": "–", "meaning": meaning, "alt": "Nothing is known yet of how far activations moved"}


def _slots(lane: Lane, steps: int) -> int:
    """Room for bars: one for each finished step of the engine, and for each timestep to come, however few steps it
    takes in the end.
    """
    return len(lane.history) + steps - lane.step


def _warms_up(config: Mapping[str, Any]) -> bool:
    """Only displaced patches have a warm-up to mark; elsewhere every step is alike."""
    return config.get("parallelism") == "patch" and config.get("mode") != "full_sync"


def _lane(lane: Lane, update: Update) -> dict[str, Any]:
    row: dict[str, Any] = {
        "rank": lane.rank,
        "name": _name(lane.rank, lane.device),
        "part": _part(lane, update.request),
    }
    if lane.branch == "none":
        return row | {"state": "rest", "status": "sleeping", "part": "not used"}
    running = update.state in ("running", "decoding", "starting")
    alone = sum(other.branch != "none" for other in update.lanes) == 1
    wait = sum(wait for _, wait in lane.history)
    whole = sum(compute + wait for compute, wait in lane.history)
    return row | {
        "state": "run" if running else update.state,
        "ms": milliseconds(lane.median_ms) if lane.history else "–",
        "status": f"step {lane.step} / {update.steps}" if running else WORDS.get(update.state, update.state),
        "wait": f"waiting {100 * wait / whole:.0f} %" if whole and not alone else "",
        "sent": f"{amount(lane.sent_bytes)}/step" if lane.history and not alone else "",
        "load": _load(lane),
        "memory": _memory(lane),
        "buffers": f", {amount(lane.buffer_mb * 2**20)} buffers" if lane.memory_mb and lane.buffer_mb else "",
        "bars": [[round(compute, 2), round(wait, 2)] for compute, wait in lane.history],
    }


def _load(lane: Lane) -> str:
    """CPU: percent of one core, so that two threads can make 200."""
    return "" if lane.load is None else f"{'CPU' if lane.device == 'CPU' else 'GPU'} {lane.load:.0f} %"


def _memory(lane: Lane) -> str:
    if not lane.memory_mb:
        return ""
    return amount(lane.memory_mb * 2**20)


def _name(rank: int, device: str) -> str:
    if not device:  # rank 0 has not said yet what it runs on
        return f"rank {rank}"
    return f"CPU rank {rank}" if device == "CPU" else f"GPU {rank}"


def _part(lane: Lane, request: Mapping[str, Any]) -> str:
    branch = {"conditional": "with prompt", "unconditional": "without prompt"}.get(lane.branch, "")
    if lane.box is None:
        return branch
    left, top, right, bottom = lane.box
    rows, columns = bottom - top < request.get("height", bottom), right - left < request.get("width", right)
    where = f"rows {top}–{bottom}" if rows else f"columns {left}–{right}" if columns else "whole picture"
    return " · ".join(part for part in (where, branch) if part)
