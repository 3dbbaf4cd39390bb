"""`python -m launcher export-html`: one page that refers to nothing outside of it, in which captions are text."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.__main__ import main

ATTACK = '<script>alert("x")</script><img src=https://example.org/x.png onerror=alert(1)> & "a \'quoted\' house"'
CAPTIONS = [ATTACK, "a red house", "a blue boat", "a green tree"]


def folder(
    path: Path, indices: list[int], *, size: tuple[int, int] = (64, 48), run: dict[str, Any] | None = None
) -> Path:
    """A folder as coco makes it."""
    path.mkdir()
    for index in indices:
        Image.new("RGB", size, (40 * index, 90, 200)).save(path / f"{index:04d}.png")
    (path / "captions.txt").write_text("".join(f"{caption}\n" for caption in CAPTIONS))
    if run is not None:
        settings = {"parallelism": "patch", "mode": "no_sync", **run}
        made = {"request": {"steps": 20}, "config": settings, "model": ATTACK, "device": "cpu", "ranks": 2}
        (path / "run.json").write_text(json.dumps({**made, "seconds": {"total": 1.234}}))
    return path


class Page(HTMLParser):
    """What a browser would find."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._inside = ""
        self.code: dict[str, str] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside in ("script", "style"):
            self.code[self._inside] = self.code.get(self._inside, "") + data
        elif data.strip():
            self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_captions_are_text_and_nothing_is_fetched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = folder(tmp_path / "one", [0, 1, 3], size=(600, 300))
    two = folder(tmp_path / "<b>two", [0, 1, 2], run={})
    file, report = tmp_path / "page.html", tmp_path / "r.json"
    main(["export-html", str(one), str(two), "--output", str(file), "--title", ATTACK, "--json", str(report)])
    text = file.read_text()
    page = Page(text)
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert not page.all("link") + page.all("iframe") + page.all("base")
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on") or name == "style"]
    sources = [attributes[name] for _, attributes in page.tags for name in ("src", "href") if name in attributes]
    assert len(sources) == 6
    assert all(source.startswith("data:image/webp;base64,") for source in sources)
    assert "url(" not in page.code["style"]
    assert page.texts.count(ATTACK) == 3  # title, heading, caption
    assert "<b>two" in page.texts
    images = page.all("img")
    assert images[0]["alt"] == f"one, 0: {ATTACK}"
    assert (images[0]["width"], images[0]["height"]) == ("512", "256")  # reduced
    assert (images[1]["width"], images[1]["height"]) == ("64", "48")  # smaller than asked for, and not enlarged
    assert page.texts.count("no picture") == 2
    assert {"DistriFusion · no_sync · 2 CPU ranks · 20 steps", "1.23 s a picture"} <= set(page.texts)
    # The browser runs what the policy names and nothing else.
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    for kind, code in page.code.items():
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in str(policy)
    assert str(policy).startswith("default-src 'none'; img-src data:; ")
    written = json.loads(report.read_text())
    assert (written["rows"], written["pictures"], written["bytes"]) == (4, 6, len(text.encode()))
    assert capsys.readouterr().out == f"{file}: 4 captions, 2 folders, {len(text.encode()) / 1e6:.1f} MB\n"


def test_captions_may_lie_beside_the_folder(tmp_path: Path) -> None:
    one = folder(tmp_path / "pictures", [1])
    (one / "captions.txt").rename(tmp_path / "captions.txt")
    main(["export-html", str(one), "--output", str(tmp_path / "page.html")])
    assert "a red house" in Page((tmp_path / "page.html").read_text()).texts


def test_full_pictures_are_the_files_themselves(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", [0, 2], size=(600, 300))
    main(["export-html", str(one), "--output", str(tmp_path / "page.html"), "--full", "--count", "1"])
    (image,) = Page((tmp_path / "page.html").read_text()).all("img")
    kind, data = str(image["src"]).split(",")
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data) == (one / "0000.png").read_bytes()
    main(["export-html", str(one), "--output", str(tmp_path / "page.html"), "--width", "100"])
    image = Page((tmp_path / "page.html").read_text()).all("img")[1]
    with Image.open(io.BytesIO(base64.b64decode(str(image["src"]).split(",")[1]))) as small:
        assert small.size == (100, 50)


def test_figures_stand_above_the_folder_that_they_are_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("single", "naive", "patch"):
        folder(tmp_path / name, [0])
    rows = [
        {"metric": "FID", "value": None, "missing": "fewer than two pictures"},
        {"metric": "PSNR", "value": 31.2345, "worst": 22.04, "unit": "dB", "better": "higher"},
        {"metric": "LPIPS", "value": 0.0341, "better": "lower", "note": "of one picture"},
        {"metric": "doubled subjects", "value": 20.0, "b": 5.0, "unit": "%"},  # the folder's own
    ]
    for file, a, b in (("m1", "patch/", "single"), ("m2", "gt", "naive"), ("m3", "x", "y")):
        (tmp_path / file).write_text(json.dumps({"a": a, "b": b, "pictures": 1, "rows": rows}))
    equal = [{"metric": "SSIM", "value": None, "infinite": ["value"], "missing": "all are equal"}]
    (tmp_path / "m4").write_text(json.dumps({"a": "patch", "b": "single", "rows": equal}))
    files = [str(tmp_path / f"m{number}") for number in (1, 2, 3, 4)]
    main(["export-html", "single", "naive", str(tmp_path / "patch"), "--output", "page.html", "--metrics", *files])
    page = Page((tmp_path / "page.html").read_text())
    texts = page.texts
    assert texts[texts.index("Caption") : texts.index("All figures")] == [
        "Caption",
        *("single", "naive", "against gt", "PSNR", "31.2 dB", "LPIPS", "0.034"),
        *("patch", "against single", "PSNR", "31.2 dB", "LPIPS", "0.034", "SSIM", "∞"),
    ]
    assert texts[texts.index("All figures") + 1 : texts.index("0")] == [
        *("naive", "patch"),  # those that have some
        *("FID", "against gt", "–"),
        *("PSNR", "against gt", "31.2 dB", "worst 22.0"),
        *("LPIPS", "against gt", "0.034"),
        *("doubled subjects", "20.0 %", "20.0 %"),
        *("FID", "against single", "–"),
        *("PSNR", "against single", "31.2 dB", "worst 22.0"),
        *("LPIPS", "against single", "0.034"),
        *("SSIM", "against single", "∞"),
        *("FID against gt: fewer than two pictures", "FID against single: fewer than two pictures"),
    ]
    told = [attributes["title"] for attributes in page.all("td") if "title" in attributes]
    assert "PSNR 31.2 dB against single, worst 22.0; higher is better" in told
    assert "LPIPS 0.034 against gt; lower is better; of one picture" in told
    assert "doubled subjects 20.0 %" in told
    assert capsys.readouterr().err == "note: figures of x and y are left out; neither is on the page\n"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["/no/such/folder"], "the folder /no/such/folder does not exist"),
        (["{folder}"], "{folder} has no pictures named 0000.png, 0001.png, ..."),
        (["{folder}/other"], "are of different captions: 0001.png is of 'a red house' and of 'a red horse'"),
        (["--width", "100", "--full"], "--full leaves pictures as they are, and --width reduces them"),
        (["--width", "0"], "width 0 is out of range"),
        (["--count", "0"], "count 0 is out of range"),
        (["--metrics", "/no/such/file"], "metrics /no/such/file cannot be read: No such file"),
        (["--metrics", "{folder}/m.json"], "m.json is not what `python -m launcher metrics --json` writes"),
        (["--captions", "/no/such/file"], "captions /no/such/file cannot be read"),
        (["--output", "/no/such/folder/x.html"], "the folder /no/such/folder does not exist"),
        (["--output", "{folder}/one/0000.png"], "{folder}/one/0000.png is not named as a page; give a name that ends"),
        (["--output", ""], "argument --output: an empty name is none"),
        (["{folder}/cut"], "{folder}/cut/0000.png cannot be read as a picture: "),
        (["{folder}/cut", "--full"], "{folder}/cut/0000.png cannot be read as a picture: "),
        (["{folder}/beside/bare"], "are of different captions: 0001.png is of 'a red house' and of 'a grey cat'"),
    ],
)
def test_bad_arguments_are_one_sentence(
    options: list[str], sentence: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    one, other = folder(tmp_path / "one", [0]), folder(tmp_path / "other", [0])
    (other / "captions.txt").write_text(f"{ATTACK}\na red horse\n")
    cut = folder(tmp_path / "cut", [0], size=(600, 300)) / "0000.png"
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    (tmp_path / "beside").mkdir()  # a folder whose captions lie beside it
    (folder(tmp_path / "beside" / "bare", [0]) / "captions.txt").unlink()
    (tmp_path / "beside" / "captions.txt").write_text(f"{ATTACK}\na grey cat\n")
    (tmp_path / "m.json").write_text('{"a": "x", "b": "y", "rows": [{"metric": "PSNR", "value": "much"}]}')
    words = [*(word.format(folder=tmp_path) for word in options), "--output", str(tmp_path / "page.html")]
    words = words[:2] if "--output" in options else words
    with pytest.raises(SystemExit) as ended:
        main(["export-html", str(one), *words])
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence.format(folder=tmp_path) in captured.err
    assert len(captured.err.splitlines()) == 1
    assert not (tmp_path / "page.html").exists()
    assert (one / "0000.png").read_bytes().startswith(b"\x89PNG")
