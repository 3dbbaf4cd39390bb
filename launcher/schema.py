"""What travels between the hub, the ranks and the page: dataclasses with validation. Standard library only; how the
frames reach the other side is wire.py's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

# --- what the page sees -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One rank's work on the running picture, as the page draws it."""

    rank: int
    device: str  # "CPU", "NVIDIA H200"
    box: tuple[int, int, int, int] | None  # left, top, right, bottom in picture pixels; None while resting
    branch: str  # "both", "unconditional", "conditional", "none" (this method does not use the rank)
    step: int  # finished steps
    compute_ms: float  # of the last finished step
    wait_ms: float  # exposed wait of the last finished step
    sent_bytes: int  # in the last finished step
    memory_mb: float
    median_ms: float  # median compute + wait over this picture's finished steps
    history: tuple[tuple[float, float], ...] = ()  # (compute_ms, wait_ms) of every finished step


@dataclass(frozen=True, kw_only=True)
class Update:
    """The state of one request, complete in itself: a later update replaces an earlier one."""

    id: str
    state: str  # queued, starting, running, decoding, done, cancelled, failed, lost (group died, queued again)
    message: str  # one sentence for people, no traceback
    position: int = 0  # place in the queue; 0 when it runs
    attempt: int = 1  # 2 after the group died once
    step: int = 0  # finished steps
    steps: int = 0
    phases: str = ""  # one letter per finished step: "S" sync, "d" displaced (stale)
    ms_per_step: float = 0.0  # median of the slowest rank's finished steps
    seconds_left: float = 0.0
    lanes: tuple[Lane, ...] = ()
    preview: str | None = None  # JPEG data URI, at most 320 px a side
    picture: str | None = None  # path of the PNG, once done
    pictures: tuple[str, ...] = ()  # all of them, when more than one was asked for
    report: dict[str, Any] | None = None  # as `generate --report` writes it, once done
    request: dict[str, Any] = field(default_factory=dict)  # resolved GenerationRequest: seed and size are numbers
    config: dict[str, Any] = field(default_factory=dict)  # DistriConfig

    @property
    def final(self) -> bool:
        """Whether nothing will follow."""
        return self.state in ("done", "cancelled", "failed")


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What runs, for the header and the defaults of the controls."""

    name: str  # "embedded demo model", "stabilityai/stable-diffusion-xl-base-1.0"
    path: str
    demo: bool
    default_size: int  # pixels a side
    size_multiple: int  # sides must be multiples of this
    max_pixels: int  # height x width at most


@dataclass(frozen=True, kw_only=True)
class Status:
    """The group at this moment."""

    state: str  # boot, joining, idle, preparing, running, draining, rejoin, dead
    message: str
    ranks: int
    device: str  # "CPU", "NVIDIA H200"
    model: ModelInfo | None  # None until the weights are loaded
    queue: int  # requests waiting
    restarts: int
    last_error: str = ""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One finished picture in the history, newest first in `Client.history`."""

    id: str
    finished: float  # Unix time
    state: str  # done, cancelled, failed
    request: dict[str, Any]
    config: dict[str, Any]
    picture: str | None
    report: dict[str, Any] | None
    message: str = ""
    visitor: str = ""
    comparison: str = ""  # the same for the pictures of one compare run
