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
    if status.queue > own and state in ("busy", "ready"):
        badge += f" · {status.queue - own} waiting"
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
        "model": status.model.name if status.model else "",
        "devices": f"{status.ranks} × {status.device}" if status.device else who,
        "alone": status.ranks == 1,
        "notice": notice,
    }
