"""Faults on purpose, for tests and rehearsals: DISTRI_FAULT="die:1@6,once" has rank 1 kill itself when it has finished
step 6. Off unless the variable is set; what becomes of a fault is the business of everybody else.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "DISTRI_FAULT"
KINDS = ("die", "raise", "stop", "slow", "garbage")
SLOW_S = 2.0  # less than the hub's patience: slow is not lost
_FORM = re.compile(r"([a-z]+):(\d{1,4})@(-1|\d{1,4})(,once)?")


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One thing that goes wrong: `kind` on `rank` after `step` (-1: prepared), at every attempt or `once` in a run."""

    kind: str
    rank: int
    step: int
    once: bool


def planned(env: Mapping[str, str] = os.environ) -> tuple[Fault, ...]:
    """The faults that DISTRI_FAULT asks for, several between semicolons. Raises ValueError; also where guests are."""
    text = env.get(VARIABLE, "")
    if text and env.get("SPACE_ID"):
        raise ValueError(f"{VARIABLE} is for tests and not for a Space, whose visitors would lose pictures; remove it")
    return tuple(_parse(word) for word in text.split(";")) if text else ()


def _parse(word: str) -> Fault:
    match = _FORM.fullmatch(word.strip())
    if match is None or match[1] not in KINDS:
        raise ValueError(
            f"{VARIABLE} {word!r:.80} is not KIND:RANK@STEP or KIND:RANK@STEP,once; kinds: {', '.join(KINDS)}"
        )
    return Fault(kind=match[1], rank=int(match[2]), step=int(match[3]), once=bool(match[4]))


class Faults:
    """What is planned for one rank. `run_dir` remembers across restarts what has happened once."""

    def __init__(self, rank: int, run_dir: Path, sock: socket.socket) -> None:
        self._planned = [(number, fault) for number, fault in enumerate(planned()) if fault.rank == rank]
        self._run_dir = run_dir
        self._sock = sock

    def strike(self, step: int) -> None:
        """This rank has finished `step`: let what is planned for it happen. Raises RuntimeError if that is to raise."""
        for number, fault in self._planned:
            if fault.step == step and not (fault.once and self._happened(number)):
                self._happen(fault)

    def _happened(self, number: int) -> bool:
        try:
            (self._run_dir / f"fault-{number}").touch(exist_ok=False)
        except FileExistsError:
            return True
        return False

    def _happen(self, fault: Fault) -> None:
        match fault.kind:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "slow":
                time.sleep(SLOW_S)
            case "garbage":
                self._sock.send(b"garbage")
            case "raise":
                raise RuntimeError(f"{VARIABLE} asked for this after step {fault.step}")
