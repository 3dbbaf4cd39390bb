"""How soon a click on an idle page becomes work, and what the page costs the rank that serves it: `python app.py` on
two CPU ranks with one thread each, a browser that watches, and the ranks' own logs. The README's figures are made by
`python -m tests.support.response`; measure where nothing else runs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import sync_playwright

from tests.support.browser import Visitor, find_chromium
from tests.support.processes import rank_pid, run_dir, until
from tests.support.real_app import real_app

RANKS, STEADY = 2, "stale"
PROMPT = "a red house in a snowy field at night"
# When Generate was last pressed, in seconds of the clock that the ranks' logs have, too.
LISTEN = """() => document.querySelector("#generate").addEventListener(
  "click", () => { window.clicked = (performance.timeOrigin + performance.now()) / 1000; }, true)"""


def logged(folder: Path, name: str, req: str, words: str) -> float:
    """When process `name` wrote down `words` about a request: seconds since 1970. Waits for the line."""

    def found() -> float | None:
        for line in (folder / f"{name}.log").read_text().splitlines():
            when, _, _, about, said = line.split(" ", 4)
            if about == req and said.startswith(words):
                return datetime.fromisoformat(when).timestamp()
        return None

    return float(until(found))


def delays(folder: Path, req: str, clicked: float) -> dict[str, float]:
    """Milliseconds by name, of one request."""
    ranks = [f"rank-{rank}" for rank in range(RANKS)]
    accepted = logged(folder, "rank-0", req, "try")
    told = max(logged(folder, name, req, "was told") for name in ranks[1:])
    begun = max(logged(folder, name, req, "its first step begins") for name in ranks)
    seconds = {
        "click to first step": begun - clicked,
        "click to hub": accepted - clicked,
        "hub to peer": told - accepted,
    }
    return {name: 1000 * value for name, value in seconds.items()}


def shares(report: dict[str, Any]) -> dict[str, float]:
    """Of the steady steps of one picture: compute of rank 0 over its peer's, and of each rank the part it waited."""
    steady = [step["ranks"] for step in report["steps"] if step["phase"] == STEADY]
    own, peer = ([ranks[rank] for ranks in steady] for rank in range(RANKS))
    ratio = sum(each["compute_ms"] for each in own) / sum(each["compute_ms"] for each in peer)
    waits = {
        f"wait of rank {rank}": sum(each["wait_ms"] for each in steps)
        / sum(each["wait_ms"] + each["compute_ms"] for each in steps)
        for rank, steps in enumerate((own, peer))
    }
    return {"rank 0 over its peer": ratio, **waits}


def main(pictures: int, side: int) -> None:
    """Print medians over `pictures` clicks on an idle group, after one that does not count."""
    values: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        folder = Path(work)
        with real_app(folder, "--ranks", str(RANKS), "--device", "cpu") as running:
            browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
            visitor = Visitor(browser, running.url)
            visitor.write(PROMPT)
            visitor.choose("DistriFusion")
            for field in ("width", "height"):
                visitor.advanced(field, str(side))
            visitor.page.evaluate(LISTEN)
            logs = run_dir(rank_pid(running.process.pid, 0)) / "logs"
            journal = folder / "outputs" / "journal.jsonl"
            for turn in range(pictures + 1):
                visitor.wait_ticks()
                time.sleep(1)
                visitor.press_generate()
                visitor.wait_idle(seconds=300)
                record = until(_finished(journal, turn + 1))
                if turn:
                    clicked = float(visitor.page.evaluate("window.clicked"))
                    for name, value in (delays(logs, record["id"], clicked) | shares(record["report"])).items():
                        values.setdefault(name, []).append(value)
            browser.close()
    for name, all_ in values.items():
        unit = "ms" if " to " in name else "%"
        low, middle, high = (value * (1 if unit == "ms" else 100) for value in (min(all_), median(all_), max(all_)))
        print(f"{name}: {middle:.1f} {unit} (median of {pictures}; {low:.1f} to {high:.1f})")


def _finished(journal: Path, count: int) -> Callable[[], dict[str, Any] | None]:
    def last() -> dict[str, Any] | None:
        lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        finished = [line for line in lines if line["entry"] == "finished"]
        return finished[-1] if len(finished) == count else None

    return last


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.support.response")
    parser.add_argument("--pictures", type=int, default=5)
    parser.add_argument("--side", type=int, default=512, help="pixels")
    options = parser.parse_args()
    main(options.pictures, options.side)
