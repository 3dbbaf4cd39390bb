"""Takes pictures of the page: `python -m tests.support.screenshots [FOLDER]` the README's, from a running app.py;
`--states FOLDER` one of every state, on desktop and phone, light and dark, over the fake client.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.support.browser import DESKTOP, PHONE, Visitor, find_chromium
from tests.support.real_app import ROOT, real_app
from tests.support.states import fake_page, walk

PROMPT, SEED = "a yellow sailboat on the sea at sunset with an orange sun", 6
HANDLE = 0.36  # where the slider stands: naive patches on its left, DistriFusion's sailboat and sun on its right
SHOTS: dict[str, dict[str, Any]] = {
    "desktop": {"size": (DESKTOP[0], 960)},
    "phone": {"size": PHONE},
    "dark": {"size": (DESKTOP[0], 960), "dark": True},
}


def main(folder: Path) -> None:
    """Write desktop.jpg, phone.jpg and dark.jpg: a finished comparison of three real pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        real_app(Path(work), "--ranks", "2", "--device", "cpu") as running,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for name, options in SHOTS.items():
            shoot(Visitor(browser, running.url, **options), folder / f"{name}.jpg")
        browser.close()


def every_state(folder: Path, ranks: int) -> None:
    """Write desktop-light-idle.png and so on: what is seen at once, and for phones also the whole page."""
    folder.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as work,
        fake_page(Path(work), ranks) as (url, fake),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=["--no-sandbox"])
        for device, size in (("desktop", DESKTOP), ("phone", PHONE)):
            for dark in (False, True):
                prefix = f"{device}-{'dark' if dark else 'light'}"

                def snap(visitor: Visitor, state: str, prefix: str = prefix, whole: bool = size == PHONE) -> None:
                    visitor.page.mouse.move(0, 0)
                    visitor.page.evaluate("window.scrollTo(0, 0)")
                    for full in (False, True):
                        if not full or whole or state in ("done-three", "opened"):
                            path = folder / f"{prefix}-{state}{'-whole' if full else ''}.png"
                            visitor.page.screenshot(path=path, full_page=full, animations="disabled")

                walk(lambda size=size, dark=dark: Visitor(browser, url, size=size, dark=dark), fake, snap)  # type: ignore[misc]
                print(prefix, "done", flush=True)
        browser.close()


def shoot(visitor: Visitor, path: Path) -> None:
    """One comparison, photographed when it is done."""
    visitor.page.wait_for_selector('.df-badge[data-state="ready"]', timeout=60_000)
    visitor.advanced("steps", "20")
    visitor.page.get_by_text("Advanced", exact=True).click()
    visitor.page.uncheck("#random-seed input")
    visitor.page.fill("#seed input", str(SEED))
    for run in ("DistriFusion", "+ Naive + 1 device"):  # the first picture of a fresh group pays for allocations
        visitor.generate(PROMPT, run=run)
        visitor.wait_idle(seconds=120)
    visitor.page.wait_for_selector("#canvas.df-sliding")
    visitor.page.evaluate("window.scrollTo(0, 0)")
    box = visitor.page.locator("#slider").bounding_box()
    assert box is not None
    middle = box["y"] + box["height"] / 2
    visitor.page.mouse.move(box["x"] + box["width"] / 2, middle)
    visitor.page.mouse.down()
    visitor.page.mouse.move(box["x"] + box["width"] * HANDLE, middle, steps=5)
    visitor.page.mouse.up()
    visitor.page.evaluate("document.activeElement.blur()")
    visitor.page.wait_for_timeout(1000)
    picture = Image.open(io.BytesIO(visitor.page.screenshot())).convert("RGB")
    picture.save(path, quality=85, optimize=True)
    print(path, picture.size, f"{path.stat().st_size // 1000} kB")
    visitor.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.support.screenshots")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "assets" / "readme")
    parser.add_argument("--states", action="store_true", help="every state, over the fake client; needs a folder")
    parser.add_argument("--ranks", type=int, default=2, help="of the fake client")
    words = parser.parse_args()
    if not words.states:
        main(words.folder)
    elif words.folder == parser.get_default("folder"):
        parser.error("--states needs a folder: its pictures are not the README's")
    else:
        every_state(words.folder, words.ranks)
