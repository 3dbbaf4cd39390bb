"""Every state of the page, one after the other, in a browser over the fake client, whose gate holds each of them. What
is done with a state is the caller's business: see screenshots.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import app
from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher.options import Options
from tests.support.browser import Visitor
from tests.support.fake_client import FakeClient
from tests.support.processes import free_port

PROMPT = "a red lighthouse by the sea on a clear day with a yellow sun"
Snap = Callable[[str], None]


@contextmanager
def fake_page(folder: Path, ranks: int = 2, *, tick_s: float = app.TICK_S) -> Iterator[tuple[str, FakeClient]]:
    """The page over a fake client, in this process; its address and the client."""
    import gradio

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISTRI_DATA", str(folder))
        patch.setattr(app, "TICK_S", tick_s)
        client, port = FakeClient(folder, ranks=ranks), free_port()
        app.serve(client, Options(ranks=ranks, device="cpu", host="127.0.0.1", port=port))
        try:
            yield f"http://127.0.0.1:{port}/", client
        finally:
            gradio.close_all(verbose=False)
            client.close()


def walk(new: Callable[[], Visitor], fake: FakeClient, snap: Callable[[Visitor, str], None]) -> None:
    """Lead a new visitor through all states; snap(visitor, name) is called in each, while it lasts."""
    fake.heal()
    fake.loading = True
    visitor = new()
    snap(visitor, "loading")
    fake.loading = False
    visitor.page.wait_for_function("!document.querySelector('#generate').disabled")
    snap(visitor, "idle")
    visitor.wait_advanced("width", "256")
    visitor.page.locator(".df-explain summary").click()
    snap(visitor, "opened")
    visitor.page.locator(".df-explain summary").click()
    visitor.page.get_by_text("Advanced", exact=True).click()
    for state in (_one, _two, _three, _stopped, _failed, _lost, _queued, _wide):
        state(visitor, fake, lambda name: snap(visitor, name))
        _open(fake)
        visitor.wait_idle()
    visitor.close()


def _open(fake: FakeClient) -> None:
    fake.gate, fake.fault = (lambda method, step: True), (lambda step: "")


def _one(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.gate = lambda method, step: method != "waking"
    visitor.generate(PROMPT)
    visitor.wait_state("starting")
    snap("starting")
    fake.gate = lambda method, step: step < 17
    visitor.wait_step(17)
    snap("run")
    _open(fake)
    visitor.wait_idle()
    snap("done-one")


def _two(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.gate = lambda method, step: method != "naive_patch" or step < 12
    visitor.generate(PROMPT, run="+ Naive")
    visitor.page.wait_for_selector(".df-inset:not([hidden])")
    visitor.wait_step(12)
    snap("baseline")
    _open(fake)
    visitor.wait_idle()
    visitor.page.wait_for_selector("#canvas.df-sliding")
    snap("done-two")


def _three(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    visitor.generate(PROMPT, run="+ Naive + 1 device")
    visitor.wait_idle()
    visitor.page.wait_for_selector("#canvas.df-sliding")
    snap("done-three")
    visitor.choose("Side by side")
    visitor.page.wait_for_function(
        "[...document.querySelectorAll('.df-sides img')].every(each => each.naturalWidth > 0)"
    )
    snap("sides")
    visitor.choose("Difference")
    visitor.page.wait_for_function("document.querySelector('.df-picture').src.startsWith('data:image/png')")
    snap("difference")


def _stopped(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.gate = lambda method, step: step < 13
    visitor.generate(PROMPT)
    visitor.wait_step(13)
    visitor.page.click("#stop")
    visitor.wait_state("cancelled")
    snap("cancelled")


def _failed(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.fault = lambda step: "failed" if step == 6 else ""
    visitor.generate(PROMPT)
    visitor.wait_state("failed")
    snap("error")


def _lost(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.fault = lambda step: "lost" if step == 6 else ""
    fake.gate = lambda method, step: method != "restart"
    visitor.generate(PROMPT)
    visitor.wait_state("lost")
    snap("lost")


def _queued(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    fake.gate = lambda method, step: step < 5
    for stranger in ("first", "second"):
        fake.submit(GenerationRequest(prompt="somebody else's"), DistriConfig(), visitor=stranger)
    visitor.generate(PROMPT)
    visitor.wait_state("queued")
    snap("queued")
    visitor.page.click("#stop")
    visitor.wait_state("cancelled")
    snap("left")


def _wide(visitor: Visitor, fake: FakeClient, snap: Snap) -> None:
    visitor.choose("16:9")
    visitor.wait_advanced("width", "352")
    visitor.page.get_by_text("Advanced", exact=True).click()
    visitor.generate(PROMPT, run="+ Naive")
    visitor.wait_idle()
    visitor.page.wait_for_selector("#canvas.df-sliding")
    snap("wide")
