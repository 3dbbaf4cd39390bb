"""A running `python app.py` for tests and screenshots; nothing of it survives the `with` block."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.processes import alive, descendants, free_port, until

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class RealApp:
    """A running app.py."""

    url: str
    process: subprocess.Popen[bytes]  # torchrun's agent, whose children are the ranks
    log: Path  # what it says on its terminal


@contextmanager
def real_app(folder: Path, *options: str, env: dict[str, str] | None = None) -> Iterator[RealApp]:
    """Start app.py with `options`, pictures in `folder`/outputs, and yield it once the port answers."""
    port, log = free_port(), folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "app.py", "--port", str(port), *options],
            cwd=ROOT,
            env={**os.environ, "DISTRI_DATA": str(folder / "outputs"), **(env or {})},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    url = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"app.py ended with {process.returncode}: {log.read_text()}")
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=20):
            return True
        return False

    try:
        until(answers, 240)
        yield RealApp(url=url, process=process, log=log)
    finally:
        pids = [process.pid, *descendants(process.pid)]
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        until(lambda: not any(map(alive, pids)), 40)
