"""How soon the page is there, how much travels for it, and how soon it shows what the server yields:
`python -m tests.support.weigh`, a fresh browser profile for every visit, the page over the fake client on this machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from playwright.sync_api import sync_playwright

from launcher.web.visit import Frame, Visits
from tests.support.browser import DESKTOP, Visitor, find_chromium
from tests.support.fake_client import FakeClient
from tests.support.states import PROMPT, fake_page

# Ours is the markup of the page's head; the first paint is the empty page's, the last thing to come are our panels.
TIMES = """() => {
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  return { paint: paint ? paint.startTime : null, ready: performance.now() };
}"""

# When the stage first said what, in milliseconds of the clock that the server has, too.
LISTEN = """() => {
  window.said = {};
  const step = document.querySelector(".df-progress b");
  const note = () => { window.said[step.textContent] ??= performance.timeOrigin + performance.now(); };
  new MutationObserver(note).observe(step, { childList: true, characterData: true, subtree: true });
}"""


def yield_to_document(browser: Any, url: str, fake: FakeClient) -> list[float]:
    """Milliseconds from a frame's yield on the server to its words in the document, for the frames of one picture."""
    yielded: dict[str, float] = {}
    follow = Visits.follow

    def noting(self: Visits, run: Frame, who: Frame) -> Iterator[Frame]:
        for frame in follow(self, run, who):
            if progress := frame.get("stage", {}).get("progress"):
                yielded.setdefault(progress["text"], 1000 * time.time())
            yield frame

    fake.step_seconds = 0.2
    visitor = Visitor(browser, url)
    visitor.page.evaluate(LISTEN)
    Visits.follow = noting  # type: ignore[method-assign]
    try:
        visitor.generate(PROMPT)
        visitor.wait_idle()
    finally:
        Visits.follow = follow  # type: ignore[method-assign]
    said = visitor.page.evaluate("window.said")
    visitor.close()
    return sorted(said[text] - yielded[text] for text in yielded if text in said)


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
    with tempfile.TemporaryDirectory() as work, fake_page(Path(work)) as (url, fake), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        all_ = [visit(browser, url) for _ in range(visits + 1)][1:]
        late = yield_to_document(browser, url, fake)
        browser.close()
    for name, words in (("paint", "first paint"), ("ready", "usable")):
        values = [times[name] for times, _ in all_]
        print(f"{words}: {median(values):.2f} s (median of {visits}; {min(values):.2f} to {max(values):.2f})")
    print(f"yield to document: {median(late):.0f} ms (median of {len(late)} frames; {late[0]:.0f} to {late[-1]:.0f})")
    sizes = all_[-1][1]
    print(
        f"sent: {sum(sizes.values()) / 1e6:.2f} MB; "
        + ", ".join(f"{k} {n / 1e3:.0f} kB" for k, n in sizes.most_common())
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.support.weigh")
    parser.add_argument("--visits", type=int, default=5)
    main(parser.parse_args().visits)
