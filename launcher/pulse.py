"""Whether a forked rank still does anything, as its zygote sees it: a counter in memory that they share, and what the
kernel says of the process. What becomes of one that does nothing is zygote.py's business.

Only looks count, never a clock: a machine that was suspended, or a container that was frozen, stopped the looking, too.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from pathlib import Path

LOOK_S = 1.0  # between two looks
STOPPED = 3  # looks in a row at a process that somebody has stopped
SILENT = 120  # looks in a row without a beat: whatever holds rank 0's hub up for so long will not let go of it


class Pulse:
    """Made before the fork: the rank `beat`s, if it is one that does, and its zygote `look`s."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 8)  # shared over a fork
        self._count = 0
        self._seen = bytes(8)
        self._halted = False
        self._stopped = self._silent = 0

    def beat(self) -> None:
        """The rank is alive. A rank that never says so is not expected to."""
        self._count += 1
        self._memory[:] = self._count.to_bytes(8, "little")

    def look(self, pid: int) -> str:
        """Look at the rank, every LOOK_S seconds. Returns why it is to be given up; empty: it is not."""
        change = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WCONTINUED | os.WNOHANG)
        if change is not None:
            self._halted = change.si_code == os.CLD_STOPPED
        self._stopped = self._stopped + 1 if self._halted else 0
        seen = bytes(self._memory)
        self._silent = self._silent + 1 if seen == self._seen and any(seen) else 0
        self._seen = seen
        if self._stopped >= STOPPED:
            return "was stopped (SIGSTOP) and did not go on"
        if self._silent >= SILENT and state_of(pid) == "t":
            self._silent = 0  # a debugger may take its time
        return f"gave no sign of life for {SILENT * LOOK_S:.0f} s" if self._silent >= SILENT else ""


def state_of(pid: int) -> str:
    """The kernel's letter for the state of `pid`: S sleeps, T stopped, t traced, ...; empty if there is no process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    return ""
