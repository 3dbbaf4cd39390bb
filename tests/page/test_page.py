"""The page in a real browser, over a fake client: what it shows in every state, and what it refuses."""

from __future__ import annotations

import asyncio
import io
import threading
import zipfile
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from PIL import Image

from launcher.limits import Rate, Receive, Scope, Send, SmallBodies
from launcher.schema import Refused
from launcher.styles import STYLES
from tests.support.browser import DESKTOP, PHONE, Visitor
from tests.support.fake_client import FakeClient
from tests.support.processes import until

Visit = Callable[..., Visitor]
INJECTIONS = (
    "{{value}} ${window.__pwned = 1} {{#if 1}}x{{/if}}",
    '<img src=x onerror="window.__pwned = 1"><b>bold</b>',
)


def test_loading_and_load(visit: Visit, fake: FakeClient) -> None:
    fake.loading = True
    visitor = visit()
    assert visitor.text(".df-message h2") == "Loading the model on every device"
    assert visitor.text("#generate") == "Loading model…"
    assert visitor.text(".df-lane-name >> nth=1") == "rank 1"
    assert "GPU" not in visitor.text("body")
    visitor.write("written while it loads")
    fake.loading = False
    visitor.page.wait_for_selector('.df-badge[data-state="ready"]')
    visitor.page.wait_for_function("!document.querySelector('#generate').disabled")
    assert visitor.text(".df-badge") == "2 CPU ranks ready"
    assert "GPU" not in visitor.text("body")
    assert visitor.page.locator("#stop").is_disabled()
    assert visitor.text(".df-message h2") == "Ready when you are"
    assert visitor.page.locator(".df-lane").count() == 2
    assert visitor.text(".df-lane-name >> nth=1") == "CPU rank 1"
    assert visitor.page.input_value("#prompt textarea") == "written while it loads"
    visitor.wait_ticks()
    assert visitor.complaints == []
    assert visitor.strangers == []
    for width, height in (DESKTOP, (1024, 768), PHONE):
        visitor.page.set_viewport_size({"width": width, "height": height})
        assert visitor.sideways() <= 0


def test_run_shows_every_rank_at_work(visit: Visit, fake: FakeClient) -> None:
    visitor = visit()
    fake.gate = lambda method, step: step < 3
    visitor.generate("a red house")
    visitor.wait_step(3)
    seen = [visitor.step()]
    for reached in (9, 20):
        fake.gate = lambda method, step, reached=reached: step < reached
        visitor.wait_step(reached)
        seen.append(visitor.step())
    assert seen == [3, 9, 20]
    for size in (DESKTOP, (1440, 1250), (1024, 768), PHONE):  # a tall window makes the lanes narrow
        visitor.page.set_viewport_size({"width": size[0], "height": size[1]})
        assert visitor.cut() == []
    visitor.page.set_viewport_size({"width": DESKTOP[0], "height": DESKTOP[1]})
    fake.gate = lambda method, step: True
    visitor.wait_idle()
    assert visitor.text(".df-lane >> nth=0").startswith("CPU rank 0")
    assert visitor.text(".df-why").startswith("Auto: patches on 2 of 2 ranks, until it is known")
    assert "rows 128–256" in visitor.text(".df-lane >> nth=1")
    assert visitor.state() == "done"
    logo, lanes, edge = visitor.page.evaluate(COLOURS)
    assert lanes == edge == logo[: len(lanes)]
    assert len(lanes) == 2
    assert visitor.complaints == []


# Of the devices: in the logo, in the lanes, and on the picture's edge.
COLOURS = """() => {
  const colours = (selector, property) =>
    [...document.querySelectorAll(selector)].map((node) => getComputedStyle(node)[property]);
  return [
    colours(".df-brand svg rect[rx='2.7']", "fill"), colours(".df-lane", "borderLeftColor"),
    colours(".df-over > .df-strip i", "backgroundColor"),
  ];
}"""


def test_comparison(visit: Visit, fake: FakeClient) -> None:
    fake.step_seconds = 0.02
    fake.gate = lambda method, step: method != "naive_patch" or step < 5
    visitor = visit()
    visitor.wait_ticks(1)
    visitor.page.evaluate(WATCH)
    visitor.generate("a yellow sailboat", run="+ Naive + 1 device")
    visitor.page.wait_for_selector(".df-inset:not([hidden])")  # DistriFusion is shown while the baselines run
    assert visitor.text(".df-label") == "DistriFusion"
    fake.gate = lambda method, step: True
    visitor.wait_idle()
    visitor.page.wait_for_selector("#canvas.df-sliding")
    visitor.page.wait_for_function("window.seen > 5")
    shifts, blank = visitor.page.evaluate("[window.shifts, window.blank]")
    assert sum(shifts) < 0.02
    assert blank == 0
    loaded = visitor.page.eval_on_selector_all("#slider img", "list => list.map(each => each.naturalWidth)")
    assert loaded == [256, 256]
    alone, naive, ours = (float(text) for text in visitor.page.locator(".df-card-seconds").all_inner_texts())
    badges = visitor.page.locator(".df-card-badge:not([hidden])").all_inner_texts()
    for badge, seconds in zip(badges, (naive, ours), strict=True):
        ratio = alone / seconds if alone >= seconds else seconds / alone
        assert badge.startswith(f"{ratio:.2f}×")
    assert "dB" in visitor.text(".df-card[data-method=naive_patch]")
    assert "of one device's time" in visitor.text(".df-story")
    assert [str(config.parallelism) for _, config in fake.submitted] == ["patch", "naive_patch", "single"]
    assert len({request.seed for request, _ in fake.submitted}) == 1

    with visitor.page.expect_download() as waiting:
        visitor.page.get_by_label("Download ZIP").click()
    assert waiting.value.suggested_filename == f"distrifusion-{visitor.seed()}.zip"
    with zipfile.ZipFile(waiting.value.path()) as archive:
        assert archive.namelist() == ["one-device.png", "naive.png", "distrifusion.png", "report.json"]

    visitor.choose("1 device | DistriFusion")
    visitor.page.wait_for_function("document.querySelector('.df-label').textContent === '1 device'")
    visitor.choose("Side by side")
    visitor.page.wait_for_function(
        "[...document.querySelectorAll('.df-sides img')].every(each => each.naturalWidth === 256)"
    )
    assert all(visitor.page.eval_on_selector_all(".df-sides img", "list => list.map(each => each.alt)"))
    visitor.choose("Difference")
    visitor.page.wait_for_function("document.querySelector('.df-picture').src.startsWith('data:image/png')")
    assert visitor.complaints == []


# Layout shifts, and from the first picture on, how many frames showed one, or none.
WATCH = """() => {
  Object.assign(window, { shifts: [], seen: 0, blank: 0 });
  new PerformanceObserver((list) => list.getEntries().forEach((entry) => window.shifts.push(entry.value)))
    .observe({ type: "layout-shift", buffered: false });
  const there = (image) => image.checkVisibility({ visibilityProperty: true }) && image.naturalWidth > 0;
  const look = () => {
    const images = [...document.querySelectorAll(".df-picture, #slider img")];
    if (images.some(there)) window.seen++;
    else if (window.seen) window.blank++;
    requestAnimationFrame(look);
  };
  look();
}"""


def test_keyboard_and_stop(visit: Visit, fake: FakeClient) -> None:
    fake.gate = lambda method, step: step < 3
    visitor = visit()
    order = ["prompt", "actions", "chips", "run", "aspect", "style", "seed", "random-seed", "recover", "advanced"]
    assert visitor.stops() == [*order, "explain"]  # there is no picture yet to do something with
    assert visitor.nameless() == []
    chip = visitor.page.locator(".df-chip >> nth=1")
    chip.focus()
    visitor.page.keyboard.press("Enter")
    visitor.wait_prompt(str(chip.get_attribute("title")))  # with both baselines
    visitor.page.keyboard.press("Control+Enter")
    visitor.wait_step(2)
    seed = visitor.seed()
    visitor.page.keyboard.press("Escape")
    visitor.wait_state("cancelled")
    assert "Your prompt and seed are kept" in visitor.text(".df-message p")
    fake.gate = lambda method, step: True  # what still ran would now go on
    visitor.wait_ticks()
    assert visitor.state() == "cancelled"
    assert not fake.running(visitor=fake.owner())
    assert visitor.seed() == seed
    visitor.choose("DistriFusion")
    visitor.press_generate()
    visitor.wait_state("done")


def test_bad_input_is_one_sentence_and_starts_nothing(
    visit: Visit, fake: FakeClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def take(_: Rate, who: str, pictures: int) -> None:
        raise Refused(f"{who} asked for {pictures}")

    visitor = visit()
    seed = visitor.seed()
    visitor.page.click("#generate")
    visitor.wait_toast("The prompt is empty")
    visitor.write("a red house")
    for field, value, sentence in (
        ("steps", "9999", "Steps 9999 is out of range; give a number from 1 to 1000"),
        ("height", "1000", "Height 1000 is not a multiple of 32; nearest: 992 or 1024"),
        ("width", "0", "Width 0 is not a positive multiple of 32"),
        ("width", "-64", "Width -64 is not a positive multiple of 32"),
    ):
        good = visitor.advanced(field, value)
        visitor.page.click("#generate")
        visitor.wait_toast(sentence)
        visitor.advanced(field, good)
    monkeypatch.setattr(Rate, "take", take)
    visitor.page.click("#generate")
    visitor.wait_toast("127.0.0.1 asked for 3")
    assert visitor.state() == "idle"
    assert visitor.seed() == seed
    assert fake.submitted == []
    assert visitor.page.locator("#generate").is_enabled()


def test_what_crosses_the_end_of_a_stream_is_answered(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    held, joined, plain = list[int](), list[Scope](), SmallBodies.__call__

    async def hold(self: SmallBodies, scope: Scope, receive: Receive, send: Send) -> None:
        """Does not let the next stream end before two more events were asked for: a click, and a tick of the timer."""

        async def passing(message: dict[str, Any]) -> None:
            if b'"close_stream"' in message.get("body", b"") and not held:
                held.append(before := len(joined))
                while len(joined) < before + 2:
                    await asyncio.sleep(0.02)
                await asyncio.sleep(0.3)  # the browser has its answers
            await send(message)
            if message["type"] == "http.response.body" and scope["path"].endswith("/queue/join"):
                joined.append(scope)

        await plain(self, scope, receive, passing)

    visitor = visit()
    visitor.wait_settled()
    monkeypatch.setattr(SmallBodies, "__call__", hold)
    until(lambda: held)
    visitor.page.click("#generate")
    assert "The prompt is empty" in visitor.toast()
    assert len(joined) > held[0] + 1


def test_error_and_lost_device(visit: Visit, fake: FakeClient) -> None:
    fake.fault = lambda step: "failed" if step == 3 else ""
    visitor = visit()
    visitor.generate("a red house", run="+ Naive + 1 device")
    visitor.wait_state("failed")
    assert "out of memory" in visitor.text(".df-message p")
    visitor.wait_idle()
    until(lambda: not fake.running(visitor=fake.owner()))  # a baseline that had just begun stops at its next step
    fake.fault = lambda step: "lost" if step == 6 else ""
    fake.gate = lambda method, step: method != "restart"
    visitor.choose("DistriFusion")
    visitor.press_generate()
    visitor.wait_state("lost")
    assert visitor.text(".df-message h2") == "A device was lost"
    assert "Rank 1 stopped answering at step 6" in visitor.text(".df-message p")
    fake.gate = lambda method, step: True
    visitor.wait_state("done")


def test_two_visitors_leave_and_a_closed_tab(visit: Visit, fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    fake.gate = lambda method, step: step < 2  # nothing gets done, however slow the second visitor is
    first, second = visit(), visit()
    first.generate("a red house", run="+ Naive")
    second.generate("a blue house")
    second.wait_state("queued")
    assert "number 2 in the line" in second.text(".df-message p")
    assert second.text("#stop") == "Leave"
    second.page.click("#stop")
    second.wait_state("cancelled")
    assert first.page.locator("#stop").is_enabled()
    picture, baseline = fake.running(visitor=fake.owner(0))
    monkeypatch.setattr("launcher.web.visit.GRACE_S", 0.1)
    first.close()
    until(lambda: next(fake.updates(baseline)).state == "cancelled")  # no step of the picture comes meanwhile
    fake.gate = lambda method, step: True
    until(lambda: fake.status().state == "idle")
    assert next(fake.updates(picture)).state == "done"  # what was begun is in the history


def test_injections_do_nothing_and_a_picture_brings_its_settings(visit: Visit, tmp_path: Path) -> None:
    prompt = " ".join(INJECTIONS)
    visitor = visit(path="?" + urlencode({"prompt": prompt, "seed": "<b>7</b>", "steps": "9", "run": "DistriFusion"}))
    visitor.wait_toast("The link's seed cannot be used")
    visitor.wait_prompt(prompt)
    visitor.press_generate()
    visitor.wait_idle()
    visitor.page.wait_for_selector(".df-tile img")
    assert prompt in str(visitor.page.get_attribute(".df-tile", "title"))
    (path := tmp_path / "x.png").write_bytes(visitor.picture())

    chooser = visit()
    chooser.page.get_by_label("Settings from a picture").set_input_files(path)
    chooser.wait_toast("The settings of this picture are in the controls.")
    chooser.wait_prompt(prompt)
    assert chooser.seed() == visitor.seed()
    assert not chooser.page.is_checked("#random-seed input")
    chooser.choose("DistriFusion")
    chooser.press_generate()
    chooser.wait_idle()
    assert chooser.picture() == path.read_bytes()
    chooser.write("something else")
    chooser.drop(path)
    chooser.wait_prompt(prompt)
    assert chooser.page.locator(".df-drop").is_hidden()
    chooser.drop(Path(__file__))
    chooser.wait_toast("This is not a PNG picture")
    assert chooser.complaints == []
    chooser.reload()  # the same words come from the history now
    chooser.page.wait_for_selector(".df-tile img")
    for one in (visitor, chooser):
        assert one.page.evaluate("window.__pwned") is None
        assert one.page.locator("b", has_text="bold").count() == 0


def test_gallery_survives_a_reload_and_brings_settings_back(visit: Visit) -> None:
    visitor = visit()
    visitor.choose("4:3")
    visitor.wait_advanced("width", "288")
    visitor.generate("the first picture", run="+ Naive")
    visitor.wait_idle()
    seed, first = visitor.seed(), visitor.picture()
    visitor.choose("1:1")
    visitor.wait_advanced("width", "256")
    visitor.generate("the second picture")
    visitor.wait_idle()
    visitor.page.wait_for_function("document.querySelectorAll('.df-tile').length === 2")
    visitor.reload()
    visitor.wait_state("done")  # the last run is back
    assert visitor.page.input_value("#prompt textarea") == "the second picture"
    visitor.page.wait_for_function("document.querySelectorAll('.df-tile').length === 2")
    visitor.page.click(".df-tile >> nth=1")
    visitor.page.wait_for_selector(".df-tile:nth-child(2)[aria-current]")
    visitor.wait_prompt("the first picture")
    visitor.page.wait_for_selector("#canvas.df-sliding")  # with its pair
    assert visitor.page.locator(".df-label").all_inner_texts() == ["Naive patch", "DistriFusion"]
    assert visitor.seed() == seed
    assert not visitor.page.is_checked("#random-seed input")
    assert visitor.picture() == first
    assert visitor.text("#aspect .selected") == "4:3"
    stranger = visit()
    assert stranger.page.locator(".df-tile").count() == 0


def test_what_runs_and_what_was_typed_survive_a_reload_and_are_in_a_second_tab(visit: Visit, fake: FakeClient) -> None:
    fake.gate = lambda method, step: step < 3
    visitor = visit()
    visitor.generate("still running", run="+ Naive")
    visitor.wait_step(3)
    visitor.reload()
    visitor.wait_step(3)
    assert visitor.page.input_value("#prompt textarea") == "still running"
    visitor.write("the next one")
    visitor.choose("DistriFusion")
    visitor.wait_settled()  # nobody reloads that fast
    visitor.reload()
    second = visit(context=visitor.context, tab=True)
    for tab in (visitor, second):
        tab.wait_prompt("the next one")
        tab.wait_step(3)
        assert tab.text("#run .selected") == "DistriFusion"
    fake.gate = lambda method, step: True
    for tab in (visitor, second):
        tab.wait_idle()
        assert tab.text(".df-label >> nth=0") == "Naive patch"
    assert len(fake.submitted) == 2


def test_link_with_a_style(visit: Visit, fake: FakeClient) -> None:
    query = {"prompt": "from a link", "seed": "123", "steps": "7", "run": "DistriFusion", "mode": "full_sync"}
    query |= {"parallelism": "patch", "ranks": "1", "metadata": "False", "style": "Watercolour"}
    visitor = visit(path="?" + urlencode(query))
    visitor.wait_prompt("from a link")
    assert visitor.page.input_value("#style input") == "Watercolour"
    assert "This model knows those of Golden hour" in visitor.text("#style")
    visitor.press_generate()
    visitor.wait_idle()
    (request, config), *others = fake.submitted
    assert (request.seed, request.steps, str(config.mode), others) == (123, 7, "full_sync", [])
    assert request.prompt == (used := f"from a link, {STYLES['Watercolour']}")
    assert config.ranks == 1
    assert visitor.text(".df-why") == ""  # there is nothing to explain
    with Image.open(io.BytesIO(visitor.picture())) as image:
        assert image.info == {}  # settings stay out of the picture where that is wanted
    visitor.page.wait_for_selector(".df-tile")
    assert str(visitor.page.get_attribute(".df-tile", "title")).startswith(f"{used}\nStyle: Watercolour\n")
    assert "prompt=" not in visitor.page.url  # a reload brings back what was made, not the link
    visitor.reload()
    visitor.wait_state("done")
    assert visitor.page.input_value("#prompt textarea") == "from a link"
    assert visitor.page.input_value("#style input") == "Watercolour"
    visitor.context.grant_permissions(["clipboard-read", "clipboard-write"])
    visitor.choose("Copy link")
    visitor.page.wait_for_selector("text=Link copied")
    copied = str(visitor.page.evaluate("navigator.clipboard.readText()"))
    carried = {name: value for name, (value,) in parse_qs(urlsplit(copied).query).items()}
    assert query.items() <= carried.items()
    again = visit(path=copied.removeprefix(visitor.url))
    again.wait_prompt("from a link")
    assert again.seed() == "123"


class Host(BaseHTTPRequestHandler):
    """Somebody else's page, as Chromium sees it: under another name of this machine. It has ours in a frame."""

    address = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(f'<iframe src="{self.address}" width="1300" height="850"></iframe>'.encode())

    def log_message(self, *_: object) -> None:
        pass


def test_inside_another_page(visit: Visit, fake: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    visitor = visit()
    monkeypatch.setattr(Host, "address", visitor.url)
    with ThreadingHTTPServer(("127.0.0.1", 0), Host) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        visitor.page.goto(f"http://localhost:{server.server_port}/")
        inside = visitor.page.frame_locator("iframe")
        inside.locator('.df-gallery[aria-busy="false"]').wait_for()
        visitor.complaints.clear()  # of the page that was left in the middle of something
        inside.locator("#prompt textarea").fill("a red house")
        inside.locator("#settings").get_by_text("DistriFusion", exact=True).click()
        for theme in (False, True):  # also where the browser lets nothing in a frame remember anything
            inside.locator("#generate:enabled").click()
            inside.locator('.df-stage[data-state="done"]').wait_for(state="attached")
            inside.locator(".df-tile img").first.wait_for()
            assert visitor.page.frames[1].evaluate("document.body.classList.contains('dark')") == theme
            inside.locator(".df-theme").click()
        assert [each for each in visitor.complaints if "autofocus" not in each] == []
        server.shutdown()


def test_phone(visit: Visit) -> None:
    visitor = visit(size=PHONE)
    bar = visitor.page.locator("#generate").bounding_box()
    assert bar is not None
    assert bar["y"] + bar["height"] <= PHONE[1]
    assert bar["y"] > PHONE[1] - 100
    visitor.page.mouse.wheel(0, 900)
    visitor.page.wait_for_function("window.scrollY > 0")
    assert visitor.page.locator("#generate").bounding_box() == bar
    parts = ["#prompt", "#canvas", "#lanes", "#cards", "#gallery", "#settings", "#advanced"]
    tops = visitor.page.evaluate(
        "parts => parts.map(part => document.querySelector(part).getBoundingClientRect().top)", parts
    )
    assert tops == sorted(tops)
    body = visitor.page.locator(".df-explain-body")
    assert body.is_hidden()
    visitor.page.locator(".df-explain summary").focus()
    visitor.page.keyboard.press("Enter")
    body.wait_for()
    drawings = visitor.page.locator(".df-explain").get_by_role("img")
    assert drawings.count() == 3
    assert all(len(each.get_attribute("aria-label") or "") > 80 for each in drawings.all())
    assert visitor.sideways() <= 0
    visitor.page.mouse.wheel(0, -9000)
    visitor.write("on a phone")
    visitor.press_generate()
    visitor.wait_idle()
    visitor.page.wait_for_selector("#canvas.df-sliding")
    assert visitor.sideways() <= 0
    assert visitor.stops()[-4:] == ["advanced", "tools", "explain", "gallery"]  # the controls, then what came of them
    assert visitor.nameless() == []


def test_contrast_motion_and_dark_mode(visit: Visit, fake: FakeClient) -> None:
    visitor = visit()
    dark, moving = "document.body.classList.contains('dark')", "document.getAnimations().filter(endless).length"
    visitor.page.evaluate("void (window.endless = (each) => each.effect.getComputedTiming().iterations === Infinity)")
    assert visitor.page.evaluate(CONTRAST) == []  # at rest
    fake.gate = lambda method, step: method != "waking"
    visitor.generate("a red house", run="+ Naive + 1 device")
    visitor.wait_state("starting")
    assert visitor.page.evaluate(moving) > 0
    visitor.page.emulate_media(reduced_motion="reduce")
    visitor.page.wait_for_function(f"{moving} === 0")
    fake.gate = lambda method, step: True
    visitor.wait_idle()
    visitor.page.click(".df-explain summary")
    for scheme in ("light", "dark"):  # follows the system
        visitor.page.emulate_media(color_scheme=scheme)
        visitor.page.wait_for_function(f"{dark} === {str(scheme == 'dark').lower()}")
        visitor.wait_settled()
        assert visitor.page.evaluate(CONTRAST) == []
    visitor.page.get_by_label("Switch between light and dark").click()  # until the button is pressed
    assert not visitor.page.evaluate(dark)
    visitor.reload()
    visitor.page.wait_for_function(f"!{dark}")


# Text of the page whose contrast with what is behind it is below 4.5 (WCAG 2.1, AA), disabled controls excepted.
CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const light = (part) => (part /= 255, part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
  const behind = (node) => {
    for (let each = node; each; each = each.parentElement) {
      const [r, g, b, a = 1] = parse(getComputedStyle(each).backgroundColor);
      if (a > 0.7 && r !== undefined) return [r, g, b];
    }
    return parse(getComputedStyle(document.body).backgroundColor);
  };
  const weak = [];
  for (const node of document.querySelectorAll(".gradio-container *")) {
    const own = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    const hidden = !node.checkVisibility({ opacityProperty: true, visibilityProperty: true });
    if (!own || hidden || node.closest(":disabled, [aria-disabled=true], footer, #canvas, #generate")) continue;
    let seen = 1;
    for (let each = node; each; each = each.parentElement) seen *= Number(getComputedStyle(each).opacity);
    const ground = behind(node);
    const ink = parse(getComputedStyle(node).color).map((part, index) => seen * part + (1 - seen) * ground[index]);
    const [front, back] = [luminance(ink), luminance(ground)];
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    const name = node.className || node.tagName;
    if (ratio < 4.5) weak.push(`${name}: ${node.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return weak;
}"""
