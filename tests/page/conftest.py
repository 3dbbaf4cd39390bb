"""A real browser for the page's tests, and a page over a fake client: faults come when a test wants them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Visitor, find_chromium
from tests.support.fake_client import FakeClient
from tests.support.states import fake_page


@pytest.fixture(scope="session")
def browser() -> Iterator[object]:
    """Chromium; without one the test is skipped and says so."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = find_chromium()
    with sync_api.sync_playwright() as playwright:
        if executable is None and not Path(playwright.chromium.executable_path).exists():
            pytest.skip("there is no browser: install chromium, or run `playwright install chromium`")
        launched = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def page_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, FakeClient]]:
    """The page over a fake client, in this process; its address and the client."""
    folder = tmp_path_factory.mktemp("outputs")
    with fake_page(folder, tick_s=0.5) as served:  # what waits for a tick need not wait long
        yield served
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def fake(page_server: tuple[str, FakeClient]) -> Iterator[FakeClient]:
    """The fake client without faults, and idle again afterwards."""
    _, client = page_server
    client.heal()
    yield client
    client.heal()


@pytest.fixture(scope="session")
def window(browser: Any) -> Iterator[object]:
    """Where the first visitor of every test comes in: what its cache holds need not be loaded again."""
    context = browser.new_context()
    yield context
    context.close()


@pytest.fixture
def visit(
    browser: object, window: object, page_server: tuple[str, FakeClient], fake: FakeClient
) -> Iterator[Callable[..., Visitor]]:
    """A function that opens the page as a new visitor: visit(size=PHONE, path="?prompt=...")."""
    url, _ = page_server
    visitors: list[Visitor] = []

    def open_page(**options: object) -> Visitor:
        options = {"context": None if visitors else window, **options}
        visitors.append(Visitor(browser, url, **options))
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()
