"""What machines ask the page's server: whether it works, and what it did."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request

import pytest

from launcher.web import probes
from tests.support.fake_client import FakeClient
from tests.support.processes import until

AUTH = ("me", "pass:wörd")


def test_healthz_says_whether_a_picture_could_be_made(page_server: tuple[str, FakeClient], fake: FakeClient) -> None:
    until(lambda: fake.status().state == "idle")
    with urllib.request.urlopen(page_server[0] + "healthz") as answer:
        assert json.load(answer) == {"state": "ready", "last_step_age": None, "restarts": 0, "queue": 0}
        assert answer.headers["Content-Type"] == "application/json"
    fake.loading = True
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(page_server[0] + "healthz")
    assert refused.value.code == 503
    assert json.load(refused.value)["state"] == "loading"


def test_metrics_are_served_as_text(page_server: tuple[str, FakeClient]) -> None:
    with urllib.request.urlopen(page_server[0] + "metrics") as answer:
        assert answer.read() == b"distri_queue_length 0.0\n"
        assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")


def basic(word: str) -> str:
    return "Basic " + base64.b64encode(word.encode()).decode()


@pytest.mark.parametrize(
    "header",
    ["", "Basic", "Basic ###", basic("me:pass"), basic("you:pass:wörd"), basic("me:pass:wörd")[6:], "Bearer x"],
)
def test_metrics_of_a_page_with_a_password_need_it(fake: FakeClient, header: str) -> None:
    answer = probes.metrics(fake, header, AUTH)
    assert (answer["status_code"], "distri" in answer["content"]) == (401, False)
    assert probes.metrics(fake, basic("me:pass:wörd"), AUTH)["content"] == fake.metrics()
