"""What a rank tells about its work: events of a running picture, and the meter behind their figures. No torch here,
so that the control plane can name the events without loading it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineInfo:
    """What is loaded."""

    name: str  # for people: "embedded demo model", or the id or folder that was asked for
    path: str  # folder or model id
    demo: bool  # whether it is the embedded model
    default_size: int  # pixels a side
    size_multiple: int  # sides must be multiples of this: 8 x 2^(UNet levels - 1)
    max_pixels: int  # height x width at most
    device: str  # "CPU", or the name of the GPU


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """Everything local to this rank is ready; no message has been exchanged yet."""

    memory_mb: float  # resident memory of this process (CPU) or allocated device memory (CUDA), MiB
    box: tuple[int, int, int, int] | None = None  # left, top, right, bottom in picture pixels of this rank's patch
    branch: str = "both"  # guidance branch this rank runs: both, unconditional, conditional, none (rank not used)


@dataclass(frozen=True, kw_only=True)
class StepDone:
    """One denoising step of this rank is finished: one timestep, or with paradigms one Picard iteration.

    After the step in which `converged` reaches `steps` comes Finished, however few steps that took.
    """

    step: int  # 0-based
    steps: int  # how many timesteps the picture takes: the most steps that it can need
    converged: int  # how many of its timesteps are done, the same on every rank
    evaluations: int  # how many timesteps this rank ran the UNet on in this step
    phase: str  # "sync" or "stale"
    compute_ms: float  # wall time of the step less the exposed wait
    wait_ms: float  # wall time spent waiting for peers ("exposed" communication)
    sent_bytes: int  # payload this rank sent to its peers in this step
    memory_mb: float
    buffer_mb: float = 0.0  # MiB of it that hold activations of peers and messages to them
    load: float | None = None  # percent of one core that this process used since the picture began, or of the GPU
    # |k(t) - k(t-1)| / |k(t)| of one layer's keys on this rank's rows: what stale values are off by. None in the first
    # step, and where ranks do not see each other's activations.
    change: float | None = None
    latents: Any = None  # rank 0: clean latents as foreseen by the last timestep done, [images, 4, H/8, W/8]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The picture is done. `images` holds PIL pictures on rank 0 and is empty elsewhere."""

    images: list[Any] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)  # "text", "denoise", "decode"


Event = Prepared | StepDone | Finished


class Meter:
    """Adds up one step's exposed wait and sent bytes. Written by the exchange, read by the engine after each step."""

    def __init__(self) -> None:
        self.wait_s = 0.0
        self.sent_bytes = 0

    def reset(self) -> None:
        """Start of a step."""
        self.wait_s = 0.0
        self.sent_bytes = 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Times a wait for peers."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.wait_s += time.perf_counter() - start
