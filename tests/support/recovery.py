"""How long a running `python app.py` takes to get over a fault: the embedded model, two CPU ranks, no browser. The
README's table is made by `python -m tests.support.recovery`; measure where nothing else runs. `--only WORD` measures
the rows whose name has it.
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

from launcher.faults import VARIABLE
from launcher.losses import STARTS
from launcher.zygote import SHORT_S
from tests.support.processes import alive, cpu_seconds, descendants, listeners, rank_pid, run_dir, until, zygote_pid
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

    def start(self, **changes: int) -> None:
        """A picture, under way when this returns."""
        from gradio_client import Client

        tried = len(self.journal("try"))
        Client(self.url, verbose=False, analytics_enabled=False).submit(**{**PICTURE, **changes}, api_name="/generate")
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

    def raises(self) -> dict[str, float]:
        """Seconds from the end of a picture in which a rank raises until the next one could be made."""
        until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        failed = len(self.journal("finished"))
        self.start(steps=PICTURE["steps"] + 1)
        until(lambda: len(self.journal("finished")) > failed, PATIENCE_S)
        began = time.monotonic()
        assert self.journal("finished")[-1]["state"] == "failed"
        until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        return {"ready": time.monotonic() - began}

    def dies_twice(self, fault: Callable[[], None]) -> dict[str, float]:
        """Seconds from the second death in one picture until it has failed, and until pictures are made."""
        until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        time.sleep(SHORT_S)
        tried, finished = len(self.journal("try")), len(self.journal("finished"))
        self.start()
        fault()
        until(lambda: len(self.journal("try")) == tried + 2 and self._stepped_s_ago() < 0.5, PATIENCE_S)
        began = time.monotonic()
        fault()
        until(lambda: len(self.journal("finished")) > finished, PATIENCE_S)
        seconds = {"failed": time.monotonic() - began}
        assert self.journal("finished")[-1]["state"] == "failed"
        until(lambda: self.health().get("state") == "ready", PATIENCE_S)
        return seconds | {"ready": time.monotonic() - began}


def kill(pid: Callable[[], int], how: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A fault."""
    return lambda: os.kill(pid(), how)


def ills(patient: Patient) -> dict[str, Callable[[], dict[str, float]]]:
    """What one program gets over, by name: functions that inflict it and say how long that took."""

    def rank(number: int) -> Callable[[], int]:
        return lambda: rank_pid(patient.agent, number)

    stop, zygote = signal.SIGSTOP, lambda: zygote_pid(patient.agent, 1)
    return {
        "exception on rank 1, at work": patient.raises,
        "kill -9 of rank 1, idle": lambda: patient.fall_ill(kill(rank(1)), busy=False),
        "kill -9 of rank 0, idle": lambda: patient.fall_ill(kill(rank(0)), busy=False),
        "kill -9 of rank 1, at work": lambda: patient.fall_ill(kill(rank(1)), busy=True),
        "kill -9 of rank 0, at work": lambda: patient.fall_ill(kill(rank(0)), busy=True),
        "kill -9 of rank 1, at work, twice": lambda: patient.dies_twice(kill(rank(1))),
        "rank 1 stopped (SIGSTOP), idle": lambda: patient.fall_ill(kill(rank(1), stop), busy=False),
        "rank 1 stopped (SIGSTOP), at work": lambda: patient.fall_ill(kill(rank(1), stop), busy=True),
        "rank 0 stopped (SIGSTOP), at work": lambda: patient.fall_ill(kill(rank(0), stop), busy=True),
        "kill -9 of rank 1's zygote, idle": lambda: patient.fall_ill(kill(zygote), busy=False),
    }


def ends(folder: Path, how: str) -> dict[str, float]:
    """Start the program, and end it: how long both took."""
    began = time.monotonic()
    with real_app(folder, "--ranks", "2", "--device", "cpu") as running:
        patient = Patient(running, folder)
        seconds = {"page": time.monotonic() - began}
        until(lambda: patient.health().get("state") in ("ready", "busy"), PATIENCE_S)
        seconds["ready"] = time.monotonic() - began
        pids = descendants(running.process.pid)
        if how == "five starts that come to nothing":
            time.sleep(SHORT_S)
            began, victim = time.monotonic(), 0
            while patient.health().get("state") != "dead":
                with contextlib.suppress(ProcessLookupError):
                    if (pid := rank_pid(patient.agent, 1)) != victim and losses_of(pid) <= STARTS:
                        os.kill(victim := pid, signal.SIGKILL)
            return {"the page says so": time.monotonic() - began}
        if "at work" in how:
            patient.start()
        began = time.monotonic()
        running.process.send_signal(signal.SIGTERM if how.startswith("SIGTERM") else signal.SIGKILL)
        running.process.wait(PATIENCE_S)
        until(lambda: not any(map(alive, pids)), PATIENCE_S)
        return seconds | {"all gone": time.monotonic() - began}


def losses_of(pid: int) -> int:
    """How many generations have begun after the first one."""
    return int((run_dir(pid) / "generations").read_text()) - 1


def show(name: str, found: list[dict[str, float]]) -> None:
    """One row: medians, and the range."""
    for what in found[0] if found else ():
        seconds = sorted(one[what] for one in found)
        print(f"{name}: {what} {median(seconds):.2f} s ({seconds[0]:.2f} to {seconds[-1]:.2f})", flush=True)


def main() -> None:
    """Print the median of every fault's times, who listens, and what idling costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--only", default="", help="faults whose name has this in it")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for how in ("SIGTERM, at work", "kill -9 of torchrun, at work", "five starts that come to nothing"):
            show(how, [ends(Path(folder), how) for _ in range(words.times if words.only in how else 0)])
    plan = {VARIABLE: ";".join([f"raise:1@{PICTURE['steps']},once"] * words.times)}
    with (
        tempfile.TemporaryDirectory() as folder,
        real_app(Path(folder), "--ranks", "2", "--device", "cpu", env=plan) as running,
    ):
        patient = Patient(running, Path(folder))
        for name, ill in ills(patient).items():
            show(name, [ill() for _ in range(words.times if words.only in name else 0)])
        undisturbed(patient)
        if words.only in "idle CPU and listeners":
            idle(running.process.pid)


def idle(agent: int) -> None:
    """Who listens, and what each process costs while nothing is asked for."""
    time.sleep(10)  # groups are left after 2 s, and the machine is measured
    names = {agent: "torchrun"} | {zygote_pid(agent, rank): f"zygote {rank}" for rank in (0, 1)}
    names |= {rank_pid(agent, rank): f"rank {rank}" for rank in (0, 1)}
    for pid, name in names.items():
        print(f"listeners of {name}: {', '.join(sorted(listeners([pid]))) or 'none'}")
    before = {pid: cpu_seconds(pid) for pid in names}
    time.sleep(20)
    for pid, name in names.items():
        print(f"idle CPU of {name}: {(cpu_seconds(pid) - before[pid]) / 0.2:.3f} % of a core")


def undisturbed(patient: Patient) -> None:
    """Say how long the picture takes when nothing happens, and whether all pictures so far were the same."""
    finished = len(patient.journal("finished"))
    began = time.monotonic()
    patient.start()
    until(lambda: len(patient.journal("finished")) > finished, PATIENCE_S)
    pictures = {Path(line["pictures"][0]).read_bytes() for line in patient.journal("finished") if line["pictures"]}
    print(f"the picture undisturbed: {time.monotonic() - began:.1f} s; different pictures so far: {len(pictures)}")


if __name__ == "__main__":
    main()
