"""What the page sees of the launcher, and parameters as plain dicts. Free of torch; what the hub and the ranks tell
each other is the business of messages.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest


class Refused(RuntimeError):
    """A request that cannot be accepted now; the message is for people."""


# --- what the page sees -------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Lane:
    """One rank's work on the running picture, as the page draws it."""

    rank: int
    device: str  # "CPU", "NVIDIA H200"
    box: tuple[int, int, int, int] | None  # left, top, right, bottom in picture pixels; None while resting
    branch: str  # "both", "unconditional", "conditional", "none" (this method does not use the rank)
    step: int  # timesteps that are done
    compute_ms: float  # of the last finished step
    wait_ms: float  # exposed wait of the last finished step
    sent_bytes: int  # in the last finished step
    memory_mb: float
    buffer_mb: float = 0.0  # of it, what holds activations of peers and messages to them; after the last step
    load: float | None = None  # percent of one core (CPU) or of the GPU since the picture began; None: unknown
    median_ms: float  # median compute + wait over this picture's finished steps
    history: tuple[tuple[float, float], ...] = ()  # (compute_ms, wait_ms) of every finished step of the engine


@dataclass(frozen=True, kw_only=True)
class Update:
    """The state of one request, complete in itself: a later update replaces an earlier one."""

    id: str
    state: str  # queued, starting, running, decoding, done, cancelled, failed, lost (group died, queued again)
    message: str  # one sentence for people, no traceback
    position: int = 0  # place in the queue; 0 when it runs
    attempt: int = 1  # 2 after the group died once
    step: int = 0  # timesteps that are done; a step of the engine may do several at once
    steps: int = 0  # timesteps of the whole picture
    phases: str = ""  # one letter per finished step of the engine: "S" sync, "d" displaced (stale)
    # How far activations moved in each finished step of the engine, relative to their size; mean of the ranks, None
    # where nobody knows.
    changes: tuple[float | None, ...] = ()
    ms_per_step: float = 0.0  # for one timestep: median of the slowest rank's finished steps
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
    last_step_age: float | None = None  # seconds since a rank finished a step, to half a second; None: none did yet


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


# --- parameters ---------------------------------------------------------------------------------------------------


def as_request(parameters: Mapping[str, Any]) -> GenerationRequest:
    """The picture to make, from a frame, a file or a page. Raises ValueError for unknown names and bad values."""
    return _as(GenerationRequest, "request", parameters)


def as_config(parameters: Mapping[str, Any]) -> DistriConfig:
    """How to parallelise it. Raises ValueError for unknown names and bad values."""
    return _as(DistriConfig, "config", parameters)


def _as(kind: Any, name: str, parameters: Mapping[str, Any]) -> Any:
    if unknown := sorted(parameters.keys() - {spec.name for spec in fields(kind)}):
        raise ValueError(f"unknown {name} option {unknown[0]!r:.80}; known: {', '.join(f.name for f in fields(kind))}")
    try:
        return kind(**parameters)
    except TypeError as error:
        raise ValueError(f"the {name} is incomplete: {error}") from None


def as_parameters(value: GenerationRequest | DistriConfig) -> dict[str, Any]:
    """The plain dict that `as_request` or `as_config` reads back, and that JSON leaves as it is."""
    return {name: list(part) if isinstance(part, tuple) else part for name, part in asdict(value).items()}
