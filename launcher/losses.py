"""What one generation of the group leaves in the run directory for the next: why it ended, and whether it ever worked.
Deciding that a group has to end is hub.py's business, starting the next one torchrun's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

EXIT_LOST = 4  # exit code of every process of a group that lost a rank
STARTS = 5  # so many in a row that came to nothing are no accident


def die_noted(run_dir: Path) -> Callable[[str], None]:
    """A `die` that leaves its reason for the next generation and ends this process, whatever its threads do."""

    def die(reason: str) -> None:
        note_loss(run_dir, reason)
        os._exit(EXIT_LOST)

    return die


def note_loss(run_dir: Path, reason: str) -> None:
    """Leave the reason of a group's end for its successor; the first reason of a death is the one that counts."""
    note = run_dir / "lost"
    try:
        if time.time() - note.stat().st_mtime < 2:
            return
    except FileNotFoundError:
        pass
    note.write_text(reason)


def last_loss(run_dir: Path) -> str:
    """Why the previous group ended; empty if there was none."""
    with contextlib.suppress(FileNotFoundError):
        return (run_dir / "lost").read_text()
    return ""


def note_start(run_dir: Path, restarts: int) -> None:
    """The group that was started for the `restarts`-th time again has all its ranks."""
    (run_dir / "started").write_text(str(restarts))


def check_starts(run_dir: Path, restarts: int) -> None:
    """Raise ValueError if the last STARTS groups ended before they had all their ranks: this one would, too."""
    last = -1
    with contextlib.suppress(FileNotFoundError):
        last = int((run_dir / "started").read_text())
    if restarts - last - 1 >= STARTS:
        raise ValueError(
            f"the group ended {STARTS} times in a row before it was ready, the last time because: "
            f"{last_loss(run_dir) or 'a rank failed'}. Mend that, then start the program again"
        )
