"""Takes the README's pictures from a running app.py: `python -m tests.support.screenshots [folder]`."""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from tests.support.browser import DESKTOP, PHONE, Visitor, find_chromium
from tests.support.real_app import ROOT, real_app

PROMPT, SEED = "a red lighthouse by the sea on a clear day with a yellow sun", 6
HANDLE = 0.62  # where the slider stands: naive patches' two towers on its left, DistriFusion's one on its right
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
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "assets" / "readme")
