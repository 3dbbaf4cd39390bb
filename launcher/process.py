"""What every process that holds an engine does first, and the engine that it loads. What it then does with it is the
business of worker.py and generate.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from distri_engine.errors import EngineError
from launcher.options import usable_cores

if TYPE_CHECKING:
    from distri_engine.engine import Engine

MakeEngine = Callable[[str, str, int, int, str], "Engine"]  # model, device, rank, world size, text_encoder_on
AGENT_PID = "DISTRI_AGENT_PID"
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_TRIM, _MMAP = 256 << 20, 32 << 20  # bytes; what is larger than _MMAP is mapped by itself, as always


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the kernel knew
        os._exit(1)


def parent_of(pid: int) -> int:
    """The process id of the parent of `pid`. Raises OSError if there is no such process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def die_with_agent() -> None:
    """First statement of what the agent starts. The agent may be gone by then: its process id is in the environment."""
    die_with(int(os.environ.get(AGENT_PID, os.getppid())))


def is_agent(pid: int) -> bool:
    """Whether `pid` is the agent that started us: on several nodes it passes on what the other nodes' ranks say."""
    return str(pid) == os.environ.get(AGENT_PID)


def exit_on_sigterm() -> None:
    """Have SIGTERM end this process as an exception would, so that it cleans up.

    Not for ranks: one that is blocked in a collective would not hear it.
    """

    def leave(number: int, _: FrameType | None) -> NoReturn:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def load_engine(model: str, device: str, rank: int, world_size: int, text_encoder_on: str) -> Engine:
    """The real engine, with this machine's cores divided among the ranks."""
    import torch

    from distri_engine.engine import Engine

    keep_freed_memory()
    torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", world_size))))
    return Engine(model, device=device, rank=rank, world_size=world_size, text_encoder_on=text_encoder_on)


def keep_freed_memory() -> None:
    """Have malloc keep what is freed for the next tensor. By default it gives activations back to the kernel and takes
    them again, thousands of pages a step, each cleared anew: a tenth of a step's time. Another libc goes on as it does.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, _MMAP)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM)


def freeze_garbage_collector() -> None:
    """Have later collections skip what is loaded now, which never becomes garbage: leaving a group collects."""
    gc.collect()
    gc.freeze()


def reason(error: Exception) -> str:
    """What to tell people about an exception: its first line, without the traceback."""
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else type(error).__name__
    return (text if isinstance(error, (ValueError, EngineError)) else f"{type(error).__name__}: {text}")[:500]
