"""A long day of a real group with the toy engine: requests, stops and faults at random, and at the end the ledger, from
the journal. `make soak`; exit code 1 unless every accepted request ended exactly once.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from launcher.faults import VARIABLE
from launcher.job import FINAL
from tests.support.processes import ToyGroup, alive, descendants, until

AWAY = (OSError, http.client.HTTPException, ValueError)  # what a call of a group raises that has just died
AT_ONCE = 4  # requests that are under way or wait
PLAN = "slow:0@13,once;garbage:1@14,once;raise:0@15,once;garbage:0@16,once;die:0@17,once"


class Soak:
    """One run: a thread that inflicts faults, one that watches the group come back, and the requests."""

    def __init__(self, group: ToyGroup, requests: int, seed: int) -> None:
        self.group, self.requests = group, requests
        self.source = random.Random(seed)
        self.open: set[str] = set()
        self.inflicted: Counter[str] = Counter()
        self.longest = 0.0
        self._hurt: float | None = None  # when the group was hurt, or was seen away
        self._restarts = 0
        self._over = threading.Event()

    def run(self) -> None:
        """Until all requests have been accepted and have ended."""
        threads = [threading.Thread(target=work, daemon=True) for work in (self._watch, self._hurt_it)]
        for thread in threads:
            thread.start()
        accepted = 0
        while accepted < self.requests or self.open:
            if accepted < self.requests and len(self.open) < AT_ONCE:
                with contextlib.suppress(*AWAY, RuntimeError):  # RuntimeError: refused while the model loads
                    self.open.add(self.group.submit(self._prompt(), steps=self.source.randrange(1, 25)))
                    accepted += 1
                    if accepted % 20 == 0:
                        print(f"{accepted} accepted, {len(self.open)} open, {self._restarts} restarts", flush=True)
            self._look()
            time.sleep(0.05)
        self._over.set()
        for thread in threads:
            thread.join()

    def _prompt(self) -> str:
        words = [f"slow {self.source.randrange(5, 40)}"]
        where = f"rank={self.source.randrange(2)} step={self.source.randrange(-1, 12)};"
        luck = self.source.random()
        if luck < 0.08:
            words.append(f"fail {where}")
        elif luck < 0.11:
            words.append(f"kill {where}")
        return " ".join(words)

    def _look(self) -> None:
        for req in list(self.open):
            with contextlib.suppress(*AWAY, RuntimeError):
                if self.group.call("now", req=req)["state"] in FINAL:
                    self.open.discard(req)

    def _status(self) -> dict[str, Any] | None:
        """The status of a group that could make a picture."""
        with contextlib.suppress(*AWAY):
            status = dict(self.group.call("status"))
            return status if status["state"] not in ("boot", "dead") and status["model"] else None
        return None

    def _watch(self) -> None:
        while not self._over.wait(0.05):
            status = self._status()
            if status is None:
                self._hurt = self._hurt or time.monotonic()
            elif status["restarts"] > self._restarts:
                self._restarts = status["restarts"]
                if self._hurt is not None:
                    self.longest = max(self.longest, time.monotonic() - self._hurt)
                self._hurt = None

    def _hurt_it(self) -> None:
        while not self._over.wait(self.source.uniform(0.5, 6)):
            kind = self.source.choice(["stop a request"] * 4 + ["kill -9"] * 3 + ["SIGSTOP"])
            with contextlib.suppress(*AWAY, RuntimeError, ProcessLookupError, KeyError, IndexError):
                if kind == "stop a request":
                    self.group.call("cancel", req=self.source.choice(sorted(self.open)))
                elif self._hurt is None and self._status() and self.open:
                    victim = self.group.pids()[self.source.randrange(2)]
                    self._hurt = time.monotonic()
                    os.kill(victim, signal.SIGKILL if kind == "kill -9" else signal.SIGSTOP)
                else:
                    continue
                self.inflicted[kind] += 1


def ledger(journal: Path) -> dict[str, Any]:
    """What the journal says: requests by their end, and those that did not end exactly once."""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    accepted = Counter(line["id"] for line in lines if line["entry"] == "accepted")
    ended = Counter(line["id"] for line in lines if line["entry"] == "finished")
    tries = Counter(line["id"] for line in lines if line["entry"] == "try")
    ends = Counter(line["state"] for line in lines if line["entry"] == "finished")
    return {
        "accepted": len(accepted),
        **{state: ends[state] for state in FINAL},
        "done at the second try": sum(
            line["entry"] == "finished" and line["state"] == "done" and tries[line["id"]] == 2 for line in lines
        ),
        "wrong": sorted(req for req in {*accepted, *ended} if (accepted[req], ended[req]) != (1, 1)),
    }


def main() -> None:
    """`python -m tests.support.soak --requests 200 --seed 1`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        began = time.monotonic()
        with ToyGroup(Path(folder), env={VARIABLE: PLAN}) as group:
            soak = Soak(group, words.requests, words.seed)
            soak.run()
            until(lambda: soak._status() is not None, 60)
            restarts = group.call("status")["restarts"]
            pids = descendants(group.process.pid)
            group.process.terminate()
            code = group.process.wait(10)
            left = [pid for pid in pids if alive(pid)]
        found = ledger(Path(folder) / "data" / "journal.jsonl")
    found |= {"restarts": restarts, "longest recovery": f"{soak.longest:.1f} s", "inflicted": dict(soak.inflicted)}
    found |= {"took": f"{time.monotonic() - began:.0f} s", "ended with": code, "processes left": len(left)}
    for name, value in found.items():
        print(f"{name:24}{value}")
    if found["wrong"] or found["accepted"] < words.requests or left:
        sys.exit("not every accepted request ended exactly once, or something was left behind")


if __name__ == "__main__":
    main()
