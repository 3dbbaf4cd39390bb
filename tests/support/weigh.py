"""How soon the page is there and how much travels for it: `python -m tests.support.weigh`, a fresh browser profile for
every visit, the page over the fake client on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import sync_playwright

from tests.support.browser import DESKTOP, find_chromium
from tests.support.states import fake_page

# Ours is the markup of the page's head; the first paint is the empty page's, the last thing to come are our panels.
TIMES = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { paint: paint ? paint.startTime : null, ready: performance.now() };
}"""


def visit(browser: Any, url: str) -> tuple[dict[str, float], Counter[str]]:
    """One visit without a cache: seconds to the first paint and to a page that can be used; bytes by kind as sent."""
    context = browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]})
    page = context.new_page()
    wire = context.new_cdp_session(page)
    wire.send("Network.enable")
    kinds: dict[str, str] = {}
    bytes_: Counter[str] = Counter()
    wire.on("Network.responseReceived", lambda event: kinds.update({event["requestId"]: event["type"]}))
    wire.on(
        "Network.loadingFinished",
        lambda event: bytes_.update({kinds.get(event["requestId"], "Other"): int(event["encodedDataLength"])}),
    )
    page.goto(url)
    page.wait_for_function("document.querySelector('.df-gallery[aria-busy=false]')")
    page.wait_for_function("document.querySelector('#generate') && !document.querySelector('#generate').disabled")
    times = page.evaluate(TIMES)
    context.close()
    return {name: milliseconds / 1000 for name, milliseconds in times.items()}, bytes_


def main(visits: int) -> None:
    """Print medians of `visits` visits, after one that does not count."""
    with tempfile.TemporaryDirectory() as work, fake_page(Path(work)) as (url, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        all_ = [visit(browser, url) for _ in range(visits + 1)][1:]
        browser.close()
    for name, words in (("paint", "first paint"), ("ready", "usable")):
        values = [times[name] for times, _ in all_]
        print(f"{words}: {median(values):.2f} s (median of {visits}; {min(values):.2f} to {max(values):.2f})")
    sizes = all_[-1][1]
    print(
        f"sent: {sum(sizes.values()) / 1e6:.2f} MB; "
        + ", ".join(f"{k} {n / 1e3:.0f} kB" for k, n in sizes.most_common())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.support.weigh")
    parser.add_argument("--visits", type=int, default=5)
    main(parser.parse_args().visits)
