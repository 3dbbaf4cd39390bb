"""Faults in the real process tree: `python app.py` with its page, torchrun, two ranks and the embedded model."""

from __future__ import annotations

import base64
import json
import signal
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.faults import VARIABLE
from tests.support.processes import alive, descendants, listeners, until
from tests.support.real_app import RealApp, real_app

AUTH = ("me", "pass:word")
BASIC = f"Basic {base64.b64encode(':'.join(AUTH).encode()).decode()}"
PICTURE = {"prompt": "a red house", "seed": 5, "height": 128, "width": 128, "split_batch": False}


class House:
    """A running app.py: its API, and what it writes."""

    def __init__(self, running: RealApp, folder: Path, tmp: Path) -> None:
        self.url, self.process = running.url, running.process
        self.folder, self.tmp = folder, tmp

    def api(self) -> Any:
        from gradio_client import Client

        return Client(self.url, auth=AUTH, verbose=False, analytics_enabled=False)

    def get(self, path: str, authorization: str = "") -> tuple[int, str]:
        request = urllib.request.Request(self.url + path, headers={"Authorization": authorization})
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def status(self) -> dict[str, Any]:
        return dict(self.api().predict(api_name="/status"))

    def journal(self) -> list[dict[str, Any]]:
        """Its whole lines."""
        path = self.folder / "outputs" / "journal.jsonl"
        text = path.read_text() if path.exists() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def ends(self) -> list[dict[str, Any]]:
        return [line for line in self.journal() if line["entry"] == "finished"]

    def ready(self) -> bool:
        try:
            return self.status()["state"] == "ready"
        except Exception:  # the server is away, or half there
            return False


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("house")
    short = Path(tempfile.mkdtemp(prefix="t-"))
    plan = {VARIABLE: "raise:1@2,once;die:1@4,once", "TMPDIR": str(short)}
    with real_app(folder, "--ranks", "2", "--device", "cpu", "--auth", ":".join(AUTH), env=plan) as running:
        made = House(running, folder, short)
        until(made.ready, 240)
        yield made
    short.rmdir()  # nothing is left in it


def test_health_is_open_and_metrics_are_not(house: House) -> None:
    code, text = house.get("healthz")
    assert (code, json.loads(text)["state"]) == (200, "ready")
    assert house.get("metrics")[0] == 401
    code, text = house.get("metrics", BASIC)
    assert code == 200
    assert 'distri_requests_total{state="done"} 0.0' in text


def test_no_password_and_no_port_for_others(house: House) -> None:
    pids = [house.process.pid, *descendants(house.process.pid)]
    assert len(pids) >= 3
    for pid in pids:
        assert AUTH[1].encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert listeners(pids) == {"127.0.0.1"}


def test_an_exception_on_a_rank_reaches_the_caller_and_the_group_goes_on(house: House) -> None:
    with pytest.raises(Exception, match=r"Rank 1: RuntimeError: DISTRI_FAULT asked for this after step 2"):
        house.api().predict(**PICTURE, steps=3, api_name="/generate")
    assert house.status()["restarts"] == 0


def test_a_killed_rank_costs_an_attempt_and_not_the_picture(house: House) -> None:
    before = len(house.ends())
    house.api().submit(**PICTURE, steps=6, api_name="/generate")
    until(lambda: len(house.ends()) > before, 240)
    until(house.ready, 240)
    assert house.status()["restarts"] == 1
    disturbed = house.ends()[-1]
    assert disturbed["state"] == "done"
    assert [line["entry"] for line in house.journal() if line["id"] == disturbed["id"]] == [
        "accepted", "try", "try", "finished",
    ]  # fmt: skip
    house.api().predict(**PICTURE, steps=6, api_name="/generate")
    undisturbed = house.ends()[-1]
    assert undisturbed["id"] != disturbed["id"]
    assert Path(undisturbed["pictures"][0]).read_bytes() == Path(disturbed["pictures"][0]).read_bytes()
    assert house.get("metrics", BASIC)[1].count('distri_requests_total{state="done"} 2.0') == 1  # over the restart


def test_told_to_end_it_leaves_nothing_and_keeps_the_request(house: House) -> None:
    pids = descendants(house.process.pid)
    house.api().submit(**PICTURE, steps=900, api_name="/generate")
    until(lambda: house.journal()[-1]["entry"] == "try", 60)
    assert len(list(house.tmp.iterdir())) == 1
    house.process.terminate()
    assert house.process.wait(60) == 128 + signal.SIGTERM
    assert not any(map(alive, pids))
    assert house.journal()[-1]["entry"] == "untry"
    assert list(house.tmp.iterdir()) == []
    assert not list(house.folder.rglob(".*"))
