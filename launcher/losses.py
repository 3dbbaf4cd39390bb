"""What one generation of the group leaves in the run directory for the next: why it ended, and whether it ever worked.
Deciding that a group has to end is hub.py's business, starting the next one zygote.py's.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

EXIT_LOST = 4  # exit code of every process of a group that lost a rank
STARTS = 5  # so many in a row that came to nothing are no accident


def forget(run_dir: Path) -> None:
    """A run begins: what an older one left in the directory does not concern it."""
    for name in ("generations", "started", "lost-*"):
        for old in run_dir.glob(name):
            old.unlink()


def next_generation(run_dir: Path) -> int:
    """The number of the generation that begins now, from 0. Counted in a file: it outlives who starts them."""
    count = run_dir / "generations"
    number = int(count.read_text()) if count.exists() else 0
    count.write_text(str(number + 1))
    return number


def die_noted(run_dir: Path, generation: int) -> Callable[[str], None]:
    """A `die` that leaves its reason for the next generation and ends this process, whatever its threads do."""

    def die(reason: str) -> None:
        note_loss(run_dir, generation, reason)
        os._exit(EXIT_LOST)

    return die


def note_loss(run_dir: Path, generation: int, reason: str) -> None:
    """Leave the reason of `generation`'s end for its successor; the first reason is the one that counts."""
    with contextlib.suppress(FileExistsError), _note(run_dir, generation).open("x") as note:
        note.write(reason)


def note_ends(run_dir: Path, generation: int, ends: Mapping[int, int | None]) -> None:
    """Every rank of `generation` is gone. Add to the reason how its rank ended, or make one if nobody was left to.

    `ends` are exit codes by rank, in the order in which they were known, negative for signals; None: killed on order.
    """
    said = last_loss(run_dir, generation + 1)
    by_itself = {rank: code for rank, code in ends.items() if code not in (None, EXIT_LOST)}
    if not said:
        rank, code = next(iter((by_itself or ends).items()))
        said = f"rank {rank} {how(code)}"
    else:
        said += "".join(f": it {how(code)}" for rank, code in by_itself.items() if said.startswith(f"rank {rank} "))
    _note(run_dir, generation).write_text(said)
    _note(run_dir, generation - 1).unlink(missing_ok=True)


def last_loss(run_dir: Path, generation: int) -> str:
    """Why the generation before `generation` ended; empty if nobody said."""
    with contextlib.suppress(FileNotFoundError):
        return _note(run_dir, generation - 1).read_text()
    return ""


def _note(run_dir: Path, generation: int) -> Path:
    return run_dir / f"lost-{generation}"


def how(code: int | None) -> str:
    """The words for an exit code as `note_ends` takes them."""
    if code is None:
        return "had to be killed"
    return f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"


def note_start(run_dir: Path, generation: int) -> None:
    """`generation` has all its ranks."""
    (run_dir / "started").write_text(str(generation))


def failed_starts(run_dir: Path, generation: int) -> int:
    """How many generations in a row, up to and including this one, never had all their ranks."""
    return generation - last_start(run_dir)


def last_start(run_dir: Path) -> int:
    """The last generation that had all its ranks; -1: none yet."""
    with contextlib.suppress(FileNotFoundError):
        return int((run_dir / "started").read_text())
    return -1


def check_starts(run_dir: Path, generation: int) -> None:
    """Raise ValueError if the last STARTS groups ended before they had all their ranks: this one would, too."""
    if failed_starts(run_dir, generation - 1) >= STARTS:
        raise ValueError(
            f"the group ended {STARTS} times in a row before it was ready, the last time because: "
            f"{last_loss(run_dir, generation) or 'a rank failed'}. Mend that, then start the program again"
        )
