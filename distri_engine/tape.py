"""A step put down once and replayed: pieces that the device runs by itself, and between them what Python does anew each
time. The only file that captures CUDA graphs; which steps are recorded, and from where they read, is graphs.py's
business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol, TypeVar
from weakref import WeakSet

import torch

Action = Callable[[], None]
Result = TypeVar("Result")


class Recorder(Protocol):
    """Puts down the device's work between `begin` and `end`, without doing it. Python's part of it is not put down."""

    def recording(self) -> AbstractContextManager[None]:
        """Around all pieces of a step; what an exception leaves unfinished is given up."""

    def begin(self) -> None:
        """A piece begins."""

    def end(self) -> Action:
        """It ends here; what does its work, as often as it is called, reading and writing the same memory each time."""


class CudaRecorder:
    """CUDA graphs."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # work on the default one cannot be captured
        self._graph: torch.cuda.CUDAGraph | None = None  # that is being captured
        self._alive: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self._pool: Any = None

    @contextmanager
    def recording(self) -> Iterator[None]:
        """As torch.cuda.graph does, for several graphs in turn."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            try:
                yield
            except BaseException:
                if self._graph is not None:
                    with suppress(RuntimeError):  # a capture that failed says so again when it is ended
                        self._graph.capture_end()
                raise
            finally:
                self._graph = None

    def begin(self) -> None:
        """Start a graph."""
        # One pool for all: graphs of one model never run at the same time, and leave nothing in it that is read after
        # another one has run. A pool whose graphs are all gone cannot be used again.
        if not self._alive:
            self._pool = torch.cuda.graph_pool_handle()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may do as they like: one watches over messages, another one draws previews.
        self._graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
        self._alive.add(self._graph)

    def end(self) -> Action:
        """Finish it."""
        graph, self._graph = self._graph, None
        assert graph is not None
        graph.capture_end()
        return graph.replay


def recorder_for(device: torch.device) -> Recorder | None:
    """What records steps on `device`; None where steps just run."""
    return CudaRecorder(device) if device.type == "cuda" else None


class Tape:
    """One step."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._parts: list[Action] = []

    def record(self, step: Callable[[], Result]) -> Result:
        """Call `step`, of which nothing happens yet; what it returns is filled by `replay`."""
        with self._recorder.recording():
            self._recorder.begin()
            result = step()
            self._parts.append(self._recorder.end())
        return result

    def cut(self, action: Action) -> None:
        """Within `record`: have `replay` call `action` at this point."""
        self._parts += [self._recorder.end(), action]
        self._recorder.begin()

    def replay(self) -> None:
        """Do the step."""
        for part in self._parts:
            part()
