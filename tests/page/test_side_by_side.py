"""The page of folders side by side in a real browser: filter, large view, keyboard, phone."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from launcher.export_html import export
from tests.support.browser import DESKTOP, PHONE
from tests.support.processes import until

CAPTIONS = ["a red house", "<script>document.title = 'run'</script> a boat", "a blue house", "a green tree"]
FOLDERS = ["single", "naive", "patch", "tensor"]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    work = tmp_path_factory.mktemp("side_by_side")
    for shade, name in enumerate(FOLDERS):
        (work / name).mkdir()
        (work / name / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
        for index in range(len(CAPTIONS)):
            if (name, index) != ("patch", 3):
                Image.new("RGB", (64, 48), (60 * shade, 60 * index, 90)).save(work / name / f"000{index}.png")
    export([work / name for name in FOLDERS], work / "page.html")
    return (work / "page.html").as_uri()


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_filter_large_view_and_keyboard(browser: Any, address: str, size: tuple[int, int]) -> None:
    context = browser.new_context(viewport={"width": size[0], "height": size[1]})
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("request", lambda request: request.url.startswith(("data:", address)) or wrong.append(request.url))
    page.goto(address)

    def shown() -> list[str]:
        return [text.split(" ", 1)[1].strip() for text in page.locator(".caption:visible p").all_inner_texts()]

    def large() -> tuple[str, str, str]:
        """The caption, the pressed folder, and the picture that is seen."""
        picture = page.locator(".stack .shown")
        alt = picture.get_attribute("alt") or picture.inner_text()
        return page.inner_text(".large-caption"), page.inner_text(".tabs [aria-pressed=true]"), alt

    assert shown() == CAPTIONS
    assert page.title() == "Pictures side by side"
    page.keyboard.press("/")
    page.keyboard.type("HOUSE a")
    assert shown() == ["a red house", "a blue house"]
    assert page.inner_text(".count") == "2 of 4 captions"

    page.get_by_alt_text("naive, 0: a red house").click()
    assert large() == ("0a red house", "naive", "naive, 0: a red house")
    box = page.locator(".stack").bounding_box()
    page.keyboard.press("ArrowRight")
    assert large() == ("0a red house", "patch", "patch, 0: a red house")
    assert page.locator(".stack").bounding_box() == box  # at the same place
    page.keyboard.press("z")
    assert page.locator(".stack").bounding_box()["width"] == pytest.approx(3 * box["width"], abs=1)
    page.keyboard.press("ArrowDown")  # past the boat, which the filter hides
    assert large() == ("2a blue house", "patch", "patch, 2: a blue house")
    page.get_by_role("button", name="tensor", exact=True).click()
    page.keyboard.press("ArrowRight")  # round to the first
    assert large()[1] == "single"
    page.keyboard.press("Escape")
    until(lambda: page.evaluate("document.activeElement.querySelector('img')?.alt") == "single, 2: a blue house")
    assert not page.locator(".large").is_visible()

    page.fill(".filter", "")
    page.get_by_alt_text("single, 3: a green tree").click()
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert large() == ("3a green tree", "patch", "no picture")
    page.get_by_role("button", name="Close").click()
    assert page.evaluate("document.documentElement.scrollWidth - window.innerWidth") == 0
    assert page.evaluate("document.documentElement.scrollHeight - window.innerHeight") == 0
    # Where not all columns fit, the box scrolls, and the heads go with the pictures.
    page.evaluate("document.querySelector('.scroller').scrollTo(10000, 10000)")
    head, cell = (page.locator(one).last.bounding_box() for one in (".name", ".cell"))
    assert head["x"] == pytest.approx(cell["x"], abs=1)
    assert head["y"] < cell["y"]
    assert cell["x"] + cell["width"] <= size[0] + 1
    assert wrong == []
    context.close()
