"""The page over the real thing: `python app.py` with two ranks and the embedded model, driven by a browser."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from launcher.losses import STARTS, failed_starts
from tests.support.browser import Visitor
from tests.support.processes import alive, descendants, rank_pid, run_dir, until
from tests.support.real_app import ROOT, RealApp, real_app

STEPS = 8


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApp]:
    """A running app.py."""
    with real_app(tmp_path_factory.mktemp("real"), "--ranks", "2", "--device", "cpu") as one:
        yield one


@pytest.fixture
def visit_real(browser: object, window: object, running: RealApp) -> Iterator[Callable[..., Visitor]]:
    visitors: list[Visitor] = []

    def open_page(**options: object) -> Visitor:
        visitors.append(Visitor(browser, running.url, context=None if visitors else window, **options))
        visitors[-1].page.wait_for_selector('.df-badge[data-state="ready"]', timeout=240_000)
        return visitors[-1]

    yield open_page
    for visitor in visitors:
        visitor.close()


def test_comparison_of_three_real_pictures(visit_real: Callable[..., Visitor]) -> None:
    visitor = visit_real()
    assert visitor.text(".df-badge") == "2 CPU ranks ready"
    assert "demo" in visitor.text(".df-model")
    visitor.advanced("steps", str(STEPS))
    visitor.generate("a red house with a blue roof in a snowy field on a clear day", run="+ Naive + 1 device")
    visitor.wait_step(2)
    visitor.page.wait_for_function("document.querySelector('.df-picture').src.startsWith('data:image/jpeg')")
    assert visitor.page.locator(".df-lane").count() == 2
    visitor.wait_idle()
    assert visitor.text(".df-drift b").endswith("% in stale steps")
    visitor.page.wait_for_selector("#canvas.df-sliding")
    assert visitor.page.locator(".df-card[data-state=done]").count() == 3
    assert visitor.page.locator(".df-card-badge:not([hidden])").count() == 2
    assert "of one device's time" in visitor.text(".df-story")
    assert visitor.text(".df-why").startswith("Auto: patches on 2 of 2 ranks")
    assert visitor.complaints == []
    assert visitor.strangers == []


def test_same_settings_same_bytes(visit_real: Callable[..., Visitor], tmp_path: Path) -> None:
    visitor = visit_real(path="?parallelism=patch")  # Auto may learn meanwhile that another method is faster
    visitor.advanced("steps", str(STEPS))
    visitor.generate("a yellow sailboat on the sea at sunset")
    visitor.wait_idle()
    assert visitor.seed() != "42"  # a random one was drawn and written back
    first = visitor.picture()
    assert Image.open(io.BytesIO(first)).size == (256, 256)
    visitor.page.uncheck("#random-seed input")
    visitor.press_generate()
    visitor.wait_idle()
    assert visitor.picture() == first
    visitor.page.wait_for_function("document.querySelectorAll('.df-tile').length === 2")
    (path := tmp_path / "x.png").write_bytes(first)
    stranger = visit_real()
    stranger.choose("DistriFusion")
    stranger.drop(path)
    stranger.wait_prompt("a yellow sailboat on the sea at sunset")
    stranger.press_generate()
    stranger.wait_idle()
    assert stranger.picture() == first


def test_stop_and_again(visit_real: Callable[..., Visitor], measured: Callable[[str], None]) -> None:
    visitor = visit_real()
    visitor.advanced("steps", "300")
    visitor.generate("a white lighthouse")
    visitor.wait_step(3)
    step_s = float(visitor.text(".df-progress span").split(" ms/step")[0]) / 1000
    pressed = time.monotonic()
    visitor.page.click("#stop")
    visitor.wait_state("cancelled")
    # At most a second on a free machine.
    measured(f"the page: stopped after {time.monotonic() - pressed:.2f} s, at {1000 * step_s:.0f} ms a step")
    visitor.wait_idle()
    visitor.advanced("steps", str(STEPS))
    visitor.press_generate()
    visitor.wait_state("done")


def test_page_comes_back_by_itself_when_rank_0_is_killed(visit_real: Callable[..., Visitor], running: RealApp) -> None:
    visitor = visit_real()
    visitor.advanced("steps", "60")
    visitor.generate("a white lighthouse under a starry sky")
    visitor.wait_step(3)
    visitor.page.evaluate("window.before = true")
    os.kill(rank_pid(running.process.pid, 0), signal.SIGKILL)
    visitor.page.wait_for_function("!window.before && document.querySelector('.df-stage')")
    visitor.wait_prompt("a white lighthouse under a starry sky")
    visitor.wait_state("done")
    visitor.page.wait_for_selector(".df-tile img")


def test_a_closed_browser_costs_no_picture(visit_real: Callable[..., Visitor], running: RealApp) -> None:
    visitor = visit_real()
    visitor.advanced("steps", "24")
    visitor.generate("a red house")
    visitor.wait_step(2)
    visitor.close()
    journal = running.log.parent / "outputs" / "journal.jsonl"
    until(lambda: '"finished"' in (last := journal.read_text().splitlines()[-1]) and '"steps":24' in last, 100)
    assert '"state":"done"' in journal.read_text().splitlines()[-1]


def test_the_port_is_taken(running: RealApp) -> None:
    words = [sys.executable, "app.py", "--port", running.url.rsplit(":", 1)[1].strip("/")]
    second = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (second.returncode, second.stdout, len(second.stderr.splitlines())) == (2, "", 1)
    assert "cannot be opened (Address already in use); choose another with --port" in second.stderr


def test_a_group_that_never_comes_up_says_why(visit_real: Callable[..., Visitor], running: RealApp) -> None:
    visitor, victim = visit_real(), 0
    folder = run_dir(rank_pid(running.process.pid, 1))
    end = time.monotonic() + 240
    while True:

        def successor(last: int = victim) -> int:
            with contextlib.suppress(ProcessLookupError):
                return pid if (pid := rank_pid(running.process.pid, 1)) != last else 0
            return 0

        victim = until(successor)
        if failed_starts(folder, int((folder / "generations").read_text()) - 2) >= STARTS:
            break  # this generation only says so
        assert time.monotonic() < end, "every group was ready before its rank could be killed"
        os.kill(victim, signal.SIGKILL)
    visitor.page.wait_for_selector('.df-badge[data-state="dead"]', timeout=240_000)
    assert visitor.text(".df-badge") == "Stopped working"
    assert f"ended {STARTS} times in a row before it was ready, the last time because: rank 1" in visitor.text(
        ".df-stage"
    )
    assert "was killed by signal 9. Mend that" in visitor.text(".df-stage")


def test_without_torchrun_nothing_stays(running: RealApp) -> None:
    pids = descendants(running.process.pid)
    assert len(pids) == 4
    running.process.kill()
    until(lambda: not any(map(alive, pids)), 40)
