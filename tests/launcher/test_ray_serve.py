"""Replicas of whole groups under Ray Serve: real ones, with the embedded model, on this machine."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.processes import alive, descendants, free_port, until

ray = pytest.importorskip("ray", reason="Ray is optional; pip install -r requirements-ray.txt")

SMALL = {"prompt": "a red house", "seed": 7, "steps": 2, "height": 128, "width": 128, "parallelism": "single"}


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[Any, str]]:
    """Two replicas of one rank: a handle, and the address of the same over HTTP."""
    from ray import serve

    from launcher.ray_serve import build

    port = free_port()
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield serve.run(build(2, ranks=1, device="cpu", cpus=0.5)), f"http://127.0.0.1:{port}/"
    finally:
        serve.shutdown()
        ray.shutdown()


def test_two_replicas_share_the_requests_and_end_with_their_groups(served: tuple[Any, str]) -> None:
    handle, url = served
    with ThreadPoolExecutor(1) as thread:  # Ray refuses to wait where a loop runs, and playwright's may be running here
        calls = [handle.generate.remote(SMALL) for _ in range(6)]
        answers = list(thread.map(lambda answer: answer.result(timeout_s=120), calls))
    gangs = {answer["gang"] for answer in answers}
    assert len(gangs) == 2
    assert len({answer["png"] for answer in answers}) == 1  # the same picture, whoever made it
    assert answers[0]["png"].startswith(b"\x89PNG")
    assert answers[0]["report"]["ranks"] == 1

    request = urllib.request.Request(url, json.dumps(SMALL).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        assert (answer.read(), answer.headers["Content-Type"]) == (answers[0]["png"], "image/png")
        assert int(answer.headers["X-Gang"]) in gangs
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps({**SMALL, "steps": 0}).encode()), timeout=120)
    assert refused.value.code == 400
    assert refused.value.read() == b"Steps 0 is out of range; give a number from 1 to 1000\n"

    from ray import serve

    processes = [pid for gang in gangs for pid in (gang, *descendants(gang))]
    assert len(processes) >= 6  # agents, zygotes, ranks
    serve.delete("default")
    until(lambda: not any(map(alive, processes)), 60)
