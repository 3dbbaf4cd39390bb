"""What happened, written down: a rotated file for each process in the run directory, whose every line names the request
that it is about. No prompt stands in them; what visitors are told is the business of whoever tells them.
"""

from __future__ import annotations

import logging
import logging.handlers
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

FOLDER = "logs"
BYTES, KEPT = 2**20, 3  # of a file, and how many older ones are kept
_request: ContextVar[str] = ContextVar("request", default="-")


def keep(run_dir: Path, name: str) -> None:
    """From now on this process writes to `name`.log, and on the terminal its own warnings and anybody's errors.

    One process at a time has that name. What it inherited over a fork is left to its parent.
    """
    root = logging.getLogger()
    for inherited in list(root.handlers):
        root.removeHandler(inherited)
        inherited.close()
    folder = run_dir / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(folder / f"{name}.log", maxBytes=BYTES, backupCount=KEPT)
    file.setFormatter(_Lines(name))
    terminal = logging.StreamHandler()
    terminal.setFormatter(logging.Formatter("DistriFusion Live: %(message)s"))
    terminal.addFilter(
        lambda one: one.levelno >= (logging.WARNING if one.name.startswith("launcher") else logging.ERROR)
    )
    root.addHandler(file)
    root.addHandler(terminal)
    logging.getLogger("launcher").setLevel(logging.INFO)
    logging.raiseExceptions = False  # a full disk costs lines, and nothing else


@contextmanager
def about(req: str) -> Iterator[None]:
    """What this thread logs meanwhile is about this request."""
    token = _request.set(req)
    try:
        yield
    finally:
        _request.reset(token)


class _Lines(logging.Formatter):
    """Every line, those of a traceback too, begins with time, level, process and request."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def format(self, record: logging.LogRecord) -> str:
        when = f"{self.formatTime(record, '%Y-%m-%dT%H:%M:%S')}.{int(record.msecs):03}"
        head = f"{when} {record.levelname} {self._name}[{record.process}] {_request.get()} "
        return "\n".join(head + line for line in super().format(record).splitlines())
