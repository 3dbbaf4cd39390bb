"""The page's API as other programs see it: exactly three names, streams that end with picture and report."""

from __future__ import annotations

import base64
import http.client
import io
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.limits import BODY_BYTES, Rate
from launcher.schema import Refused
from tests.support.fake_client import KNOWN, FakeClient
from tests.support.processes import until


@pytest.fixture(scope="module")
def caller(page_server: tuple[str, FakeClient]) -> Any:
    from gradio_client import Client

    return Client(page_server[0], verbose=False, analytics_enabled=False)


def test_exactly_three_names(page_server: tuple[str, FakeClient]) -> None:
    with urllib.request.urlopen(page_server[0] + "gradio_api/info") as answer:
        info = json.load(answer)
    assert sorted(info["named_endpoints"]) == ["/compare", "/generate", "/status"]
    assert info["unnamed_endpoints"] == {}


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("/generate", [("split_batch", None), ("picard_window", None), ("picard_tolerance", 0.1)]),
        ("/compare", [("split_batch", None)]),
    ],
)
def test_parameters_and_their_defaults(
    page_server: tuple[str, FakeClient], name: str, last: list[tuple[str, object]]
) -> None:
    with urllib.request.urlopen(page_server[0] + "gradio_api/info") as answer:
        prompt, *others = json.load(answer)["named_endpoints"][name]["parameters"]
    assert (prompt["parameter_name"], prompt["parameter_has_default"]) == ("prompt", False)
    assert all(each["parameter_has_default"] for each in others)
    assert [(each["parameter_name"], each["parameter_default"]) for each in others] == [
        ("negative_prompt", ""),
        ("height", None),
        ("width", None),
        ("steps", 30),
        ("guidance_scale", 5.0),
        ("seed", None),
        ("scheduler", "ddim"),
        ("parallelism", "auto"),
        ("ranks", None),
        ("mode", "corrected_async_gn"),
        ("warmup_steps", 4),
        ("warmup_threshold", 0.1),
        ("extrapolation", 0.5),
        ("extrapolation_memory", 0.5),
        ("split_scheme", "row"),
        *last,
        ("metadata", True),
        ("image", None),
        ("strength", 0.6),
    ]


@pytest.mark.parametrize("name", ["start", "follow", "stop", "open", "tick", "recall"])
def test_events_of_the_page_are_not_part_of_it(caller: Any, name: str) -> None:
    with pytest.raises(ValueError, match="api_name"):
        caller.predict(api_name=f"/{name}")


def test_pictures_are_served_and_nothing_beside_them(page_server: tuple[str, FakeClient], fake: FakeClient) -> None:
    url, _ = page_server
    for name in ("pictures/picture.png", "journal.jsonl", ".huggingface/token", "other.png"):
        (fake.folder / name).parent.mkdir(exist_ok=True)
        (fake.folder / name).write_text(name)
    with urllib.request.urlopen(f"{url}gradio_api/file={fake.folder}/pictures/picture.png") as answer:
        assert answer.read() == b"pictures/picture.png"
    (fake.folder / "pictures" / "link.png").symlink_to(fake.folder / "journal.jsonl")
    (fake.folder / "pictures" / "folder").symlink_to(fake.folder)
    around = (
        "pictures/../journal.jsonl",
        "pictures/%2e%2e/journal.jsonl",
        "pictures/link.png",
        "pictures/folder/other.png",
    )
    for name in ("journal.jsonl", ".huggingface/token", "other.png", *around):
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(f"{url}gradio_api/file={fake.folder}/{name}")


def test_generate_streams_and_ends_with_picture_and_report(caller: Any, fake: FakeClient) -> None:
    fake.gate = lambda method, step: step < 3
    answers = []
    for answer in caller.submit("a red house", steps=12, seed=5, api_name="/generate"):
        answers.append(answer)
        if answer[1].get("step") == 3:
            fake.gate = lambda method, step: True
    steps = [progress["step"] for _, progress in answers[:-1]]
    assert steps == sorted(steps)
    assert 3 in steps
    picture, report = answers[-1]
    assert Image.open(_path(picture)).size == (256, 256)
    assert (report["request"]["seed"], report["request"]["steps"], report["ranks"]) == (5, 12, 2)
    assert set(report["seconds"]) >= {"text", "denoise", "decode", "total"}
    config = fake.submitted[0][1]
    assert (config.parallelism, config.split_batch) == ("patch", False)  # Auto, before it knows anything
    assert report["plan"] == {
        "sentence": "Auto: patches on 2 of 2 ranks, until it is known what this model costs here.",
        "candidates": [],
    }


def test_a_picture_to_start_from(caller: Any, fake: FakeClient) -> None:
    file = io.BytesIO()
    Image.new("RGB", (90, 60), "red").save(file, "JPEG")
    uri = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
    caller.predict("a red house", steps=10, image=uri, strength=0.5, api_name="/generate")
    (request, _), *_ = fake.submitted
    assert (request.strength, request.timesteps) == (0.5, 5)
    assert request.image is not None
    with Image.open(fake.inputs.path(request.image)) as kept:
        assert (kept.format, kept.size) == ("PNG", (90, 60))


def test_method_and_ranks_of_the_callers_own(caller: Any, fake: FakeClient) -> None:
    how = {"parallelism": "patch", "ranks": 1, "mode": "auto"}
    _, report = caller.predict("a red house", steps=5, api_name="/generate", **how)
    (_, config), *_ = fake.submitted
    assert (config.parallelism, config.ranks, config.split_batch, config.mode) == ("patch", 1, True, "extrapolated")
    assert "plan" not in report


def test_auto_chooses_and_says_why(caller: Any, fake: FakeClient) -> None:
    fake.known = KNOWN
    _, report = caller.predict("a red house", steps=5, api_name="/generate")
    (_, config), *_ = fake.submitted
    assert (config.parallelism, config.split_batch) == ("patch", True)
    assert report["plan"]["sentence"].startswith("Auto: guidance split over 2 of 2 ranks; ")
    assert [set(one) for one in report["plan"]["candidates"]] == [
        {"parallelism", "ranks", "split_batch", "seconds", "measured"}
    ] * 4
    *_, report = caller.predict("a red house", steps=5, api_name="/compare")
    first = fake.submitted[1][1]
    assert (first.parallelism, first.split_batch) == ("patch", False)  # patches are what is compared
    assert report["patch"]["plan"]["sentence"].startswith("Auto: patches on 2 of 2 ranks; ")
    assert "plan" not in report["single"]


def test_compare(caller: Any, fake: FakeClient) -> None:
    alone, naive, ours, report = caller.predict("a red house", steps=5, seed=5, api_name="/compare")
    assert len({Path(_path(each)).read_bytes() for each in (alone, naive, ours)}) == 3
    assert set(report["psnr"]) == {"naive_patch", "patch"}
    assert report["psnr"]["patch"] > report["psnr"]["naive_patch"]
    assert {request.seed for request, _ in fake.submitted} == {5}
    assert not any(config.split_batch for _, config in fake.submitted)  # two ranks: patches are what is compared


@pytest.mark.parametrize(
    ("parallelism", "sentence"),
    [
        ("single", "does not take parallelism 'single', leave it at 'auto'"),
        ("magic", "Unknown parallelism 'magic'; choose one of"),
    ],
)
def test_compare_refuses_another_method(caller: Any, fake: FakeClient, parallelism: str, sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        caller.predict("a red house", parallelism=parallelism, api_name="/compare")
    assert fake.submitted == []


def test_status(caller: Any) -> None:
    assert caller.predict(api_name="/status") == {
        "state": "ready",
        "ranks": 2,
        "device": "CPU",
        "model": "embedded demo model",
        "queue": 0,
        "restarts": 0,
    }


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"prompt": ""}, "The prompt is empty"),
        ({"prompt": "x" * 2001}, "Prompt has 2001 characters, the limit is 2000; shorten it"),
        ({"prompt": "x", "steps": 9999}, "Steps 9999 is out of range"),
        ({"prompt": "x", "height": 1000}, "Height 1000 is not a multiple of 32"),
        ({"prompt": "x", "parallelism": "magic"}, "Unknown parallelism 'magic'; choose one of"),
        ({"prompt": "x", "image": "../house.png"}, "Image is not base64; send the picture as a data URI"),
        ({"prompt": "x", "image": "data:image/gif;base64,R0lGODlhAQABAAAAACw="}, "Image is no whole PNG, JPEG or WEBP"),
        ({"prompt": "x", "image": "A" * 3_900_000}, "Image has about 2925000 bytes, the limit is 2900000; send a sm"),
    ],
)
def test_bad_parameters(caller: Any, fake: FakeClient, parameters: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        caller.predict(**parameters, api_name="/generate")
    assert fake.submitted == []


@pytest.mark.parametrize(("name", "count"), [("/generate", 1), ("/compare", 3)])
def test_who_asks_too_often_is_refused(
    caller: Any, fake: FakeClient, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    def take(_: Rate, who: str, pictures: int) -> None:
        raise Refused(f"{who} asked for {pictures}")

    monkeypatch.setattr(Rate, "take", take)
    with pytest.raises(Exception, match=f"127.0.0.1 asked for {count}"):
        caller.predict("a red house", api_name=name)
    assert fake.submitted == []


def test_what_went_wrong_inside_is_not_told(caller: Any, fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise KeyError("/home/me/secret")

    monkeypatch.setattr(fake, "submit", fail)
    with pytest.raises(Exception) as refused:
        caller.predict("a red house", api_name="/generate")
    assert "secret" not in str(refused.value)
    assert "Traceback" not in str(refused.value)
    monkeypatch.setattr(fake, "submit", lambda *_, **__: (_ for _ in ()).throw(Refused("sorry\n  File secret")))
    with pytest.raises(Exception, match="Sorry") as refused:
        caller.predict("a red house", api_name="/generate")
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("upload", b"x"),
        ("process_recording", b"x"),
        ("deep_link?session_hash=x", None),
        ("file=https://example.org/x.png", None),
        ("file/http://example.org/x.png", None),
        ("proxy=https://example.org/x.png", None),
    ],
)
def test_nobody_leaves_files_here_or_has_some_fetched(
    page_server: tuple[str, FakeClient], path: str, body: bytes | None
) -> None:
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(f"{page_server[0]}gradio_api/{path}", body)


def test_a_flood_that_says_so_is_refused_before_it_comes(page_server: tuple[str, FakeClient]) -> None:
    connection = http.client.HTTPConnection(urllib.parse.urlsplit(page_server[0]).netloc, timeout=20)
    connection.putrequest("POST", "/gradio_api/queue/join")
    connection.putheader("Content-Length", str(BODY_BYTES + 1))
    connection.endheaders()
    assert connection.getresponse().status == 413
    connection.close()


def test_a_flood_without_a_length_is_cut_off(page_server: tuple[str, FakeClient]) -> None:
    url = f"{page_server[0]}gradio_api/queue/join"
    flood = (b" " * 2**16 for _ in range(BODY_BYTES // 2**16 + 2))
    with pytest.raises((OSError, http.client.HTTPException)):
        urllib.request.urlopen(urllib.request.Request(url, flood, {"Content-Type": "application/json"}), timeout=20)


def test_cancelling_frees_the_engine(caller: Any, fake: FakeClient) -> None:
    fake.step_seconds = 0.2
    job = caller.submit("a long one", steps=200, api_name="/generate")
    until(job.outputs)
    job.cancel()
    until(lambda: fake.status().state == "idle")


def _path(file: Any) -> str:
    return str(file["path"] if isinstance(file, dict) else file)
