"""The zip of a run: what is in it, in which order, always the same bytes, and nothing left behind."""

from __future__ import annotations

import io
import json
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from distri_engine.config import DistriConfig
from distri_engine.request import GenerationRequest
from launcher import png
from launcher.options import Options
from launcher.schema import Status
from launcher.web import bundle, settings
from launcher.web.recover import controls
from launcher.web.take import Take
from launcher.web.visit import Visits
from tests.page.test_panels import take
from tests.support.fake_client import FakeClient
from tests.support.processes import free_port


def zipped(takes: dict[str, Take]) -> bytes:
    file = io.BytesIO()
    bundle.write(takes, file)
    return file.getvalue()


def test_pictures_and_report_in_order_and_the_same_bytes_again(tmp_path: Path) -> None:
    made = {
        method: take(tmp_path, method, 2.0, shade)
        for method, shade in {"patch": 101, "naive_patch": 150, "single": 100, "tensor": 100}.items()
    }
    takes = {method: made[method] for method in ("single", "naive_patch", "patch", "tensor")}
    whole = zipped(takes)
    archive = zipfile.ZipFile(io.BytesIO(whole))
    names = ["one-device.png", "naive.png", "distrifusion.png", "tensor.png", "report.json"]
    assert archive.namelist() == names
    assert [archive.read(name) for name in names[:-1]] == [Path(each.picture).read_bytes() for each in takes.values()]
    report = json.loads(archive.read("report.json"))
    assert [report[method]["image"] for method in takes] == names[:-1]
    assert report["psnr"]["patch"] > report["psnr"]["naive_patch"]
    assert str(tmp_path) not in archive.read("report.json").decode()  # where they lie is nobody's business
    assert zipped(takes) == whole


def test_pictures_with_settings_carry_their_timings(tmp_path: Path) -> None:
    made = take(tmp_path, "patch", 2.0, 101)
    request, config = GenerationRequest(**made.request), DistriConfig(parallelism="patch", split_batch=False)
    chunks = png.chunks(request, config, model="m", device="CPU", ranks=2)
    with Image.open(made.picture) as image:
        image.load()
    png.save(image, Path(made.picture), chunks)
    before = Path(made.picture).read_bytes()
    copy = zipfile.ZipFile(io.BytesIO(zipped({"patch": made}))).read("distrifusion.png")
    assert Path(made.picture).read_bytes() == before
    with Image.open(io.BytesIO(copy)) as again:
        assert again.tobytes() == image.tobytes()
        ours, common = json.loads(again.info[png.OURS]), again.info[png.COMMON]
    timings = ours.pop("timings")
    assert (ours, common) == (json.loads(chunks[png.OURS]), chunks[png.COMMON])
    assert timings == {"seconds": made.report["seconds"], "step_ms": [90.0]}
    status = Status(state="idle", message="", ranks=2, device="cpu", model=None, queue=0, restarts=0)
    values, _ = controls(copy, status)
    assert values["prompt"] == made.request["prompt"]


def test_the_address(page_server: tuple[str, FakeClient], fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    url, _ = page_server
    monkeypatch.setattr(tempfile, "tempdir", str(fake.folder / "nowhere"))  # a file with a name would fail here
    visits, who = Visits(fake), {"visitor": "v", "ids": []}
    values = {**settings.DEFAULTS, "prompt": "x", "steps": 3, "run": "+ Naive"}
    *_, last = visits.follow(visits.start(who, values)["current"], who)
    query = "&".join(f"id={id}" for id in last["links"]["ids"])
    with urllib.request.urlopen(f"{url}gradio_api/bundle.zip?{query}") as answer:
        archive = zipfile.ZipFile(io.BytesIO(answer.read()))
        seed = last["current"]["takes"]["patch"].request["seed"]
        assert answer.headers["Content-Disposition"] == f'attachment; filename="distrifusion-{seed}.zip"'
    assert archive.namelist() == ["naive.png", "distrifusion.png", "report.json"]
    assert archive.testzip() is None
    for bad in ("id=unknown", "&".join(["id=x"] * 9)):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}gradio_api/bundle.zip?{bad}")


def test_it_is_behind_the_password(page_server: tuple[str, FakeClient], fake: FakeClient) -> None:
    import app

    port = free_port()
    app.serve(fake, Options(host="127.0.0.1", port=port, auth=("u", "p")))  # page_server closes it with its own
    for path in ("bundle.zip?id=x", "file=x"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/gradio_api/{path}")
