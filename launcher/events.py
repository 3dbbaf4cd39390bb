"""What happens to the hub (events) and what it wants done (actions). Deciding is the business of hub.py, doing that of
hub_io.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from launcher import messages as m
from launcher.job import Job

# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Submitted:
    """A page sent a request; the journal has it."""

    job: Job


@dataclass(frozen=True)
class Stop:
    """Somebody wants this request to end."""

    req: str


@dataclass(frozen=True)
class Heard:
    """A rank sent a message."""

    rank: int
    message: m.Message


@dataclass(frozen=True)
class Lost:
    """A rank's connection closed, or what came from it made no sense."""

    rank: int
    reason: str


@dataclass(frozen=True)
class Previewed:
    """Rank 0 has a small picture of the latents."""

    req: str
    uri: str


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


Event = Submitted | Stop | Heard | Lost | Previewed | Tick


# --- actions ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Send this message to this rank."""

    rank: int
    message: m.Message


@dataclass(frozen=True)
class Write:
    """Append to the journal: "try" (an attempt begins), "stop" (never again), "finished" (as `job.state` says)."""

    entry: str
    job: Job


@dataclass(frozen=True)
class Die:
    """End this process, and so the whole group; torchrun starts the next one."""

    reason: str


Action = Send | Write | Die
