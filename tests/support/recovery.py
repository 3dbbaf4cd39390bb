"""How long a running `python app.py` takes to get over a fault: the embedded model, two CPU ranks, no browser. The
README's table is made by `python -m tests.support.recovery`; measure where nothing else runs.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from launcher.zygote import SHORT_S
from tests.support.processes import alive, cpu_seconds, descendants, listeners, rank_pid, until, zygote_pid
from tests.support.real_app import RealApp, real_app

PICTURE = {"prompt": "a red house", "seed": 5, "height": 256, "width": 256, "steps": 40, "split_batch": False}
PATIENCE_S = 120.0


class Patient:
    """A running app.py, what it answers and which processes it consists of."""

    def __init__(self, running: RealApp, folder: Path) -> None:
        self.url, self.agent = running.url, running.process.pid
        self._journal = folder / "outputs" / "journal.jsonl"

    def health(self) -> dict[str, Any]:
        """What /healthz says; nothing while nobody answers."""
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            try:
                with urllib.request.urlopen(f"{self.url}healthz", timeout=2) as answer:
                    return dict(json.load(answer))
            except urllib.error.HTTPError as away:
                return dict(json.load(away))
        return {}

    def served(self) -> bool:
        """Whether the page itself comes."""
        with contextlib.suppress(OSError, http.client.HTTPException), urllib.request.urlopen(self.url, timeout=2):
            return True
        return False

    def journal(self, entry: str) -> list[dict[str, Any]]:
        """Its lines of one kind."""
        lines = self._journal.read_text().splitlines() if self._journal.exists() else []
        return [line for line in map(json.loads, lines) if line["entry"] == entry]

    def start(self) -> None:
        """A picture, under way when this returns."""
        from gradio_client import Client

        tried = len(self.journal("try"))
        Client(self.url, verbose=False, analytics_enabled=False).submit(**PICTURE, api_name="/generate")
        until(lambda: len(self.journal("try")) > tried and self._stepped_s_ago() < 0.5, PATIENCE_S)

    def _stepped_s_ago(self) -> float:
        age = self.health().get("last_step_age")
        return PATIENCE_S if age is None else float(age)

    def fall_ill(self, fault: Callable[[], None], *, busy: bool) -> dict[str, float]:
        """Seconds from `fault` until the page is served anew, and until pictures are made, or the one under way is."""
        until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        time.sleep(SHORT_S)  # what dies sooner again and again is started again after a pause
        if busy:
            self.start()
        restarts, finished = self.health()["restarts"], len(self.journal("finished"))
        began = time.monotonic()
        fault()
        until(lambda: self.health().get("restarts", restarts) > restarts and self.served(), PATIENCE_S)
        seconds = {"page": time.monotonic() - began}
        if busy:
            until(lambda: len(self.journal("finished")) > finished, PATIENCE_S)
            assert self.journal("finished")[-1]["state"] == "done"
        else:
            until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        return seconds | {"picture" if busy else "ready": time.monotonic() - began}


def main() -> None:
    """Print the median of every fault's times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        with real_app(Path(folder), "--ranks", "2", "--device", "cpu") as running:
            patient = Patient(running, Path(folder))
            print(f"cold start: page {time.monotonic() - began:.1f} s", end=", ")
            until(lambda: patient.health().get("state") == "ready", PATIENCE_S)
            print(f"ready {time.monotonic() - began:.1f} s", flush=True)

            def kill(pid: Callable[[], int], how: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
                return lambda: os.kill(pid(), how)

            faults: dict[str, tuple[Callable[[], None], bool]] = {
                "kill -9 of rank 1, idle": (kill(lambda: rank_pid(patient.agent, 1)), False),
                "kill -9 of rank 0, idle": (kill(lambda: rank_pid(patient.agent, 0)), False),
                "kill -9 of rank 1, at work": (kill(lambda: rank_pid(patient.agent, 1)), True),
                "kill -9 of rank 0, at work": (kill(lambda: rank_pid(patient.agent, 0)), True),
                "rank 1 stopped (SIGSTOP), at work": (kill(lambda: rank_pid(patient.agent, 1), signal.SIGSTOP), True),
                "kill -9 of rank 1's zygote, idle": (kill(lambda: zygote_pid(patient.agent, 1)), False),
            }
            for name, (fault, busy) in faults.items():
                found = [patient.fall_ill(fault, busy=busy) for _ in range(words.times if words.only in name else 0)]
                for what in found[0] if found else ():
                    seconds = sorted(one[what] for one in found)
                    print(f"{name}: {what} {median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})", flush=True)
            undisturbed(patient)
            time.sleep(10)  # groups are left after 2 s, and the machine is measured
            pids = [running.process.pid, *descendants(running.process.pid)]
            print("listeners:", sorted(listeners(pids)))
            before = {pid: cpu_seconds(pid) for pid in pids}
            time.sleep(20)
            print("idle CPU, %:", {pid: round((cpu_seconds(pid) - before[pid]) / 0.2, 3) for pid in pids if alive(pid)})
            began = time.monotonic()
            running.process.terminate()
            code = running.process.wait(20)
            print(f"SIGTERM: {time.monotonic() - began:.2f} s, exit code {code}, left: {sum(map(alive, pids))}")


def undisturbed(patient: Patient) -> None:
    """Say how long the picture takes when nothing happens, and whether all pictures so far were the same."""
    finished = len(patient.journal("finished"))
    began = time.monotonic()
    patient.start()
    until(lambda: len(patient.journal("finished")) > finished, PATIENCE_S)
    pictures = {Path(line["pictures"][0]).read_bytes() for line in patient.journal("finished")}
    print(f"the picture undisturbed: {time.monotonic() - began:.1f} s; different pictures so far: {len(pictures)}")


if __name__ == "__main__":
    main()
