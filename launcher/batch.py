"""A torchrun group that a command starts for its own work: starting it, following what its engine does, and one
sentence about what went wrong. What the ranks do is the command's business.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from distri_engine.telemetry import Event, Finished, StepDone
from launcher.process import die_with, reason
from launcher.start import rank_environment, torchrun_command

LOG = "log"  # in the run directory: what torchrun and the ranks say on stderr
_ERROR = "error.json"
_KILLED = re.compile(r"rank +: (\d+) \(local_rank.*\n +exitcode +: -(\d+)")  # torchrun's summary


class Failed(RuntimeError):
    """The work could not be done; the message is for people."""


def start_group(run_dir: Path, ranks: int, device: str, script: Sequence[str]) -> subprocess.Popen[bytes]:
    """torchrun with `ranks` processes of `script`, which end with this process."""
    command = torchrun_command(run_dir, ranks, script, restarts=0)
    return start_logged(command, rank_environment(run_dir, ranks, device), run_dir / LOG)


def start_logged(command: Sequence[str], env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """A process that ends with this one and says on `log` what it would say on stderr."""
    with log.open("wb") as noise:
        return subprocess.Popen(command, env=env, stderr=noise, preexec_fn=partial(die_with, os.getpid()))


def check_group(run_dir: Path, code: int) -> None:
    """Raise what a group that ended with exit code `code` failed of: ValueError for wrong input, else Failed."""
    text = (run_dir / LOG).read_text(errors="replace")
    if killed := [(rank, number) for rank, number in _KILLED.findall(text) if int(number) != signal.SIGTERM]:
        rank, number = killed[0]  # what its peers say is only that it went away
        raise Failed(f"rank {rank} {killed_by(int(number))}")
    check_noted(run_dir)
    if code:
        raise Failed(f"the group ended before its work was done: {last_line(run_dir / LOG) or f'exit code {code}'}")


def killed_by(number: int) -> str:
    """What happened to a process that a signal ended."""
    return f"was killed by signal {number}; out of memory is the usual reason for 9"


def last_line(log: Path) -> str:
    """What was said last; empty if nothing was."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


def check_noted(run_dir: Path) -> None:
    """Raise what `noting_errors` noted first."""
    with suppress(FileNotFoundError):
        kind, message = json.loads((run_dir / _ERROR).read_text())
        raise ValueError(message) if kind == "value" else Failed(message)


@contextmanager
def noting_errors(run_dir: Path) -> Iterator[None]:
    """In a process of the group: note what ends it. The first note counts: that error takes the other ranks along."""
    try:
        yield
    except Exception as error:
        with suppress(FileExistsError), (run_dir / _ERROR).open("x") as file:
            json.dump(["value" if isinstance(error, ValueError) else "other", reason(error)], file)
        raise


def follow(events: Iterator[Event], *, show: bool = False) -> tuple[list[StepDone], Finished]:
    """Run an engine's picture to its end; `show` has its steps counted on the terminal."""
    steps = []
    for event in events:
        if isinstance(event, StepDone):
            steps.append(event)
            if show:
                print(f"\rstep {event.converged} / {event.steps} ", end="", flush=True)
        elif isinstance(event, Finished):
            if show:
                print("\r\033[K", end="", flush=True)
            return steps, event
    raise AssertionError("the engine's events end with Finished")
