"""The page's head: what runs, in what state. Says only what is true: ranks on a CPU are CPU ranks."""

from __future__ import annotations

from typing import Any

from launcher.schema import Status
from launcher.web.names import devices

BUSY = ("joining", "preparing", "running", "draining")


def mood(status: Status) -> str:
    """loading, ready, busy, lost or dead: what the page's controls depend on."""
    if status.state == "dead":
        return "dead"
    if status.state == "rejoin":
        return "lost"
    if status.state == "boot" or status.model is None:
        return "lost" if status.restarts else "loading"
    # A loaded group that is joining wakes from its rest, for a picture.
    return "busy" if status.state in BUSY else "ready"


def header(status: Status, *, own: int = 0) -> dict[str, Any]:
    """The badge, the model and the devices, and the notice that the empty stage shows meanwhile. `own` of the waiting
    requests belong to the run that this page shows; they are nobody's queue.
    """
    who = devices(status.ranks, status.device)
    state = mood(status)
    badge = {
        "loading": f"Loading the model on {who}",
        "ready": f"{who} ready",
        "busy": "Generating",
        "lost": "Restarting the workers",
        "dead": "Stopped working",
    }[state]
    waiting = status.queue - own if state in ("busy", "ready") else 0
    brief = {
        "loading": "Loading",
        "ready": f"{who if status.device == 'CPU' else f'{status.ranks} GPU' + 's' * (status.ranks != 1)} ready",
        "busy": "Generating",
        "lost": "Restarting",
        "dead": "Stopped",
    }[state]
    if waiting > 0:
        badge, brief = f"{badge} · {waiting} waiting", f"{waiting} waiting"
    notice: dict[str, str] | None = None
    if state == "loading":
        notice = {"title": "Loading the model on every device", "text": "You can write your prompt now."}
    elif state == "lost":
        notice = {"title": "The workers are restarting", "text": "This takes a few seconds. Your prompt is kept."}
    elif state == "dead":
        notice = {"title": "The workers cannot start", "text": status.last_error or status.message}
    return {
        "state": state,
        "badge": badge,
        "brief": brief,  # where there is little room
        "model": status.model.name if status.model else "",
        "devices": status.device and ("CPU" if status.device == "CPU" else who),
        "ranks": status.ranks,
        "alone": status.ranks == 1,
        "notice": notice,
    }
